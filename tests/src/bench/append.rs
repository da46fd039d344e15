//! What an epoch costs at least: its bytes appended to a file and synced, once per epoch; by itself, or
//! beside another load to see what that loses to it.
//!
//! The file is written before, as journals are: an append into space that was only reserved is
//! dearer.

use super::fio::Outcome;
use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What O_DIRECT is content with everywhere.
const ALIGNMENT: u64 = 4096;
/// Bytes of one write.
const CHUNK_BYTES: u64 = 256 << 10;

/// What to write, and how often.
#[derive(Debug)]
pub(super) struct Plan {
    /// Holds zeros already.
    pub(super) file: PathBuf,
    pub(super) file_bytes: u64,
    pub(super) epoch: Duration,
    pub(super) epoch_bytes: u64,
    pub(super) seconds: u64,
    /// Epochs that came due while another was synced share one write and sync, as commits do.
    pub(super) merges: bool,
}

/// A write never crosses the end of the file: it begins again there.
fn chunks(at: u64, bytes: u64, file_bytes: u64) -> Vec<(u64, u64)> {
    let mut chunks = Vec::new();
    let (mut at, mut left) = (at % file_bytes, bytes);
    while left > 0 {
        let length = left.min(CHUNK_BYTES).min(file_bytes - at);
        chunks.push((at, length));
        at = (at + length) % file_bytes;
        left -= length;
    }
    chunks
}

/// Bytes as whole blocks.
pub(super) fn whole_blocks(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// Epochs that are due when the oldest of them is that late.
fn due(late: Duration, epoch: Duration) -> u32 {
    let missed = late.as_nanos() / epoch.as_nanos().max(1);
    u32::try_from(missed).unwrap_or(u32::MAX - 1) + 1
}

/// Runs for that long; a request is an epoch.
///
/// # Errors
/// The file cannot be written past the page cache.
pub(super) fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    let file = File::options()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&plan.file)
        .context("the file of the append")?;
    let memory = vec![0x5a_u8; usize::try_from(CHUNK_BYTES + ALIGNMENT)?];
    let skip = memory.as_ptr().align_offset(usize::try_from(ALIGNMENT)?);
    let block = &memory[skip..];
    let mut took_ns = Histogram::<u64>::new(3)?;
    let begin = Instant::now();
    let end = begin + Duration::from_secs(plan.seconds);
    let (mut next, mut at, mut epochs) = (begin, 0, 0_u64);
    while next < end && !stop.load(Ordering::Relaxed) {
        let since = Instant::now();
        let due = if plan.merges {
            due(since.saturating_duration_since(next), plan.epoch)
        } else {
            1
        };
        let bytes = plan.epoch_bytes * u64::from(due);
        for (at, length) in chunks(at, bytes, plan.file_bytes) {
            file.write_all_at(&block[..usize::try_from(length)?], at)?;
        }
        file.sync_data()?;
        took_ns.record(u64::try_from(since.elapsed().as_nanos())?)?;
        at += bytes;
        epochs += u64::from(due);
        next += plan.epoch * due;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    ensure!(epochs > 0, "the append ended before it began");
    let at = |part| took_ns.value_at_quantile(part) as f64 / 1000.0;
    Ok(Outcome {
        iops: epochs as f64 / begin.elapsed().as_secs_f64(),
        requests: epochs,
        bytes: epochs * plan.epoch_bytes,
        runtime_ms: u64::try_from(begin.elapsed().as_millis())?,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reference that writes less, or past what is zeroed, is cheaper or dearer than it should be.
    #[test]
    fn an_epoch_is_written_whole_and_within_the_file() {
        let file_bytes = 5 << 20;
        for at in [0, 4096, file_bytes - 4096, 7 * file_bytes + 8192] {
            let bytes = whole_blocks(2_500_000);
            let chunks = chunks(at, bytes, file_bytes);
            assert_eq!(chunks.iter().map(|(_, length)| length).sum::<u64>(), bytes);
            assert!(chunks.iter().all(|(at, length)| at + length <= file_bytes));
            assert!(chunks.iter().all(|(at, _)| at % ALIGNMENT == 0));
            assert_eq!(chunks[0].0, at % file_bytes);
        }
    }

    /// A reference that forgets epochs it was too late for would cost less than it stands for.
    #[test]
    fn late_epochs_are_made_up_for() {
        let (epoch, ms) = (Duration::from_millis(25), Duration::from_millis);
        assert_eq!(due(ms(0), epoch), 1);
        assert_eq!(due(ms(24), epoch), 1);
        assert_eq!(due(ms(25), epoch), 2);
        assert_eq!(due(ms(110), epoch), 5);
    }

    /// The whole loop, on a file as small as it gets.
    #[test]
    fn epochs_are_counted() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let plan = Plan {
            file: dir.path().join("append"),
            file_bytes: 1 << 20,
            epoch: Duration::from_millis(400),
            epoch_bytes: 600 << 10,
            seconds: 1,
            merges: false,
        };
        std::fs::write(&plan.file, vec![0; 1 << 20]).unwrap();
        let outcome = run(&plan, &AtomicBool::new(false)).unwrap();
        assert_eq!(outcome.bytes, outcome.requests * plan.epoch_bytes);
        assert_eq!(std::fs::metadata(&plan.file).unwrap().len(), 1 << 20);
    }
}
