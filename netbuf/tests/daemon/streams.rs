//! What could go wrong: a connection that dies of the epochs, a byte that is lost or changed on the way, an
//! answer that is out before its epoch is safe, a stream that stands still.
//!
//! Guest and far host are namespaces with real TCP stacks. A segment that is held counts against the queue of
//! the socket it came from, if that is of the same kernel, and TCP then sends next to nothing. A real guest's
//! sockets are in the guest; here a router, whose frames are no socket's, stands for that border.
//!
//! ```text
//!   guest e0 ══ e1 router g0 ══ g1 … bridge … w1 far host
//! ```
//! A bulk transfer goes out and a far client asks the
//! guest one thing after another, while every 25 ms an epoch is cut and, 5 ms later, released, as by a
//! checkpointer whose backup needs that long. `NETBUF_TEST_STREAM_SECONDS` says for how long. The figures are
//! for the reader; only that every wait ends is asserted, and what can be counted.

use crate::namespace::{PATIENCE, Room, ip};
use crate::site::{Site, in_namespace, note, number_of_environment, of_epoch};
use blkback_proto::ctl::{Answer, Request};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EPOCH: Duration = Duration::from_millis(25);
const BACKUP: Duration = Duration::from_millis(5);
const CHUNK_BYTES: usize = 64 << 10;
const REQUEST_BYTES: usize = 200;
const ANSWER_BYTES: usize = 1000;

/// What the threads share.
#[derive(Default)]
struct Progress {
    over: AtomicBool,
    bulk_bytes: AtomicU64,
    answers: AtomicU64,
}

/// Of the answers, when the client is done.
#[derive(Default)]
struct Answers {
    took: Vec<Duration>,
    resent: u32,
}

/// Of the bulk, when its end has come.
#[derive(Default)]
struct Bulk {
    longest_gap: Duration,
    resent: u32,
}

/// Every wait of the stream ends, with a failure.
fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Segments that this end has sent more than once.
fn resent(stream: &TcpStream) -> u32 {
    // SAFETY: the kernel writes at most `length` bytes of plain numbers into `info`.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let done = libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        );
        assert_eq!(done, 0);
        info.tcpi_total_retrans
    }
}

/// The bytes of the bulk from `at` on: each eight are a number of their own.
fn fill(chunk: &mut [u8], at: u64) {
    for (word, place) in chunk.chunks_exact_mut(8).zip(at / 8..) {
        word.copy_from_slice(&place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

/// The guest sends until it is over; how much, and what it had to send again.
fn send_bulk(mut stream: TcpStream, progress: &Progress) -> (u64, u32) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut sent = 0;
    // At least once, however late a busy host lets them connect.
    while sent == 0 || !progress.over.load(Ordering::SeqCst) {
        fill(&mut chunk, sent);
        stream.write_all(&chunk).unwrap();
        sent += chunk.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The far host has all of it.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    (sent, resent(&stream))
}

/// The far host reads to the end; the longest time without a byte.
fn read_bulk(mut stream: TcpStream, progress: &Progress) -> Duration {
    let (mut chunk, mut wanted) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let (mut seen, mut filled) = (0u64, 0);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let got = stream.read(&mut chunk[filled..]).unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if got == 0 {
            assert_eq!(filled, 0, "a chunk that ends early");
            return longest;
        }
        filled += got;
        progress.bulk_bytes.fetch_add(got as u64, Ordering::SeqCst);
        if filled == CHUNK_BYTES {
            fill(&mut wanted, seen);
            assert!(chunk == wanted, "the bytes from {seen} on are others");
            seen += CHUNK_BYTES as u64;
            filled = 0;
        }
    }
}

/// The answer to a request: its number and what follows from it.
fn answer_to(request: &[u8]) -> [u8; ANSWER_BYTES] {
    std::array::from_fn(|i| request[i % REQUEST_BYTES].wrapping_add((i / REQUEST_BYTES) as u8))
}

/// The guest answers until the client ends.
fn serve(mut stream: TcpStream) -> u32 {
    let mut request = [0; REQUEST_BYTES];
    loop {
        let mut first = [0];
        if stream.read(&mut first).unwrap() == 0 {
            return resent(&stream);
        }
        request[0] = first[0];
        stream.read_exact(&mut request[1..]).unwrap();
        stream.write_all(&answer_to(&request)).unwrap();
    }
}

fn ask_until_over(mut stream: TcpStream, progress: &Progress) -> Vec<Duration> {
    let mut took = Vec::new();
    while took.is_empty() || !progress.over.load(Ordering::SeqCst) {
        let number = took.len() as u64;
        let mut request = [0x5a; REQUEST_BYTES];
        request[..8].copy_from_slice(&number.to_be_bytes());
        let asked = Instant::now();
        stream.write_all(&request).unwrap();
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).unwrap();
        assert!(
            answer == answer_to(&request),
            "answer {number} is another's"
        );
        took.push(asked.elapsed());
        progress.answers.fetch_add(1, Ordering::SeqCst);
    }
    took
}

/// Something of TCP's in a host of its own, on a thread of its own.
fn on<T: Send + 'static>(
    host: &Arc<Room>,
    connect: impl FnOnce() -> TcpStream + Send + 'static,
    work: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let host = Arc::clone(host);
    std::thread::spawn(move || work(bounded(host.run(connect))))
}

