//! One request, its whole answer. The socket belongs to the network namespace of the thread that opened it.

use super::answer::{Answer, DUMP_INTERRUPTED, Filter, Link, Qdisc, answer};
use super::request;
use super::wire::{Message, Parts, WireError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The kernel's dumps come in parts of at most 32 KiB.
const DATAGRAM_BYTES: usize = 64 * 1024;
const DUMPS_MAX: usize = 8;
/// The kernel answers before `send` returns; this only bounds what should never be waited for.
const PATIENCE_S: i64 = 5;

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel said no; `errno` as in errno(3), `says` in its own words if it has any.
    #[error("{what}: {} ({says})", io::Error::from_raw_os_error(*errno))]
    Refused {
        what: &'static str,
        errno: i32,
        says: String,
    },
    #[error("{what}: an answer that is none")]
    Garbled {
        what: &'static str,
        #[source]
        source: WireError,
    },
    #[error("{what}: interfaces change faster than they can be listed; try again")]
    Unsteady { what: &'static str },
}

impl NetlinkError {
    /// Whether the kernel said no in this way.
    #[must_use]
    pub fn is(&self, wanted: i32) -> bool {
        matches!(self, Self::Refused { errno, .. } if *errno == wanted)
    }
}

#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

fn checked(result: libc::c_int) -> Result<libc::c_int, NetlinkError> {
    if result < 0 {
        return Err(NetlinkError::Socket(io::Error::last_os_error()));
    }
    Ok(result)
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> Result<(), NetlinkError> {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("an option is small");
    // SAFETY: pointer and length are those of `value`, which outlives the call. std has no such call.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    })?;
    Ok(())
}

impl Netlink {
    pub fn open() -> Result<Self, NetlinkError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers. std cannot make netlink sockets.
        let raw = checked(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        // SAFETY: just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let patience = libc::timeval {
            tv_sec: PATIENCE_S,
            tv_usec: 0,
        };
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
        set(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, &1i32)?;
        Ok(Self {
            socket,
            seq: 0,
            buffer: vec![0; DATAGRAM_BYTES],
        })
    }

    /// Sends a request and waits until the kernel has done it.
    pub fn ask(&mut self, what: &'static str, request: Message) -> Result<(), NetlinkError> {
        self.answers(what, request).map(drop)
    }

    /// Links with kind and state.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let answers = self.dump("list links", request::dump_links)?;
        Ok(answers.into_iter().filter_map(as_link).collect())
    }

    /// The link of a name; `None` if there is none.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        self.one_link(request::link_by_name(name))
    }

    /// The link of an index; `None` if there is none.
    pub fn link_of(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.one_link(request::link_by_index(index))
    }

    fn one_link(&mut self, request: Message) -> Result<Option<Link>, NetlinkError> {
        match self.answers("find a link", request) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Queueing disciplines of one link, with their counters.
    pub fn qdiscs(&mut self, index: u32) -> Result<Vec<Qdisc>, NetlinkError> {
        let answers = self.dump("list qdiscs", request::dump_qdiscs)?;
        let of = |answer| match answer {
            Answer::Qdisc(qdisc) if qdisc.index == index => Some(qdisc),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(of).collect())
    }

    /// The root of an IFB of ours, with its counters; `None` if it has none.
    pub fn our_root(&mut self, ifb: u32) -> Result<Option<Qdisc>, NetlinkError> {
        match self.answers("look at the root of the IFB", request::our_root(ifb)) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                Answer::Qdisc(qdisc) if qdisc.index == ifb => Some(qdisc),
                _ => None,
            })),
            // No root, no such device, and a root with another handle.
            Err(error)
                if [libc::ENOENT, libc::ENODEV, libc::EINVAL]
                    .iter()
                    .any(|e| error.is(*e)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Filters on what comes in at a link; none where it has no ingress qdisc.
    pub fn ingress_filters(&mut self, index: u32) -> Result<Vec<Filter>, NetlinkError> {
        let answers = self.dump("list filters", || request::dump_ingress_filters(index))?;
        let of = |answer| match answer {
            // The kernel lists a filter's hash table too, without an action.
            Answer::Filter(filter) if filter.index == index => Some(filter),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(of).collect())
    }

    fn dump(
        &mut self,
        what: &'static str,
        request: impl Fn() -> Message,
    ) -> Result<Vec<Answer>, NetlinkError> {
        for _ in 0..DUMPS_MAX {
            match self.answers(what, request()) {
                Err(NetlinkError::Unsteady { .. }) => {}
                other => return other,
            }
        }
        Err(NetlinkError::Unsteady { what })
    }

    fn answers(
        &mut self,
        what: &'static str,
        request: Message,
    ) -> Result<Vec<Answer>, NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        self.send(&request.finish(self.seq))?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.receive()?;
            for part in Parts::new(&self.buffer[..length]) {
                let garbled = |source| NetlinkError::Garbled { what, source };
                let part = part.map_err(garbled)?;
                // The rest of a request that was given up.
                if part.seq != self.seq {
                    continue;
                }
                interrupted |= part.flags & DUMP_INTERRUPTED != 0;
                match answer(&part).map_err(garbled)? {
                    Answer::Done if interrupted => return Err(NetlinkError::Unsteady { what }),
                    Answer::Done => return Ok(answers),
                    Answer::Failed { errno, says } => {
                        return Err(NetlinkError::Refused { what, errno, says });
                    }
                    other => answers.push(other),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        // SAFETY: pointer and length are those of `bytes`. An unconnected netlink socket sends to the kernel.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(NetlinkError::Socket(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// A datagram of the kernel's into the buffer; its length.
    fn receive(&mut self) -> Result<usize, NetlinkError> {
        loop {
            // SAFETY: zero is a valid sockaddr_nl.
            let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
            let mut from_bytes = libc::socklen_t::try_from(size_of::<libc::sockaddr_nl>())
                .expect("an address is small");
            // SAFETY: both buffers live through the call and their lengths are given.
            let length = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    libc::MSG_TRUNC,
                    std::ptr::from_mut(&mut from).cast(),
                    &raw mut from_bytes,
                )
            };
            let Ok(length) = usize::try_from(length) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(NetlinkError::Socket(error));
            };
            // Other processes can write to us; only the kernel has port 0.
            if from.nl_pid != 0 {
                continue;
            }
            if length > self.buffer.len() {
                let error = io::Error::new(io::ErrorKind::InvalidData, "a datagram was cut short");
                return Err(NetlinkError::Socket(error));
            }
            return Ok(length);
        }
    }
}

fn as_link(answer: Answer) -> Option<Link> {
    match answer {
        Answer::Link(link) => Some(link),
        _ => None,
    }
}
