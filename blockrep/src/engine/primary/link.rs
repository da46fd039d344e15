//! The primary's side of a link: hello, records in a chain, seals, acknowledgements.

use super::sync::Sync;
use super::{Link, PrimaryVolume};
use crate::engine::builder::{Builder, charge_of};
use crate::engine::{Effect, Nanos, Outgoing, ToGroup};
use crate::io::Memory;
use blkback_proto::ids::{Epoch, SessionId};
use blkback_proto::link::{Frame, Hello, LINK_VERSION_MAX, LINK_VERSION_MIN, Welcome};
use blkback_proto::record::{
    Descriptor, DescriptorKind, FLAG_CHAIN_START, FLAG_DIRECT, HEADER_BYTES, Header, RecordKind,
};
use std::collections::VecDeque;

/// Silence after which a link counts as lost, in nanoseconds.
pub const LINK_SILENCE_NS_MAX: Nanos = 3_000_000_000;
/// How often the primary asks whether the backup is there, in nanoseconds.
pub(super) const PING_NS: Nanos = 500_000_000;

/// What the backup said last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) durable: Epoch,
    pub(super) committed: Epoch,
    pub(super) applied: Epoch,
}

/// What a seal says besides its epoch.
#[derive(Clone, Copy, Debug)]
struct Seal {
    base: Epoch,
    cut_unix_ns: u64,
    writes: u64,
    bytes: u64,
}

/// Something that goes out in order; a record needs memory and window space when its turn comes.
enum Job<M: Memory> {
    Frame(Frame),
    Record {
        builder: Builder<M>,
        epoch: Epoch,
        seal: Option<Seal>,
    },
    Commit {
        epoch: Epoch,
    },
    Direct {
        offset: u64,
        data: M::Buf,
        epoch: Epoch,
    },
}

/// The chain of records of a session.
pub(super) struct Chain<M: Memory> {
    pub(super) open: Builder<M>,
    open_writes: u64,
    open_bytes: u64,
    sealing: Option<(Builder<M>, u64, u64)>,
    jobs: VecDeque<Job<M>>,
    padding: M::Buf,
    session: SessionId,
    /// First epoch of the session.
    first_epoch: Epoch,
    record_seq: u64,
    prev_crc: u32,
    /// Last epoch with a seal record in this session.
    sealed: Epoch,
    credit_total: u64,
    /// What the backup's journal holds when it is empty.
    pub(super) capacity: u64,
    charge_sent: u64,
    charge_queued: u64,
    pub(super) released: Epoch,
    committed_sent: Epoch,
    /// Records of the epoch after the one whose seal is still to come.
    after_seal: Vec<Builder<M>>,
    /// Epochs with a seal record in this session that are not yet known to be released.
    journaled: VecDeque<Epoch>,
    /// Watermarks as records carry them: epochs that have a seal record.
    journaled_durable: Epoch,
    journaled_committed: Epoch,
    journaled_released: Epoch,
    heard: Nanos,
    pinged: Nanos,
    live: bool,
}

impl<M: Memory> Chain<M> {
    pub(super) fn new(mem: &mut M) -> Self {
        let padding = mem
            .alloc(HEADER_BYTES)
            .expect("an engine begins with free memory");
        Self {
            open: Builder::default(),
            open_writes: 0,
            open_bytes: 0,
            sealing: None,
            jobs: VecDeque::new(),
            padding: mem.freeze(padding),
            session: SessionId(0),
            first_epoch: Epoch::NONE,
            record_seq: 0,
            prev_crc: 0,
            sealed: Epoch::NONE,
            credit_total: 0,
            capacity: 0,
            charge_sent: 0,
            charge_queued: 0,
            released: Epoch::NONE,
            committed_sent: Epoch::NONE,
            after_seal: Vec::new(),
            journaled: VecDeque::new(),
            journaled_durable: Epoch::NONE,
            journaled_committed: Epoch::NONE,
            journaled_released: Epoch::NONE,
            heard: 0,
            pinged: 0,
            live: false,
        }
    }