/// A listener of a host, and its end of the one connection to it.
fn listening<T: Send + 'static>(
    host: &Room,
    address: &'static str,
    work: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = host.run(move || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || work(bounded(listener.accept().unwrap().0)))
}

struct Streams {
    /// With them go their devices.
    _hosts: [Arc<Room>; 3],
    bulk: JoinHandle<(u64, u32)>,
    bulk_seen: JoinHandle<Duration>,
    server: JoinHandle<u32>,
    client: JoinHandle<Vec<Duration>>,
}

impl Streams {
    /// Moves the guest's and the witness's device into hosts of their own, and begins.
    fn begin(progress: &Arc<Progress>) -> Self {
        let hosts = [(); 3].map(|()| Arc::new(Room::new()));
        let [guest, router, far] = &hosts;
        let (guest_thread, router_thread) = (guest.thread, router.thread);
        ip(&format!(
            "link set g0 netns {router_thread}\nlink set w1 netns {}",
            far.thread
        ));
        router.run(move || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            ip(&format!(
                "link add e1 type veth peer name e0 netns {guest_thread}"
            ));
        });
        let addresses: [(_, _, &str); 3] = [
            (
                router,
                "10.9.0.1/24 dev g0",
                "addr add 10.8.0.1/24 dev e1\nlink set e1 up",
            ),
            (
                guest,
                "10.8.0.2/24 dev e0",
                "route add default via 10.8.0.1",
            ),
            (
                far,
                "10.9.0.2/24 dev w1",
                "route add 10.8.0.0/24 via 10.9.0.1",
            ),
        ];
        for (host, first, more) in addresses {
            let device = first.rsplit(' ').next().unwrap();
            host.run(move || {
                ip(&format!(
                    "link set lo up\naddr add {first}\nlink set {device} up\n{more}"
                ));
            });
        }
        crate::namespace::settled();
        let shared = [0; 3].map(|_| Arc::clone(progress));
        let [at_reader, at_sender, at_client] = shared;
        Self {
            bulk_seen: listening(far, "10.9.0.2:7", move |s| read_bulk(s, &at_reader)),
            server: listening(guest, "10.8.0.2:8", serve),
            bulk: on(
                guest,
                || TcpStream::connect("10.9.0.2:7").unwrap(),
                move |stream| send_bulk(stream, &at_sender),
            ),
            client: on(
                far,
                || TcpStream::connect("10.8.0.2:8").unwrap(),
                move |stream| ask_until_over(stream, &at_client),
            ),
            _hosts: hosts,
        }
    }

    /// Those that connected have; the others end with them.
    fn ended(&self) -> bool {
        self.bulk.is_finished() && self.client.is_finished()
    }

    fn results(self, progress: &Progress) -> (Bulk, Answers) {
        let (sent, again) = self.bulk.join().expect("the guest's bulk");
        let took = self.client.join().expect("the client");
        let bulk = Bulk {
            longest_gap: self.bulk_seen.join().expect("the far end of the bulk"),
            resent: again,
        };
        assert_eq!(progress.bulk_bytes.load(Ordering::SeqCst), sent);
        let resent = self.server.join().expect("the guest's server");
        (bulk, Answers { took, resent })
    }
}

