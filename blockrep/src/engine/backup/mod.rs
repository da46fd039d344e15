//! Engine of a volume in the backup role, and after a promotion until its journal is drained.
//!
//! ```text
//!  Waiting ──accepted──► Draining ──journal empty, metadata durable──► Receiving
//!     ▲                                                                   │
//!     └────────────── session over (lost, dropped, refused) ◄─────────────┘
//!  any of them ──fence──► Fenced ──promote──► Serving ──journal drained──► Drained
//! ```
//!
//! A record is appended where the ring says; an epoch whose seal and records are all appended is
//! synced, then it is *sealed* here. The group commits it; only then do its extents enter the
//! overlay, and only when the commit is durable may apply take them. After a promotion every write
//! goes to the end of the journal under the new lineage until nothing is left to apply.
//!
//! A failed write or sync of any file is final: the engine answers nothing more and says why.

mod append;
mod meta;
mod pace;
mod reads;
mod serve;
mod session;

pub use serve::{SWITCH_EXTENTS, own_session};

use super::apply::{Apply, Want};
use super::{Effect, Identity, Nanos, ToGroup, ToVolume};
use crate::io::{Done, IoError, IoId, Memory, Op, Reply, Request, RequestId, Target};
use crate::journal::recovery::Decision;
use crate::journal::ring::{Geometry, Ring};
use crate::journal::scan::{Expect, ScannedEpoch};
use crate::overlay::{Extent, Overlay, Source};
use blkback_proto::ids::{Epoch, LineageId, Place, SessionId};
use blkback_proto::meta::VolumeMeta;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Epochs whose time of the cut is remembered, for the answer to a promotion.
const CUTS_KEPT: usize = 64;

/// What an operator sets of a backup volume.
#[derive(Clone, Debug)]
pub struct BackupSettings {
    /// Name of the group as the operator gave it, told to a primary that is taken in.
    pub name: String,
    /// Segments of the journal.
    pub geometry: Geometry,
    /// Most extents that may wait in memory.
    pub extents_max: usize,
    /// Throttle of apply, in bytes a second.
    pub apply_rate: Option<u64>,
    /// Journal bytes that may be kept in memory for apply: a small part of what there is.
    pub window_bytes: u64,
    /// After a promotion new writes wait for the journal to be drained once no more extents than
    /// that are left in it.
    pub switch_extents: usize,
}

/// What recovery found: how an engine starts.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Metadata as read, or fresh.
    pub meta: VolumeMeta,
    /// What the volume is.
    pub decision: Decision,
    /// Whole epochs to be applied, oldest first.
    pub epochs: Vec<ScannedEpoch>,
    /// First segment serial that was never used.
    pub next_serial: u64,
}

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No session.
    Waiting,
    /// A session is accepted; what the journal holds is applied first.
    Draining {
        /// Session, lineage and first epoch accepted; whether a sync follows.
        session: SessionId,
        /// History of the primary.
        lineage: LineageId,
        /// First epoch of the session.
        epoch: Epoch,
        /// A sync follows.
        sync: bool,
        /// Everything is applied; metadata is being written.
        writing: bool,
    },
    /// A session is up.
    Receiving,
    /// Takes nothing more from a primary.
    Fenced,
    /// Primary after a promotion; writes go through the journal.
    Serving,
    /// The image alone is the volume; the engine has nothing more to do.
    Drained,
}

/// An epoch between its first record and its commit.
#[derive(Debug)]
struct Pending {
    epoch: Epoch,
    extents: Vec<Extent>,
    /// Number of the last append that belongs to it.
    last_append: u64,
    sealed: bool,
    /// Has a seal record; an empty epoch has none.
    journaled: bool,
    durable: bool,
    cut_unix_ns: u64,
    end: Expect,
}

/// An epoch between commit and apply.
#[derive(Clone, Copy, Debug)]
struct Committed {
    epoch: Epoch,
    journaled: bool,
    cut_unix_ns: u64,
    end: Expect,
}

/// What an operation belongs to.
enum Io {
    Append(u64),
    JournalSync,
    MetaWrite,
    MetaSync,
    ApplyLoad(Place),
    ApplyRead { run: usize, part: usize },
    ApplyRun(usize),
    ApplySync,
    Direct,
    DirectSync,
    CheckRead { index: u64, hash: [u8; 32] },
    Guest { read: usize, part: usize },
}

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads answered.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Own writes after a promotion.
    pub writes: u64,
    /// Records received.
    pub records: u64,
    /// Bytes of records received.
    pub record_bytes: u64,
    /// Syncs of the journal.
    pub syncs: u64,
    /// Requests answered with an error.
    pub errors: u64,
}