    /// Starts anew: what was queued for an earlier session is gone.
    fn reset(&mut self, session: SessionId, now: Nanos) {
        self.open = Builder::default();
        (self.open_writes, self.open_bytes) = (0, 0);
        self.sealing = None;
        self.jobs.clear();
        self.session = session;
        self.record_seq = 0;
        self.prev_crc = 0;
        self.sealed = Epoch::NONE;
        self.credit_total = 0;
        self.charge_sent = 0;
        self.charge_queued = 0;
        self.committed_sent = Epoch::NONE;
        self.after_seal.clear();
        self.journaled.clear();
        self.journaled_durable = Epoch::NONE;
        self.journaled_committed = Epoch::NONE;
        self.journaled_released = Epoch::NONE;
        self.heard = now;
        self.pinged = now;
        self.live = true;
    }

    /// Brings the watermarks of records up to what the backup said.
    pub(super) fn note_acked(&mut self, acked: Acked) {
        for epoch in &self.journaled {
            if *epoch <= acked.durable {
                self.journaled_durable = self.journaled_durable.max(*epoch);
            }
            if *epoch <= acked.committed {
                self.journaled_committed = self.journaled_committed.max(*epoch);
            }
            if *epoch <= self.released.min(acked.committed) {
                self.journaled_released = self.journaled_released.max(*epoch);
            }
        }
        let released = self.journaled_released;
        self.journaled.retain(|epoch| *epoch > released);
    }

    pub(super) fn credit_left(&self) -> u64 {
        self.credit_total
            .saturating_sub(self.charge_sent + self.charge_queued)
    }

    pub(super) fn due_at(&self) -> Option<Nanos> {
        let ping = self
            .live
            .then(|| (self.pinged + PING_NS).min(self.heard + LINK_SILENCE_NS_MAX));
        [self.open.due_at(), ping].into_iter().flatten().min()
    }

    /// Nothing waits for memory or window space.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }
}

impl<M: Memory> PrimaryVolume<M> {
    /// The transport is connected: `session` is a fresh random id.
    pub fn link_connected(&mut self, now: Nanos, session: SessionId, fx: &mut Vec<Effect<M>>) {
        assert!(matches!(self.link, Link::Down), "one link at a time");
        self.chain.reset(session, now);
        self.link = Link::Greeting { session };
        let hello = Hello {
            version_min: LINK_VERSION_MIN,
            version_max: LINK_VERSION_MAX,
            session,
            group: self.identity.group,
            name: self.group_name.clone(),
            volume: self.identity.volume,
            volume_index: self.identity.volume_index,
            volume_count: self.identity.volume_count,
            assume_identical: self.settings.assume_identical && !self.unsent,
            size_bytes: self.identity.size_bytes,
            epoch: self.epoch,
            lineage: self.lineage.clone(),
        };
        fx.push(Effect::Send(Outgoing::Frame(Frame::Hello(Box::new(hello)))));
    }

    /// A frame of the backup; `session` is what the frame says it belongs to.
    pub fn link_frame(
        &mut self,
        now: Nanos,
        mem: &mut M,
        session: SessionId,
        frame: Frame,
        fx: &mut Vec<Effect<M>>,
    ) {
        let current = match &self.link {
            Link::Down => return,
            Link::Greeting { session }
            | Link::Welcomed { session, .. }
            | Link::Live { session }
            | Link::Syncing { session, .. } => *session,
        };
        if session != current {
            self.drop_link(
                format!("the peer answered for session {session}, not {current}"),
                fx,
            );
            return;
        }
        self.chain.heard = now;
        match frame {
            Frame::Welcome(welcome) => self.welcomed(&welcome, fx),
            Frame::Refuse { code, text } => {
                fx.push(Effect::CloseLink);
                self.link_is_down();
                fx.push(Effect::Group(ToGroup::Refused(code, text)));
            }
            Frame::Ack {
                durable,
                committed,
                applied,
                credit_bytes,
            } => {
                let acked = Acked {
                    durable,
                    committed,
                    applied,
                };
                self.acknowledged(now, mem, acked, credit_bytes, fx);
            }
            Frame::Ping(token) => fx.push(Effect::Send(Outgoing::Frame(Frame::Pong(token)))),
            Frame::Pong(_) => {}
            Frame::SyncResult { index, differs } => self.sync_result(index, differs, fx),
            Frame::Bye { text } => {
                self.link_lost(format!("the backup ended the session: {text}"), fx)
            }
            Frame::Hello(_)
            | Frame::SyncStart
            | Frame::SyncCheck { .. }
            | Frame::SyncEnd { .. }
            | Frame::EmptySeal { .. } => {
                self.drop_link("the peer sent what only a primary sends".to_owned(), fx);
            }
        }
        self.retry_sends(mem, fx);
        self.pump_sync(mem, fx);
        self.admit(now, mem, fx);
    }

