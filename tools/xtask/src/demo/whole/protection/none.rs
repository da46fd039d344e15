//! No protection: the guest alone at host A, on a raw file.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::super::{machine, stage};
use super::shared::SharedMemory;
use super::{Protection, Scene, Takeover};
use crate::guest::{self, Boot, Guest, Word};
use crate::ui;

#[derive(Debug)]
pub(crate) struct Unprotected<'a> {
    scene: Scene<'a>,
    guest: Option<Guest>,
}

impl<'a> Unprotected<'a> {
    pub(crate) fn new(scene: Scene<'a>) -> Self {
        Self { scene, guest: None }
    }
}

impl Protection for Unprotected<'_> {
    fn survives(&self) -> bool {
        false
    }

    fn start_standby(&mut self) -> Result<()> {
        Ok(())
    }

    fn start_primary(&mut self) -> Result<()> {
        let step = ui::step("booting the guest at host A, without protection");
        let machine = self.scene.machine;
        let memory = SharedMemory::new()?;
        let disk = machine.disk(self.scene.place.dir.join("disk.img"))?;
        let mut devices = machine::memory(&memory.file("guest"), machine.memory_mib).to_vec();
        devices.extend(machine::network());
        devices.extend(guest::image_disk(&disk));
        let mut guest = Guest::boot(&Boot {
            kernel: machine.kernel,
            accelerator: machine.accelerator,
            arguments: machine.words.to_owned(),
            memory_mib: machine.memory_mib,
            disk_socket: None,
            devices: &devices,
            dir: &self.scene.place.dir,
            name: "guest",
            host: Some(&self.scene.stage.a),
            half_line: Vec::new(),
        })?;
        if guest.expect_word("to listen", machine.boot_limit)? != Word::Ready {
            bail!("the guest began with something else than LEDGER-READY");
        }
        self.guest = Some(guest);
        step.done("it listens");
        // QEMU has the file open: it needs no name any more.
        drop(memory);
        Ok(())
    }

    fn wait_until_protected(&mut self) -> Result<()> {
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        match &mut self.guest {
            Some(guest) => guest.next(Duration::ZERO).map(drop),
            None => bail!("the guest was not started"),
        }
    }

    fn kill_host_a(&mut self) {
        stage::kill_all(&self.scene.stage.a);
        self.guest = None;
    }

    fn wait_for_takeover(&mut self) -> Result<Takeover> {
        bail!("there is no protection, and so nobody takes over")
    }

    fn epochs(&mut self) -> Result<Value> {
        Ok(json!([]))
    }
}
