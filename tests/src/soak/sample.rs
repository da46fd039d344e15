//! Samples of two daemons: memory from `/proc`, back-pressure from the primary's status.

use std::time::Duration;

use anyhow::{Context, Result};
use blockrep_host::ctl::Client;

use crate::harness::Pair;

/// Time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// One moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Resident bytes of primary and backup.
    pub resident_bytes: [u64; 2],
    /// Writes at the primary that wait for room at the backup.
    pub waiting: u64,
    /// Writes the primary has let in.
    pub writes: u64,
    /// Last committed epoch.
    pub committed: u64,
    /// State of the primary's group.
    pub state: String,
}

/// Memory of one daemon against its bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// What `status` said before.
    pub bound_bytes: u64,
    /// The kernel's own high-water mark.
    pub peak_bytes: u64,
    /// Median of the samples.
    pub median_bytes: u64,
    /// Samples taken.
    pub samples: usize,
}

/// Samples of a run.
#[derive(Debug)]
pub struct Samples {
    pids: [i32; 2],
    primary: Client,
    taken: Vec<Sample>,
    from: usize,
}

impl Samples {
    /// Of the daemons of a pair with these process ids, primary first.
    ///
    /// # Errors
    /// The primary does not answer.
    pub fn new(pair: &Pair, pids: [i32; 2]) -> Result<Self> {
        let primary = Client::connect(&pair.path("a.ctl"), "soak", ANSWER_LIMIT)?;
        Ok(Self {
            pids,
            primary,
            taken: Vec::new(),
            from: 0,
        })
    }

    /// Takes one.
    ///
    /// # Errors
    /// A daemon is gone or does not answer.
    pub fn take(&mut self) -> Result<()> {
        let status = self.primary.status()?;
        let waiting = status.bounds.queues.iter();
        let waiting = waiting.filter(|queue| queue.name.contains("writes waiting"));
        let [primary, backup] = self.pids;
        self.taken.push(Sample {
            resident_bytes: [
                memory_field(primary, "VmRSS:")?,
                memory_field(backup, "VmRSS:")?,
            ],
            waiting: waiting.map(|queue| queue.used).sum(),
            writes: status.volumes.iter().map(|v| v.counters.writes).sum(),
            committed: status.epochs.committed.unwrap_or(0),
            state: status.group.stated.state.to_string(),
        });
        Ok(())
    }

    /// From here on samples count for the share of back-pressure.
    pub fn begin(&mut self) {
        self.from = self.taken.len();
    }

    /// The last sample.
    ///
    /// # Panics
    /// Before the first.
    #[must_use]
    pub fn last(&self) -> &Sample {
        self.taken.last().expect("a sample was taken")
    }

    /// Samples since [`Samples::begin`] with writes waiting, in percent.
    #[must_use]
    pub fn pressure_percent(&self) -> f64 {
        let counted = &self.taken[self.from..];
        let pressed = counted.iter().filter(|sample| sample.waiting > 0).count();
        100.0 * pressed as f64 / counted.len().max(1) as f64
    }

    /// Memory of both, against their bounds. The high-water mark is read now: the processes must
    /// still be the ones that were sampled.
    #[must_use]
    pub fn memory(&self, bounds: [u64; 2]) -> [Memory; 2] {
        [0, 1].map(|at| {
            let mut resident: Vec<u64> = self.taken.iter().map(|s| s.resident_bytes[at]).collect();
            resident.sort_unstable();
            let highest = resident.last().copied().unwrap_or(0);
            // Gone already: the samples are what is left.
            let peak = memory_field(self.pids[at], "VmHWM:").unwrap_or(0);
            Memory {
                bound_bytes: bounds[at],
                peak_bytes: peak.max(highest),
                median_bytes: resident.get(resident.len() / 2).copied().unwrap_or(0),
                samples: resident.len(),
            }
        })
    }
}

/// A field of `/proc/PID/status` in bytes; proc_pid_status(5) gives it in kB.
fn memory_field(pid: i32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {field}"))? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A memory bound compared with a field misread as zero would always hold.
    #[test]
    fn own_memory_is_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let resident = memory_field(pid, "VmRSS:").unwrap();
        let highest = memory_field(pid, "VmHWM:").unwrap();
        assert!(resident > 1 << 16 && highest >= 1 << 16);
        assert!(memory_field(pid, "VmNone:").is_err());
    }
}
