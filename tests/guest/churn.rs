//! `/init` of the guest whose disk's daemon is killed, whose host dies, or which is moved.
//!
//! Built by `xtask` with `rustc` as one static program. The kernel's command line says what to do:
//! - `role=probe`: print `PROBE ok` and power off;
//! - `role=churn`: every thread writes blocks of its own part of /dev/vda, past the page cache, reads
//!   them back and compares; what was read stays in memory for a while and is compared once more. Now
//!   and then print `CHURN n r`, n operations so far, every thread's memory gone round r times; and
//!   `SAFE t n` when thread t has its answer to the flush of turn n. Until the machine is killed;
//! - `role=survey`: the blocks of every thread must be what they were after one of its turns; print
//!   `FOUND t n b`, thread t is at turn n and has b blocks written, then `LEDGER-DONE`, and power off;
//! - `role=points`: no churn; fio measures the disk (`points.rs`), and power off.
//!
//! With `settled=OFFSET+SIZE` and `live=OFFSET+SIZE`, in MiB, fio is there besides (`fio.rs`): the churn
//! begins when fio has written and flushed the settled area, which `FIO-SETTLED` says, and goes on while
//! it writes and verifies the live one. The survey lets fio verify the settled area, `FIO-VERIFIED`, and
//! write and verify the live one once, `FIO-WRITTEN`.
//!
//! `pause-ms=N` lets every thread of the churn wait between its turns, to leave the machine to fio.
//!
//! Anything unexpected is one line, `LEDGER-FAIL why`, and the machine powers off.

mod fio;
mod points;
#[allow(dead_code)] // Shared with the ledger, which uses the rest.
mod system;
mod turns;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fio::Area;
use system::{CommandLine, Outcome, load_modules, wait_for_disk};
use turns::{BLOCK_BYTES, BLOCKS, Block, Step, THREADS, Turns};

const DISK: &str = "/dev/vda";
/// O_DIRECT of open(2) on x86-64.
const DIRECT: i32 = 0x4000;
/// Blocks that stay in a thread's memory after they were read.
const KEPT: usize = 16;

static OPERATIONS: AtomicU64 = AtomicU64::new(0);
/// How often each thread has compared all that it keeps.
static ROUNDS: [AtomicU64; THREADS as usize] = [const { AtomicU64::new(0) }; THREADS as usize];

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
    let role = line.word("role=").unwrap_or("none");
    if role == "probe" {
        println!("PROBE ok");
        return Ok(());
    }
    load_modules()?;
    wait_for_disk(Path::new(DISK))?;
    let settled = Area::read(&line, "settled=")?;
    let live = Area::read(&line, "live=")?;
    match role {
        "churn" => {
            let pause = line.word("pause-ms=").map(|_| line.number("pause-ms="));
            let pause = Duration::from_millis(pause.transpose()?.unwrap_or(0));
            churn(settled, live, pause)
        }
        "survey" => survey(settled, live),
        "points" => points::measure(DISK, &line),
        other => Err(format!("role={other} is not known")),
    }
}

fn open() -> Outcome<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(DIRECT);
    options.open(DISK).map_err(|e| format!("{DISK}: {e}"))
}

fn churn(settled: Option<Area>, live: Option<Area>, pause: Duration) -> Outcome<()> {
    if let Some(area) = settled {
        fio::settle(DISK, area)?;
        println!("FIO-SETTLED");
    }
    if let Some(area) = live {
        in_background(move || fio::churn(DISK, area, None));
    }
    for thread in 0..THREADS {
        let disk = open()?;
        in_background(move || work(&disk, thread, pause));
    }
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let rounds = ROUNDS.iter().map(|r| r.load(Ordering::Relaxed)).min();
        let operations = OPERATIONS.load(Ordering::Relaxed);
        println!("CHURN {operations} {}", rounds.unwrap_or(0));
    }
}

/// Runs what never ends in order on a thread of its own.
fn in_background(work: impl FnOnce() -> Outcome<()> + Send + 'static) {
    std::thread::spawn(move || {
        let why = work().err();
        fail(&why.unwrap_or_else(|| "something ended that should not".to_owned()));
        system::power_off();
    });
}

/// What was read, where the disk put it, and what it is.
struct Kept {
    block: Box<Block>,
    number: u64,
    generation: u64,
}

impl Kept {
    fn nothing(number: u64) -> Self {
        Self {
            block: Block::zeros(),
            number,
            generation: 0,
        }
    }

    /// It is what it was.
    fn check(&self) -> Outcome<()> {
        let found = self.block.generation(self.number);
        let found = found.map_err(|why| format!("memory after a read: {why}"))?;
        if found == self.generation {
            return Ok(());
        }
        let (number, expected) = (self.number, self.generation);
        Err(format!(
            "memory after a read: block {number} is of turn {found}, not {expected}"
        ))
    }
}

/// The turns of one thread, for ever.
fn work(disk: &File, thread: u64, pause: Duration) -> Outcome<()> {
    let mut block = Block::zeros();
    let mut generations = [0; BLOCKS as usize];
    let mut kept: Vec<Kept> = (0..KEPT).map(|_| Kept::nothing(thread * BLOCKS)).collect();
    let mut reads = 0;
    for (turn, step) in Turns::of(thread) {
        let failed = |e: std::io::Error| format!("thread {thread}, {step:?} in turn {turn}: {e}");
        match step {
            Step::Read(slot) => {
                let number = thread * BLOCKS + slot;
                let place = &mut kept[reads % KEPT];
                place.check()?;
                let at = number * BLOCK_BYTES as u64;
                disk.read_exact_at(&mut place.block.0, at).map_err(failed)?;
                place.number = number;
                place.generation = generations[slot as usize];
                let found = place.block.generation(number)?;
                if found != place.generation {
                    let expected = place.generation;
                    return Err(format!("block {number} is of turn {found}, not {expected}"));
                }
                reads += 1;
                ROUNDS[thread as usize].store((reads / KEPT) as u64, Ordering::Relaxed);
            }
            Step::Write(slot) => {
                let number = thread * BLOCKS + slot;
                block.fill(number, turn);
                let at = number * BLOCK_BYTES as u64;
                disk.write_all_at(&block.0, at).map_err(failed)?;
                generations[slot as usize] = turn;
            }
            Step::Flush => {
                disk.sync_data().map_err(failed)?;
                println!("SAFE {thread} {turn}");
            }
        }
        OPERATIONS.fetch_add(1, Ordering::Relaxed);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Ok(())
}

fn survey(settled: Option<Area>, live: Option<Area>) -> Outcome<()> {
    let disk = open()?;
    let mut block = Block::zeros();
    for thread in 0..THREADS {
        let mut found = vec![0; BLOCKS as usize];
        for slot in 0..BLOCKS {
            let number = thread * BLOCKS + slot;
            let read = disk.read_exact_at(&mut block.0, number * BLOCK_BYTES as u64);
            read.map_err(|e| format!("block {number}: {e}"))?;
            found[slot as usize] = block.generation(number)?;
        }
        let turn = turns::reached(thread, &found)?;
        let written = found.iter().filter(|turn| **turn > 0).count();
        println!("FOUND {thread} {turn} {written}");
    }
    if let Some(area) = settled {
        fio::verify_settled(DISK, area)?;
        println!("FIO-VERIFIED");
    }
    if let Some(area) = live {
        fio::churn(DISK, area, Some(1))?;
        println!("FIO-WRITTEN");
    }
    println!("LEDGER-DONE");
    Ok(())
}
