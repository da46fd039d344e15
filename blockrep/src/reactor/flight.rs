//! Operations in flight: one reused, unmoving record each, from submission to completion.
//!
//! The kernel is given pointers into a record (vectors, message header, address) and into the
//! buffers it owns; so records are boxed, never move, and are freed only after their last kernel
//! completion.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::RawFd;

use super::buffer::{Buf, BufMut};
use super::foreign::Foreign;
use super::op::{FileOp, ReturnedBuf, SockOp};

/// Which operation a record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The record is free.
    Idle,
    File(FileOp),
    Sock(SockOp),
}

/// What the kernel does, or did last, for an operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Between the caller's buffers, or the zero page, and the file.
    Straight,
    /// Reads the first block of the bounced chunk, which is to be changed in part.
    FillHead,
    /// Reads its last block.
    FillTail,
    /// Writes the chunk.
    StoreChunk,
    /// Reads the chunk.
    LoadChunk,
    /// fallocate over part of a Zero or Discard.
    Allocate,
    Sync,
}

/// The part of an unaligned operation that is being carried through a bounce buffer.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) buf: BufMut,
    /// Byte of the file at which the chunk begins; a multiple of the block.
    pub(super) begin: u64,
    /// Whole blocks.
    pub(super) len: usize,
    /// Bytes of the chunk, from its start, that belong to the request.
    pub(super) wanted: Range<usize>,
    /// What the current step still has to move.
    pub(super) moving: Range<usize>,
}

pub(super) struct Flight {
    /// Counts the uses of this record; part of `user_data`.
    pub(super) generation: u32,
    pub(super) token: u64,
    pub(super) kind: Kind,
    pub(super) step: Step,
    /// Index in the table of files and sockets. Not used by PollIn.
    pub(super) slot: u32,
    /// Whether the kernel holds an entry of this operation.
    pub(super) in_kernel: bool,
    /// Files: the range of the request. Send: total length, offset unused.
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes of the request that are finished.
    pub(super) done: u64,
    /// End of the part that the current step of a Zero or Discard covers, in request bytes.
    pub(super) part_end: u64,
    /// Whether buffers and range can go to the kernel as they are.
    pub(super) straight: bool,
    /// Whether the operation holds a block lock.
    pub(super) locked: bool,
    /// A planted short result: limit of the next kernel step, 0 for none.
    pub(super) clip: u32,
    pub(super) retries: u16,
    /// Whether the caller asked that it end early.
    pub(super) cancelled: bool,
    pub(super) dest: Option<BufMut>,
    /// Of a ReadInto, in the place of `dest`.
    pub(super) foreign: Option<Foreign>,
    pub(super) dest_range: Range<usize>,
    pub(super) one: Option<Buf>,
    pub(super) many: Vec<Buf>,
    pub(super) chunk: Option<Chunk>,
    pub(super) poll_fd: RawFd,
    iov: Vec<libc::iovec>,
    message: libc::msghdr,
    address: libc::sockaddr_storage,
    address_len: libc::socklen_t,
}

impl Flight {
    fn new() -> Flight {
        Flight {
            generation: 0,
            token: 0,
            kind: Kind::Idle,
            step: Step::Straight,
            slot: u32::MAX,
            in_kernel: false,
            offset: 0,
            len: 0,
            done: 0,
            part_end: 0,
            straight: true,
            locked: false,
            clip: 0,
            retries: 0,
            cancelled: false,
            dest: None,
            foreign: None,
            dest_range: 0..0,
            one: None,
            many: Vec::new(),
            chunk: None,
            poll_fd: -1,
            iov: Vec::new(),
            // SAFETY: plain integers and null pointers, for which zero is a value.
            message: unsafe { std::mem::zeroed() },
            // SAFETY: plain integers, for which zero is a value.
            address: unsafe { std::mem::zeroed() },
            address_len: 0,
        }
    }

    /// The caller's buffers of a Write, WriteV or Send.
    pub(super) fn sources(&self) -> &[Buf] {
        match &self.one {
            Some(buf) => std::slice::from_ref(buf),
            None => &self.many,
        }
    }

    /// Position in the file of the next byte to be done.
    pub(super) fn position(&self) -> u64 {
        self.offset + self.done
    }

    /// Takes the caller's buffers out, in the shape in which they came.
    pub(super) fn take_buffers(&mut self) -> ReturnedBuf {
        if let Some(buf) = self.dest.take() {
            ReturnedBuf::Mut(buf)
        } else if let Some(memory) = self.foreign.take() {
            ReturnedBuf::Foreign(memory)
        } else if let Some(buf) = self.one.take() {
            ReturnedBuf::One(buf)
        } else if !self.many.is_empty() {
            ReturnedBuf::Many(std::mem::take(&mut self.many))
        } else {
            ReturnedBuf::None
        }
    }

