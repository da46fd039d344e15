//! A promotion that stops half way, or whose daemon is killed: the guest runs nowhere and nobody says so; or the daemon that
//! comes back takes a guest that ran for one that never did, and there are two.

use super::daemon::Daemon;
use super::fake_disks::{FakeDisks, Promotes};
use super::guest::{dir, program};
use super::stage::{Stage, kill};
use blkback_proto::ctl::{
    Answer, GuestPromoteAnswer, GuestPromoteRequest, GuestProtection, GuestReport,
    GuestStopRequest, Request,
};
use std::fs;
use std::path::Path;

/// With disks of a test at the standby.
fn stage(program: &Path, standby: &str, promotes: Promotes) -> (Stage, FakeDisks) {
    let dir = dir();
    let control = dir.path().join("disks.sock");
    let disks = FakeDisks::start(&control, promotes);
    let shared =
        |at: &Path, _: &str| format!("file = {:?}", at.join("authority").display().to_string());
    let words = format!("control = {:?}", control.display().to_string());
    let stage = Stage::start_in(dir, program, standby, &[], shared, &words);
    (stage, disks)
}

fn promote(stage: &Stage, force: bool) -> Result<GuestPromoteAnswer, String> {
    let request = Request::GuestPromote(GuestPromoteRequest {
        force,
        by_hand: false,
        reason: "a test".to_owned(),
    });
    match stage.standby.ask(&request)? {
        Answer::GuestPromote(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

fn is_unfinished(report: &GuestReport) -> bool {
    report.stated.state == GuestProtection::Unfinished
}

/// The standby's daemon, killed and started anew.
fn start_anew(stage: &mut Stage) {
    stage.standby.kill();
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
}

fn standby_pid(report: &GuestReport) -> Option<u32> {
    report.standby.as_ref().and_then(|standby| standby.pid)
}

/// One guest through all of it: refused by its disks, with its standby killed, its daemon killed before and after it runs,
/// and its end.
#[test]
fn what_was_decided_is_gone_on_with() {
    let Some(program) = program("what_was_decided_is_gone_on_with") else {
        return;
    };
    let by_hand = "promote = \"by-hand\"";
    let (mut stage, disks) = stage(&program, by_hand, Promotes::AfterRefusals(2));
    let why = promote(&stage, true).expect_err("the disks refuse");
    assert!(
        why.contains("not done") && why.contains("guest promote"),
        "{why}"
    );
    let report = stage.standby.report().expect("a report");
    assert!(is_unfinished(&report), "{report:#?}");
    assert!(report.stated.reason.contains("busy"), "{report:#?}");
    assert!(!report.stated.next.is_empty(), "{report:#?}");
    // The primary gets no acknowledgement any more.
    let known = |stage: &Stage| stage.primary.report().and_then(|r| r.epochs.committed);
    let before = known(&stage);
    stage.primary.until("a primary that is not answered", |r| {
        r.stated.state != GuestProtection::Protected
    });
    assert_eq!(known(&stage), before);
    // The QEMU that waited is gone, and another does as well; so is the daemon.
    kill(standby_pid(&report).expect("a standby waits"));
    start_anew(&mut stage);
    stage.standby.until("the same state", is_unfinished);
    stage.standby.until("a fresh standby", |report| {
        is_unfinished(report) && standby_pid(report).is_some()
    });
    promote(&stage, false).expect_err("the disks refuse again");
    // Their daemon was started anew after it had promoted them, and knows no epoch any more: unknown here, too.
    disks.set(Promotes::IsPrimary);
    promote(&stage, false).expect_err("nobody knows the epoch");
    disks.set(Promotes::AfterRefusals(0));
    let answer = promote(&stage, false).expect("promoted");
    assert!(!answer.already && Some(answer.epoch) >= before);
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
    the_guest_is_taken_up_again(&mut stage, &answer);
}

/// The daemon is killed while the guest runs; then the guest dies, then the host.
fn the_guest_is_taken_up_again(stage: &mut Stage, answer: &GuestPromoteAnswer) {
    let promoted = |report: &GuestReport| report.stated.state == GuestProtection::Promoted;
    let pid = standby_pid(&stage.standby.until("promoted", promoted)).expect("it runs");
    start_anew(stage);
    let report = stage.standby.until("the guest, found again", promoted);
    assert_eq!(standby_pid(&report), Some(pid));
    let again = promote(stage, false).expect("it was");
    assert!(again.already, "{again:?}");
    assert_eq!((again.epoch, &again.steps), (answer.epoch, &answer.steps));
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
    // Let go in order: the guest runs on, for another daemon.
    let stop = Request::GuestStop(GuestStopRequest {
        reason: "a test".to_owned(),
        by_hand: false,
    });
    let Ok(Answer::GuestStop(stopped)) = stage.standby.ask(&stop) else {
        panic!("it is not let go");
    };
    assert!(stopped.note.contains("checkpointer protect"), "{stopped:?}");
    assert_eq!(stage.standby.ended().0, Some(0));
    memory.wait_beyond(memory.counter());
    // Its end is noticed, and no other is made of the old epoch.
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    stage.standby.until("the guest, found again", promoted);
    kill(pid);
    stage.standby.ended();
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    let (code, why) = stage.standby.ended();
    assert!(
        code != Some(0) && why.contains("has ended"),
        "{code:?} {why}"
    );
    // Nor after a reboot, of which only the authority's record is left.
    fs::remove_dir_all(stage.dir.path().join("store")).expect("removed");
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    let (code, why) = stage.standby.ended();
    assert!(
        code != Some(0) && why.contains("no standby of it"),
        "{code:?} {why}"
    );
}

/// Nobody is asked: it is tried again by itself, by a daemon that is started anew, too.
#[test]
fn what_was_decided_is_tried_again() {
    let Some(program) = program("what_was_decided_is_tried_again") else {
        return;
    };
    let auto = "promote = \"auto\"\nsilence_ms = 1000";
    let (mut stage, disks) = stage(&program, auto, Promotes::AfterRefusals(u32::MAX));
    stage.kill_primary();
    stage
        .standby
        .until("a promotion that stopped", is_unfinished);
    start_anew(&mut stage);
    stage.standby.until("the same", |report| {
        is_unfinished(report) && report.stated.reason.contains("busy")
    });
    disks.set(Promotes::AfterRefusals(0));
    stage.standby.until("the guest", |report| {
        report.stated.state == GuestProtection::Promoted
    });
    let memory = stage.standby_memory();
    memory.wait_beyond(memory.counter());
}
