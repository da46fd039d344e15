//! After a promotion: writes go to the end of the journal, under the new lineage, until all of it
//! is applied. An extent with an unapplied entry is never written to the image directly.
//!
//! Replies come in journal order, so what a crash keeps is always a prefix of what was answered.

use super::meta::Then;
use super::{BackupVolume, Committed, Mode};
use crate::engine::builder::Builder;
use crate::engine::{Effect, Nanos, Outgoing, ToGroup};
use crate::io::{Bufs, Memory, Op, Request, RequestId, Target};
use crate::journal::scan::{Expect, extents_of};
use crate::overlay::Extent;
use blkback_proto::ids::{Epoch, LineageId, Place, SessionId};
use blkback_proto::record::{
    DescriptorKind, EPOCH_MAX, FLAG_CHAIN_START, HEADER_BYTES, Header, RECORD_BYTES_MAX, RecordKind,
};
use blkback_proto::segment::SEGMENT_HEADER_BYTES;
use std::collections::VecDeque;

/// Own writes are sealed at least that often, so that apply can go on, in nanoseconds.
const SEAL_NS: Nanos = 50_000_000;
/// With this few extents left, new writes wait until the journal is empty: a fraction of a second.
pub const SWITCH_EXTENTS: usize = 256;
/// The same in bytes.
const SWITCH_BYTES: u64 = 16 << 20;

/// A record of our own on its way.
struct Own {
    number: u64,
    extents: Vec<Extent>,
    replies: Vec<(RequestId, bool)>,
    sealed: Option<Epoch>,
    end: Expect,
    written: bool,
}

/// State of a promoted volume.
pub(super) struct Serve<M: Memory> {
    pub(super) queue: VecDeque<(RequestId, Request<M>)>,
    own: VecDeque<Own>,
    builder: Builder<M>,
    padding: M::Buf,
    epoch: Epoch,
    lineage: LineageId,
    record_seq: u64,
    prev_crc: u32,
    sealed: Epoch,
    /// Number of the last own record that is synced.
    pub(super) synced_seq: u64,
    /// Last own epoch that is sealed and synced.
    flushed: Epoch,
    unsealed: bool,
    sealed_at: Nanos,
    /// New writes wait: the journal is about to be empty.
    switching: bool,
}

/// The session id in own records: it has to be some number that belongs to the lineage.
#[must_use]
pub fn own_session(lineage: LineageId) -> SessionId {
    let bytes: [u8; 8] = lineage.0[..8].try_into().expect("sixteen bytes");
    SessionId(u64::from_le_bytes(bytes))
}

impl<M: Memory> Serve<M> {
    pub(super) fn new(mem: &mut M) -> Self {
        let padding = mem
            .alloc(HEADER_BYTES)
            .expect("an engine begins with free memory");
        Self {
            queue: VecDeque::new(),
            own: VecDeque::new(),
            builder: Builder::default(),
            padding: mem.freeze(padding),
            epoch: Epoch::NONE,
            lineage: LineageId::NONE,
            record_seq: 0,
            prev_crc: 0,
            sealed: Epoch::NONE,
            synced_seq: 0,
            flushed: Epoch::NONE,
            unsealed: false,
            sealed_at: 0,
            switching: false,
        }
    }

    pub(super) fn next_tick(&self, mode: Mode) -> Option<Nanos> {
        (mode == Mode::Serving && self.unsealed).then_some(self.sealed_at + SEAL_NS)
    }

    /// Last own append that can be read and is not known to be synced.
    pub(super) fn last_unsynced(&self) -> Option<u64> {
        let written = self.own.iter().rev().find(|own| own.written);
        written.map(|own| own.number)
    }

    pub(super) fn take_all_requests(&mut self) -> Vec<RequestId> {
        let queued = self.queue.drain(..).map(|(id, _)| id);
        let own = self
            .own
            .drain(..)
            .flat_map(|own| own.replies.into_iter().map(|(id, _)| id));
        queued.chain(own).collect()
    }
}

impl<M: Memory> BackupVolume<M> {
    pub(super) fn fence(&mut self, fx: &mut Vec<Effect<M>>) {
        self.drop_session("this backup is being promoted".to_owned(), fx);
        if !matches!(self.mode, Mode::Serving | Mode::Drained) {
            self.mode = Mode::Fenced;
        }
    }

