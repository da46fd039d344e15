//! Making load: how long and how much, by fio, by a ring of our own, or by none at all.

use super::fio::{self, Extent, Outcome, To};
use super::plan::{Door, FIRST, PLAIN, Protected, SECOND, StackKind};
use super::point::{Bench, Point};
use super::stack::Stack;
use super::workload::{OFFERED_BYTES_PER_S, Pattern, Workload};
use super::{MIB, append, vhost};
use crate::harness::Process;
use anyhow::{Context, Result, anyhow, ensure};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a sustained point writes at least, in journals.
pub(super) const JOURNALS_MIN: u64 = 3;
/// What it aims at: rates of a burst are higher, and the target is to be met all the same.
const JOURNALS_AIM: u64 = 4;
/// The longest a sustained point may run, in seconds.
const SUSTAINED_S_MAX: u64 = 60;
/// Seconds that a load with commits to be timed is longer: epochs before it began count, too, and
/// are to be few beside those of the load.
const COMMIT_MORE_S: u64 = 2;
/// How long an idle stack is left alone, in seconds.
const IDLE_S: u64 = 1;
/// Epochs that the file of the append has room for.
const APPEND_EPOCHS: u64 = 16;

/// Load that runs.
pub(super) enum Running {
    Fio(Process),
    /// fio, and what runs beside it as long.
    Beside(Process, Companion),
    Thread(JoinHandle<Result<Outcome>>),
    /// None, until then.
    None(Instant),
}

/// A load that nobody asks for figures; it ends when this is dropped.
pub(super) struct Companion {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Outcome>>>,
}

impl Companion {
    fn start(plan: append::Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = Some(std::thread::spawn(move || append::run(&plan, &seen)));
        Self { stop, thread }
    }

    /// Ends it.
    ///
    /// # Errors
    /// It had failed, so nothing ran beside the load.
    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it is ended once")?;
        let outcome = thread
            .join()
            .map_err(|_| anyhow!("what ran beside the load has panicked"))?;
        outcome.map(drop).context("beside the load")
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The load has failed already, and says why.
            let _ = thread.join();
        }
    }
}

impl Running {
    pub(super) fn is_over(&mut self) -> bool {
        match self {
            Self::Fio(fio) | Self::Beside(fio, _) => !fio.is_running(),
            Self::Thread(thread) => thread.is_finished(),
            Self::None(until) => Instant::now() > *until,
        }
    }

    /// What it did, once it is over.
    ///
    /// # Errors
    /// It failed.
    pub(super) fn outcome(
        self,
        stack: &Stack,
        kind: StackKind,
        workload: Workload,
    ) -> Result<Outcome> {
        let mut fio = match self {
            Self::None(_) => return Ok(Outcome::default()),
            Self::Thread(thread) => {
                return thread
                    .join()
                    .map_err(|_| anyhow!("the load has panicked"))?;
            }
            Self::Fio(fio) => fio,
            Self::Beside(fio, companion) => {
                companion.end()?;
                fio
            }
        };
        let text = fio.text();
        let code = fio.wait(Duration::from_secs(1))?;
        ensure!(code == 0, "fio ended with {code}: {}", text.trim());
        let outcomes = fio::outcomes(&stack.report(), workload)?;
        if kind == StackKind::ThreeStreams {
            slowest(&outcomes)
        } else {
            outcomes.first().copied().context("fio has one job")
        }
    }
}

/// Streams that must all get through: the rate is that of the last one to end.
fn slowest(outcomes: &[Outcome]) -> Result<Outcome> {
    ensure!(outcomes.len() == 3, "fio has three streams");
    let longest = outcomes.iter().map(|o| o.runtime_ms).max().unwrap_or(0);
    let local = outcomes[0];
    Ok(Outcome {
        iops: local.requests as f64 * 1000.0 / longest.max(1) as f64,
        runtime_ms: longest,
        ..local
    })
}