    /// Lists the source bytes from `skip` on, at most `limit` of them, as one vector entry for each
    /// stretch of memory. Stable until the operation completes.
    pub(super) fn gather(&mut self, skip: u64, limit: u64) -> &[libc::iovec] {
        // The kernel takes no more in one call (UIO_MAXIOV).
        const ENTRIES_MAX: usize = 1024;
        self.iov.clear();
        let (mut skip, mut left) = (skip, limit);
        let sources = match &self.one {
            Some(buf) => std::slice::from_ref(buf),
            None => &self.many[..],
        };
        for buf in sources {
            if left == 0 {
                break;
            }
            let size = buf.len() as u64;
            if skip >= size {
                skip -= size;
                continue;
            }
            let bytes = &buf[skip as usize..];
            let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            skip = 0;
            left -= len as u64;
            let base = bytes.as_ptr().cast_mut().cast::<libc::c_void>();
            let full = self.iov.len() == ENTRIES_MAX;
            match self.iov.last_mut() {
                Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == base => {
                    last.iov_len += len;
                }
                _ if full => break,
                _ => self.iov.push(libc::iovec {
                    iov_base: base,
                    iov_len: len,
                }),
            }
        }
        &self.iov
    }

    /// Lists what is left of the memory of a ReadInto, as [`Flight::gather`] does.
    pub(super) fn scatter(&mut self, limit: u64) -> &[libc::iovec] {
        let memory = self.foreign.as_ref().expect("only a ReadInto is scattered");
        memory.list(self.done, limit, &mut self.iov);
        &self.iov
    }

    /// A message header over what [`Flight::gather`] listed last.
    pub(super) fn message(&mut self) -> *const libc::msghdr {
        self.message.msg_iov = self.iov.as_mut_ptr();
        self.message.msg_iovlen = self.iov.len() as _;
        &raw const self.message
    }

    /// Stores a socket address in the kernel's form; stable until the operation completes.
    pub(super) fn set_address(&mut self, addr: SocketAddr) {
        let place = &raw mut self.address;
        match addr {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*v4.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr.
                unsafe { place.cast::<libc::sockaddr_in>().write(raw) };
                self.address_len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { place.cast::<libc::sockaddr_in6>().write(raw) };
                self.address_len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
    }

    /// The stored address and its length.
    pub(super) fn address(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        ((&raw const self.address).cast(), self.address_len)
    }
}

/// All records; index and generation make the `user_data` of kernel entries.
#[derive(Default)]
pub(super) struct Flights {
    // Boxed, although a vector would be simpler: the vector may move its content when it grows.
    #[expect(clippy::vec_box, reason = "the kernel holds pointers into the records")]
    records: Vec<Box<Flight>>,
    free: Vec<u32>,
}

impl Flights {
    /// A record in its initial state.
    pub(super) fn take(&mut self, token: u64, kind: Kind, slot: u32) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.records.push(Box::new(Flight::new()));
            (self.records.len() - 1) as u32
        });
        let flight = &mut *self.records[index as usize];
        debug_assert!(flight.kind == Kind::Idle && flight.chunk.is_none());
        flight.token = token;
        flight.kind = kind;
        flight.slot = slot;
        flight.step = Step::Straight;
        flight.offset = 0;
        flight.len = 0;
        flight.done = 0;
        flight.part_end = 0;
        flight.straight = true;
        flight.locked = false;
        flight.clip = 0;
        flight.retries = 0;
        flight.cancelled = false;
        index
    }

    /// Frees a record; its buffers must have been taken out.
    pub(super) fn give_back(&mut self, index: u32) {
        let flight = &mut *self.records[index as usize];
        assert!(
            !flight.in_kernel,
            "a record was freed while the kernel held it"
        );
        flight.kind = Kind::Idle;
        flight.generation = flight.generation.wrapping_add(1);
        self.free.push(index);
    }

    pub(super) fn user_data(&self, index: u32) -> u64 {
        u64::from(self.records[index as usize].generation) << 32 | u64::from(index)
    }

    /// The record a completion belongs to, if the kernel really held one under this `user_data`.
    pub(super) fn of_completion(&self, user_data: u64) -> Option<u32> {
        let index = user_data as u32;
        let flight = self.records.get(index as usize)?;
        (flight.in_kernel && flight.generation == (user_data >> 32) as u32).then_some(index)
    }

    /// Records in use.
    pub(super) fn active(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Indices of all records, free ones included.
    pub(super) fn indices(&self) -> Range<u32> {
        0..self.records.len() as u32
    }

    pub(super) fn get(&self, index: u32) -> &Flight {
        &self.records[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Flight {
        &mut self.records[index as usize]
    }
}
