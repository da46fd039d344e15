//! One guest with all of its daemons, on this machine's loopback: disks, memory and a standby.
//!
//! ```text
//!  QEMU ── NBD ── blockrep ─────────► blockrep-backup ── NBD ── QEMU (standby)
//!    └── checkpointer protect ──────► checkpointer receive ──────┘
//! ```
//! QEMU is started first, alone: what it costs without us is measured of the same process.

use super::super::qmp::Qmp;
use super::machine::{Machine, Memory};
use crate::harness::{Process, binary, free_port};
use anyhow::{Context, Result, anyhow, bail, ensure};
use blkback_proto::ctl::{
    Answer, EpochFigures, GuestPromoteAnswer, GuestPromoteRequest, GuestProtection, GuestReport,
    GuestStatusRequest, GuestTimelineRequest, Request,
};
use blockrep_host::ctl::Client;
use checkpointer::hypervisor::qemu::spec::{Child, Place, Role, Spec};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Patience with a busy machine.
const LIMIT: Duration = Duration::from_secs(90);
const GUEST: &str = "bench";

/// See the module. What runs is killed with it.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    machine: Machine<'a>,
    port: u16,
    /// In the order of their start.
    daemons: Vec<Process>,
    qemu: Child,
    place: Place,
    pub(super) memory: Memory,
    dir: TempDir,
    /// What a host has on its disk.
    _kept: TempDir,
}

impl<'a> Stage<'a> {
    /// Disks and guest; it runs, and nothing protects it yet.
    ///
    /// # Errors
    /// Something does not come up: what it said.
    pub(super) fn boot(machine: Machine<'a>, out: &Path) -> Result<Self> {
        // Sockets, which want short paths, and the guest's memory.
        let dir = tempfile::Builder::new()
            .prefix("blockrep-bench-")
            .tempdir_in("/dev/shm")
            .context("/dev/shm")?;
        let kept = tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(out)
            .context("a directory for the disks")?;
        for image in ["a.img", "b.img"] {
            machine.make_image(&kept.path().join(image))?;
        }
        let mut daemons = Vec::new();
        let disk_port = free_port()?;
        start_disks(dir.path(), kept.path(), disk_port, &mut daemons)?;
        let qemu = super::qemu()?;
        let side = |side: &str| {
            let disk = dir.path().join(format!("{side}.nbd"));
            let args = machine.args(&disk, &dir.path().join(format!("{side}.serial")));
            format!(
                "[qemu]\nprogram = {qemu:?}\nmemory_mib = {}\nargs = {args:?}\n",
                machine.memory_mib
            )
        };
        let port = free_port()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        for name in ["a", "b"] {
            let own = match name {
                "a" => format!(
                    "[memory]\nbackup = \"127.0.0.1:{port}\"\nbackup_host = \"b\"\n[epochs]\ninterval_ms = {}\n",
                    super::EPOCH_MS
                ),
                _ => format!(
                    "[memory]\nlisten = \"127.0.0.1:{port}\"\nstore = {:?}\n[standby]\npromote = \"by-hand\"\n",
                    at("store")
                ),
            };
            let text = format!(
                "guest = \"{GUEST}\"\nhost = \"{name}\"\n[disks]\ncontrol = {:?}\n[output]\ninterfaces = []\n\
                 [authority]\nfile = {:?}\n{own}{}",
                at(&format!("{name}.ctl")),
                kept.path().join("authority").display().to_string(),
                side(name)
            );
            fs::write(dir.path().join(format!("{name}.toml")), text)?;
            fs::create_dir(dir.path().join(name))?;
        }
        let spec = Spec::parse(&format!("guest = \"{GUEST}\"\n{}", side("a")));
        let spec = spec.map_err(|why| anyhow!(why))?;
        let place = spec.place(&dir.path().join("a"));
        let qemu = spec.start(Role::Primary, &place)?;
        let memory = Memory::open(&place.memory)?;
        memory
            .wait_booted(machine.inside, &dir.path().join("a.serial"))
            .with_context(|| qemu.tail())?;
        Ok(Self {
            machine,
            port,
            daemons,
            qemu,
            place,
            memory,
            dir,
            _kept: kept,
        })
    }

