//! Two daemons and a guest of one boot sector, ended with their test.

use super::daemon::Daemon;
use super::fake_netbuf::FakeNetbuf;
use super::guest::{Memory, boot_disk, dir, plain_args};
use super::held::Held;
use blkback_proto::ctl::{GuestProtection, GuestReport};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

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

    /// With a buffer that has room for 1365 pages of a checkpoint, and so many MiB a second of the first copy; pages are found
    /// by comparing, so that a test can write them. Its standby is not started yet.
    pub(crate) fn start_small(program: &Path, copy_mib_per_s: u32) -> (TempDir, Daemon) {
        let dir = dir();
        prepare(
            &dir,
            program,
            "promote = \"by-hand\"",
            shared,
            "none = true",
        );
        let at = dir.path();
        let file = at.join("a.toml");
        let text = fs::read_to_string(&file).expect("a file");
        let more = format!("[memory]\nbuffer_mib = 16\ncopy_mib_per_s = {copy_mib_per_s}\n");
        fs::write(&file, text.replacen("[memory]\n", &more, 1)).expect("a file");
        let primary = Daemon::start_with(at, "a", &["run", "--tracker", "compare"]);
        (dir, primary)
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
        let (daemon, bug) = planted.map_or((built, None), |(other, bug)| {
            (other, Some(("CHECKPOINTER_PLANT", bug)))
        });
        let primary = Daemon::start_as(daemon, bug, at, "a", &words);
        (Self::protected(dir, standby, primary), held)
    }

    /// As [`Stage::start_held`], and what the guest says is held.
    pub(crate) fn start_held_with_output(program: &Path) -> (Self, Held, FakeNetbuf) {
        let dir = dir();
        prepare(
            &dir,
            program,
            "promote = \"by-hand\"",
            shared,
            "none = true",
        );
        let at = dir.path();
        let control = at.join("netbuf.sock").display().to_string();
        let a = fs::read_to_string(at.join("a.toml")).expect("a file");
        let output = format!("interfaces = [\"tap0\"]\ncontrol = {control:?}");
        let a = a.replacen("interfaces = []", &output, 1);
        fs::write(at.join("a.toml"), a).expect("a file");
        let held = Held::start(program, at, &at.join("front.qmp"));
        let output = FakeNetbuf::start(at);
        let standby = Daemon::start(at, "b", "receive");
        let primary = Daemon::protect(at, &at.join("front.qmp"));
        (Self::protected(dir, standby, primary), held, output)
    }

    /// Another daemon for the guest that is held.
    pub(crate) fn protect_as(&self, program: &Path, variable: Option<(&str, &str)>) -> Daemon {
        let at = self.dir.path();
        let front = at.join("front.qmp").display().to_string();
        Daemon::start_as(program, variable, at, "a", &["protect", "--qmp", &front])
    }

    /// When both are there and an epoch is.
    pub(crate) fn protected(dir: TempDir, standby: Daemon, primary: Daemon) -> Self {
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
        let ram = self.standby_files();
        assert_eq!(ram.len(), 1, "{ram:?}");
        ram[0].clone()
    }

    /// All there are: two, while there is a new copy that is not whole.
    pub(crate) fn standby_files(&self) -> Vec<PathBuf> {
        let dir = self.dir.path().join("store/vm1");
        let names = fs::read_dir(&dir)
            .expect("a store")
            .flatten()
            .map(|entry| entry.path());
        let is_ram = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("ram-"))
        };
        names.filter(is_ram).collect()
    }

    /// The standby's host.
    pub(crate) fn kill_standby(&mut self) {
        let pid = |report: &GuestReport| report.standby.as_ref().and_then(|one| one.pid);
        let report = self.standby.until("a QEMU", |report| pid(report).is_some());
        self.standby.kill();
        pid(&report).into_iter().for_each(kill);
    }

    /// The host: guest and checkpointer, at once. A daemon that saw the end of its QEMU would hand the guest over.
    pub(crate) fn kill_primary(&mut self) {
        self.primary.freeze();
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
