//! A primary's session: hello, records, seals, first sync, acknowledgements.

mod records;
mod sync;

use super::meta::Then;
use super::{BackupVolume, Io, Mode, Pending};
use crate::engine::{Effect, Identity, Nanos, Outgoing, ToGroup};
use crate::io::{Bufs, Done, Memory, Op, Target};
use crate::journal::recovery::Decision;
use crate::journal::ring::Ring;
use crate::journal::scan::extents_of;
use blkback_proto::ids::{Epoch, LineageId, Place, SessionId};
use blkback_proto::link::{Frame, Hello, RefuseCode, SYNC_CHUNK_BYTES, Welcome};
use blkback_proto::record::{
    DESCRIPTOR_CHARGE_BYTES, FLAG_DIRECT, HEADER_BYTES, Header, RecordKind, set_placement,
};
use blkback_proto::segment::SEGMENT_HEADER_BYTES;
use std::collections::VecDeque;

/// Silence after which a session counts as lost, in nanoseconds.
const SESSION_SILENCE_NS_MAX: Nanos = 3_000_000_000;
/// How often a primary hears from us at least, in nanoseconds.
const PING_NS: Nanos = 500_000_000;
/// Messages taken from the link before they can be worked on.
const INBOX_MAX: usize = 16;
/// Copies and checks of a sync in flight.
const SYNC_IOS_MAX: usize = 8;

/// Something of the link that waits for its turn.
enum Incoming<M: Memory> {
    Frame(Frame),
    Record(M::BufMut),
}

/// What the group said to a hello.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    pub(super) lineage: LineageId,
    pub(super) epoch: Epoch,
    pub(super) sync: bool,
}

/// Where a first sync stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    None,
    /// Metadata that says "inconsistent" is being written.
    Marking,
    Comparing,
    /// SYNC_END was received: waiting for copies, the image's sync, and metadata.
    Ending(Epoch, EndStep),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndStep {
    Copies,
    ImageSync,
    Metadata,
}

/// The session and its stream.
pub(super) struct Session<M: Memory> {
    hello: Option<Hello>,
    /// Accepted while metadata for the session before was being written.
    accepted: Option<Accepted>,
    lineage: Option<LineageId>,
    up: bool,
    sync: Sync,
    inbox: VecDeque<Incoming<M>>,
    /// Copies of a sync on their way into the image, and chunks being read to compare.
    pub(super) direct_in_flight: usize,
    checks: usize,
    first_epoch: Epoch,
    last_sealed: Epoch,
    last_seal_append: u64,
    charge_received: u64,
    credit_told: u64,
    heard: Nanos,
    pinged: Nanos,
}

impl<M: Memory> Default for Session<M> {
    fn default() -> Self {
        Self {
            hello: None,
            accepted: None,
            lineage: None,
            up: false,
            sync: Sync::None,
            inbox: VecDeque::new(),
            direct_in_flight: 0,
            checks: 0,
            first_epoch: Epoch::NONE,
            last_sealed: Epoch::NONE,
            last_seal_append: 0,
            charge_received: 0,
            credit_told: 0,
            heard: 0,
            pinged: 0,
        }
    }
}

impl<M: Memory> Session<M> {
    pub(super) fn next_tick(&self) -> Option<Nanos> {
        self.hello.as_ref()?;
        let silence = self.heard + SESSION_SILENCE_NS_MAX;
        Some(silence.min(self.pinged + PING_NS))
    }

    /// Seals must not be reported: the image is not known to be an epoch yet.
    pub(super) fn holds_seals(&self) -> bool {
        matches!(self.sync, Sync::Ending(..))
    }

    pub(super) fn comparing(&mut self) {
        if self.sync == Sync::Marking {
            self.sync = Sync::Comparing;
        }
    }

    pub(super) fn consistent(&mut self) {
        self.sync = Sync::None;
    }
}

