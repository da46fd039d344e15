//! From the primary's memory to the backup's: a page that is forgotten, of another moment, or taken though it
//! was damaged on the way, is a guest that goes on with memory that never was.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::{Block, FRAME_BYTES, Frame, Hello, RefuseCode, StateKind};
use checkpointer::memory::store::{Limits, Store};
use checkpointer::memory::stream::encoder::{Encoder, EncoderSettings};
use checkpointer::memory::stream::gain::Packing;
use checkpointer::memory::stream::receiver::same_shape;
use checkpointer::memory::stream::{Acked, Cut, Got, LinkLost, Sender, Settings, commit, serve};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Cursor, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

const PAGE: usize = 4096;
const PAGES: usize = 700;

fn hello(generation: u64) -> Hello {
    let block = |id: &str, pages: usize| Block {
        id: id.to_owned(),
        size_bytes: (pages * PAGE) as u64,
    };
    Hello {
        version_min: 1,
        version_max: 1,
        incarnation: 5,
        generation,
        guest: "vm".to_owned(),
        machine: "m".to_owned(),
        state_kind: StateKind::SaveDevices,
        blocks: vec![block("a", PAGES - 60), block("b", 60)],
    }
}

fn ram(store: &Mutex<Store>) -> Vec<u8> {
    let ram = store.lock().unwrap().ram().unwrap().unwrap();
    std::fs::read(&ram.blocks()[0].file).unwrap()
}

/// The guest at the primary.
struct Guest {
    random: fastrand::Rng,
    memory: Vec<u8>,
    dirty: BTreeSet<usize>,
    state: Vec<u8>,
}

impl Guest {
    fn new(seed: u64) -> Self {
        let mut guest = Self {
            random: fastrand::Rng::with_seed(seed),
            memory: vec![0; PAGES * PAGE],
            dirty: BTreeSet::new(),
            state: vec![3; 20_000],
        };
        guest.run(PAGES / 2);
        guest
    }

    fn run(&mut self, writes: usize) {
        let random = &mut self.random;
        for _ in 0..writes {
            let page = random.usize(0..PAGES);
            let bytes = &mut self.memory[page * PAGE..][..PAGE];
            match random.u8(0..6) {
                0 => bytes.fill(0),
                1 => random.fill(bytes),
                2 => bytes.fill(random.u8(..)),
                // Written, and the same.
                3 => {}
                _ => bytes[random.usize(0..PAGE)] = random.u8(..),
            }
            self.dirty.insert(page);
        }
        let length = random.usize(15_000..25_000);
        if random.u8(0..3) == 0 {
            self.state.resize(length, 9);
        }
        let at = random.usize(0..self.state.len());
        self.state[at] = random.u8(..);
    }
}

