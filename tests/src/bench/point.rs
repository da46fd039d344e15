//! One point: a fresh stack, the load, and what was seen.

use super::fio::{self, Extent, Outcome, To};
use super::plan::{FIRST, PLAIN, SECOND, StackKind, Workload};
use super::sample::{self, Counters};
use super::stack::Stack;
use super::{DiskOptions, MIB};
use crate::harness::Process;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long a journal may take to drain.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// What a sustained point writes at least, in journals.
pub(super) const JOURNALS_MIN: u64 = 3;
/// What it aims at: rates of a burst are higher, and the target is to be met all the same.
const JOURNALS_AIM: u64 = 4;
/// The longest a sustained point may run, in seconds.
const SUSTAINED_S_MAX: u64 = 60;

/// What all points share.
#[derive(Debug)]
pub(super) struct Bench {
    /// Images stand here; canonical.
    pub(super) dir: PathBuf,
    pub(super) options: DiskOptions,
    pub(super) stop: Arc<AtomicBool>,
}

/// What a replicating stack of ours says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replica {
    pub(super) journal_bytes: u64,
    /// In use when the load ended.
    pub(super) journal_used_bytes: u64,
    /// Committed or not, and not yet in the backup's image: half way and at the end of the load.
    pub(super) lag_half_bytes: u64,
    pub(super) lag_end_bytes: u64,
    /// From the end of the load until everything was applied.
    pub(super) drain_ms: u64,
    pub(super) commit_p50_us: Option<u64>,
    pub(super) commit_p99_us: Option<u64>,
    /// Bytes the backup wrote to its disk for each byte the load wrote.
    pub(super) written_ratio: f64,
}

/// What a process cost, drain included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) cpu_us_per_request: f64,
    pub(super) resident_bytes: u64,
}

/// One measurement.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) round: u32,
    pub(super) workload: Workload,
    pub(super) stack: StackKind,
    pub(super) load: Outcome,
    pub(super) front: Option<Cost>,
    pub(super) back: Option<Cost>,
    pub(super) replica: Option<Replica>,
}

impl Bench {
    /// Measures one point; `earlier` are those already measured.
    ///
    /// # Errors
    /// The stack or fio fails.
    pub(super) fn point(
        &self,
        round: u32,
        workload: Workload,
        kind: StackKind,
        earlier: &[Point],
    ) -> Result<Point> {
        let mut stack = Stack::start(self, kind)?;
        let before = (read(&stack.front)?, read(&stack.back)?);
        let seed = u64::from(round) * 1000 + 17;
        let extent = self.extent(round, workload, kind, earlier);
        let mut lag_half_bytes = 0;
        let protected = matches!(kind, StackKind::Protected { .. });
        let half = Instant::now() + Duration::from_secs(extent.seconds) / 2;
        let mut looked = !protected;
        let mut fio = self.start_fio(&stack, kind, workload, extent, seed)?;
        let limit = Duration::from_secs(extent.seconds * 2 + 60);
        let ended = self.wait_for(limit, || {
            if !looked && Instant::now() > half {
                looked = true;
                lag_half_bytes = lag(&stack.status("back")?)?;
            }
            Ok(!fio.is_running())
        })?;
        ensure!(ended, "fio does not end within {} s", limit.as_secs());
        let end = Instant::now();
        let text = fio.text();
        let code = fio.wait(Duration::from_secs(1))?;
        ensure!(code == 0, "fio ended with {code}: {}", text.trim());
        let outcomes = fio::outcomes(&stack.report(), workload)?;
        let load = if kind == StackKind::ThreeStreams {
            slowest(&outcomes)?
        } else {
            *outcomes.first().context("fio has one job")?
        };
        let mut replica = if protected {
            Some(self.replica(&stack, end, lag_half_bytes)?)
        } else {
            None
        };
        let after = (read(&stack.front)?, read(&stack.back)?);
        if let (Some(replica), Some(before), Some(after)) = (&mut replica, before.1, after.1) {
            let written = after.written_bytes - before.written_bytes;
            replica.written_ratio = written as f64 / load.bytes as f64;
        }
        let cost =
            |process: &Option<Process>, before, after| cost(process, before, after, load.requests);
        let point = Point {
            round,
            workload,
            stack: kind,
            load,
            front: cost(&stack.front, before.0, after.0)?,
            back: cost(&stack.back, before.1, after.1)?,
            replica,
        };
        for process in [&mut stack.front, &mut stack.back].into_iter().flatten() {
            ensure!(
                process.is_running(),
                "{} ended under load: {}",
                process.name,
                process.text().trim()
            );
        }
        Ok(point)
    }