    pub(super) fn unfence(&mut self) {
        if self.mode == Mode::Fenced {
            self.mode = Mode::Waiting;
            self.fence_told = false;
        }
    }

    /// Whose records these are: own ones carry the history of the promotion.
    pub(super) fn is_own(&self, committed: &Committed) -> bool {
        !self.serve.lineage.is_none() && committed.end.lineage == self.serve.lineage
    }

    /// Fenced and quiet: nothing can become durable any more.
    fn advance_fence(&mut self, fx: &mut Vec<Effect<M>>) {
        if self.fence_told || !self.appends.is_idle() || !self.meta.is_idle() {
            return;
        }
        self.fence_told = true;
        let sealed = self.durable;
        let begun = self.pending.back().map_or(sealed, |p| p.epoch.max(sealed));
        self.pending.retain(|p| p.epoch <= sealed);
        fx.push(Effect::Group(ToGroup::Fenced { sealed, begun }));
    }

    pub(super) fn promote(&mut self, epoch: Epoch, lineage: LineageId) {
        assert_eq!(self.mode, Mode::Fenced, "a promotion begins with a fence");
        self.pending.retain(|p| p.epoch <= epoch);
        let mut none = Vec::new();
        self.commit(epoch, &mut none);
        debug_assert!(none.is_empty(), "no session is left to tell");
        let serial = self
            .ring
            .next_segment()
            .expect("a segment is kept for this");
        self.serve.epoch = epoch.next();
        self.serve.sealed = epoch;
        self.serve.lineage = lineage;
        self.expect = None;
        self.meta.now.own_serial = serial;
        self.meta.now.own_synced = 0;
        self.meta.now.clean = false;
        self.meta.write(Then::Committed(epoch));
        self.meta.write(Then::Serve);
    }

    /// After a restart of a promoted side: everything recovered counts; writes wait until it is in
    /// the image. Where nothing is left to apply the volume is drained at once.
    pub fn resume_serving(&mut self, lineage: LineageId) {
        if self.meta.now.journal_empty {
            self.serve.lineage = lineage;
            self.mode = Mode::Drained;
            return;
        }
        let last = self.pending.back().map_or(self.committed, |p| p.epoch);
        let mut none = Vec::new();
        self.commit(last, &mut none);
        self.durable = self.durable.max(last);
        self.serve.epoch = last.next();
        self.serve.sealed = last;
        self.serve.lineage = lineage;
        self.switch();
        self.mode = Mode::Serving;
    }

    /// The requests that wait, once the journal is drained and nothing is in flight.
    #[must_use]
    pub fn take_drained(&mut self) -> Option<VecDeque<(RequestId, Request<M>)>> {
        let quiet = self.mode == Mode::Drained && self.ios.is_empty() && self.reads.is_empty();
        quiet.then(|| std::mem::take(&mut self.serve.queue))
    }

    pub(super) fn serve_tick(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        let due = now.saturating_sub(self.serve.sealed_at) >= SEAL_NS;
        if self.mode == Mode::Serving && self.serve.unsealed && due {
            self.own_record(now, mem, None, true, fx);
        }
    }

    pub(super) fn advance_serve(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if self.mode == Mode::Fenced {
            self.advance_fence(fx);
        }
        if self.mode != Mode::Serving {
            return;
        }
        if !self.serve.switching && self.little_left() {
            self.switch();
        }
        if self.serve.switching {
            self.advance_switch(now, mem, fx);
        }
        if crate::mutant!("write-around-journal") {
            self.write_around(fx);
        }
        while !self.serve.queue.is_empty() {
            let flush = matches!(self.serve.queue.front(), Some((_, Request::Flush)));
            if flush && !self.serve.unsealed && self.serve.own.is_empty() {
                // Nothing was written since the last one; recovery gave nothing that is not synced.
                let (id, _) = self.serve.queue.pop_front().expect("looked at just now");
                self.reply(id, Ok(()), None, fx);
                continue;
            }
            if self.serve.switching && !flush {
                return;
            }
            let went = if flush {
                let id = self.serve.queue.front().expect("looked at just now").0;
                self.own_record(now, mem, Some(id), true, fx)
            } else {
                self.own_record(now, mem, None, false, fx)
            };
            if !went {
                return;
            }
            if flush {
                self.serve.queue.pop_front();
            }
        }
    }

