//! Link connections of an I/O thread: dialling, accepting, sending, receiving.

use super::files::words;
use super::last_session::LastSession;
use super::link::{Arrived, LinkConn};
use super::memory::PoolMemory;
use super::role::{Engine, Group};
use super::thread::{Mail, Token, VolumeThread};
use crate::engine::Nanos;
use crate::engine::primary::{LINK_SILENCE_NS_MAX, PrimaryVolume};
use crate::group::refusal::{other_group_text, superseded_text};
use crate::reactor::{Completion, Op as ROp, SockId};
use blkback_proto::ctl::{EventKind, RefusedPeer};
use blkback_proto::diskspec::Endpoint;
use blkback_proto::ids::SessionId;
use blkback_proto::link::{Frame, Hello, RefuseCode};
use blockrep_host::ctl::NewEvent;
use blockrep_host::{clock, ids};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// How long a connection attempt may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Between connection attempts.
const REDIAL_NS: Nanos = 500_000_000;
/// Between attempts after a refusal that will not go away by itself.
const REDIAL_REFUSED_NS: Nanos = 5_000_000_000;
/// How long a stranger may take to say hello, and a closing link to send its last words.
const GREETING_NS_MAX: Nanos = 5_000_000_000;
/// How often the same refusal is told of.
const TELL_REFUSED_NS: Nanos = 60_000_000_000;
/// What a connection that ended before any answer did.
/// What a primary does that has not got through to its backup.
pub(super) const TRIED_AGAIN: &str = "tried again every half second; every 3 s where a try gets no \
                                      answer, every five seconds after a refusal";
const CLOSED: &str = "it closed the connection before any hello";
const RESET: &str = "it reset the connection before any hello";
/// Strangers that may be connected at once.
const STRANGERS_MAX: usize = 8;

