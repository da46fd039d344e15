//! What protection would cost, from what was measured. Pure: each figure is a measured one, or has its formula here.

use crate::memory::PAGE_BYTES;
use serde::Serialize;

const MIB: f64 = (1u64 << 20) as f64;
/// Of a link, so that what an epoch before left over has gone by.
const LINK_SHARE_MAX: f64 = 0.8;
/// The journal applies at a quarter of its size, at the latest.
const JOURNAL_PARTS: u64 = 4;
/// Below that a journal is small for other reasons.
const JOURNAL_BYTES_MIN: u64 = 64 << 20;

/// One pause that was made to measure.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pause {
    pub(super) stop_us: u64,
    pub(super) scan_us: u64,
    pub(super) copy_us: u64,
    pub(super) device_state_us: u64,
    pub(super) cont_us: u64,
    pub(super) pages: u64,
}

impl Pause {
    /// All but the copy, which goes with the pages.
    fn fixed_us(&self) -> u64 {
        self.stop_us + self.scan_us + self.device_state_us + self.cont_us
    }
}

/// One time without a pause, as long as an interval.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    pub(super) lasted_us: u64,
    /// Pages that were written.
    pub(super) pages: u64,
    /// Of those, the ones that went through the encoder, and what became of them.
    pub(super) sampled: u64,
    pub(super) zero: u64,
    pub(super) wire_bytes: u64,
}

/// What the estimate is made from, besides the windows.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) guest_bytes: u64,
    /// The tracker keeps a copy of the guest.
    pub(super) is_compared: bool,
    pub(super) pauses: Vec<Pause>,
    /// Device state on the wire, of those pauses: what differs from the one before.
    pub(super) state_bytes: Vec<u64>,
    /// Of the guest's disks, where a daemon of ours told it.
    pub(super) disk_bytes_per_s: Option<u64>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) pause_percent: u64,
    pub(super) link_mib_per_s: Option<u64>,
    pub(super) round_trip_us: u64,
    pub(super) in_flight_max: u64,
    pub(super) cache_bytes: u64,
    pub(super) answer_max_ms: u64,
}

/// What an interval would cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) interval_ms: u64,
    /// Windows that were measured, and how long half of them were at most.
    pub(crate) windows: u64,
    pub(crate) window_p50_ms: f64,
    pub(crate) dirty_pages_p50: u64,
    pub(crate) dirty_pages_p95: u64,
    pub(crate) zero_percent: f64,
    /// Bytes on the wire for 100 bytes of pages.
    pub(crate) wire_percent: f64,
    pub(crate) pause_p50_ms: f64,
    pub(crate) pause_p99_ms: f64,
    pub(crate) pause_percent: f64,
    pub(crate) memory_mib_per_s: f64,
    /// With the disks, where they are known.
    pub(crate) wire_mib_per_s: f64,
    pub(crate) buffer_mib: u64,
    pub(crate) primary_mib: u64,
    pub(crate) backup_mib: u64,
    pub(crate) latency_ms: f64,
    /// Whether the link that was named suffices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) link_suffices: Option<bool>,
    pub(crate) keeps_share: bool,
}

