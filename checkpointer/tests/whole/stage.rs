//! Two daemons and a guest of one boot sector, ended with their test.

use super::guest::{Memory, boot_disk, dir, plain_args};
use super::held::Held;
use blkback_proto::ctl::{
    Answer, ErrorCode, GuestProtection, GuestReport, GuestStatusRequest, Request,
};
use blockrep_host::ctl::{Client, ClientError};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Patience with a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A daemon, ended with its test.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) control: PathBuf,
}

impl Daemon {
    pub(crate) fn protect(dir: &Path, qmp: &Path) -> Self {
        let qmp = qmp.display().to_string();
        Self::start_with(dir, "a", &["protect", "--qmp", &qmp])
    }

    pub(crate) fn start(dir: &Path, side: &str, word: &str) -> Self {
        Self::start_with(dir, side, &[word])
    }

    pub(crate) fn start_with(dir: &Path, side: &str, words: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_checkpointer"));
        Self::start_as(program, None, dir, side, words)
    }

    /// Of another build, which may have a bug planted.
    fn start_as(program: &Path, bug: Option<&str>, dir: &Path, side: &str, words: &[&str]) -> Self {
        let run = dir.join(side);
        fs::create_dir_all(&run).expect("a directory");
        let log = fs::File::create(run.join("daemon.log")).expect("a log");
        let child = Command::new(program)
            .args(words)
            .arg("--config")
            .arg(dir.join(format!("{side}.toml")))
            .env("BLOCKREP_RUNTIME_DIR", &run)
            .envs(bug.map(|bug| ("CHECKPOINTER_PLANT", bug)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon");
        let ending = if words[0] == "receive" {
            "standby"
        } else {
            "checkpointer"
        };
        let control = run.join(format!("vm1.{ending}.sock"));
        Self { child, control }
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Answer, String> {
        let limit = Duration::from_secs(30);
        let mut client =
            Client::connect(&self.control, "test", limit).map_err(|e| e.to_string())?;
        client.request(request, limit).map_err(|e| e.to_string())
    }

    /// The code of a refusal.
    pub(crate) fn refusal(&self, request: &Request) -> Option<ErrorCode> {
        let limit = Duration::from_secs(30);
        let mut client = Client::connect(&self.control, "test", limit).ok()?;
        match client.request(request, limit) {
            Err(ClientError::Daemon(reply)) => Some(reply.code),
            _ => None,
        }
    }

    pub(crate) fn report(&self) -> Option<GuestReport> {
        match self.ask(&Request::GuestStatus(GuestStatusRequest {})) {
            Ok(Answer::GuestStatus(report)) => Some(*report),
            _ => None,
        }
    }

    /// Waits until a report is as it should be.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&GuestReport) -> bool) -> GuestReport {
        let until = Instant::now() + LIMIT;
        let mut last = None;
        while Instant::now() < until {
            if let Some(report) = self.report() {
                if is_so(&report) {
                    return report;
                }
                last = Some(report);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(self.control.with_file_name("daemon.log")).unwrap_or_default();
        panic!("{what} did not come: {last:#?}\n{log}");
    }

    /// Waits until it has ended by itself; its exit code and what it said last.
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                let log = fs::read_to_string(self.control.with_file_name("daemon.log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or_default().to_owned();
                return (status.code(), last);
            }
            assert!(Instant::now() < until, "it did not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Both sides, with a guest of one boot sector, without disks and network.
pub(crate) struct Stage {
    pub(crate) dir: TempDir,
    pub(crate) standby: Daemon,
    pub(crate) primary: Daemon,
    pub(crate) qemu: u32,
}

impl Stage {
    pub(crate) fn start(program: &Path, standby: &str) -> Self {
        Self::start_with(program, standby, &[])
    }

    pub(crate) fn start_with(program: &Path, standby: &str, words: &[&str]) -> Self {
        Self::start_under(program, standby, words, shared)
    }

    /// `authority` gives the words of a side for it.
    pub(crate) fn start_under(
        program: &Path,
        standby: &str,
        words: &[&str],
        authority: impl Fn(&Path, &str) -> String,
    ) -> Self {
        Self::start_in(dir(), program, standby, words, authority, "none = true")
    }

    /// `disks` are the standby's words for them.
    pub(crate) fn start_in(
        dir: TempDir,
        program: &Path,
        standby: &str,
        words: &[&str],
        authority: impl Fn(&Path, &str) -> String,
        disks: &str,
    ) -> Self {
        prepare(&dir, program, standby, authority, disks);
        let at = dir.path();
        let standby = Daemon::start(at, "b", "receive");
        let words = [&["run"], words].concat();
        let primary = Daemon::start_with(at, "a", &words);
        Self::protected(dir, standby, primary)
    }

    /// What the guest says is held by somebody at `netbuf.sock` in the directory. `on_loss` is the primary's word.
    pub(crate) fn start_holding(
        dir: TempDir,
        program: &Path,
        authority: impl Fn(&Path, &str) -> String,
        on_loss: &str,
    ) -> Self {
        prepare(
            &dir,
            program,
            "promote = \"by-hand\"",
            authority,
            "none = true",
        );
        let at = dir.path();
        let file = at.join("a.toml");
        let socket = at.join("netbuf.sock").display().to_string();
        let held = format!("interfaces = [\"tap0\"]\ncontrol = {socket:?}");
        let text = fs::read_to_string(&file).expect("its words");
        let text = text.replace("interfaces = []", &held) + &format!("on_loss = {on_loss:?}\n");
        fs::write(file, text).expect("a file");
        let standby = Daemon::start(at, "b", "receive");
        let primary = Daemon::start(at, "a", "run");
        Self::protected(dir, standby, primary)
    }

    /// A guest that can be kept standing after a cut. `planted` is a checkpointer that has a bug to switch on.
    pub(crate) fn start_held(
        program: &Path,
        standby: &str,
        tracker: &str,
        planted: Option<(&Path, &str)>,
    ) -> (Self, Held) {
        let dir = dir();
        prepare(&dir, program, standby, shared, "none = true");
        let at = dir.path();
        let front = at.join("front.qmp");
        let held = Held::start(program, at, &front);
        let standby = Daemon::start(at, "b", "receive");
        let front = front.display().to_string();
        let words = ["protect", "--qmp", &front, "--tracker", tracker];
        let built = Path::new(env!("CARGO_BIN_EXE_checkpointer"));
        let (daemon, bug) = planted.map_or((built, None), |(other, bug)| (other, Some(bug)));
        let primary = Daemon::start_as(daemon, bug, at, "a", &words);
        (Self::protected(dir, standby, primary), held)
    }

    /// When both are there and an epoch is.
    fn protected(dir: TempDir, standby: Daemon, primary: Daemon) -> Self {
        let report = primary.until("protection", |report| {
            report.stated.state == GuestProtection::Protected && report.epochs.committed.is_some()
        });
        let qemu = report
            .hypervisor
            .and_then(|hypervisor| hypervisor.pid)
            .expect("it runs");
        standby.until("a standby that waits", |report| {
            let standby = report.standby.as_ref();
            standby
                .is_some_and(|standby| standby.pid.is_some() && standby.promotable_epoch.is_some())
        });
        Self {
            dir,
            standby,
            primary,
            qemu,
        }
    }

    /// Another daemon for the guest that runs.
    pub(crate) fn protect(&self) -> Daemon {
        Daemon::protect(self.dir.path(), &self.dir.path().join("a/vm1.qmp"))
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory::open(&self.dir.path().join("a/vm1.ram"))
    }

    pub(crate) fn standby_memory(&self) -> Memory {
        Memory::open(&self.standby_file())
    }

    /// The RAM file that the standby runs on.
    pub(crate) fn standby_file(&self) -> PathBuf {
        let dir = self.dir.path().join("store/vm1");
        let names = fs::read_dir(&dir)
            .expect("a store")
            .flatten()
            .map(|entry| entry.path());
        let is_ram = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("ram-"))
        };
        let ram: Vec<PathBuf> = names.filter(is_ram).collect();
        assert_eq!(ram.len(), 1, "{ram:?}");
        ram[0].clone()
    }

    /// The standby's host.
    pub(crate) fn kill_standby(&mut self) {
        let pid = |report: &GuestReport| report.standby.as_ref().and_then(|one| one.pid);
        let report = self.standby.until("a QEMU", |report| pid(report).is_some());
        self.standby.kill();
        pid(&report).into_iter().for_each(kill);
    }

    /// The host: guest and checkpointer, at once.
    pub(crate) fn kill_primary(&mut self) {
        kill(self.qemu);
        self.primary.kill();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A guest that was promoted outlives its daemon; and so does one whose daemon was killed.
        if let Some(pid) = self.standby.report().and_then(|report| report.standby?.pid) {
            kill(pid);
        }
        kill(self.qemu);
    }
}

/// The words for an authority that both see.
fn shared(at: &Path, _: &str) -> String {
    format!("file = {:?}", at.join("authority").display().to_string())
}

/// The files of both sides. `disks` are the standby's words for them.
fn prepare(
    dir: &TempDir,
    program: &Path,
    standby: &str,
    authority: impl Fn(&Path, &str) -> String,
    disks: &str,
) {
    let at = dir.path();
    let port = free_port();
    let args = plain_args(&boot_disk(at));
    let shared = |side: &str, disks: &str| {
        format!(
            "guest = \"vm1\"\n[disks]\n{disks}\n[output]\ninterfaces = []\n[authority]\n{}\n[qemu]\n\
             program = {:?}\nmemory_mib = 32\nargs = {args:?}\n",
            authority(at, side),
            program.display().to_string(),
        )
    };
    let a = format!(
        "host = \"a\"\n{}[memory]\nbackup = \"127.0.0.1:{port}\"\nbackup_host = \"b\"\n[epochs]\ninterval_ms = 25\n\
         answer_max_ms = 20000\npause_max_ms = 10000\n",
        shared("a", "none = true")
    );
    let b = format!(
        "host = \"b\"\n{}[memory]\nlisten = \"127.0.0.1:{port}\"\nstore = {:?}\n[standby]\n{standby}\n",
        shared("b", disks),
        at.join("store").display().to_string()
    );
    fs::write(at.join("a.toml"), a).expect("a file");
    fs::write(at.join("b.toml"), b).expect("a file");
}

pub(crate) fn kill(pid: u32) {
    signal(pid, "-9");
}

pub(crate) fn signal(pid: u32, word: &str) {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // The number may be somebody else's by now.
    if String::from_utf8_lossy(&cmdline).contains("blockrep-ram") {
        let _ = Command::new("kill").arg(word).arg(pid.to_string()).status();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}