    fn welcomed(&mut self, welcome: &Welcome, fx: &mut Vec<Effect<M>>) {
        let Link::Greeting { session } = self.link else {
            self.drop_link("a second welcome".to_owned(), fx);
            return;
        };
        if welcome.size_bytes != self.identity.size_bytes || welcome.version != LINK_VERSION_MAX {
            self.drop_link("the backup's welcome does not fit the hello".to_owned(), fx);
            return;
        }
        self.chain.credit_total = welcome.credit_bytes;
        self.chain.capacity = welcome.journal_bytes;
        self.acked = Acked::default();
        let (sync_needed, above) = (welcome.sync_needed, welcome.committed);
        self.link = Link::Welcomed {
            session,
            sync_needed,
            above,
        };
        if above < self.epoch {
            self.begin_stream(fx);
        } else {
            fx.push(Effect::Group(ToGroup::NeedEpoch(above)));
        }
    }

    /// The open epoch is one the backup has not seen: the stream begins with it.
    fn begin_stream(&mut self, fx: &mut Vec<Effect<M>>) {
        let Link::Welcomed {
            session,
            sync_needed,
            above,
        } = self.link
        else {
            return;
        };
        if self.epoch <= above {
            return;
        }
        self.chain.first_epoch = self.epoch;
        let forget = crate::mutant!("unsent-forgotten");
        let sync_needed = (sync_needed || self.unsent) && !forget;
        if sync_needed {
            self.unsent = false;
            self.link = Link::Syncing {
                session,
                sync: Sync::new(self.identity.size_bytes),
            };
            // Before any seal: what is written from here on is not all sent, and is no epoch there.
            self.chain.jobs.push_back(Job::Frame(Frame::SyncStart));
        } else {
            self.link = Link::Live { session };
        }
        fx.push(Effect::Group(ToGroup::LinkUp { sync_needed }));
    }

    /// Images are compared from now on.
    pub(super) fn begin_sync(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        let Link::Syncing { sync, .. } = &mut self.link else {
            return;
        };
        sync.begun = true;
        self.pump_sync(mem, fx);
    }

    fn acknowledged(
        &mut self,
        now: Nanos,
        mem: &mut M,
        acked: Acked,
        credit_bytes: u64,
        fx: &mut Vec<Effect<M>>,
    ) {
        // A backup that claims an epoch we have not cut is not our backup.
        if acked.durable >= self.epoch
            || acked.committed > acked.durable
            || acked.durable < self.acked.durable
            || acked.committed < self.acked.committed
            || credit_bytes < self.chain.credit_total
        {
            self.drop_link(
                format!(
                    "the backup acknowledged durable {} and committed {} while epoch {} is open",
                    acked.durable, acked.committed, self.epoch
                ),
                fx,
            );
            return;
        }
        self.acked = acked;
        self.chain.note_acked(acked);
        self.chain.credit_total = credit_bytes;
        fx.push(Effect::Group(ToGroup::Acked {
            durable: acked.durable,
            committed: acked.committed,
            applied: acked.applied,
        }));
        self.settle(fx);
        self.retry_sends(mem, fx);
        self.admit(now, mem, fx);
        // Nothing is sent while writes wait: only a cut carries the commit to the backup's journal,
        // and without that nothing is applied and no room is made.
        let untold = self.chain.journaled_committed > self.chain.committed_sent;
        if self.pressure_since.is_some() && untold {
            fx.push(Effect::Group(ToGroup::WantCut));
        }
    }

