//! One NBD client on the reactor.
//!
//! Requests of more than a megabyte go to the engine in pieces. Replies of one turn of the loop
//! leave in one send: their headers share a page, data follows from its own buffers.

use super::memory::PoolMemory;
use crate::frontend::nbd::{Conn, Errno, Request};
use crate::reactor::{Buf, BufMut, SockId};
use std::ops::Range;

/// Size of the receive buffer of a client, in bytes.
pub(super) const INPUT_BYTES: usize = 64 << 10;
/// Requests of one client that may be in flight.
pub(super) const REQUESTS_MAX: usize = 128;
/// Longest READ and WRITE a client may send, in bytes.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 4 << 20;
/// Longest piece that goes to the engine, in bytes.
pub(super) const PIECE_BYTES: u64 = blkback_proto::record::PAYLOAD_BYTES_MAX;
/// Longest piece of a zeroing or discard, in bytes.
pub(super) const RANGE_PIECE_BYTES: u64 = 1 << 30;
/// Pieces of one request at most.
pub(super) const PIECES_MAX: usize = (PAYLOAD_BYTES_MAX as u64).div_ceil(PIECE_BYTES) as usize;
/// The data of a READ, in order.
pub(super) type Pieces = [Option<Buf>; PIECES_MAX];

/// A part of what goes to the client.
enum Out {
    Head(Range<usize>),
    Data(Buf),
}

/// A WRITE whose payload is coming in.
pub(super) struct Payload {
    pub(super) request: Request,
    /// Key of the request among those in flight.
    pub(super) key: usize,
    /// The piece being filled.
    pub(super) piece: Option<BufMut>,
    pub(super) filled: usize,
    /// Bytes of the request in earlier pieces.
    pub(super) done: u32,
}

/// A client.
pub(super) struct NbdConn {
    pub(super) sock: SockId,
    pub(super) conn: Conn,
    pub(super) input: Option<BufMut>,
    /// Unread bytes of the input buffer.
    pub(super) unread: Range<usize>,
    pub(super) recv_out: bool,
    /// Everything that came is read: the next receive goes out at the end of the turn.
    pub(super) wants_input: bool,
    pub(super) payload: Option<Payload>,
    /// The piece of the payload is with the kernel.
    pub(super) payload_out: bool,
    pub(super) plain: Vec<u8>,
    heads: Vec<u8>,
    outs: Vec<Out>,
    /// Empty; its room is kept for the next send.
    spare: Vec<Buf>,
    pub(super) send_out: bool,
    pub(super) in_flight: usize,
    /// The client is gone or going: no more input; ends when nothing is in flight.
    pub(super) closing: bool,
    /// The socket is dead: nothing more can be sent.
    pub(super) dead: bool,
    pub(super) since_ns: u64,
}

impl NbdConn {
    pub(super) fn new(sock: SockId, conn: Conn, since_ns: u64) -> Self {
        Self {
            sock,
            conn,
            input: None,
            unread: 0..0,
            recv_out: false,
            wants_input: false,
            payload: None,
            payload_out: false,
            plain: Vec::new(),
            heads: Vec::new(),
            outs: Vec::new(),
            spare: Vec::new(),
            send_out: false,
            in_flight: 0,
            closing: false,
            dead: false,
            since_ns,
        }
    }

    /// Queues the reply to a request, with the data of a read behind it.
    pub(super) fn reply(&mut self, request: &Request, errno: Option<i32>, data: Pieces) {
        self.in_flight -= 1;
        if self.dead {
            return;
        }
        let replies = self.conn.replies();
        let head = match errno {
            None => replies.success(request),
            Some(errno) => replies.error(request.cookie, Errno::from_os(errno)),
        };
        self.push_head(&head);
        if errno.is_none() {
            self.outs.extend(data.into_iter().flatten().map(Out::Data));
        }
    }

    fn push_head(&mut self, head: &[u8]) {
        let at = self.heads.len();
        self.heads.extend_from_slice(head);
        match self.outs.last_mut() {
            Some(Out::Head(range)) if range.end == at => range.end += head.len(),
            _ => self.outs.push(Out::Head(at..at + head.len())),
        }
    }

    /// What to send next; `None` when nothing is queued, a send is out, or there is no memory.
    pub(super) fn want_send(&mut self, memory: &PoolMemory) -> Option<Vec<Buf>> {
        if self.send_out || self.dead || (self.outs.is_empty() && self.plain.is_empty()) {
            return None;
        }
        let plain = self.plain.len();
        let mut page = memory.0.alloc((plain + self.heads.len()).max(1))?;
        page[..plain].copy_from_slice(&self.plain);
        page[plain..]
            .get_mut(..self.heads.len())?
            .copy_from_slice(&self.heads);
        let page = page.freeze();
        let mut bufs = std::mem::take(&mut self.spare);
        // Option replies and refusals come before any reply that follows from later input.
        if plain > 0 {
            bufs.push(page.slice(..plain));
        }
        bufs.extend(self.outs.drain(..).map(|out| match out {
            Out::Data(buf) => buf,
            Out::Head(range) => page.slice(plain + range.start..plain + range.end),
        }));
        self.plain.clear();
        self.heads.clear();
        self.send_out = true;
        Some(bufs)
    }

    /// The vector of a send that has ended serves the next one.
    pub(super) fn keep_vec(&mut self, mut bufs: Vec<Buf>) {
        bufs.clear();
        self.spare = bufs;
    }

    /// Bytes wait for the socket; more requests would only add to them.
    pub(super) fn is_clogged(&self) -> bool {
        self.outs.len() > 2 * REQUESTS_MAX || self.plain.len() > 256 << 10
    }

    /// Nothing is with the kernel or the engine any more.
    pub(super) fn is_quiet(&self) -> bool {
        !self.recv_out && !self.payload_out && !self.send_out && self.in_flight == 0
    }

    /// Everything that was to be sent is out.
    pub(super) fn is_sent(&self) -> bool {
        self.outs.is_empty() && self.plain.is_empty() && !self.send_out
    }
}

/// Length of the next piece of a request, in bytes.
pub(super) fn piece_bytes(request: &Request, done: u64) -> u64 {
    use crate::frontend::nbd::Command;
    let left = u64::from(request.length) - done;
    match request.command {
        Command::Read { .. } | Command::Write => left.min(PIECE_BYTES),
        Command::Trim | Command::WriteZeroes { .. } => left.min(RANGE_PIECE_BYTES),
        Command::Flush => 0,
    }
}

/// A request between its header and its reply.
pub(super) struct InFlight {
    /// Client and the time it connected, so that a later client in its place is not mistaken.
    pub(super) client: usize,
    pub(super) request: Request,
    /// Pieces that are with the engine, and one for each that is still to come.
    pub(super) left: u32,
    pub(super) errno: Option<i32>,
    pub(super) data: Pieces,
}

/// A piece of a request that is with the engine.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) request: usize,
    pub(super) index: usize,
    /// Journal charge it is counted with while it is in flight, in bytes.
    pub(super) charge: u64,
}

/// A client that chose the export of another volume's thread.
pub(super) struct Handover {
    pub(super) fd: std::os::fd::OwnedFd,
    pub(super) conn: Conn,
    pub(super) plain: Vec<u8>,
    pub(super) unread: Vec<u8>,
}
