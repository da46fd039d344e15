//! What the backup has, and whether what leaves is known to it.

use super::world::{Moment, PAGES, World};
use crate::sequence::{Event, Part};
use blkback_proto::ids::Epoch;

impl World {
    /// The judge: what leaves is known to a checkpoint that the backup could go on from.
    pub(super) fn release(&mut self, epoch: u64) {
        let safe = self.recoverable();
        let Some(at) = self.cuts.iter().position(|(cut, _)| *cut == epoch) else {
            // Of an output that was lost and came back empty.
            return;
        };
        let frames = self.cuts[at].1;
        for _ in 0..frames {
            let said = self.held.pop_front().unwrap();
            assert!(
                said <= safe,
                "said at {said}, the backup goes on from {safe}"
            );
            self.said += 1;
        }
        self.cuts.drain(..=at);
        for (_, place) in &mut self.cuts {
            *place -= frames;
        }
        self.released += 1;
    }

    pub(super) fn recoverable(&self) -> Moment {
        if self.ends.iter().any(|end| *end <= self.disk_committed) {
            return Moment::MAX;
        }
        let (epoch, moment) = self
            .checkpoints
            .range(..=self.disk_committed)
            .next_back()
            .expect("a checkpoint");
        assert_eq!(
            self.disk_ended[epoch], *moment,
            "memory and disk of epoch {epoch} are of two moments"
        );
        *moment
    }

    /// Something reaches the backup.
    pub(super) fn transmit(&mut self) {
        if self.rng.bool() && self.disk_committed + 1 < self.disk_epoch {
            // Of an epoch without memory nothing is committed before one that has it.
            self.disk_committed = self.rng.u64(self.disk_committed + 1..self.disk_epoch);
            self.answers
                .push((self.now, Event::DiskCommitted(Epoch(self.disk_committed))));
        } else if self.is_linked
            && let Some((epoch, collected)) = self.unacknowledged.pop_first()
        {
            let copy = self.copy.as_mut().expect("sent without a copy");
            copy.extend(&collected.pages);
            self.checkpoints.insert(epoch, collected.moment);
            let newer = |page: &u64| self.memory[page] <= collected.moment;
            for page in (0..PAGES).filter(newer) {
                assert_eq!(
                    copy[&page], self.memory[&page],
                    "page {page} of epoch {epoch} is old"
                );
            }
            if self.is_calm || self.rng.u8(..20) > 0 {
                self.answers
                    .push((self.now, Event::MemoryAcked(Epoch(epoch))));
            } else {
                // It has it, and its answer got lost.
                self.unacknowledged.insert(epoch, collected);
                self.loses(Part::Memory);
            }
        }
    }
}
