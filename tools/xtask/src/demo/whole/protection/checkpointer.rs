//! The guest behind blockrep, netbuf and the checkpointer, one of each at either host.
//!
//! ```text
//!  host A: blockrep, netbuf, checkpointer run ──► QEMU       host B: blockrep-backup, netbuf, checkpointer receive ──► QEMU
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::{Plant, machine, stage};
use super::configuration::{Memory, Side};
use super::shared::SharedMemory;
use super::{Protection, Scene, Takeover, said};
use crate::checkout::find_program;
use crate::lab::JOURNAL_SIZE;
use crate::netns::Host;
use crate::process::{self, Process};
use crate::{stop, ui};

const GUEST: &str = "demo";
/// On the network of replication.
const DISK_PORT: u16 = 9000;
const MEMORY_PORT: u16 = 9100;
const TAKEOVER_LIMIT: Duration = Duration::from_secs(30);
const SOCKET_LIMIT: Duration = Duration::from_secs(20);
/// The variable that names a bug planted in a checkpointer.
const PLANT: &str = "CHECKPOINTER_PLANT";
/// How often figures of checkpoints are fetched: a host that was killed tells none any more.
const FETCH_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Checkpointer<'a> {
    scene: Scene<'a>,
    authority: PathBuf,
    memory: SharedMemory,
    a: Crew<'a>,
    b: Crew<'a>,
    /// Of every pause, as `guest timeline` has it.
    told: Vec<Value>,
    next_seq: u64,
    fetched: Instant,
}

/// What runs at one host.
#[derive(Debug)]
struct Crew<'a> {
    host: &'a Host,
    name: &'static str,
    /// Control sockets, and what the daemons look for.
    runtime: PathBuf,
    serial: PathBuf,
    daemons: Vec<Process>,
}

impl Crew<'_> {
    fn socket(&self, name: &str) -> PathBuf {
        self.runtime.join(name)
    }

    /// The guest's disk, from this host's daemon.
    fn disk(&self) -> PathBuf {
        self.socket("disk")
    }

    fn check(&mut self) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Process::must_be_alive)
    }

    fn start(&mut self, command: &mut Command, scene: Scene<'_>, name: &str) -> Result<()> {
        command.env("BLOCKREP_RUNTIME_DIR", &self.runtime);
        self.host.place(command);
        let log = scene.place.log(&format!("{}-{name}", self.name));
        self.daemons.push(Process::spawn(command, name, &log)?);
        Ok(())
    }
}

