//! A primary's session: hello, records, seals, first sync, acknowledgements.

use super::meta::Then;
use super::{BackupVolume, Io, Mode, Pending};
use crate::engine::{Effect, Identity, Nanos, Outgoing, ToGroup};
use crate::io::{Done, Memory, Op, Target};
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
        if hello.size_bytes != self.size_bytes {
            let text = format!(
                "the primary's image has {} bytes, the backup's {}: make them equal (truncate, \
                 lvresize)",
                hello.size_bytes, self.size_bytes
            );
            return Some((RefuseCode::Size, text));
        }
        let known = self.identity.as_ref()?;
        if known.volume != hello.volume || known.group != hello.group {
            let text = format!(
                "this backup holds volume {} of group {}, the primary brings volume {} of group \
                 {}: use another state directory, or the right image",
                known.volume, known.group, hello.volume, hello.group
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
            sync,
        } = accepted;
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
                Incoming::Record(buf) => self.take_record(mem, buf, fx),
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
        let step = self.settings.geometry.capacity_bytes() / 8;
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

    fn take_frame(
        &mut self,
        mem: &mut M,
        frame: Frame,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        match frame {
            Frame::SyncStart => self.start_sync(fx),
            Frame::SyncCheck { index, hash } => self.start_check(mem, index, hash, fx),
            Frame::SyncEnd { epoch } => {
                if self.session.sync != Sync::Comparing {
                    return Err(Stop::Violation(
                        "end of a sync that did not begin".to_owned(),
                    ));
                }
                if epoch <= self.session.last_sealed {
                    return Err(Stop::Violation(format!(
                        "end of a sync in old epoch {epoch}"
                    )));
                }
                self.session.sync = Sync::Ending(epoch, EndStep::Copies);
                self.end_sync(fx);
                Ok(())
            }
            Frame::EmptySeal {
                epoch, cut_unix_ns, ..
            } => self.empty_seal(epoch, cut_unix_ns, fx),
            _ => Err(Stop::Violation(
                "a frame that only a backup sends".to_owned(),
            )),
        }
    }

    fn start_sync(&mut self, fx: &mut Vec<Effect<M>>) -> Result<(), Stop<M>> {
        if self.session.sync != Sync::None || self.expect.is_some() {
            return Err(Stop::Violation(
                "a sync in the middle of a session".to_owned(),
            ));
        }
        self.session.sync = Sync::Marking;
        self.meta.now.inconsistent = true;
        self.meta.write(Then::Compare);
        fx.push(Effect::Group(ToGroup::Inconsistent));
        Ok(())
    }

    fn start_check(
        &mut self,
        mem: &mut M,
        index: u64,
        hash: [u8; 32],
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        let start = index
            .checked_mul(SYNC_CHUNK_BYTES)
            .filter(|start| *start < self.size_bytes);
        let Some(start) = start.filter(|_| self.session.sync == Sync::Comparing) else {
            return Err(Stop::Violation(format!("a check of chunk {index}")));
        };
        let later = Stop::Later(Incoming::Frame(Frame::SyncCheck { index, hash }));
        if self.session.checks >= SYNC_IOS_MAX {
            return Err(later);
        }
        let length = SYNC_CHUNK_BYTES.min(self.size_bytes - start);
        let Some(buf) = mem.alloc(usize::try_from(length).expect("a chunk")) else {
            return Err(later);
        };
        self.session.checks += 1;
        let op = Op::Read {
            target: Target::Image,
            offset: start,
            buf,
        };
        self.io(Io::CheckRead { index, hash }, op, fx);
        Ok(())
    }

    pub(super) fn check_read(
        &mut self,
        index: u64,
        hash: &[u8; 32],
        done: Done<M>,
        fx: &mut Vec<Effect<M>>,
    ) {
        self.session.checks -= 1;
        if self.session.sync != Sync::Comparing {
            return;
        }
        // What cannot be read is copied anew.
        let differs = done.result.is_err()
            || done
                .buf
                .is_none_or(|buf| blake3::hash(buf.as_ref()).as_bytes() != hash);
        fx.push(Effect::Send(Outgoing::Frame(Frame::SyncResult {
            index,
            differs,
        })));
    }

    /// Goes through the steps at the end of a sync.
    fn end_sync(&mut self, fx: &mut Vec<Effect<M>>) {
        if let Sync::Ending(epoch, EndStep::Copies) = self.session.sync
            && self.session.direct_in_flight == 0
        {
            self.session.sync = Sync::Ending(epoch, EndStep::ImageSync);
            if crate::mutant!("consistent-before-sync") {
                self.direct_synced();
                return;
            }
            self.io(
                Io::DirectSync,
                Op::Sync {
                    target: Target::Image,
                },
                fx,
            );
        }
    }

    pub(super) fn direct_synced(&mut self) {
        if let Sync::Ending(epoch, EndStep::ImageSync) = self.session.sync {
            self.session.sync = Sync::Ending(epoch, EndStep::Metadata);
            self.meta.now.inconsistent = false;
            self.meta.now.consistent_from = epoch;
            self.meta.write(Then::Consistent);
        }
    }

    fn empty_seal(
        &mut self,
        epoch: Epoch,
        cut_unix_ns: u64,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        if epoch <= self.session.last_sealed || self.pending.back().is_some_and(|p| !p.sealed) {
            return Err(Stop::Violation(format!(
                "empty seal of epoch {epoch} out of turn"
            )));
        }
        self.session.last_sealed = epoch;
        let Some(end) = self.expect else {
            // Nothing was written in this session yet: there is nothing to wait for either.
            if !self.session.holds_seals() {
                self.durable = self.durable.max(epoch);
                self.cut_unix_ns.insert(epoch, cut_unix_ns);
                fx.push(Effect::Group(ToGroup::Sealed(epoch)));
            }
            return Ok(());
        };
        self.pending.push_back(Pending {
            epoch,
            extents: Vec::new(),
            last_append: self.session.last_seal_append,
            sealed: true,
            journaled: false,
            durable: false,
            cut_unix_ns,
            end,
        });
        self.mark_durable(fx);
        Ok(())
    }

    fn take_record(
        &mut self,
        mem: &mut M,
        mut record: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        let violation = |text: String| Stop::Violation(text);
        let (header, crc) =
            Header::decode(record.as_ref()).map_err(|error| violation(error.to_string()))?;
        if header.total_bytes() != record.as_ref().len() as u64 {
            return Err(violation(
                "a record of another length than it says".to_owned(),
            ));
        }
        self.check_record(&header).map_err(violation)?;
        header
            .check_payloads(record.as_ref())
            .and_then(|()| header.check_ranges(self.size_bytes))
            .map_err(|error| violation(error.to_string()))?;
        self.counters.records += 1;
        self.counters.record_bytes += header.total_bytes();
        if header.flags & FLAG_DIRECT != 0 {
            return self.take_direct(mem, &header, record, fx);
        }
        let charge = header.charge_bytes();
        if self.session.charge_received + charge > self.session.credit_told {
            return Err(violation(
                "more than the window that was granted".to_owned(),
            ));
        }
        // A segment header may be needed, too: without memory for it nothing is taken.
        let Some(spare) = mem.alloc(SEGMENT_HEADER_BYTES) else {
            return Err(Stop::Later(Incoming::Record(record)));
        };
        drop(spare);
        let slot = self.ring.take(header.total_bytes());
        let slot = slot.ok_or_else(|| violation("no room in the journal".to_owned()))?;
        set_placement(&mut record.as_mut()[..HEADER_BYTES], slot.place);
        let bufs = vec![mem.freeze(record)];
        let number = self
            .append(mem, &header, crc, slot.place, slot.new_segment, bufs, fx)
            .expect("memory was there just now");
        self.session.charge_received += charge;
        self.note_record(&header, slot.place, number, fx);
        Ok(())
    }

    fn check_record(&self, header: &Header) -> Result<(), String> {
        let hello = self
            .session
            .hello
            .as_ref()
            .expect("records come in a session");
        if header.session != hello.session
            || header.group != hello.group
            || header.volume != hello.volume
            || Some(header.lineage) != self.session.lineage
        {
            return Err("a record of another session, volume or history".to_owned());
        }
        if header.durable > self.durable || header.committed > self.committed {
            return Err("a record that knows of epochs this side never sealed".to_owned());
        }
        if header.flags & FLAG_DIRECT != 0 {
            if self.session.sync == Sync::Comparing {
                return Ok(());
            }
            return Err("a copied chunk outside of a sync".to_owned());
        }
        let (seq, crc) = self.expect.map_or((1, 0), |e| (e.record_seq, e.prev_crc));
        if header.record_seq != seq || header.prev_crc != crc {
            return Err(format!(
                "record {} where {seq} was expected",
                header.record_seq
            ));
        }
        if header.kind == RecordKind::Resync {
            return Err("a journalled resync, which this version does not know".to_owned());
        }
        let open = self.pending.back().filter(|p| !p.sealed).map(|p| p.epoch);
        if header.kind != RecordKind::Seal && header.base_epoch > self.session.last_sealed {
            return Err("a record that names a seal this side never got".to_owned());
        }
        if header.epoch <= self.session.last_sealed
            || (header.kind != RecordKind::Commit && open.is_some_and(|open| open != header.epoch))
        {
            return Err(format!("a record of epoch {} out of turn", header.epoch));
        }
        Ok(())
    }

    fn note_record(&mut self, header: &Header, place: Place, number: u64, fx: &mut Vec<Effect<M>>) {
        let end = self.expect.expect("a record was just appended");
        if header.kind == RecordKind::Commit {
            self.appends.want_sync(number);
            return;
        }
        if self.pending.back().is_none_or(|p| p.sealed) {
            self.pending.push_back(Pending {
                epoch: header.epoch,
                extents: Vec::new(),
                last_append: number,
                sealed: false,
                journaled: true,
                durable: false,
                cut_unix_ns: 0,
                end,
            });
        }
        let pending = self.pending.back_mut().expect("there is one now");
        extents_of(header, place, &mut pending.extents);
        pending.last_append = number;
        pending.end = end;
        if header.kind == RecordKind::Seal {
            pending.sealed = true;
            pending.cut_unix_ns = header.cut_unix_ns;
            self.session.last_sealed = header.epoch;
            self.session.last_seal_append = number;
        }
        self.mark_durable(fx);
    }

    fn take_direct(
        &mut self,
        mem: &mut M,
        header: &Header,
        record: M::BufMut,
        fx: &mut Vec<Effect<M>>,
    ) -> Result<(), Stop<M>> {
        if self.session.direct_in_flight >= SYNC_IOS_MAX {
            return Err(Stop::Later(Incoming::Record(record)));
        }
        let record = mem.freeze(record);
        for (descriptor, at) in header.descriptors.iter().zip(header.payload_offsets()) {
            if descriptor.payload_bytes() == 0 {
                return Err(Stop::Violation("a copied chunk without data".to_owned()));
            }
            let at = usize::try_from(at).expect("inside a record");
            let bufs = vec![mem.slice(&record, at, descriptor.length_bytes as usize)];
            self.session.direct_in_flight += 1;
            let op = Op::Write {
                target: Target::Image,
                offset: descriptor.offset_bytes,
                bufs,
            };
            self.io(Io::Direct, op, fx);
        }
        Ok(())
    }
}

/// Why a message of the link was not taken.
enum Stop<M: Memory> {
    /// No memory or too much in flight: it comes again.
    Later(Incoming<M>),
    /// The session ends.
    Violation(String),
}
