//! What our own daemons say while they replicate, and how long the journal takes to drain.

use super::MIB;
use super::point::Bench;
use super::stack::Stack;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a journal may take to drain.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// The part of the backup's memory bound that grows with its journal.
const WINDOW_PART: &str = ": extents";

/// Median and 99th percentile in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Pair {
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

impl Pair {
    fn of(value: &Value) -> Self {
        Self {
            p50_us: value["p50_us"].as_u64(),
            p99_us: value["p99_us"].as_u64(),
        }
    }
}

/// What is seen under load.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looks {
    lag_half_bytes: Option<u64>,
    late: Option<(Pair, Pair)>,
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
    /// From a cut to the commit of its epoch, near the end of the load.
    pub(super) commit: Pair,
    /// How long a cut held answers to the guest.
    pub(super) hold: Pair,
    /// Memory that the backup may take for what is not applied yet.
    pub(super) window_bytes: u64,
    /// Bytes the backup wrote to its disk for each byte the load wrote.
    pub(super) written_ratio: f64,
}

impl Looks {
    /// Looks when it is time; `part` of the load is over.
    pub(super) fn look(&mut self, stack: &Stack, part: f64) -> Result<()> {
        if self.lag_half_bytes.is_none() && part > 0.5 {
            self.lag_half_bytes = Some(unapplied(&stack.status("back")?)?);
        }
        // Not at the end: epochs in which nobody writes are fast, and would count.
        if self.late.is_none() && part > 0.9 {
            self.late = Some(pairs(&stack.status("front")?));
        }
        Ok(())
    }
}

fn pairs(front: &Value) -> (Pair, Pair) {
    (
        Pair::of(&front["commit_latency"]),
        Pair::of(&front["cut_hold"]),
    )
}

fn unapplied(status: &Value) -> Result<u64> {
    status["unapplied_bytes"]
        .as_u64()
        .context("the status does not tell what is not applied")
}

/// The stated bound of what grows with the window.
fn window_bytes(status: &Value) -> u64 {
    let parts = status["bounds"]["memory"].as_array();
    parts
        .into_iter()
        .flatten()
        .filter(|part| {
            part["name"]
                .as_str()
                .is_some_and(|n| n.ends_with(WINDOW_PART))
        })
        .filter_map(|part| part["bytes_max"].as_u64())
        .sum()
}

impl Replica {
    /// Looks at both daemons, then waits until everything written is in the backup's image.
    pub(super) fn look(
        bench: &Bench,
        stack: &Stack,
        looks: Looks,
        load_end: Instant,
    ) -> Result<Self> {
        let front = stack.status("front")?;
        let back = stack.status("back")?;
        let number = |value: &Value| value.as_u64().context("a number of the status");
        let journal = &back["volumes"][0]["journal"];
        let last = number(&front["epochs"]["open"])?;
        let mut seen = Value::Null;
        let drained = bench.wait_for(DRAIN_MAX, || {
            seen = stack.status("back")?;
            // Epochs without writes are not applied one by one: what is not applied tells.
            let committed = seen["epochs"]["committed"].as_u64() >= Some(last);
            Ok(committed && unapplied(&seen)? == 0)
        })?;
        ensure!(
            drained,
            "the journal does not drain within {} s: epoch {last} was open at the end, {}, {} bytes not applied; \
             the primary is {}",
            DRAIN_MAX.as_secs(),
            seen["epochs"],
            seen["unapplied_bytes"],
            stack.status("front")?["group"]
        );
        let (commit, hold) = looks.late.unwrap_or_else(|| pairs(&front));
        Ok(Self {
            journal_bytes: number(&journal["bytes_total"])?,
            journal_used_bytes: number(&journal["bytes_used"])?,
            lag_half_bytes: looks.lag_half_bytes.unwrap_or(0),
            lag_end_bytes: unapplied(&back)?,
            drain_ms: u64::try_from(load_end.elapsed().as_millis())?,
            commit,
            hold,
            window_bytes: window_bytes(&back),
            written_ratio: 0.0,
        })
    }

    /// Whether what is not applied has stopped growing: in the second half by no more than a quarter of the
    /// journal.
    pub(super) fn is_flat(&self) -> bool {
        self.lag_end_bytes <= self.lag_half_bytes + self.journal_bytes / 4
    }

    /// For a line of progress.
    pub(super) fn line(&self) -> String {
        let (left, drain) = (self.lag_end_bytes / MIB, self.drain_ms);
        format!(", unapplied {left} MiB, drained in {drain} ms")
    }

    pub(super) fn json(&self) -> Value {
        json!({"journal_bytes": self.journal_bytes, "journal_used_bytes": self.journal_used_bytes,
            "lag_half_bytes": self.lag_half_bytes, "lag_end_bytes": self.lag_end_bytes,
            "drain_ms": self.drain_ms, "window_bytes": self.window_bytes,
            "commit_p50_us": self.commit.p50_us, "commit_p99_us": self.commit.p99_us,
            "cut_hold_p50_us": self.hold.p50_us, "cut_hold_p99_us": self.hold.p99_us,
            "backup_bytes_written_per_byte": self.written_ratio})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bound that counts the buffers as window hides a leak of 64 MiB.
    #[test]
    fn the_window_is_what_grows_with_the_journal() {
        let status = json!({"bounds": {"memory": [
            {"name": "volume 0: buffers", "bytes_max": 7}, {"name": "volume 0: extents", "bytes_max": 5}]}});
        assert_eq!(window_bytes(&status), 5);
        assert_eq!(window_bytes(&json!({})), 0);
    }

    /// A backlog that grows to the end says that apply was only put off.
    #[test]
    fn a_growing_lag_is_not_flat() {
        let mut replica = Replica {
            journal_bytes: 64 * MIB,
            journal_used_bytes: 0,
            lag_half_bytes: 10 * MIB,
            lag_end_bytes: 20 * MIB,
            drain_ms: 0,
            commit: Pair::default(),
            hold: Pair::default(),
            window_bytes: 0,
            written_ratio: 0.0,
        };
        assert!(replica.is_flat());
        replica.lag_end_bytes = 40 * MIB;
        assert!(!replica.is_flat());
    }
}
