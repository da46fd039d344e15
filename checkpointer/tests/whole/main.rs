//! A guest whose host dies and that does not go on, goes on twice, or goes on from a moment that never was: both
//! daemons as they are run, with a real QEMU.
//!
//! Left out where there is no QEMU, in one line.

#[path = "../qemu/guest.rs"]
#[allow(dead_code, reason = "shared with the tests of the driver")]
mod guest;

mod afresh;
mod bytes;
mod daemon;
mod ends;
mod estimate;
mod fake_disks;
mod fake_netbuf;
mod fake_output;
mod held;
mod kills;
mod much;
mod off;
mod stage;
mod unfinished;

use blkback_proto::ctl::{
    Answer, ErrorCode, GuestPromoteRequest, GuestProtection, GuestReport, GuestStopRequest, Request,
};
use daemon::Daemon;
use guest::program;
use stage::Stage;
use std::path::Path;

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
        Request::GuestPromote(GuestPromoteRequest {
            force: true,
            by_hand,
            reason: "a test".to_owned(),
        })
    };
    let refused = stage.standby.ask(&promote(false));
    let refused = refused.expect_err("nobody has looked");
    assert!(
        refused.contains("blockrepctl guest promote vm1 --by-hand"),
        "{refused}"
    );
    let code = stage.standby.refusal(&promote(false));
    assert_eq!(code, Some(ErrorCode::NeedsByHand));
    stage.standby.ask(&promote(true)).expect("promoted");
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
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
