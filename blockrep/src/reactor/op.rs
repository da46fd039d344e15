//! What a reactor is asked to do and what it answers.
//!
//! An operation takes its buffers by value; its one completion gives them back, whatever happened.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};

use super::buffer::{Buf, BufMut};
use super::foreign::Foreign;

/// A file of one reactor. Never reused: a removed file's id is refused for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// A socket of one reactor; as [`FileId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SockId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// One operation. Offsets and lengths of files are bytes and multiples of 512, lengths above zero.
#[derive(Debug)]
pub enum Op {
    /// Fills the whole of `buf`, or fails: `ENODATA` when the file ends before.
    Read {
        file: FileId,
        offset: u64,
        buf: BufMut,
    },
    /// Fills all of `memory`, or fails, as Read. The stretches must suit the file: see
    /// [`super::Reactor::reads_into`].
    ReadInto {
        file: FileId,
        offset: u64,
        memory: Foreign,
    },
    /// Writes the whole of `buf`.
    Write { file: FileId, offset: u64, buf: Buf },
    /// Writes the buffers one after the other from `offset` on.
    WriteV {
        file: FileId,
        offset: u64,
        bufs: Vec<Buf>,
    },
    /// fdatasync: covers the operations whose completions were seen before it was submitted.
    Sync { file: FileId },
    /// Makes the range read as zeros and keeps its space allocated where the file system can.
    Zero { file: FileId, offset: u64, len: u64 },
    /// Makes the range read as zeros and gives its space back where the file system can.
    Discard { file: FileId, offset: u64, len: u64 },
    /// Takes one connection; the completion carries it in `accepted`.
    Accept { sock: SockId },
    /// Connects a stream socket.
    Connect { sock: SockId, addr: SocketAddr },
    /// Receives at least one byte into `buf[range]`; 0 bytes mean that the peer has finished.
    /// Receives of one socket are served in the order of submission.
    Recv {
        sock: SockId,
        buf: BufMut,
        range: Range<usize>,
    },
    /// Sends all of `bufs` but their first `skip` bytes, and completes when the kernel has taken
    /// everything. Sends of one socket are served whole, in the order of submission.
    Send {
        sock: SockId,
        bufs: Vec<Buf>,
        skip: usize,
    },
    /// Completes once `fd` is readable. The caller keeps `fd` open until then.
    PollIn { fd: RawFd },
    /// Asks that the socket operations and polls submitted under `target` end early: they complete
    /// themselves, as [`OpError::Cancelled`] unless they had just succeeded. Operations on files
    /// cannot be cancelled. Completes with how many operations were asked to end.
    Cancel { target: u64 },
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// As given to `submit`.
    pub token: u64,
    /// Bytes moved by Read, Write, WriteV, Recv and Send; ready events of PollIn; the count of
    /// Cancel; 0 for the others.
    pub result: Result<u32, OpError>,
    /// The operation's buffers.
    pub buf: ReturnedBuf,
    /// The new connection of a successful Accept: close-on-exec, blocking.
    pub accepted: Option<OwnedFd>,
}

/// The buffers of a completed operation, in the shape in which they were given.
#[derive(Debug)]
pub enum ReturnedBuf {
    /// Sync, Zero, Discard, Accept, Connect, PollIn, Cancel.
    None,
    /// Read, Recv.
    Mut(BufMut),
    /// ReadInto.
    Foreign(Foreign),
    /// Write.
    One(Buf),
    /// WriteV, Send.
    Many(Vec<Buf>),
}

impl ReturnedBuf {
    /// The buffer of a Read or Recv.
    pub fn into_mut(self) -> Option<BufMut> {
        match self {
            ReturnedBuf::Mut(buf) => Some(buf),
            _ => None,
        }
    }

    /// The buffer of a Write.
    pub fn into_one(self) -> Option<Buf> {
        match self {
            ReturnedBuf::One(buf) => Some(buf),
            _ => None,
        }
    }

    /// The buffers of a WriteV or Send.
    pub fn into_many(self) -> Option<Vec<Buf>> {
        match self {
            ReturnedBuf::Many(bufs) => Some(bufs),
            _ => None,
        }
    }
}

/// What was being done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileOp {
    Read,
    Write,
    Zero,
    Discard,
    Sync,
}

impl FileOp {
    /// Whether a failure leaves the content or durability of the file unknown.
    pub fn changes_file(self) -> bool {
        self != FileOp::Read
    }
}

impl fmt::Display for FileOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileOp::Read => "read",
            FileOp::Write => "write",
            FileOp::Zero => "zero",
            FileOp::Discard => "discard",
            FileOp::Sync => "sync",
        })
    }
}

/// What was being done to a socket or event descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SockOp {
    Accept,
    Connect,
    Recv,
    Send,
    PollIn,
}

impl fmt::Display for SockOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SockOp::Accept => "accept",
            SockOp::Connect => "connect",
            SockOp::Recv => "receive",
            SockOp::Send => "send",
            SockOp::PollIn => "poll",
        })
    }
}

/// A failed operation on a file. Of a poisoned file: its first failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The {op} at byte {offset} failed: {}", errno_text(*.errno))]
pub struct StoreError {
    pub op: FileOp,
    /// Where the operation began; 0 for a sync.
    pub offset: u64,
    /// As the kernel gave it; `ENODATA` for a read beyond the end of the file.
    pub errno: i32,
}

/// Why an operation did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// A file operation failed; unless `cause.op` is a read, the file is poisoned from now on.
    #[error("{0}")]
    Store(StoreError),
    /// Nothing was done, because an earlier operation on the file failed.
    #[error("Refused after an earlier failure. {0}")]
    Poisoned(StoreError),
    /// A socket operation or a poll failed.
    #[error("The {op} failed: {}", errno_text(*.errno))]
    Socket { op: SockOp, errno: i32 },
    /// Ended by `Cancel` or by removing the socket.
    #[error("Cancelled")]
    Cancelled,
    /// The id names nothing, or something removed.
    #[error("The file or socket was removed")]
    Removed,
    /// The request breaks a rule of [`Op`]; nothing was done.
    #[error("Invalid request: {0}")]
    Invalid(&'static str),
}

impl OpError {
    /// The first failure of the file, when this is about a file.
    pub fn store(&self) -> Option<StoreError> {
        match self {
            OpError::Store(cause) | OpError::Poisoned(cause) => Some(*cause),
            _ => None,
        }
    }
}

/// The system's words for an errno, without its number.
pub(super) fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operator reads these lines in a log at night.
    #[test]
    fn errors_are_sentences() {
        let cause = StoreError {
            op: FileOp::Write,
            offset: 4096,
            errno: libc::ENOSPC,
        };
        assert_eq!(
            OpError::Store(cause).to_string(),
            "The write at byte 4096 failed: No space left on device"
        );
        assert_eq!(
            OpError::Poisoned(cause).to_string(),
            "Refused after an earlier failure. The write at byte 4096 failed: No space left on device"
        );
        let reset = OpError::Socket {
            op: SockOp::Recv,
            errno: libc::ECONNRESET,
        };
        assert_eq!(
            reset.to_string(),
            "The receive failed: Connection reset by peer"
        );
    }
}
