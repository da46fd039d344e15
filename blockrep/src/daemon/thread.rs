//! The I/O thread of a volume: one loop over mailbox, reactor, engine and group.

use super::control::{CutWait, PromoteAsked, PromoteWait};
use super::image_mark::Claim;
use super::link::Arrived;
use super::memory::{PoolBuf, PoolBufMut, PoolMemory};
use super::nbd::NbdConn;
use super::pressure::Pressure;
use super::role::{Engine, Group};
use super::status::Collector;
use super::timeline::{Holds, Latencies, Rate};
use crate::config::{LossPolicy, OutputClass};
use crate::engine::backup::Mode;
use crate::engine::primary::PrimarySettings;
use crate::engine::{Effect, Nanos, Outgoing, ToGroup, ToVolume};
use crate::frontend::nbd::ExportInfo;
use crate::group::{GroupEffect, Now, State};
use crate::io::{Bufs, Done, IoError, IoId, Op, Reply, Target};
use crate::reactor::{
    Buf, Completion, FileId, MailSender, Mailbox, Op as ROp, OpError, Pool, Reactor, ReturnedBuf,
    SockId,
};
use blkback_proto::ctl::{self, EventKind};
use blkback_proto::ids::{LineageId, SessionId};
use blkback_proto::link::Frame;
use blkback_proto::meta::{SLOT_BYTES, slot_offset};
use blockrep_host::ctl::{EventLog, NewEvent, ReplyHandle};
use blockrep_host::{clock, ids};
use slab::Slab;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

/// How long a drain at the end may take.
const DRAIN_NS_MAX: Nanos = 10_000_000_000;
/// How soon work that waits for memory is tried again.
const RETRY_NS: Nanos = 1_000_000;

/// A message to an I/O thread.
pub(super) enum Mail {
    /// For the engine.
    ToVolume(ToVolume),
    /// For the group, from the volume of that index.
    ToGroup(usize, ToGroup),
    /// A connection to the backup, or why there is none.
    Dialed(Result<(OwnedFd, String), String>),
    /// An NBD client that chose this volume's export.
    Client(Box<super::nbd::Handover>),
    /// A request of a control client.
    Control(ctl::Request, ReplyHandle),
    /// Somebody wants to know the status.
    Status(Arc<Collector>),
    /// Of the vhost thread: guests' rings.
    Ring(super::vhost::RingMail),
    /// The image was taken away (and how), or is back.
    Image(Option<String>),
    /// End in order.
    Stop,
}

/// Files of a volume, open in the reactor.
pub(super) struct Files {
    pub(super) image: FileId,
    pub(super) segments: Vec<FileId>,
    pub(super) volume_meta: FileId,
    pub(super) group_meta: Option<FileId>,
}

/// What a thread knows of its volume besides the engine.
pub(super) struct About {
    pub(super) index: usize,
    pub(super) group_name: String,
    pub(super) image_path: String,
    pub(super) size_bytes: u64,
    pub(super) volume_uuid: Option<String>,
    pub(super) is_primary_daemon: bool,
    pub(super) settings: PrimarySettings,
    pub(super) output: OutputClass,
    pub(super) loss: LossPolicy,
    pub(super) memory_bytes_max: Vec<(String, u64)>,
    pub(super) link_rate: Option<u64>,
    /// What is wrong with the image from outside.
    pub(super) image_trouble: Option<String>,
    /// The operator's word for the image stands in the place of a check.
    pub(super) same_image: bool,
    /// What a promotion here left out on the operator's word, and where that is kept.
    pub(super) lost: Option<String>,
    pub(super) loss_file: PathBuf,
    /// Nobody has compared the images: the operator's word stands in the place of that.
    pub(super) on_word: bool,
    pub(super) started: Instant,
}