impl<'a> Checkpointer<'a> {
    pub(crate) fn new(scene: Scene<'a>) -> Result<Self> {
        let side = |host: &'a Host, name: &'static str| -> Result<Crew<'a>> {
            let runtime = scene.place.socket(name);
            fs::create_dir(&runtime).with_context(|| format!("create {}", runtime.display()))?;
            Ok(Crew {
                host,
                name,
                runtime,
                serial: scene.place.log(&format!("{name}-serial")),
                daemons: Vec::new(),
            })
        };
        Ok(Self {
            scene,
            authority: scene.place.socket("authority"),
            memory: SharedMemory::new()?,
            a: side(&scene.stage.a, "a")?,
            b: side(&scene.stage.b, "b")?,
            told: Vec::new(),
            next_seq: 0,
            fetched: Instant::now(),
        })
    }

    fn command(&self, name: &str) -> Command {
        self.scene.means.programs.command(name)
    }

    /// A daemon that has ended takes its children with it, who see each other as on a machine of their own.
    fn checkpointer(&self, verb: &str, file: &Path) -> Command {
        let mut command = crate::checkout::tool("unshare");
        command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        command.arg(&self.scene.means.checkpointer);
        command.arg(verb).arg("--config").arg(file);
        if let Some(plant) = self.scene.means.plant {
            let name = match plant {
                Plant::EarlyRelease => "early-release",
                Plant::OlderEpoch => "older-epoch",
                Plant::SkipPage => "skip-page",
            };
            command.env(PLANT, name);
        }
        command
    }

    fn netbuf(&self, side: &Crew<'_>) -> Command {
        let mut command = self.command("netbuf");
        command.arg("--control").arg(side.socket("netbuf.sock"));
        command.arg("run");
        command
    }

    /// Writes the file of one side, and starts its checkpointer.
    fn configuration(&self, side: &Crew<'_>, memory: Memory) -> Result<PathBuf> {
        let qemu = find_program("qemu-system-x86_64").context("qemu-system-x86_64 is not there")?;
        let arguments = machine::protected(&self.scene.machine, &side.disk(), &side.serial);
        let text = Side {
            guest: GUEST,
            host: side.name,
            disks: &side.socket("disk.sock"),
            output: &side.socket("netbuf.sock"),
            memory,
            authority: &self.authority,
            qemu: &qemu,
            memory_mib: self.scene.machine.memory_mib,
            arguments: &arguments,
        }
        .toml();
        let file = self
            .scene
            .place
            .dir
            .join(format!("guest-{}.toml", side.name));
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }

    /// Asks one of the daemons of a guest.
    fn ask(&self, socket: &Path, words: &[&str]) -> Result<String> {
        let mut command = self.command("blockrepctl");
        command.arg("--control").arg(socket).args(words);
        let output = process::ask(&mut command)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("blockrepctl {}: {}", words.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Fetches what there is of checkpoints that was not fetched yet.
    pub(crate) fn fetch(&mut self) -> Result<()> {
        let socket = self.a.socket(&format!("{GUEST}.checkpointer.sock"));
        let from = self.next_seq.to_string();
        let text = self.ask(&socket, &["guest", "timeline", "--from", &from, "--json"])?;
        let lines = text.lines().map(serde_json::from_str);
        let told: Vec<Value> = lines
            .collect::<Result<_, _>>()
            .context("answer of guest timeline")?;
        if let Some(last) = told.last().and_then(|one| one["seq"].as_u64()) {
            self.next_seq = last + 1;
        }
        self.told.extend(told);
        Ok(())
    }
}

impl Checkpointer<'_> {
    /// Figures of every pause that were fetched, also of those that made no checkpoint.
    pub(crate) fn told(&self) -> &[Value] {
        &self.told
    }

    /// What the primary says of the guest.
    pub(crate) fn status(&self) -> Result<Value> {
        let socket = self.a.socket(&format!("{GUEST}.checkpointer.sock"));
        let text = self.ask(&socket, &["guest", "status", "--json"])?;
        serde_json::from_str(&text).context("answer of guest status")
    }
}

