//! A packet socket that shares no code with the relay's: it sends, and tells when the kernel got a frame.

use std::io;
use std::mem::{size_of_val, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Of the load's frames.
const KIND: [u8; 2] = [0x88, 0xb5];
const NUMBERS: usize = 14;
const SHORTEST: usize = 60;

pub(crate) struct Wire(OwnedFd);

/// A frame of the load as the witness got it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// What the load has written into it.
    pub(crate) number: u64,
    pub(crate) sent_ns: u64,
    /// By the kernel's clock, which is the load's.
    pub(crate) came_ns: u64,
}

/// Nanoseconds of the clock that the kernel stamps frames with.
pub(crate) fn now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// A frame with room for its numbers.
pub(crate) fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(KIND);
    frame.resize(bytes.max(SHORTEST), 0);
    frame
}

fn stamp(frame: &mut [u8], number: u64, sent_ns: u64) {
    frame[NUMBERS..NUMBERS + 8].copy_from_slice(&number.to_be_bytes());
    frame[NUMBERS + 8..NUMBERS + 16].copy_from_slice(&sent_ns.to_be_bytes());
}

impl Wire {
    /// For sending and, with `hears`, for receiving: a socket that only sends gets no copies.
    pub(crate) fn open(interface: &str, hears: bool) -> io::Result<Self> {
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: plain system calls; every pointer lives through its call.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let wire = Self(OwnedFd::from_raw_fd(fd));
            wire.set(libc::SO_RCVBUFFORCE, 256 << 20)?;
            wire.set(libc::SO_SNDBUFFORCE, 8 << 20)?;
            wire.set(libc::SO_TIMESTAMPNS, hears.into())?;
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = if hears {
                u16::from_be_bytes(KIND).to_be()
            } else {
                0
            };
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let length = size_of_val(&address) as libc::socklen_t;
            match libc::bind(fd, (&raw const address).cast(), length) {
                0 => Ok(wire),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    fn set(&self, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: setsockopt(2) reads one number.
        let done = unsafe {
            let from = (&raw const value).cast();
            libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, from, length)
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends one, with its number and the time in it.
    pub(crate) fn send(&self, frame: &mut [u8], number: u64) -> io::Result<()> {
        stamp(frame, number, now_ns());
        // SAFETY: send(2) reads the frame.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match usize::try_from(sent) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Sends `copies` in one call, with one number and one time in all: how many the kernel took.
    pub(crate) fn send_many(&self, frame: &mut [u8], number: u64, copies: usize) -> usize {
        stamp(frame, number, now_ns());
        // SAFETY: sendmmsg(2) reads `copies` headers and the one frame they all point at.
        let sent = unsafe {
            let mut iovec = libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            };
            let mut header: libc::mmsghdr = zeroed();
            header.msg_hdr.msg_iov = &raw mut iovec;
            header.msg_hdr.msg_iovlen = 1;
            let mut headers = vec![header; copies];
            libc::sendmmsg(
                self.0.as_raw_fd(),
                headers.as_mut_ptr(),
                copies as libc::c_uint,
                0,
            )
        };
        usize::try_from(sent).unwrap_or(0)
    }

    /// All that has come.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn next(&self) -> Option<Seen> {
        let mut bytes = [0u8; 64];
        let mut control = [0u64; 16];
        // SAFETY: recvmsg(2) writes into the two buffers within their lengths; the macros walk what it wrote,
        // and the data of the one message asked for is a timespec.
        unsafe {
            let mut iovec = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            let mut header: libc::msghdr = zeroed();
            header.msg_iov = &raw mut iovec;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&control) as _;
            let got = libc::recvmsg(self.0.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT);
            if got < 30 {
                return None;
            }
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            if message.is_null() || (*message).cmsg_type != libc::SCM_TIMESTAMPNS {
                return None;
            }
            let time = libc::CMSG_DATA(message)
                .cast::<libc::timespec>()
                .read_unaligned();
            let number = |at: usize| {
                let mut eight = [0; 8];
                eight.copy_from_slice(&bytes[at..at + 8]);
                u64::from_be_bytes(eight)
            };
            Some(Seen {
                number: number(NUMBERS),
                sent_ns: number(NUMBERS + 8),
                came_ns: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            })
        }
    }
}
