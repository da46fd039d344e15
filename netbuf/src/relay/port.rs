//! One end of the relay: a raw packet socket bound to an interface.
//!
//! - Frames carry a `virtio_net_hdr` of 10 bytes in front (`PACKET_VNET_HDR`): a checksum that is still to be
//!   made and a segment of up to 64 KiB stay what they are, and the kernel or the card behind the other port does
//!   the rest. The header is kept in front of the frame and is handed over unread, with one exception:
//! - The kernel takes the outer VLAN tag out of every frame it receives. It is put back (`PACKET_AUXDATA`), and what
//!   the header says of places in the frame moves with it.
//! - Frames that this host sends on the interface are not seen (`PACKET_IGNORE_OUTGOING`); that is also what
//!   keeps a relayed frame from coming back.
//! - An interface that is down is a state that ends by itself; one that is gone stays gone, whatever comes
//!   under its name: the socket is bound to the interface, not to the name.
//!
//! Of an interface that is set down or deleted a socket is told; of a lost carrier it is not, and the kernel then
//! takes frames without an error and drops them. So [`Port::look`] is for whoever is about to send what it held.
//!
//! The socket is made without a protocol and bound last, so that no frame of another interface gets in.

use super::ring::Ring;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `struct virtio_net_hdr` in front of every frame.
pub const VNET_BYTES: usize = 10;
/// Destination, source and type.
pub const ETHERNET_BYTES: usize = 14;
/// The longest record: header, and a segment of 64 KiB with Ethernet header and tags.
pub const RECORD_BYTES_MAX: usize = VNET_BYTES + 65_536 + 64;

/// Whether an interface can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    Up,
    /// Set down or without carrier. Nothing comes in, nothing goes out; frames that were read are kept.
    Down,
    /// The interface was deleted, or moved to another network namespace. Final.
    Gone,
}

/// How a read or a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There may be more to read; everything given was written.
    More,
    /// Nothing to read; no room to write until the socket says so.
    Again,
    /// No room in a queue of the kernel that tells nobody when there is.
    Busy,
    /// This one frame is not taken; the error is of its own.
    Refused(i32),
    /// See [`Port::state`].
    Unusable,
}

#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
    name: String,
    state: PortState,
}

/// How a port's frames are received.
#[derive(Debug, Clone, Copy)]
pub(super) enum Intake {
    Queue,
    /// Through a ring of about so many bytes.
    Ring(usize),
}

pub(super) fn request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = interface.as_bytes();
    if bytes.is_empty() || bytes.len() >= request.ifr_name.len() || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(request)
}

pub(super) fn interface_index(interface: &str) -> io::Result<i32> {
    let name = request(interface)?.ifr_name;
    // SAFETY: the name ends with a zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => i32::try_from(index).map_err(io::Error::other),
    }
}

impl Port {
    /// Binds to `interface` of the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says: no such interface, no permission (`CAP_NET_RAW`).
    pub fn open(interface: &str, buffer_bytes: usize) -> io::Result<Self> {
        Self::open_with(interface, buffer_bytes, Intake::Queue).map(|(port, _)| port)
    }

    pub(super) fn open_with(
        interface: &str,
        buffer_bytes: usize,
        intake: Intake,
    ) -> io::Result<(Self, Option<Ring>)> {
        let index = interface_index(interface)?;
        // SAFETY: socket(2) touches no memory of ours.
        let fd = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            libc::socket(libc::AF_PACKET, kind, 0)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: libc::c_int = 1;
        for option in [
            libc::PACKET_VNET_HDR,
            libc::PACKET_AUXDATA,
            libc::PACKET_IGNORE_OUTGOING,
        ] {
            set(fd.as_fd(), libc::SOL_PACKET, option, &on)?;
        }
        let bytes = libc::c_int::try_from(buffer_bytes).unwrap_or(libc::c_int::MAX);
        for (force, ask) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            // Without CAP_NET_ADMIN the host's limit holds.
            set(fd.as_fd(), libc::SOL_SOCKET, force, &bytes)
                .or_else(|_| set(fd.as_fd(), libc::SOL_SOCKET, ask, &bytes))?;
        }
        // Before it is bound: what came before would be in the queue, in front of what is in the ring.
        let ring = match intake {
            Intake::Queue => None,
            Intake::Ring(bytes) => Some(Ring::map(fd.as_fd(), bytes)?),
        };
        // SAFETY: the address is plain numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: bind reads the address, which lives through the call.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the structure is plain numbers, for which zero is a value.
        let mut member: libc::packet_mreq = unsafe { std::mem::zeroed() };
        member.mr_ifindex = index;
        member.mr_type = libc::PACKET_MR_PROMISC as u16;
        set(
            fd.as_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            &member,
        )?;
        let mut port = Self {
            fd,
            name: interface.to_owned(),
            state: PortState::Up,
        };
        port.look();
        Ok((port, ring))
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub fn state(&self) -> PortState {
        self.state
    }

