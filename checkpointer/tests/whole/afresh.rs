//! A guest that is started anew while the record has the backup in with the one before: what it told everybody would be lost,
//! were that one promoted.

use super::daemon::Daemon;
use super::fake_output::{Done, FakeOutput};
use super::guest::{Order, dir, program};
use super::stage::{Stage, kill};
use blkback_proto::ctl::{
    Answer, GuestPromoteRequest, GuestProtection, GuestReport, GuestStopRequest, NetState, Request,
};
use std::path::Path;

fn in_sync(report: &GuestReport) -> Vec<String> {
    let record = report.authority.record.as_ref();
    record.map_or_else(Vec::new, |record| record.in_sync.clone())
}

fn is_protected(report: &GuestReport) -> bool {
    report.stated.state == GuestProtection::Protected && report.epochs.committed.is_some()
}

fn shared(at: &Path, _: &str) -> String {
    format!("file = {:?}", at.join("authority").display().to_string())
}

fn manual(at: &Path, side: &str) -> String {
    let record = at.join(format!("{side}.record")).display().to_string();
    format!("manual = true\nrecord = {record:?}")
}

fn stage(
    program: &Path,
    authority: impl Fn(&Path, &str) -> String,
    on_loss: &str,
) -> (Stage, FakeOutput) {
    let dir = dir();
    let output = FakeOutput::start(dir.path());
    let stage = Stage::start_holding(dir, program, authority, on_loss);
    stage.primary.until("two hosts in the record", |report| {
        in_sync(report) == ["a", "b"]
    });
    (stage, output)
}

/// Both hosts die, and the first is started again.
fn start_afresh(stage: &mut Stage, output: &FakeOutput) {
    stage.kill_primary();
    stage.kill_standby();
    output.begin_anew();
    run(stage);
}

fn run(stage: &mut Stage) {
    stage.primary = Daemon::start(stage.dir.path(), "a", "run");
    let pid = |report: &GuestReport| report.hypervisor.as_ref().and_then(|one| one.pid);
    let report = stage
        .primary
        .until("its QEMU", |report| pid(report).is_some());
    stage.qemu = pid(&report).expect("just seen");
}

fn begins_held(done: &[Done]) -> bool {
    done.first() == Some(&Done::Begun { counted: 0 })
}

/// The authority takes the backup out, and only then is anything heard; later it is taken in with the new guest.
#[test]
fn a_guest_that_begins_anew_speaks_when_its_backup_is_out() {
    let Some(program) = program("a_guest_that_begins_anew_speaks_when_its_backup_is_out") else {
        return;
    };
    let (mut stage, output) = stage(&program, shared, "degrade");
    start_afresh(&mut stage, &output);
    stage.primary.until("a guest that is alone", |report| {
        in_sync(report) == ["a"] && output.state() == NetState::Open
    });
    let done = output.done();
    assert!(begins_held(&done), "it was heard: {done:?}");
    let alone = "[\"a\"]".to_owned();
    assert_eq!(done[1..], [Done::Opened { in_sync: alone }]);
    // Nothing has to be done for the rest.
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    stage.primary.until("protection", |report| {
        is_protected(report) && in_sync(report) == ["a", "b"]
    });
    // Known, it is ended with the test.
    stage.standby.until("a standby that waits", |report| {
        report.standby.as_ref().is_some_and(|one| one.pid.is_some())
    });
    // Its last words leave, as of its end.
    stage.memory().order(Order::Off);
    let (code, last) = stage.primary.ended();
    assert_eq!(code, Some(0), "{last}");
    let report = stage.standby.until("the end", |report| {
        report.stated.state == GuestProtection::Ending
    });
    let end = report.epochs.committed.expect("an epoch");
    let both = "[\"a\",\"b\"]".to_owned();
    // Where QEMU ended within a pause, it was held as a guest that is lost, and is opened when its end is known.
    let last = match output.state() {
        NetState::Open => Done::Opened { in_sync: both },
        _ => Done::Released(end),
    };
    assert_eq!(output.done().last(), Some(&last));
}

