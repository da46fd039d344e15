//! `/init` of the guest that survives its host: it answers each transaction over TCP after its fdatasync.
//!
//! Built by `xtask` with `rustc` as one static program. The kernel's command line:
//! `role=teller run=R address=A port=P [pages-per-second=N]`: gives eth0 the address, listens, prints
//! `LEDGER-READY`, and appends what it is asked to the ledger of run R on /dev/vda (`book.rs`), until the machine is
//! killed. `role=probe` prints `PROBE ok`. What clients say and get: `receipts.rs`.
//!
//! Beside that it rewrites N known pages a second (`stir.rs`). What differs between memory and disk or within memory
//! goes into every answer from then on, and once to the serial line. Anything else unexpected is one line,
//! `LEDGER-FAIL why`, and the machine powers off.

mod book;
mod network;
#[allow(dead_code)] // Shared with the client, which uses the rest.
mod receipts;
mod stir;
#[allow(dead_code)] // Shared with the ledger, which uses the rest.
mod system;

use std::ffi::{c_int, c_long};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use book::Book;
use receipts::{APPEND, AUDIT, Answer, READ, REQUEST_HEAD, Request, SPOILT};
use stir::Stir;
use system::{CommandLine, Outcome};

const DISK: &str = "/dev/vda";
/// 16 MiB that are rewritten all the time.
const PAGES_EXPONENT: u32 = 12;
const STIR_EVERY: Duration = Duration::from_millis(10);
const CLOCK_REALTIME: c_int = 0;
const CLOCK_MONOTONIC: c_int = 1;

/// What was found to differ so far, as flags of [`receipts`].
static FOUND: AtomicU32 = AtomicU32::new(0);

/// What all connections share.
struct Shared {
    book: Mutex<Book>,
    stir: Mutex<Stir>,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut [c_long; 2]) -> c_int;
}

fn main() {
    if let Err(why) = run() {
        fail(&why);
    }
    system::power_off();
}

/// One line, whole, whichever threads speak at the same time.
fn fail(why: &str) {
    println!("LEDGER-FAIL {}", why.replace('\n', " "));
}

fn run() -> Outcome<()> {
    system::attach_kernel_trees()?;
    let line = CommandLine::read()?;
    if line.word("role=") == Some("probe") {
        println!("PROBE ok");
        return Ok(());
    }
    system::load_modules()?;
    system::wait_for_disk(Path::new(DISK))?;
    let address = line.word("address=").ok_or("address= is missing")?;
    let address: Ipv4Addr = address.parse().map_err(|e| format!("{address}: {e}"))?;
    let port = u16::try_from(line.number("port=")?).map_err(|e| format!("port=: {e}"))?;
    network::bring_up("eth0", address)?;
    let shared = Arc::new(Shared {
        book: Mutex::new(Book::new(DISK, disk_bytes()?, line.number("run=")?)?),
        stir: Mutex::new(Stir::new(PAGES_EXPONENT)),
    });
    if line.word("pages-per-second=").is_some() {
        let rate = line.number("pages-per-second=")?;
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || stir_for_ever(&shared.stir, rate));
    }
    let listener = TcpListener::bind((address, port)).map_err(|e| format!("listen: {e}"))?;
    println!("LEDGER-READY");
    for stream in listener.incoming() {
        let stream = stream.map_err(|e| format!("accept: {e}"))?;
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || match serve(stream, &shared) {
            Ok(()) => {}
            Err(End::Connection(why)) => println!("TELLER connection: {why}"),
            Err(End::Machine(why)) => {
                fail(&why);
                system::power_off();
            }
        });
    }
    Ok(())
}

/// The kernel counts in sectors of 512 bytes, whatever the disk has.
fn disk_bytes() -> Outcome<u64> {
    let path = "/sys/block/vda/size";
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let sectors: u64 = text.trim().parse().map_err(|e| format!("{path}: {e}"))?;
    Ok(sectors * 512)
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic aborts: there is nobody to leave it poisoned.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn found(flags: u32, why: impl FnOnce() -> String) {
    if FOUND.fetch_or(flags, Ordering::Relaxed) & flags != flags {
        println!("TELLER differs: {}", why());
    }
}

fn stir_for_ever(stir: &Mutex<Stir>, pages_per_second: u64) {
    let since = Instant::now();
    let mut done = 0;
    loop {
        std::thread::sleep(STIR_EVERY);
        let due = since.elapsed().as_millis() as u64 * pages_per_second / 1000;
        // What a busy machine is behind is not made up for.
        done = done.max(due.saturating_sub(pages_per_second / 10));
        while done < due {
            if let Err(why) = locked(stir).step() {
                return found(SPOILT, || why);
            }
            done += 1;
        }
    }
}

/// Why a connection is served no further.
enum End {
    Connection(String),
    Machine(String),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Connection(error.to_string())
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Result<(), End> {
    stream.set_nodelay(true)?;
    let mut frame = Vec::new();
    loop {
        let mut head = [0; REQUEST_HEAD];
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        frame.resize(Request::frame_len(&head).map_err(End::Connection)?, 0);
        frame[..REQUEST_HEAD].copy_from_slice(&head);
        stream.read_exact(&mut frame[REQUEST_HEAD..])?;
        let request = Request::decode(&frame).map_err(End::Connection)?;
        let answer = answer(&request, shared)?;
        stream.write_all(&answer.encode())?;
    }
}

fn answer(request: &Request, shared: &Shared) -> Result<Answer, End> {
    let mut book = locked(&shared.book);
    let (position, chain) = book.last();
    let mut answer = Answer {
        kind: request.kind,
        number: request.number,
        nonce: request.nonce,
        position,
        chain,
        chain_disk: 0,
        monotonic_ns: 0,
        real_ns: 0,
        flags: 0,
        payload: Vec::new(),
    };
    match request.kind {
        APPEND => {
            let receipt = book.append(request).map_err(End::Machine)?;
            found(receipt.flags, || {
                format!(
                    "before record {}, flags {}",
                    receipt.position, receipt.flags
                )
            });
            answer.position = receipt.position;
            answer.chain = receipt.chain;
            answer.chain_disk = receipt.chain_disk;
        }
        READ => {
            let records = book.read(request.number, request.nonce);
            answer.payload = records.map_err(End::Machine)?;
        }
        AUDIT => {
            let (fault, chain_disk) = book.audit().map_err(End::Machine)?;
            let spoilt = locked(&shared.stir).check_all().err();
            let words: Vec<String> = fault.into_iter().chain(spoilt).collect();
            answer.chain_disk = chain_disk;
            answer.payload = words.join("; ").into_bytes();
        }
        other => return Err(End::Connection(format!("kind {other} is not known"))),
    }
    answer.flags = FOUND.load(Ordering::Relaxed);
    answer.monotonic_ns = clock_ns(CLOCK_MONOTONIC);
    answer.real_ns = clock_ns(CLOCK_REALTIME);
    Ok(answer)
}

fn clock_ns(clock: c_int) -> u64 {
    let mut time: [c_long; 2] = [0; 2];
    // SAFETY: the kernel writes one timespec, two longs on x86-64, which is `time`.
    unsafe { clock_gettime(clock, &raw mut time) };
    time[0].cast_unsigned() * 1_000_000_000 + time[1].cast_unsigned()
}
