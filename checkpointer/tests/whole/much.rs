//! A guest that has written more than one checkpoint can have is never protected again, for what it has written only gets more.

use super::daemon::Daemon;
use super::guest::program;
use super::stage::Stage;
use blkback_proto::ctl::GuestProtection;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// More than the buffer has room for.
const MUCH: usize = 2000 * 4096;
/// Behind what the guest itself uses.
const AT: u64 = 4 << 20;

fn write(memory: &Path, word: u8) {
    let file = File::options().write(true).open(memory).expect("memory");
    file.write_all_at(&vec![word; MUCH], AT).expect("written");
}

fn has(memory: &Path, word: u8) -> bool {
    let mut bytes = vec![0; MUCH];
    let file = File::open(memory).expect("memory");
    file.read_exact_at(&mut bytes, AT).expect("read");
    bytes.iter().all(|byte| *byte == word)
}

/// Until the standby's RAM has it.
fn comes_to_the_standby(stage: &Stage, word: u8) {
    let last = stage.primary.report().and_then(|report| report.epochs.cut);
    stage.standby.until("a later epoch", |report| {
        report.epochs.committed > last && has(&stage.standby_file(), word)
    });
    stage.primary.until("protection", |report| {
        report.stated.state == GuestProtection::Protected
    });
}

/// At once, of a guest that is protected: everything is copied anew.
#[test]
fn a_guest_that_writes_too_much_is_protected_again() {
    let Some(program) = program("a_guest_that_writes_too_much_is_protected_again") else {
        return;
    };
    let (dir, primary) = Stage::start_small(&program, 1000);
    let standby = Daemon::start(dir.path(), "b", "receive");
    let stage = Stage::protected(dir, standby, primary);
    let copy = stage.standby_file();
    write(&stage.dir.path().join("a/vm1.ram"), 0x5a);
    stage.standby.until("another copy", |_| !copy.exists());
    comes_to_the_standby(&stage, 0x5a);
}

/// While it is copied: it is copied again.
#[test]
fn what_is_written_behind_the_first_copy_is_copied_again() {
    let Some(program) = program("what_is_written_behind_the_first_copy_is_copied_again") else {
        return;
    };
    let (dir, primary) = Stage::start_small(&program, 4);
    let memory = dir.path().join("a/vm1.ram");
    primary.until("a guest", |report| report.hypervisor.is_some());
    // Noise, so that the rest of the copy takes its time.
    let mut noise = vec![0; MUCH];
    fastrand::Rng::with_seed(5).fill(&mut noise);
    let behind = AT + MUCH as u64;
    let file = File::options().write(true).open(&memory).expect("memory");
    file.write_all_at(&noise, behind + (1 << 20))
        .expect("written");
    let standby = Daemon::start(dir.path(), "b", "receive");
    primary.until("the copy to be behind", |report| {
        let copy = report.first_copy.as_ref();
        copy.is_some_and(|copy| copy.done_bytes > behind)
    });
    write(&memory, 0xa5);
    let report = primary.report().expect("it answers");
    assert!(report.first_copy.is_some(), "{report:#?}");
    let stage = Stage::protected(dir, standby, primary);
    comes_to_the_standby(&stage, 0xa5);
}