/// Cuts and releases until the streams have ended, `seconds` after the first; how many epochs.
fn checkpoint(site: &Site, streams: &Streams, progress: &Progress, seconds: u64) -> u64 {
    let mut client = site.connect().unwrap();
    let mut ask = |request: Request| match client.request(&request, PATIENCE).unwrap() {
        Answer::NetCut(_) | Answer::NetRelease(_) => (),
        other => panic!("{other:?}"),
    };
    let begun = Instant::now();
    let (mut next, mut told) = (begun, 0);
    let end = Duration::from_secs(seconds);
    for epoch in 2.. {
        // A host that was late goes on from here, and does not catch up.
        next = (next + EPOCH).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        ask(Request::NetCut(of_epoch(epoch)));
        std::thread::sleep(BACKUP);
        ask(Request::NetRelease(of_epoch(epoch)));
        let since = begun.elapsed();
        if since >= end {
            progress.over.store(true, Ordering::SeqCst);
        }
        if streams.ended() {
            return epoch;
        }
        assert!(since < end + 3 * PATIENCE, "the streams do not end");
        if since.as_secs() / 60 > told {
            told = since.as_secs() / 60;
            note(&format!("minute {told}: {}", so_far(epoch, progress)));
        }
    }
    unreachable!("epochs do not end")
}

fn so_far(epochs: u64, progress: &Progress) -> String {
    let bytes = progress.bulk_bytes.load(Ordering::SeqCst);
    let answers = progress.answers.load(Ordering::SeqCst);
    format!(
        "{epochs} epochs, {} MiB of bulk, {answers} answers",
        bytes >> 20
    )
}

#[test]
fn a_bulk_transfer_and_requests_live_through_epochs() {
    in_namespace(|| {
        let seconds = number_of_environment("NETBUF_TEST_STREAM_SECONDS", 20);
        let site = Site::started(&[]);
        site.cut(1);
        site.release(1);
        let progress = Arc::new(Progress::default());
        let begun = Instant::now();
        let streams = Streams::begin(&progress);
        let epochs = checkpoint(&site, &streams, &progress, seconds);
        let ran = begun.elapsed().as_secs_f64();
        let dropped = site.status().guests[0].interfaces[0].dropped_frames;
        let (bulk, answers) = streams.results(&progress);
        let Answers { mut took, resent } = answers;
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        note(&format!(
            "{ran:.0} s: {}, {:.1} MB/s; answer after {:.1} ms in the median, {:.1} at 99 of 100, {:.1} at most; \
             longest time without a byte of bulk {:.0} ms; segments sent again: bulk {}, answers {resent}; \
             dropped at the limit: {dropped:?}",
            so_far(epochs, &progress),
            progress.bulk_bytes.load(Ordering::SeqCst) as f64 / 1e6 / ran,
            at(0.5),
            at(0.99),
            at(1.0),
            bulk.longest_gap.as_secs_f64() * 1e3,
            bulk.resent,
        ));
        // An answer is said after the cut that its request was let in by, and so leaves with a later one.
        let count = took.len() as u64;
        assert!(
            count <= epochs,
            "{count} answers in {epochs} epochs: some left early"
        );
    });
}