/// The connections of a volume.
pub(super) struct Net {
    /// Where the backup is; on a primary that has one.
    pub(super) remote: Option<Endpoint>,
    /// Where primaries connect to; on a backup.
    pub(super) listener: Option<SockId>,
    /// The connection of the session.
    pub(super) link: Option<LinkConn>,
    pub(super) link_id: u64,
    pub(super) session: SessionId,
    /// Connected, have not said hello yet.
    strangers: Vec<(u64, LinkConn, Nanos)>,
    /// Saying their last words.
    dying: Vec<(u64, LinkConn, Nanos)>,
    next_id: u64,
    dialing: bool,
    next_dial: Nanos,
    accepting: bool,
    pub(super) said_bye: bool,
    /// The refusal told of last, and when.
    told_refused: (String, Nanos),
    /// The last one that both sides agreed on.
    pub(super) last_session: LastSession,
    /// Who was refused here last, unless somebody was taken in since.
    pub(super) refused: Option<RefusedPeer>,
    /// A backup has answered at the address since the start.
    is_known: bool,
    /// When the connection was made, and nobody has answered on it yet.
    unanswered_since: Option<Nanos>,
    /// Why there is no connection, in words.
    pub(super) trouble: String,
    /// Name of the group of the primary that called last, or of the backup that answered.
    pub(super) peer_group: String,
    /// The backup refused this connection: its words stand in `trouble`.
    refused_here: bool,
    /// The backup refused this side and will do so again.
    pub(super) refusal: Option<RefuseCode>,
    /// Records may be received again at this time.
    throttled_until: Nanos,
    pub(super) heard: Nanos,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

impl Net {
    pub(super) fn new(remote: Option<Endpoint>, listener: Option<SockId>) -> Self {
        Self {
            remote,
            listener,
            link: None,
            link_id: 0,
            session: SessionId(0),
            strangers: Vec::new(),
            dying: Vec::new(),
            next_id: 1,
            dialing: false,
            next_dial: 0,
            accepting: false,
            said_bye: false,
            told_refused: (String::new(), 0),
            last_session: LastSession::default(),
            refused: None,
            is_known: false,
            unanswered_since: None,
            trouble: String::new(),
            peer_group: String::new(),
            refused_here: false,
            refusal: None,
            throttled_until: 0,
            heard: 0,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// Nothing is left to send.
    pub(super) fn is_quiet(&self) -> bool {
        self.link.is_none() && self.dying.is_empty()
    }
}

impl VolumeThread {
    pub(super) fn start_net(&mut self) {
        self.accept_links();
    }

    fn accept_links(&mut self) {
        if let Some(sock) = self.net.listener
            && !self.net.accepting
        {
            self.net.accepting = true;
            self.reactor
                .submit(Token::LinkAccept.with(0), ROp::Accept { sock });
        }
    }

    pub(super) fn net_next_tick(&self) -> Option<Nanos> {
        let dial = (self.net.remote.is_some() && self.net.link.is_none() && !self.net.dialing)
            .then_some(self.net.next_dial);
        let throttle = (self.net.throttled_until > self.now).then_some(self.net.throttled_until);
        let others = self
            .net
            .strangers
            .iter()
            .chain(&self.net.dying)
            .map(|s| s.2)
            .min();
        [dial, throttle, others].into_iter().flatten().min()
    }

    pub(super) fn tick_net(&mut self) {
        let late = |list: &mut Vec<(u64, LinkConn, Nanos)>, now: Nanos| {
            list.extract_if(.., |s| s.2 <= now)
                .map(|s| s.1.sock)
                .collect::<Vec<_>>()
        };
        let mut ended = late(&mut self.net.strangers, self.now);
        ended.extend(late(&mut self.net.dying, self.now));
        for sock in ended {
            self.reactor.remove_socket(sock);
        }
        self.accept_links();
        self.dial();
    }

    fn dial(&mut self) {
        let wanted = match &self.group {
            Some(Group::Primary(group)) => group.wants_links(),
            Some(Group::Backup(_)) => false,
            None => true,
        };
        if !wanted
            || self.net.link.is_some()
            || self.net.dialing
            || self.now < self.net.next_dial
            || self.stopping.is_some()
            || matches!(self.engine, Engine::Backup(_))
        {
            return;
        }
        let Some(remote) = self.net.remote.clone() else {
            return;
        };
        self.net.dialing = true;
        self.net.next_dial = self.now + REDIAL_NS;
        let sender = self.peers[self.about.index].clone();
        let spawned = std::thread::Builder::new()
            .name("dial".to_owned())
            .spawn(move || {
                let result = connect(&remote);
                // The thread may have ended meanwhile; then nobody wants the connection.
                let _ = sender.send(Mail::Dialed(result));
            });
        if let Err(error) = spawned {
            self.net.dialing = false;
            self.net.trouble = format!("no thread to connect with: {error}");
        }
    }

    pub(super) fn dialed(&mut self, result: Result<(OwnedFd, String), String>) {
        self.net.dialing = false;
        let (fd, peer) = match result {
            Ok(connected) => connected,
            Err(text) => {
                if self.net.trouble != text {
                    self.tell_unlinked(&text);
                }
                self.net.trouble = text;
                self.net.refusal = None;
                return;
            }
        };
        if self.stopping.is_some() || self.net.link.is_some() {
            return;
        }
        let Some(link) = self.add_link(fd, peer) else {
            return;
        };
        let session = SessionId(u64::from_le_bytes(
            ids::random_id8().expect("the kernel gives random bytes"),
        ));
        let Engine::Primary(engine) = &mut self.engine else {
            return;
        };
        self.net.session = session;
        self.net.link = Some(link);
        self.net.heard = self.now;
        self.net.refused_here = false;
        self.net.unanswered_since = Some(self.now);
        engine.link_connected(self.now, session, &mut self.fx);
    }

    fn add_link(&mut self, fd: OwnedFd, peer: String) -> Option<LinkConn> {
        let sock = match self.reactor.add_socket(fd) {
            Ok(sock) => sock,
            Err(error) => {
                self.net.trouble = error.to_string();
                return None;
            }
        };
        let link = LinkConn::new(&self.mem, sock, peer);
        if link.is_none() {
            self.reactor.remove_socket(sock);
        }
        self.net.link_id = self.net.next_id;
        self.net.next_id += 1;
        link
    }

    pub(super) fn link_accepted(&mut self, completion: Completion) {
        self.net.accepting = false;
        if let Some(fd) = completion.accepted {
            let peer = peer_name(&fd);
            no_delay(&fd);
            let current = self.net.link_id;
            self.make_room();
            if let Some(link) = self.add_link(fd, peer) {
                let id = self.net.link_id;
                self.net
                    .strangers
                    .push((id, link, self.now + GREETING_NS_MAX));
            }
            self.net.link_id = current;
        }
        self.accept_links();
    }

    /// A primary greets at once: of too many strangers the one that has been silent longest goes,
    /// so that half-open connections cannot keep a primary out.
    fn make_room(&mut self) {
        if self.net.strangers.len() < STRANGERS_MAX {
            return;
        }
        let oldest = (0..self.net.strangers.len()).min_by_key(|at| self.net.strangers[*at].2);
        let (_, link, _) = self
            .net
            .strangers
            .swap_remove(oldest.expect("there are many"));
        tracing::warn!("{}: dropped, said nothing", link.peer);
        self.reactor.remove_socket(link.sock);
    }

    /// The connection of the session ends once its last words are sent.
    pub(super) fn close_link(&mut self) {
        self.net.unanswered_since = None;
        if let Some(mut link) = self.net.link.take() {
            link.closing = true;
            self.net.received_bytes += link.received_bytes;
            self.net.sent_bytes += link.sent_bytes;
            self.net.last_session.end(self.now, clock::unix_ms());
            self.net
                .dying
                .push((self.net.link_id, link, self.now + GREETING_NS_MAX / 5));
            self.net.next_dial = self.net.next_dial.max(self.now + REDIAL_NS / 5);
        }
    }

    /// Sends and receives what can be.
    pub(super) fn pump_net(&mut self) {
        let may_receive = match &self.engine {
            Engine::Primary(_) => true,
            Engine::Backup(engine) => engine.can_receive() && self.now >= self.net.throttled_until,
        };
        if let Some(link) = &mut self.net.link {
            let id = self.net.link_id;
            let listens =
                may_receive && (recv(&mut self.reactor, &self.mem, id, link) || link.recv_out);
            if !listens {
                self.stalled |= may_receive;
                if let Engine::Backup(engine) = &mut self.engine {
                    engine.link_alive(self.now);
                }
            }
            send(&mut self.reactor, &self.mem, id, link);
        }
        for (id, link, _) in &mut self.net.strangers {
            recv(&mut self.reactor, &self.mem, *id, link);
        }
        let mut done = Vec::new();
        for (id, link, _) in &mut self.net.dying {
            send(&mut self.reactor, &self.mem, *id, link);
            if link.is_drained() {
                done.push(*id);
            }
        }
        for (_, link, _) in self.net.dying.extract_if(.., |s| done.contains(&s.0)) {
            self.reactor.remove_socket(link.sock);
        }
    }

    pub(super) fn link_sent(&mut self, id: u64, completion: Completion) {
        let ours = self.net.link.as_mut().filter(|_| self.net.link_id == id);
        let dying = self
            .net
            .dying
            .iter_mut()
            .find(|s| s.0 == id)
            .map(|s| &mut s.1);
        let Some(link) = ours.or(dying) else { return };
        if let Some(bufs) = completion.buf.into_many() {
            link.keep_vec(bufs);
        }
        match completion.result {
            Ok(bytes) => link.sent(u64::from(bytes)),
            Err(error) => {
                link.sent(0);
                let what = format!("sending to the peer: {error}");
                let text = self.ended_text(id, &what, RESET);
                self.link_failed(id, text);
            }
        }
    }

    fn link_failed(&mut self, id: u64, text: String) {
        if self.net.link.is_some() && self.net.link_id == id {
            if !self.net.refused_here {
                self.net.trouble.clone_from(&text);
            }
            self.engine.link_lost(text, &mut self.fx);
            // An engine without a session has nothing to lose; the connection ends all the same.
            self.run_effects();
            self.close_link_if(id);
        }
        let mut ended: Vec<SockId> = Vec::new();
        ended.extend(
            self.net
                .dying
                .extract_if(.., |s| s.0 == id)
                .map(|s| s.1.sock),
        );
        ended.extend(
            self.net
                .strangers
                .extract_if(.., |s| s.0 == id)
                .map(|s| s.1.sock),
        );
        for sock in ended {
            self.reactor.remove_socket(sock);
        }
    }

    /// Ends a connection on which the hello is not answered. Before the engine does, which knows no
    /// addresses: what is at this one is no backup.
    pub(super) fn tick_greeting(&mut self) {
        let Some(since) = self.net.unanswered_since else {
            return;
        };
        if self.now.saturating_sub(since) < LINK_SILENCE_NS_MAX {
            return;
        }
        let seconds = LINK_SILENCE_NS_MAX / 1_000_000_000;
        let what = match self.net.link.as_ref().map_or(0, |l| l.received_bytes) {
            0 => format!("it said nothing for {seconds} s"),
            bytes => format!(
                "it sent {bytes} bytes that are no answer to a hello, and no more for {seconds} s"
            ),
        };
        let text = self.no_backup_text(&what);
        self.link_failed(self.net.link_id, text);
    }

    /// The end of a connection in words. Where the hello was not answered, who is there is no
    /// backup, unless one was there before: then it may just have been stopped.
    fn ended_text(&self, id: u64, greeted: &str, ungreeted: &str) -> String {
        if self.net.unanswered_since.is_some() && self.net.link_id == id {
            self.no_backup_text(ungreeted)
        } else {
            greeted.to_owned()
        }
    }

    fn no_backup_text(&self, what: &str) -> String {
        match &self.net.remote {
            Some(remote) => no_backup_text(remote, self.net.is_known, what),
            None => what.to_owned(),
        }
    }

    fn close_link_if(&mut self, id: u64) {
        if self.net.link.is_some() && self.net.link_id == id {
            self.close_link();
        }
    }

    pub(super) fn link_received(&mut self, id: u64, completion: Completion) {
        let bytes = match completion.result {
            Ok(0) => {
                let text = self.ended_text(id, "the peer closed the connection", CLOSED);
                return self.link_failed(id, text);
            }
            Ok(bytes) => bytes as usize,
            Err(error) => {
                let text = self.ended_text(id, &format!("receiving: {error}"), RESET);
                return self.link_failed(id, text);
            }
        };
        let Some(buf) = completion.buf.into_mut() else {
            return;
        };
        if let Some(at) = self.net.strangers.iter().position(|s| s.0 == id) {
            match self.net.strangers[at].1.received(buf, bytes) {
                // Memory for a record is for primaries that were let in.
                Ok(None) if self.net.strangers[at].1.is_in_record() => {
                    tracing::warn!("{}: no hello of a primary", self.net.strangers[at].1.peer);
                    self.link_failed(id, "a record before the hello".to_owned());
                }
                Ok(None) => {}
                Ok(Some(arrived)) => self.stranger_spoke(at, arrived),
                Err(text) => {
                    tracing::warn!("{}: {text}", self.net.strangers[at].1.peer);
                    self.link_failed(id, text);
                }
            }
            return;
        }
        let Some(link) = self.net.link.as_mut().filter(|_| self.net.link_id == id) else {
            return;
        };
        self.net.heard = self.now;
        self.net.last_session.hear(self.now);
        if let Engine::Backup(engine) = &mut self.engine {
            engine.link_alive(self.now);
        }
        match link.received(buf, bytes) {
            Ok(None) => {}
            Ok(Some(arrived)) => {
                if let (Arrived::Record(record), Some(rate)) = (&arrived, self.about.link_rate) {
                    let took = record.len() as u64 * 1_000_000_000 / rate.max(1);
                    self.net.throttled_until = self.net.throttled_until.max(self.now) + took;
                }
                self.net.unanswered_since = None;
                self.net.is_known = true;
                if let Arrived::Frame(Frame::Welcome(welcome), _) = &arrived {
                    self.taken_in(&welcome.name);
                }
                if let Arrived::Frame(Frame::Refuse { code, text }, _) = &arrived {
                    self.net.trouble = format!("refused by the backup: {text}");
                    self.net.refused_here = true;
                    self.net.refusal = code.is_final().then_some(*code);
                    if code.is_final() {
                        self.net.next_dial = self.now + REDIAL_REFUSED_NS;
                    }
                }
                self.arrived(arrived);
            }
            Err(what) => {
                let ungreeted = format!("what it sent is no answer to a hello ({what})");
                let text = self.ended_text(id, &what, &ungreeted);
                self.link_failed(id, text);
            }
        }
    }

    /// The first message of a connection: a hello, or the end of it.
    fn stranger_spoke(&mut self, at: usize, arrived: Arrived) {
        let (id, mut link, _) = self.net.strangers.swap_remove(at);
        let Arrived::Frame(Frame::Hello(hello), session) = arrived else {
            tracing::warn!("{}: no hello of a primary", link.peer);
            self.reactor.remove_socket(link.sock);
            return;
        };
        let engine = match &mut self.engine {
            Engine::Backup(engine) => engine,
            Engine::Primary(engine) => {
                let frame = promoted_refusal(engine, &hello);
                self.last_words(id, link, session, &frame);
                return;
            }
        };
        if engine.has_session() || self.net.link.is_some() || self.stopping.is_some() {
            let (code, why) = if self.stopping.is_some() {
                (RefuseCode::Stopping, "this backup is stopping".to_owned())
            } else {
                let other = self
                    .net
                    .link
                    .as_ref()
                    .map_or("another host", |l| l.peer.as_str());
                let text = format!(
                    "a primary at {other}{} is connected: stop that one first, or this one",
                    of_group(&self.net.peer_group)
                );
                (RefuseCode::Busy, text)
            };
            self.last_words(id, link, session, &Frame::Refuse { code, text: why });
            return;
        }
        link.closing = false;
        self.net.link_id = id;
        self.net.session = session;
        self.net.link = Some(link);
        self.net.heard = self.now;
        self.net.peer_group.clone_from(&hello.name);
        engine.link_hello(self.now, *hello, &mut self.fx);
        self.run_effects();
    }

    /// A backup, whose group goes by `name`, has answered the hello.
    fn taken_in(&mut self, name: &str) {
        self.net.refusal = None;
        self.net.last_session.begin(self.now);
        name.clone_into(&mut self.net.peer_group);
        self.note_names();
    }

    /// An event for a backup that is not reached: each volume has an address of its own, of which its group
    /// knows nothing.
    fn tell_unlinked(&self, text: &str) {
        let index = self.about.index;
        let reason = format!("volume {index} ({}): {text}", self.exports[index].name());
        let group = self.about.group_name.clone();
        self.publish(NewEvent::new(
            group,
            EventKind::LinkState,
            reason,
            TRIED_AGAIN,
        ));
    }

    /// An event for a refusal; a primary that keeps trying is told of once a minute.
    pub(super) fn tell_refused(&mut self, peer: &str, text: &str) {
        self.net.refused = Some(RefusedPeer {
            peer: peer.to_owned(),
            reason: text.to_owned(),
            unix_ms: clock::unix_ms(),
        });
        let (last, at) = &self.net.told_refused;
        if last == text && self.now < at + TELL_REFUSED_NS {
            return;
        }
        self.net.told_refused = (text.to_owned(), self.now);
        let what = format!("a primary at {peer} was refused: {text}");
        let group = self.about.group_name.clone();
        let next = "see the reason; the primary keeps trying";
        self.publish(NewEvent::new(group, EventKind::PeerRefused, what, next));
    }

    fn last_words(&mut self, id: u64, mut link: LinkConn, session: SessionId, frame: &Frame) {
        if let Frame::Refuse { text, .. } = frame {
            self.tell_refused(&link.peer, text);
        }
        link.push_frame(session, frame);
        link.closing = true;
        self.net
            .dying
            .push((id, link, self.now + GREETING_NS_MAX / 5));
    }
}

/// Whose backup this is must be read by who called at a wrong address.
fn of_group(name: &str) -> String {
    if name.is_empty() {
        String::new()
    } else {
        format!(", of group {name},")
    }
}

/// What a promoted side that has drained its journal says to any primary.
fn promoted_refusal(engine: &PrimaryVolume<PoolMemory>, hello: &Hello) -> Frame {
    let (own, first_epoch) = engine.tip();
    let epoch = first_epoch.previous();
    let group = engine.identity().group;
    if group != hello.group {
        let text = other_group_text(engine.group_name(), group, Some(epoch), hello);
        let code = RefuseCode::Identity;
        return Frame::Refuse { code, text };
    }
    let theirs = hello.lineage.last().map(|(id, _)| *id).unwrap_or_default();
    let text = superseded_text(epoch, own, theirs);
    let code = RefuseCode::Superseded;
    Frame::Refuse { code, text }
}

fn recv(
    reactor: &mut crate::reactor::Reactor,
    memory: &PoolMemory,
    id: u64,
    link: &mut LinkConn,
) -> bool {
    let Some((buf, range)) = link.want_recv(memory) else {
        return false;
    };
    reactor.submit(
        Token::LinkRecv.with(id),
        ROp::Recv {
            sock: link.sock,
            buf,
            range,
        },
    );
    true
}

fn send(reactor: &mut crate::reactor::Reactor, memory: &PoolMemory, id: u64, link: &mut LinkConn) {
    if let Some(bufs) = link.want_send(memory) {
        reactor.submit(
            Token::LinkSend.with(id),
            ROp::Send {
                sock: link.sock,
                bufs,
                skip: 0,
            },
        );
    }
}

/// Connects to a backup; for a thread of its own, since names and hosts may take their time.
fn connect(remote: &Endpoint) -> Result<(OwnedFd, String), String> {
    let target = format!("backup {remote}");
    let addresses = (remote.host.to_string(), remote.port)
        .to_socket_addrs()
        .map_err(|error| format!("{target}: the name is not known: {}", words(&error)))?;
    let mut last = format!("{target}: the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, DIAL_TIMEOUT) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok((stream.into(), address.to_string()));
            }
            Err(error) => last = format!("{target} does not answer: {}", words(&error)),
        }
    }
    Err(last)
}

/// What is wrong at an address where somebody takes connections, and what to check.
fn no_backup_text(remote: &Endpoint, is_known: bool, what: &str) -> String {
    if is_known {
        return format!(
            "backup {remote} did not answer the hello: {what}; see its status or its log"
        );
    }
    format!(
        "{remote} answers but is not a blockrep backup: {what}; check that this is the --listen address \
         of a blockrep-backup that runs, not its --nbd address nor another program's"
    )
}

fn no_delay(fd: &OwnedFd) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open and the option is an int that lives through the call. A
    // socket that does not know the option is merely slower.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

pub(super) fn peer_name(fd: &OwnedFd) -> String {
    let stream = fd.try_clone().map(TcpStream::from);
    stream.and_then(|stream| stream.peer_addr()).map_or_else(
        |_| "a peer that is gone".to_owned(),
        |address| address.to_string(),
    )
}
