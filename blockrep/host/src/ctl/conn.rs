//! One client of the server: handshake, requests in flight, answers and events going out.
//!
//! ```text
//! waiting for hello ── hello, common version ──► open ── end, or a packet that is no frame ──► gone
//!        └───────────── anything else, or too late ─────────────────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use blkback_proto::ctl::{
    Answer, ErrorCode, EventBody, FrameError, FrameKind, HANDSHAKE_VERSION, HelloAnswer,
    HelloRequest, Lost, Request, Response, VERSION_MAX, VERSION_MIN, choose_version, decode,
    response_packets,
};
use rustix::event::PollFlags;

use super::events::EventLog;
use super::socket::{PeerCred, Received, receive, send_now};

/// Requests of one client that wait for the handler; nothing more is read from it meanwhile.
pub(super) const IN_FLIGHT_MAX: usize = 8;
/// Answers one client may leave unread before it is closed.
pub(super) const UNREAD_BYTES_MAX: usize = 512 * 1024;
/// Events in one answer: with the limit of one event, half of what an answer may have.
const EVENTS_PER_ANSWER: usize = 32;
/// Events sent to one follower before the others get their turn.
const EVENTS_PER_TURN: usize = 64;

/// A connection, owned by the ctl thread.
#[derive(Debug)]
pub(super) struct Conn {
    fd: OwnedFd,
    /// Number of the client, never used again.
    pub(super) token: u64,
    pub(super) peer: PeerCred,
    /// Agreed version; `None` until hello.
    version: Option<u16>,
    /// To be said hello by.
    hello_by: Instant,
    in_flight: usize,
    out: VecDeque<Outgoing>,
    out_bytes: usize,
    follow: Option<Follow>,
    /// The socket took no more, or a turn ended with more to send.
    blocked: bool,
    /// Close as soon as what is in `out` was tried once.
    closing: bool,
}

#[derive(Debug)]
struct Outgoing {
    packet: Vec<u8>,
    /// Sent, this packet frees a place for a request.
    ends_request: bool,
}

#[derive(Debug, Clone, Copy)]
struct Follow {
    request_id: u32,
    next_seq: u64,
}

/// What every connection needs to know of its server.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) daemon: String,
    pub(super) log: EventLog,
}

/// A request for the handler.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) request_id: u32,
    pub(super) request: Request,
}

impl Conn {
    pub(super) fn new(fd: OwnedFd, token: u64, peer: PeerCred, hello_by: Instant) -> Self {
        Self {
            fd,
            token,
            peer,
            version: None,
            hello_by,
            in_flight: 0,
            out: VecDeque::new(),
            out_bytes: 0,
            follow: None,
            blocked: false,
            closing: false,
        }
    }

