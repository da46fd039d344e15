//! `/init` of the guest under whose feet the disk's daemon is killed and started again.
//!
//! Built by `xtask` with `rustc` as one static program. The kernel's command line says what to do:
//! - `role=probe`: print `PROBE ok` and power off;
//! - `role=churn`: every thread writes blocks of its own part of /dev/vda, past the page cache, reads
//!   them back and compares; print `CHURN n` now and then, n operations so far, until the machine is
//!   killed;
//! - `role=survey`: every block of the disk must be whole, whichever generation it is; print
//!   `CHURN n`, n blocks that were ever written, then `LEDGER-DONE`, and power off.
//!
//! Anything unexpected is one line, `LEDGER-FAIL why`, and the machine powers off.

#[allow(dead_code)] // Shared with the ledger, which uses the rest.
mod system;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use system::{CommandLine, Outcome, load_modules, wait_for_disk};

const DISK: &str = "/dev/vda";
/// O_DIRECT of open(2) on x86-64.
const DIRECT: i32 = 0x4000;
const THREADS: u64 = 32;
/// Blocks of one thread.
const BLOCKS: u64 = 128;
const BLOCK_BYTES: usize = 4096;
const WORDS: usize = BLOCK_BYTES / 8;
/// Writes of one thread between two flushes.
const FLUSH_EVERY: u64 = 64;

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// A block at an address the disk takes without a copy.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

impl Block {
    /// What generation `generation` of the block holds: no two words of the disk are equal.
    fn fill(&mut self, number: u64, generation: u64) {
        for (at, word) in self.0.chunks_exact_mut(8).enumerate() {
            let value = (generation << 32) | (number << 12) | at as u64;
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
    }

    /// The generation that all words agree upon; 0 for a block of zeros.
    fn generation(&self, number: u64) -> Outcome<u64> {
        let generation = self.word(0) >> 32;
        for at in 0..WORDS {
            let expected = match generation {
                0 => 0,
                _ => (generation << 32) | (number << 12) | at as u64,
            };
            if self.word(at) != expected {
                let found = self.word(at);
                return Err(format!(
                    "block {number} word {at}: {found:x}, not {expected:x}"
                ));
            }
        }
        Ok(generation)
    }
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
    let role = line.word("role=").unwrap_or("none");
    if role == "probe" {
        println!("PROBE ok");
        return Ok(());
    }
    load_modules()?;
    wait_for_disk(Path::new(DISK))?;
    match role {
        "churn" => churn(),
        "survey" => survey(),
        other => Err(format!("role={other} is not known")),
    }
}

fn open() -> Outcome<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(DIRECT);
    options.open(DISK).map_err(|e| format!("{DISK}: {e}"))
}

fn churn() -> Outcome<()> {
    for thread in 0..THREADS {
        let disk = open()?;
        std::thread::spawn(move || {
            if let Err(why) = work(&disk, thread) {
                fail(&why);
                system::power_off();
            }
        });
    }
    loop {
        std::thread::sleep(Duration::from_millis(100));
        println!("CHURN {}", OPERATIONS.load(Ordering::Relaxed));
    }
}

/// Writes and reads the blocks of one thread, for ever.
fn work(disk: &File, thread: u64) -> Outcome<()> {
    let mut block = Box::new(Block([0; BLOCK_BYTES]));
    let mut generations = [0; BLOCKS as usize];
    let mut random = thread * 2 + 1;
    for turn in 1.. {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let slot = (random >> 33) % BLOCKS;
        let number = thread * BLOCKS + slot;
        let at = number * BLOCK_BYTES as u64;
        let failed = |e: std::io::Error| format!("block {number}: {e}");
        if random >> 62 == 0 {
            disk.read_exact_at(&mut block.0, at).map_err(failed)?;
            let found = block.generation(number)?;
            let expected: u64 = generations[slot as usize];
            if found != expected {
                return Err(format!(
                    "block {number} is of generation {found}, not {expected}"
                ));
            }
        } else {
            block.fill(number, turn);
            disk.write_all_at(&block.0, at).map_err(failed)?;
            generations[slot as usize] = turn;
            if turn % FLUSH_EVERY == 0 {
                disk.sync_data().map_err(failed)?;
            }
        }
        OPERATIONS.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn survey() -> Outcome<()> {
    let disk = open()?;
    let mut block = Box::new(Block([0; BLOCK_BYTES]));
    let mut written = 0;
    for number in 0..THREADS * BLOCKS {
        let at = number * BLOCK_BYTES as u64;
        let read = disk.read_exact_at(&mut block.0, at);
        read.map_err(|e| format!("block {number}: {e}"))?;
        written += u64::from(block.generation(number)? > 0);
    }
    println!("CHURN {written}");
    println!("LEDGER-DONE");
    Ok(())
}