    /// Own writes are open: their seal will carry what is known by then.
    pub(super) fn own_seal_to_come(&self) -> bool {
        self.mode == Mode::Serving && self.serve.unsealed && !self.serve.switching
    }

    /// So little is left to apply that writes can wait for it.
    fn little_left(&self) -> bool {
        self.overlay.len() <= self.settings.switch_extents && {
            let left = self.overlay.iter_from(0, EPOCH_MAX);
            left.map(|extent| extent.length).sum::<u64>() <= SWITCH_BYTES
        }
    }

    /// From here on writes wait until the journal is drained, so apply is not throttled any more.
    fn switch(&mut self) {
        self.serve.switching = true;
        self.apply.hurry();
    }

    /// A planted bug.
    fn write_around(&mut self, fx: &mut Vec<Effect<M>>) {
        while let Some((_, Request::Write { .. })) = self.serve.queue.front() {
            let Some((id, Request::Write { offset, buf, .. })) = self.serve.queue.pop_front()
            else {
                unreachable!("looked at just now")
            };
            self.session.direct_in_flight += 1;
            let op = Op::Write {
                target: Target::Image,
                offset,
                bufs: Bufs::One(buf),
            };
            self.io(super::Io::Direct, op, fx);
            self.reply(id, Ok(()), None, fx);
        }
    }

    /// Waits until nothing of the journal is left, then says so durably.
    fn advance_switch(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if self.serve.unsealed {
            self.own_record(now, mem, None, true, fx);
        }
        let empty = self.overlay.is_empty()
            && self.committed_queue.is_empty()
            && self.serve.own.is_empty()
            && self.apply.is_idle()
            && self.appends.is_idle();
        if empty && !self.meta.has(|t| *t == Then::Drained) {
            let serial = self.ring.head().serial + 1;
            let meta = &mut self.meta.now;
            meta.tail = Place {
                serial,
                offset: SEGMENT_HEADER_BYTES as u64,
            };
            meta.tail_record_seq = 1;
            meta.tail_prev_crc = 0;
            meta.tail_session = own_session(self.serve.lineage);
            meta.tail_lineage = self.serve.lineage;
            meta.own_serial = 0;
            meta.own_synced = 0;
            self.serve.synced_seq = 0;
            meta.journal_empty = true;
            self.meta.write(Then::Drained);
        }
    }

    /// Appends a record with the writes at the head of the queue, or a seal. False: not now.
    fn own_record(
        &mut self,
        now: Nanos,
        mem: &mut M,
        flush: Option<RequestId>,
        seal: bool,
        fx: &mut Vec<Effect<M>>,
    ) -> bool {
        // A seal always has room behind writes: apply needs it to make more.
        let needed = HEADER_BYTES as u64 + if seal { 0 } else { RECORD_BYTES_MAX };
        let room = self.ring.free_bytes() >= needed
            && (seal || self.overlay.len() < self.settings.extents_max);
        let Some(spare) = mem.alloc(SEGMENT_HEADER_BYTES + HEADER_BYTES) else {
            return false;
        };
        drop(spare);
        if !room {
            return false;
        }
        let mut replies = Vec::new();
        let synced = seal || self.gather(now, &mut replies);
        replies.extend(flush.map(|id| (id, true)));
        let first = self.serve.record_seq == 0;
        let identity = self.identity.expect("a promoted volume has an identity");
        let kind = if seal {
            RecordKind::Seal
        } else {
            RecordKind::Writes
        };
        let template = Header {
            kind,
            flags: if first { FLAG_CHAIN_START } else { 0 },
            prev_crc: self.serve.prev_crc,
            volume_index: identity.volume_index,
            epoch: self.serve.epoch,
            record_seq: self.serve.record_seq + 1,
            session: own_session(self.serve.lineage),
            first_write_seq: 0,
            group: identity.group,
            volume: identity.volume,
            lineage: self.serve.lineage,
            durable: self.own_durable(),
            committed: self.own_durable(),
            released: self.own_durable(),
            cut_unix_ns: 0,
            base_epoch: self.serve.sealed,
            epoch_writes: 0,
            epoch_bytes: 0,
            descriptors: Vec::new(),
        };
        let total = self.serve.builder.total_bytes();
        let slot = self.ring.take(total).expect("there is room");
        let (header, crc, outgoing) = self
            .serve
            .builder
            .finish(mem, &self.serve.padding, Some(slot.place), &template)
            .expect("memory was there just now");
        let Outgoing::Record(bufs) = outgoing else {
            unreachable!("a builder makes records")
        };
        let bufs = bufs.into();
        let number = self
            .append(mem, &header, crc, slot.place, slot.new_segment, bufs, fx)
            .expect("memory was there just now");
        self.serve.record_seq = header.record_seq;
        self.serve.prev_crc = crc;
        self.note_own(now, &header, slot.place, number, replies, synced);
        true
    }

