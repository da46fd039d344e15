//! `/init` of the demo's guest: a ledger on the disk under test, told on the serial line.
//!
//! Built by `xtask` with `rustc` as one static program; it is all the user space the guest has. The
//! kernel's command line says what to do:
//! - `role=probe`: print `PROBE ok` and power off;
//! - `role=ledger run=R`: mount /dev/vda, append entries with one fsync each, print `LEDGER n` after
//!   each fsync, until the machine is killed;
//! - `role=verify run=R more=K`: mount, survey the ledger, print `VERIFIED …`, go on for K entries,
//!   unmount, print `LEDGER-DONE`, power off.
//!
//! Anything unexpected is one line, `LEDGER-FAIL why`, and the machine powers off.
//!
//! Every `CHECKPOINT_EVERY` entries the file `checkpoint` is replaced by write, fsync, rename. As the
//! next entry's fsync commits the rename too, the checkpoint and the ledger must agree after any
//! crash: this shows writes of different files that changed places.

mod entry;
mod system;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use system::{CommandLine, Outcome, attach, detach, load_modules, wait_for_disk};

use entry::{ENTRY_LEN, encode, survey};

const LEDGER: &str = "/mnt/ledger";
const CHECKPOINT: &str = "/mnt/checkpoint";
const CHECKPOINT_EVERY: u64 = 50;
/// The disk is filled no further than this, however long nobody kills the machine.
const ENTRIES_MAX: u64 = 65_536;

fn main() {
    if let Err(why) = run() {
        println!("LEDGER-FAIL {}", why.replace('\n', " "));
    }
    system::power_off();
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
    wait_for_disk(Path::new("/dev/vda"))?;
    attach("/dev/vda", "/mnt", "ext4", "data=ordered")?;
    match role {
        "ledger" => {
            println!("LEDGER-READY");
            append(line.number("run=")?, 0, ENTRIES_MAX)
        }
        "verify" => {
            let (run, more) = (line.number("run=")?, line.number("more=")?);
            let last = verify(run)?;
            append(run, last, last + more)?;
            detach("/mnt")?;
            println!("LEDGER-DONE");
            Ok(())
        }
        other => Err(format!("role={other} is not known")),
    }
}

/// Appends the entries `last + 1..=end`, each with its own fsync and its own line.
fn append(run: u64, last: u64, end: u64) -> Outcome<()> {
    let failed = |e: std::io::Error| format!("{LEDGER}: {e}");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(LEDGER)
        .map_err(failed)?;
    // What stands behind the last sound entry was promised to nobody.
    file.set_len(last * ENTRY_LEN as u64).map_err(failed)?;
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    for number in last + 1..=end {
        file.write_all(&encode(run, number)).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        println!("LEDGER {number}");
        if number.is_multiple_of(CHECKPOINT_EVERY) {
            checkpoint(run, number).map_err(|e| format!("{CHECKPOINT}: {e}"))?;
        }
    }
    Ok(())
}

fn checkpoint(run: u64, number: u64) -> std::io::Result<()> {
    let fresh = "/mnt/checkpoint.new";
    let mut file = File::create(fresh)?;
    file.write_all(&encode(run, number))?;
    file.sync_all()?;
    fs::rename(fresh, CHECKPOINT)
}

/// Surveys ledger and checkpoint; returns the last sound entry.
fn verify(run: u64) -> Outcome<u64> {
    let mut bytes = Vec::new();
    File::open(LEDGER)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(|e| format!("{LEDGER}: {e}"))?;
    let found = survey(&bytes, run);
    println!(
        "VERIFIED last={} torn={} blank={}",
        found.last, found.torn, found.blank
    );
    if found.torn == 0 {
        check_checkpoint(run, found.last)?;
    }
    Ok(found.last)
}

/// The checkpoint is whole, not newer than the ledger, and not older than the last entry allows.
fn check_checkpoint(run: u64, last: u64) -> Outcome<()> {
    let due = last.saturating_sub(1) / CHECKPOINT_EVERY * CHECKPOINT_EVERY;
    let bytes = match fs::read(CHECKPOINT) {
        Ok(bytes) => bytes,
        Err(_) if due == 0 => return Ok(()),
        Err(e) => return Err(format!("{CHECKPOINT}: {e}, but entry {last} is there")),
    };
    let word = bytes
        .get(16..24)
        .ok_or_else(|| format!("{CHECKPOINT} is cut short"))?;
    let number = word
        .iter()
        .rev()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    if bytes != encode(run, number) {
        return Err(format!("{CHECKPOINT} is damaged"));
    }
    if number < due || number > last {
        return Err(format!(
            "{CHECKPOINT} is of entry {number}, the ledger ends at {last}"
        ));
    }
    Ok(())
}
