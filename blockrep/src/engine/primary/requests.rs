//! The path of a guest's request through a primary volume.

use super::{Link, Pending, PrimaryVolume, Waiting, Write};
use crate::config::AckMode;
use crate::engine::builder::charge_of;
use crate::engine::{Effect, Nanos, Protection, ToGroup};
use crate::io::{Bufs, Done, IoError, Memory, Op, Reply, Request, RequestId, Target};
use blkback_proto::ids::Epoch;
use blkback_proto::record::{DescriptorKind, HEADER_BYTES};

/// Range of a write-like request, in bytes.
fn range<M: Memory>(request: &Request<M>) -> (u64, u64) {
    match request {
        Request::Write { offset, buf, .. } => (*offset, buf.as_ref().len() as u64),
        Request::Zero { offset, length, .. } => (*offset, *length),
        Request::Read { .. } | Request::Flush => (0, 0),
    }
}

/// Journal charge of a write-like request: at most this, with a record of its own.
fn charge<M: Memory>(request: &Request<M>) -> u64 {
    let payload = match request {
        Request::Write { buf, .. } => buf.as_ref().len() as u64,
        _ => 0,
    };
    HEADER_BYTES as u64 + charge_of(payload)
}

/// Whether a write has to be durable before it is answered.
fn is_fua<M: Memory>(request: &Request<M>) -> bool {
    match request {
        Request::Write { fua, .. } | Request::Zero { fua, .. } => *fua,
        Request::Read { .. } | Request::Flush => false,
    }
}

impl<M: Memory> PrimaryVolume<M> {
    /// A request of a front end.
    pub fn request(
        &mut self,
        now: Nanos,
        mem: &mut M,
        id: RequestId,
        request: Request<M>,
        fx: &mut Vec<Effect<M>>,
    ) {
        if self.failed.is_some() && !matches!(request, Request::Read { .. }) {
            self.reply_error(id, libc::EIO, fx);
            return;
        }
        match request {
            Request::Read { offset, buf } => {
                self.counters.reads += 1;
                self.counters.read_bytes += M::length_of(&buf);
                let io = self.next_io(Pending::Read(id));
                fx.push(Effect::Io(
                    io,
                    Op::Read {
                        target: Target::Image,
                        offset,
                        buf,
                    },
                ));
            }
            Request::Flush => self.flush(id, fx),
            write => {
                self.admission.push_back((id, write));
                self.admit(now, mem, fx);
            }
        }
    }

    /// Lets waiting writes in, in order, as far as protection and window allow.
    pub(super) fn admit(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        while let Some((_, next)) = self.admission.front() {
            if self.protection == Protection::Blocked {
                return;
            }
            if !self.fits_window(charge(next)) {
                if self.pressure_since.is_none() {
                    self.pressure_since = Some(now);
                    self.counters.pressure += 1;
                    fx.push(Effect::Group(ToGroup::WantCut));
                }
                return;
            }
            let (request, body) = self.admission.pop_front().expect("looked at just now");
            let (offset, length) = range(&body);
            self.admitted_charge += charge(&body);
            let key = self.writes.insert(Write {
                request,
                body,
                epoch: Epoch::NONE,
            });
            if self.ranges.acquire(offset, offset + length, key) {
                self.stamp(now, mem, key, fx);
            }
        }
        self.pressure_since = None;
        self.draining = false;
    }

    /// Whether a write of that charge may be admitted: everything admitted must be able to finish
    /// without a commit, so the front ends' share of the window is kept back.
    fn fits_window(&self, charge: u64) -> bool {
        if !self.link_carries_all() && !matches!(self.link, Link::Syncing { .. }) {
            return true;
        }
        let reserve = if self.draining {
            0
        } else {
            // A small journal could hold nothing but the reserve.
            self.settings.reserve_bytes.min(self.chain.capacity / 4)
        };
        self.chain.credit_left() >= self.admitted_charge + charge + reserve
    }

    pub(super) fn link_carries_all(&self) -> bool {
        matches!(self.link, Link::Live { .. })
    }

