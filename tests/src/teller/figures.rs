//! What the client's stream shows in numbers.

use serde_json::{Value, json};

use super::stream::{Ended, Stream};
use super::witness::Ledger;

/// Points of the guest's clock that are kept for the chart.
const CLOCK_POINTS: usize = 400;

/// Times in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// Records in the ledger whose answer the client never saw.
    pub(super) unanswered_found: Option<u64>,
    /// Connections that were lost: 0 or 1, there is only one.
    pub(super) resets: u64,
    pub(super) per_second: f64,
    pub(super) latency_ns: Percentiles,
    /// Of what was answered before the longest gap: while it was protected, where that is the failover.
    pub(super) latency_before_gap_ns: Percentiles,
    pub(super) longest_gap_ns: u64,
    /// When that gap began, Unix time.
    pub(super) longest_gap_unix_ns: u64,
    /// What the guest's clocks have gone less than the client's, first answer to last.
    pub(super) monotonic_lost_ns: i64,
    pub(super) real_lost_ns: i64,
    pub(super) observed_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Percentiles {
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

impl Percentiles {
    pub(super) fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |part: usize| {
            let index = (values.len() * part).div_ceil(100).saturating_sub(1);
            values.get(index).copied().unwrap_or(0)
        };
        Self {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

impl Figures {
    pub(super) fn of(stream: &Stream, ledger: Option<&Ledger>) -> Self {
        let answers = &stream.answers;
        let latencies = answers.iter().zip(&stream.sent);
        let latencies = latencies.map(|(answer, sent)| answer.at_ns.saturating_sub(sent.at_ns));
        let gaps = answers
            .windows(2)
            .map(|two| (two[1].at_ns - two[0].at_ns, two[0].at_ns));
        let (longest_gap_ns, gap_at_ns) = gaps.max().unwrap_or((0, 0));
        let before_gap = latencies.clone().zip(answers);
        let before_gap = before_gap.filter(|(_, answer)| answer.at_ns <= gap_at_ns);
        let before_gap = before_gap.map(|(latency, _)| latency);
        let (monotonic_lost_ns, real_lost_ns, observed_ns) = match (answers.first(), answers.last())
        {
            (Some(first), Some(last)) => {
                let here = last.at_ns - first.at_ns;
                let lost = |from: u64, to: u64| signed(here) - (signed(to) - signed(from));
                (
                    lost(first.monotonic_ns, last.monotonic_ns),
                    lost(first.real_ns, last.real_ns),
                    here,
                )
            }
            _ => (0, 0, 0),
        };
        let answered = answers.len() as u64;
        Self {
            sent: stream.sent.len() as u64,
            answered,
            unanswered_found: ledger
                .map(|ledger| (ledger.records.len() as u64).saturating_sub(answered)),
            resets: u64::from(matches!(stream.ended, Ended::Lost(_))),
            per_second: answered as f64 / (observed_ns.max(1) as f64 / 1e9),
            latency_before_gap_ns: Percentiles::of(before_gap.collect()),
            latency_ns: Percentiles::of(latencies.collect()),
            longest_gap_ns,
            longest_gap_unix_ns: stream.begun_unix_ns + gap_at_ns,
            monotonic_lost_ns,
            real_lost_ns,
            observed_ns,
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "sent": self.sent,
            "answered": self.answered,
            "unanswered_found": self.unanswered_found,
            "resets": self.resets,
            "per_second": self.per_second,
            "latency_p50_us": self.latency_ns.p50 / 1000,
            "latency_p99_us": self.latency_ns.p99 / 1000,
            "latency_before_gap_p50_us": self.latency_before_gap_ns.p50 / 1000,
            "latency_max_us": self.latency_ns.max / 1000,
            "longest_gap_us": self.longest_gap_ns / 1000,
            "longest_gap_unix_ns": self.longest_gap_unix_ns,
            "clock_lost_us": self.monotonic_lost_ns / 1000,
            "real_clock_lost_us": self.real_lost_ns / 1000,
            "observed_us": self.observed_ns / 1000,
        })
    }

    pub(super) fn words(&self) -> String {
        let ms = |ns: u64| ns as f64 / 1e6;
        let lost_ms = self.monotonic_lost_ns as f64 / 1e6;
        let share = self.monotonic_lost_ns as f64 / self.observed_ns.max(1) as f64 * 100.0;
        format!(
            "answered {} of {} sent, {:.0} a second; latency p50 {:.1} ms, p99 {:.1} ms; longest gap {:.1} ms; \
             resets {}; guest clock lost {lost_ms:.1} ms in {:.1} s ({share:.3} %)",
            self.answered,
            self.sent,
            self.per_second,
            ms(self.latency_ns.p50),
            ms(self.latency_ns.p99),
            ms(self.longest_gap_ns),
            self.resets,
            self.observed_ns as f64 / 1e9,
        )
    }
}

/// How far the guest's monotonic clock is behind: Unix time in ns here, ns lost since the first answer.
pub(super) fn clock_lag(stream: &Stream) -> Vec<(u64, i64)> {
    let Some(first) = stream.answers.first() else {
        return Vec::new();
    };
    let step = stream.answers.len().div_ceil(CLOCK_POINTS).max(1);
    let points = stream.answers.iter().step_by(step);
    let point = |answer: &super::stream::Answered| {
        let here = signed(answer.at_ns) - signed(first.at_ns);
        let there = signed(answer.monotonic_ns) - signed(first.monotonic_ns);
        (stream.begun_unix_ns + answer.at_ns, here - there)
    };
    points.map(point).collect()
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
