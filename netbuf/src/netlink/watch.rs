//! Tells when links change, or when a qdisc or filter is taken away: a socket in the kernel's groups for
//! them. What changed is then asked for, so that a message that got lost (`ENOBUFS`) costs nothing but a
//! look too many. Every cut and release is a change of a qdisc, and is passed over.

use super::NetlinkError;
use super::request::{RTM_NEWQDISC, RTM_NEWTFILTER};
use super::wire::Parts;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Of the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> Result<Self, NetlinkError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers. std cannot make netlink sockets.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if raw < 0 {
            return Err(NetlinkError::Socket(io::Error::last_os_error()));
        }
        // SAFETY: just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: zero is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = u16::try_from(libc::AF_NETLINK).expect("a small number");
        address.nl_groups = (libc::RTMGRP_LINK | libc::RTMGRP_TC).cast_unsigned();
        let length = libc::socklen_t::try_from(size_of_val(&address)).expect("an address is small");
        // SAFETY: address and length belong together.
        let bound = unsafe { libc::bind(raw, std::ptr::from_ref(&address).cast(), length) };
        if bound < 0 {
            return Err(NetlinkError::Socket(io::Error::last_os_error()));
        }
        Ok(Self(socket))
    }

    /// Whether something changed since this was asked last.
    pub fn take(&self) -> bool {
        let mut some = false;
        let mut part = [0u8; 4096];
        loop {
            // SAFETY: the buffer lives through the call; what is longer is cut off.
            let got = unsafe {
                let to = part.as_mut_ptr().cast();
                libc::recv(self.0.as_raw_fd(), to, part.len(), 0)
            };
            match got {
                0.. => some |= is_news(&part[..got.cast_unsigned().min(part.len())]),
                _ => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::ENOBUFS) => some = true,
                    Some(libc::EINTR) => {}
                    _ => return some,
                },
            }
        }
    }
}

/// Whether a datagram tells of more than a qdisc or filter that is new or changed. One that was cut off does.
fn is_news(datagram: &[u8]) -> bool {
    Parts::new(datagram).any(|part| {
        part.map_or(true, |part| {
            !matches!(part.kind, RTM_NEWQDISC | RTM_NEWTFILTER)
        })
    })
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
