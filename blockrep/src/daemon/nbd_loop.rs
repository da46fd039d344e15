//! NBD clients of an I/O thread: from socket to engine and back.

use super::FRONT_BYTES_MAX;
use super::memory::{PoolBuf, PoolBufMut};
use super::nbd::{
    Handover, INPUT_BYTES, InFlight, NbdConn, PAYLOAD_BYTES_MAX, PIECE_BYTES, PIECES_MAX, Part,
    Payload, RANGE_PIECE_BYTES, REQUESTS_MAX, piece_bytes,
};
use super::net::peer_name;
use super::thread::{Mail, Token, VolumeThread};
use crate::engine::{Nanos, builder};
use crate::frontend::nbd::{Command, Config, Conn, Event, Fatal, Phase, Request as NbdRequest};
use crate::io::{Request, RequestId};
use crate::reactor::{Buf, Completion, Op as ROp};
use blkback_proto::link::FRAME_MAGIC;
use blkback_proto::record::HEADER_BYTES;
use std::os::fd::OwnedFd;

/// Clients of one thread.
const CLIENTS_MAX: usize = 64;
/// Pieces of requests that may be with the engine: no request is cut into more than four.
pub(super) const PARTS_MAX: usize = CLIENTS_MAX * REQUESTS_MAX * 4;
const _: () = {
    assert!(PIECES_MAX <= 4);
    assert!(u32::MAX as u64 <= 4 * RANGE_PIECE_BYTES);
};
/// How long a client may take to choose an export.
const NEGOTIATION_NS_MAX: Nanos = 10_000_000_000;

/// What is wrong with a primary that calls here.
const CALLS_AT_NBD: &str =
    "it calls at the NBD address: give it the --listen address of the backup";

impl VolumeThread {
    pub(super) fn accept_clients(&mut self) {
        if let Some(sock) = self.nbd_listener {
            self.reactor
                .submit(Token::NbdAccept.with(0), ROp::Accept { sock });
        }
    }

    pub(super) fn client_accepted(&mut self, completion: Completion) {
        if let Some(fd) = completion.accepted {
            if self.clients.len() >= CLIENTS_MAX || self.stopping.is_some() {
                tracing::warn!("an NBD client was turned away: {CLIENTS_MAX} are connected");
            } else {
                let mut plain = Vec::new();
                let config = Config::new(PAYLOAD_BYTES_MAX).expect("within the protocol's bounds");
                let conn = Conn::new(config, &mut plain);
                self.add_client(fd, conn, plain, &[]);
            }
        }
        if self.stopping.is_none() {
            self.accept_clients();
        }
    }

    pub(super) fn adopt_client(&mut self, handover: Handover) {
        let Handover {
            fd,
            conn,
            plain,
            unread,
        } = handover;
        self.add_client(fd, conn, plain, &unread);
    }

    fn add_client(&mut self, fd: OwnedFd, conn: Conn, plain: Vec<u8>, unread: &[u8]) {
        let Ok(sock) = self.reactor.add_socket(fd) else {
            return;
        };
        let Some(mut input) = self.mem.0.alloc(INPUT_BYTES) else {
            tracing::warn!("an NBD client was turned away: no memory");
            self.reactor.remove_socket(sock);
            return;
        };
        let mut client = NbdConn::new(sock, conn, self.now);
        input[..unread.len()].copy_from_slice(unread);
        client.unread = 0..unread.len();
        client.input = Some(input);
        client.plain = plain;
        self.clients.insert(client);
    }

    /// Takes requests of every client as far as memory and bounds allow.
    pub(super) fn pump_clients(&mut self) {
        self.stalled = false;
        self.submit_todo();
        for key in 0..self.clients.capacity() {
            if self.clients.contains(key) {
                self.pump_client(key);
            }
        }
        self.submit_todo();
    }

    fn pump_client(&mut self, key: usize) {
        loop {
            let client = &mut self.clients[key];
            if client.closing || client.recv_out || client.payload_out {
                break;
            }
            if client.payload.is_some() {
                if !self.pump_payload(key) {
                    break;
                }
                continue;
            }
            if client.in_flight >= REQUESTS_MAX || client.is_clogged() {
                break;
            }
            if client.unread.is_empty() {
                client.wants_input = true;
                break;
            }
            if !client.conn.takes_input() {
                client.closing = true;
                break;
            }
            if !self.parse(key) {
                break;
            }
        }
    }

