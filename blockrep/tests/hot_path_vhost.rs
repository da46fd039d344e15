//! The same as `hot_path`, for a guest's requests by vhost-user: warm, they allocate nothing.
//!
//! A driver in this process asks through shared memory; its own allocations are not counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod guest;
mod warm;

use guest::memory::HIGH;
use guest::{Ask, EVENT_IDX, Guest, READ, SLOTS, WRITE};
use std::time::{Duration, Instant};
use warm::{BLOCK_BYTES, DEPTH, MEASURED, Pair, WARM_UP, allocations, block_of};

const PATIENCE: Duration = Duration::from_secs(60);
const SECTORS: u64 = BLOCK_BYTES as u64 / 512;

/// That many requests, [`DEPTH`] at a time, with data that begins so far into a page.
fn run(guest: &mut Guest, kind: u32, requests: u64, within: u64) {
    let mut heard = Instant::now();
    let (mut asked, mut answered) = (0, 0);
    while answered < requests {
        let mut is_new = false;
        while asked < requests && asked - answered < DEPTH {
            let data = HIGH + asked % SLOTS as u64 * 2 * BLOCK_BYTES as u64 + within;
            let sector = block_of(asked) * SECTORS;
            let ask = Ask::new(kind, sector, &[(data, BLOCK_BYTES as u32)]);
            guest.ask(&ask).unwrap();
            (asked, is_new) = (asked + 1, true);
        }
        if is_new {
            guest.kick();
        }
        let mut slots = [usize::MAX; SLOTS];
        let mut count = 0;
        guest.reap(|slot| {
            slots[count] = slot;
            count += 1;
        });
        for slot in &slots[..count] {
            assert_eq!(guest.status(*slot), 0, "an error instead of an answer");
        }
        if count > 0 {
            (answered, heard) = (answered + count as u64, Instant::now());
        } else {
            assert!(heard.elapsed() < PATIENCE, "{answered} answers");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_request_of_a_guest_allocates_nothing() {
    let pair = Pair::start("--vhost-user");
    let mut guest = Guest::connect(&pair.socket(), EVENT_IDX);
    // Under this loss policy the first write is answered once the backup follows.
    for (kind, within) in [(WRITE, 0), (READ, 0), (READ, 7)] {
        run(&mut guest, kind, WARM_UP, within);
    }
    let writes = allocations(|| run(&mut guest, WRITE, MEASURED, 0));
    let reads = allocations(|| run(&mut guest, READ, MEASURED, 0));
    let copied = allocations(|| run(&mut guest, READ, MEASURED, 7));
    println!(
        "{MEASURED} writes: {writes} allocations; {MEASURED} reads: {reads}; {MEASURED} reads to odd \
         memory: {copied}"
    );
    // Records and epochs have theirs, and how many of those there are depends on the machine.
    let few = MEASURED / 2;
    assert!(writes < few, "{writes} allocations for {MEASURED} writes");
    assert!(reads < few, "{reads} allocations for {MEASURED} reads");
    assert!(
        copied < few,
        "{copied} allocations for {MEASURED} reads to odd memory"
    );
    guest.stop();
    drop(guest);
    pair.stop();
}
