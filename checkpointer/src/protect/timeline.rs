//! What each checkpoint took, for status and reports: the last ones, bounded.

use super::guest::{Steps, us};
use crate::memory::PAGE_BYTES;
use crate::memory::stream::Counts;
use crate::sequence::Attempt;
use blkback_proto::ctl::{
    EPOCH_FIGURES_MAX, EpochFigures, GuestClock, GuestGivenUp, GuestTimeline, GuestTimelineAnswer,
    Spread, StepTimes,
};
use blkback_proto::ids::Epoch;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Checkpoints that are kept.
const KEPT_MAX: usize = 4096;
/// Checkpoints that the spreads are of.
const SPREAD_OF: usize = 400;

#[derive(Debug)]
struct Kept {
    figures: EpochFigures,
    /// The end of the pause, from which the way to the backup counts.
    resumed: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Timeline {
    log: String,
    kept: VecDeque<Kept>,
    next_seq: u64,
    /// The one that is made.
    now: Option<(Instant, EpochFigures)>,
    since: Instant,
    paused: Duration,
    given_up: GuestGivenUp,
    pub(super) cut: Option<u64>,
    pub(super) sent: Option<u64>,
    pub(super) whole: Option<u64>,
    pub(super) committed: Option<u64>,
    pub(super) released: Option<u64>,
}

impl Timeline {
    pub(super) fn new() -> Self {
        Self {
            log: format!("{:016x}", super::link::random()),
            kept: VecDeque::new(),
            next_seq: 1,
            now: None,
            since: Instant::now(),
            paused: Duration::ZERO,
            given_up: GuestGivenUp::default(),
            cut: None,
            sent: None,
            whole: None,
            committed: None,
            released: None,
        }
    }

    pub(super) fn begin(&mut self, _: Attempt) {
        let figures = EpochFigures {
            unix_ms: blockrep_host::clock::unix_ms(),
            ..EpochFigures::default()
        };
        self.now = Some((Instant::now(), figures));
    }

    pub(super) fn stopped(&mut self, stop_us: u64) {
        if let Some((_, figures)) = &mut self.now {
            figures.us.stop = stop_us;
        }
    }

    /// It runs beside the copy and the saving of device state.
    pub(super) fn disk_cut(&mut self, took: Duration) {
        if let Some((_, figures)) = &mut self.now {
            figures.us.disk_cut = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        }
    }

    pub(super) fn collected(&mut self, steps: &Steps, dirty_pages: u64) {
        if let Some((_, figures)) = &mut self.now {
            figures.us.scan = steps.scan;
            figures.us.copy = steps.copy;
            figures.us.device_state = steps.device_state;
            figures.dirty_pages = dirty_pages;
        }
    }

    pub(super) fn output_cut(&mut self, begun: Instant) {
        if let Some((_, figures)) = &mut self.now {
            figures.us.output_cut = us(begun);
        }
    }

    pub(super) fn given_up(&mut self, why: &str) {
        if let Some((_, figures)) = &mut self.now {
            figures.given_up = Some(why.to_owned());
        }
        self.given_up.count += 1;
        why.clone_into(&mut self.given_up.last_reason);
    }

    pub(super) fn resumed(&mut self, cont_us: u64) {
        let Some((begun, mut figures)) = self.now.take() else {
            return;
        };
        figures.us.cont = cont_us;
        figures.us.pause = us(begun);
        let steps = &figures.us;
        let beside = steps.scan + steps.copy + steps.device_state;
        let waited = steps.disk_cut.saturating_sub(beside);
        figures.us.ours = waited + steps.scan + steps.copy + steps.output_cut;
        self.paused += begun.elapsed();
        figures.seq = self.next_seq;
        self.next_seq += 1;
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(Kept {
            figures: figures.bounded(),
            resumed: Instant::now(),
        });
    }

    /// The one that was just made is this epoch.
    pub(super) fn cut(&mut self, epoch: Epoch) {
        self.cut = Some(epoch.0);
        if let Some(kept) = self.kept.back_mut() {
            kept.figures.epoch = Some(epoch.0);
        }
    }