/// Nobody but an operator can take the backup out: until then, or until the backup has the new guest, nothing is heard.
#[test]
fn a_guest_that_begins_anew_is_held_until_somebody_knows() {
    let Some(program) = program("a_guest_that_begins_anew_is_held_until_somebody_knows") else {
        return;
    };
    let (mut stage, output) = stage(&program, manual, "degrade");
    start_afresh(&mut stage, &output);
    let is_told = |report: &GuestReport| {
        report.stated.state == GuestProtection::Held
            && report.stated.reason.contains("with the guest of before")
            && (report.stated.reason).contains("blockrepctl guest stop vm1 --by-hand")
    };
    stage.primary.until("a reason and what to type", is_told);
    let memory = stage.memory();
    memory.wait_beyond(memory.counter());
    assert_eq!(output.done(), [Done::Begun { counted: 0 }]);
    // Its checkpoints let go what it said.
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    stage.primary.until("protection", is_protected);
    let is_release = |done: &Done| matches!(done, Done::Released(_));
    let has_released = || output.done()[1..].iter().any(is_release);
    stage.primary.until("something heard", |_| has_released());
    let done = output.done();
    assert!(done[1..].iter().all(is_release), "{done:?}");

    // Again, and the operator has looked. Its host and netbuf lived on: what the guest before said is held on the word of its end.
    kill(stage.qemu);
    stage.primary.ended();
    assert_eq!(output.state(), NetState::Held);
    stage.kill_standby();
    let before = output.done().len();
    run(&mut stage);
    stage.primary.until("a reason and what to type", is_told);
    let stop = Request::GuestStop(GuestStopRequest {
        reason: "a test".to_owned(),
        by_hand: true,
    });
    let Ok(Answer::GuestStop(answer)) = stage.primary.ask(&stop) else {
        panic!("not stopped");
    };
    assert_eq!(answer.state, GuestProtection::Open);
    let alone = "[\"a\"]".to_owned();
    let done = output.done().split_off(before);
    assert!(begins_held(&done), "{done:?}");
    assert_eq!(done[1..], [Done::Opened { in_sync: alone }]);
}

/// Its policy is to be held: it is until the backup has it. What somebody has opened beside a checkpointer that was killed is
/// held again before anything else is done, though the guest has gone on.
#[test]
fn what_is_open_while_the_backup_is_in_is_held() {
    let Some(program) = program("what_is_open_while_the_backup_is_in_is_held") else {
        return;
    };
    let (mut stage, output) = stage(&program, shared, "hold");
    stage.primary.kill();
    output.begin_anew();
    stage.kill_standby();
    stage.primary = stage.protect();
    stage.primary.until("a guest that is held", |report| {
        report.stated.state == GuestProtection::Held && output.state() == NetState::Cut
    });
    let done = output.done();
    assert!(matches!(done[..], [Done::Begun { .. }]), "{done:?}");
    stage.standby = Daemon::start(stage.dir.path(), "b", "receive");
    stage.primary.until("protection", |report| {
        is_protected(report) && in_sync(report) == ["a", "b"]
    });
    stage.standby.until("a standby that waits", |report| {
        let standby = report.standby.as_ref();
        standby.is_some_and(|one| one.pid.is_some() && one.promotable_epoch.is_some())
    });
    // Taken over meanwhile, it is not started.
    stage.kill_primary();
    let promote = Request::GuestPromote(GuestPromoteRequest {
        force: true,
        by_hand: false,
        reason: "a test".to_owned(),
    });
    stage.standby.ask(&promote).expect("promoted");
    stage.primary = Daemon::start(stage.dir.path(), "a", "run");
    let (code, last) = stage.primary.ended();
    assert_eq!(code, Some(4), "{last}");
}