impl Protection for Checkpointer<'_> {
    fn survives(&self) -> bool {
        true
    }

    fn start_standby(&mut self) -> Result<()> {
        let step = ui::step("starting the standby at host B");
        let scene = self.scene;
        let address = scene.stage.b.address;
        let image = scene.machine.disk(scene.place.dir.join("b.img"))?;
        let mut backup = self.command("blockrep-backup");
        backup.args(["--listen", &format!("{address}:{DISK_PORT}"), "--image"]);
        backup
            .arg(&image)
            .arg("--state")
            .arg(scene.place.dir.join("b-state"));
        backup.args([
            "--group",
            GUEST,
            "--journal-size",
            JOURNAL_SIZE,
            "--insecure-plaintext",
        ]);
        backup.arg("--nbd").arg(unix(&self.b.disk()));
        backup.arg("--control").arg(self.b.socket("disk.sock"));
        let mut netbuf = self.netbuf(&self.b);
        let memory = Memory::Listen {
            address: format!("{address}:{MEMORY_PORT}"),
            store: self.memory.file("b"),
            silence_ms: scene.means.silence_ms,
        };
        let file = self.configuration(&self.b, memory)?;
        let mut receive = self.checkpointer("receive", &file);
        self.b.start(&mut backup, scene, "blockrep-backup")?;
        self.b.start(&mut netbuf, scene, "netbuf")?;
        wait_for_sockets(&mut self.b, &["disk.sock", "netbuf.sock"])?;
        self.b.start(&mut receive, scene, "checkpointer")?;
        step.done("");
        Ok(())
    }

    fn start_primary(&mut self) -> Result<()> {
        let step = ui::step("booting the guest at host A");
        let scene = self.scene;
        let backup = scene.stage.b.address;
        let image = scene.machine.disk(scene.place.dir.join("a.img"))?;
        let mut disk = self.command("blockrep");
        disk.arg("-n");
        disk.arg(format!(
            "tap:remus:{backup}:{DISK_PORT}|aio:{}",
            image.display()
        ));
        disk.args(["--group", GUEST, "--epoch", "manual", "--ack", "local"]);
        disk.arg("--nbd").arg(unix(&self.a.disk()));
        disk.arg("--control").arg(self.a.socket("disk.sock"));
        let mut netbuf = self.netbuf(&self.a);
        let memory = Memory::Backup {
            address: format!("{backup}:{MEMORY_PORT}"),
            host: self.b.name.to_owned(),
            interval_ms: scene.means.interval_ms,
            early_ms: scene.means.early_ms,
            file: self.memory.file("a"),
        };
        let file = self.configuration(&self.a, memory)?;
        let mut run = self.checkpointer("run", &file);
        run.arg("--served").arg(unix(&self.a.disk()));
        self.a.start(&mut disk, scene, "blockrep")?;
        self.a.start(&mut netbuf, scene, "netbuf")?;
        wait_for_sockets(&mut self.a, &["disk", "disk.sock", "netbuf.sock"])?;
        self.a.start(&mut run, scene, "checkpointer")?;
        stop::wait_for("the guest to listen", scene.machine.boot_limit, || {
            self.b.check()?;
            self.a.check()?;
            let said = fs::read(&self.a.serial).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            if let Some(at) = said.find("LEDGER-FAIL") {
                bail!(
                    "the guest says: {}",
                    said[at..].lines().next().unwrap_or_default()
                );
            }
            Ok(said.contains("LEDGER-READY").then_some(()))
        })?;
        step.done("it listens");
        Ok(())
    }

    fn wait_until_protected(&mut self) -> Result<()> {
        let step = ui::step("copying the guest's memory to host B");
        let mut last = String::from("no answer yet");
        let waited = stop::wait_for(
            "the guest to be protected",
            self.scene.machine.protected_limit,
            || {
                self.b.check()?;
                self.a.check()?;
                let Ok(status) = self.status() else {
                    return Ok(None);
                };
                let state = status["state"].as_str().unwrap_or_default();
                last = format!(
                    "{state} ({})",
                    status["reason"].as_str().unwrap_or_default()
                );
                step.now(&last);
                Ok((state == "protected").then_some(()))
            },
        );
        waited.map_err(|error| match error.is::<stop::Interrupted>() {
            true => error,
            false => error.context(format!("the primary's last word: {last}")),
        })?;
        step.done("protected");
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        self.b.check()?;
        self.a.check()?;
        if self.fetched.elapsed() >= FETCH_EVERY {
            self.fetch()?;
            self.fetched = Instant::now();
        }
        Ok(())
    }

    fn kill_host_a(&mut self) {
        stage::kill_all(self.a.host);
        self.a.daemons.clear();
    }

    fn wait_for_takeover(&mut self) -> Result<Takeover> {
        let socket = self.b.socket(&format!("{GUEST}.standby.sock"));
        stop::wait_for("the standby to take over", TAKEOVER_LIMIT, || {
            self.b.check()?;
            let Ok(events) = self.ask(&socket, &["events", "--json"]) else {
                return Ok(None);
            };
            let takeover = said::takeover(&events);
            Ok(takeover.running_unix_ns.is_some().then_some(takeover))
        })
    }

    fn epochs(&mut self) -> Result<Value> {
        // A host that was killed says nothing any more.
        if !self.a.daemons.is_empty() {
            self.fetch()?;
        }
        Ok(json!(said::epochs(&self.told)))
    }
}

impl Drop for Checkpointer<'_> {
    fn drop(&mut self) {
        // Logs of an orderly end say more than those of a kill.
        for side in [&mut self.a, &mut self.b] {
            for daemon in side.daemons.iter_mut().rev() {
                daemon.stop(Duration::from_secs(3));
            }
        }
    }
}

fn wait_for_sockets(side: &mut Crew<'_>, names: &[&str]) -> Result<()> {
    let what = format!("the daemons of host {}", side.name);
    stop::wait_for(&what, SOCKET_LIMIT, || {
        side.check()?;
        let there = names.iter().all(|name| side.socket(name).exists());
        Ok(there.then_some(()))
    })
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}
