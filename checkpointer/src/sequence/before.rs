//! A guest of which the authority's record has a backup in before anything was done here: the backup may be promoted to what it
//! has of that guest, so nothing is said until it has a checkpoint of this one, or is out.

use super::{Nanos, Order, Phase, Sequence};
use blkback_proto::ids::LineageId;

/// How that guest was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It went on, and what it said was held all the time: what the backup has is of it, and lacks nothing that left.
    WentOn,
    /// It was started anew, or has spoken without anybody to hold it: what the backup has is of the past.
    Afresh,
}

impl Sequence {
    /// The record has the backup in, and what the guest says is held. To be told first.
    ///
    /// Of a guest that was started anew the authority is asked at once whether the backup is out; of one that went on only when
    /// the backup does not come.
    pub fn found(&mut self, now: Nanos, found: Found) {
        self.found = Some(found);
        self.is_held = true;
        self.asked = (found == Found::WentOn).then_some(now);
    }

    /// The guest runs alone for good, as far as this process goes, or not at all any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Ending { .. } | Phase::Over)
    }

    /// Whether it is held for the sake of a backup that has nothing of this process yet.
    #[must_use]
    pub fn is_held_from_before(&self) -> bool {
        self.found.is_some()
    }

    /// The authority has taken the backup out that was in from before; whether that was what it was asked for. Protection goes
    /// on from its beginning: the guest speaks until its first cut. Where that has been made, it stays held until the backup
    /// is taken in anew.
    pub(super) fn is_out(&mut self, lineage: LineageId, orders: &mut Vec<Order>) -> bool {
        if self.found.is_none() || self.is_stopping {
            return false;
        }
        self.found = None;
        if matches!(self.phase, Phase::Waiting { .. }) {
            self.is_held = false;
            self.forget_cuts();
            orders.push(Order::OpenOutput(lineage));
        }
        true
    }

    pub(super) fn forget_cuts(&mut self) {
        self.output_cuts.clear();
        self.found_cut = None;
        self.unsure = None;
    }

    /// Why a guest that is not protected is held.
    pub(super) fn held_words(&self) -> &'static str {
        match self.found {
            Some(Found::Afresh) => {
                "what the guest says is held: the record has the backup in, with the guest of before this one"
            }
            Some(Found::WentOn) => "what the guest says is held: the record has the backup in",
            None => "what the guest says is held",
        }
    }
}
