//! Operations on sockets and event descriptors.
//!
//! A stream has an order: of each socket the kernel holds one send and one receive at a time, later
//! ones wait in the order of submission. A send that failed or was cancelled may have put part of a
//! message on the wire, so all later sends of that socket fail with the same error.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::opcode;

use super::Reactor;
use super::buffer::{Buf, BufMut};
use super::files::{RETRIES_MAX, clipped};
use super::flight::Kind;
use super::op::{Completion, OpError, ReturnedBuf, SockId, SockOp};
use super::ring::Target;

/// Slot of operations that belong to no socket.
const NO_SLOT: u32 = u32::MAX;

/// An unconnected TCP socket for `addr`'s family: close-on-exec, blocking, without Nagle's delay.
///
/// # Errors
/// What `socket` or `setsockopt` says.
pub fn tcp_socket(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: socket(2) touches no memory of ours.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = std::net::TcpStream::from(fd);
    socket.set_nodelay(true)?;
    Ok(socket.into())
}

/// io_uring waits for a blocking socket by itself; of a non-blocking one it would return EAGAIN.
pub(super) fn set_blocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor we own.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    let wanted = flags & !libc::O_NONBLOCK;
    // SAFETY: as above.
    let code = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted) };
    if flags < 0 || code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Reactor {
    pub(super) fn start_accept(&mut self, token: u64, id: SockId) {
        if let Some(index) = self.admit_sock(token, SockOp::Accept, id, ReturnedBuf::None) {
            self.issue_sock(index, SockOp::Accept);
        }
    }

    pub(super) fn start_connect(&mut self, token: u64, id: SockId, addr: SocketAddr) {
        if let Some(index) = self.admit_sock(token, SockOp::Connect, id, ReturnedBuf::None) {
            self.flights.get_mut(index).set_address(addr);
            self.issue_sock(index, SockOp::Connect);
        }
    }

    pub(super) fn start_recv(&mut self, token: u64, id: SockId, buf: BufMut, range: Range<usize>) {
        if range.is_empty() || range.end > buf.len() {
            let rule = OpError::Invalid("the range to receive into is empty or outside the buffer");
            return self.refuse(token, rule, ReturnedBuf::Mut(buf));
        }
        let Some(index) = self.admit_sock(token, SockOp::Recv, id, ReturnedBuf::Mut(buf)) else {
            return;
        };
        self.flights.get_mut(index).dest_range = range;
        let recvs = &mut self.slots.sock_in_flight(id.index).recvs;
        recvs.push_back(index);
        if recvs.len() == 1 {
            self.issue_sock(index, SockOp::Recv);
        }
    }

    pub(super) fn start_send(&mut self, token: u64, id: SockId, bufs: Vec<Buf>, skip: usize) {
        let total: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        let len = total.saturating_sub(skip as u64);
        if len == 0 || len > u64::from(u32::MAX) {
            let rule = OpError::Invalid("nothing to send, or more than 4 GiB at once");
            return self.refuse(token, rule, ReturnedBuf::Many(bufs));
        }
        let Some(index) = self.admit_sock(token, SockOp::Send, id, ReturnedBuf::Many(bufs)) else {
            return;
        };
        let flight = self.flights.get_mut(index);
        flight.offset = skip as u64;
        flight.len = len;
        let sends = &mut self.slots.sock_in_flight(id.index).sends;
        sends.push_back(index);
        if sends.len() == 1 {
            self.issue_sock(index, SockOp::Send);
        }
    }

    pub(super) fn start_poll_in(&mut self, token: u64, fd: RawFd) {
        let index = self
            .flights
            .take(token, Kind::Sock(SockOp::PollIn), NO_SLOT);
        self.flights.get_mut(index).poll_fd = fd;
        self.issue_sock(index, SockOp::PollIn);
    }

    fn admit_sock(&mut self, token: u64, op: SockOp, id: SockId, buf: ReturnedBuf) -> Option<u32> {
        let Some(sock) = self.slots.sock_of(id.index, id.generation) else {
            self.refuse(token, OpError::Removed, buf);
            return None;
        };
        if let (SockOp::Send, Some(error)) = (op, sock.send_error) {
            self.refuse(token, error, buf);
            return None;
        }
        let index = self.flights.take(token, Kind::Sock(op), id.index);
        self.slots.enter(id.index);
        let flight = self.flights.get_mut(index);
        match buf {
            ReturnedBuf::Mut(buf) => flight.dest = Some(buf),
            ReturnedBuf::Many(bufs) => flight.many = bufs,
            ReturnedBuf::One(_) | ReturnedBuf::Foreign(_) | ReturnedBuf::None => {}
        }
        Some(index)
    }

    fn refuse(&mut self, token: u64, error: OpError, buf: ReturnedBuf) {
        self.ready.push(Completion {
            token,
            result: Err(error),
            buf,
            accepted: None,
        });
    }

    /// Hands an operation, or the rest of one, to the kernel.
    fn issue_sock(&mut self, index: u32, op: SockOp) {
        let flight = self.flights.get_mut(index);
        let target = match op {
            SockOp::PollIn => Target::Fd(flight.poll_fd),
            _ => self.slots.sock_in_flight(flight.slot).target,
        };
        let (fd, flags) = target.parts();
        let entry = match op {
            SockOp::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            SockOp::Connect => {
                let (address, len) = flight.address();
                opcode::Connect::new(fd, address, len).build()
            }
            SockOp::Recv => {
                let range = flight.dest_range.clone();
                let dest = flight.dest.as_mut().expect("a receive holds its buffer");
                let target = &mut dest[range];
                let len = clipped(&mut flight.clip, target.len() as u64);
                opcode::Recv::new(fd, target.as_mut_ptr(), len).build()
            }
            SockOp::Send => {
                let left = flight.len - flight.done;
                let send_flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                let skip = flight.position();
                match flight.gather(skip, left) {
                    [only] => {
                        let len = clipped(&mut 0, only.iov_len as u64);
                        opcode::Send::new(fd, only.iov_base.cast_const().cast(), len)
                            .flags(send_flags)
                            .build()
                    }
                    _ => opcode::SendMsg::new(fd, flight.message())
                        .flags(send_flags as u32)
                        .build(),
                }
            }
            SockOp::PollIn => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
        };
        self.hand_over(index, entry.flags(flags));
    }

    /// The kernel has finished an operation, or part of a send.
    pub(super) fn sock_step_done(&mut self, index: u32, op: SockOp, result: i32) {
        let flight = self.flights.get_mut(index);
        if result < 0 {
            let errno = -result;
            let transient = matches!(errno, libc::EINTR | libc::EAGAIN) && op != SockOp::Connect;
            if transient && !flight.cancelled && flight.retries < RETRIES_MAX {
                flight.retries += 1;
                return self.issue_sock(index, op);
            }
            let ended = errno == libc::ECANCELED || (transient && flight.cancelled);
            let error = if ended {
                OpError::Cancelled
            } else {
                OpError::Socket { op, errno }
            };
            return self.sock_done(index, op, Err(error));
        }
        flight.retries = 0;
        match op {
            SockOp::Accept => {
                // SAFETY: the kernel just opened this descriptor for us.
                self.accepted = Some(unsafe { OwnedFd::from_raw_fd(result) });
                self.sock_done(index, op, Ok(0));
            }
            SockOp::Connect => self.sock_done(index, op, Ok(0)),
            SockOp::Recv | SockOp::PollIn => self.sock_done(index, op, Ok(result as u32)),
            SockOp::Send => {
                flight.done += result as u64;
                if flight.done == flight.len {
                    let len = flight.len as u32;
                    self.sock_done(index, op, Ok(len));
                } else if flight.cancelled {
                    self.sock_done(index, op, Err(OpError::Cancelled));
                } else if result == 0 {
                    let errno = libc::EPIPE;
                    self.sock_done(index, op, Err(OpError::Socket { op, errno }));
                } else {
                    self.stats.continued += 1;
                    self.issue_sock(index, op);
                }
            }
        }
    }

    /// Completes an operation the kernel had, and lets the next one of its kind begin.
    fn sock_done(&mut self, index: u32, op: SockOp, result: Result<u32, OpError>) {
        let slot = self.flights.get(index).slot;
        if slot == NO_SLOT {
            return self.finish(index, result);
        }
        let sock = self.slots.sock_in_flight(slot);
        let queue = match op {
            SockOp::Send => &mut sock.sends,
            SockOp::Recv => &mut sock.recvs,
            _ => return self.finish(index, result),
        };
        let first = queue.pop_front();
        assert!(
            first == Some(index),
            "the kernel holds the first of a socket's queue"
        );
        if op == SockOp::Send
            && let Err(error) = result
        {
            sock.send_error = Some(error);
            // None of them may follow a message that was cut short.
            let stranded = std::mem::take(&mut sock.sends);
            self.finish(index, Err(error));
            for later in stranded {
                self.finish(later, Err(error));
            }
            return;
        }
        let next = queue.front().copied();
        self.finish(index, result);
        if let Some(next) = next {
            self.issue_sock(next, op);
        }
    }

    /// Ends an operation on a socket or a poll early.
    pub(super) fn cancel_flight(&mut self, index: u32) {
        let flight = self.flights.get_mut(index);
        flight.cancelled = true;
        if flight.in_kernel {
            let user_data = self.flights.user_data(index);
            return self.ring.cancel(user_data);
        }
        let sock = self.slots.sock_in_flight(flight.slot);
        sock.sends.retain(|&waiting| waiting != index);
        sock.recvs.retain(|&waiting| waiting != index);
        self.finish(index, Err(OpError::Cancelled));
    }
}