    /// Own epochs known to be flushed, as own records carry it; the promotion's do not count.
    fn own_durable(&self) -> Epoch {
        self.serve.flushed
    }

    fn note_own(
        &mut self,
        now: Nanos,
        header: &Header,
        place: Place,
        number: u64,
        replies: Vec<(RequestId, bool)>,
        synced: bool,
    ) {
        let mut extents = Vec::new();
        extents_of(header, place, &mut extents);
        self.counters.writes += extents.len() as u64;
        let sealed = (header.kind == RecordKind::Seal).then_some(header.epoch);
        let end = self.expect.expect("a record was just appended");
        self.serve.own.push_back(Own {
            number,
            extents,
            replies,
            sealed,
            end,
            written: false,
        });
        if !self.serve.unsealed {
            self.serve.sealed_at = now;
        }
        self.serve.unsealed = sealed.is_none();
        if sealed.is_some() {
            self.serve.sealed = header.epoch;
            self.serve.epoch = header.epoch.next();
        }
        if synced {
            self.appends.want_sync(number);
        }
    }

    /// Takes writes from the queue into the builder; true when one of them is FUA.
    fn gather(&mut self, now: Nanos, replies: &mut Vec<(RequestId, bool)>) -> bool {
        let mut any_fua = false;
        while let Some((_, request)) = self.serve.queue.front() {
            let payload = match request {
                Request::Write { buf, .. } => buf.as_ref().len() as u64,
                Request::Zero { .. } => 0,
                Request::Read { .. } | Request::Flush => break,
            };
            if self.serve.builder.is_full_for(payload) {
                break;
            }
            let (id, request) = self.serve.queue.pop_front().expect("looked at just now");
            let fua = match request {
                Request::Write { offset, buf, fua } => {
                    let kind = DescriptorKind::Data;
                    self.serve
                        .builder
                        .push(now, 0, kind, offset, payload, Some(buf));
                    fua
                }
                Request::Zero {
                    offset,
                    length,
                    discard,
                    fua,
                } => {
                    let kind = if discard {
                        DescriptorKind::Discard
                    } else {
                        DescriptorKind::Zero
                    };
                    self.serve.builder.push(now, 0, kind, offset, length, None);
                    fua
                }
                Request::Read { .. } | Request::Flush => unreachable!("left in the queue"),
            };
            any_fua |= fua;
            replies.push((id, fua));
        }
        any_fua
    }

    /// Own records are in the journal: readable from now on, and answered unless FUA.
    pub(super) fn own_written(&mut self, fx: &mut Vec<Effect<M>>) {
        let written = self.appends.written;
        let mut answered = Vec::new();
        for own in &mut self.serve.own {
            if own.number > written {
                break;
            }
            if !own.written {
                own.written = true;
                for extent in &own.extents {
                    self.overlay.insert(*extent);
                }
                answered.extend(
                    own.replies
                        .extract_if(.., |(_, fua)| !*fua)
                        .map(|(id, _)| id),
                );
            }
        }
        for id in answered {
            self.reply(id, Ok(()), None, fx);
        }
    }

    /// Own records are on stable storage.
    pub(super) fn own_synced(&mut self, fx: &mut Vec<Effect<M>>) {
        let synced = self.appends.synced;
        while self
            .serve
            .own
            .front()
            .is_some_and(|own| own.number <= synced)
        {
            let own = self.serve.own.pop_front().expect("looked at just now");
            self.serve.synced_seq = own.end.record_seq - 1;
            for (id, _) in own.replies {
                self.reply(id, Ok(()), None, fx);
            }
            if let Some(epoch) = own.sealed {
                self.queue_committed(Committed {
                    epoch,
                    journaled: true,
                    cut_unix_ns: 0,
                    end: own.end,
                });
                self.serve.flushed = epoch;
                self.durable = epoch;
                self.committed = epoch;
            }
        }
    }
}
