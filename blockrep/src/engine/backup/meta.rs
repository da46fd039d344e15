//! Metadata of the volume: one write at a time, and what may go on once it is durable.

use super::{BackupVolume, Io, Mode};
use crate::engine::{Effect, Nanos, ToGroup};
use crate::io::{Bufs, Memory, Op, Target};
use blkback_proto::ids::Epoch;
use blkback_proto::meta::{SLOT_BYTES, VolumeMeta, slot_offset};

/// So long a commit waits for a record that carries it while room is short, in nanoseconds.
const CARRIED_NS_MAX: Nanos = 50_000_000;

/// What may happen once the metadata is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Segments before this serial may be overwritten.
    Free(u64),
    /// Commits up to this epoch are durable.
    Committed(Epoch),
    /// The session that was accepted may begin.
    BeginSession,
    /// The image is known to be no epoch: comparing may begin.
    Compare,
    /// The image is known to be an epoch again.
    Consistent,
    /// Writes may be taken.
    Serve,
    /// The image alone is the volume.
    Drained,
    /// Stopped in order.
    Clean,
}

/// Metadata and the write of it that is in flight.
#[derive(Debug)]
pub(super) struct MetaState {
    /// As it should be.
    pub(super) now: VolumeMeta,
    wanted: Vec<Then>,
    running: Option<Vec<Then>>,
}

impl MetaState {
    pub(super) fn new(now: VolumeMeta) -> Self {
        Self {
            now,
            wanted: Vec::new(),
            running: None,
        }
    }

    /// Writes the metadata as it is at that time, then goes on.
    pub(super) fn write(&mut self, then: Then) {
        self.wanted.push(then);
    }

    /// The same is under way already.
    pub(super) fn has(&self, is: impl Fn(&Then) -> bool) -> bool {
        self.wanted
            .iter()
            .chain(self.running.iter().flatten())
            .any(is)
    }

    /// Nothing is wanted or in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.running.is_none()
    }
}

impl<M: Memory> BackupVolume<M> {
    /// Highest committed epoch with a seal in the journal, and when it was cut: what metadata may
    /// name. Own epochs are named only when the tail has reached them: until then recovery reads two
    /// chains, and this is how it knows how much of the first one has to be there.
    fn journaled_committed(&self) -> (Epoch, u64) {
        let known = &self.meta.now;
        self.committed_queue
            .iter()
            .rev()
            .find(|c| c.journaled && !self.is_own(c))
            .filter(|c| c.epoch > known.committed)
            .map_or((known.committed, known.committed_cut_unix_ns), |c| {
                (c.epoch, c.cut_unix_ns)
            })
    }

    pub(super) fn advance_meta(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if self.meta.running.is_some() || self.meta.wanted.is_empty() {
            return;
        }
        let Some(mut bytes) = mem.alloc(SLOT_BYTES) else {
            return;
        };
        self.meta.running = Some(std::mem::take(&mut self.meta.wanted));
        let (committed, cut_unix_ns) = self.journaled_committed();
        let meta = &mut self.meta.now;
        meta.generation += 1;
        meta.committed = committed;
        meta.committed_cut_unix_ns = cut_unix_ns;
        meta.durable = meta.durable.max(committed);
        // Whatever this slot lets happen, to the tail or to the image, may rest on these records.
        if !crate::mutant!("own-synced-unnamed") {
            meta.own_synced = meta.own_synced.max(self.serve.synced_seq);
        }
        meta.encode(bytes.as_mut());
        let offset = slot_offset(meta.generation);
        let bytes = mem.freeze(bytes);
        let routine = |then: &Then| matches!(then, Then::Free(_) | Then::Committed(_));
        if !self.meta.running.iter().flatten().all(routine) {
            // The slot before says something that is no longer true: rot must not bring it back.
            self.meta_copy = Some(bytes.clone());
        }
        let bufs = Bufs::One(bytes);
        self.io(
            Io::MetaWrite,
            Op::Write {
                target: Target::VolumeMeta,
                offset,
                bufs,
            },
            fx,
        );
    }

    pub(super) fn meta_written(&mut self, fx: &mut Vec<Effect<M>>) {
        self.io(
            Io::MetaSync,
            Op::Sync {
                target: Target::VolumeMeta,
            },
            fx,
        );
    }