/// Nearest rank.
pub(super) fn rank(mut values: Vec<u64>, percent: usize) -> u64 {
    values.sort_unstable();
    let at = (values.len() * percent).div_ceil(100).max(1) - 1;
    values.get(at).copied().unwrap_or(0)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn float(value: u64) -> f64 {
    value as f64
}

fn mean(sum: u64, of: usize) -> f64 {
    float(sum) / float(of.max(1) as u64)
}

fn share(part: u64, of: u64) -> f64 {
    float(part) / float(of.max(1))
}

impl Measured {
    /// The figures of one interval.
    pub(super) fn point(&self, interval_ms: u64, windows: &[Window], wanted: &Wanted) -> Point {
        let all = |of: &dyn Fn(&Window) -> u64| windows.iter().map(of).collect::<Vec<u64>>();
        let sum = |of: &dyn Fn(&Window) -> u64| windows.iter().map(of).sum::<u64>();
        let pages_mean = mean(sum(&|w| w.pages), windows.len());
        let (p50, p95) = (rank(all(&|w| w.pages), 50), rank(all(&|w| w.pages), 95));

        let copied: u64 = self.pauses.iter().map(|pause| pause.pages).sum();
        let copy_us: u64 = self.pauses.iter().map(|pause| pause.copy_us).sum();
        let copy_us_per_page = share(copy_us, copied);
        let fixed: Vec<u64> = self.pauses.iter().map(Pause::fixed_us).collect();
        let fixed_mean_us = mean(fixed.iter().sum(), fixed.len());
        let pause_us = |fixed_us: f64, pages: f64| fixed_us + copy_us_per_page * pages;
        let pause_mean_us = pause_us(fixed_mean_us, pages_mean);
        let pause_p50_us = pause_us(float(rank(fixed.clone(), 50)), float(p50));
        let pause_p99_us = pause_us(float(rank(fixed, 99)), float(p95));

        let interval_us = float(interval_ms) * 1000.0;
        let period_us = interval_us + pause_mean_us;
        let wire_per_page = share(sum(&|w| w.wire_bytes), sum(&|w| w.sampled));
        let state = mean(self.state_bytes.iter().sum(), self.state_bytes.len());
        let epoch_bytes = pages_mean * wire_per_page + state;
        let memory = epoch_bytes / period_us * 1e6 / MIB;
        let wire = memory + float(self.disk_bytes_per_s.unwrap_or(0)) / MIB;
        let link = wanted.link_mib_per_s.map(float);
        let send_us = link.map_or(0.0, |link| epoch_bytes / MIB / link * 1e6);

        let up = |bytes: u64| bytes.div_ceil(1 << 20);
        let staged = p95 * PAGE_BYTES;
        let buffer = up(staged * (wanted.in_flight_max + 1));
        let copy = if self.is_compared {
            self.guest_bytes
        } else {
            0
        };
        let pause_percent = 100.0 * pause_mean_us / period_us;
        Point {
            interval_ms,
            windows: windows.len() as u64,
            window_p50_ms: float(rank(all(&|w| w.lasted_us), 50)) / 1000.0,
            dirty_pages_p50: p50,
            dirty_pages_p95: p95,
            zero_percent: 100.0 * share(sum(&|w| w.zero), sum(&|w| w.sampled)),
            wire_percent: 100.0 * wire_per_page / float(PAGE_BYTES),
            pause_p50_ms: pause_p50_us / 1000.0,
            pause_p99_ms: pause_p99_us / 1000.0,
            pause_percent,
            memory_mib_per_s: memory,
            wire_mib_per_s: wire,
            buffer_mib: buffer,
            primary_mib: buffer + up(wanted.cache_bytes) + up(copy),
            backup_mib: up(2 * self.guest_bytes + staged * wanted.in_flight_max),
            latency_ms: (interval_us / 2.0 + pause_mean_us + send_us + float(wanted.round_trip_us))
                / 1000.0,
            link_suffices: link.map(|link| wire <= link * LINK_SHARE_MAX),
            keeps_share: pause_percent <= float(wanted.pause_percent),
        }
    }

    /// For the backup's journals together; where the disks' rate is known.
    pub(super) fn journal_bytes(&self, wanted: &Wanted) -> Option<u64> {
        let rate = self.disk_bytes_per_s?;
        let silent = rate.saturating_mul(wanted.answer_max_ms) / 1000;
        Some((silent.saturating_mul(JOURNAL_PARTS)).max(JOURNAL_BYTES_MIN))
    }
}

/// The shortest interval that keeps its share, on a link that suffices.
pub(super) fn choose(points: &[Point]) -> Option<u64> {
    let good = |point: &&Point| point.keeps_share && point.link_suffices != Some(false);
    let good = points.iter().filter(good).map(|point| point.interval_ms);
    good.min()
}

#[cfg(test)]
mod tests {
    //! An operator buys hosts and a link by these figures.
    use super::*;

    const WANTED: Wanted = Wanted {
        pause_percent: 5,
        link_mib_per_s: None,
        round_trip_us: 200,
        in_flight_max: 2,
        cache_bytes: 64 << 20,
        answer_max_ms: 2000,
    };

    fn measured() -> Measured {
        let pause = |stop_us| Pause {
            stop_us,
            scan_us: 100,
            copy_us: 1000,
            device_state_us: 300,
            cont_us: 100,
            pages: 1000,
        };
        Measured {
            guest_bytes: 1 << 30,
            is_compared: false,
            pauses: vec![pause(500), pause(500), pause(2500), pause(500)],
            state_bytes: vec![1000, 3000],
            disk_bytes_per_s: None,
        }
    }

    fn windows() -> Vec<Window> {
        let window = |pages| Window {
            lasted_us: 100_000,
            pages,
            sampled: 100,
            zero: 25,
            wire_bytes: 102_400,
        };
        [1000, 1000, 1000, 3000].map(window).into()
    }

    fn near(is: f64, should: f64) {
        assert!((is - should).abs() < 0.01, "{is} is not {should}");
    }

    #[test]
    fn each_figure_is_its_formula() {
        let point = measured().point(100, &windows(), &WANTED);
        assert_eq!((point.dirty_pages_p50, point.dirty_pages_p95), (1000, 3000));
        near(point.zero_percent, 25.0);
        near(point.wire_percent, 25.0);
        // 1 us a page; fixed parts 1000, 1000, 3000, 1000.
        near(point.pause_p50_ms, 2.0);
        near(point.pause_p99_ms, 6.0);
        // On average 1500 + 1500 us of 100 + 3 ms.
        near(point.pause_percent, 100.0 * 3.0 / 103.0);
        // 1500 pages of 1024 bytes and 2000 of device state, each 103 ms.
        near(point.memory_mib_per_s, (1_536_000.0 + 2000.0) / 0.103 / MIB);
        near(point.wire_mib_per_s, point.memory_mib_per_s);
        // 3000 pages for each of three checkpoints.
        assert_eq!(point.buffer_mib, 36);
        assert_eq!(point.primary_mib, 36 + 64);
        assert_eq!(point.backup_mib, 2048 + 24);
        near(point.latency_ms, 50.0 + 3.0 + 0.2);
        assert!(point.keeps_share && point.link_suffices.is_none());
    }

    #[test]
    fn a_link_a_disk_and_a_second_copy_count() {
        let mut measured = measured();
        measured.disk_bytes_per_s = Some(32 << 20);
        measured.is_compared = true;
        let wanted = |link| Wanted {
            link_mib_per_s: Some(link),
            ..WANTED
        };
        let point = measured.point(100, &windows(), &wanted(100));
        near(point.wire_mib_per_s, point.memory_mib_per_s + 32.0);
        assert_eq!(point.primary_mib, 36 + 64 + 1024);
        assert_eq!(point.link_suffices, Some(true));
        let send_ms = 1_538_000.0 / MIB / 100.0 * 1000.0;
        near(point.latency_ms, 53.2 + send_ms);
        let narrow = measured.point(100, &windows(), &wanted(57));
        assert_eq!(narrow.link_suffices, Some(false), "46.2 is above 0.8 of 57");
        // Two seconds of 32 MiB/s in a quarter of it.
        assert_eq!(measured.journal_bytes(&WANTED), Some(256 << 20));
        measured.disk_bytes_per_s = Some(1);
        assert_eq!(measured.journal_bytes(&WANTED), Some(64 << 20));
        measured.disk_bytes_per_s = None;
        assert_eq!(measured.journal_bytes(&WANTED), None);
    }

    #[test]
    fn the_shortest_interval_that_keeps_its_share_is_taken() {
        let of = |interval_ms| measured().point(interval_ms, &windows(), &WANTED);
        let mut points = vec![of(200), of(25), of(100)];
        assert!(!points[1].keeps_share);
        assert_eq!(choose(&points), Some(100));
        points[2].link_suffices = Some(false);
        assert_eq!(choose(&points), Some(200));
        points[0].keeps_share = false;
        assert_eq!(choose(&points), None);
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn nothing_measured_is_no_division_by_it() {
        let point = Measured::default().point(25, &[], &WANTED);
        assert!(point.latency_ms.is_finite() && point.pause_percent == 0.0);
        assert_eq!((rank(Vec::new(), 50), rank(vec![4, 1, 3], 50)), (0, 3));
    }
}
