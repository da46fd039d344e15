//! How fast and how small: printed.

use super::{PAGE, hello};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::{Hello, StateKind};
use checkpointer::memory::store::{Limits, Store};
use checkpointer::memory::stream::encoder::{Encoder, EncoderSettings};
use checkpointer::memory::stream::frames::set_limits;
use checkpointer::memory::stream::gain::Packing;
use checkpointer::memory::stream::{Acked, Cut, Sender, Settings, serve};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RAM_PAGES: usize = 16_384;

/// Memory like a guest's: code and data of programs, text, some of it random.
fn memory() -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in [
        "/proc/self/exe",
        "/bin/bash",
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
    ] {
        bytes.extend(std::fs::read(path).unwrap_or_default());
    }
    let pages = bytes.len() / PAGE;
    bytes.truncate(pages.min(RAM_PAGES) * PAGE);
    let have = bytes.clone();
    while bytes.len() < RAM_PAGES * PAGE {
        let left = RAM_PAGES * PAGE - bytes.len();
        bytes.extend(&have[..left.min(have.len())]);
    }
    bytes
}

/// Rows of a database page that was written: a few dozen bytes here and there.
fn touch(memory: &mut [u8], page: usize, random: &mut fastrand::Rng) {
    for _ in 0..random.usize(1..6) {
        let at = page * PAGE + random.usize(0..PAGE - 40);
        random.fill(&mut memory[at..at + 40]);
    }
}

fn gather(memory: &[u8], pages: &[u64]) -> Vec<u8> {
    let of = |page: &u64| &memory[usize::try_from(*page).unwrap() * PAGE..][..PAGE];
    pages.iter().flat_map(of).copied().collect()
}

fn cut<'a>(epoch: u64, pages: &'a [u64], bytes: &'a [u8], state: &'a [u8]) -> Cut<'a> {
    Cut {
        epoch: Epoch(epoch),
        lineage: LineageId([1; 16]),
        pages,
        bytes,
        state,
        kind: StateKind::SaveDevices,
    }
}

fn pick(count: usize, random: &mut fastrand::Rng) -> Vec<u64> {
    let mut pages: Vec<u64> = (0..RAM_PAGES as u64).collect();
    random.shuffle(&mut pages);
    pages.truncate(count);
    pages.sort_unstable();
    pages
}

/// Time that this thread had a processor: the machine may have others to serve.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes the time into `time`, which outlives the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(done, 0);
    let (seconds, nanos) = (time.tv_sec.try_into(), time.tv_nsec.try_into());
    Duration::new(seconds.unwrap(), nanos.unwrap())
}

fn encoding() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut memory = memory();
    let pages = pick(2000, &mut random);
    for packs in [true, false] {
        let mut encoder = Encoder::new(EncoderSettings::default());
        encoder.begin_session(SessionId(1), 1);
        encoder.packs = packs;
        let mut run = |name: &str, bytes: &[u8], epoch| {
            let begun = thread_time();
            let cut = cut(epoch, &pages, bytes, &[]);
            let counts = encoder.epoch(&cut, |_| Ok::<_, ()>(())).unwrap();
            let mib = bytes.len() as f64 / 1_048_576.0;
            println!(
                "encode, packs {packs}, {name}: {:.0} MiB/s, {:.3} of raw {counts:?}",
                mib / (thread_time() - begun).as_secs_f64(),
                counts.page_wire_bytes as f64 / bytes.len() as f64,
            );
        };
        run("full", &gather(&memory, &pages), 1);
        run("same", &gather(&memory, &pages), 2);
        for page in &pages {
            touch(&mut memory, usize::try_from(*page).unwrap(), &mut random);
        }
        run("delta", &gather(&memory, &pages), 3);
        run("zero", &vec![0; pages.len() * PAGE], 4);
    }
}

/// pgbench: the same few pages again and again, some new ones; a compile: pages that are used anew.
fn loads() {
    for (name, hot, anew) in [("like pgbench", 400, 40), ("like a compile", 60, 300)] {
        let mut random = fastrand::Rng::with_seed(2);
        let mut memory = memory();
        let mut encoder = Encoder::new(EncoderSettings::default());
        encoder.begin_session(SessionId(1), 1);
        let hot_pages = pick(1500, &mut random);
        let (mut wire, mut raw) = (0, 0);
        for epoch in 1..=200 {
            let mut pages: Vec<u64> = (0..hot).map(|_| hot_pages[random.usize(0..1500)]).collect();
            for page in &pages {
                touch(&mut memory, usize::try_from(*page).unwrap(), &mut random);
            }
            for _ in 0..anew {
                let (page, of) = (random.usize(0..RAM_PAGES), random.usize(0..RAM_PAGES));
                memory.copy_within(of * PAGE..(of + 1) * PAGE, page * PAGE);
                pages.push(page as u64);
            }
            pages.sort_unstable();
            pages.dedup();
            let bytes = gather(&memory, &pages);
            let cut = cut(epoch, &pages, &bytes, &[]);
            let counts = encoder.epoch(&cut, |_| Ok::<_, ()>(())).unwrap();
            wire += counts.page_wire_bytes;
            raw += (counts.same + counts.full + counts.delta) * PAGE as u64;
        }
        println!("{name}: {:.3} of raw on the wire", wire as f64 / raw as f64);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn loopback() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = Store::open(dir.path(), Limits::default()).unwrap();
    let store = Arc::new(Mutex::new(store));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (from, _) = listener.accept().unwrap();
    for stream in [&to, &from] {
        set_limits(stream, Duration::from_secs(20)).unwrap();
    }
    let served = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || {
            let out = from.try_clone().unwrap();
            serve(from, out, &store, |_| Ok(()), |_, _| true)
        })
    };
    let mut hello: Hello = hello(0);
    hello.blocks.truncate(1);
    hello.blocks[0].size_bytes = (RAM_PAGES * PAGE) as u64;
    let settings = Settings {
        packing: Packing::Always,
        ..Settings::default()
    };
    let from = to.try_clone().unwrap();
    let (mut sender, acks, _) = Sender::connect(from, to, &hello, SessionId(1), settings).unwrap();
    let (acked, reader) = acks.spawn().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut memory = memory();
    let begun = Instant::now();
    sender.start_copy(1).unwrap();
    sender.send_copy(0, &memory).unwrap();
    println!(
        "first copy of {} MiB: {:?}",
        RAM_PAGES / 256,
        begun.elapsed()
    );
    let mut state = vec![7; 80_000];
    let mut epoch = 0;
    for count in [500, 2000] {
        let (mut whole, mut apply) = (Vec::new(), Vec::new());
        let pages = pick(count, &mut random);
        for _ in 0..25 {
            for page in &pages {
                touch(&mut memory, usize::try_from(*page).unwrap(), &mut random);
            }
            random.fill(&mut state[..4000]);
            let bytes = gather(&memory, &pages);
            epoch += 1;
            let begun = Instant::now();
            sender
                .send_epoch(&cut(epoch, &pages, &bytes, &state))
                .unwrap();
            assert_eq!(acked.recv().unwrap(), Acked::Whole(Epoch(epoch)));
            whole.push(begun.elapsed());
            let mut store = store.lock().unwrap();
            let begun = thread_time();
            store.commit(Epoch(epoch)).unwrap();
            apply.push(thread_time() - begun);
        }
        println!(
            "{count} pages, medians of 25: whole after {:?}, {:?} of processor to commit and apply",
            median(whole),
            median(apply),
        );
    }
    sender.bye("over").unwrap();
    reader.join().unwrap();
    served.join().unwrap();
}

pub(super) fn all() {
    encoding();
    loads();
    loopback();
}
