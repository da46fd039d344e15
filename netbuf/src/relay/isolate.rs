//! An interface on which the host's own stack neither answers, forwards nor speaks.
//!
//! A packet socket gets a copy; the frame itself goes on into the host's stack. There it could be answered
//! (ARP, ICMP), forwarded past the relay (`ip_forward` of a router or a container host), or taken in by an
//! address of another interface. [`isolate`] sets, and [`leaks`] finds missing:
//!
//! - the interface is no bridge port and has no other master: not set, only found;
//! - no IPv4 address: not taken away, only found, since somebody gave it;
//! - ARP off (`IFF_NOARP`), `arp_ignore` 8, `proxy_arp` 0: no answer for anybody's address;
//! - `disable_ipv6` 1: no address, no router or neighbour messages, and IPv6 frames are dropped on receipt;
//! - `forwarding` 0, `rp_filter` 1, `accept_local` 0, `route_localnet` 0: IPv4 frames are not forwarded, and
//!   those for an address of another interface fail the check of their source, which has no route here.
//!
//! What this leaves: a frame from 0.0.0.0 to a broadcast or multicast address reaches listeners on this host
//! (a DHCP server on all interfaces, for one). The wall of [`crate::hold`] at the ingress stops that too;
//! packet sockets see a frame before it.
//!
//! Files of `/proc/sys/net` and the ioctls are those of the calling thread's network namespace.

use super::port::{interface_index, request};
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SETTINGS: &[(&str, &str, &str)] = &[
    ("ipv6", "disable_ipv6", "1"),
    ("ipv4", "forwarding", "0"),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "accept_local", "0"),
    ("ipv4", "route_localnet", "0"),
    ("ipv4", "proxy_arp", "0"),
    ("ipv4", "arp_ignore", "8"),
];

fn path(family: &str, interface: &str, name: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{interface}/{name}")
}

fn control() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn flags(socket: &OwnedFd, interface: &str) -> io::Result<libc::c_short> {
    let mut asked = request(interface)?;
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of one ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut asked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just filled this member.
    Ok(unsafe { asked.ifr_ifru.ifru_flags })
}

/// How the interface is set now, for [`restore`]: numbers separated by commas, ARP off first.
///
/// # Errors
/// What the kernel says: no such interface.
pub fn settings(interface: &str) -> io::Result<String> {
    let socket = control()?;
    let arp_off = i32::from(flags(&socket, interface)?) & libc::IFF_NOARP != 0;
    let mut text = u8::from(arp_off).to_string();
    for (family, name, _) in SETTINGS {
        text.push(',');
        match fs::read_to_string(path(family, interface, name)) {
            Ok(value) => text.push_str(value.trim()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

/// Sets it as [`settings`] found it; what is not such a text is not looked at.
///
/// # Errors
/// What the kernel says: no such interface, no permission.
pub fn restore(interface: &str, settings: &str) -> io::Result<()> {
    let values: Vec<&str> = settings.split(',').collect();
    if values.len() != SETTINGS.len() + 1 {
        return Ok(());
    }
    if values[0] == "0" {
        let socket = control()?;
        let mut wanted = request(interface)?;
        wanted.ifr_ifru.ifru_flags =
            flags(&socket, interface)? & !(libc::IFF_NOARP as libc::c_short);
        // SAFETY: SIOCSIFFLAGS reads one ifreq.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &wanted) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for ((family, name, _), value) in SETTINGS.iter().zip(&values[1..]) {
        if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
            fs::write(path(family, interface, name), value)?;
        }
    }
    Ok(())
}

/// Sets what can be set, then looks: what comes back is left to the caller (see [`leaks`]).
///
/// # Errors
/// What the kernel says: no such interface, no permission.
pub fn isolate(interface: &str) -> io::Result<Vec<String>> {
    let socket = control()?;
    let mut wanted = request(interface)?;
    wanted.ifr_ifru.ifru_flags = flags(&socket, interface)? | libc::IFF_NOARP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for (family, name, value) in SETTINGS {
        match fs::write(path(family, interface, name), value) {
            // A kernel without the family has nothing to be set.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    leaks(interface)
}

/// Every way by which the host's stack could still take part, a line each.
///
/// # Errors
/// What the kernel says: no such interface.
pub fn leaks(interface: &str) -> io::Result<Vec<String>> {
    let socket = control()?;
    let mut found = Vec::new();
    if i32::from(flags(&socket, interface)?) & libc::IFF_NOARP == 0 {
        found.push(format!("{interface} answers ARP"));
    }
    let mut asked = request(interface)?;
    // SAFETY: SIOCGIFADDR reads the name and writes the address of one ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFADDR, &mut asked) } == 0 {
        found.push(format!("{interface} has an IPv4 address"));
    }
    if let Some(master) = master(interface_index(interface)?)? {
        found.push(format!(
            "{interface} is a port of interface number {master}, a bridge or the like"
        ));
    }
    for (family, name, value) in SETTINGS {
        match fs::read_to_string(path(family, interface, name)) {
            Ok(is) if is.trim() == *value => {}
            Ok(is) => found.push(format!(
                "{family} {name} of {interface} is {}, not {value}",
                is.trim()
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[repr(C)]
struct LinkQuestion {
    header: libc::nlmsghdr,
    link: libc::ifinfomsg,
}

/// `IFLA_MASTER` of an interface.
fn master(index: i32) -> io::Result<Option<u32>> {
    // SAFETY: socket(2) touches no memory of ours.
    let fd = unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: both are plain numbers, for which zero is a value.
    let mut question: LinkQuestion = unsafe { std::mem::zeroed() };
    question.header.nlmsg_len = size_of::<LinkQuestion>() as u32;
    question.header.nlmsg_type = libc::RTM_GETLINK;
    question.header.nlmsg_flags = libc::NLM_F_REQUEST as u16;
    question.link.ifi_index = index;
    let from = (&raw const question).cast::<libc::c_void>();
    // SAFETY: send reads the question, which lives through the call.
    if unsafe { libc::send(socket.as_raw_fd(), from, size_of::<LinkQuestion>(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = vec![0u8; 32 * 1024];
    let to = answer.as_mut_ptr().cast::<libc::c_void>();
    // SAFETY: recv writes at most the length of the buffer.
    let got = unsafe { libc::recv(socket.as_raw_fd(), to, answer.len(), 0) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    Ok(master_of(&answer[..got]))
}

fn master_of(answer: &[u8]) -> Option<u32> {
    let mut rest = answer.get(size_of::<LinkQuestion>()..)?;
    loop {
        let length = usize::from(number16(rest.get(..2)?));
        let kind = number16(rest.get(2..4)?);
        let body = rest.get(4..length)?;
        if kind == libc::IFLA_MASTER {
            return Some(number32(body.get(..4)?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[expect(clippy::host_endian_bytes, reason = "netlink is of the host's order")]
fn number16(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

#[expect(clippy::host_endian_bytes, reason = "netlink is of the host's order")]
fn number32(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