/// Kinds of completion tokens, in the top byte.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Token {
    Io = 1,
    Mail = 2,
    GroupMetaWrite = 3,
    GroupMetaSync = 4,
    NbdAccept = 5,
    NbdRecv = 6,
    NbdSend = 7,
    LinkAccept = 8,
    LinkRecv = 9,
    LinkSend = 10,
    RingKick = 11,
    RingCancel = 12,
}

impl Token {
    pub(super) fn with(self, value: u64) -> u64 {
        debug_assert!(value < 1 << 56, "ids are small");
        ((self as u64) << 56) | value
    }

    fn split(token: u64) -> (u8, u64) {
        ((token >> 56) as u8, token & ((1 << 56) - 1))
    }
}

/// How the thread of a volume has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Told to stop, with nothing left to do.
    InOrder,
    /// With something left to do.
    GaveUp,
    /// Its store failed: why.
    Failed(String),
}

/// The I/O thread of a volume.
pub(super) struct VolumeThread {
    pub(super) about: About,
    pub(super) reactor: Reactor,
    pub(super) mem: PoolMemory,
    pub(super) engine: Engine,
    pub(super) group: Option<Group>,
    pub(super) files: Files,
    pub(super) mailbox: Mailbox<Mail>,
    pub(super) peers: Vec<MailSender<Mail>>,
    pub(super) events: EventLog,
    pub(super) fx: Vec<Effect<PoolMemory>>,
    /// Empty; its room is kept for the next batch of effects.
    pub(super) fx_spare: Vec<Effect<PoolMemory>>,
    pub(super) gfx: Vec<GroupEffect>,
    pub(super) local: Vec<Mail>,
    pub(super) now: Nanos,

    pub(super) nbd_listener: Option<SockId>,
    pub(super) exports: Vec<ExportInfo>,
    pub(super) clients: Slab<NbdConn>,
    pub(super) requests: Slab<super::nbd::InFlight>,
    pub(super) parts: Slab<super::nbd::Part>,
    pub(super) todo: std::collections::VecDeque<(usize, u64)>,
    pub(super) stalled: bool,
    /// Rings of a guest, where vhost-user is served.
    pub(super) rings: Option<super::vhost::Rings>,
    /// Journal charge of the writes that clients have in flight, in bytes.
    pub(super) front_bytes: u64,
    /// For metadata of the group, whatever else takes memory.
    pub(super) meta_pool: Pool,

    pub(super) net: super::net::Net,
    pub(super) cut_waits: Vec<CutWait>,
    pub(super) pending_cuts: Vec<(u64, bool, Nanos, ReplyHandle)>,
    pub(super) promotes: Vec<PromoteAsked>,
    pub(super) promote_waits: Vec<PromoteWait>,
    pub(super) guest_memory: super::guest_memory::GuestMemory,
    pub(super) next_token: u64,
    pub(super) latencies: Latencies,
    pub(super) holds: Holds,
    /// The image of a backup that never held anything is not marked yet.
    pub(super) claim: Option<Claim>,
    pub(super) rates: [Rate; 3],
    pub(super) pressure: Pressure,
    pub(super) progress: super::status::Progress,
    pub(super) since: super::status::Since,
    pub(super) stopping: Option<Nanos>,
    /// The end did not wait for what it should have waited for.
    pub(super) gave_up: bool,
    pub(super) meta_writing: bool,
    /// Metadata of the group that goes to the other slot as well, and where.
    pub(super) meta_copy: Option<(u64, Buf)>,
}

