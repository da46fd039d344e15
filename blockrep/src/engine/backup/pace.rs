//! When apply begins a pass, and how far the pass goes.
//!
//! While records come in, apply waits: what is overwritten meanwhile is written once, more
//! neighbours are written together, and the disk belongs to the journal and whoever else uses it. It
//! begins when nothing came in for a moment, when a good part of the journal is in use, when the
//! oldest epoch has waited long enough, or when large records, which gain nothing by that, would soon have to
//! be read from the journal again. A pass takes whole epochs up to [`PASS_BYTES`] of the
//! journal, so that room comes back bit by bit. Without a session nothing is waited for.

use super::{BackupVolume, Mode};
use crate::engine::Nanos;
use crate::io::Memory;
use blkback_proto::ids::{Epoch, Place};

/// Journal bytes a pass takes at most, unless one epoch alone has more.
const PASS_BYTES: u64 = 8 << 20;
/// Part of the journal's capacity that may be in use before apply begins.
const LAZY_PART: u64 = 4;
/// Without a record for that long apply begins, in nanoseconds.
const QUIET_NS: Nanos = 50_000_000;
/// An epoch waits no longer than that for apply to begin, in nanoseconds.
const AGE_NS_MAX: Nanos = 5_000_000_000;

/// What apply waits for.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Since when there is something to apply.
    waits_since: Option<Nanos>,
    /// Since when a commit is no durable fact.
    pub(super) commit_waits_since: Option<Nanos>,
    /// When the last record came in.
    pub(super) received: Nanos,
}

impl<M: Memory> BackupVolume<M> {
    /// How far apply may go now; what is applied already, if it had better wait.
    pub(super) fn apply_limit(&mut self, now: Nanos) -> Epoch {
        let applied = self.apply.applied();
        if self.commit_durable <= applied || !self.apply.is_idle() {
            return applied;
        }
        let since = *self.pace.waits_since.get_or_insert(now);
        if !self.is_apply_due(now, since) {
            return applied;
        }
        self.pace.waits_since = None;
        let tail = self.meta.now.tail;
        let mut limit = None;
        for committed in &self.committed_queue {
            let fits =
                limit.is_none() || self.bytes_between(tail, committed.end.place) <= PASS_BYTES;
            if committed.epoch > self.commit_durable || !fits {
                break;
            }
            if committed.epoch > applied {
                limit = Some(committed.epoch);
            }
        }
        limit.unwrap_or(self.commit_durable)
    }

    fn is_apply_due(&self, now: Nanos, since: Nanos) -> bool {
        self.mode != Mode::Receiving
            || now >= self.pace.received + QUIET_NS
            || now >= since + AGE_NS_MAX
            || self.apply.is_filled_by_large()
            || self.unapplied_bytes() >= self.settings.geometry.capacity_bytes() / LAZY_PART
            || self.extents() as u64 >= self.settings.extents_max as u64 / LAZY_PART
    }

    /// When apply is due at the latest.
    pub(super) fn apply_due_at(&self) -> Option<Nanos> {
        let since = self.pace.waits_since.filter(|_| self.apply.is_idle())?;
        Some((since + AGE_NS_MAX).min(self.pace.received + QUIET_NS))
    }

    /// Journal bytes from one place to a later one.
    pub(super) fn bytes_between(&self, from: Place, to: Place) -> u64 {
        let segments = to.serial.saturating_sub(from.serial);
        (segments * self.settings.geometry.segment_bytes + to.offset).saturating_sub(from.offset)
    }
}
