//! What came of each checkpoint at the standby, for `guest timeline`: the last ones, bounded.

use crate::memory::stream::Came;
use crate::protect::batch;
use blkback_proto::ctl::{EpochFigures, GuestTimelineAnswer};
use blkback_proto::ids::Epoch;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Checkpoints that are kept.
const KEPT_MAX: usize = 4096;

#[derive(Debug)]
struct Kept {
    figures: EpochFigures,
    /// When its first frame came, from which its times count.
    begun: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Timeline {
    log: String,
    kept: VecDeque<Kept>,
    next_seq: u64,
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Timeline {
    pub(super) fn new() -> Self {
        let mut id = [0; 8];
        getrandom::fill(&mut id).expect("the kernel gives random numbers");
        Self {
            log: format!("{:016x}", u64::from_le_bytes(id)),
            kept: VecDeque::new(),
            next_seq: 1,
        }
    }

    /// All of its memory is here.
    pub(super) fn whole(&mut self, epoch: Epoch, came: &Came) {
        let took = Duration::from_micros(came.us);
        let now_ms = blockrep_host::clock::unix_ms();
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut figures = EpochFigures {
            seq: self.next_seq,
            epoch: Some(epoch.0),
            unix_ms: now_ms.saturating_sub(took_ms),
            dirty_pages: came.pages,
            raw_bytes: came.raw_bytes,
            wire_bytes: came.wire_bytes,
            ..EpochFigures::default()
        };
        figures.us.whole = Some(came.us);
        self.next_seq += 1;
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        let now = Instant::now();
        let begun = now.checked_sub(took).unwrap_or(now);
        self.kept.push_back(Kept { figures, begun });
    }

    /// Every one up to this is committed.
    pub(super) fn committed(&mut self, epoch: Epoch) {
        let waits = |kept: &&mut Kept| kept.figures.us.committed.is_none();
        for kept in self.kept.iter_mut().rev().take_while(waits) {
            if kept.figures.epoch <= Some(epoch.0) {
                kept.figures.us.committed = Some(us(kept.begun));
            }
        }
    }

    pub(super) fn batch(&self, from_seq: u64) -> GuestTimelineAnswer {
        let kept = self.kept.iter().map(|kept| &kept.figures);
        batch(&self.log, kept, self.next_seq, from_seq)
    }
}

#[cfg(test)]
mod tests {
    //! An operator who asks a standby what it received, and is told of another epoch or of all there ever were.
    use super::*;

    #[test]
    fn what_came_is_told_in_bounds() {
        let mut timeline = Timeline::new();
        let came = |pages| Came {
            pages,
            raw_bytes: pages * 4096,
            wire_bytes: pages,
            us: 7,
        };
        for epoch in 1..=5000 {
            timeline.whole(Epoch(epoch), &came(epoch));
        }
        timeline.committed(Epoch(4998));
        let first = timeline.batch(0);
        assert_eq!((first.lost, first.more), (5000 - KEPT_MAX as u64, true));
        assert_eq!(first.epochs[0].epoch, Some(5000 - KEPT_MAX as u64 + 1));
        let last = timeline.batch(4998);
        let told: Vec<_> = (last.epochs.iter())
            .map(|f| (f.epoch, f.dirty_pages, f.us.whole, f.us.committed.is_some()))
            .collect();
        let is = |epoch, is_committed| (Some(epoch), epoch, Some(7), is_committed);
        assert_eq!(told, [is(4998, true), is(4999, false), is(5000, false)]);
        assert_eq!((last.next_seq, last.more), (5001, false));
    }
}
