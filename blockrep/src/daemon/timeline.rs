//! Recent times and rates, for status.

use std::time::Instant;

/// Samples kept.
const SAMPLES_MAX: usize = 4096;

/// The last few thousand commit latencies.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    samples_ns: Vec<u64>,
    next: usize,
}

impl Latencies {
    pub(super) fn note(&mut self, ns: u64) {
        if self.samples_ns.len() < SAMPLES_MAX {
            self.samples_ns.push(ns);
        } else {
            self.samples_ns[self.next] = ns;
            self.next = (self.next + 1) % SAMPLES_MAX;
        }
    }

    /// Median and 99th percentile in microseconds.
    pub(super) fn percentiles_us(&self) -> Option<(u64, u64)> {
        if self.samples_ns.is_empty() {
            return None;
        }
        let mut sorted = self.samples_ns.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100] / 1000;
        Some((at(50), at(99)))
    }
}

/// How long cuts hold the completions of a volume.
#[derive(Debug, Default)]
pub(super) struct Holds {
    since: Option<Instant>,
    over: bool,
    latencies: Latencies,
}

impl Holds {
    /// Completions are held from now on.
    pub(super) fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// They may go; they are not sent yet.
    pub(super) fn end(&mut self) {
        self.over = self.since.is_some();
    }

    /// What may go has been sent.
    pub(super) fn sent(&mut self) {
        if std::mem::take(&mut self.over)
            && let Some(since) = self.since.take()
        {
            let ns = since.elapsed().as_nanos();
            self.latencies.note(u64::try_from(ns).unwrap_or(u64::MAX));
        }
    }

    /// Median and 99th percentile in microseconds.
    pub(super) fn percentiles_us(&self) -> Option<(u64, u64)> {
        self.latencies.percentiles_us()
    }
}

/// A counter's growth per second, over the last second or so.
#[derive(Debug, Default)]
pub(super) struct Rate {
    value: u64,
    at_ns: u64,
    per_s: u64,
    is_number: bool,
}

impl Rate {
    /// Of a number that goes on from where somebody else's stood, such as an epoch: the step from
    /// none to the first one is no rate.
    pub(super) fn of_number() -> Self {
        Self {
            is_number: true,
            ..Self::default()
        }
    }

    /// A second has passed since the last value.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.at_ns) >= 1_000_000_000
    }

    pub(super) fn per_s(&self) -> u64 {
        self.per_s
    }

    /// Takes the counter's value, if a second has passed.
    pub(super) fn update(&mut self, now_ns: u64, value: u64) {
        let elapsed = now_ns.saturating_sub(self.at_ns);
        if self.is_due(now_ns) {
            let first = self.is_number && self.value == 0;
            let grown = if first {
                0
            } else {
                u128::from(value.saturating_sub(self.value))
            };
            self.per_s =
                u64::try_from(grown * 1_000_000_000 / u128::from(elapsed)).unwrap_or(u64::MAX);
            self.value = value;
            self.at_ns = now_ns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup that took in the number of its first primary showed thousands of epochs a second.
    #[test]
    fn the_first_number_is_no_rate() {
        let (mut bytes, mut epochs) = (Rate::default(), Rate::of_number());
        for (at_s, value, bytes_per_s, epochs_per_s) in
            [(1, 0, 0, 0), (2, 50_000, 50_000, 0), (3, 50_040, 40, 40)]
        {
            bytes.update(at_s * 1_000_000_000, value);
            epochs.update(at_s * 1_000_000_000, value);
            // Too early to be counted.
            epochs.update(at_s * 1_000_000_000 + 1, value + 7);
            assert_eq!((bytes.per_s(), epochs.per_s()), (bytes_per_s, epochs_per_s));
        }
    }

    /// A hold that is counted before the answers are out, or twice, looks shorter than it is.
    #[test]
    fn a_hold_lasts_until_the_answers_are_sent() {
        let mut holds = Holds::default();
        holds.begin();
        holds.sent();
        assert_eq!(holds.percentiles_us(), None);
        holds.end();
        assert_eq!(holds.percentiles_us(), None);
        holds.sent();
        holds.sent();
        holds.end();
        holds.sent();
        assert_eq!(holds.latencies.samples_ns.len(), 1);
    }

    /// A latency an operator is shown must be one that happened.
    #[test]
    fn percentiles() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles_us(), None);
        for ns in 1..=100 {
            latencies.note(ns * 1000);
        }
        assert_eq!(latencies.percentiles_us(), Some((50, 99)));
        for _ in 0..SAMPLES_MAX {
            latencies.note(7000);
        }
        assert_eq!(latencies.percentiles_us(), Some((7, 7)));
    }
}