    /// The transport failed or ended.
    pub fn link_lost(&mut self, reason: String, fx: &mut Vec<Effect<M>>) {
        if matches!(self.link, Link::Down) {
            return;
        }
        self.link_is_down();
        fx.push(Effect::CloseLink);
        fx.push(Effect::Group(ToGroup::LinkLost(reason)));
    }

    /// Ends the session in order and says why.
    pub(super) fn drop_link(&mut self, text: String, fx: &mut Vec<Effect<M>>) {
        if matches!(self.link, Link::Down) {
            return;
        }
        fx.push(Effect::Send(Outgoing::Frame(Frame::Bye {
            text: text.clone(),
        })));
        self.link_lost(text, fx);
    }

    fn link_is_down(&mut self) {
        // What was stamped for this session may never have arrived.
        if matches!(self.link, Link::Live { .. } | Link::Syncing { .. }) {
            self.unsent = true;
        }
        if let Link::Syncing { sync, .. } = &mut self.link
            && let Some(key) = sync.abandon(&mut self.abandoned)
        {
            self.release_later = Some(key);
        }
        self.link = Link::Down;
        let session = self.chain.session;
        self.chain.reset(session, 0);
        self.chain.live = false;
        // Nothing is acknowledged for good unless the group says so.
        if self.protection == crate::engine::Protection::Protected {
            self.protection = crate::engine::Protection::Blocked;
        }
        self.pressure_since = None;
    }

    pub(super) fn link_session(&self) -> Option<SessionId> {
        match &self.link {
            Link::Down => None,
            Link::Greeting { session }
            | Link::Welcomed { session, .. }
            | Link::Live { session }
            | Link::Syncing { session, .. } => Some(*session),
        }
    }