impl VolumeThread {
    /// Runs until told to stop.
    pub(super) fn run(mut self) -> Result<Ended, std::io::Error> {
        self.arm_mailbox();
        self.start_net();
        self.start_group();
        let mut completions = Vec::new();
        loop {
            self.update_now();
            self.take_mail();
            self.settle();
            if self.is_finished() {
                break;
            }
            let may_sleep = self.mailbox.prepare_wait();
            let timeout = if may_sleep {
                self.timeout()
            } else {
                Some(Duration::ZERO)
            };
            let mut rung = false;
            let polled = self.reactor.poll(timeout, &mut completions);
            self.update_now();
            for completion in completions.drain(..) {
                rung |= self.complete(completion);
            }
            self.mailbox.woken(rung);
            if rung {
                self.arm_mailbox();
            }
            polled?;
        }
        let failed = match &self.engine {
            Engine::Primary(engine) => engine.failed(),
            Engine::Backup(engine) => engine.failed(),
        };
        let group = self.group.as_ref().map(Group::standing);
        Ok(match failed {
            Some(text) => Ended::Failed(text.to_owned()),
            None if self.gave_up || group.is_some_and(|g| g.state == State::Failed) => {
                Ended::GaveUp
            }
            None => Ended::InOrder,
        })
    }

