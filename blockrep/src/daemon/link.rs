//! A link connection on the reactor: frames and records in, frames and records out.

use super::memory::{PoolBuf, PoolMemory};
use crate::reactor::{Buf, BufMut, SockId};
use blkback_proto::ids::SessionId;
use blkback_proto::link::{BODY_BYTES_MAX, FRAME_BYTES, FRAME_MAGIC, Frame, peek_body_bytes};
use blkback_proto::record::{PREFIX_BYTES, RECORD_MAGIC, peek_total_bytes};
use std::collections::VecDeque;
use std::ops::Range;

/// Room for the longest frame.
const FRAME_BUF_BYTES: usize = FRAME_BYTES + BODY_BYTES_MAX;
/// Buffers handed to the kernel in one send.
const SEND_BUFS_MAX: usize = 512;
/// Bytes of frames moved into one buffer.
const FRAMES_BYTES_MAX: usize = 64 << 10;

/// What has arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    /// A frame and the session it names.
    Frame(Frame, SessionId),
    /// A whole record.
    Record(BufMut),
}

/// Where the next message stands.
enum Receiving {
    /// First 64 bytes, or a frame whose length is known.
    Frame { filled: usize, wanted: usize },
    /// A record; its buffer is `None` while the kernel fills it, or until there is memory for it.
    Record {
        total: usize,
        filled: usize,
        buf: Option<BufMut>,
    },
}

/// What is to be sent.
enum Sending {
    Frames(Vec<u8>),
    Bytes(Buf),
}

/// One connection.
pub(super) struct LinkConn {
    pub(super) sock: SockId,
    /// Where the peer is, for people.
    pub(super) peer: String,
    receiving: Receiving,
    page: Option<BufMut>,
    /// A receive is with the kernel.
    pub(super) recv_out: bool,
    queue: VecDeque<Sending>,
    /// Empty; its room is kept for the next send.
    spare: Vec<Buf>,
    /// A send is with the kernel.
    pub(super) send_out: bool,
    /// Ends once everything is sent.
    pub(super) closing: bool,
    /// Bytes queued and not yet taken by the kernel.
    pub(super) queued_bytes: u64,
    /// Bytes sent and received since it began.
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
}

impl LinkConn {
    /// `None` without memory for the smallest message.
    pub(super) fn new(memory: &PoolMemory, sock: SockId, peer: String) -> Option<Self> {
        Some(Self {
            sock,
            peer,
            receiving: Receiving::Frame {
                filled: 0,
                wanted: PREFIX_BYTES,
            },
            page: Some(memory.0.alloc(FRAME_BUF_BYTES)?),
            recv_out: false,
            queue: VecDeque::new(),
            spare: Vec::new(),
            send_out: false,
            closing: false,
            queued_bytes: 0,
            sent_bytes: 0,
            received_bytes: 0,
        })
    }

    /// What to receive next; `None` while that is with the kernel or there is no memory.
    pub(super) fn want_recv(&mut self, memory: &PoolMemory) -> Option<(BufMut, Range<usize>)> {
        if self.recv_out || self.closing {
            return None;
        }
        let next = match &mut self.receiving {
            Receiving::Frame { filled, wanted } => (
                self.page.take().expect("no receive is out"),
                *filled..*wanted,
            ),
            Receiving::Record { total, filled, buf } => {
                let buf = match buf.take() {
                    Some(buf) => buf,
                    None => {
                        let mut buf = memory.alloc_outside(*total)?;
                        let page = self.page.as_ref().expect("no receive is out");
                        buf[..PREFIX_BYTES].copy_from_slice(&page[..PREFIX_BYTES]);
                        buf
                    }
                };
                (buf, *filled..*total)
            }
        };
        self.recv_out = true;
        Some(next)
    }

