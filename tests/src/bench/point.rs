//! One point: a fresh stack, the load, and what was seen.

use super::DiskOptions;
use super::fio::Outcome;
use super::plan::StackKind;
use super::replica::{Looks, Replica};
use super::sample::{self, Counters};
use super::stack::Stack;
use super::workload::Workload;
use crate::harness::Process;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What all points share.
#[derive(Debug)]
pub(super) struct Bench {
    /// Images stand here; canonical.
    pub(super) dir: PathBuf,
    pub(super) options: DiskOptions,
    pub(super) stop: Arc<AtomicBool>,
}

/// What a process cost, drain included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Unless there were no requests.
    pub(super) cpu_us_per_request: Option<f64>,
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
    /// The stack or the load fails.
    pub(super) fn point(
        &self,
        round: u32,
        workload: Workload,
        kind: StackKind,
        earlier: &[Point],
    ) -> Result<Point> {
        let mut stack = Stack::start(self, kind, workload)?;
        let before = (read(&stack.front)?, read(&stack.back)?);
        let seed = u64::from(round) * 1000 + 17;
        let extent = self.extent(round, workload, kind, earlier);
        let protected = matches!(kind, StackKind::Protected(_));
        let mut looks = Looks::default();
        let begin = Instant::now();
        let journal_rate = self.journal_rate(round, workload, earlier);
        let mut load = self.start_load(&stack, kind, workload, extent, seed, journal_rate)?;
        let limit = Duration::from_secs(extent.seconds * 2 + 60);
        let ended = self.wait_for(limit, || {
            if protected {
                let part = begin.elapsed().as_secs_f64() / extent.expected_s.max(1) as f64;
                looks.look(&stack, part)?;
            }
            Ok(load.is_over())
        })?;
        ensure!(ended, "the load does not end within {} s", limit.as_secs());
        let end = Instant::now();
        let load = load.outcome(&stack, kind, workload)?;
        let mut replica = if protected {
            Some(Replica::look(self, &stack, looks, end)?)
        } else {
            None
        };
        let after = (read(&stack.front)?, read(&stack.back)?);
        if let (Some(replica), Some(before), Some(after)) = (&mut replica, before.1, after.1) {
            let written = after.written_bytes - before.written_bytes;
            replica.written_ratio = written as f64 / load.bytes.max(1) as f64;
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
        cpu_us_per_request: (requests > 0)
            .then(|| (after.cpu_us - before.cpu_us) as f64 / requests as f64),
        resident_bytes: sample::resident_bytes(process)?,
    }))
}

impl Point {
    /// Bytes of the load per second.
    pub(super) fn bytes_per_s(&self) -> f64 {
        self.load.iops * self.workload.block_bytes as f64
    }

    /// Requests per second if the time of the drain counts, too.
    pub(super) fn settled_iops(&self) -> Option<f64> {
        let replica = self.replica.as_ref()?;
        let ms = self.load.runtime_ms + replica.drain_ms;
        Some(self.load.requests as f64 * 1000.0 / ms.max(1) as f64)
    }

    /// Journals' worth of data that a protected point wrote.
    pub(super) fn journals(&self) -> Option<f64> {
        self.replica
            .map(|r| self.load.bytes as f64 / r.journal_bytes.max(1) as f64)
    }

    /// A line of progress.
    pub(super) fn line(&self) -> String {
        format!(
            "round {} {:23} {:28} {:8.0} IOPS, p99 {:.0} us{}",
            self.round + 1,
            self.workload.name(),
            self.stack.name(),
            self.load.iops,
            self.load.p99_us,
            self.replica.map_or(String::new(), |r| r.line())
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
        json!({"round": self.round + 1, "workload": self.workload.name(),
            "stack": self.stack.name(), "iops": self.load.iops,
            "bytes_per_s": self.bytes_per_s(), "requests": self.load.requests,
            "bytes": self.load.bytes, "runtime_ms": self.load.runtime_ms,
            "p50_us": self.load.p50_us, "p99_us": self.load.p99_us,
            "p999_us": self.load.p999_us, "front": cost(self.front), "back": cost(self.back),
            "replica": self.replica.map(|r| r.json())})
    }
}