    pub(super) fn meta_synced(&mut self, fx: &mut Vec<Effect<M>>) {
        if let Some(copy) = self.meta_copy.take() {
            let offset = slot_offset(self.meta.now.generation + 1);
            let (target, bufs) = (Target::VolumeMeta, Bufs::One(copy));
            let op = Op::Write {
                target,
                offset,
                bufs,
            };
            self.io(Io::MetaWrite, op, fx);
            return;
        }
        let thens = self.meta.running.take().expect("a write was in flight");
        for then in thens {
            match then {
                Then::Free(serial) => {
                    self.ring.free_before(serial);
                    self.ack(fx);
                }
                Then::Committed(epoch) => {
                    self.commit_durable = self.commit_durable.max(epoch.min(self.committed));
                }
                Then::BeginSession => self.begin_session(fx),
                Then::Compare => self.session.comparing(),
                Then::Consistent => {
                    self.session.consistent();
                    fx.push(Effect::Group(ToGroup::Consistent(
                        self.meta.now.consistent_from,
                    )));
                    self.mark_durable(fx);
                }
                Then::Serve => {
                    self.mode = Mode::Serving;
                    fx.push(Effect::Group(ToGroup::Serving));
                }
                Then::Drained => {
                    self.mode = Mode::Drained;
                    fx.push(Effect::Group(ToGroup::Drained));
                }
                Then::Clean => self.stopped = true,
            }
        }
    }

    /// Makes the commit a durable fact when no record will carry it soon.
    pub(super) fn advance_commit_fact(&mut self, now: Nanos) {
        if self.commit_durable >= self.committed || self.committed_queue.is_empty() {
            self.pace.commit_waits_since = None;
            return;
        }
        let since = *self.pace.commit_waits_since.get_or_insert(now);
        // A record will carry it: the primary's next, or our own seal of what is open.
        let more = self.mode == Mode::Receiving || self.own_seal_to_come();
        let lively = more && (!self.is_short_of_room() || now < since + CARRIED_NS_MAX);
        if !lively && !self.meta.has(|t| matches!(t, Then::Committed(_))) {
            let committed = self.committed;
            self.meta.write(Then::Committed(committed));
            self.pace.commit_waits_since = None;
        }
    }

    /// When a commit has waited long enough for a record, where room is short.
    pub(super) fn commit_fact_due_at(&self) -> Option<Nanos> {
        let since = self.pace.commit_waits_since?;
        self.is_short_of_room().then_some(since + CARRIED_NS_MAX)
    }

    /// Apply has to make room soon, in the journal or in memory.
    fn is_short_of_room(&self) -> bool {
        self.ring_is_half_full() || self.extents() >= self.settings.extents_max / 2
    }

    pub(super) fn ring_is_half_full(&self) -> bool {
        self.ring.free_bytes() < self.settings.geometry.capacity_bytes() / 2
    }

    /// A pass of apply ended: the tail moves, and segments become free once that is durable.
    pub(super) fn apply_synced(&mut self) {
        self.apply.synced(&mut self.overlay);
        // Own writes that are not synced yet may have covered an epoch's contents, which were
        // therefore not applied: until a sync reaches them, the journal is all there is of both.
        if let Some(append) = self.serve.last_unsynced() {
            self.tail_waits = append;
            self.appends.want_sync(append);
            return;
        }
        self.move_tail();
    }

    /// The journal was synced: a tail that waited for it may move.
    pub(super) fn tail_synced(&mut self) {
        if self.tail_waits != 0 && self.tail_waits <= self.appends.synced {
            self.tail_waits = 0;
            self.move_tail();
        }
    }

    fn move_tail(&mut self) {
        let applied = self.apply.applied();
        while let Some(first) = self.committed_queue.front().copied() {
            if first.epoch > applied {
                break;
            }
            self.committed_queue.pop_front();
            let meta = &mut self.meta.now;
            if first.journaled {
                meta.applied = meta.applied.max(first.epoch);
                if first.epoch > meta.committed {
                    meta.committed = first.epoch;
                    meta.committed_cut_unix_ns = first.cut_unix_ns;
                }
            }
            meta.tail = first.end.place;
            meta.tail_record_seq = first.end.record_seq;
            meta.tail_prev_crc = first.end.prev_crc;
            meta.tail_session = first.end.session;
            meta.tail_lineage = first.end.lineage;
        }
        self.apply.forget_before(self.meta.now.tail);
        self.free_segments();
    }

    /// Segments behind the tail that no read uses any more.
    pub(super) fn free_segments(&mut self) {
        let pinned = self.pins.keys().next().copied().unwrap_or(u64::MAX);
        let serial = self
            .meta
            .now
            .tail
            .serial
            .min(pinned)
            .min(self.ring.head().serial);
        let known = self
            .meta
            .has(|t| matches!(t, Then::Free(s) if *s >= serial));
        if crate::mutant!("reuse-before-metadata") && serial > self.ring.keep_from() {
            self.ring.free_before(serial);
            self.meta.write(Then::Free(serial));
        } else if serial > self.ring.keep_from() && !known {
            self.meta.write(Then::Free(serial));
        }
    }

    /// Stops in order: ends the session and says durably that nothing was cut short.
    pub fn stop(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        self.drop_session("the backup is stopping".to_owned(), fx);
        self.meta.now.clean = true;
        self.meta.write(Then::Clean);
        self.advance(now, mem, fx);
    }

    /// What [`BackupVolume::stop`] began has ended.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped || self.failed.is_some()
    }
}