/// Passes so many bytes, then fails; may flip a bit on the way.
struct Wire {
    to: UnixStream,
    left: usize,
    flip_at: Option<usize>,
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            let _ = self.to.shutdown(std::net::Shutdown::Both);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut bytes = bytes[..bytes.len().min(self.left)].to_vec();
        if let Some(at) = self.flip_at {
            match bytes.get_mut(at) {
                Some(byte) => {
                    *byte ^= 1 << (at % 8);
                    self.flip_at = None;
                }
                None => self.flip_at = Some(at - bytes.len()),
            }
        }
        self.to.write_all(&bytes)?;
        self.left -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Served = JoinHandle<LinkLost>;

fn backup(store: &Arc<Mutex<Store>>, wire: UnixStream) -> (mpsc::Receiver<Got>, Served) {
    let (to, from) = mpsc::channel();
    let store = Arc::clone(store);
    wire.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let thread = std::thread::spawn(move || {
        let out = wire.try_clone().unwrap();
        let admit = |primary: &Hello| {
            same_shape(primary, &hello(0)).map_err(|text| (RefuseCode::Shape, text))
        };
        serve(wire, out, &store, admit, |got, _| to.send(got).is_ok())
    });
    (from, thread)
}

/// The primary's checkpointer over many sessions that are lost at any byte, with or without a flipped bit before.
fn life(seed: u64, flips: bool) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let store = Arc::new(Mutex::new(store));
    let mut guest = Guest::new(seed);
    let mut random = fastrand::Rng::with_seed(seed ^ 0xFFFF);
    let mut moments: BTreeMap<Epoch, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
    let (mut generation, mut epoch, mut committed) = (0, Epoch(1), Epoch::NONE);
    let (mut whole_epochs, mut bases) = (0, 0);
    // Written since the last epoch that is known to be whole.
    let mut unsafe_pages: BTreeSet<usize> = BTreeSet::new();
    for session in 1..=14u64 {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let (got, served) = backup(&store, theirs);
        let left = match session % 3 {
            0 => usize::MAX,
            1 => random.usize(6_000..2_500_000),
            _ => random.usize(6_000..200_000),
        };
        let flip_at = flips.then(|| random.usize(0..left.min(2_000_000)));
        mine.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let from = mine.try_clone().unwrap();
        let wire = Wire {
            to: mine,
            left,
            flip_at,
        };
        let settings = Settings {
            encoder: EncoderSettings {
                cache_bytes_max: 300 * PAGE,
            },
            packing: if session % 2 == 0 {
                Packing::Always
            } else {
                Packing::Measured
            },
            copy_bytes_per_s_max: 0,
        };
        let connected =
            Sender::connect(from, wire, &hello(generation), SessionId(session), settings);
        if let Ok((mut sender, acks, welcome)) = connected {
            let (acked, reader) = acks.spawn().unwrap();
            let mut go = || -> Result<(), String> {
                if welcome.has_base(5, generation) {
                    bases += 1;
                } else {
                    generation = random.u64(1..);
                    sender.start_copy(generation).map_err(|e| e.to_string())?;
                    unsafe_pages = std::mem::take(&mut guest.dirty);
                    unsafe_pages.clear();
                    for first in (0..PAGES).step_by(50) {
                        let bytes = guest.memory[first * PAGE..][..50 * PAGE].to_vec();
                        sender
                            .send_copy(first as u64, &bytes)
                            .map_err(|e| e.to_string())?;
                        guest.run(20);
                    }
                }
                for _ in 0..12 {
                    guest.run(random.usize(1..400));
                    unsafe_pages.extend(std::mem::take(&mut guest.dirty));
                    let pages: Vec<u64> = unsafe_pages.iter().map(|page| *page as u64).collect();
                    let bytes: Vec<u8> = pages
                        .iter()
                        .flat_map(|page| &guest.memory[*page as usize * PAGE..][..PAGE])
                        .copied()
                        .collect();
                    epoch = epoch.next();
                    moments.insert(epoch, (guest.memory.clone(), guest.state.clone()));
                    let cut = Cut {
                        epoch,
                        lineage: LineageId([8; 16]),
                        pages: &pages,
                        bytes: &bytes,
                        state: &guest.state,
                        kind: StateKind::SaveDevices,
                    };
                    sender.send_epoch(&cut).map_err(|e| e.to_string())?;
                    match acked.recv_timeout(Duration::from_secs(20)).unwrap() {
                        Acked::Whole(whole) => assert_eq!(whole, epoch),
                        other => return Err(format!("{other:?}")),
                    }
                    sender.whole(epoch);
                    whole_epochs += 1;
                    unsafe_pages.clear();
                    if random.bool() {
                        let done = commit::<Wire>(&store, None, epoch).unwrap();
                        assert_eq!(done, epoch);
                        committed = done;
                        assert!(ram(&store) == moments[&done].0, "memory of {done}");
                    }
                }
                Ok(())
            };
            let _ = go();
            let _ = sender.bye("over");
            reader.join().unwrap();
        }
        served.join().unwrap();
        drop(got);
        // Whatever is whole there can be what the guest goes on from.
        let last = store.lock().unwrap().whole().last().copied();
        if let Some(last) = last.filter(|_| random.bool()) {
            committed = commit::<Wire>(&store, None, last).unwrap();
            assert_eq!(committed, last);
        }
        if committed != Epoch::NONE {
            assert!(
                ram(&store) == moments[&committed].0,
                "seed {seed}: memory of {committed}"
            );
            let device = store.lock().unwrap().device_state().unwrap();
            assert!(
                device.bytes == moments[&committed].1,
                "device state of {committed}"
            );
        }
    }
    assert!(flips || whole_epochs > 30, "{whole_epochs}");
    assert!(flips || bases > 0, "no session went on from a base");
}

#[test]
fn every_epoch_is_the_memory_of_its_moment() {
    for seed in 0..3 {
        life(seed, false);
    }
}

#[test]
fn flipped_bits_never_become_memory() {
    for seed in 10..13 {
        life(seed, true);
    }
}