    fn of(&mut self, epoch: Epoch) -> Option<&mut Kept> {
        let mut kept = self.kept.iter_mut().rev().take(256);
        kept.find(|kept| kept.figures.epoch == Some(epoch.0))
    }

    pub(super) fn sent(&mut self, epoch: Epoch, counts: &Counts, state_bytes: u64, took: Duration) {
        self.sent = self.sent.max(Some(epoch.0));
        if let Some(kept) = self.of(epoch) {
            kept.figures.raw_bytes = kept.figures.dirty_pages * PAGE_BYTES + state_bytes;
            kept.figures.wire_bytes = counts.wire_bytes;
            kept.figures.zero_pages = Some(counts.zero);
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            kept.figures.us.send = us(kept.resumed);
            kept.figures.us.encode = took;
        }
    }

    pub(super) fn whole(&mut self, epoch: Epoch) {
        self.whole = self.whole.max(Some(epoch.0));
        if let Some(kept) = self.of(epoch) {
            kept.figures.us.whole = Some(us(kept.resumed));
        }
    }

    pub(super) fn committed(&mut self, epoch: Epoch) {
        self.committed = self.committed.max(Some(epoch.0));
        if let Some(kept) = self.of(epoch) {
            kept.figures.us.committed = Some(us(kept.resumed));
        }
    }

    pub(super) fn released(&mut self, epoch: Epoch) {
        self.released = self.released.max(Some(epoch.0));
        if let Some(kept) = self.of(epoch) {
            kept.figures.us.released = Some(us(kept.resumed));
        }
    }

    pub(super) fn given_up_so_far(&self) -> GuestGivenUp {
        self.given_up.clone()
    }

    /// Its clock stands while it is paused.
    pub(super) fn clock(&self) -> GuestClock {
        let all = self.since.elapsed().as_secs_f64();
        GuestClock {
            lost_ms: u64::try_from(self.paused.as_millis()).unwrap_or(u64::MAX),
            lost_percent: 100.0 * self.paused.as_secs_f64() / all.max(0.001),
        }
    }

    /// Percent of the time of the last checkpoints that the guest stood still.
    pub(super) fn pause_percent(&self) -> f64 {
        let last: Vec<&Kept> = self.kept.iter().rev().take(40).collect();
        let (Some(newest), Some(oldest)) = (last.first(), last.last()) else {
            return 0.0;
        };
        let all = newest.resumed.duration_since(oldest.resumed);
        let paused: u64 = last
            .iter()
            .take(last.len() - 1)
            .map(|kept| kept.figures.us.pause)
            .sum();
        let all_us = all.as_secs_f64() * 1e6;
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let percent = 100.0 * paused as f64 / all_us.max(1.0);
        percent
    }

    pub(super) fn summary(&self) -> Option<GuestTimeline> {
        let last: Vec<&EpochFigures> = (self.kept.iter().rev())
            .map(|kept| &kept.figures)
            .filter(|figures| figures.epoch.is_some())
            .take(SPREAD_OF)
            .collect();
        if last.is_empty() {
            return None;
        }
        let of = |pick: &dyn Fn(&EpochFigures) -> u64| spread(last.iter().map(|f| pick(f)));
        let some = |pick: &dyn Fn(&EpochFigures) -> Option<u64>| {
            let values: Vec<u64> = last.iter().filter_map(|f| pick(f)).collect();
            (!values.is_empty()).then(|| spread(values))
        };
        Some(GuestTimeline {
            epochs: last.len() as u64,
            us: StepTimes {
                stop: of(&|f| f.us.stop),
                disk_cut: of(&|f| f.us.disk_cut),
                scan: of(&|f| f.us.scan),
                copy: of(&|f| f.us.copy),
                device_state: of(&|f| f.us.device_state),
                output_cut: of(&|f| f.us.output_cut),
                cont: of(&|f| f.us.cont),
                pause: of(&|f| f.us.pause),
                ours: of(&|f| f.us.ours),
                encode: of(&|f| f.us.encode),
                send: of(&|f| f.us.send),
                whole: some(&|f| f.us.whole),
                committed: some(&|f| f.us.committed),
                released: some(&|f| f.us.released),
            },
            dirty_pages: of(&|f| f.dirty_pages),
            raw_bytes: of(&|f| f.raw_bytes),
            wire_bytes: of(&|f| f.wire_bytes),
        })
    }