    /// Gives a write its epoch and sends it to the image and into the record, in one step.
    pub(super) fn stamp(&mut self, now: Nanos, mem: &mut M, key: usize, fx: &mut Vec<Effect<M>>) {
        let write = &mut self.writes[key];
        write.epoch = self.epoch;
        self.admitted_charge -= charge(&write.body);
        self.wrote = true;
        self.wrote_last = self.epoch;
        let (offset, length) = range(&write.body);
        self.counters.writes += 1;
        self.counters.write_bytes += length;
        let (kind, payload, op) = match &write.body {
            Request::Write { offset, buf, .. } => {
                let op = Op::Write {
                    target: Target::Image,
                    offset: *offset,
                    bufs: Bufs::One(buf.clone()),
                };
                (DescriptorKind::Data, Some(buf.clone()), op)
            }
            Request::Zero { discard: true, .. } => (
                DescriptorKind::Discard,
                None,
                Op::Discard { offset, length },
            ),
            Request::Zero { discard: false, .. } => {
                (DescriptorKind::Zero, None, Op::Zero { offset, length })
            }
            Request::Read { .. } | Request::Flush => unreachable!("only writes are stamped"),
        };
        let carried = match &self.link {
            Link::Down | Link::Greeting { .. } | Link::Welcomed { .. } => 0,
            Link::Live { .. } => length,
            // The rest is compared later and will be seen then.
            Link::Syncing { sync, .. } => sync.covered(offset, length),
        };
        if matches!(
            self.link,
            Link::Down | Link::Greeting { .. } | Link::Welcomed { .. }
        ) {
            self.unsent = true;
        }
        if carried > 0 {
            let part = payload.map(|p| {
                let carried = usize::try_from(carried).expect("inside a buffer");
                if carried == p.as_ref().len() {
                    p
                } else {
                    mem.slice(&p, 0, carried)
                }
            });
            self.push_record(now, mem, kind, offset, carried, part, fx);
        }
        self.next_write_seq += 1;
        let io = self.next_io(Pending::Write(key));
        fx.push(Effect::Io(io, op));
        // Its answer waits for a cut: that need not wait for the image.
        if self.protection == Protection::Protected
            && self.waits_for_backup(is_fua(&self.writes[key].body))
        {
            fx.push(Effect::Group(ToGroup::WantCut));
        }
    }

    /// Whether the answer to a write waits until it is committed.
    fn waits_for_backup(&self, fua: bool) -> bool {
        match self.settings.ack {
            AckMode::Write => true,
            AckMode::Flush => fua,
            AckMode::Local => false,
        }
    }

    pub(super) fn read_done(&mut self, id: RequestId, done: Done<M>, fx: &mut Vec<Effect<M>>) {
        if done.result.is_err() {
            self.counters.errors += 1;
        }
        let buf = if done.result.is_ok() { done.buf } else { None };
        fx.push(Effect::Reply(Reply {
            id,
            result: done.result,
            buf,
        }));
    }

    pub(super) fn write_done(
        &mut self,
        now: Nanos,
        mem: &mut M,
        key: usize,
        result: Result<(), IoError>,
        fx: &mut Vec<Effect<M>>,
    ) {
        let write = self.writes.remove(key);
        self.release_range(now, mem, key, fx);
        if let Err(error) = result {
            let (offset, length) = range(&write.body);
            self.reply_error(write.request, libc::EIO, fx);
            self.fail(format!("write of {length} bytes at {offset}: {error}"), fx);
            return;
        }
        if self.failed.is_some() {
            self.reply_error(write.request, libc::EIO, fx);
            return;
        }
        let fua = is_fua(&write.body);
        let epoch = if self.waits_for_backup(fua) {
            write.epoch
        } else {
            Epoch::NONE
        };
        let sync = if fua { self.want_sync(fx) } else { 0 };
        self.wait(
            Waiting {
                request: write.request,
                sync,
                epoch,
            },
            fx,
        );
    }

