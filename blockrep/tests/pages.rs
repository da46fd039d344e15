//! The record of guest pages, against a guest that knows what it wrote itself.
//!
//! What goes wrong without it: a checkpointer copies the pages that hypervisor and guest wrote, and
//! not those the disk wrote. The backup's guest then wakes up with old data in its page cache, or with
//! requests that are answered and forgotten.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod guest;

use blkback_proto::ctl::{PagesArmRequest, PagesDisarmRequest, PagesTakeAnswer, PagesTakeRequest};
use blockrep_host::ctl::Client;
use guest::daemon::{DISK_BYTES, Daemon};
use guest::memory::{HIGH, HIGH_BYTES, LOW_BYTES};
use guest::{Ask, DATA, EVENT_IDX, FLUSH_ALL, GET_ID, Guest, READ, USED, WRITE, status_of};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// The page of the used ring on which the disk says which kicks it wants.
const KICKS_PAGE: u64 = USED / PAGE + 1;

/// A record as its reader holds it.
struct Record {
    client: Client,
    id: String,
    turn: u64,
}

impl Record {
    fn arm(daemon: &Daemon) -> Self {
        let mut client = daemon.client();
        let id = client.pages_arm(PagesArmRequest::default()).unwrap().record;
        Self {
            client,
            id,
            turn: 0,
        }
    }

    fn ask(&mut self, turn: u64) -> Result<PagesTakeAnswer, String> {
        let request = PagesTakeRequest {
            record: self.id.clone(),
            turn,
            ..PagesTakeRequest::default()
        };
        self.client
            .pages_take(request)
            .map_err(|error| error.to_string())
    }

    fn answer(&mut self) -> PagesTakeAnswer {
        self.turn += 1;
        self.ask(self.turn).unwrap()
    }

    /// The next turn, which has to be complete.
    fn take(&mut self) -> BTreeSet<u64> {
        let answer = self.answer();
        assert!(answer.complete, "{:?}", answer.reason);
        let pages: BTreeSet<u64> = pages_of(&answer).collect();
        assert_eq!(pages.len() as u64, answer.pages);
        pages
    }
}

fn pages_of(answer: &PagesTakeAnswer) -> impl Iterator<Item = u64> + '_ {
    answer
        .runs
        .iter()
        .flat_map(|(first, count)| *first..first + count)
}

fn pages_in((address, length): (u64, u32)) -> std::ops::RangeInclusive<u64> {
    address / PAGE..=(address + u64::from(length.max(1)) - 1) / PAGE
}

/// Somewhere in the guest's data, or once in a while where the guest has no memory.
fn any_memory(random: &mut fastrand::Rng, length: u32) -> (u64, u32) {
    let room = |from: u64, to: u64, random: &mut fastrand::Rng| {
        let at = random.u64(from..to - u64::from(length));
        match random.u8(..4) {
            0 => at,
            1 => at / 512 * 512,
            _ => at / PAGE * PAGE,
        }
    };
    match random.u8(..40) {
        0 => (LOW_BYTES - 512, length.max(1024)),
        n if n % 2 == 0 => (room(DATA, LOW_BYTES, random), length),
        _ => (room(HIGH, HIGH + HIGH_BYTES, random), length),
    }
}

fn any_ask(random: &mut fastrand::Rng) -> Ask {
    let kind = match random.u8(..20) {
        0 => FLUSH_ALL,
        1 | 2 => GET_ID,
        // No request at all.
        3 => 77,
        n if n % 3 == 0 => WRITE,
        _ => READ,
    };
    if kind == FLUSH_ALL {
        return Ask::new(kind, 0, &[]);
    }
    if kind == GET_ID {
        return Ask::new(kind, 0, &[any_memory(random, 20)]);
    }
    let count = random.usize(1..=3);
    let data: Vec<_> = (0..count)
        .map(|_| {
            let most = if random.bool() { 8 } else { 64 };
            let sectors = random.u32(1..=most);
            any_memory(random, sectors * 512)
        })
        .collect();
    // Some of them beyond the end of the disk.
    let sector = random.u64(..DISK_BYTES / 512);
    let aligned = if random.bool() {
        sector / 8 * 8
    } else {
        sector
    };
    Ask::new(kind, aligned, &data)
}

/// Fills what the disk will write with something else, so that its writing shows.
fn overwrite(guest: &mut Guest, random: &mut fastrand::Rng, ask: &Ask) {
    for (address, length) in ask.data.iter().flatten() {
        let end = address + u64::from(*length);
        if guest::memory::Memory::offset(end).is_some() {
            let mut bytes = vec![0; *length as usize];
            random.fill(&mut bytes);
            guest.memory.write(*address, &bytes);
        }
    }
}