    /// Its monitor; to be left before it is protected.
    pub(super) fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&self.place.monitor)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn checkpointer(&mut self, side: &str, words: &[&str]) -> Result<()> {
        let mut command = Command::new(binary("checkpointer")?);
        command.args(words).arg("--config");
        command.arg(self.path(&format!("{side}.toml")));
        command.env("BLOCKREP_RUNTIME_DIR", self.path(side));
        let log = self.path(&format!("{}.log", words[0]));
        let process = Process::start(&format!("checkpointer {}", words[0]), &mut command, &log)?;
        self.daemons.push(process);
        Ok(())
    }

    /// Protects it, until a standby waits.
    ///
    /// # Errors
    /// It is not protected in time.
    pub(super) fn protect(&mut self) -> Result<()> {
        ensure!(self.port != 0, "protected once");
        self.checkpointer("b", &["receive"])?;
        let qmp = self.place.monitor.display().to_string();
        let served = format!("unix:{}", self.path("a.nbd").display());
        self.checkpointer("a", &["protect", "--qmp", &qmp, "--served", &served])?;
        self.until("a", "protection", |report| {
            report.stated.state == GuestProtection::Protected && report.epochs.committed.is_some()
        })?;
        self.until("b", "a standby", |report| {
            let standby = report.standby.as_ref();
            standby
                .is_some_and(|standby| standby.pid.is_some() && standby.promotable_epoch.is_some())
        })?;
        Ok(())
    }

    fn control(&self, side: &str) -> PathBuf {
        let ending = if side == "a" {
            "checkpointer"
        } else {
            "standby"
        };
        self.path(side).join(format!("{GUEST}.{ending}.sock"))
    }

    fn ask(&self, side: &str, request: &Request) -> Result<Answer> {
        let limit = Duration::from_secs(30);
        let mut client = Client::connect(&self.control(side), "bench", limit)?;
        Ok(client.request(request, limit)?)
    }

    pub(super) fn report(&self, side: &str) -> Result<GuestReport> {
        match self.ask(side, &Request::GuestStatus(GuestStatusRequest {}))? {
            Answer::GuestStatus(report) => Ok(*report),
            other => bail!("a status is no {other:?}"),
        }
    }

    fn until(
        &mut self,
        side: &str,
        what: &str,
        is_so: impl Fn(&GuestReport) -> bool,
    ) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let last = match self.report(side) {
                Ok(report) if is_so(&report) => return Ok(()),
                Ok(report) => format!("{}: {}", report.stated.state, report.stated.reason),
                Err(error) => format!("{error:#}"),
            };
            for daemon in &mut self.daemons {
                let name = daemon.name.clone();
                ensure!(daemon.is_running(), "{name} ended: {}", daemon.last_words());
            }
            ensure!(Instant::now() < until, "waited for {what} in vain: {last}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The checkpoints of so long a time, from now on.
    ///
    /// # Errors
    /// Of asking.
    pub(super) fn checkpoints(&self, time: Duration) -> Result<Vec<EpochFigures>> {
        let mut from_seq = self.seen(0)?.1;
        std::thread::sleep(time);
        // What was sent by then has to have been counted.
        std::thread::sleep(Duration::from_millis(200));
        let mut all = Vec::new();
        loop {
            let (epochs, next_seq) = self.seen(from_seq)?;
            if epochs.is_empty() {
                break;
            }
            all.extend(epochs);
            from_seq = next_seq;
            if all.len() as u128 > time.as_millis() / 5 {
                break;
            }
        }
        all.retain(|one: &EpochFigures| one.epoch.is_some() && one.given_up.is_none());
        Ok(all)
    }

    fn seen(&self, from_seq: u64) -> Result<(Vec<EpochFigures>, u64)> {
        let mut from_seq = from_seq;
        loop {
            let request = Request::GuestTimeline(GuestTimelineRequest { from_seq });
            match self.ask("a", &request)? {
                Answer::GuestTimeline(batch) if from_seq == 0 && batch.more => {
                    from_seq = u64::MAX;
                }
                Answer::GuestTimeline(batch) => return Ok((batch.epochs, batch.next_seq)),
                other => bail!("a timeline is no {other:?}"),
            }
        }
    }

    /// The host of the primary is gone at once; the guest goes on at its standby.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn fail_over(&mut self) -> Result<GuestPromoteAnswer> {
        let machine = self.machine;
        self.qemu.kill();
        for daemon in &mut self.daemons {
            if daemon.name == "blockrep" || daemon.name.ends_with("protect") {
                daemon.kill();
            }
        }
        let request = Request::GuestPromote(GuestPromoteRequest {
            force: true,
            by_hand: true,
            reason: "bench".to_owned(),
        });
        let answer = match self.ask("b", &request)? {
            Answer::GuestPromote(answer) => answer,
            other => bail!("a promotion is no {other:?}"),
        };
        if machine.inside == super::machine::Inside::Sector {
            let memory = Memory::open(&self.standby_memory()?)?;
            let before = memory.turns()?;
            let until = Instant::now() + LIMIT;
            while memory.turns()? <= before {
                ensure!(
                    Instant::now() < until,
                    "it says that the guest goes on, and it does not"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(answer)
    }

    fn standby_memory(&self) -> Result<PathBuf> {
        let dir = self.path("store").join(GUEST);
        let files = fs::read_dir(&dir)?.flatten().map(|file| file.path());
        let mut ram = files.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ram-")
        });
        ram.next().context("the standby has no memory")
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // A guest that was promoted outlives its daemon.
        let standby = self.report("b").ok().and_then(|report| report.standby?.pid);
        self.qemu.kill();
        for daemon in self.daemons.iter_mut().rev() {
            daemon.kill();
        }
        if let Some(pid) = standby {
            kill_qemu(pid);
        }
    }
}