    /// How long and how much.
    fn extent(&self, round: u32, workload: Workload, kind: StackKind, earlier: &[Point]) -> Extent {
        let seconds = self.options.seconds;
        let rate = |wanted: &dyn Fn(StackKind) -> bool| {
            earlier
                .iter()
                .filter(|p| p.round == round && p.workload == workload && wanted(p.stack))
                .map(Point::bytes_per_s)
                .reduce(f64::max)
        };
        match kind {
            StackKind::Protected {
                sustained: false, ..
            } if workload.writes() => Extent {
                seconds,
                // Well inside the window: headers and the reserve of the front end count, too.
                bytes: Some(self.options.burst_journal_mib * MIB * 6 / 10),
            },
            StackKind::Protected {
                ack,
                sustained: true,
            } => {
                let aim = self.options.sustained_journal_mib * MIB * JOURNALS_AIM;
                let burst = rate(&|stack| {
                    stack
                        == StackKind::Protected {
                            ack,
                            sustained: false,
                        }
                });
                let needed = burst.map_or(seconds, |rate| (aim as f64 / rate).ceil() as u64);
                Extent {
                    seconds: needed.clamp(seconds, SUSTAINED_S_MAX.max(seconds)),
                    bytes: None,
                }
            }
            StackKind::ThreeStreams => {
                // Each stream writes the same amount; a third of what one stream alone writes.
                let alone = rate(&|stack| stack == StackKind::Raw).unwrap_or(100e6);
                let bytes = (alone * seconds as f64 / 3.0) as u64;
                let block = workload.block_bytes;
                Extent {
                    seconds: seconds * 10,
                    bytes: Some((bytes / block).max(64) * block),
                }
            }
            _ => Extent {
                seconds,
                bytes: None,
            },
        }
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

    /// Looks at both daemons, then waits until everything written is in the backup's image.
    fn replica(&self, stack: &Stack, end: Instant, lag_half_bytes: u64) -> Result<Replica> {
        let front = stack.status("front")?;
        let back = stack.status("back")?;
        let number = |value: &Value| value.as_u64().context("a number of the status");
        let journal = &back["volumes"][0]["journal"];
        let last = number(&front["epochs"]["open"])?;
        let mut seen = Value::Null;
        let drained = self.wait_for(DRAIN_MAX, || {
            seen = stack.status("back")?;
            // Epochs without writes are not applied one by one: the lag tells.
            let committed = seen["epochs"]["committed"].as_u64() >= Some(last);
            Ok(committed && lag(&seen)? == 0)
        })?;
        ensure!(
            drained,
            "the journal does not drain within {} s: epoch {last} was open at the end, {}, {}; \
             the primary is {}",
            DRAIN_MAX.as_secs(),
            seen["epochs"],
            seen["lag"],
            stack.status("front")?["group"]
        );
        Ok(Replica {
            journal_bytes: number(&journal["bytes_total"])?,
            journal_used_bytes: number(&journal["bytes_used"])?,
            lag_half_bytes,
            lag_end_bytes: lag(&back)?,
            drain_ms: u64::try_from(end.elapsed().as_millis())?,
            commit_p50_us: front["commit_latency"]["p50_us"].as_u64(),
            commit_p99_us: front["commit_latency"]["p99_us"].as_u64(),
            written_ratio: 0.0,
        })
    }
}

fn write_zeros(path: &std::path::Path, mut bytes: u64) -> Result<()> {
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

fn lag(status: &Value) -> Result<u64> {
    status["lag"]["bytes"]
        .as_u64()
        .context("the status has no lag")
}

fn read(process: &Option<Process>) -> Result<Option<Counters>> {
    process.as_ref().map(sample::counters).transpose()
}

fn cost(
    process: &Option<Process>,
    before: Option<Counters>,
    after: Option<Counters>,
    requests: u64,
) -> Result<Option<Cost>> {
    let (Some(process), Some(before), Some(after)) = (process, before, after) else {
        return Ok(None);
    };
    Ok(Some(Cost {
        cpu_us_per_request: (after.cpu_us - before.cpu_us) as f64 / requests as f64,
        resident_bytes: sample::resident_bytes(process)?,
    }))
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

impl Point {
    /// Bytes of the load per second.
    pub(super) fn bytes_per_s(&self) -> f64 {
        self.load.iops * self.workload.block_bytes as f64
    }

    /// Journals' worth of data that a protected point wrote.
    pub(super) fn journals(&self) -> Option<f64> {
        self.replica
            .map(|r| self.load.bytes as f64 / r.journal_bytes.max(1) as f64)
    }

    /// A line of progress.
    pub(super) fn line(&self) -> String {
        let lag = self.replica.map_or(String::new(), |r| {
            format!(
                ", lag {} MiB, drained in {} ms",
                r.lag_end_bytes / MIB,
                r.drain_ms
            )
        });
        format!(
            "round {} {:18} {:27} {:8.0} IOPS, p99 {:.0} us{lag}",
            self.round + 1,
            self.workload.name(),
            self.stack.name(),
            self.load.iops,
            self.load.p99_us
        )
    }

    /// All of it, for machines.
    pub(super) fn json(&self) -> Value {
        let cost = |cost: Option<Cost>| {
            cost.map(|c| {
                json!({"cpu_us_per_request": c.cpu_us_per_request,
                    "resident_bytes": c.resident_bytes})
            })
        };
        let replica = self.replica.map(|r| {
            json!({"journal_bytes": r.journal_bytes, "journal_used_bytes": r.journal_used_bytes,
                "lag_half_bytes": r.lag_half_bytes, "lag_end_bytes": r.lag_end_bytes,
                "drain_ms": r.drain_ms, "commit_p50_us": r.commit_p50_us,
                "commit_p99_us": r.commit_p99_us,
                "backup_bytes_written_per_byte": r.written_ratio})
        });
        json!({"round": self.round + 1, "workload": self.workload.name(),
            "stack": self.stack.name(), "iops": self.load.iops,
            "bytes_per_s": self.bytes_per_s(), "requests": self.load.requests,
            "bytes": self.load.bytes, "runtime_ms": self.load.runtime_ms,
            "p50_us": self.load.p50_us, "p99_us": self.load.p99_us,
            "p999_us": self.load.p999_us, "front": cost(self.front), "back": cost(self.back),
            "replica": replica})
    }
}