/// Puts that many requests into the queue; all that the disk may write for them.
fn ask_some(guest: &mut Guest, random: &mut fastrand::Rng, count: usize) -> BTreeSet<u64> {
    let mut may_write = BTreeSet::from_iter(USED / PAGE..=KICKS_PAGE);
    for _ in 0..count {
        let ask = any_ask(random);
        overwrite(guest, random, &ask);
        let slot = guest.ask(&ask).unwrap();
        may_write.insert(status_of(slot) / PAGE);
        if ask.is_into_guest() {
            may_write.extend(ask.data.iter().flatten().flat_map(|data| pages_in(*data)));
        }
        if random.u8(..8) == 0 {
            guest.kick();
        }
    }
    may_write
}

/// Compares everything: what the disk wrote is in the record, and little else is.
#[test]
fn a_page_that_the_disk_wrote_is_in_the_record() {
    for seed in 0..8u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let daemon = Daemon::start(seed, "");
        let features = if seed % 2 == 0 { EVENT_IDX } else { 0 };
        let mut guest = Guest::connect(&daemon.socket(), features);
        let mut record = Record::arm(&daemon);
        let (mut seen, mut named) = (0, 0);
        for round in 0..40 {
            let count = random.usize(1..=50);
            let may_write = ask_some(&mut guest, &mut random, count);
            guest.finish();
            let base = guest.stop();
            if random.bool() {
                guest.tell_memory(true);
            }
            let pages = record.take();
            let changed = BTreeSet::from_iter(guest.memory.changed());
            let missing: Vec<_> = changed.difference(&pages).collect();
            assert!(
                missing.is_empty(),
                "seed {seed}, round {round}: {missing:x?}"
            );
            let strange: Vec<_> = pages.difference(&may_write).collect();
            assert!(
                strange.is_empty(),
                "seed {seed}, round {round}: {strange:x?}"
            );
            seen += changed.len();
            named += pages.len();
            // The VMM says the same again at every start, as QEMU does.
            guest.tell_memory(true);
            guest.start(base);
        }
        assert!(seen > 1000 && named < seen * 2, "{seen} of {named}");
    }
}

/// Each way the disk has of writing to its guest, alone: none of them may hide behind another.
#[test]
fn every_way_of_writing_is_in_the_record() {
    for features in [EVENT_IDX, 0] {
        let daemon = Daemon::start(1, "");
        let mut guest = Guest::connect(&daemon.socket(), features);
        let mut record = Record::arm(&daemon);
        let data = HIGH + 7 * PAGE;
        let all = [
            ("a read without a copy", Ask::new(READ, 8, &[(data, 8192)])),
            ("a read with one", Ask::new(READ, 9, &[(data + 5, 1024)])),
            ("the name", Ask::new(GET_ID, 0, &[(data + 90, 20)])),
            ("a write", Ask::new(WRITE, 8, &[(data, 4096)])),
            ("a flush", Ask::new(FLUSH_ALL, 0, &[])),
            ("no request", Ask::new(77, 0, &[(data, 512)])),
        ];
        for (name, ask) in all {
            // An idle queue has told which kicks it wants.
            std::thread::sleep(Duration::from_millis(20));
            record.take();
            let slot = guest.ask(&ask).unwrap();
            guest.finish();
            std::thread::sleep(Duration::from_millis(20));
            let mut expected = BTreeSet::from([USED / PAGE, status_of(slot) / PAGE]);
            if features & EVENT_IDX != 0 {
                expected.insert(KICKS_PAGE);
            }
            if ask.is_into_guest() && ask.kind != 77 {
                expected.extend(ask.data.iter().flatten().flat_map(|data| pages_in(*data)));
            }
            assert_eq!(record.take(), expected, "{name}");
        }
    }
}

/// A turn that forgets what the kernel is about to write, or has written and not yet told of.
#[test]
fn a_read_in_flight_is_in_this_turn_and_in_the_one_after_its_end() {
    let daemon = Daemon::start(2, "image=read:1+=delay:400ms");
    let mut guest = Guest::connect(&daemon.socket(), EVENT_IDX);
    let mut record = Record::arm(&daemon);
    let data = HIGH + 40 * PAGE;
    guest.ask(&Ask::new(READ, 0, &[(data, 4096)])).unwrap();
    guest.kick();
    // It is taken when the disk has said which kick it wants next.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = BTreeSet::new();
    while !before.contains(&(data / PAGE)) {
        assert!(Instant::now() < deadline, "{before:?}");
        before = record.take();
    }
    assert_eq!(guest.in_flight(), 1);
    assert!(record.take().contains(&(data / PAGE)), "still in flight");
    guest.finish();
    assert!(
        record.take().contains(&(data / PAGE)),
        "its end was not told"
    );
    assert!(!record.take().contains(&(data / PAGE)), "told twice");
}

