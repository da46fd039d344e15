//! How a guest's QEMU may end while its checkpointer lives: killed, it goes on at the standby; shut down, it
//! goes on nowhere.

use super::daemon::Daemon;
use super::guest::program;
use super::stage::{Stage, kill, signal};
use blkback_proto::ctl::GuestProtection;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Silence alone never promotes within the test.
const AUTO: &str = "promote = \"auto\"\nsilence_ms = 60000";

fn ends(daemon: &mut Daemon) -> ExitStatus {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        if let Some(status) = daemon.child.try_wait().expect("a child") {
            return status;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not end");
}

fn log(stage: &Stage, side: &str) -> String {
    let file = stage.dir.path().join(side).join("daemon.log");
    std::fs::read_to_string(file).expect("a log")
}

/// QEMU is killed, by the kernel for want of memory say, and nothing else of its host: the standby is told, and does
/// not wait for a silence that never comes.
#[test]
fn a_guest_whose_qemu_dies_is_handed_over() {
    let Some(program) = program("a_guest_whose_qemu_dies_is_handed_over") else {
        return;
    };
    let mut stage = Stage::start(&program, AUTO);
    kill(stage.qemu);
    let report = stage.standby.until("the guest at the standby", |report| {
        report.stated.state == GuestProtection::Promoted
    });
    assert!(
        report.stated.reason.contains("hands the guest over"),
        "{}\n{}",
        log(&stage, "a"),
        log(&stage, "b")
    );
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
    assert_eq!(ends(&mut stage.primary).code(), Some(1));
    // Whoever starts it there again is told that it is another host's; nothing runs before.
    stage.primary = Daemon::start(stage.dir.path(), "a", "run");
    assert_eq!(ends(&mut stage.primary).code(), Some(4));
    let log = log(&stage, "a");
    assert!(log.contains("authority"), "{log}");
    let is_there = std::os::unix::net::UnixStream::connect(stage.dir.path().join("a/vm1.qmp"));
    assert!(is_there.is_err(), "the guest runs twice");
}

/// Somebody at the host shuts the guest down, and QEMU ends at once: both sides end in order, and nobody brings it back.
#[test]
fn a_guest_that_is_shut_down_stays_off() {
    let Some(program) = program("a_guest_that_is_shut_down_stays_off") else {
        return;
    };
    let mut stage = Stage::start(&program, AUTO);
    signal(stage.qemu, "-TERM");
    let status = ends(&mut stage.primary);
    assert!(status.success(), "{status}: {}", log(&stage, "a"));
    let report = stage
        .standby
        .until("the end of the guest at the standby", |report| {
            report.stated.state == GuestProtection::Ending
        });
    assert!(report.stated.reason.contains("off"), "{report:#?}");
    let standby = report.standby.expect("a standby");
    assert_eq!(standby.promotable_epoch, None);
}
