//! The log of a migration, against a guest that knows what it wrote itself.
//!
//! What goes wrong without it: a VMM copies the guest's memory while the guest runs, and a page that the
//! disk wrote after it was copied is not copied again. The guest goes on elsewhere with old data.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod guest;

use guest::daemon::{DISK_BYTES, Daemon};
use guest::memory::{HIGH, HIGH_BYTES, LOW_BYTES};
use guest::{Ask, DATA, EVENT_IDX, GET_ID, Guest, Log, READ};
use std::collections::BTreeSet;

const PAGE: u64 = 4096;

/// A guest whose VMM may log, and a log for all of its memory.
fn logging(daemon: &Daemon) -> (Guest, Log) {
    let guest = Guest::connect(&daemon.socket(), EVENT_IDX);
    let log = Log::new(HIGH + HIGH_BYTES);
    guest.log_to(&log);
    guest.set_logging(true);
    (guest, log)
}

/// Lets the disk write here and there; the pages that it changed.
fn work(guest: &mut Guest, random: &mut fastrand::Rng, with_high: bool) -> BTreeSet<u64> {
    guest.memory.changed();
    for _ in 0..48 {
        let length = random.u32(1..=24) * 512;
        let (from, to) = if with_high && random.bool() {
            (HIGH, HIGH + HIGH_BYTES)
        } else {
            (DATA, LOW_BYTES)
        };
        let at = random.u64(from..to - u64::from(length));
        // Aligned: the kernel reads straight into it. Else a copy is made.
        let at = if random.bool() { at / PAGE * PAGE } else { at };
        let kind = if random.u8(..8) == 0 { GET_ID } else { READ };
        let length = if kind == GET_ID { 20 } else { length };
        let sector = random.u64(..DISK_BYTES / 512 - 24) / 8 * 8;
        guest.ask(&Ask::new(kind, sector, &[(at, length)])).unwrap();
    }
    guest.finish();
    guest.memory.changed().into_iter().collect()
}

#[track_caller]
fn assert_logged(log: &Log, changed: &BTreeSet<u64>) {
    let logged = log.take();
    let missing: Vec<_> = changed.difference(&logged).collect();
    assert!(changed.len() > 60, "{} pages prove little", changed.len());
    assert!(missing.is_empty(), "not logged: {missing:x?}");
}

/// Data, status bytes, the used ring, and what it says of kicks.
#[test]
fn every_page_that_the_disk_writes_is_logged() {
    let daemon = Daemon::start(1, "");
    let (mut guest, log) = logging(&daemon);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..4 {
        let changed = work(&mut guest, &mut random, true);
        assert_logged(&log, &changed);
    }
    // A VMM whose log has to grow takes another, and reads the old one for the last time.
    let larger = Log::new(HIGH + 2 * HIGH_BYTES);
    guest.log_to(&larger);
    log.take();
    let changed = work(&mut guest, &mut random, true);
    assert_logged(&larger, &changed);
    assert!(log.take().is_empty());
}

/// A guest that reboots changes what of its memory is RAM: the table is sent, the log is not.
#[test]
fn a_table_told_anew_does_not_end_the_log() {
    let daemon = Daemon::start(2, "");
    let (mut guest, log) = logging(&daemon);
    let mut random = fastrand::Rng::with_seed(2);
    for with_high in [true, false, true] {
        guest.tell_memory(with_high);
        let changed = work(&mut guest, &mut random, with_high);
        assert_logged(&log, &changed);
    }
}

/// After a migration that was cancelled nobody reads the log, and memory may come that it has no room for.
#[test]
fn a_log_that_was_taken_away_is_not_written() {
    let daemon = Daemon::start(3, "");
    let mut guest = Guest::connect(&daemon.socket(), 0);
    guest.tell_memory(false);
    let log = Log::new(LOW_BYTES);
    guest.log_to(&log);
    guest.set_logging(true);
    let mut random = fastrand::Rng::with_seed(3);
    let changed = work(&mut guest, &mut random, false);
    assert_logged(&log, &changed);
    guest.set_logging(false);
    guest.tell_memory(true);
    assert!(work(&mut guest, &mut random, true).len() > 60);
    assert!(log.take().is_empty());
}
