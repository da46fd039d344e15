//! Replies of the transmission phase, encoded into small fixed arrays so that the driver sends
//! header and data with one vectored send and copies nothing.

use std::fmt;
use std::ops::Deref;

use byteorder::{BE, ByteOrder};

use super::consts::*;
use super::request::{Command, Cookie, Request};

/// Bytes before the payload of a structured chunk.
const CHUNK_HEADER_BYTES: usize = 20;
/// Offset in front of the data of an `NBD_REPLY_TYPE_OFFSET_DATA` chunk, in bytes.
const DATA_OFFSET_BYTES: u32 = 8;
/// Error number and text length in front of an error text, in bytes.
const ERROR_PAYLOAD_BYTES: u32 = 6;
/// Longest header there is: chunk header and offset, in bytes.
const MAX_HEADER_BYTES: usize = 28;

/// Errors the protocol can carry. [`Errno::code`] is the number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// Not permitted: a write to a read-only export.
    Perm,
    /// The medium failed.
    Io,
    /// Out of memory.
    NoMem,
    /// Malformed request, or a read or trim past the end.
    Inval,
    /// No space, or a write past the end.
    NoSpc,
    /// Longer than the server takes in one piece.
    Overflow,
    /// Zeroing is not fast; only an answer to FAST_ZERO.
    NotSup,
    /// Server is going away.
    Shutdown,
}

impl Errno {
    /// Number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Errno::Perm => NBD_EPERM,
            Errno::Io => NBD_EIO,
            Errno::NoMem => NBD_ENOMEM,
            Errno::Inval => NBD_EINVAL,
            Errno::NoSpc => NBD_ENOSPC,
            Errno::Overflow => NBD_EOVERFLOW,
            Errno::NotSup => NBD_ENOTSUP,
            Errno::Shutdown => NBD_ESHUTDOWN,
        }
    }

    /// The error to report for an `errno` of this host's kernel. What the protocol has no number
    /// for is an I/O error. ENOTSUP has a narrow meaning in NBD and is never made here.
    pub const fn from_os(errno: i32) -> Errno {
        match errno {
            libc::EPERM | libc::EACCES | libc::EROFS => Errno::Perm,
            libc::ENOMEM => Errno::NoMem,
            libc::EINVAL | libc::EOPNOTSUPP => Errno::Inval,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Errno::NoSpc,
            libc::ESHUTDOWN => Errno::Shutdown,
            _ => Errno::Io,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Errno::Perm => "operation not permitted",
            Errno::Io => "input/output error",
            Errno::NoMem => "out of memory",
            Errno::Inval => "invalid argument",
            Errno::NoSpc => "no space left",
            Errno::Overflow => "value too large",
            Errno::NotSup => "operation not supported",
            Errno::Shutdown => "server is shutting down",
        })
    }
}

/// A simple reply. After a successful one to a READ the data follows.
pub fn encode_simple_reply(cookie: Cookie, result: Result<(), Errno>) -> [u8; 16] {
    let mut bytes = [0; 16];
    BE::write_u32(&mut bytes[..4], NBD_SIMPLE_REPLY_MAGIC);
    BE::write_u32(&mut bytes[4..8], result.err().map_or(0, Errno::code));
    BE::write_u64(&mut bytes[8..], cookie.0);
    bytes
}

/// The front of a data chunk; `data_bytes` of data follow, read at `offset`. `last` ends the
/// reply, and may be said only when the data is already in memory.
///
/// # Panics
/// If `data_bytes` is 0 or above `u32::MAX - 8`, which no accepted request asks for.
pub fn encode_offset_data_header(
    cookie: Cookie,
    offset: u64,
    data_bytes: u32,
    last: bool,
) -> [u8; 28] {
    assert!(data_bytes > 0, "a data chunk describes at least one byte");
    let length = data_bytes
        .checked_add(DATA_OFFSET_BYTES)
        .expect("requests are limited far below");
    let flags = if last { NBD_REPLY_FLAG_DONE } else { 0 };
    let mut bytes = [0; 28];
    write_chunk_header(
        &mut bytes,
        flags,
        NBD_REPLY_TYPE_OFFSET_DATA,
        cookie,
        length,
    );
    BE::write_u64(&mut bytes[20..], offset);
    bytes
}