/// Frames of a session on a fresh store: a copy and two epochs.
fn session_frames(guest: &mut Guest) -> (Vec<Vec<u8>>, [Vec<u8>; 2]) {
    let mut frames = vec![Vec::new()];
    let session = SessionId(3);
    Frame::Hello(Box::new(hello(0))).encode(session, &mut frames[0]);
    let mut encoder = Encoder::new(EncoderSettings::default());
    encoder.begin_session(session, 0);
    frames.push(encoder.copy_start(9).to_vec());
    let mut keep = |bytes: &[u8]| {
        let mut rest = bytes;
        while !rest.is_empty() {
            let body = blkback_proto::memory::peek_body_bytes(rest).unwrap();
            let (frame, behind) = rest.split_at(FRAME_BYTES + body);
            frames.push(frame.to_vec());
            rest = behind;
        }
        Ok::<_, ()>(())
    };
    encoder.copy(0, &guest.memory, &mut keep).unwrap();
    let moments = [1, 2].map(|epoch| {
        guest.run(200);
        let dirty: Vec<_> = std::mem::take(&mut guest.dirty).into_iter().collect();
        let pages: Vec<u64> = dirty.iter().map(|page| *page as u64).collect();
        let of = |page: &usize| guest.memory[*page * PAGE..][..PAGE].to_vec();
        let bytes: Vec<u8> = dirty.iter().flat_map(of).collect();
        let cut = Cut {
            epoch: Epoch(epoch),
            lineage: LineageId([8; 16]),
            pages: &pages,
            bytes: &bytes,
            state: &guest.state,
            kind: StateKind::SaveDevices,
        };
        encoder.epoch(&cut, &mut keep).unwrap();
        guest.memory.clone()
    });
    (frames, moments)
}

fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..16]);
    crc.update(&[0; 4]);
    crc.update(&frame[20..]);
    frame[16..20].copy_from_slice(&crc.finalize().to_le_bytes());
    frame
}

/// What the store has after these bytes, with everything committed that was acknowledged.
fn after(bytes: Vec<u8>) -> (Epoch, Vec<u8>, Vec<u8>, LineageId) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let store = Arc::new(Mutex::new(store));
    let mut said = Vec::new();
    serve(
        Cursor::new(bytes),
        &mut said,
        &store,
        |_| Ok(()),
        |_, _| true,
    );
    let epoch = commit::<Vec<u8>>(&store, None, Epoch(u64::MAX)).unwrap();
    if epoch == Epoch::NONE {
        return (epoch, Vec::new(), Vec::new(), LineageId::NONE);
    }
    let memory = ram(&store);
    let ready = store.lock().unwrap().ready(epoch).unwrap();
    (epoch, memory, ready.state.bytes, ready.lineage)
}

/// A frame that was changed and has a right checksum all the same (a wrong byte in the sender's buffers, say):
/// the epoch is not taken, or it is what it was.
#[test]
fn frames_that_were_changed_behind_their_checksum_are_found() {
    let mut guest = Guest::new(77);
    let (frames, moments) = session_frames(&mut guest);
    let (epoch, memory, state, lineage) = after(frames.concat());
    assert_eq!((epoch, lineage), (Epoch(2), LineageId([8; 16])));
    assert!(memory == moments[1] && state == guest.state);
    let mut random = fastrand::Rng::with_seed(5);
    let (mut refused, mut kinds) = (0, BTreeSet::new());
    for round in 0..500 {
        // A kind first: there are many COPY, and one END.
        let kind = random.u8(5..10);
        let of_kind = (0..frames.len()).filter(|at| frames[*at][8] == kind);
        let of_kind: Vec<_> = of_kind.collect();
        let which = of_kind[random.usize(0..of_kind.len())];
        let mut frames = frames.clone();
        let frame = &mut frames[which];
        let at = match frame.len() {
            FRAME_BYTES => random.usize(32..64),
            length if random.bool() => random.usize(32..length.min(200)),
            length => random.usize(64..length),
        };
        frame[at] ^= 1 << random.u8(0..8);
        kinds.insert(frame[8]);
        *frame = sealed(std::mem::take(frame));
        let (epoch, memory, device, of) = after(frames.concat());
        match epoch.0 {
            0 => refused += 1,
            1 | 2 => {
                let right = &moments[usize::try_from(epoch.0).unwrap() - 1];
                assert!(
                    memory == *right,
                    "round {round}: frame {which}, byte {at}: memory"
                );
                assert_eq!(of, lineage, "round {round}: frame {which}, byte {at}");
                if epoch.0 == 2 {
                    assert!(
                        device == state,
                        "round {round}: frame {which}, byte {at}: state"
                    );
                } else {
                    refused += 1;
                }
            }
            other => panic!("epoch {other} was never sent"),
        }
    }
    assert!(refused > 400, "{refused} of 500");
    assert!(kinds.len() >= 5, "{kinds:?}");
}