    /// Asks whether the backup is there; a link that stays silent is lost.
    pub(super) fn keep_alive(&mut self, now: Nanos, fx: &mut Vec<Effect<M>>) {
        if self.link_session().is_none() {
            return;
        }
        if now.saturating_sub(self.chain.heard) >= LINK_SILENCE_NS_MAX {
            let seconds = LINK_SILENCE_NS_MAX / 1_000_000_000;
            self.link_lost(format!("no sign of the backup for {seconds} s"), fx);
        } else if now.saturating_sub(self.chain.pinged) >= PING_NS {
            self.chain.pinged = now;
            // The first thing a backup says is its answer to the hello.
            if !matches!(self.link, Link::Greeting { .. }) {
                fx.push(Effect::Send(Outgoing::Frame(Frame::Ping(now))));
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one descriptor")]
    pub(super) fn push_record(
        &mut self,
        now: Nanos,
        mem: &mut M,
        kind: DescriptorKind,
        offset: u64,
        length: u64,
        payload: Option<M::Buf>,
        fx: &mut Vec<Effect<M>>,
    ) {
        let payload_bytes = if payload.is_some() { length } else { 0 };
        if self.chain.open.is_full_for(payload_bytes) {
            self.send_open(mem, fx);
        }
        if self.chain.open.is_empty() {
            self.chain.charge_queued += HEADER_BYTES as u64;
        }
        self.chain.charge_queued += charge_of(payload_bytes);
        self.chain.open_writes += 1;
        self.chain.open_bytes += payload_bytes;
        self.chain
            .open
            .push(now, self.next_write_seq, kind, offset, length, payload);
        if self.chain.open.is_full_for(512) {
            self.send_open(mem, fx);
        }
    }

    /// Sends what was gathered for the open epoch.
    pub(super) fn send_open(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if !self.chain.open.is_empty() {
            let builder = std::mem::take(&mut self.chain.open);
            if self.chain.sealing.is_some() {
                self.chain.after_seal.push(builder);
                return;
            }
            self.chain.jobs.push_back(Job::Record {
                builder,
                epoch: self.epoch,
                seal: None,
            });
        }
        self.retry_sends(mem, fx);
    }

    /// The open epoch ends here.
    pub(super) fn cut(&mut self, mem: &mut M, next: Epoch, fx: &mut Vec<Effect<M>>) {
        assert!(self.chain.sealing.is_none(), "one cut at a time");
        let builder = std::mem::take(&mut self.chain.open);
        let writes = std::mem::take(&mut self.chain.open_writes);
        let bytes = std::mem::take(&mut self.chain.open_bytes);
        self.chain.sealing = Some((builder, writes, bytes));
        let wrote = std::mem::take(&mut self.wrote);
        let epoch = self.epoch;
        assert!(next > epoch, "epochs count up");
        self.epoch = next;
        fx.push(Effect::Group(ToGroup::CutDone { epoch, wrote }));
        self.begin_stream(fx);
        self.retry_sends(mem, fx);
        self.pump_sync(mem, fx);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one seal")]
    pub(super) fn seal(
        &mut self,
        _now: Nanos,
        mem: &mut M,
        epoch: Epoch,
        group_wrote: bool,
        base: Epoch,
        cut_unix_ns: u64,
        fx: &mut Vec<Effect<M>>,
    ) {
        assert!(epoch < self.epoch, "the epoch sealed is the one just cut");
        // A link that came up after the cut begins with the epoch that is open now.
        let Some((builder, writes, bytes)) = self.chain.sealing.take() else {
            return;
        };
        if !matches!(self.link, Link::Live { .. } | Link::Syncing { .. })
            || epoch < self.chain.first_epoch
        {
            self.queue_after_seal();
            self.retry_sends(mem, fx);
            return;
        }
        if group_wrote {
            if builder.is_empty() {
                self.chain.charge_queued += HEADER_BYTES as u64;
            }
            let seal = Some(Seal {
                base,
                cut_unix_ns,
                writes,
                bytes,
            });
            self.chain.journaled.push_back(epoch);
            if crate::mutant!("merge-epochs") {
                // What came after the cut goes out in front of the seal.
                for builder in std::mem::take(&mut self.chain.after_seal) {
                    self.chain.jobs.push_back(Job::Record {
                        builder,
                        epoch,
                        seal: None,
                    });
                }
                let open = std::mem::take(&mut self.chain.open);
                if !open.is_empty() {
                    self.chain.jobs.push_back(Job::Record {
                        builder: open,
                        epoch,
                        seal: None,
                    });
                }
            }
            self.chain.jobs.push_back(Job::Record {
                builder,
                epoch,
                seal,
            });
        } else {
            let committed = self.chain.journaled_committed;
            if committed > self.chain.committed_sent {
                self.chain.charge_queued += HEADER_BYTES as u64;
                self.chain.committed_sent = committed;
                self.chain.jobs.push_back(Job::Commit { epoch });
            }
            let committed = self.acked.committed;
            let released = self.chain.released.min(committed);
            let frame = Frame::EmptySeal {
                epoch,
                committed,
                released,
                cut_unix_ns,
            };
            self.chain.jobs.push_back(Job::Frame(frame));
        }
        self.queue_after_seal();
        self.retry_sends(mem, fx);
    }

    /// What was gathered between cut and seal goes out behind the seal.
    fn queue_after_seal(&mut self) {
        for builder in std::mem::take(&mut self.chain.after_seal) {
            self.chain.jobs.push_back(Job::Record {
                builder,
                epoch: self.epoch,
                seal: None,
            });
        }
    }

    pub(super) fn send_frame(&mut self, frame: Frame) {
        self.chain.jobs.push_back(Job::Frame(frame));
    }

    pub(super) fn send_direct(&mut self, offset: u64, data: M::Buf) {
        self.chain.jobs.push_back(Job::Direct {
            offset,
            data,
            epoch: self.epoch,
        });
    }

    /// Sends what is queued, in order, as far as memory and window allow.
    pub(super) fn retry_sends(&mut self, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        while let Some(job) = self.chain.jobs.pop_front() {
            if let Err(job) = self.send_job(mem, job, fx) {
                self.chain.jobs.push_front(job);
                return;
            }
        }
    }

    #[allow(
        clippy::result_large_err,
        reason = "a job that cannot go now is given back whole"
    )]
    fn send_job(
        &mut self,
        mem: &mut M,
        job: Job<M>,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Job<M>> {
        match job {
            Job::Frame(frame) => fx.push(Effect::Send(Outgoing::Frame(frame))),
            Job::Record {
                mut builder,
                epoch,
                seal,
            } => {
                let kind = if seal.is_some() {
                    RecordKind::Seal
                } else {
                    RecordKind::Writes
                };
                let mut template = self.template(kind, epoch);
                if let Some(seal) = &seal {
                    template.base_epoch = seal.base;
                    template.cut_unix_ns = seal.cut_unix_ns;
                    template.epoch_writes = seal.writes;
                    template.epoch_bytes = seal.bytes;
                }
                let queued = builder.charge_estimate();
                if self.chain.credit_total < self.chain.charge_sent + queued {
                    return Err(Job::Record {
                        builder,
                        epoch,
                        seal,
                    });
                }
                match builder.finish(mem, &self.chain.padding, None, &template) {
                    Some(built) => self.chain_sent(built, queued, fx),
                    None => {
                        return Err(Job::Record {
                            builder,
                            epoch,
                            seal,
                        });
                    }
                }
            }
            Job::Commit { epoch } => {
                let queued = HEADER_BYTES as u64;
                if self.chain.credit_total < self.chain.charge_sent + queued {
                    return Err(Job::Commit { epoch });
                }
                let template = self.template(RecordKind::Commit, epoch);
                match Builder::default().finish(mem, &self.chain.padding, None, &template) {
                    Some(built) => self.chain_sent(built, queued, fx),
                    None => return Err(Job::Commit { epoch }),
                }
            }
            Job::Direct {
                offset,
                data,
                epoch,
            } => {
                let mut header = self.template(RecordKind::Resync, epoch);
                header.flags = FLAG_DIRECT;
                header.record_seq = 0;
                header.prev_crc = 0;
                header.base_epoch = Epoch::NONE;
                let length = data.as_ref().len();
                header.descriptors.push(Descriptor {
                    kind: DescriptorKind::Data,
                    offset_bytes: offset,
                    length_bytes: u32::try_from(length).expect("a chunk"),
                    payload_crc: crc32fast::hash(data.as_ref()),
                });
                let Some(mut bytes) = mem.alloc(HEADER_BYTES) else {
                    return Err(Job::Direct {
                        offset,
                        data,
                        epoch,
                    });
                };
                header.encode(bytes.as_mut());
                let mut bufs = vec![mem.freeze(bytes), data];
                let pad = length.next_multiple_of(HEADER_BYTES) - length;
                if pad > 0 {
                    bufs.push(mem.slice(&self.chain.padding, 0, pad));
                }
                fx.push(Effect::Send(Outgoing::Record(bufs)));
            }
        }
        Ok(())
    }

    fn chain_sent(
        &mut self,
        (header, crc, outgoing): (Header, u32, Outgoing<M>),
        queued: u64,
        fx: &mut Vec<Effect<M>>,
    ) {
        self.chain.charge_queued -= queued;
        self.chain.charge_sent += header.charge_bytes();
        self.chain.record_seq = header.record_seq;
        self.chain.prev_crc = crc;
        if header.kind == RecordKind::Seal {
            self.chain.sealed = header.epoch;
        }
        self.chain.committed_sent = header.committed;
        fx.push(Effect::Send(outgoing));
    }

    /// Everything of the next record of the chain but its writes.
    fn template(&self, kind: RecordKind, epoch: Epoch) -> Header {
        let first = self.chain.record_seq == 0;
        Header {
            kind,
            flags: if first { FLAG_CHAIN_START } else { 0 },
            prev_crc: if first { 0 } else { self.chain.prev_crc },
            volume_index: self.identity.volume_index,
            epoch,
            record_seq: self.chain.record_seq + 1,
            session: self.chain.session,
            first_write_seq: 0,
            group: self.identity.group,
            volume: self.identity.volume,
            lineage: self.lineage.last().expect("a primary has a history").0,
            durable: self.chain.journaled_durable,
            committed: self.chain.journaled_committed,
            released: self.chain.journaled_released,
            cut_unix_ns: 0,
            base_epoch: self.chain.sealed,
            epoch_writes: 0,
            epoch_bytes: 0,
            descriptors: Vec::new(),
        }
    }
}