    /// Hands one message to the protocol; false when the client went elsewhere or ended.
    fn parse(&mut self, key: usize) -> bool {
        let client = &mut self.clients[key];
        let input = client.input.as_ref().expect("no receive is out");
        let bytes = &input[client.unread.clone()];
        let step = match client.conn.input(bytes, &self.exports, &mut client.plain) {
            Ok(step) => step,
            Err(error) => {
                client.closing = true;
                client.dead = true;
                self.tell_cut_off(key, &error);
                return false;
            }
        };
        client.unread.start += step.consumed;
        match step.event {
            None => {}
            Some(Event::TransmissionStarted) => return self.route(key),
            Some(Event::Request(request)) => {
                client.in_flight += 1;
                let request = self.requests.insert(in_flight(key, request));
                self.todo.push_back((request, 0));
                self.submit_todo();
            }
            Some(Event::WritePayload(request)) => {
                client.in_flight += 1;
                let request_key = self.requests.insert(in_flight(key, request));
                client.payload = Some(Payload {
                    request,
                    key: request_key,
                    piece: None,
                    filled: 0,
                    done: 0,
                });
            }
            Some(Event::Disconnect) => client.closing = true,
        }
        true
    }

    /// A client broke the protocol. A primary that was given this address calls twice a second: it is
    /// told of as one that was refused, which is not said again each time.
    fn tell_cut_off(&mut self, key: usize, error: &Fatal) {
        let is_link = matches!(
            error,
            Fatal::UnknownClientFlags { flags } if FRAME_MAGIC.starts_with(&flags.to_be_bytes())
        );
        if !is_link {
            tracing::warn!("an NBD client was cut off: {error}");
            return;
        }
        let fd = self.reactor.socket_fd(self.clients[key].sock);
        let fd = fd.and_then(|fd| fd.try_clone_to_owned().ok());
        let peer = fd.map_or("an unknown address".to_owned(), |fd| peer_name(&fd));
        self.tell_refused(&peer, CALLS_AT_NBD);
    }

    /// A client chose its export: another volume's thread may have to take it. False if so.
    fn route(&mut self, key: usize) -> bool {
        let chosen = self.clients[key].conn.export().map(|e| e.name().to_owned());
        let index = self
            .exports
            .iter()
            .position(|e| Some(e.name()) == chosen.as_deref());
        let index = index.unwrap_or(0);
        if index == self.about.index {
            return true;
        }
        let client = self.clients.remove(key);
        let fd = self
            .reactor
            .socket_fd(client.sock)
            .and_then(|fd| fd.try_clone_to_owned().ok());
        let input = client.input.expect("no receive is out");
        let unread = input[client.unread].to_vec();
        self.reactor.remove_socket(client.sock);
        let Some(fd) = fd else { return false };
        let handover = Handover {
            fd,
            conn: client.conn,
            plain: client.plain,
            unread,
        };
        if self.peers[index]
            .send(Mail::Client(Box::new(handover)))
            .is_err()
        {
            tracing::warn!("the thread of volume {index} has ended");
        }
        false
    }

    /// Moves payload into pieces and pieces to the engine. False: more has to arrive first.
    fn pump_payload(&mut self, key: usize) -> bool {
        let client = &mut self.clients[key];
        let payload = client.payload.as_mut().expect("checked by the caller");
        let length = piece_bytes(&payload.request, u64::from(payload.done));
        let length = usize::try_from(length).expect("pieces are small");
        if payload.piece.is_none() {
            if !has_room(self.front_bytes, length as u64) {
                self.stalled = true;
                return false;
            }
            let Some(piece) = self.mem.alloc_outside(length) else {
                self.stalled = true;
                return false;
            };
            payload.piece = Some(piece);
            payload.filled = 0;
        }
        let piece = payload.piece.as_mut().expect("just made");
        let input = client.input.as_ref().expect("no receive is out");
        let take = client.unread.len().min(length - payload.filled);
        let from = client.unread.start;
        piece[payload.filled..payload.filled + take].copy_from_slice(&input[from..from + take]);
        client.unread.start += take;
        payload.filled += take;
        if payload.filled < length {
            let buf = payload.piece.take().expect("just filled");
            let op = ROp::Recv {
                sock: client.sock,
                buf,
                range: payload.filled..length,
            };
            client.payload_out = true;
            self.reactor.submit(Token::NbdRecv.with(key as u64), op);
            return false;
        }
        self.piece_filled(key);
        true
    }

