//! A guest that switched itself off and is brought back by its standby, from before its last words; in the middle of a
//! checkpoint, too.

use super::guest::{Order, program};
use super::stage::{Stage, signal};
use blkback_proto::ctl::{
    Answer, GuestPromoteRequest, GuestProtection, GuestTimelineRequest, Request,
};
use std::time::Duration;

#[test]
fn a_guest_that_is_off_stays_off() {
    let Some(program) = program("a_guest_that_is_off_stays_off") else {
        return;
    };
    let mut stage = Stage::start(&program, "promote = \"auto\"\nsilence_ms = 1000");
    // Whoever asks the standby is told what it received.
    stage
        .standby
        .until("more epochs", |report| report.epochs.committed > Some(3));
    let request = Request::GuestTimeline(GuestTimelineRequest { from_seq: 0 });
    let Ok(Answer::GuestTimeline(timeline)) = stage.standby.ask(&request) else {
        panic!("no timeline");
    };
    let told = timeline
        .epochs
        .iter()
        .find(|one| one.us.committed.is_some());
    let told = told.expect("a committed epoch");
    assert!(
        told.dirty_pages > 0 && told.raw_bytes > 0 && told.wire_bytes > 0,
        "{told:?}"
    );
    assert!(
        told.us.committed >= told.us.whole && told.us.whole.is_some(),
        "{told:?}"
    );

    stage.memory().order(Order::Off);
    let (code, last) = stage.primary.ended();
    assert_eq!(code, Some(0), "{last}");
    let report = stage.standby.until("the end", |report| {
        report.stated.state == GuestProtection::Ending
    });
    assert!(
        report.stated.reason.contains("off, in order"),
        "{report:#?}"
    );
    stays_off(&stage);
}

/// The standby does not bring it back: not by itself, and not by an operator.
fn stays_off(stage: &Stage) {
    // Long silent.
    std::thread::sleep(Duration::from_millis(2500));
    let report = stage.standby.report().expect("a report");
    assert_eq!(report.stated.state, GuestProtection::Ending, "{report:#?}");
    let promote = Request::GuestPromote(GuestPromoteRequest {
        force: true,
        by_hand: true,
        reason: "a test".to_owned(),
    });
    let why = stage
        .standby
        .ask(&promote)
        .expect_err("there is nothing to go on from");
    assert!(why.contains("switched itself off"), "{why}");
}

/// Once right before a step of a pause, once within: by itself where it runs yet, by its host where it stands.
#[test]
fn a_guest_that_goes_off_in_a_checkpoint_stays_off() {
    let Some(program) = program("a_guest_that_goes_off_in_a_checkpoint_stays_off") else {
        return;
    };
    let auto = "promote = \"auto\"\nsilence_ms = 1000";
    for (command, is_by_itself) in [
        ("stop", true),
        ("stop", false),
        ("xen-save-devices-state", false),
        ("cont", false),
        ("cont", true),
    ] {
        let (mut stage, held) = Stage::start_held(&program, auto, "userfaultfd", None);
        let (memory, pid) = (stage.memory(), stage.qemu);
        held.before(command, move || match is_by_itself {
            true => memory.order(Order::Off),
            false => signal(pid, "-TERM"),
        });
        let (code, last) = stage.primary.ended();
        assert_eq!(code, Some(0), "{command}, {is_by_itself}: {last}");
        stage.standby.until("the end", |report| {
            report.stated.state == GuestProtection::Ending
        });
        stays_off(&stage);
        println!("off by itself: {is_by_itself}, before {command}: {last}");
    }
}
