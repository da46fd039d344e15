//! A guest whose host dies and that does not go on, goes on twice, or goes on from a moment that never was: both
//! daemons as they are run, with a real QEMU.
//!
//! Left out where there is no QEMU, in one line.

#[path = "../qemu/guest.rs"]
#[allow(dead_code, reason = "shared with the tests of the driver")]
mod guest;

use blkback_proto::ctl::{
    Answer, GuestPromoteRequest, GuestProtection, GuestReport, GuestStatusRequest,
    GuestStopRequest, Request,
};
use blockrep_host::ctl::Client;
use guest::{Memory, Order, boot_disk, dir, plain_args, program};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Patience with a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A daemon, ended with its test.
struct Daemon {
    child: Child,
    control: PathBuf,
}

impl Daemon {
    fn protect(dir: &Path, qmp: &Path) -> Self {
        let qmp = qmp.display().to_string();
        Self::start_with(dir, "a", &["protect", "--qmp", &qmp])
    }

    fn start(dir: &Path, side: &str, word: &str) -> Self {
        Self::start_with(dir, side, &[word])
    }

    fn start_with(dir: &Path, side: &str, words: &[&str]) -> Self {
        let run = dir.join(side);
        fs::create_dir_all(&run).expect("a directory");
        let log = fs::File::create(run.join("daemon.log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_checkpointer"))
            .args(words)
            .arg("--config")
            .arg(dir.join(format!("{side}.toml")))
            .env("BLOCKREP_RUNTIME_DIR", &run)
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

    fn ask(&self, request: &Request) -> Result<Answer, String> {
        let limit = Duration::from_secs(30);
        let mut client =
            Client::connect(&self.control, "test", limit).map_err(|e| e.to_string())?;
        client.request(request, limit).map_err(|e| e.to_string())
    }

    fn report(&self) -> Option<GuestReport> {
        match self.ask(&Request::GuestStatus(GuestStatusRequest {})) {
            Ok(Answer::GuestStatus(report)) => Some(*report),
            _ => None,
        }
    }

    /// Waits until a report is as it should be.
    fn until(&self, what: &str, is_so: impl Fn(&GuestReport) -> bool) -> GuestReport {
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

    fn kill(&mut self) {
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
struct Stage {
    dir: TempDir,
    standby: Daemon,
    primary: Daemon,
    qemu: u32,
}

impl Stage {
    fn start(program: &Path, standby: &str) -> Self {
        Self::start_with(program, standby, &[])
    }

    fn start_with(program: &Path, standby: &str, words: &[&str]) -> Self {
        let shared =
            |at: &Path, _: &str| format!("file = {:?}", at.join("authority").display().to_string());
        Self::start_under(program, standby, words, shared)
    }

    /// `authority` gives the words of a side for it.
    fn start_under(
        program: &Path,
        standby: &str,
        words: &[&str],
        authority: impl Fn(&Path, &str) -> String,
    ) -> Self {
        let dir = dir();
        let at = dir.path();
        let port = free_port();
        let args = plain_args(&boot_disk(at));
        let shared = |side: &str| {
            format!(
                "guest = \"vm1\"\n[disks]\nnone = true\n[output]\ninterfaces = []\n[authority]\n{}\n[qemu]\n\
                 program = {:?}\nmemory_mib = 32\nargs = {args:?}\n",
                authority(at, side),
                program.display().to_string(),
            )
        };
        let a = format!(
            "host = \"a\"\n{}[memory]\nbackup = \"127.0.0.1:{port}\"\nbackup_host = \"b\"\n[epochs]\ninterval_ms = 25\n\
             answer_max_ms = 20000\npause_max_ms = 10000\n",
            shared("a")
        );
        let b = format!(
            "host = \"b\"\n{}[memory]\nlisten = \"127.0.0.1:{port}\"\nstore = {:?}\n[standby]\n{standby}\n",
            shared("b"),
            at.join("store").display().to_string()
        );
        fs::write(at.join("a.toml"), a).expect("a file");
        fs::write(at.join("b.toml"), b).expect("a file");
        let standby = Daemon::start(at, "b", "receive");
        let words = [&["run"], words].concat();
        let primary = Daemon::start_with(at, "a", &words);
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
    fn protect(&self) -> Daemon {
        Daemon::protect(self.dir.path(), &self.dir.path().join("a/vm1.qmp"))
    }

    fn memory(&self) -> Memory {
        Memory::open(&self.dir.path().join("a/vm1.ram"))
    }

    fn standby_memory(&self) -> Memory {
        Memory::open(&self.standby_file())
    }

    /// The RAM file that the standby runs on.
    fn standby_file(&self) -> PathBuf {
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

    /// The host: guest and checkpointer, at once.
    fn kill_primary(&mut self) {
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

fn kill(pid: u32) {
    signal(pid, "-9");
}

fn signal(pid: u32, word: &str) {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // The number may be somebody else's by now.
    if String::from_utf8_lossy(&cmdline).contains("blockrep-ram") {
        let _ = Command::new("kill").arg(word).arg(pid.to_string()).status();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// The host dies: the guest goes on at the standby, by itself, from what was committed, and goes on counting.
#[test]
fn a_guest_outlives_its_host() {
    let Some(program) = program("a_guest_outlives_its_host") else {
        return;
    };
    let mut stage = Stage::start(&program, "promote = \"auto\"\nsilence_ms = 2000");
    let before = stage.memory().counter();
    // At least this much is at the backup: a checkpoint that was cut after it was counted.
    let cut = stage
        .primary
        .report()
        .and_then(|report| report.epochs.cut)
        .expect("epochs are cut");
    stage.standby.until("a later epoch", |report| {
        report
            .epochs
            .committed
            .is_some_and(|committed| committed > cut + 1)
    });
    stage.kill_primary();
    let report = stage.standby.until("the guest at the standby", |report| {
        report.stated.state == GuestProtection::Promoted
    });
    let memory = stage.standby_memory();
    let there = memory.counter();
    assert!(
        there >= before,
        "it went back to {there} from {before}: {report:#?}"
    );
    memory.wait_beyond(there);
    let record = report.authority.record.expect("a record");
    assert_eq!((record.primary.as_str(), record.in_sync.len()), ("b", 1));
}

/// An operator takes the guest over while its host lives: the one there must not go on.
#[test]
fn a_guest_that_was_taken_over_runs_once() {
    let Some(program) = program("a_guest_that_was_taken_over_runs_once") else {
        return;
    };
    let stage = Stage::start(&program, "promote = \"by-hand\"");
    let promote = |force| {
        stage
            .standby
            .ask(&Request::GuestPromote(GuestPromoteRequest {
                force,
                by_hand: false,
                reason: "a test".to_owned(),
            }))
    };
    let refused = promote(false).expect_err("the primary lives");
    assert!(refused.contains("--force"), "{refused}");
    let Ok(Answer::GuestPromote(answer)) = promote(true) else {
        panic!("not promoted");
    };
    assert!(!answer.already);
    let Ok(Answer::GuestPromote(again)) = promote(true) else {
        panic!("asked again, it says so");
    };
    assert!(again.already && again.epoch == answer.epoch);
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
    // Whoever asks the authority there is told that the guest is another's.
    let stopped = stage.primary.ask(&Request::GuestStop(GuestStopRequest {
        reason: "a test".to_owned(),
        by_hand: false,
    }));
    let over = stage.primary.report();
    assert!(
        stopped.is_err() || over.is_none_or(|report| report.stated.state == GuestProtection::Over),
        "{stopped:?}"
    );
}

/// Nobody but an operator decides, and each host has a record of its own: the one of the standby comes with the memory.
#[test]
fn an_operator_lets_the_guest_go_on() {
    let Some(program) = program("an_operator_lets_the_guest_go_on") else {
        return;
    };
    let own = |at: &Path, side: &str| {
        let record = at.join(format!("{side}.record")).display().to_string();
        format!("manual = true\nrecord = {record:?}")
    };
    let mut stage = Stage::start_under(&program, "promote = \"by-hand\"", &[], own);
    // The record that names the backup comes with the checkpoint after the first.
    let cut = stage
        .primary
        .report()
        .and_then(|report| report.epochs.cut)
        .expect("epochs are cut");
    stage.standby.until("a later epoch", |report| {
        report
            .epochs
            .committed
            .is_some_and(|committed| committed > cut + 1)
    });
    stage.kill_primary();
    let promote = |by_hand| {
        stage
            .standby
            .ask(&Request::GuestPromote(GuestPromoteRequest {
                force: true,
                by_hand,
                reason: "a test".to_owned(),
            }))
    };
    let refused = promote(false).expect_err("nobody has looked");
    assert!(refused.contains("--by-hand"), "{refused}");
    promote(true).expect("promoted");
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
}

/// A page that is missed once stands wrong in the standby until the guest writes it again.
fn memory_is_equal(test: &str, tracker: &str) {
    let Some(program) = program(test) else {
        return;
    };
    let stage = Stage::start_with(&program, "promote = \"by-hand\"", &["--tracker", tracker]);
    // For a while it writes without a pause; then one page with each tick of its clock.
    let memory = stage.memory();
    memory.wait_beyond(memory.counter() + 100_000);
    memory.order(Order::Idle);
    let (here, there) = (stage.dir.path().join("a/vm1.ram"), stage.standby_file());
    // Frozen at any moment it may have written since the last checkpoint; in some it has not.
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(37));
        signal(stage.qemu, "-STOP");
        // What was cut before comes to the standby.
        std::thread::sleep(Duration::from_millis(150));
        let is_equal = fs::read(&here).expect("memory") == fs::read(&there).expect("memory");
        signal(stage.qemu, "-CONT");
        if is_equal {
            memory.wait_beyond(memory.counter());
            return;
        }
    }
    panic!("in none of 300 moments was the standby's memory that of the guest");
}

#[test]
fn the_standby_has_the_memory_by_userfaultfd() {
    memory_is_equal("the_standby_has_the_memory_by_userfaultfd", "userfaultfd");
}

#[test]
fn the_standby_has_the_memory_by_comparing() {
    memory_is_equal("the_standby_has_the_memory_by_comparing", "compare");
}

/// Either daemon is killed and comes back: the guest is protected again, and has never stood still for long.
#[test]
fn protection_comes_back_with_its_daemons() {
    let Some(program) = program("protection_comes_back_with_its_daemons") else {
        return;
    };
    let mut stage = Stage::start(&program, "promote = \"by-hand\"");
    stage.standby.kill();
    let there = stage.memory();
    there.wait_beyond(there.counter());
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    let committed = |report: &GuestReport| report.epochs.committed;
    let before = stage
        .primary
        .report()
        .and_then(|report| committed(&report))
        .expect("epochs");
    stage
        .primary
        .until("a checkpoint with the new receiver", |report| {
            committed(report) > Some(before)
        });
    stage.standby.until("a standby", |report| {
        report
            .standby
            .as_ref()
            .is_some_and(|standby| standby.pid.is_some())
    });
    // The one beside the guest, in the middle of whatever it does: the guest goes on without it.
    for _ in 0..5 {
        let memory = stage.memory();
        stage.primary.kill();
        memory.wait_beyond(memory.counter());
        stage.primary = stage.protect();
        stage.primary.until("protection", |report| {
            report.stated.state == GuestProtection::Protected && committed(report).is_some()
        });
    }
}
