//! What the guest's clock and the pauses of its checkpointer come to, and what must hold of both. Pure.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The share of the time that an adaptive interval leaves to pauses by default, and what it may be above it: it follows
/// what was measured, half a second later.
const SHARE_PERCENT: f64 = 5.0;
const SHARE_TOLERANCE: f64 = 1.0;
/// By so much of the time the guest's clock may go wrong by itself: its kernel measured its counter when it booted, and a
/// time service sets the host's clock meanwhile, each within 500 millionths.
const RATE: f64 = 0.001;
/// Between two looks at the figures of different daemons.
const LOOK_NS: f64 = 50e6;
/// What the guest's clock was, compared with this machine's. In nanoseconds; a difference has two bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) sent: f64,
    pub(super) received: f64,
    pub(super) guest: f64,
}

/// Between the first and the second.
pub(super) type Bounds = (f64, f64);

impl Sample {
    /// How much more this machine's clock shows.
    fn offset(&self) -> Bounds {
        (self.sent - self.guest, self.received - self.guest)
    }

    /// How far the guest fell behind from `first` to this.
    pub(super) fn behind(&self, first: &Self) -> Bounds {
        let (then, now) = (first.offset(), self.offset());
        (now.0 - then.1, now.1 - then.0)
    }
}

/// What the pauses of some time took: at least, without the orders at both ends, within which the guest stops and goes on;
/// and at most.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pauses {
    count: u64,
    sum: (f64, f64),
}

impl Pauses {
    /// Of those that `told` has, of a timeline that has all.
    pub(super) fn between(told: &[Value], first: &Sample, last: &Sample) -> Result<Self> {
        let mut pauses = Self::default();
        let mut before = None;
        for one in told {
            let number = |value: &Value| value.as_f64().unwrap_or(0.0);
            let seq = one["seq"].as_u64().context("a checkpoint without seq")?;
            if before.is_some_and(|before| before + 1 != seq) {
                bail!("the timeline has lost checkpoints before {seq}: nothing can be said");
            }
            before = Some(seq);
            let (us, begun) = (&one["us"], number(&one["unix_ms"]) * 1e6);
            let whole = number(&us["pause"]) * 1e3;
            let least = whole - (number(&us["stop"]) + number(&us["cont"])) * 1e3;
            let ended = begun + whole;
            if ended > first.sent && begun < last.received {
                pauses.count += 1;
                pauses.sum.1 += whole;
            }
            if begun > first.received && ended < last.sent {
                pauses.sum.0 += least.max(0.0);
            }
        }
        Ok(pauses)
    }
}

/// What the death of the host added.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub(super) behind: Bounds,
    /// As the promotion tells, since protection began; and what it was when it was first asked.
    pub(super) told_ns: f64,
    pub(super) told_first_ns: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    pub(super) time: f64,
    pub(super) behind: Bounds,
    pub(super) pauses: Pauses,
    pub(super) outage: Option<Outage>,
}

impl Figures {
    fn share_percent(&self) -> f64 {
        100.0 * self.pauses.sum.1 / self.time
    }

    /// What must hold and does not. Differences are compared by their bounds.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let own = self.time * RATE;
        let (least, most) = self.pauses.sum;
        if self.behind.1 < least - own || self.behind.0 > most + own {
            faults.push(format!(
                "the drift of {} is not what pauses of {} explain",
                span(self.behind),
                span(self.pauses.sum)
            ));
        }
        if self.share_percent() > SHARE_PERCENT + SHARE_TOLERANCE {
            faults.push(format!(
                "the guest stood still {:.2} % of the time, and {SHARE_PERCENT} % (+ {SHARE_TOLERANCE}) are meant",
                self.share_percent()
            ));
        }
        if let Some(outage) = &self.outage {
            let told = outage.told_ns - outage.told_first_ns;
            let slack = own + LOOK_NS;
            // What is told of pauses is the most that they took.
            let less = most - least;
            if outage.behind.1 < told - less - slack || outage.behind.0 > told + slack {
                faults.push(format!(
                    "after the failover it is {} behind, and {} were told",
                    span(outage.behind),
                    ms(told)
                ));
            }
        }
        faults
    }

    pub(super) fn print(&self) {
        println!(
            "\nin {:.1} s the guest's clock fell {} behind; {} pauses took {}, {:.2} % of the time",
            self.time / 1e9,
            span(self.behind),
            self.pauses.count,
            span(self.pauses.sum),
            self.share_percent()
        );
        println!(
            "bounds: drift within the pauses and {} of its own; pauses {SHARE_PERCENT} % (+ {SHARE_TOLERANCE})",
            ms(self.time * RATE)
        );
        if let Some(outage) = &self.outage {
            println!(
                "after the failover it is {} behind; the promotion told {} since the first answer",
                span(outage.behind),
                ms(outage.told_ns - outage.told_first_ns)
            );
        }
    }
}

pub(super) fn ms(ns: f64) -> String {
    format!("{:.1} ms", ns / 1e6)
}

pub(super) fn span((least, most): Bounds) -> String {
    format!("{:.1} to {}", least / 1e6, ms(most))
}

#[cfg(test)]
mod tests {
    //! A bound that nothing can break would call any clock a good one.

    use super::*;
    use serde_json::json;

    fn sample(at_ms: f64, behind_ms: f64) -> Sample {
        Sample {
            sent: at_ms * 1e6,
            received: (at_ms + 10.0) * 1e6,
            guest: (at_ms + 5.0 - behind_ms) * 1e6,
        }
    }

    /// Pauses of 10 ms, of which the orders take 2, every 200 ms for 100 s.
    fn told() -> Vec<Value> {
        (0..500u64)
            .map(|seq| json!({"seq": seq + 1, "unix_ms": 1_000 + 200 * seq, "us": {"stop": 1000, "cont": 1000, "pause": 10_000}}))
            .collect()
    }

    fn figures(behind_ms: f64, outage_ms: f64) -> Figures {
        let (first, last) = (sample(900.0, 0.0), sample(101_000.0, behind_ms));
        Figures {
            time: last.sent - first.sent,
            behind: last.behind(&first),
            pauses: Pauses::between(&told(), &first, &last).unwrap(),
            outage: Some(Outage {
                behind: sample(103_000.0, outage_ms).behind(&first),
                told_ns: 7_000e6,
                told_first_ns: 0.0,
            }),
        }
    }

    #[test]
    fn drift_is_explained_by_pauses_or_it_is_a_fault() {
        for (behind_ms, outage_ms, faults) in [
            (5_000.0, 7_000.0, 0),
            (4_000.0, 6_100.0, 0),
            (3_800.0, 7_000.0, 1),
            (5_200.0, 7_000.0, 1),
            (5_000.0, 7_300.0, 1),
            (5_000.0, 5_700.0, 1),
            (0.0, 0.0, 2),
        ] {
            let found = figures(behind_ms, outage_ms).faults();
            assert_eq!(found.len(), faults, "{behind_ms} {outage_ms}: {found:?}");
        }
    }

    #[test]
    fn too_many_pauses_and_lost_ones_are_told() {
        let mut figures = figures(5_000.0, 7_000.0);
        assert_eq!(figures.pauses.count, 500);
        figures.time = figures.pauses.sum.1 * 16.0;
        assert!(
            figures
                .faults()
                .iter()
                .any(|fault| fault.contains("stood still"))
        );
        let mut told = told();
        told.remove(7);
        let ends = (sample(900.0, 0.0), sample(101_000.0, 0.0));
        assert!(Pauses::between(&told, &ends.0, &ends.1).is_err());
    }
}