/// A volume in the backup role.
pub struct BackupVolume<M: Memory> {
    identity: Option<Identity>,
    settings: BackupSettings,
    size_bytes: u64,
    mode: Mode,
    failed: Option<String>,
    decision: Decision,
    meta: meta::MetaState,

    ring: Ring,
    expect: Option<Expect>,
    appends: append::Appends,
    pending: VecDeque<Pending>,
    committed_queue: VecDeque<Committed>,
    durable: Epoch,
    committed: Epoch,
    /// Highest epoch that ever was in use here, dropped ones included: the next session begins
    /// above it.
    seen: Epoch,
    /// Highest committed epoch whose commit is durable.
    commit_durable: Epoch,
    cut_unix_ns: BTreeMap<Epoch, u64>,
    overlay: Overlay,
    apply: Apply<M>,
    pace: pace::Pace,
    wants: Vec<Want<M>>,

    session: session::Session<M>,
    ios: Slab<Io>,
    reads: Slab<reads::GuestRead<M>>,
    read_queue: VecDeque<(RequestId, u64, M::BufMut)>,
    pins: BTreeMap<u64, u32>,
    serve: serve::Serve<M>,
    fence_told: bool,
    stopped: bool,
    /// Metadata that goes to the other slot as well.
    meta_copy: Option<M::Buf>,
    /// The tail waits for a sync that reaches this append; 0: it does not.
    tail_waits: u64,
    counters: Counters,
}

impl<M: Memory> std::fmt::Debug for BackupVolume<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupVolume")
            .field("mode", &self.mode)
            .field("durable", &self.durable)
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

impl<M: Memory> BackupVolume<M> {
    /// A volume as recovery found it. What was whole is committed by the group afterwards.
    ///
    /// # Panics
    /// If `mem` has no room for a page of padding.
    pub fn new(mem: &mut M, settings: BackupSettings, recovered: Recovered) -> Self {
        let meta = recovered.meta;
        let identity = (!meta.volume.is_none()).then_some(Identity {
            group: meta.group,
            volume: meta.volume,
            volume_index: meta.volume_index,
            volume_count: 0,
            size_bytes: meta.size_bytes,
        });
        let mut ring = Ring::starting_at(settings.geometry, recovered.next_serial);
        if !recovered.epochs.is_empty() {
            ring.keep(meta.tail.serial);
        }
        let apply = Apply::new(meta.applied, settings.apply_rate, settings.window_bytes);
        let mut volume = Self {
            identity,
            size_bytes: meta.size_bytes,
            mode: Mode::Waiting,
            failed: None,
            decision: recovered.decision,
            ring,
            expect: None,
            appends: append::Appends::default(),
            pending: VecDeque::new(),
            committed_queue: VecDeque::new(),
            durable: meta.applied,
            committed: meta.applied,
            seen: (meta.applied.max(meta.committed)).max(meta.durable.max(meta.consistent_from)),
            commit_durable: meta.applied,
            cut_unix_ns: BTreeMap::new(),
            overlay: Overlay::default(),
            apply,
            pace: pace::Pace::default(),
            wants: Vec::new(),
            session: session::Session::default(),
            ios: Slab::new(),
            reads: Slab::new(),
            read_queue: VecDeque::new(),
            pins: BTreeMap::new(),
            serve: serve::Serve::new(mem),
            fence_told: false,
            stopped: false,
            meta_copy: None,
            tail_waits: 0,
            counters: Counters::default(),
            meta: meta::MetaState::new(meta),
            settings,
        };
        volume.take_recovered(recovered.epochs);
        volume
    }

    /// What the journal holds waits for the group's commit; when it was cut is known from there, of
    /// what is applied from the metadata.
    fn take_recovered(&mut self, epochs: Vec<ScannedEpoch>) {
        let meta = &self.meta.now;
        if meta.committed_cut_unix_ns != 0 {
            self.note_cut(meta.committed, meta.committed_cut_unix_ns);
        }
        for epoch in epochs {
            self.note_cut(epoch.epoch, epoch.cut_unix_ns);
            self.durable = self.durable.max(epoch.epoch);
            self.pending.push_back(Pending {
                epoch: epoch.epoch,
                extents: epoch.extents,
                last_append: 0,
                sealed: true,
                journaled: true,
                durable: true,
                cut_unix_ns: epoch.cut_unix_ns,
                end: epoch.end.expect("a scanned epoch has records"),
            });
        }
    }