/// Enough journals, and enough seconds if that is more, at this many bytes per second.
fn sustained(journal_bytes: u64, rate: f64, seconds: u64) -> Extent {
    let bytes = (rate * seconds as f64) as u64;
    let bytes = bytes.max(journal_bytes * JOURNALS_AIM);
    let bytes = bytes.next_multiple_of(MIB);
    Extent {
        seconds: SUSTAINED_S_MAX.max(seconds),
        expected_s: ((bytes as f64 / rate.max(1.0)).ceil() as u64).max(1),
        bytes: Some(bytes),
    }
}

impl Bench {
    /// How long and how much.
    pub(super) fn extent(
        &self,
        round: u32,
        workload: Workload,
        kind: StackKind,
        earlier: &[Point],
    ) -> Extent {
        let seconds = self.options.seconds;
        let rate = |wanted: &dyn Fn(StackKind) -> bool| {
            earlier
                .iter()
                .filter(|p| p.round == round && p.workload == workload && wanted(p.stack))
                .map(Point::bytes_per_s)
                .reduce(f64::max)
        };
        let timed = |seconds, bytes| Extent {
            seconds,
            expected_s: seconds,
            bytes,
        };
        match kind {
            StackKind::Protected(Protected {
                ack,
                sustained: true,
                ..
            }) => {
                let burst = rate(
                    &|stack| matches!(stack, StackKind::Protected(p) if p.ack == ack && !p.sustained),
                );
                // Without a burst to go by: slower than one copy.
                let rate = burst
                    .or_else(|| rate(&|stack| stack == StackKind::QemuNbd).map(|rate| rate / 2.0));
                let journal_bytes = self.options.sustained_journal_mib * MIB;
                sustained(journal_bytes, rate.unwrap_or(100e6), seconds)
            }
            StackKind::Protected(_) if workload.pattern == Pattern::Offered => {
                timed(seconds + COMMIT_MORE_S, None)
            }
            StackKind::Protected(_) if workload.writes() => {
                // Well inside the window: headers and the reserve of the front end count, too.
                let bytes = self.options.burst_journal_mib * MIB * 6 / 10;
                timed(seconds, Some(bytes))
            }
            StackKind::ThreeStreams => {
                // Each stream writes the same amount; a third of what one stream alone writes.
                let alone = rate(&|stack| stack == StackKind::Raw).unwrap_or(100e6);
                let bytes = (alone * seconds as f64 / 3.0) as u64;
                let block = workload.block_bytes;
                timed(seconds * 10, Some((bytes / block).max(64) * block))
            }
            _ if workload.pattern == Pattern::Idle => timed(IDLE_S, None),
            _ => timed(seconds, None),
        }
    }

    /// Starts it.
    pub(super) fn start_load(
        &self,
        stack: &Stack,
        kind: StackKind,
        workload: Workload,
        extent: Extent,
        seed: u64,
        journal_bytes_per_s: f64,
    ) -> Result<Running> {
        let stop = Arc::clone(&self.stop);
        if workload.pattern == Pattern::Idle {
            let until = Instant::now() + Duration::from_secs(extent.seconds);
            return Ok(Running::None(until));
        }
        if kind == StackKind::Append {
            let plan = self.append_plan(stack, extent, OFFERED_BYTES_PER_S, false)?;
            let run = move || append::run(&plan, &stop);
            return Ok(Running::Thread(std::thread::spawn(run)));
        }
        if matches!(kind, StackKind::Protected(p) if p.door == Door::VhostUser) {
            let plan = vhost::Plan {
                socket: stack.vhost.clone(),
                size_bytes: self.options.size_mib * MIB,
                workload,
                extent,
                seed,
            };
            let run = move || vhost::run(&plan, &stop);
            return Ok(Running::Thread(std::thread::spawn(run)));
        }
        if kind == StackKind::BesideJournal {
            let rate = journal_bytes_per_s as u64;
            let plan = self.append_plan(stack, extent, rate, true)?;
            let fio = self.start_fio(stack, kind, workload, extent, seed)?;
            return Ok(Running::Beside(fio, Companion::start(plan)));
        }
        let fio = self.start_fio(stack, kind, workload, extent, seed)?;
        Ok(Running::Fio(fio))
    }

