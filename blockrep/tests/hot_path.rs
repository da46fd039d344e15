//! The path of a guest's request allocates nothing once it is warm.
//!
//! A primary runs in this process, on threads whose allocations are counted; its backup is a process
//! of its own, and so it is the real path: NBD socket, engine, image, record, link. A few
//! allocations belong to epochs and records and are bounded by those, not by requests.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockrep::cli::{self, Start};
use blockrep::daemon;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_CLIENT.try_with(Cell::get).unwrap_or(true) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as asked.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as asked.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BLOCK_BYTES: usize = 4096;
const WARM_UP: u64 = 3000;
const MEASURED: u64 = 20_000;
const DEPTH: u64 = 32;
const PATIENCE: Duration = Duration::from_secs(60);

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Just enough of NBD: one export, simple replies.
struct Client(UnixStream);

impl Client {
    fn connect(path: &Path) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME with the default name.
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Self(stream)
    }

    fn send(&mut self, kind: u16, cookie: u64, offset: u64, data: &[u8]) {
        let mut message = [0; 28 + BLOCK_BYTES];
        message[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
        message[6..8].copy_from_slice(&kind.to_be_bytes());
        message[8..16].copy_from_slice(&cookie.to_be_bytes());
        message[16..24].copy_from_slice(&offset.to_be_bytes());
        message[24..28].copy_from_slice(&(BLOCK_BYTES as u32).to_be_bytes());
        message[28..28 + data.len()].copy_from_slice(data);
        self.0.write_all(&message[..28 + data.len()]).unwrap();
    }

    fn answer(&mut self, with_data: bool) {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!(head[4..8], [0; 4], "an error instead of an answer");
        if with_data {
            self.0.read_exact(&mut [0; BLOCK_BYTES]).unwrap();
        }
    }

    /// That many requests, [`DEPTH`] at a time.
    fn run(&mut self, kind: u16, requests: u64, blocks: u64) {
        let data = [7; BLOCK_BYTES];
        let payload = if kind == 1 { &data[..] } else { &[] };
        for number in 0..requests + DEPTH {
            if number >= DEPTH {
                self.answer(kind == 0);
            }
            if number < requests {
                let block = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks;
                self.send(kind, number, block * BLOCK_BYTES as u64, payload);
            }
        }
    }
}

#[test]
fn a_request_allocates_nothing() {
    IS_CLIENT.set(true);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let blocks = 4096u64;
    for name in ["a.img", "b.img"] {
        let image = std::fs::File::create(at(name)).unwrap();
        image.set_len(blocks * BLOCK_BYTES as u64).unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let backup = Command::new(env!("CARGO_BIN_EXE_blockrep-backup"))
        .args(["--listen", &address.to_string(), "--journal-size", "256MiB"])
        .arg("--image")
        .arg(at("b.img"))
        .arg("--control")
        .arg(at("b.ctl"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _backup = Ended(backup);
    let spec = format!("remus:{address}|aio:{}", at("a.img").display());
    let nbd = format!("unix:{}", at("a.nbd").display());
    let control = at("a.ctl").display().to_string();
    let args = [
        "blockrep",
        "-n",
        &spec,
        "--nbd",
        &nbd,
        "--control",
        &control,
    ]
    .into_iter()
    .chain([
        "--ack",
        "local",
        "--on-backup-loss",
        "pause",
        "--assume-identical",
    ]);
    let Ok(Start::Run(config)) = cli::primary(args.map(Into::into)) else {
        panic!("these flags are right");
    };
    let primary = std::thread::spawn(move || daemon::run_primary(&config));

    let mut client = Client::connect(&at("a.nbd"));
    let count = |client: &mut Client, kind, requests| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        client.run(kind, requests, blocks);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    // Under this loss policy the first write is answered once the backup follows.
    for kind in [1, 0] {
        count(&mut client, kind, WARM_UP);
    }
    let writes = count(&mut client, 1, MEASURED);
    let reads = count(&mut client, 0, MEASURED);
    println!("{MEASURED} writes: {writes} allocations; {MEASURED} reads: {reads}");
    // Records and epochs have theirs, and how many of those there are depends on the machine.
    let few = MEASURED / 2;
    assert!(writes < few, "{writes} allocations for {MEASURED} writes");
    assert!(reads < few, "{reads} allocations for {MEASURED} reads");
    drop(client);
    // SAFETY: a signal to this process, which has a handler for it.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
    primary.join().unwrap().unwrap();
}
