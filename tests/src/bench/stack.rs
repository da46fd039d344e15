//! Starting a stack: its processes, its socket, and what to ask about it.
//!
//! Every process is killed when the stack is dropped; sockets, state and journals stand in one
//! directory that goes with it.

use super::plan::{Door, FIRST, Mirror, PLAIN, Protected, SECOND, StackKind};
use super::point::Bench;
use super::qmp::Qmp;
use super::workload::Workload;
use crate::harness::{Process, binary, free_port};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a stack may take to come up.
const START_MAX: Duration = Duration::from_secs(60);
/// Bytes of a huge image.
const HUGE_BYTES: u64 = 1 << 40;
/// What makes every sync of a journal slow.
const SLOW_SYNC: (&str, &str) = ("BLOCKREP_FAULTS", "journal=sync:1+=delay:5ms");

/// A stack that runs.
#[derive(Debug)]
pub(super) struct Stack {
    /// What the load talks to; absent for bare files.
    pub(super) front: Option<Process>,
    /// The process with the second copy.
    pub(super) back: Option<Process>,
    /// Where the front serves NBD.
    pub(super) nbd: PathBuf,
    /// Where it serves vhost-user, if it does.
    pub(super) vhost: PathBuf,
    /// Keeps the mirror's monitor.
    _monitor: Option<Qmp>,
    /// Dropped last: files of the stack.
    dir: tempfile::TempDir,
}

impl Stack {
    /// Starts one.
    ///
    /// # Errors
    /// It does not come up: what it said.
    pub(super) fn start(bench: &Bench, kind: StackKind, workload: Workload) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("stack-")
            .tempdir_in(&bench.dir)?;
        let mut stack = Self {
            front: None,
            back: None,
            nbd: dir.path().join("nbd"),
            vhost: dir.path().join("vhost"),
            _monitor: None,
            dir,
        };
        match kind {
            StackKind::Raw | StackKind::ThreeStreams | StackKind::Append => {}
            StackKind::QemuNbd | StackKind::BesideJournal => {
                let mut command = qemu_nbd(&bench.dir.join(PLAIN), "none");
                command.arg("-k").arg(&stack.nbd);
                stack.front = Some(stack.run("qemu-nbd", &mut command)?);
                stack.wait_front(bench)?;
            }
            StackKind::Alone => {
                let spec = format!("aio:{}", bench.dir.join(PLAIN).display());
                let address = format!("unix:{}", stack.nbd.display());
                stack.start_front(&spec, &["--nbd", &address])?;
                stack.wait_front(bench)?;
            }
            StackKind::Protected(protected) => {
                // Who only reads need not wait until a large journal is written.
                let small = protected.sustained || workload.reads();
                stack.protected(bench, protected, small)?;
            }
            StackKind::Mirror(mirror) => stack.mirror(bench, mirror)?,
        }
        Ok(stack)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start(name, command, &self.path(&format!("{name}.log")))
    }

    fn wait_front(&mut self, bench: &Bench) -> Result<()> {
        let front = self.front.as_mut().context("just started")?;
        bench.wait_socket(front, &self.nbd)
    }

    fn start_front(&mut self, spec: &str, flags: &[&str]) -> Result<()> {
        let mut command = Command::new(binary("blockrep")?);
        command
            .args(["-n", spec, "--group", "bench", "--log", "warn"])
            .arg("--state")
            .arg(self.path("front.state"))
            .arg("--control")
            .arg(self.path("front.ctl"))
            .args(flags);
        self.front = Some(self.run("blockrep", &mut command)?);
        Ok(())
    }

    /// The images of both sides.
    fn images(&self, bench: &Bench, huge: bool) -> Result<(PathBuf, PathBuf)> {
        if !huge {
            return Ok((bench.dir.join(FIRST), bench.dir.join(SECOND)));
        }
        let images = (self.path(FIRST), self.path(SECOND));
        for path in [&images.0, &images.1] {
            let file = std::fs::File::create(path)?;
            file.set_len(HUGE_BYTES)
                .context("a sparse image of 1 TiB")?;
        }
        Ok(images)
    }

    fn protected(&mut self, bench: &Bench, protected: Protected, small: bool) -> Result<()> {
        let journal_mib = if small {
            bench.options.sustained_journal_mib
        } else {
            bench.options.burst_journal_mib
        };
        let (first, second) = self.images(bench, protected.huge)?;
        for image in [&first, &second] {
            forget_owner(image)?;
        }
        let listen = format!("127.0.0.1:{}", free_port()?);
        let mut command = Command::new(binary("blockrep-backup")?);
        command
            .args(["--listen", &listen, "--group", "bench", "--log", "warn"])
            .arg("--image")
            .arg(second)
            .arg("--state")
            .arg(self.path("back.state"))
            .arg("--control")
            .arg(self.path("back.ctl"))
            .args(["--journal-size", &format!("{journal_mib}MiB")]);
        if protected.slow_sync {
            command.env(SLOW_SYNC.0, SLOW_SYNC.1);
        }
        let mut back = self.run("blockrep-backup", &mut command)?;
        let up = bench.wait_for(START_MAX, || {
            ensure!(
                back.is_running(),
                "blockrep-backup ended: {}",
                back.text().trim()
            );
            Ok(self.status("back").is_ok())
        })?;
        ensure!(up, "blockrep-backup does not answer");
        self.back = Some(back);
        let spec = format!("remus:{listen}|aio:{}", first.display());
        let epoch = format!("{}ms", protected.epoch_ms.unwrap_or(bench.options.epoch_ms));
        let (door, address) = match protected.door {
            Door::Nbd => ("--nbd", self.nbd.display()),
            Door::VhostUser => ("--vhost-user", self.vhost.display()),
        };
        let address = format!("unix:{address}");
        let flags = ["--ack", protected.ack, "--epoch", &epoch, door, &address];
        let flags = [&flags[..], &["--assume-identical"]].concat();
        self.start_front(&spec, &flags)?;
        // A connection to a vhost-user socket is a guest: only NBD is tried.
        if protected.door == Door::Nbd {
            self.wait_front(bench)?;
        }
        self.wait_protected(bench)
    }

    fn wait_protected(&mut self, bench: &Bench) -> Result<()> {
        let mut front = self.front.take().context("just started")?;
        let mut last = Value::Null;
        let up = bench.wait_for(START_MAX, || {
            ensure!(
                front.is_running(),
                "blockrep ended: {}",
                front.text().trim()
            );
            // Its control socket may open a little after the other one.
            if let Ok(mut status) = self.status("front") {
                last = status["group"].take();
            }
            Ok(last["state"] == "protected")
        })?;
        ensure!(up, "blockrep does not become protected: {last}");
        self.front = Some(front);
        Ok(())
    }

    fn mirror(&mut self, bench: &Bench, mirror: Mirror) -> Result<()> {
        let port = free_port()?.to_string();
        let cache = if mirror.syncs { "directsync" } else { "none" };
        let mut command = qemu_nbd(&bench.dir.join(SECOND), cache);
        command.args(["-b", "127.0.0.1", "-p", &port]);
        let mut back = self.run("qemu-nbd", &mut command)?;
        let up = bench.wait_for(START_MAX, || {
            ensure!(back.is_running(), "qemu-nbd ended: {}", back.text().trim());
            Ok(std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok())
        })?;
        ensure!(up, "qemu-nbd does not listen");
        self.back = Some(back);
        let monitor = self.path("qmp");
        let mut command = storage_daemon(&bench.dir.join(FIRST), &port, &self.nbd, &monitor);
        let mut front = self.run("qemu-storage-daemon", &mut command)?;
        bench.wait_socket(&mut front, &self.nbd)?;
        self.front = Some(front);
        let mut qmp = Qmp::connect(&monitor)?;
        // Both images count as equal, as for ours: only what is written from now on is copied.
        let job = json!({"job-id": "mirror", "device": "disk", "target": "copy", "sync": "none",
            "copy-mode": mirror.copy_mode});
        qmp.run("blockdev-mirror", job)?;
        qmp.wait_event("BLOCK_JOB_READY")?;
        self._monitor = Some(qmp);
        Ok(())
    }

    /// Status of `front` or `back`, of our own daemons.
    ///
    /// # Errors
    /// What blockrepctl says.
    pub(super) fn status(&self, host: &str) -> Result<Value> {
        let out = Command::new(binary("blockrepctl")?)
            .arg("--control")
            .arg(self.path(&format!("{host}.ctl")))
            .args(["status", "--json"])
            .output()?;
        ensure!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        serde_json::from_slice(&out.stdout).context("the output of blockrepctl")
    }

    /// Where fio's report goes.
    pub(super) fn report(&self) -> PathBuf {
        self.path("fio.json")
    }

    /// Where the log of fio goes.
    pub(super) fn fio_log(&self) -> PathBuf {
        self.path("fio.log")
    }

    /// Where a bare stream stands in for the journal.
    pub(super) fn journal_file(&self) -> PathBuf {
        self.path("journal")
    }
}

