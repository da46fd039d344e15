//! First sync: compare every chunk, copy the ones that differ, while the guest goes on.
//!
//! The chunk at hand is locked like a write, so its contents and their place in the stream agree.
//! Guest writes to chunks not yet looked at are not sent: the comparison will see them. Writes to
//! chunks already looked at are sent in epochs as always. The backup is no epoch meanwhile; it is
//! one again at the commit of the epoch in which SYNC_END was sent.

use super::{Link, Pending, PrimaryVolume};
use crate::engine::{Effect, Nanos, ToGroup};
use crate::io::{Done, Memory, Op, Target};
use blkback_proto::link::{Frame, SYNC_CHUNK_BYTES};
use std::collections::VecDeque;

/// Checks that may be unanswered at once.
const CHECKS_MAX: u64 = 8;
/// Range keys of chunks begin here; those of writes are slab keys far below.
const CHUNK_KEY: usize = usize::MAX / 2;

/// What a chunk is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Check(u64),
    Copy(u64),
}

impl Step {
    fn index(self) -> u64 {
        match self {
            Self::Check(index) | Self::Copy(index) => index,
        }
    }
}

/// Where a sync stands.
#[derive(Debug)]
pub(super) struct Sync {
    chunks: u64,
    /// Chunks below this are looked at: writes to them are sent.
    cursor: u64,
    unanswered: u64,
    answered: u64,
    differing: VecDeque<u64>,
    /// At most one chunk is locked and read at a time.
    reading: Option<Step>,
    /// The range of `reading` is ours.
    locked: bool,
    /// The read of `reading` is on its way.
    submitted: bool,
    /// The group has said so.
    pub(super) begun: bool,
}

impl Sync {
    pub(super) fn new(size_bytes: u64) -> Self {
        Self {
            chunks: size_bytes.div_ceil(SYNC_CHUNK_BYTES),
            cursor: 0,
            unanswered: 0,
            answered: 0,
            differing: VecDeque::new(),
            reading: None,
            locked: false,
            submitted: false,
            begun: false,
        }
    }

    /// How much of a write from `offset` on lies in chunks already looked at, in bytes.
    pub(super) fn covered(&self, offset: u64, length: u64) -> u64 {
        (self.cursor * SYNC_CHUNK_BYTES)
            .saturating_sub(offset)
            .min(length)
    }

    /// Done and total, in bytes.
    pub(super) fn progress(&self, size_bytes: u64) -> (u64, u64) {
        (
            (self.answered * SYNC_CHUNK_BYTES).min(size_bytes),
            size_bytes,
        )
    }

    /// The session ends. A range that is read or waited for is given back when that ends: its key
    /// goes to `abandoned`. A range that is only held is returned, to be given back now.
    pub(super) fn abandon(&mut self, abandoned: &mut Vec<usize>) -> Option<usize> {
        let key = key_of(self.reading.take()?);
        if self.locked && !self.submitted {
            return Some(key);
        }
        abandoned.push(key);
        None
    }
}

fn key_of(step: Step) -> usize {
    CHUNK_KEY + usize::try_from(step.index()).expect("volumes are smaller than memory addresses")
}

impl<M: Memory> PrimaryVolume<M> {
    fn chunk_range(&self, index: u64) -> (u64, u64) {
        let start = index * SYNC_CHUNK_BYTES;
        (
            start,
            (start + SYNC_CHUNK_BYTES).min(self.identity.size_bytes),
        )
    }

    /// Begins the next step of a sync, if there is one and room for it.
    pub(super) fn pump_sync(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if !self.chain.is_idle() || !self.abandoned.is_empty() || self.release_later.is_some() {
            return;
        }
        let Link::Syncing { session, sync } = &mut self.link else {
            return;
        };
        if !sync.begun {
            return;
        }
        let session = *session;
        if let Some(step) = sync.reading {
            if sync.locked && !sync.submitted {
                self.read_chunk(mem, step, fx);
            }
            return;
        }
        let step = if let Some(index) = sync.differing.pop_front() {
            Step::Copy(index)
        } else if sync.cursor < sync.chunks && sync.unanswered < CHECKS_MAX {
            Step::Check(sync.cursor)
        } else if sync.cursor == sync.chunks && sync.unanswered == 0 {
            self.link = Link::Live { session };
            self.send_frame(Frame::SyncEnd { epoch: self.epoch });
            // The epoch that is open is the first that is whole; it must not be taken for empty.
            self.wrote = true;
            fx.push(Effect::Group(ToGroup::SyncSent(self.epoch)));
            self.retry_sends(mem, fx);
            return;
        } else {
            return;
        };
        sync.reading = Some(step);
        let (start, end) = self.chunk_range(step.index());
        let locked = if crate::mutant!("chunk-not-locked") {
            let nowhere = u64::MAX - step.index();
            self.ranges.acquire(nowhere - 1, nowhere, key_of(step))
        } else {
            self.ranges.acquire(start, end, key_of(step))
        };
        if locked {
            self.chunk_locked(mem, fx);
        }
    }