    /// Takes the pending error off the socket and looks how the interface stands.
    pub fn look(&mut self) -> PortState {
        let _pending: io::Result<libc::c_int> = get(&self.fd, libc::SOL_SOCKET, libc::SO_ERROR);
        let now = self.stands();
        if now != self.state {
            let interface = &self.name;
            match now {
                PortState::Up => tracing::info!(interface, "The interface is up again"),
                PortState::Down => tracing::warn!(interface, "The interface is down"),
                PortState::Gone => tracing::error!(interface, "The interface is gone"),
            }
            self.state = now;
        }
        now
    }

    fn stands(&self) -> PortState {
        // SAFETY: the address is plain numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let to = (&raw mut address).cast();
        // SAFETY: getsockname writes at most `length` bytes of the address.
        let named = unsafe { libc::getsockname(self.fd(), to, &raw mut length) };
        // The kernel unbinds a socket (index -1) when its interface is deleted.
        if named < 0 || address.sll_ifindex <= 0 {
            return PortState::Gone;
        }
        // SAFETY: an ifreq is plain numbers, for which zero is a value.
        let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
        asked.ifr_ifru.ifru_ifindex = address.sll_ifindex;
        // SAFETY: both ioctls read and write one ifreq: name of an index, flags of a name.
        let flags = unsafe {
            if libc::ioctl(self.fd(), libc::SIOCGIFNAME, &mut asked) < 0 {
                return PortState::Gone;
            }
            if libc::ioctl(self.fd(), libc::SIOCGIFFLAGS, &mut asked) < 0 {
                return PortState::Gone;
            }
            asked.ifr_ifru.ifru_flags
        };
        // Not running: no carrier, or the kernel's worker has not noticed it yet. Until then a queueing
        // discipline that takes every frame and drops it stands in front of the device.
        let wanted = libc::IFF_UP | libc::IFF_RUNNING;
        if i32::from(flags) & wanted == wanted {
            PortState::Up
        } else {
            PortState::Down
        }
    }

    /// Frames that the kernel dropped since this was asked last, because the socket's buffer was full.
    pub fn take_drops(&mut self) -> u64 {
        let stats: io::Result<libc::tpacket_stats> =
            get(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS);
        stats.map_or(0, |stats| u64::from(stats.tp_drops))
    }

    /// What an error of a read or a write means for it.
    pub(super) fn judge(&mut self, error: i32) -> End {
        match error {
            libc::EAGAIN => End::Again,
            libc::ENOBUFS | libc::ENOMEM => End::Busy,
            libc::ENETDOWN | libc::ENXIO | libc::ENODEV => match self.look() {
                // Up again meanwhile: another try.
                PortState::Up => End::Busy,
                PortState::Down | PortState::Gone => End::Unusable,
            },
            other => End::Refused(other),
        }
    }
}

pub(super) fn set<T>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of_val(value) as libc::socklen_t;
    // SAFETY: setsockopt reads `length` bytes of the value.
    let done = unsafe {
        let from = std::ptr::from_ref(value).cast();
        libc::setsockopt(fd.as_raw_fd(), level, option, from, length)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `T` is a number or a structure of numbers of the kernel.
fn get<T: Copy>(fd: &OwnedFd, level: i32, option: i32) -> io::Result<T> {
    // SAFETY: numbers, for which zero is a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: getsockopt writes at most `length` bytes of the value.
    let done = unsafe {
        let to = (&raw mut value).cast();
        libc::getsockopt(fd.as_raw_fd(), level, option, to, &raw mut length)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}
