//! Where the time from RELEASE to the first frame goes: the same order, asked for in other ways, one after the other.
//!
//! ```text
//!   begun ── send(2) ── returned ── answer read        the frames leave on a kernel thread of the same processor,
//!                                                      which may have to wait until this one sleeps
//! ```

use super::Figures;
use super::delay::{LAST_FRAMES, PAUSE, part, wires};
use super::site::{Outcome, Site};
use super::wire::{frame, now_ns};
use netbuf::install::ifb_name;
use netbuf::netlink::request::{PlugAction, change_plug};
use netbuf::netlink::{Netlink, wire::Message};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// How RELEASE_ONE is asked for.
#[derive(Debug, Clone, Copy)]
struct Manner {
    name: &'static str,
    /// The kernel shall say that it is done; else it says only what went wrong.
    answer: bool,
    /// The processor is offered to whoever waits, before the answer is read.
    yields: bool,
    frames: usize,
}

const MANNERS: [Manner; 6] = [
    manner("answer", true, false, 32),
    manner("answer-yield", true, true, 32),
    manner("silent", false, false, 32),
    manner("silent-yield", false, true, 32),
    manner("answer-1", true, false, 1),
    manner("answer-yield-1", true, true, 1),
];

const fn manner(name: &'static str, answer: bool, yields: bool, frames: usize) -> Manner {
    Manner {
        name,
        answer,
        yields,
        frames,
    }
}

/// A netlink socket without anything around it.
struct Bare(OwnedFd);

impl Bare {
    fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the descriptor is nobody else's.
        unsafe {
            let raw = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
            match raw {
                0.. => Ok(Self(OwnedFd::from_raw_fd(raw))),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    fn send(&self, message: Message, answer: bool) -> io::Result<()> {
        let mut bytes = message.finish(1);
        // Flags REQUEST and ACK, or REQUEST alone.
        bytes[6] = if answer { 5 } else { 1 };
        // SAFETY: pointer and length are those of `bytes`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// True if there was one.
    fn answer(&self) -> bool {
        let mut bytes = [0u8; 4096];
        let (at, length) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: pointer and length are those of `bytes`.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), at, length, libc::MSG_DONTWAIT) };
        got >= 0
    }
}

#[derive(Default)]
struct Times {
    sent: Vec<u64>,
    answered: Vec<u64>,
    first: Vec<u64>,
    last: Vec<u64>,
}

/// In microseconds since before the order: `send` is back, the answer is read, the first and the last frame are there.
pub(crate) fn release(site: &mut Site, epochs: u64) -> Outcome<Vec<(&'static str, Figures)>> {
    let (guest, witness) = wires(site)?;
    let mut netlink = Netlink::open()?;
    let vif = netlink.link("g1")?.ok_or("no g1")?;
    let ifb = netlink.link(&ifb_name(vif.index))?.ok_or("no IFB")?.index;
    let bare = Bare::open()?;
    let order = |action, answer| bare.send(change_plug(ifb, action, 0), answer);
    order(PlugAction::Buffer, true)?;
    let (mut frame, mut times) = (frame(60), BTreeMap::<&str, Times>::new());
    let mut begun_at = BTreeMap::new();
    while bare.answer() {}
    for number in 0..epochs * MANNERS.len() as u64 {
        let manner = MANNERS[number as usize % MANNERS.len()];
        guest.send_many(&mut frame, number, manner.frames);
        std::thread::sleep(PAUSE);
        order(PlugAction::Buffer, true)?;
        while bare.answer() {}
        let begun = now_ns();
        order(PlugAction::ReleaseOne, manner.answer)?;
        let sent = now_ns();
        if manner.yields {
            std::thread::yield_now();
        }
        if bare.answer() != manner.answer {
            return Err("an answer that was not asked for, or none".into());
        }
        let of = times.entry(manner.name).or_default();
        of.answered.push(now_ns() - begun);
        of.sent.push(sent - begun);
        begun_at.insert(number, begun);
        std::thread::sleep(PAUSE);
    }
    std::thread::sleep(LAST_FRAMES);
    let mut ends = BTreeMap::<u64, (u64, u64)>::new();
    for seen in witness.seen() {
        let took = seen.came_ns.saturating_sub(begun_at[&seen.number]);
        let (first, last) = ends.entry(seen.number).or_insert((took, took));
        (*first, *last) = ((*first).min(took), (*last).max(took));
    }
    for (number, (first, last)) in ends {
        let manner = MANNERS[number as usize % MANNERS.len()];
        let of = times.entry(manner.name).or_default();
        of.first.push(first);
        of.last.push(last);
    }
    MANNERS
        .iter()
        .map(|manner| told(manner.name, &mut times))
        .collect()
}

fn told(name: &'static str, times: &mut BTreeMap<&str, Times>) -> Outcome<(&'static str, Figures)> {
    let of = times.get_mut(name).ok_or("a manner without a time")?;
    let mut figures = Vec::new();
    for (name, all) in [
        ("sent_us", &mut of.sent),
        ("answered_us", &mut of.answered),
        ("first_us", &mut of.first),
        ("last_us", &mut of.last),
    ] {
        all.sort_unstable();
        figures.push((name, part(all, 0.5)?));
    }
    figures.push(("first_p99_us", part(&of.first, 0.99)?));
    Ok((name, figures))
}
