//! The path of a guest's request allocates nothing once it is warm, and makes few system calls.
//!
//! A primary runs in this process, on threads whose allocations are counted; its backup is a process
//! of its own, and so it is the real path: NBD socket, engine, image, record, link. A few
//! allocations belong to epochs and records and are bounded by those, not by requests.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

#[path = "warm/calls.rs"]
mod calls;
mod warm;

use calls::Calls;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use warm::{BLOCK_BYTES, DEPTH, MEASURED, Pair, WARM_UP, allocations, block_of};

const PATIENCE: Duration = Duration::from_secs(60);

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

    /// That many requests, so many at a time.
    fn run(&mut self, kind: u16, requests: u64, depth: u64) {
        let data = [7; BLOCK_BYTES];
        let payload = if kind == 1 { &data[..] } else { &[] };
        for number in 0..requests + depth {
            if number >= depth {
                self.answer(kind == 0);
            }
            if number < requests {
                let offset = block_of(number) * BLOCK_BYTES as u64;
                self.send(kind, number, offset, payload);
            }
        }
    }
}

#[test]
fn a_request_allocates_nothing() {
    let pair = Pair::start("--nbd");
    let mut client = Client::connect(&pair.socket());
    // Under this loss policy the first write is answered once the backup follows.
    for kind in [1, 0] {
        client.run(kind, WARM_UP, DEPTH);
    }
    let writes = allocations(|| client.run(1, MEASURED, DEPTH));
    let reads = allocations(|| client.run(0, MEASURED, DEPTH));
    println!("{MEASURED} writes: {writes} allocations; {MEASURED} reads: {reads}");
    // Records and epochs have theirs, and how many of those there are depends on the machine.
    let few = MEASURED / 2;
    assert!(writes < few, "{writes} allocations for {MEASURED} writes");
    assert!(reads < few, "{reads} allocations for {MEASURED} reads");
    count_calls(&mut client);
    drop(client);
    pair.stop();
}

/// A wake-up, a receive or a send too many for each request shows here, whatever the machine does:
/// at depth 1 a request is a receive, an operation of the disk and a reply, each with a call of its
/// own.
fn count_calls(client: &mut Client) {
    const REQUESTS: u64 = 5000;
    let mut calls = match Calls::of_thread("volume-0") {
        Ok(calls) => calls,
        Err(why) => return println!("system calls are not counted here (root can): {why}"),
    };
    // Epochs, records and the timer have theirs: a tenth of a call a request is far above that.
    for (name, kind, depth, tenths_max) in [
        ("writes", 1, 1, 38),
        ("reads", 0, 1, 38),
        ("writes", 1, DEPTH, 15),
        ("reads", 0, DEPTH, 15),
    ] {
        let made = calls.during(|| client.run(kind, REQUESTS, depth));
        println!("{REQUESTS} {name} at depth {depth}: {made} system calls");
        assert!(made > 0, "nothing was counted");
        assert!(
            made * 10 <= REQUESTS * tenths_max,
            "{made} system calls for {REQUESTS} {name} at depth {depth}"
        );
    }
}