    /// What it is doing.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What recovery said of the volume when the daemon started.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// What reads would give is no epoch: the image is being compared and copied, or was when the
    /// last session ended, or the epoch from which on it is one again is not committed.
    #[must_use]
    pub fn is_inconsistent(&self) -> bool {
        self.meta.now.inconsistent || self.committed < self.meta.now.consistent_from
    }

    /// First epoch this volume can be.
    #[must_use]
    pub fn consistent_from(&self) -> Epoch {
        self.meta.now.consistent_from
    }

    /// Durable, committed, applied.
    #[must_use]
    pub fn epochs(&self) -> (Epoch, Epoch, Epoch) {
        (self.durable, self.committed, self.apply.applied())
    }

    /// When an epoch that is durable here was cut, in nanoseconds since 1970.
    #[must_use]
    pub fn cut_unix_ns(&self, epoch: Epoch) -> u64 {
        self.cut_unix_ns
            .range(..=epoch)
            .next_back()
            .map_or(0, |(_, ns)| *ns)
    }

    /// Keeps when an epoch was cut, and forgets the oldest.
    fn note_cut(&mut self, epoch: Epoch, cut_unix_ns: u64) {
        self.cut_unix_ns.insert(epoch, cut_unix_ns);
        while self.cut_unix_ns.len() > CUTS_KEPT {
            self.cut_unix_ns.pop_first();
        }
    }

    /// Journal bytes in use and in all.
    #[must_use]
    pub fn journal_bytes(&self) -> (u64, u64) {
        let geometry = self.settings.geometry;
        (
            self.ring.used_bytes(),
            geometry.segment_bytes * u64::from(geometry.segment_count),
        )
    }

    /// Bytes received or written that are not in the image yet, by their place in the journal.
    #[must_use]
    pub fn unapplied_bytes(&self) -> u64 {
        if self.overlay.is_empty() && self.pending.is_empty() {
            return 0;
        }
        self.bytes_between(self.meta.now.tail, self.ring.head())
    }