/// Whatever comes, at whatever length, ends the session and nothing else.
#[test]
fn cut_and_mixed_sessions_end_in_words() {
    let mut guest = Guest::new(78);
    let (frames, moments) = session_frames(&mut guest);
    let whole = frames.concat();
    let mut random = fastrand::Rng::with_seed(6);
    for _ in 0..60 {
        let (epoch, memory, ..) = after(whole[..random.usize(0..whole.len())].to_vec());
        assert!(epoch <= Epoch(1) && (epoch == Epoch::NONE || memory == moments[0]));
        // Frames left out, twice, or in another order.
        let mut mixed = frames.clone();
        let (one, other) = (random.usize(1..mixed.len()), random.usize(1..mixed.len()));
        match random.u8(0..3) {
            0 => drop(mixed.remove(one)),
            1 => mixed.insert(other, mixed[one].clone()),
            _ => mixed.swap(one, other),
        }
        let (epoch, memory, ..) = after(mixed.concat());
        let is_right = |at: usize| memory == moments[at];
        match epoch.0 {
            0 => {}
            1 => assert!(is_right(0)),
            _ => assert!(is_right(1)),
        }
    }
}

#[test]
fn nothing_of_an_earlier_session_is_a_base() {
    let guest = Guest::new(1);
    let pages: Vec<u64> = (0..PAGES as u64).collect();
    let cut = |epoch| Cut {
        epoch: Epoch(epoch),
        lineage: LineageId::NONE,
        pages: &pages,
        bytes: &guest.memory,
        state: &[],
        kind: StateKind::SaveDevices,
    };
    let mut encoder = Encoder::new(EncoderSettings::default());
    let count =
        |encoder: &mut Encoder, epoch| encoder.epoch(&cut(epoch), |_| Ok::<_, ()>(())).unwrap();
    encoder.begin_session(SessionId(1), 4);
    assert_eq!(count(&mut encoder, 1).same, 0);
    assert!(count(&mut encoder, 2).same > 0);
    encoder.forget();
    assert_eq!(count(&mut encoder, 3).same, 0, "after a take-back");
    encoder.begin_session(SessionId(2), 4);
    assert_eq!(count(&mut encoder, 4).same, 0, "after a session");
}

#[test]
fn refusals_reach_the_primary_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let pending_bytes_max = 1 << 60;
    let store = Store::open(dir.path(), Limits { pending_bytes_max }).unwrap();
    let store = Arc::new(Mutex::new(store));
    let connect = |hello: &Hello| {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let (_, served) = backup(&store, theirs);
        let from = mine.try_clone().unwrap();
        let connected = Sender::connect(from, mine, hello, SessionId(1), Settings::default());
        (connected, served)
    };
    let mut other = hello(0);
    other.machine = "7.2.0 pc".to_owned();
    let (connected, _) = connect(&other);
    let refused = connected.map(drop).unwrap_err();
    assert!(
        refused.to_string().contains("machine is 7.2.0 pc"),
        "{refused}"
    );
    let mut later = hello(0);
    (later.version_min, later.version_max) = (7, 8);
    let (connected, _) = connect(&later);
    assert!(matches!(
        connected,
        Err(LinkLost::Refused {
            code: RefuseCode::Version,
            ..
        })
    ));
    // A receiver that tells nobody ends at once; this one is told.
    let (mine, theirs) = UnixStream::pair().unwrap();
    let (got, served) = backup(&store, theirs);
    let from = mine.try_clone().unwrap();
    let (mut sender, acks, _) =
        Sender::connect(from, mine, &hello(0), SessionId(1), Settings::default()).unwrap();
    sender.ping(6).unwrap();
    sender.start_copy(4).unwrap();
    let (acked, reader) = acks.spawn().unwrap();
    let acked: Vec<Acked> = acked.iter().collect();
    assert_eq!(acked[0], Acked::Pong(6));
    let room = |acked: &Acked| matches!(acked, Acked::Refused { code: RefuseCode::Room, text } if text.contains("missing"));
    assert!(room(&acked[1]), "{acked:?}");
    reader.join().unwrap();
    served.join().unwrap();
    assert!(matches!(got.recv().unwrap(), Got::Hello(_)));
}

/// Figures, for whoever asks: `cargo test --release --test stream figures -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and asserts nothing"]
fn figures() {
    figures::all();
}

#[path = "stream/figures.rs"]
mod figures;