    pub(super) fn batch(&self, from_seq: u64) -> GuestTimelineAnswer {
        let kept = self.kept.iter().map(|kept| &kept.figures);
        batch(&self.log, kept, self.next_seq, from_seq)
    }
}

/// From one number on, of those that are kept, oldest first.
pub(crate) fn batch<'a>(
    log: &str,
    kept: impl Iterator<Item = &'a EpochFigures> + Clone,
    kept_next: u64,
    from_seq: u64,
) -> GuestTimelineAnswer {
    let oldest = kept.clone().next().map_or(kept_next, |figures| figures.seq);
    let from = from_seq.clamp(oldest, kept_next);
    let mine = kept.filter(|figures| figures.seq >= from);
    let epochs: Vec<EpochFigures> = mine.take(EPOCH_FIGURES_MAX).cloned().collect();
    let next_seq = epochs.last().map_or(from, |last| last.seq + 1);
    GuestTimelineAnswer {
        log: log.to_owned(),
        epochs,
        lost: oldest.saturating_sub(from_seq.max(1)),
        next_seq,
        more: next_seq < kept_next,
    }
}

/// Half are at most the first, 99 in 100 at most the second.
fn spread(values: impl IntoIterator<Item = u64>) -> Spread {
    let mut values: Vec<u64> = values.into_iter().collect();
    values.sort_unstable();
    let at = |percent: usize| {
        let index = (values.len() * percent).div_ceil(100).max(1) - 1;
        values.get(index).copied().unwrap_or(0)
    };
    Spread {
        p50: at(50),
        p99: at(99),
    }
}

#[cfg(test)]
mod tests {
    //! A figure of another epoch in a status sends its reader after the wrong step.
    use super::*;

    #[test]
    fn spreads_are_nearest_ranks() {
        let of = |values: &[u64]| {
            let Spread { p50, p99 } = spread(values.iter().copied());
            (p50, p99)
        };
        assert_eq!(of(&[]), (0, 0));
        assert_eq!(of(&[7]), (7, 7));
        assert_eq!(of(&[4, 1, 3, 2]), (2, 4));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(of(&hundred), (50, 99));
    }

    #[test]
    fn what_comes_late_goes_to_its_own_epoch() {
        let mut timeline = Timeline::new();
        for epoch in [5, 6] {
            timeline.begin(Attempt(epoch));
            timeline.stopped(10 * epoch);
            timeline.resumed(1);
            timeline.cut(Epoch(epoch));
        }
        timeline.begin(Attempt(7));
        timeline.given_up("late");
        timeline.resumed(1);
        timeline.whole(Epoch(5));
        timeline.released(Epoch(6));
        let batch = timeline.batch(0);
        assert_eq!(batch.epochs.len(), 3);
        let told: Vec<_> = (batch.epochs.iter())
            .map(|f| {
                (
                    f.epoch,
                    f.us.stop,
                    f.us.whole.is_some(),
                    f.us.released.is_some(),
                    f.given_up.is_some(),
                )
            })
            .collect();
        assert_eq!(told[0], (Some(5), 50, true, false, false));
        assert_eq!(told[1], (Some(6), 60, false, true, false));
        assert_eq!(told[2], (None, 0, false, false, true));
        let rest = timeline.batch(3);
        assert_eq!((rest.epochs.len(), rest.next_seq, rest.more), (1, 4, false));
        assert_eq!(timeline.summary().map(|s| s.epochs), Some(2));
    }

    // Counted whole, the cut would hide that device state is what a pause waits for.
    #[test]
    fn of_the_disks_cut_that_counts_as_ours_which_is_waited_for() {
        let ours = |cut_us| {
            let mut timeline = Timeline::new();
            timeline.begin(Attempt(1));
            let steps = Steps {
                scan: 10,
                copy: 20,
                device_state: 100,
                ..Steps::default()
            };
            timeline.collected(&steps, 1);
            timeline.disk_cut(Duration::from_micros(cut_us));
            timeline.resumed(1);
            timeline.batch(0).epochs[0].us.ours
        };
        assert_eq!([ours(90), ours(130), ours(150)], [30, 30, 50]);
    }
}
