//! A checkpointer that is killed at some step of a checkpoint, and leaves the guest standing, lets its output go, or a
//! standby behind that its successor takes for whole: SIGKILL before and after every order of a checkpoint.
//!
//! The checkpointer that ends itself there is another build (feature `plants`), and `CHECKPOINTER_PLANTED` names it; the
//! suite does.

use super::bytes::{Cuts, planted};
use super::fake_netbuf::FakeNetbuf;
use super::guest::{program, wait_for};
use super::stage::Stage;
use blkback_proto::ctl::{GuestProtection, GuestReport};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Orders of a checkpoint, and at which of them it ends. A first copy is made once.
const STEPS: [(&str, u32); 8] = [
    ("FirstCopy", 1),
    ("Pause", 8),
    ("CutDisk", 8),
    ("Collect", 8),
    ("CutOutput", 8),
    ("Resume", 8),
    ("Send", 8),
    ("Release", 4),
];
/// Until it is killed, and until the guest goes on.
const KILLED: Duration = Duration::from_secs(90);
const GOES_ON: Duration = Duration::from_secs(20);

/// Waits until it was killed; how long the guest stood still from then on.
fn stands_still(stage: &mut Stage, step: &str) -> Duration {
    let until = Instant::now() + KILLED;
    let status = loop {
        if let Some(status) = stage.primary.child.try_wait().expect("a child") {
            break status;
        }
        assert!(Instant::now() < until, "{step} never came");
        std::thread::sleep(Duration::from_millis(1));
    };
    let dead = Instant::now();
    let log = std::fs::read_to_string(stage.primary.control.with_file_name("daemon.log"));
    let log = log.unwrap_or_default();
    assert_eq!(status.signal(), Some(9), "{step}: {status}: {log}");
    let memory = stage.memory();
    let count = memory.counter();
    while memory.counter() == count {
        assert!(dead.elapsed() < GOES_ON, "{step}: the guest stands still");
        std::thread::sleep(Duration::from_millis(1));
    }
    dead.elapsed()
}

fn is_protected(report: &GuestReport) -> bool {
    report.stated.state == GuestProtection::Protected && report.epochs.committed.is_some()
}

fn each_step(cuts: &mut Cuts, output: &FakeNetbuf, planted: &Path) {
    for (order, nth) in STEPS {
        for moment in ["before", "after"] {
            let step = format!("{order}:{moment}:{nth}");
            cuts.succeed(planted, Some(("CHECKPOINTER_KILL_AT", &step)));
            let stood = stands_still(&mut cuts.stage, &step);
            let before = output.released();
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(output.released(), before, "{step}: nobody lets output go");
            let begun = Instant::now();
            cuts.succeed(Path::new(env!("CARGO_BIN_EXE_checkpointer")), None);
            cuts.stage
                .primary
                .until("protection by its successor", is_protected);
            let protected = begun.elapsed();
            wait_for("output to leave again", || output.released() > before);
            cuts.find_copy();
            let pages = cuts.compare();
            assert_eq!(pages, [0; 0], "{step}: pages differ");
            cuts.let_go();
            println!(
                "{step}: the guest ran again after {stood:.1?}, was protected again after {protected:.1?}; memory is equal"
            );
        }
    }
}

/// See the module.
#[test]
fn killed_at_any_step_it_leaves_a_guest_that_runs_and_is_protected_again() {
    let name = "killed_at_any_step_it_leaves_a_guest_that_runs_and_is_protected_again";
    let Some(program) = program(name) else {
        return;
    };
    let Some(planted) = planted(name) else {
        return;
    };
    let (mut cuts, output) = Cuts::start_with_output(&program);
    each_step(&mut cuts, &output, &planted);
}