    /// What to poll for. A client that does not take its answers is not read from.
    pub(super) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(
            PollFlags::IN,
            self.in_flight < IN_FLIGHT_MAX && self.out.is_empty(),
        );
        flags.set(PollFlags::OUT, self.blocked);
        flags
    }

    /// When to look at it again at latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.version.is_none().then_some(self.hello_by)
    }

    /// True when it is over and may be dropped.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.closing || self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Refuses the client: says why and closes.
    pub(super) fn refuse(&mut self, code: ErrorCode, message: &str) {
        self.reject(0, code, message);
        self.pump_answers();
    }

    /// After poll: reads at most one packet, so that every client gets its turn.
    pub(super) fn on_ready(
        &mut self,
        flags: PollFlags,
        buffer: &mut [u8],
        context: &Context,
    ) -> Option<Incoming> {
        if !flags.contains(PollFlags::IN) {
            self.closing |= flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            return None;
        }
        match receive(&self.fd, buffer) {
            Ok(Received::Packet(bytes)) => self.on_packet(&buffer[..bytes], context),
            Ok(Received::TooLong(have)) => {
                self.reject(
                    0,
                    ErrorCode::BadFrame,
                    &FrameError::Long { have }.to_string(),
                );
                None
            }
            Ok(Received::Nothing) => None,
            Ok(Received::Closed) | Err(_) => {
                self.closing = true;
                None
            }
        }
    }

    fn on_packet(&mut self, packet: &[u8], context: &Context) -> Option<Incoming> {
        let frame = match decode(packet) {
            Ok(frame) if frame.kind == FrameKind::Request => frame,
            Ok(frame) => {
                let error = FrameError::Kind {
                    found: frame.kind as u16,
                };
                self.reject(0, ErrorCode::BadFrame, &error.to_string());
                return None;
            }
            Err(error @ FrameError::Version { .. }) => {
                self.reject(0, ErrorCode::UnsupportedVersion, &error.to_string());
                return None;
            }
            Err(error) => {
                self.reject(0, ErrorCode::BadFrame, &error.to_string());
                return None;
            }
        };
        let id = frame.request_id;
        let request = match Request::from_body(frame.body) {
            Ok(request) => request,
            Err(error) if self.version.is_some() => {
                self.answer_here(
                    id,
                    &Response::error(ErrorCode::BadRequest, error.to_string()),
                );
                return None;
            }
            Err(error) => {
                self.reject(id, ErrorCode::BadRequest, &error.to_string());
                return None;
            }
        };
        match (request, self.version) {
            (Request::Hello(hello), _) if frame.version == HANDSHAKE_VERSION => {
                self.on_hello(id, &hello, context);
                None
            }
            (request, Some(version)) if frame.version == version => {
                self.on_request(id, request, context)
            }
            (_, None) => {
                let message = "the first request must be hello, in a frame of version 0";
                self.reject(id, ErrorCode::BadRequest, message);
                None
            }
            (_, Some(version)) => {
                let message = format!("frame of version {}, agreed was {version}", frame.version);
                self.reject(id, ErrorCode::UnsupportedVersion, &message);
                None
            }
        }
    }

    fn on_hello(&mut self, id: u32, hello: &HelloRequest, context: &Context) {
        let Some(version) = choose_version(hello.min, hello.max) else {
            let message = format!(
                "{} speaks control protocol {} to {}, {} speaks {VERSION_MIN} to {VERSION_MAX}: \
                 use the tools of the same release",
                hello.client, hello.min, hello.max, context.daemon
            );
            self.reject(id, ErrorCode::UnsupportedVersion, &message);
            return;
        };
        let answer = HelloAnswer {
            version,
            daemon: context.daemon.clone(),
            pid: std::process::id(),
        };
        self.push(
            HANDSHAKE_VERSION,
            id,
            &Response::Ok(Answer::Hello(answer)),
            false,
        );
        self.version = Some(version);
    }

    fn on_request(
        &mut self,
        request_id: u32,
        request: Request,
        context: &Context,
    ) -> Option<Incoming> {
        let Request::Events(wanted) = request else {
            self.in_flight += 1;
            return Some(Incoming {
                request_id,
                request,
            });
        };
        let answer = context.log.read(wanted.from_seq, EVENTS_PER_ANSWER);
        if wanted.follow {
            self.follow = Some(Follow {
                request_id,
                next_seq: answer.next_seq,
            });
        }
        self.answer_here(request_id, &Response::Ok(Answer::Events(answer)));
        None
    }

    /// Queues the answer of the handler.
    pub(super) fn answer(&mut self, request_id: u32, response: &Response) {
        self.push(self.frame_version(), request_id, response, true);
    }

    fn answer_here(&mut self, request_id: u32, response: &Response) {
        self.push(self.frame_version(), request_id, response, false);
    }

    /// Answers and closes.
    fn reject(&mut self, request_id: u32, code: ErrorCode, message: &str) {
        self.answer_here(request_id, &Response::error(code, message));
        self.closing = true;
    }

    fn frame_version(&self) -> u16 {
        self.version.unwrap_or(HANDSHAKE_VERSION)
    }

    fn push(&mut self, version: u16, request_id: u32, response: &Response, ends_request: bool) {
        let packets = response_packets(version, request_id, response).unwrap_or_else(|error| {
            let instead = Response::error(ErrorCode::Internal, error.to_string());
            response_packets(version, request_id, &instead).expect("an error message is bounded")
        });
        let bytes: usize = packets.iter().map(Vec::len).sum();
        if self.out_bytes + bytes > UNREAD_BYTES_MAX {
            self.closing = true;
            return;
        }
        self.out_bytes += bytes;
        let last = packets.len() - 1;
        let outgoing = packets.into_iter().enumerate();
        self.out.extend(outgoing.map(|(i, packet)| Outgoing {
            packet,
            ends_request: ends_request && i == last,
        }));
    }

    /// Sends what can be sent without waiting: answers first, then events.
    pub(super) fn pump(&mut self, log: &EventLog) {
        if self.pump_answers() {
            self.pump_events(log);
        }
    }

    /// True when every answer is out.
    fn pump_answers(&mut self) -> bool {
        while let Some(front) = self.out.front() {
            match send_now(&self.fd, &front.packet) {
                Ok(true) => {
                    self.out_bytes -= front.packet.len();
                    self.in_flight -= usize::from(front.ends_request);
                    self.out.pop_front();
                }
                Ok(false) => {
                    self.blocked = true;
                    return false;
                }
                Err(_) => {
                    self.closing = true;
                    return false;
                }
            }
        }
        self.blocked = false;
        true
    }

    fn pump_events(&mut self, log: &EventLog) {
        let Some(Follow {
            request_id,
            mut next_seq,
        }) = self.follow
        else {
            return;
        };
        let batch = log.read(next_seq, EVENTS_PER_TURN);
        let lost = (batch.lost > 0).then(|| {
            let first = next_seq + batch.lost;
            (
                first,
                EventBody::Lost(Lost {
                    count: batch.lost,
                    next_seq: first,
                }),
            )
        });
        let events = batch
            .events
            .into_iter()
            .map(|event| (event.seq + 1, EventBody::Event(event)));
        for (seq_after, body) in lost.into_iter().chain(events) {
            let packet = body
                .to_packet(self.frame_version(), request_id)
                .expect("the log bounds its events below the limit of a frame");
            match send_now(&self.fd, &packet) {
                Ok(true) => next_seq = seq_after,
                Ok(false) => {
                    self.blocked = true;
                    break;
                }
                Err(_) => {
                    self.closing = true;
                    break;
                }
            }
        }
        self.blocked |= batch.more;
        self.follow = Some(Follow {
            request_id,
            next_seq,
        });
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