impl<M: Memory> BackupVolume<M> {
    /// The session that is up or being set up.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.session.hello.as_ref().map(|h| h.session)
    }

    /// A primary is connected and was heard of lately.
    #[must_use]
    pub fn has_session(&self) -> bool {
        self.session.hello.is_some()
    }

    /// A sync is under way.
    #[must_use]
    pub fn is_syncing(&self) -> bool {
        self.session.sync != Sync::None
    }

    /// More from the link can be taken now.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.session.inbox.len() < INBOX_MAX
    }

    /// The first frame of a new connection. The driver connects at most one at a time.
    pub fn link_hello(&mut self, now: Nanos, hello: Hello, fx: &mut Vec<Effect<M>>) {
        assert!(self.session.hello.is_none(), "one session at a time");
        self.session.heard = now;
        self.session.pinged = now;
        let refusal = self.check_hello(&hello);
        let session = hello.session;
        self.session.hello = Some(hello.clone());
        match refusal {
            Some((code, text)) => self.refuse(code, text, fx),
            None if self.failed.is_some() => {
                self.refuse(
                    RefuseCode::Store,
                    "the backup's store failed".to_owned(),
                    fx,
                );
            }
            None => {
                debug_assert_eq!(session, hello.session);
                fx.push(Effect::Group(ToGroup::Hello(Box::new(hello))));
            }
        }
    }

    fn check_hello(&self, hello: &Hello) -> Option<(RefuseCode, String)> {
        if hello.choose_version().is_none() {
            let text = format!(
                "this backup speaks link versions {} to {}, the primary {} to {}: install the same \
                 release on both hosts",
                blkback_proto::link::LINK_VERSION_MIN,
                blkback_proto::link::LINK_VERSION_MAX,
                hello.version_min,
                hello.version_max
            );
            return Some((RefuseCode::Version, text));
        }
        let known = self.identity.as_ref()?;
        // Another group is refused by the group, which knows its own name; so is another size, once it
        // is known whose backup this is.
        if known.group == hello.group && known.volume != hello.volume {
            let text = format!(
                "this backup holds volume {} of group {}, the primary brings volume {}: give the \
                 same disks in the same order on both hosts",
                known.volume, known.group, hello.volume
            );
            return Some((RefuseCode::Identity, text));
        }
        None
    }

    pub(super) fn refuse(&mut self, code: RefuseCode, text: String, fx: &mut Vec<Effect<M>>) {
        if self.session.hello.is_none() {
            return;
        }
        fx.push(Effect::Send(Outgoing::Frame(Frame::Refuse { code, text })));
        fx.push(Effect::CloseLink);
        self.end_session();
    }

    /// The group takes the primary in: first everything in the journal goes to the image.
    pub(super) fn accept(&mut self, session: SessionId, accepted: Accepted) {
        if self.session() != Some(session) {
            return;
        }
        let hello = self.session.hello.as_ref();
        let same = |known: &Identity| hello.is_some_and(|hello| known.group == hello.group);
        assert!(
            self.identity.as_ref().is_none_or(same),
            "the group takes in its own primaries only"
        );
        match self.mode {
            Mode::Waiting => {}
            Mode::Draining { writing: true, .. } => {
                self.session.accepted = Some(accepted);
                return;
            }
            _ => return,
        }
        // What the group did not commit, nobody was told of; its numbers are not used again.
        let last = self.pending.back().map_or(Epoch::NONE, |p| p.epoch);
        self.seen = self.seen.max(self.durable).max(last);
        let committed = self.committed;
        self.pending.retain(|p| p.epoch <= committed);
        self.durable = committed;
        let Accepted {
            lineage,
            epoch,
            mut sync,
        } = accepted;
        // Whatever the group thinks: an image in the middle of a sync has to end one.
        sync |= self.meta.now.inconsistent;
        self.mode = Mode::Draining {
            session,
            lineage,
            epoch,
            sync,
            writing: false,
        };
    }

    pub(super) fn advance_session(&mut self, now: Nanos, mem: &mut M, fx: &mut Vec<Effect<M>>) {
        if let Mode::Draining {
            session,
            lineage,
            sync,
            writing: false,
            ..
        } = self.mode
        {
            self.prepare_session(session, lineage, sync);
        }
        self.end_sync(fx);
        while self.mode == Mode::Receiving
            && self.session.sync != Sync::Marking
            && let Some(incoming) = self.session.inbox.pop_front()
        {
            let result = match incoming {
                Incoming::Frame(frame) => self.take_frame(mem, frame, fx),
                Incoming::Record(buf) => {
                    self.pace.received = now;
                    self.take_record(mem, buf, fx)
                }
            };
            match result {
                Ok(()) => {}
                Err(Stop::Later(incoming)) => {
                    self.session.inbox.push_front(incoming);
                    break;
                }
                Err(Stop::Violation(text)) => {
                    self.session.heard = now;
                    let text = format!("the primary broke the protocol: {text}");
                    self.drop_session(text, fx);
                }
            }
        }
        self.grant(fx);
    }

    fn prepare_session(&mut self, session: SessionId, lineage: LineageId, sync: bool) {
        let empty = self.overlay.is_empty()
            && self.committed_queue.is_empty()
            && self.apply.is_idle()
            && self.appends.is_idle()
            && (self.session.direct_in_flight == 0 && self.session.checks == 0
                || crate::mutant!("old-copy-in-new-session"))
            && self.pins.is_empty();
        if !empty {
            return;
        }
        let hello = self.session.hello.as_ref().expect("draining for a session");
        let serial = self.ring.head().serial + 1;
        let meta = &mut self.meta.now;
        meta.group = hello.group;
        meta.volume = hello.volume;
        meta.volume_index = hello.volume_index;
        meta.tail = Place {
            serial,
            offset: SEGMENT_HEADER_BYTES as u64,
        };
        meta.tail_record_seq = 1;
        meta.tail_prev_crc = 0;
        meta.tail_session = session;
        meta.tail_lineage = lineage;
        meta.own_serial = 0;
        meta.own_synced = 0;
        meta.journal_empty = false;
        meta.clean = false;
        // A blank image that has to be compared is no epoch before that has begun, either.
        // Nor does a session wash off that an acknowledged epoch may be missing.
        let doubtful = self.identity.is_none() || self.decision == Decision::Suspect;
        meta.inconsistent |= doubtful && sync;
        self.identity = Some(Identity {
            group: hello.group,
            volume: hello.volume,
            volume_index: hello.volume_index,
            volume_count: hello.volume_count,
            size_bytes: hello.size_bytes,
        });
        self.meta.write(Then::BeginSession);
        if let Mode::Draining { writing, .. } = &mut self.mode {
            *writing = true;
        }
    }

    pub(super) fn begin_session(&mut self, fx: &mut Vec<Effect<M>>) {
        let Mode::Draining {
            session,
            epoch,
            sync,
            lineage,
            ..
        } = self.mode
        else {
            return;
        };
        self.ring = Ring::starting_at(self.settings.geometry, self.meta.now.tail.serial);
        self.expect = None;
        self.apply.forget_before(self.meta.now.tail);
        if self.session() != Some(session) {
            self.mode = Mode::Waiting;
            if let (Some(session), Some(accepted)) = (self.session(), self.session.accepted.take())
            {
                self.accept(session, accepted);
            }
            return;
        }
        self.mode = Mode::Receiving;
        self.session.up = true;
        self.session.lineage = Some(lineage);
        let seen = self.seen.max(self.durable).max(self.committed);
        self.session.first_epoch = epoch.max(seen.next());
        self.session.last_sealed = self.session.first_epoch.previous();
        self.session.last_seal_append = self.appends.synced;
        let credit_bytes = self.credit();
        self.session.credit_told = credit_bytes;
        let welcome = Welcome {
            version: blkback_proto::link::LINK_VERSION_MAX,
            session,
            volume: self.meta.now.volume,
            size_bytes: self.size_bytes,
            committed: self.session.first_epoch.previous(),
            sync_needed: sync,
            credit_bytes,
            journal_bytes: self.settings.geometry.capacity_bytes(),
            name: self.settings.name.clone(),
        };
        fx.push(Effect::Send(Outgoing::Frame(Frame::Welcome(welcome))));
        fx.push(Effect::Group(ToGroup::SessionUp));
    }

    /// Charge the primary may have sent in this session, in bytes.
    fn credit(&self) -> u64 {
        let extents = self.settings.extents_max.saturating_sub(self.extents()) as u64;
        let free = self
            .ring
            .free_bytes()
            .min(extents * DESCRIPTOR_CHARGE_BYTES);
        (self.session.charge_received + free).max(self.session.credit_told)
    }

    /// Tells the primary how far we are.
    pub(super) fn ack(&mut self, fx: &mut Vec<Effect<M>>) {
        if !self.session.up {
            return;
        }
        let ours = |epoch: Epoch| {
            if epoch >= self.session.first_epoch {
                epoch
            } else {
                Epoch::NONE
            }
        };
        let credit_bytes = self.credit();
        let frame = Frame::Ack {
            durable: ours(self.durable),
            committed: ours(self.committed),
            applied: ours(self.apply.applied()),
            credit_bytes,
        };
        self.session.credit_told = credit_bytes;
        fx.push(Effect::Send(Outgoing::Frame(frame)));
    }

    /// Tells the primary of window space when there is a good deal of it.
    fn grant(&mut self, fx: &mut Vec<Effect<M>>) {
        let extents = self.settings.extents_max as u64 * DESCRIPTOR_CHARGE_BYTES;
        let step = self.settings.geometry.capacity_bytes().min(extents) / 8;
        if self.session.up && self.credit() >= self.session.credit_told + step {
            self.ack(fx);
        }
    }

    /// A frame of the primary.
    pub fn link_frame(
        &mut self,
        now: Nanos,
        mem: &mut M,
        session: SessionId,
        frame: Frame,
        fx: &mut Vec<Effect<M>>,
    ) {
        if self.session() != Some(session) {
            self.drop_session(format!("a frame of session {session}"), fx);
            return;
        }
        self.session.heard = now;
        match frame {
            Frame::Ping(token) => fx.push(Effect::Send(Outgoing::Frame(Frame::Pong(token)))),
            Frame::Pong(_) => {}
            Frame::Bye { text } => {
                self.link_lost(format!("the primary ended the session: {text}"), fx);
            }
            other => self.session.inbox.push_back(Incoming::Frame(other)),
        }
        self.advance(now, mem, fx);
    }

    /// A whole record of the primary, header first, as long as its prefix said.
    pub fn link_record(
        &mut self,
        now: Nanos,
        mem: &mut M,
        record: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) {
        self.session.heard = now;
        self.session.inbox.push_back(Incoming::Record(record));
        self.advance(now, mem, fx);
    }

    /// The transport failed or ended.
    pub fn link_lost(&mut self, reason: String, fx: &mut Vec<Effect<M>>) {
        if self.session.hello.is_some() {
            self.end_session();
            fx.push(Effect::CloseLink);
            fx.push(Effect::Group(ToGroup::LinkLost(reason)));
        }
    }

    /// Ends the session and says why.
    pub(super) fn drop_session(&mut self, text: String, fx: &mut Vec<Effect<M>>) {
        if self.session.hello.is_some() {
            fx.push(Effect::Send(Outgoing::Frame(Frame::Bye {
                text: text.clone(),
            })));
            self.link_lost(text, fx);
        }
    }

    fn end_session(&mut self) {
        let direct_in_flight = self.session.direct_in_flight;
        let checks = self.session.checks;
        self.session = Session {
            direct_in_flight,
            checks,
            ..Session::default()
        };
        // An epoch without its seal can never be whole.
        while self.pending.back().is_some_and(|p| !p.sealed) {
            self.pending.pop_back();
        }
        self.mode = match self.mode {
            // Metadata is on its way: the mode changes when it is durable.
            Mode::Draining { writing: true, .. } => self.mode,
            Mode::Draining { .. } | Mode::Receiving | Mode::Waiting => Mode::Waiting,
            other => other,
        };
    }

    /// Part of a message came in, or nothing could, because we did not listen: no silence.
    pub fn link_alive(&mut self, now: Nanos) {
        self.session.heard = self.session.heard.max(now);
    }

    pub(super) fn keep_alive(&mut self, now: Nanos, fx: &mut Vec<Effect<M>>) {
        if self.session.hello.is_none() {
            return;
        }
        if now.saturating_sub(self.session.heard) >= SESSION_SILENCE_NS_MAX {
            let seconds = SESSION_SILENCE_NS_MAX / 1_000_000_000;
            self.link_lost(format!("no sign of the primary for {seconds} s"), fx);
        } else if now.saturating_sub(self.session.pinged) >= PING_NS {
            // Unasked: a question of the primary may stand in line behind a window of records.
            self.session.pinged = now;
            fx.push(Effect::Send(Outgoing::Frame(Frame::Ping(now))));
        }
    }
}

/// Why a message of the link was not taken.
enum Stop<M: Memory> {
    /// No memory or too much in flight: it comes again.
    Later(Incoming<M>),
    /// The session ends.
    Violation(String),
}