fn qemu_nbd(image: &Path, cache: &str) -> Command {
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "--format=raw"])
        .arg(format!("--cache={cache}"))
        .args(["--aio=io_uring", "--shared=8"])
        .arg(image);
    command
}

fn storage_daemon(image: &Path, copy_port: &str, nbd: &Path, monitor: &Path) -> Command {
    let disk = json!({"node-name": "disk", "driver": "raw", "cache": {"direct": true},
        "file": {"driver": "file", "filename": image, "aio": "io_uring",
            "cache": {"direct": true}}});
    let copy = json!({"node-name": "copy", "driver": "nbd", "server":
        {"type": "inet", "host": "127.0.0.1", "port": copy_port}});
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--chardev")
        .arg(format!(
            "socket,id=qmp,path={},server=on,wait=off",
            monitor.display()
        ))
        .args(["--monitor", "chardev=qmp"])
        .args(["--blockdev", &disk.to_string()])
        .args(["--blockdev", &copy.to_string()])
        .arg("--nbd-server")
        .arg(format!(
            "addr.type=unix,addr.path={},max-connections=0",
            nbd.display()
        ))
        .args(["--export", "nbd,id=e,node-name=disk,name=,writable=on"]);
    command
}
/// Images are used again by one stack after the other; a daemon does not take the word for equal images where
/// one is marked as another state directory's.
fn forget_owner(image: &Path) -> Result<()> {
    let path = std::ffi::CString::new(image.as_os_str().as_encoded_bytes())?;
    // SAFETY: two C strings that live through the call.
    let done = unsafe { libc::removexattr(path.as_ptr(), c"user.blockrep.state".as_ptr()) };
    let error = std::io::Error::last_os_error();
    let is_unmarked = [Some(libc::ENODATA), Some(libc::ENOTSUP)].contains(&error.raw_os_error());
    ensure!(
        done == 0 || is_unmarked,
        "take the mark from {}: {error}",
        image.display()
    );
    Ok(())
}