    fn chunk_locked(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        let Link::Syncing { sync, .. } = &mut self.link else {
            unreachable!("only a sync locks")
        };
        sync.locked = true;
        let step = sync.reading.expect("locked for a step");
        if let Step::Check(index) = step {
            sync.cursor = index + 1;
        }
        self.read_chunk(mem, step, fx);
    }

    fn read_chunk(&mut self, mem: &mut M, step: Step, fx: &mut Vec<Effect<M>>) {
        let (start, end) = self.chunk_range(step.index());
        let length = usize::try_from(end - start).expect("a chunk");
        let Some(buf) = mem.alloc(length) else { return };
        let Link::Syncing { sync, .. } = &mut self.link else {
            unreachable!("only a sync reads")
        };
        sync.submitted = true;
        let io = self.next_io(Pending::SyncChunk(step));
        fx.push(Effect::Io(
            io,
            Op::Read {
                target: Target::Image,
                offset: start,
                buf,
            },
        ));
    }

    /// A range was given to `key`: a write's turn, or a chunk's.
    pub(super) fn range_granted(
        &mut self,
        now: Nanos,
        mem: &mut M,
        key: usize,
        fx: &mut Vec<Effect<M>>,
    ) {
        if key < CHUNK_KEY {
            self.stamp(now, mem, key, fx);
        } else if let Some(at) = self.abandoned.iter().position(|k| *k == key) {
            self.abandoned.swap_remove(at);
            self.release_range(now, mem, key, fx);
        } else {
            self.chunk_locked(mem, fx);
        }
    }

    pub(super) fn sync_chunk_read(
        &mut self,
        now: Nanos,
        mem: &mut M,
        step: Step,
        done: Done<M>,
        fx: &mut Vec<Effect<M>>,
    ) {
        let key = key_of(step);
        if let Some(at) = self.abandoned.iter().position(|k| *k == key) {
            self.abandoned.swap_remove(at);
            self.release_range(now, mem, key, fx);
            return;
        }
        if let Err(error) = done.result {
            let (start, _) = self.chunk_range(step.index());
            self.drop_link(
                format!("reading the image at {start} for the sync: {error}"),
                fx,
            );
            // The drop left the lock to us.
            self.abandoned.retain(|k| *k != key);
            self.release_range(now, mem, key, fx);
            return;
        }
        let data = done
            .buf
            .expect("a read that succeeded gives its buffer back");
        let Link::Syncing { sync, .. } = &mut self.link else {
            unreachable!("not abandoned")
        };
        (sync.reading, sync.locked, sync.submitted) = (None, false, false);
        match step {
            Step::Check(index) => {
                sync.unanswered += 1;
                let hash = *blake3::hash(data.as_ref()).as_bytes();
                self.send_frame(Frame::SyncCheck { index, hash });
            }
            Step::Copy(index) => {
                let (start, _) = self.chunk_range(index);
                let data = mem.freeze(data);
                self.send_direct(start, data);
            }
        }
        self.retry_sends(mem, fx);
        self.release_range(now, mem, key, fx);
        self.pump_sync(mem, fx);
    }

    pub(super) fn sync_result(&mut self, index: u64, differs: bool, fx: &mut Vec<Effect<M>>) {
        let Link::Syncing { sync, .. } = &mut self.link else {
            self.drop_link("a sync result without a sync".to_owned(), fx);
            return;
        };
        if sync.unanswered == 0 || index >= sync.cursor {
            self.drop_link(
                format!("a sync result for chunk {index} that was not asked"),
                fx,
            );
            return;
        }
        sync.unanswered -= 1;
        sync.answered += 1;
        if differs {
            sync.differing.push_back(index);
        }
    }
}