    /// Bytes per second that a journal takes beside a load: those of our own burst in this round, or
    /// without one, of qemu-nbd.
    pub(super) fn journal_rate(&self, round: u32, workload: Workload, earlier: &[Point]) -> f64 {
        let of = |stack| {
            earlier
                .iter()
                .find(|p| p.round == round && p.workload == workload && p.stack == stack)
                .map(Point::bytes_per_s)
        };
        of(StackKind::BURST)
            .or_else(|| of(StackKind::QemuNbd))
            .unwrap_or(OFFERED_BYTES_PER_S as f64)
    }

    fn append_plan(
        &self,
        stack: &Stack,
        extent: Extent,
        bytes_per_s: u64,
        merges: bool,
    ) -> Result<append::Plan> {
        let epoch_ms = self.options.epoch_ms;
        let epoch_bytes = append::whole_blocks(bytes_per_s * epoch_ms / 1000);
        let file_bytes = (epoch_bytes * APPEND_EPOCHS).next_multiple_of(MIB);
        let file = stack.journal_file();
        write_zeros(&file, file_bytes)?;
        Ok(append::Plan {
            file,
            file_bytes,
            epoch: Duration::from_millis(epoch_ms),
            epoch_bytes,
            // Beside a load: until that ends.
            seconds: extent.seconds + if merges { 60 } else { 0 },
            merges,
        })
    }

    fn start_fio(
        &self,
        stack: &Stack,
        kind: StackKind,
        workload: Workload,
        extent: Extent,
        seed: u64,
    ) -> Result<Process> {
        let size = self.options.size_mib * MIB;
        let mut command = fio::command(&stack.report());
        let plain = self.dir.join(PLAIN);
        match kind {
            StackKind::Raw => {
                let to = To::File(&plain);
                fio::add_job(&mut command, "raw", workload, to, size, extent, seed);
            }
            StackKind::ThreeStreams => {
                let (first, second) = (self.dir.join(FIRST), self.dir.join(SECOND));
                let journal = stack.journal_file();
                let bytes = extent.bytes.context("streams have a length")?;
                write_zeros(&journal, bytes)?;
                // Apply has as much in flight as it likes; the journal is written in sequence.
                let apply = Workload {
                    depth: workload.depth.max(32),
                    ..workload
                };
                let append = Workload {
                    rw: "write",
                    block_bytes: workload.block_bytes.max(256 << 10),
                    depth: 2,
                    ..workload
                };
                let jobs = [
                    ("local", workload, &first, size),
                    ("apply", apply, &second, size),
                    ("journal", append, &journal, bytes),
                ];
                for (name, workload, path, size) in jobs {
                    let to = To::File(path);
                    fio::add_job(&mut command, name, workload, to, size, extent, seed);
                }
            }
            _ => {
                let to = To::Nbd(&stack.nbd);
                fio::add_job(&mut command, "nbd", workload, to, size, extent, seed);
            }
        }
        Process::start("fio", &mut command, &stack.fio_log())
    }
}

fn write_zeros(path: &Path, mut bytes: u64) -> Result<()> {
    use std::io::Write;
    let zeros = vec![0; 1 << 20];
    let mut file = std::fs::File::create(path)?;
    // Whole blocks of the stream that follows.
    bytes = bytes.next_multiple_of(zeros.len() as u64);
    while bytes > 0 {
        file.write_all(&zeros)?;
        bytes -= zeros.len() as u64;
    }
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sustained load that ends before the journal has gone round is a burst.
    #[test]
    fn sustained_loads_write_journals_or_last_long_enough() {
        let slow = sustained(64 * MIB, 10e6, 3);
        assert_eq!(slow.bytes, Some(64 * MIB * JOURNALS_AIM));
        assert_eq!(slow.expected_s, 27);
        let fast = sustained(64 * MIB, 1e9, 3);
        assert!(fast.bytes.unwrap() >= 3_000_000_000);
        assert_eq!(fast.expected_s, 4);
        assert!(sustained(MIB, 0.0, 3).expected_s >= 1);
    }
}
