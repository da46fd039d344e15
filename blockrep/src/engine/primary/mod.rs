//! Engine of a volume in the primary role.
//!
//! A write is *stamped* with its epoch in the same step in which it is handed to the image and put
//! into the record for the backup; what was stamped before a cut is in the epoch, what comes after
//! is not. So a write issued after another one completed is never in an earlier epoch, and any cut
//! is crash-consistent. Overlapping writes in flight take turns ([`super::ranges`]).
//!
//! ```text
//!   request ─► admit ─► range lock ─► stamp ─┬─► image write ──┬─► reply by ack mode
//!              (window, protection)          └─► record ─► link ┘   (local, flush, write)
//! ```
//!
//! The link of a volume:
//! ```text
//!   Down ──connected──► Greeting ──welcome──► Syncing ──everything sent──► Live
//!    ▲                      │                    │                           │
//!    └──────── lost, refused, dropped by the group ◄─────────────────────────┘
//! ```

mod link;
mod requests;
mod sync;

pub use link::LINK_SILENCE_NS_MAX;

use super::ranges::RangeLocks;
use super::{Effect, Identity, Nanos, Protection, ToGroup, ToVolume};
use crate::config::AckMode;
use crate::io::{Done, IoId, Memory, Request, RequestId};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use slab::Slab;
use std::collections::VecDeque;
use sync::Sync;

/// What an operator sets of a primary volume.
#[derive(Clone, Debug)]
pub struct PrimarySettings {
    /// When writes and flushes complete.
    pub ack: AckMode,
    /// Most bytes the front ends can have in flight: kept free in the backup's window.
    pub reserve_bytes: u64,
    /// The operator vouches that a blank backup's image equals this one.
    pub assume_identical: bool,
    /// How long writes may wait for window space before the loss policy decides.
    pub pressure_ns_max: Nanos,
}

/// A guest's write, zeroing or discard between admission and reply.
struct Write<M: Memory> {
    request: RequestId,
    body: Request<M>,
    epoch: Epoch,
}

/// What an operation of the image belongs to.
enum Pending {
    Read(RequestId),
    Write(usize),
    Sync,
    SyncChunk(sync::Step),
}

/// A reply that waits for something after the image has the data.
struct Waiting {
    request: RequestId,
    /// The local sync with this number has to end first; 0: none.
    sync: u64,
    /// This epoch has to be committed first; none: no wait.
    epoch: Epoch,
}

/// State of the link.
enum Link {
    Down,
    Greeting {
        session: SessionId,
    },
    /// Welcomed by a backup that has seen epochs up to `above`: goes on at the next cut.
    Welcomed {
        session: SessionId,
        sync_needed: bool,
        above: Epoch,
    },
    Syncing {
        session: SessionId,
        sync: Sync,
    },
    Live {
        session: SessionId,
    },
}

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads answered.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes, zeroings and discards stamped.
    pub writes: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Flushes asked.
    pub flushes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Times a write had to wait for window space.
    pub pressure: u64,
}

/// A volume in the primary role.
pub struct PrimaryVolume<M: Memory> {
    identity: Identity,
    settings: PrimarySettings,
    group_name: String,
    lineage: Vec<(LineageId, Epoch)>,
    epoch: Epoch,
    wrote: bool,
    /// Epoch of the last write; none before the first.
    wrote_last: Epoch,
    next_write_seq: u64,
    protection: Protection,
    prepared: bool,
    failed: Option<String>,

    writes: Slab<Write<M>>,
    ranges: RangeLocks<usize>,
    admission: VecDeque<(RequestId, Request<M>)>,
    admitted_charge: u64,
    draining: bool,
    pressure_since: Option<Nanos>,
    pending: Slab<Pending>,
    held: Vec<Waiting>,
    waiting: Vec<Waiting>,

    syncs: Syncs,
    link: Link,
    chain: link::Chain<M>,
    acked: link::Acked,
    granted: Vec<usize>,
    /// Something was written that no session has carried.
    unsent: bool,
    /// Ranges of a sync whose session ended; given back when their read or wait ends.
    abandoned: Vec<usize>,
    /// A range of a sync to be given back in the next step.
    release_later: Option<usize>,
    counters: Counters,
}