/// Kills a QEMU of ours; the number may be somebody else's by now.
fn kill_qemu(pid: u32) {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&line).contains("blockrep-bench-")
        && let Ok(pid) = libc::pid_t::try_from(pid)
    {
        // SAFETY: no memory involved.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

fn start_disks(dir: &Path, kept: &Path, port: u16, daemons: &mut Vec<Process>) -> Result<()> {
    let at = |name: &str| dir.join(name).display().to_string();
    let file = |name: &str| kept.join(name).display().to_string();
    let mut backup = Command::new(binary("blockrep-backup")?);
    backup.args([
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--image",
        &file("b.img"),
    ]);
    backup.args([
        "--state",
        &file("b.state"),
        "--group",
        GUEST,
        "--insecure-plaintext",
    ]);
    backup.args([
        "--journal-size",
        "64MiB",
        "--nbd",
        &format!("unix:{}", at("b.nbd")),
    ]);
    backup.args(["--control", &at("b.ctl")]);
    let mut primary = Command::new(binary("blockrep")?);
    primary.args([
        "-n",
        &format!("tap:remus:127.0.0.1:{port}|aio:{}", file("a.img")),
    ]);
    primary.args(["--group", GUEST, "--epoch", "manual", "--ack", "local"]);
    primary.args([
        "--state",
        &file("a.state"),
        "--nbd",
        &format!("unix:{}", at("a.nbd")),
    ]);
    primary.args(["--control", &at("a.ctl")]);
    for (name, command, sockets) in [
        ("blockrep-backup", &mut backup, ["b.ctl"].as_slice()),
        ("blockrep", &mut primary, &["a.ctl", "a.nbd"]),
    ] {
        let mut process = Process::start(name, command, &dir.join(format!("{name}.log")))?;
        let until = Instant::now() + LIMIT;
        while !sockets.iter().all(|socket| dir.join(socket).exists()) {
            ensure!(
                process.is_running(),
                "{name} ended: {}",
                process.last_words()
            );
            ensure!(Instant::now() < until, "{name} does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemons.push(process);
    }
    Ok(())
}