    /// A piece of a WRITE is whole: the engine gets it.
    fn piece_filled(&mut self, key: usize) {
        let client = &mut self.clients[key];
        let payload = client.payload.as_mut().expect("a payload is coming in");
        let piece = payload.piece.take().expect("just filled");
        let offset = payload.request.offset + u64::from(payload.done);
        payload.done += u32::try_from(piece.len()).expect("pieces are small");
        let (request_key, request) = (payload.key, payload.request);
        let charge = charge_of(piece.len() as u64);
        self.front_bytes += charge;
        if payload.done == request.length {
            client.payload = None;
            client.conn.payload_done();
        } else {
            // One more is to come.
            self.requests[request_key].left += 1;
        }
        let part = self.parts.insert(Part {
            request: request_key,
            index: 0,
            charge,
        });
        let buf = PoolBuf(piece.freeze());
        let engine_request = Request::Write {
            offset,
            buf,
            fua: request.fua,
        };
        let id = RequestId(part as u64);
        self.engine
            .request(self.now, &mut self.mem, id, engine_request, &mut self.fx);
    }

    /// Hands requests without payload to the engine, in order, as memory allows.
    pub(super) fn submit_todo(&mut self) {
        while let Some((key, done)) = self.todo.pop_front() {
            let request = self.requests[key].request;
            let length = piece_bytes(&request, done);
            let offset = request.offset + done;
            let charge = match request.command {
                Command::Trim | Command::WriteZeroes { .. } => charge_of(0),
                Command::Read { .. } | Command::Write | Command::Flush => 0,
            };
            if charge > 0 && !has_room(self.front_bytes, 0) {
                self.stalled = true;
                self.todo.push_front((key, done));
                return;
            }
            let engine_request = match request.command {
                Command::Read { .. } => {
                    let bytes = usize::try_from(length).expect("pieces are small");
                    let Some(buf) = self.mem.alloc_outside(bytes) else {
                        self.stalled = true;
                        self.todo.push_front((key, done));
                        return;
                    };
                    Request::Read {
                        offset,
                        buf: PoolBufMut::Own(buf),
                    }
                }
                Command::Flush => Request::Flush,
                Command::Trim => Request::Zero {
                    offset,
                    length,
                    discard: true,
                    fua: request.fua,
                },
                Command::WriteZeroes { no_hole, .. } => Request::Zero {
                    offset,
                    length,
                    discard: !no_hole,
                    fua: request.fua,
                },
                Command::Write => unreachable!("writes come with their payload"),
            };
            if done + length < u64::from(request.length) {
                self.requests[key].left += 1;
                self.todo.push_front((key, done + length));
            }
            let index = match request.command {
                Command::Read { .. } => (done / PIECE_BYTES) as usize,
                _ => 0,
            };
            let part = self.parts.insert(Part {
                request: key,
                index,
                charge,
            });
            self.front_bytes += charge;
            let id = RequestId(part as u64);
            self.engine
                .request(self.now, &mut self.mem, id, engine_request, &mut self.fx);
        }
    }

    /// The engine answered a piece.
    pub(super) fn part_done(&mut self, id: RequestId, errno: Option<i32>, data: Option<Buf>) {
        let key = usize::try_from(id.0).expect("ids come from this slab");
        let part = self.parts.remove(key);
        self.front_bytes -= part.charge;
        let request = &mut self.requests[part.request];
        request.errno = request.errno.or(errno);
        if let Some(data) = data {
            request.data[part.index] = Some(data);
        }
        self.request_step(part.request);
    }

    fn request_step(&mut self, key: usize) {
        let request = &mut self.requests[key];
        request.left -= 1;
        if request.left > 0 {
            return;
        }
        let request = self.requests.remove(key);
        self.clients[request.client].reply(&request.request, request.errno, request.data);
    }

