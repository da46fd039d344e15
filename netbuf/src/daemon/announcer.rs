//! Frames that tell where a guest now is: sent at once and again a few times, since the first may be lost
//! while a port learns or a switch moves.

use crate::announce::{self, Mac, Vlan};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// After the request.
pub(super) const AT_MS: [u64; 5] = [0, 50, 150, 350, 750];
/// Announcements of all guests at a time; more are refused.
const PENDING_MAX: usize = 1024;

/// What is to be said on one device.
#[derive(Debug, Clone)]
pub(super) struct Announcement {
    pub(super) guest: String,
    /// The guest's device, by index.
    pub(super) interface: u32,
    /// The device on which it is said: the bridge, or the relay's end of the veth pair.
    pub(super) on: u32,
    pub(super) frames: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Pending {
    what: Announcement,
    begun: Instant,
    rounds: usize,
}

#[derive(Debug)]
pub(super) struct Announcer {
    socket: OwnedFd,
    pending: Vec<Pending>,
}

impl Announcer {
    pub(super) fn new() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers. With protocol 0 it receives nothing.
        let raw = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: just made, and nobody else has it.
            socket: unsafe { OwnedFd::from_raw_fd(raw) },
            pending: Vec::new(),
        })
    }

    /// Begins anew for the guest's interface; the first round goes at the next [`Self::run`].
    pub(super) fn begin(&mut self, what: Announcement) -> Result<(), String> {
        if self.pending.len() >= PENDING_MAX {
            return Err(format!(
                "{PENDING_MAX} announcements are on their way; try again in a second"
            ));
        }
        self.pending.push(Pending {
            what,
            begun: Instant::now(),
            rounds: 0,
        });
        Ok(())
    }

    /// Nothing more is said for this guest, or for one of its interfaces; how many rounds are left out.
    pub(super) fn stop(&mut self, guest: &str, interface: Option<u32>) -> u64 {
        let before = self.rounds_left(guest);
        self.pending.retain(|pending| {
            let of = interface.is_none_or(|index| index == pending.what.interface);
            pending.what.guest != guest || !of
        });
        before - self.rounds_left(guest)
    }

    pub(super) fn rounds_left(&self, guest: &str) -> u64 {
        let of = self.pending.iter().filter(|p| p.what.guest == guest);
        of.map(|pending| (AT_MS.len() - pending.rounds) as u64)
            .sum()
    }

    /// How long until the next round.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let due = |p: &Pending| {
            let at = p.begun + Duration::from_millis(AT_MS[p.rounds]);
            at.saturating_duration_since(now)
        };
        self.pending.iter().map(due).min()
    }

    /// Sends what is due. A device that takes nothing is said once and passed over.
    pub(super) fn run(&mut self, now: Instant) {
        for pending in &mut self.pending {
            let at = pending.begun + Duration::from_millis(AT_MS[pending.rounds]);
            if at > now {
                continue;
            }
            for frame in &pending.what.frames {
                if let Err(error) = send(&self.socket, pending.what.on, frame) {
                    let guest = &pending.what.guest;
                    tracing::warn!("{guest}: an announcement was not sent: {error}");
                    break;
                }
            }
            pending.rounds += 1;
        }
        self.pending.retain(|pending| pending.rounds < AT_MS.len());
    }
}

fn send(socket: &OwnedFd, index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
    address.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("an address is small");
    // SAFETY: frame and address live through the call, with their lengths.
    let sent = unsafe {
        let (from, to) = (frame.as_ptr().cast(), std::ptr::from_ref(&address).cast());
        libc::sendto(socket.as_raw_fd(), from, frame.len(), 0, to, length)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Six pairs of hexadecimal digits with colons; no group address, and not nothing.
pub(super) fn parse_mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("MAC {text:.40?} is not usable; type it as 02:00:00:aa:bb:cc");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(wrong());
    }
    Ok(Mac(mac))
}

/// Everything there is to say of a station.
pub(super) fn frames(
    mac: Mac,
    addresses: &[String],
    vlan: Option<u16>,
) -> Result<Vec<Vec<u8>>, String> {
    let (mut ipv4, mut ipv6) = (Vec::<Ipv4Addr>::new(), Vec::<Ipv6Addr>::new());
    for text in addresses {
        match text.parse() {
            Ok(IpAddr::V4(address)) => ipv4.push(address),
            Ok(IpAddr::V6(address)) => ipv6.push(address),
            Err(_) => {
                return Err(format!(
                    "address {text:.40?} is none; type it as 192.0.2.7 or 2001:db8::7"
                ));
            }
        }
    }
    let vlan = match vlan {
        None => None,
        Some(id) => Some(Vlan::new(id).ok_or(format!("VLAN {id} is none; type 1 to 4094"))?),
    };
    Ok(announce::all(mac, &ipv4, &ipv6, vlan))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A MAC that is read wrong moves another guest's traffic here.
    #[test]
    fn stations_are_read_whole_or_not_at_all() {
        assert_eq!(
            parse_mac("02:00:00:aA:bb:cc"),
            Ok(Mac([2, 0, 0, 0xaa, 0xbb, 0xcc]))
        );
        for bad in [
            "",
            "02:00:00:aa:bb",
            "02:00:00:aa:bb:cc:dd",
            "2:0:0:a:b:c",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "02-00-00-aa-bb-cc",
            "+2:00:00:aa:bb:cc",
            "01:00:5e:00:00:01",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let all = ["192.0.2.7".to_owned(), "2001:db8::7".to_owned()];
        assert_eq!(frames(mac, &all, Some(7)).unwrap().len(), 4);
        assert!(frames(mac, &["192.0.2".to_owned()], None).is_err());
        assert!(frames(mac, &[], Some(4095)).is_err());
    }
}