    /// Gives a range back and starts the writes whose turn has come.
    pub(super) fn release_range(
        &mut self,
        now: Nanos,
        mem: &mut M,
        key: usize,
        fx: &mut Vec<Effect<M>>,
    ) {
        let mut granted = std::mem::take(&mut self.granted);
        self.ranges.release(key, &mut granted);
        for key in granted.drain(..) {
            self.range_granted(now, mem, key, fx);
        }
        self.granted = granted;
    }

    fn flush(&mut self, request: RequestId, fx: &mut Vec<Effect<M>>) {
        self.counters.flushes += 1;
        let sync = self.want_sync(fx);
        let remote = matches!(self.settings.ack, AckMode::Flush | AckMode::Write);
        // Writes completed so far are in the epoch of the last write or an earlier one.
        let remote = remote && !crate::mutant!("flush-local-only");
        let epoch = if remote { self.wrote_last } else { Epoch::NONE };
        self.wait(
            Waiting {
                request,
                sync,
                epoch,
            },
            fx,
        );
    }

    /// Number of a local sync that will cover everything completed by now.
    fn want_sync(&mut self, fx: &mut Vec<Effect<M>>) -> u64 {
        if self.syncs.running != 0 {
            self.syncs.wanted = true;
            return self.syncs.running + 1;
        }
        self.start_sync(fx)
    }

    fn start_sync(&mut self, fx: &mut Vec<Effect<M>>) -> u64 {
        self.syncs.last += 1;
        self.syncs.running = self.syncs.last;
        self.syncs.wanted = false;
        let io = self.next_io(Pending::Sync);
        fx.push(Effect::Io(
            io,
            Op::Sync {
                target: Target::Image,
            },
        ));
        self.syncs.running
    }

    pub(super) fn sync_done(&mut self, result: Result<(), IoError>, fx: &mut Vec<Effect<M>>) {
        let number = std::mem::take(&mut self.syncs.running);
        match result {
            Ok(()) => {
                self.syncs.done = number;
                if self.syncs.wanted {
                    self.start_sync(fx);
                }
                self.settle(fx);
            }
            Err(error) => self.fail(format!("sync: {error}"), fx),
        }
    }

    /// Replies at once, or when what the reply waits for has happened.
    fn wait(&mut self, waiting: Waiting, fx: &mut Vec<Effect<M>>) {
        if self.is_met(&waiting) {
            self.reply_ok(waiting, fx);
            return;
        }
        if waiting.epoch == self.epoch && self.protection == Protection::Protected {
            fx.push(Effect::Group(ToGroup::WantCut));
        }
        self.waiting.push(waiting);
    }

    fn is_met(&self, waiting: &Waiting) -> bool {
        let remote = match self.protection {
            Protection::Unprotected => true,
            Protection::Protected => waiting.epoch <= self.acked.committed,
            Protection::Blocked => false,
        };
        remote && waiting.sync <= self.syncs.done
    }

    /// Something happened that replies may have waited for.
    pub(super) fn settle(&mut self, fx: &mut Vec<Effect<M>>) {
        let mut index = 0;
        while index < self.waiting.len() {
            if self.is_met(&self.waiting[index]) {
                let waiting = self.waiting.remove(index);
                self.reply_ok(waiting, fx);
            } else {
                index += 1;
            }
        }
    }

    fn reply_ok(&mut self, waiting: Waiting, fx: &mut Vec<Effect<M>>) {
        if self.prepared && !crate::mutant!("completions-not-held") {
            self.held.push(waiting);
        } else {
            fx.push(Effect::Reply(Reply {
                id: waiting.request,
                result: Ok(()),
                buf: None,
            }));
        }
    }

    pub(super) fn reply_error(&mut self, id: RequestId, errno: i32, fx: &mut Vec<Effect<M>>) {
        self.counters.errors += 1;
        fx.push(Effect::Reply(Reply {
            id,
            result: Err(IoError { errno }),
            buf: None,
        }));
    }

    /// Lets held completions go, unless a cut is under way. Protection may have begun since they
    /// were held: then they wait for what it asks, like all others.
    pub(super) fn let_go(&mut self, fx: &mut Vec<Effect<M>>) {
        if !self.prepared {
            for waiting in std::mem::take(&mut self.held) {
                self.wait(waiting, fx);
            }
        }
    }
}