/// Turns beside requests that go on: what was answered before a turn was asked for is in it, if it was
/// asked after the turn before; and nothing is lost between two turns.
#[test]
fn turns_beside_requests_lose_nothing() {
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let daemon = Daemon::start(seed, "image=read:1+=shuffle:3ms");
        let mut guest = Guest::connect(&daemon.socket(), EVENT_IDX);
        let mut record = Record::arm(&daemon);
        let mut of_slot: HashMap<usize, (u64, BTreeSet<u64>)> = HashMap::new();
        let mut all = BTreeSet::new();
        let mut last = BTreeSet::new();
        for turn in 1..=300 {
            for _ in 0..random.usize(..20) {
                let ask = Ask::new(
                    READ,
                    random.u64(..1000) * 8,
                    &[any_memory(&mut random, 4096)],
                );
                overwrite(&mut guest, &mut random, &ask);
                let Some(slot) = guest.ask(&ask) else { break };
                let mut pages = BTreeSet::from([status_of(slot) / PAGE]);
                if ask.data[0].unwrap().0 != LOW_BYTES - 512 {
                    pages.extend(pages_in(ask.data[0].unwrap()));
                }
                of_slot.insert(slot, (turn, pages));
            }
            guest.kick();
            std::thread::sleep(Duration::from_micros(random.u64(..1500)));
            let mut ended = Vec::new();
            guest.reap(|slot| ended.extend(of_slot.remove(&slot)));
            let pages = record.take();
            for (asked, written) in ended {
                let both = &pages | &last;
                let known = if asked == turn { &pages } else { &both };
                assert!(written.is_subset(known), "seed {seed}, turn {turn}");
            }
            all.extend(&pages);
            last = pages;
        }
        guest.finish();
        guest.stop();
        all.extend(record.take());
        let changed = BTreeSet::from_iter(guest.memory.changed());
        assert!(changed.is_subset(&all), "seed {seed}");
        // Enough that something could have been missed; how many they are is the machine's matter.
        assert!(changed.len() > 100, "{}", changed.len());
    }
}

/// A reader that takes a record with a hole for a whole one copies too little, for good.
#[test]
fn what_the_record_cannot_speak_for_makes_it_incomplete() {
    let mut daemon = Daemon::start(3, "");
    let mut record = Record::arm(&daemon);
    let mut guest = Guest::connect(&daemon.socket(), EVENT_IDX);
    let incomplete = |record: &mut Record, why: &str| {
        let answer = record.answer();
        let reason = answer.reason.unwrap();
        assert!(!answer.complete && reason.contains(why), "{reason}");
        record.take();
    };
    incomplete(&mut record, "a VMM went or came");
    let base = guest.stop();
    guest.tell_memory(true);
    record.take();
    guest.tell_memory(false);
    incomplete(&mut record, "the memory table");
    guest.tell_memory(true);
    incomplete(&mut record, "the memory table");
    guest.start(base);
    guest.ask(&Ask::new(FLUSH_ALL, 0, &[])).unwrap();
    guest.finish();
    guest.stop();
    guest.reconnect(&daemon.socket());
    incomplete(&mut record, "a VMM went or came");

    // The turn that was given last can be had again, no other one.
    let turn = record.turn;
    assert_eq!(record.ask(turn), record.ask(turn));
    for wrong in [0, turn - 1, turn + 2, u64::MAX] {
        let text = record.ask(wrong).unwrap_err();
        assert!(text.contains("arm") && !text.contains('\n'), "{text}");
    }
    let other = Record::arm(&daemon);
    assert!(record.ask(turn + 1).unwrap_err().contains(&other.id));
    let mut record = other;
    record.take();
    let disarm = |record: &mut Record| record.client.pages_disarm(PagesDisarmRequest::default());
    assert!(disarm(&mut record).unwrap().was_armed);
    assert!(!disarm(&mut record).unwrap().was_armed);
    assert!(record.ask(1).unwrap_err().contains("no record"));

    let before = Record::arm(&daemon).id;
    daemon.restart();
    guest.reconnect(&daemon.socket());
    record.client = daemon.client();
    record.id = before;
    assert!(record.ask(1).unwrap_err().contains("no record"));
    let nowhere = PagesArmRequest {
        volume: Some("b\nc".to_owned()),
    };
    let text = record.client.pages_arm(nowhere).unwrap_err().to_string();
    assert!(text.starts_with("no volume is called") && !text.contains('\n'));
}