/// Local syncs: at most one in flight; everybody who came before it began shares it.
#[derive(Debug, Default)]
struct Syncs {
    /// Number of the sync in flight; 0 if none.
    running: u64,
    /// Last number given out.
    last: u64,
    /// Somebody waits for the next one.
    wanted: bool,
    /// Last one that ended.
    done: u64,
}

impl<M: Memory> std::fmt::Debug for PrimaryVolume<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrimaryVolume")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl<M: Memory> PrimaryVolume<M> {
    /// A volume whose open epoch is `epoch`; `lineage` is oldest first.
    ///
    /// # Panics
    /// If `mem` has no room for a page of padding.
    pub fn new(
        mem: &mut M,
        identity: Identity,
        settings: PrimarySettings,
        group_name: String,
        lineage: Vec<(LineageId, Epoch)>,
        epoch: Epoch,
    ) -> Self {
        Self {
            identity,
            settings,
            group_name,
            lineage,
            epoch,
            wrote: false,
            wrote_last: Epoch::NONE,
            next_write_seq: 1,
            protection: Protection::Unprotected,
            prepared: false,
            failed: None,
            writes: Slab::new(),
            ranges: RangeLocks::default(),
            admission: VecDeque::new(),
            admitted_charge: 0,
            draining: false,
            pressure_since: None,
            pending: Slab::new(),
            held: Vec::new(),
            waiting: Vec::new(),
            syncs: Syncs::default(),
            link: Link::Down,
            chain: link::Chain::new(mem),
            acked: link::Acked::default(),
            granted: Vec::new(),
            unsent: false,
            abandoned: Vec::new(),
            release_later: None,
            counters: Counters::default(),
        }
    }

    /// A backup has taken this side in.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        !matches!(self.link, Link::Down | Link::Greeting { .. })
    }

    /// Counters since start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The open epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the backup said last: durable, committed, applied.
    #[must_use]
    pub fn acked(&self) -> (Epoch, Epoch, Epoch) {
        (self.acked.durable, self.acked.committed, self.acked.applied)
    }

    /// Window left at the backup, in bytes of charge.
    #[must_use]
    pub fn credit_bytes(&self) -> u64 {
        self.chain.credit_left()
    }

    /// Done and total bytes of a sync that runs.
    #[must_use]
    pub fn sync_progress(&self) -> Option<(u64, u64)> {
        match &self.link {
            Link::Syncing { sync, .. } if sync.begun => {
                Some(sync.progress(self.identity.size_bytes))
            }
            _ => None,
        }
    }

    /// Connected, and waits for the other volumes of the group before images are compared.
    #[must_use]
    pub fn waits_for_others(&self) -> bool {
        matches!(&self.link, Link::Syncing { sync, .. } if !sync.begun)
    }

    /// Since when writes wait for window space.
    #[must_use]
    pub fn pressure_since(&self) -> Option<Nanos> {
        self.pressure_since
    }

    /// The history written now and its first epoch.
    #[must_use]
    pub fn tip(&self) -> (LineageId, Epoch) {
        *self.lineage.last().expect("a primary has a history")
    }

    /// Who this volume is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The name of its group.
    #[must_use]
    pub fn group_name(&self) -> &str {
        &self.group_name
    }

    /// The group has the disk at its backup: every volume is linked and equal.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.protection == Protection::Protected
    }

    /// Writes that wait for room in the backup's journal.
    #[must_use]
    pub fn waiting_for_window(&self) -> usize {
        if self.pressure_since.is_some() {
            self.admission.len()
        } else {
            0
        }
    }

    /// Requests that are not answered yet.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.pending.len() + self.waiting.len() + self.held.len() + self.admission.len()
    }

    /// Why the store is out of use, if it is.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// When [`PrimaryVolume::tick`] wants to be called at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Nanos> {
        if self.release_later.is_some() {
            return Some(0);
        }
        let pressure = self
            .pressure_since
            .map(|since| since + self.settings.pressure_ns_max);
        [pressure, self.chain.due_at()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        self.keep_alive(now, fx);
        if let Some(key) = self.release_later.take() {
            self.release_range(now, mem, key, fx);
        }
        if self.chain.open.is_due(now) {
            self.send_open(mem, fx);
        }
        self.retry_sends(mem, fx);
        if let Some(since) = self.pressure_since
            && now.saturating_sub(since) >= self.settings.pressure_ns_max
        {
            self.pressure_since = Some(now);
            fx.push(Effect::Group(ToGroup::PressureTimeout));
        }
        self.pump_sync(mem, fx);
        self.admit(now, mem, fx);
    }

    /// A message of the group.
    pub fn group(&mut self, now: Nanos, mem: &mut M, message: ToVolume, fx: &mut Vec<Effect<M>>) {
        match message {
            ToVolume::Prepare => {
                self.prepared = true;
                fx.push(Effect::Group(ToGroup::Prepared));
            }
            ToVolume::Cut { epoch, next } => {
                assert_eq!(
                    epoch, self.epoch,
                    "the group and its volumes number epochs alike"
                );
                self.cut(mem, next, fx);
            }
            ToVolume::Seal {
                epoch,
                group_wrote,
                base,
                cut_unix_ns,
            } => {
                self.seal(now, mem, epoch, group_wrote, base, cut_unix_ns, fx);
                self.prepared = false;
                self.let_go(fx);
            }
            ToVolume::Drain => {
                self.draining = true;
                self.admit(now, mem, fx);
            }
            ToVolume::Lineage(lineage) => {
                self.lineage = lineage;
                self.drop_link("a new history begins".to_owned(), fx);
            }
            ToVolume::Protect(protection) => self.protect(now, mem, protection, fx),
            ToVolume::Compare => self.begin_sync(mem, fx),
            ToVolume::Released(epoch) => self.chain.released = self.chain.released.max(epoch),
            ToVolume::DropLink(text) => self.drop_link(text, fx),
            ToVolume::Fail(text) => self.fail(text, fx),
            // Meant for the backup that this volume was until its journal was drained.
            ToVolume::Accept { .. }
            | ToVolume::Refuse(..)
            | ToVolume::Commit(_)
            | ToVolume::Fence
            | ToVolume::Unfence
            | ToVolume::Promote { .. } => {}
        }
    }

    fn protect(
        &mut self,
        now: Nanos,
        mem: &mut M,
        protection: Protection,
        fx: &mut Vec<Effect<M>>,
    ) {
        // The group may not have heard yet that the link is gone.
        self.protection = match protection {
            Protection::Protected if !self.link_carries_all() => Protection::Blocked,
            other => other,
        };
        self.settle(fx);
        if self.protection == Protection::Protected
            && self.waiting.iter().any(|w| w.epoch == self.epoch)
        {
            fx.push(Effect::Group(ToGroup::WantCut));
        }
        self.let_go(fx);
        self.admit(now, mem, fx);
    }

    /// A storage operation ended.
    pub fn io_done(&mut self, now: Nanos, mem: &mut M, done: Done<M>, fx: &mut Vec<Effect<M>>) {
        let key = usize::try_from(done.id.0).expect("ids come from this slab");
        match self.pending.remove(key) {
            Pending::Read(request) => self.read_done(request, done, fx),
            Pending::Write(write) => self.write_done(now, mem, write, done.result, fx),
            Pending::Sync => self.sync_done(done.result, fx),
            Pending::SyncChunk(step) => self.sync_chunk_read(now, mem, step, done, fx),
        }
    }

    /// From now on every request is answered with an error: a failed write is final.
    fn fail(&mut self, text: String, fx: &mut Vec<Effect<M>>) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(text.clone());
        self.drop_link(format!("the primary's image failed: {text}"), fx);
        for (request, _) in std::mem::take(&mut self.admission) {
            self.reply_error(request, libc::EIO, fx);
        }
        self.let_go(fx);
        for waiting in std::mem::take(&mut self.waiting) {
            self.reply_error(waiting.request, libc::EIO, fx);
        }
        fx.push(Effect::Group(ToGroup::Failed(text)));
    }

    fn next_io(&mut self, pending: Pending) -> IoId {
        IoId(self.pending.insert(pending) as u64)
    }
}
