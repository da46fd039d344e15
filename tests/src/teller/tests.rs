//! A judge that is satisfied by a guest which forgot what it had promised would make the demo worthless: each way
//! of forgetting is planted in a stand-in for the guest.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::receipts::{APPEND, AUDIT, Answer, REQUEST_HEAD, Record, Request, SPOILT, beginning};
use super::{Options, run};

const RUN: u64 = 42;
/// The transaction at which the plant is carried out.
const AT: u64 = 60;
const END: u64 = 120;

/// What goes wrong at transaction [`AT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// Five transactions whose answers left before the backup had them; nothing is heard on the connection any
    /// more, as TCP has it where the other end knows less than was acknowledged.
    EarlyRelease,
    /// The same, and the guest goes on talking.
    Forgets,
    /// The disk is of an earlier moment than the memory.
    OlderDisk,
    /// A page was left out.
    SkippedPage,
    Reset,
    ClockBack,
    /// Another transaction in the place of the one that was answered.
    Changed,
}

struct Guest {
    plant: Plant,
    records: Vec<Record>,
    /// What the disk has; memory has all of `records`.
    on_disk: usize,
    flags: u32,
    is_damaged: bool,
}

impl Guest {
    fn chain(&self, count: usize) -> u64 {
        let last = count.checked_sub(1).map(|last| self.records[last].chain);
        last.unwrap_or(beginning(RUN))
    }

    fn last(&self) -> u64 {
        self.records.len() as u64
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let (mut payload, chain_disk) = (Vec::new(), self.chain(self.on_disk));
        match request.kind {
            APPEND => {
                let before = self.chain(self.records.len());
                let record = Record::after(before, RUN, self.last() + 1, request);
                self.records.push(record);
                self.on_disk += 1;
            }
            AUDIT => payload.extend(if self.flags == 0 { &b""[..] } else { b"a page" }),
            _ => {
                let first = usize::try_from(request.number - 1).expect("small");
                let there = self.records.iter().take(self.on_disk).skip(first);
                payload.extend(there.take(64).flat_map(Record::encode));
            }
        }
        let goes_back = self.plant == Plant::ClockBack && self.last() > AT;
        Answer {
            kind: request.kind,
            number: request.number,
            nonce: request.nonce,
            position: self.last(),
            chain: self.chain(self.records.len()),
            chain_disk: match request.kind {
                AUDIT => self.chain(self.on_disk),
                _ => chain_disk,
            },
            monotonic_ns: (self.last() + 1_000 - u64::from(goes_back) * 500) * 1_000_000,
            real_ns: self.last() * 1_000_000,
            flags: self.flags,
            payload,
        }
    }

    /// Damage after the answer to [`AT`] has left; false if the connection is dead now.
    fn damage(&mut self) -> bool {
        if std::mem::replace(&mut self.is_damaged, true) {
            return true;
        }
        match self.plant {
            Plant::EarlyRelease | Plant::Forgets => {
                self.records.truncate(self.records.len() - 5);
                self.on_disk = self.records.len();
                return self.plant == Plant::Forgets;
            }
            Plant::OlderDisk => self.on_disk -= 5,
            Plant::SkippedPage => self.flags = SPOILT,
            Plant::Changed => {
                let last = self.records.last_mut().expect("there are some");
                last.payload.push(1);
                last.nonce ^= 1;
            }
            Plant::Reset => return false,
            Plant::Nothing | Plant::ClockBack => {}
        }
        true
    }
}

fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut head = [0; REQUEST_HEAD];
    stream.read_exact(&mut head).ok()?;
    let mut frame = vec![0; Request::frame_len(&head).expect("the client is sound")];
    frame[..REQUEST_HEAD].copy_from_slice(&head);
    stream.read_exact(&mut frame[REQUEST_HEAD..]).ok()?;
    Some(Request::decode(&frame).expect("the client is sound"))
}

fn serve(mut stream: TcpStream, guest: &Mutex<Guest>) {
    let mut dead = false;
    while let Some(request) = read_request(&mut stream) {
        if dead {
            continue;
        }
        let mut guest = guest.lock().unwrap();
        let answer = guest.answer(&request);
        stream.write_all(&answer.encode()).unwrap();
        if request.kind == APPEND && answer.position == AT && !guest.damage() {
            if guest.plant == Plant::Reset {
                return;
            }
            dead = true;
        }
    }
}

/// The faults that the client finds with a guest that has `plant`.
fn faults(plant: Plant) -> Vec<String> {
    let guest = Arc::new(Mutex::new(Guest {
        plant,
        records: Vec::new(),
        on_disk: 0,
        flags: 0,
        is_damaged: false,
    }));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::clone(&guest);
    // Two connections: the stream, and the witness; each ends with its client.
    let server = std::thread::spawn(move || {
        std::thread::scope(|scope| {
            for stream in listener.incoming().take(2) {
                let (stream, guest) = (stream.unwrap(), &server);
                scope.spawn(move || serve(stream, guest));
            }
        });
    });
    let ends = matches!(plant, Plant::EarlyRelease);
    let options = Options {
        address,
        run: RUN,
        seed: 7,
        window: 4,
        time: Duration::from_secs(60),
        // It is waited out only where silence is the plant.
        stall: Duration::from_millis(if ends { 300 } else { 30_000 }),
        connect: Duration::from_secs(30),
    };
    let stop = || guest.lock().unwrap().last() >= END;
    let outcome = run(&options, &stop, &mut |_| {}).unwrap();
    server.join().unwrap();
    assert_eq!(
        outcome.json["figures"]["resets"],
        u64::from(plant == Plant::Reset)
    );
    outcome.faults
}

fn assert_found(plant: Plant, words: &[&str]) {
    let faults = faults(plant);
    for word in words {
        let found = faults.iter().any(|fault| fault.contains(word));
        assert!(found, "{plant:?}: {word} in {faults:?}");
    }
}

#[test]
fn a_sound_guest_has_no_faults() {
    assert_eq!(faults(Plant::Nothing), [""; 0]);
}

/// Invariant 1 from outside: what a client has seen is there after the failover.
#[test]
fn a_planted_early_release_is_found_by_the_witness() {
    let lost = "was answered, and is not in the ledger";
    assert_found(Plant::EarlyRelease, &["is silent", lost]);
    // Transaction 61 takes the place of 56, which was answered.
    assert_found(Plant::Forgets, &["stands in its place", "at position"]);
}

#[test]
fn every_other_plant_is_found_too() {
    assert_found(
        Plant::OlderDisk,
        &["the disk was of another moment", "not in the ledger"],
    );
    assert_found(
        Plant::SkippedPage,
        &["a page of the guest's memory", "audit"],
    );
    assert_found(Plant::Reset, &["connection was lost"]);
    assert_found(Plant::ClockBack, &["clock went back"]);
    assert_found(Plant::Changed, &["in its place", "none that was sent"]);
}