    /// Bytes have come in. `Err`: what came is no message of a peer.
    pub(super) fn received(
        &mut self,
        buf: BufMut,
        bytes: usize,
    ) -> Result<Option<Arrived>, String> {
        self.recv_out = false;
        self.received_bytes += bytes as u64;
        match &mut self.receiving {
            Receiving::Record {
                total,
                filled,
                buf: slot,
            } => {
                *filled += bytes;
                if filled < total {
                    *slot = Some(buf);
                    return Ok(None);
                }
                self.receiving = Receiving::Frame {
                    filled: 0,
                    wanted: PREFIX_BYTES,
                };
                Ok(Some(Arrived::Record(buf)))
            }
            Receiving::Frame { filled, wanted } => {
                self.page = Some(buf);
                *filled += bytes;
                let (filled, wanted) = (*filled, *wanted);
                if filled < wanted {
                    Ok(None)
                } else {
                    self.message(filled)
                }
            }
        }
    }

    /// The next message is a record that is not whole yet.
    pub(super) fn is_in_record(&self) -> bool {
        matches!(self.receiving, Receiving::Record { .. })
    }

    fn message(&mut self, filled: usize) -> Result<Option<Arrived>, String> {
        let page = self.page.as_ref().expect("just given back");
        if page[..8] == RECORD_MAGIC {
            let total = peek_total_bytes(page).map_err(|error| error.to_string())?;
            let total = usize::try_from(total).map_err(|error| error.to_string())?;
            self.receiving = Receiving::Record {
                total,
                filled: PREFIX_BYTES,
                buf: None,
            };
            return Ok(None);
        }
        if page[..8] != FRAME_MAGIC {
            return Err("its first bytes are another protocol's".to_owned());
        }
        let total = FRAME_BYTES + peek_body_bytes(page).map_err(|error| error.to_string())?;
        if filled < total {
            self.receiving = Receiving::Frame {
                filled,
                wanted: total,
            };
            return Ok(None);
        }
        let (frame, session) = Frame::decode(&page[..total]).map_err(|error| error.to_string())?;
        self.receiving = Receiving::Frame {
            filled: 0,
            wanted: PREFIX_BYTES,
        };
        Ok(Some(Arrived::Frame(frame, session)))
    }

    /// Queues a frame.
    pub(super) fn push_frame(&mut self, session: SessionId, frame: &Frame) {
        if !matches!(self.queue.back(), Some(Sending::Frames(_))) {
            self.queue.push_back(Sending::Frames(Vec::new()));
        }
        let Some(Sending::Frames(bytes)) = self.queue.back_mut() else {
            unreachable!("just pushed")
        };
        let before = bytes.len();
        frame.encode(session, bytes);
        self.queued_bytes += (bytes.len() - before) as u64;
    }

    /// Queues a record.
    pub(super) fn push_record(&mut self, bufs: Vec<PoolBuf>) {
        for buf in bufs {
            self.queued_bytes += buf.0.len() as u64;
            self.queue.push_back(Sending::Bytes(buf.0));
        }
    }

    /// What to send next; `None` when nothing is queued, a send is out, or there is no memory.
    pub(super) fn want_send(&mut self, memory: &PoolMemory) -> Option<Vec<Buf>> {
        if self.send_out {
            return None;
        }
        let mut bufs = std::mem::take(&mut self.spare);
        while bufs.len() < SEND_BUFS_MAX
            && let Some(next) = self.queue.pop_front()
        {
            match next {
                Sending::Bytes(buf) => bufs.push(buf),
                Sending::Frames(mut bytes) => {
                    let length = bytes.len().min(FRAMES_BYTES_MAX);
                    let Some(mut buf) = memory.0.alloc(length) else {
                        self.queue.push_front(Sending::Frames(bytes));
                        break;
                    };
                    buf.copy_from_slice(&bytes[..length]);
                    bufs.push(buf.freeze());
                    if length < bytes.len() {
                        bytes.drain(..length);
                        self.queue.push_front(Sending::Frames(bytes));
                    }
                }
            }
        }
        self.send_out = !bufs.is_empty();
        self.send_out.then_some(bufs)
    }

    /// A send ended.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.send_out = false;
        self.sent_bytes += bytes;
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
    }

    /// The vector of a send that has ended serves the next one.
    pub(super) fn keep_vec(&mut self, mut bufs: Vec<Buf>) {
        bufs.clear();
        self.spare = bufs;
    }

    /// Everything queued is out.
    pub(super) fn is_drained(&self) -> bool {
        !self.send_out && self.queue.is_empty()
    }
}