    pub(super) fn client_received(&mut self, key: u64, completion: Completion) {
        let key = usize::try_from(key).expect("keys are small");
        let client = &mut self.clients[key];
        let buf = completion.buf.into_mut();
        let bytes = match completion.result {
            Ok(bytes) => bytes as usize,
            Err(_) => 0,
        };
        if client.payload_out {
            client.payload_out = false;
            if let Some(payload) = &mut client.payload
                && bytes > 0
            {
                payload.piece = buf;
                payload.filled += bytes;
                return;
            }
        } else {
            client.recv_out = false;
            client.input = buf;
            client.unread = 0..bytes;
        }
        if bytes == 0 {
            client.closing = true;
        }
    }

    pub(super) fn client_sent(&mut self, key: u64, completion: Completion) {
        let key = usize::try_from(key).expect("keys are small");
        let client = &mut self.clients[key];
        client.send_out = false;
        if let Some(bufs) = completion.buf.into_many() {
            client.keep_vec(bufs);
        }
        if completion.result.is_err() {
            client.closing = true;
            client.dead = true;
        }
    }

    /// Sends what is queued for every client, and lets go of those that are through.
    pub(super) fn flush_clients(&mut self) {
        for key in 0..self.clients.capacity() {
            if !self.clients.contains(key) {
                continue;
            }
            if self.clients[key].closing {
                self.abandon_payload(key);
            }
            self.receive(key);
            let client = &mut self.clients[key];
            let sock = client.sock;
            if let Some(bufs) = client.want_send(&self.mem) {
                let op = ROp::Send {
                    sock,
                    bufs,
                    skip: 0,
                };
                self.reactor.submit(Token::NbdSend.with(key as u64), op);
            } else if client.closing && client.is_quiet() && (client.dead || client.is_sent()) {
                self.clients.remove(key);
                self.reactor.remove_socket(sock);
            }
        }
    }

    /// Asks for more input. Not before what came is with the disk: the kernel looks into the socket
    /// at once, and the disk would wait for that.
    fn receive(&mut self, key: usize) {
        let client = &mut self.clients[key];
        if !std::mem::take(&mut client.wants_input) || client.closing {
            return;
        }
        let op = ROp::Recv {
            sock: client.sock,
            buf: client.input.take().expect("no receive is out"),
            range: 0..INPUT_BYTES,
        };
        client.recv_out = true;
        self.reactor.submit(Token::NbdRecv.with(key as u64), op);
    }

    /// The rest of a payload will not come: the request ends with what was handed on.
    fn abandon_payload(&mut self, key: usize) {
        let client = &mut self.clients[key];
        if client.payload_out || client.payload.is_none() {
            return;
        }
        let payload = client.payload.take().expect("just looked at");
        self.requests[payload.key].errno = Some(libc::EIO);
        self.request_step(payload.key);
    }

    pub(super) fn tick_clients(&mut self) {
        for (_, client) in &mut self.clients {
            let slow = self.now.saturating_sub(client.since_ns) > NEGOTIATION_NS_MAX;
            if slow && client.conn.phase() == Phase::Negotiation && !client.closing {
                tracing::warn!("an NBD client took too long to choose an export");
                self.reactor.remove_socket(client.sock);
                client.closing = true;
                client.dead = true;
            }
        }
    }

    /// No more requests: what is in flight is answered, then clients are let go.
    pub(super) fn stop_clients(&mut self) {
        for (_, client) in &mut self.clients {
            client.conn.shut_down();
            if client.in_flight == 0 && client.payload.is_none() {
                self.reactor.remove_socket(client.sock);
                client.dead = true;
            }
            client.closing = true;
        }
    }
}

/// Journal charge of a piece at most: a record of its own, in bytes.
pub(super) fn charge_of(payload_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + builder::charge_of(payload_bytes)
}

/// Whether one more write may be taken from a client: all that are in flight must fit into the part
/// of the backup's window that is kept back for them.
pub(super) fn has_room(front_bytes: u64, payload_bytes: u64) -> bool {
    front_bytes == 0 || front_bytes + charge_of(payload_bytes) <= FRONT_BYTES_MAX
}

fn in_flight(client: usize, request: NbdRequest) -> InFlight {
    InFlight {
        client,
        request,
        left: 1,
        errno: None,
        data: Default::default(),
    }
}