    fn update_now(&mut self) {
        self.now = u64::try_from(self.about.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    }

    fn arm_mailbox(&mut self) {
        let fd = self.mailbox.fd();
        self.reactor.submit(Token::Mail.with(0), ROp::PollIn { fd });
    }

    fn start_group(&mut self) {
        match &mut self.group {
            Some(Group::Primary(group)) => group.start(&mut self.gfx),
            Some(Group::Backup(group)) => group.start(&mut self.gfx),
            None => {}
        }
        self.tell_start();
        self.settle();
    }

    /// Does everything that can be done without waiting.
    fn settle(&mut self) {
        self.tick();
        loop {
            self.run_effects();
            self.pump_clients();
            self.pump_rings();
            if self.fx.is_empty() && self.gfx.is_empty() && self.local.is_empty() {
                break;
            }
        }
        self.flush_clients();
        self.call_guests();
        self.pump_net();
        if !self.fx.is_empty() || !self.gfx.is_empty() {
            self.run_effects();
            self.flush_clients();
            self.call_guests();
            self.pump_net();
        }
        // The kernel gets all of it in the next moment.
        self.holds.sent();
    }

    fn tick(&mut self) {
        self.tick_greeting();
        self.engine.tick(self.now, &mut self.mem, &mut self.fx);
        if let Some(Group::Primary(group)) = &mut self.group {
            let mut fresh = fresh_lineage;
            let mut at = now(self.now, &mut fresh);
            group.tick(&mut at, &mut self.gfx);
        }
        self.tick_control();
        self.tick_net();
        self.tick_clients();
        self.tick_progress();
        self.tick_rates();
        self.note_standing();
    }

    fn timeout(&mut self) -> Option<Duration> {
        let group = match &self.group {
            Some(Group::Primary(group)) => group.next_tick(),
            _ => None,
        };
        let retry = self.stalled.then_some(self.now + RETRY_NS);
        let slow = Some(self.now + 500_000_000);
        let next = [
            self.engine.next_tick(),
            group,
            self.promote_waits.iter().map(|wait| wait.until).min(),
            self.next_guest_memory(),
            retry,
            slow,
            self.net_next_tick(),
        ]
        .into_iter()
        .flatten()
        .min();
        next.map(|at| Duration::from_nanos(at.saturating_sub(self.now)))
    }

    fn take_mail(&mut self) {
        loop {
            match self.mailbox.try_recv() {
                Ok(mail) => self.mail(mail),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    fn mail(&mut self, mail: Mail) {
        match mail {
            Mail::ToVolume(message) => {
                match message {
                    ToVolume::Prepare => self.holds.begin(),
                    ToVolume::Seal { .. } => self.holds.end(),
                    // From here on the image may be written.
                    ToVolume::Accept { sync, .. } => {
                        if let Some(claim) = self.claim.take() {
                            claim.mark();
                        }
                        self.note_names();
                        self.note_comparison(sync);
                    }
                    _ => {}
                }
                self.engine
                    .group(self.now, &mut self.mem, message, &mut self.fx);
            }
            Mail::ToGroup(index, message) => self.tell_group(index, message),
            Mail::Dialed(result) => self.dialed(result),
            Mail::Client(handover) => self.adopt_client(*handover),
            Mail::Control(request, reply) => self.control(request, reply),
            Mail::Status(collector) => self.report(&collector),
            Mail::Ring(mail) => self.ring_mail(mail),
            Mail::Image(trouble) => self.image_looked_at(trouble),
            Mail::Stop => self.begin_stop(),
        }
    }

    fn tell_group(&mut self, index: usize, message: ToGroup) {
        let Some(group) = &mut self.group else { return };
        let mut fresh = fresh_lineage;
        let mut at = now(self.now, &mut fresh);
        group.volume(&mut at, index, message, &mut self.gfx);
    }

    fn image_looked_at(&mut self, trouble: Option<String>) {
        let (reason, next) = match &trouble {
            Some(text) => (text.clone(), "put the image back, or copy the disk"),
            None => ("the image is back".to_owned(), "nothing to do"),
        };
        tracing::warn!("volume {}: {reason}", self.about.index);
        let group = self.about.group_name.clone();
        self.publish(NewEvent::new(group, EventKind::VolumeState, reason, next));
        self.about.image_trouble = trouble;
    }

    pub(super) fn publish(&self, event: NewEvent) {
        self.events.publish(event);
    }

    pub(super) fn run_effects(&mut self) {
        for _ in 0..10_000 {
            if self.fx.is_empty() && self.gfx.is_empty() && self.local.is_empty() {
                return;
            }
            // The two vectors take turns: no allocation per batch.
            let spare = std::mem::take(&mut self.fx_spare);
            let mut batch = std::mem::replace(&mut self.fx, spare);
            for effect in batch.drain(..) {
                self.effect(effect);
            }
            self.fx_spare = batch;
            for effect in std::mem::take(&mut self.gfx) {
                self.group_effect(effect);
            }
            for mail in std::mem::take(&mut self.local) {
                self.mail(mail);
            }
        }
        panic!("engine and group keep each other busy without end");
    }

    fn effect(&mut self, effect: Effect<PoolMemory>) {
        match effect {
            Effect::Io(id, op) => self.submit_io(id, op),
            Effect::Reply(reply) => self.reply(reply),
            Effect::Send(Outgoing::Frame(frame)) => self.send_frame(&frame),
            Effect::Send(Outgoing::Record(bufs)) => self.send_record(bufs),
            Effect::CloseLink => self.close_link(),
            Effect::Group(message) => {
                if let ToGroup::LinkUp { sync_needed } = &message {
                    self.note_comparison(*sync_needed);
                }
                let index = self.about.index;
                if index == 0 {
                    self.local.push(Mail::ToGroup(0, message));
                } else if self.peers[0].send(Mail::ToGroup(index, message)).is_err() {
                    tracing::debug!("the group's thread has ended");
                }
            }
        }
    }

    fn group_effect(&mut self, effect: GroupEffect) {
        match effect {
            GroupEffect::ToVolume(0, message) => self.local.push(Mail::ToVolume(message)),
            GroupEffect::ToVolume(index, message) => {
                if self.peers[index].send(Mail::ToVolume(message)).is_err() {
                    tracing::debug!("the thread of volume {index} has ended");
                }
            }
            GroupEffect::WriteMeta(meta) => {
                let file = self
                    .files
                    .group_meta
                    .expect("the group's thread has its metadata");
                let mut bytes = self
                    .meta_pool
                    .alloc(SLOT_BYTES)
                    .expect("one write of the metadata at a time");
                meta.encode(&mut bytes);
                let offset = slot_offset(meta.generation);
                let buf = bytes.freeze();
                // The slot before says something that is no longer true: rot must not bring it
                // back, so the other slot gets the same afterwards.
                self.meta_copy = Some((slot_offset(meta.generation + 1), buf.clone()));
                let op = ROp::Write { file, offset, buf };
                self.meta_writing = true;
                self.reactor.submit(Token::GroupMetaWrite.with(0), op);
            }
            GroupEffect::Changed { old, new } => self.state_changed(old, &new),
            GroupEffect::CutReply { token, epoch, .. } => self.cut_done(token, epoch),
            GroupEffect::Latency(ns) => self.latencies.note(ns),
            GroupEffect::PromoteReply { token, result } => self.promote_done(token, result),
            GroupEffect::MemoryReply { token, result } => self.memory_changed(token, result),
        }
    }

    fn state_changed(&mut self, old: crate::group::State, new: &crate::group::Standing) {
        let state = new.state.word();
        let next = match self.stopping {
            Some(_) => "this daemon ends",
            None => new.next,
        };
        let event = NewEvent::new(
            self.about.group_name.clone(),
            EventKind::GroupState,
            new.reason.clone(),
            next,
        );
        let event = event.change(old.word(), state);
        // The end of the link is what a stop is made of.
        let event = match self.stopping {
            Some(_) => event.asked_for(),
            None => event,
        };
        self.publish(event);
        blockrep_host::notify::status(&format!("{state}: {}", new.reason));
    }

    fn submit_io(&mut self, id: IoId, op: Op<PoolMemory>) {
        let token = Token::Io.with(id.0);
        let image = self.files.image;
        let op = match op {
            Op::Read {
                target,
                offset,
                buf,
            } => {
                let file = self.file(target);
                match buf {
                    PoolBufMut::Own(buf) => ROp::Read { file, offset, buf },
                    PoolBufMut::Guest(memory) => ROp::ReadInto {
                        file,
                        offset,
                        memory,
                    },
                }
            }
            Op::Write {
                target,
                offset,
                bufs,
            } => {
                let file = self.file(target);
                match bufs {
                    Bufs::One(buf) => ROp::Write {
                        file,
                        offset,
                        buf: buf.0,
                    },
                    Bufs::Many(bufs) => {
                        let bufs = bufs.into_iter().map(|b| b.0).collect();
                        ROp::WriteV { file, offset, bufs }
                    }
                }
            }
            Op::Sync { target } => ROp::Sync {
                file: self.file(target),
            },
            Op::Zero { offset, length } => ROp::Zero {
                file: image,
                offset,
                len: length,
            },
            Op::Discard { offset, length } => ROp::Discard {
                file: image,
                offset,
                len: length,
            },
        };
        self.reactor.submit(token, op);
    }

    fn file(&self, target: Target) -> FileId {
        match target {
            Target::Image => self.files.image,
            Target::Segment(index) => self.files.segments[index as usize],
            Target::VolumeMeta => self.files.volume_meta,
            Target::GroupMeta => self
                .files
                .group_meta
                .expect("only the group's thread has it"),
        }
    }

    /// True when the mailbox rang.
    fn complete(&mut self, completion: Completion) -> bool {
        let (kind, value) = Token::split(completion.token);
        const IO: u8 = Token::Io as u8;
        const MAIL: u8 = Token::Mail as u8;
        const GROUP_WRITE: u8 = Token::GroupMetaWrite as u8;
        const GROUP_SYNC: u8 = Token::GroupMetaSync as u8;
        const NBD_ACCEPT: u8 = Token::NbdAccept as u8;
        const NBD_RECV: u8 = Token::NbdRecv as u8;
        const NBD_SEND: u8 = Token::NbdSend as u8;
        const LINK_ACCEPT: u8 = Token::LinkAccept as u8;
        const LINK_RECV: u8 = Token::LinkRecv as u8;
        const LINK_SEND: u8 = Token::LinkSend as u8;
        const RING_KICK: u8 = Token::RingKick as u8;
        const RING_CANCEL: u8 = Token::RingCancel as u8;
        match kind {
            IO => {
                let result = completion.result.map(|_| ()).map_err(|e| io_error(&e));
                let buf = match completion.buf {
                    ReturnedBuf::Mut(buf) => Some(PoolBufMut::Own(buf)),
                    ReturnedBuf::Foreign(memory) => Some(PoolBufMut::Guest(memory)),
                    _ => None,
                };
                let done = Done {
                    id: IoId(value),
                    result,
                    buf,
                };
                self.engine
                    .io_done(self.now, &mut self.mem, done, &mut self.fx);
                // Effects go out as they come: a sync must not wait for the rest of the batch.
                self.run_effects();
                self.become_plain();
            }
            MAIL => return true,
            GROUP_WRITE => self.group_meta_written(completion.result),
            GROUP_SYNC => self.group_meta_synced(completion.result),
            NBD_ACCEPT => self.client_accepted(completion),
            NBD_RECV => self.client_received(value, completion),
            NBD_SEND => self.client_sent(value, completion),
            LINK_ACCEPT => self.link_accepted(completion),
            LINK_RECV => self.link_received(value, completion),
            LINK_SEND => self.link_sent(value, completion),
            RING_KICK => self.ring_kicked(value),
            RING_CANCEL => {}
            _ => unreachable!("no such token"),
        }
        false
    }

    /// After a promotion, once the journal is empty: writes go straight to the image.
    pub(super) fn become_plain(&mut self) {
        // Asked after every operation of the store: the answer is nearly always no.
        let Engine::Backup(backup) = &self.engine else {
            return;
        };
        if backup.mode() != Mode::Drained {
            return;
        }
        // Followers know the group only by their own metadata; it is enough for a volume alone.
        let meta = match &self.group {
            Some(group) => group.meta().clone(),
            None => super::startup::lone_group(backup.meta()),
        };
        let settings = self.about.settings.clone();
        self.about.volume_uuid = self.volume_uuid();
        if self
            .engine
            .become_plain(&mut self.mem, &settings, &meta, &mut self.fx)
        {
            tracing::info!("volume {}: the journal is drained", self.about.index);
        }
    }

    fn group_meta_written(&mut self, result: Result<u32, OpError>) {
        if result.is_err() {
            self.group_meta_synced(result);
            return;
        }
        let file = self
            .files
            .group_meta
            .expect("the group's thread has its metadata");
        self.reactor
            .submit(Token::GroupMetaSync.with(0), ROp::Sync { file });
    }

    fn group_meta_synced(&mut self, result: Result<u32, OpError>) {
        if let Some((offset, buf)) = self.meta_copy.take()
            && result.is_ok()
            && let Some(file) = self.files.group_meta
        {
            let op = ROp::Write { file, offset, buf };
            self.reactor.submit(Token::GroupMetaWrite.with(0), op);
            return;
        }
        self.meta_writing = false;
        let Some(group) = &mut self.group else { return };
        let mut fresh = fresh_lineage;
        let mut at = now(self.now, &mut fresh);
        let result = result.map(|_| ()).map_err(|error| error.to_string());
        group.meta_written(&mut at, result, &mut self.gfx);
        self.run_effects();
    }

    fn send_frame(&mut self, frame: &Frame) {
        if let (Frame::Refuse { text, .. }, Some(link)) = (frame, &self.net.link) {
            let peer = link.peer.clone();
            self.tell_refused(&peer, text);
        }
        if matches!(frame, Frame::Welcome(_)) {
            self.net.refused = None;
            self.net.last_session.begin(self.now);
        }
        let session = self.session();
        if let Some(link) = &mut self.net.link {
            link.push_frame(session, frame);
        }
    }

    fn send_record(&mut self, bufs: Vec<PoolBuf>) {
        if let Some(link) = &mut self.net.link {
            link.push_record(bufs);
        }
    }

    /// Session that frames sent now belong to.
    fn session(&self) -> SessionId {
        self.net.session
    }

    pub(super) fn arrived(&mut self, arrived: Arrived) {
        match (&mut self.engine, arrived) {
            (Engine::Primary(engine), Arrived::Frame(frame, session)) => {
                engine.link_frame(self.now, &mut self.mem, session, frame, &mut self.fx);
            }
            (Engine::Backup(engine), Arrived::Frame(frame, session)) => {
                engine.link_frame(self.now, &mut self.mem, session, frame, &mut self.fx);
            }
            (Engine::Backup(engine), Arrived::Record(buf)) => {
                engine.link_record(self.now, &mut self.mem, PoolBufMut::Own(buf), &mut self.fx);
            }
            (Engine::Primary(engine), Arrived::Record(_)) => {
                engine.link_lost("the backup sent a record".to_owned(), &mut self.fx);
            }
        }
        self.run_effects();
    }

    fn reply(&mut self, reply: Reply<PoolMemory>) {
        let errno = reply.result.err().map(|e: IoError| e.errno);
        let mut buf = reply.buf;
        if !self.ring_part_done(reply.id, errno, &mut buf) {
            let data = buf.map(|buf| buf.into_own().freeze());
            self.part_done(reply.id, errno, data);
        }
    }

    fn begin_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        tracing::info!("volume {}: stopping", self.about.index);
        self.stopping = Some(self.now);
        self.stop_clients();
        let waiting = self.requests.len();
        if waiting > 0 {
            tracing::info!(
                "volume {}: {waiting} requests are not answered yet: they are waited for, {} s at \
                 most",
                self.about.index,
                DRAIN_NS_MAX / 1_000_000_000
            );
        }
        if let Engine::Backup(engine) = &mut self.engine {
            let left = engine.unapplied_bytes();
            if engine.mode() == Mode::Serving && left > 0 {
                tracing::warn!(
                    "volume {}: {left} bytes of the journal are not applied: the image alone is not \
                     the disk; start the daemon again and wait before it is copied",
                    self.about.index
                );
            }
            engine.stop(self.now, &mut self.mem, &mut self.fx);
        }
    }

    fn is_finished(&mut self) -> bool {
        let Some(since) = self.stopping else {
            return false;
        };
        if self.now.saturating_sub(since) > DRAIN_NS_MAX {
            self.gave_up = true;
            tracing::warn!(
                "volume {}: gave up waiting: {} requests were never answered",
                self.about.index,
                self.requests.len()
            );
            return true;
        }
        let rings_quiet = self.rings.as_ref().is_none_or(|rings| rings.is_quiet());
        if !self.requests.is_empty() || !rings_quiet {
            return false;
        }
        match &mut self.engine {
            Engine::Primary(engine) => {
                if !self.net.said_bye {
                    self.net.said_bye = true;
                    let text = "the primary is stopping".to_owned();
                    let message = ToVolume::DropLink(text);
                    engine.group(self.now, &mut self.mem, message, &mut self.fx);
                    return false;
                }
            }
            Engine::Backup(engine) => {
                if !engine.is_stopped() {
                    return false;
                }
            }
        }
        self.net.is_quiet() && !self.meta_writing
    }
}

/// A fresh random history id.
pub(super) fn fresh_lineage() -> LineageId {
    LineageId(ids::random_id16().expect("the kernel gives random bytes"))
}

/// The time, for a group.
pub(super) fn now(ns: Nanos, fresh: &mut dyn FnMut() -> LineageId) -> Now<'_> {
    Now {
        ns,
        unix_ns: clock::unix_ns(),
        fresh,
    }
}

fn io_error(error: &OpError) -> IoError {
    let errno = match error {
        OpError::Store(cause) | OpError::Poisoned(cause) => cause.errno,
        OpError::Socket { errno, .. } => *errno,
        OpError::Cancelled | OpError::Removed | OpError::Invalid(_) => libc::EIO,
    };
    IoError { errno }
}