/// A chunk that ends a structured reply and says nothing more.
pub fn encode_none_chunk(cookie: Cookie) -> [u8; 20] {
    let mut bytes = [0; 20];
    write_chunk_header(
        &mut bytes,
        NBD_REPLY_FLAG_DONE,
        NBD_REPLY_TYPE_NONE,
        cookie,
        0,
    );
    bytes
}

/// A chunk that ends a structured reply with an error, without a text.
pub fn encode_error_chunk(cookie: Cookie, errno: Errno) -> [u8; 26] {
    let mut bytes = [0; 26];
    let length = ERROR_PAYLOAD_BYTES;
    write_chunk_header(
        &mut bytes,
        NBD_REPLY_FLAG_DONE,
        NBD_REPLY_TYPE_ERROR,
        cookie,
        length,
    );
    BE::write_u32(&mut bytes[20..24], errno.code());
    bytes
}

fn write_chunk_header(bytes: &mut [u8], flags: u16, kind: u16, cookie: Cookie, length: u32) {
    BE::write_u32(&mut bytes[..4], NBD_STRUCTURED_REPLY_MAGIC);
    BE::write_u16(&mut bytes[4..6], flags);
    BE::write_u16(&mut bytes[6..8], kind);
    BE::write_u64(&mut bytes[8..16], cookie.0);
    BE::write_u32(&mut bytes[16..CHUNK_HEADER_BYTES], length);
}

/// An encoded reply, or the part of it before the data. Dereferences to its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReplyHeader {
    bytes: [u8; MAX_HEADER_BYTES],
    length: u8,
}

impl ReplyHeader {
    fn new<const N: usize>(encoded: [u8; N]) -> ReplyHeader {
        const { assert!(N <= MAX_HEADER_BYTES) };
        let mut bytes = [0; MAX_HEADER_BYTES];
        bytes[..N].copy_from_slice(&encoded);
        ReplyHeader {
            bytes,
            length: N as u8,
        }
    }
}

impl Deref for ReplyHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for ReplyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplyHeader({:02x?})", &**self)
    }
}

/// Encodes replies in the form the connection negotiated. A copy is good for the life of the
/// connection, also after it began to close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    structured: bool,
}

impl Replies {
    pub(super) fn new(structured: bool) -> Replies {
        Replies { structured }
    }

    /// Structured replies were negotiated.
    pub fn structured(self) -> bool {
        self.structured
    }

    /// A request that was carried out. For a READ this is the header, and `request.length` bytes
    /// of data must follow; otherwise it is the whole reply.
    pub fn success(self, request: &Request) -> ReplyHeader {
        let Request {
            cookie,
            offset,
            length,
            ..
        } = *request;
        match request.command {
            Command::Read { .. } if self.structured => {
                ReplyHeader::new(encode_offset_data_header(cookie, offset, length, true))
            }
            _ => ReplyHeader::new(encode_simple_reply(cookie, Ok(()))),
        }
    }

    /// A request that failed: the whole reply, whatever the command.
    pub fn error(self, cookie: Cookie, errno: Errno) -> ReplyHeader {
        if self.structured {
            ReplyHeader::new(encode_error_chunk(cookie, errno))
        } else {
            ReplyHeader::new(encode_simple_reply(cookie, Err(errno)))
        }
    }

    /// As [`Replies::error`], with a text for humans where the form has room for one.
    pub(super) fn push_error(self, out: &mut Vec<u8>, cookie: Cookie, errno: Errno, why: &str) {
        if !self.structured {
            return out.extend_from_slice(&encode_simple_reply(cookie, Err(errno)));
        }
        let text_bytes = u16::try_from(why.len()).expect("reasons are short texts of our own");
        let mut bytes = encode_error_chunk(cookie, errno);
        BE::write_u32(
            &mut bytes[16..20],
            ERROR_PAYLOAD_BYTES + u32::from(text_bytes),
        );
        BE::write_u16(&mut bytes[24..26], text_bytes);
        out.extend_from_slice(&bytes);
        out.extend_from_slice(why.as_bytes());
    }
}