    /// Extents in memory.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.overlay.len() + self.pending.iter().map(|p| p.extents.len()).sum::<usize>()
    }

    /// Counters since start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes written to the image by apply.
    #[must_use]
    pub fn applied_bytes(&self) -> u64 {
        self.apply.bytes
    }

    /// Why the store is out of use, if it is.
    #[must_use]
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Metadata as the engine has it in mind.
    #[must_use]
    pub fn meta(&self) -> &VolumeMeta {
        &self.meta.now
    }

    /// When [`BackupVolume::tick`] wants to be called at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Nanos> {
        [
            self.apply.next_tick(),
            self.apply_due_at(),
            self.commit_fact_due_at(),
            self.session.next_tick(),
            self.serve.next_tick(self.mode),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        self.keep_alive(now, fx);
        self.serve_tick(now, mem, fx);
        self.advance(now, mem, fx);
    }

    /// A message of the group.
    pub fn group(&mut self, now: Nanos, mem: &mut M, message: ToVolume, fx: &mut Vec<Effect<M>>) {
        if self.failed.is_some() {
            return;
        }
        match message {
            ToVolume::Accept {
                session,
                lineage,
                epoch,
                sync,
            } => {
                self.accept(
                    session,
                    session::Accepted {
                        lineage,
                        epoch,
                        sync,
                    },
                );
            }
            ToVolume::Refuse(code, text) => self.refuse(code, text, fx),
            ToVolume::DropLink(text) => self.drop_session(text, fx),
            ToVolume::Commit(epoch) => self.commit(epoch, fx),
            ToVolume::Fence => self.fence(fx),
            ToVolume::Unfence => self.unfence(),
            ToVolume::Promote { epoch, lineage } => self.promote(epoch, lineage),
            other => unreachable!("{other:?} is for a primary"),
        }
        self.advance(now, mem, fx);
    }

    /// A storage operation ended.
    pub fn io_done(&mut self, now: Nanos, mem: &mut M, done: Done<M>, fx: &mut Vec<Effect<M>>) {
        let key = usize::try_from(done.id.0).expect("ids come from this slab");
        let io = self.ios.remove(key);
        if let (Err(error), Some(what)) = (done.result, final_failure(&io))
            && !(crate::mutant!("retry-failed-sync") && matches!(io, Io::JournalSync))
        {
            self.fail(format!("{what}: {error}"), fx);
            return;
        }
        if self.failed.is_some() && !matches!(io, Io::Guest { .. }) {
            // Nothing follows from it any more.
            return;
        }
        match io {
            Io::Append(number) => self.append_done(number, fx),
            Io::JournalSync => self.journal_synced(fx),
            Io::MetaWrite => self.meta_written(fx),
            Io::MetaSync => self.meta_synced(fx),
            Io::ApplyLoad(place) => {
                let buf = done.buf.expect(GIVEN_BACK);
                let buf = mem.freeze(buf);
                self.apply.load_done(place, buf);
            }
            Io::ApplyRead { run, part } => {
                let buf = done.buf.expect(GIVEN_BACK);
                let buf = mem.freeze(buf);
                self.apply.read_done(run, part, buf, &mut self.wants);
            }
            Io::ApplyRun(run) => self.apply.run_done(run),
            Io::ApplySync if crate::mutant!("tail-before-image-sync") => {}
            Io::ApplySync => self.apply_synced(),
            Io::Direct => self.session.direct_in_flight -= 1,
            Io::DirectSync => self.direct_synced(),
            Io::CheckRead { index, hash } => self.check_read(index, &hash, done, fx),
            Io::Guest { read, part } => self.guest_read_done(read, part, done, fx),
        }
        self.advance(now, mem, fx);
    }

    /// Does whatever has become possible.
    fn advance(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if self.failed.is_some() {
            return;
        }
        self.advance_session(now, mem, fx);
        self.advance_reads(mem, fx);
        self.advance_serve(now, mem, fx);
        self.start_journal_sync(fx);
        self.advance_commit_fact(now);
        let limit = if crate::mutant!("apply-past-commit") {
            self.insert_uncommitted();
            self.durable
        } else {
            self.apply_limit(now)
        };
        // A copy of a sync in flight may be older than what apply would write over it. Nothing is
        // committed while copies are on their way, so this never waits; it costs nothing to be sure.
        let hold = self.session.direct_in_flight > 0;
        let pressed = matches!(self.mode, Mode::Draining { .. }) || self.ring_is_half_full();
        self.apply.press(pressed);
        self.apply
            .step(now, mem, &self.overlay, limit, hold, &mut self.wants);
        self.issue_wants(fx);
        self.advance_meta(mem, fx);
    }

    fn issue_wants(&mut self, fx: &mut Vec<Effect<M>>) {
        for want in std::mem::take(&mut self.wants) {
            let (io, op) = match want {
                Want::Load { place, buf } => {
                    let target = Target::Segment(self.settings.geometry.file_of(place.serial));
                    let offset = place.offset;
                    let op = Op::Read {
                        target,
                        offset,
                        buf,
                    };
                    (Io::ApplyLoad(place), op)
                }
                Want::Read {
                    run,
                    part,
                    extent,
                    buf,
                } => {
                    let Source::Journal(place) = extent.source else {
                        unreachable!("only journal extents are read")
                    };
                    let target = Target::Segment(self.settings.geometry.file_of(place.serial));
                    let op = Op::Read {
                        target,
                        offset: place.offset,
                        buf,
                    };
                    (Io::ApplyRead { run, part }, op)
                }
                Want::Write { run, offset, bufs } => (
                    Io::ApplyRun(run),
                    Op::Write {
                        target: Target::Image,
                        offset,
                        bufs: bufs.into(),
                    },
                ),
                Want::Zero {
                    run,
                    extent: Extent { offset, length, .. },
                    discard,
                } => {
                    let op = if discard {
                        Op::Discard { offset, length }
                    } else {
                        Op::Zero { offset, length }
                    };
                    (Io::ApplyRun(run), op)
                }
                Want::Sync => (
                    Io::ApplySync,
                    Op::Sync {
                        target: Target::Image,
                    },
                ),
            };
            let early = crate::mutant!("tail-before-image-sync") && matches!(io, Io::ApplySync);
            self.io(io, op, fx);
            if early {
                self.apply_synced();
            }
        }
    }

    fn io(&mut self, io: Io, op: Op<M>, fx: &mut Vec<Effect<M>>) {
        let id = IoId(self.ios.insert(io) as u64);
        fx.push(Effect::Io(id, op));
    }

    fn fail(&mut self, text: String, fx: &mut Vec<Effect<M>>) {
        if self.failed.is_some() {
            return;
        }
        self.drop_session(format!("the backup's store failed: {text}"), fx);
        self.failed = Some(text.clone());
        for request in self.serve.take_all_requests() {
            self.reply(request, Err(IoError { errno: libc::EIO }), None, fx);
        }
        for (request, _, _) in std::mem::take(&mut self.read_queue) {
            self.reply(request, Err(IoError { errno: libc::EIO }), None, fx);
        }
        fx.push(Effect::Group(ToGroup::Failed(text)));
    }

    fn reply(
        &mut self,
        id: RequestId,
        result: Result<(), IoError>,
        buf: Option<M::BufMut>,
        fx: &mut Vec<Effect<M>>,
    ) {
        if result.is_err() {
            self.counters.errors += 1;
        }
        fx.push(Effect::Reply(Reply { id, result, buf }));
    }

    /// A request of a front end.
    pub fn request(
        &mut self,
        now: Nanos,
        mem: &mut M,
        id: RequestId,
        request: Request<M>,
        fx: &mut Vec<Effect<M>>,
    ) {
        match request {
            _ if self.failed.is_some() => {
                self.reply(id, Err(IoError { errno: libc::EIO }), None, fx);
            }
            Request::Read { .. } if self.mode == Mode::Drained => {
                self.serve.queue.push_back((id, request));
            }
            Request::Read { offset, buf } => self.guest_read(id, offset, buf, fx),
            write if matches!(self.mode, Mode::Serving | Mode::Drained) => {
                self.serve.queue.push_back((id, write));
            }
            _ => self.reply(id, Err(IoError { errno: libc::EPERM }), None, fx),
        }
        self.advance(now, mem, fx);
    }

    /// The group commits everything up to `epoch`: its writes are the volume from now on.
    fn commit(&mut self, epoch: Epoch, fx: &mut Vec<Effect<M>>) {
        while self
            .pending
            .front()
            .is_some_and(|p| p.epoch <= epoch && p.durable)
        {
            let pending = self.pending.pop_front().expect("looked at just now");
            let lost = crate::mutant!("overlay-lost") && self.mode == Mode::Waiting;
            for extent in pending.extents.into_iter().filter(|_| !lost) {
                self.overlay.insert(extent);
            }
            self.queue_committed(Committed {
                epoch: pending.epoch,
                journaled: pending.journaled,
                cut_unix_ns: pending.cut_unix_ns,
                end: pending.end,
            });
        }
        assert!(
            self.pending.front().is_none_or(|p| p.epoch > epoch),
            "the group commits only what every volume sealed"
        );
        self.committed = self.committed.max(epoch);
        self.ack(fx);
    }

    /// A planted bug.
    fn insert_uncommitted(&mut self) {
        for pending in self.pending.iter().filter(|p| p.durable) {
            for extent in &pending.extents {
                self.overlay.insert(*extent);
            }
        }
    }

    fn queue_committed(&mut self, new: Committed) {
        match self.committed_queue.back_mut() {
            Some(last) if !last.journaled && !new.journaled => last.epoch = new.epoch,
            _ => self.committed_queue.push_back(new),
        }
    }
}

/// What failed, for operations whose failure is final.
fn final_failure(io: &Io) -> Option<&'static str> {
    Some(match io {
        Io::Append(_) => "appending to the journal",
        Io::JournalSync => "syncing the journal",
        Io::MetaWrite | Io::MetaSync => "writing the volume's metadata",
        Io::ApplyLoad(_) | Io::ApplyRead { .. } => "reading the journal for apply",
        Io::ApplyRun(_) => "writing to the image",
        Io::ApplySync | Io::DirectSync => "syncing the image",
        Io::Direct => "copying to the image",
        Io::CheckRead { .. } | Io::Guest { .. } => return None,
    })
}

/// Why a completed read has a buffer.
const GIVEN_BACK: &str = "a read that succeeded gives its buffer back";

/// Segments whose writes are not synced, by file.
type DirtyFiles = BTreeSet<u32>;
