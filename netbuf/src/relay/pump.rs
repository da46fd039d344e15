//! The thread that moves frames.
//!
//! One turn: every command that waits, then one batch of frames each of: guest to queue, what may go of the
//! queue to the bridge, bridge to guest. So no direction starves the other, and a command waits for one turn at
//! most. Sockets never block; what a port has no room for is kept in order and tried again.
//!
//! # What a CUT promises
//!
//! Before CUT n is carried out, the guest's ring ([`super::ring`]) is read until it is empty.
//!
//! - *Whatever the guest puts on the wire after the answer belongs to a later epoch than n.* This is what
//!   makes holding safe, and it holds whether the guest is paused or not.
//! - *Every frame that the kernel had handed to the socket before the command came belongs to epoch n or an earlier
//!   one.* With a paused guest that is everything it had sent, as far as its interface hands frames on at
//!   once: a tap does so within the `write` of its owner (without RPS or NAPI on the tap). A veth end, a
//!   netback or a vhost thread may have frames on the way, in a backlog of a processor; they get into the next
//!   epoch: held longer, never shorter.
//! - A guest that is not paused may send faster than it is read. Reading ends after as many frames as the ring
//!   can hold, so more than was there when the command came; [`super::CutDone::emptied`] then says no.
//!
//! # What a RELEASE promises
//!
//! When it is answered, the frames of the epochs up to n may go and the first of them have been offered to the
//! bridge. If that has no room the rest follows by itself, in order and before anything later.
//!
//! When the thread ends, by STOP, with its handle or with the process, what is held is gone and nothing is
//! forwarded any more.

use super::batch::{BATCH_FRAMES, Received, Sender};
use super::handle::{Answer, Command, CutDone, Letter};
use super::port::{End, Port, PortState};
use super::queue::{Amount, EpochQueue, Pushed, QueueError};
use super::ring::Ring;
use super::{RelayStatus, Traffic};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// A queue of the kernel that tells nobody when it has room is tried again after this.
const BUSY_MS: i32 = 1;
/// An interface that is down is looked at this often.
const DOWN_MS: i32 = 50;
pub(super) const COMMANDS_MAX: usize = 64;
const BELL: u64 = 0;
const GUEST: u64 = 1;
const BRIDGE: u64 = 2;

pub(super) fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller has just made the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn watch(epoll: &OwnedFd, how: i32, fd: RawFd, key: u64, events: i32) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: key,
    };
    // SAFETY: epoll_ctl reads one event that lives through the call.
    if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), how, fd, &raw mut event) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A port, and what its socket is watched for.
struct Side {
    port: Port,
    key: u64,
    watched: i32,
    /// How the last write ended.
    wrote: End,
}

impl Side {
    fn new(port: Port, key: u64) -> Self {
        Self {
            port,
            key,
            watched: libc::EPOLLIN,
            wrote: End::More,
        }
    }

    /// Watches for room where the last write found none.
    fn watch(&mut self, epoll: &OwnedFd, read: bool, write: bool) {
        let room = write && self.wrote == End::Again;
        let wanted = if read { libc::EPOLLIN } else { 0 } | if room { libc::EPOLLOUT } else { 0 };
        if wanted != self.watched {
            let done = watch(epoll, libc::EPOLL_CTL_MOD, self.port.fd(), self.key, wanted);
            done.expect("a watched descriptor can be watched for something else");
            self.watched = wanted;
        }
    }

    /// Until when to wait at most, with something left to write or not.
    fn wait_ms(&self, waiting: bool) -> i32 {
        match (self.port.state(), self.wrote) {
            (PortState::Down, _) => DOWN_MS,
            (PortState::Gone, _) => -1,
            (PortState::Up, _) if !waiting => -1,
            (PortState::Up, End::Again) => -1,
            (PortState::Up, End::Busy) => BUSY_MS,
            (PortState::Up, _) => 0,
        }
    }
}

pub(super) struct Pump {
    queue: EpochQueue,
    guest: Side,
    /// What the guest says, but for long frames.
    ring: Ring,
    bridge: Side,
    /// Of the last batch from the bridge: handed to the guest.
    sent_back: usize,
    outbound: Traffic,
    inbound: Traffic,
    begun: Instant,
    turns: u64,
    alarm: bool,
    epoll: OwnedFd,
    inbox: Receiver<Letter>,
    bell: Arc<OwnedFd>,
}

impl Pump {
    pub(super) fn new(
        queue: EpochQueue,
        (guest, ring): (Port, Ring),
        bridge: Port,
        inbox: Receiver<Letter>,
        bell: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        // SAFETY: epoll_create1(2) touches no memory of ours.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        for (fd, key) in [
            (bell.as_raw_fd(), BELL),
            (guest.fd(), GUEST),
            (bridge.fd(), BRIDGE),
        ] {
            watch(&epoll, libc::EPOLL_CTL_ADD, fd, key, libc::EPOLLIN)?;
        }
        Ok(Self {
            queue,
            guest: Side::new(guest, GUEST),
            ring,
            bridge: Side::new(bridge, BRIDGE),
            sent_back: 0,
            outbound: Traffic::default(),
            inbound: Traffic::default(),
            begun: Instant::now(),
            turns: 0,
            alarm: false,
            epoll,
            inbox,
            bell,
        })
    }

    pub(super) fn run(mut self) {
        let mut long = Received::new();
        let mut back = Received::new();
        let mut sender = Sender::new();
        loop {
            self.turns += 1;
            for _ in 0..COMMANDS_MAX {
                let Ok(letter) = self.inbox.try_recv() else {
                    break;
                };
                let stop = matches!(letter.command, Command::Stop);
                let answer = self.obey(letter.command, &mut long, &mut sender);
                // Who asked may have stopped waiting.
                let _gone = letter.reply.try_send(answer);
                if stop {
                    return;
                }
            }
            self.take(&mut long);
            self.forward(&mut sender);
            self.bring_back(&mut back, &mut sender);
            self.tell_alarm();
            self.wait(back.len() > self.sent_back);
        }
    }

    fn obey(
        &mut self,
        command: Command,
        long: &mut Received,
        sender: &mut Sender,
    ) -> Result<Answer, QueueError> {
        match command {
            Command::Cut(epoch) => {
                let emptied = self.drain(long);
                let epoch = self.queue.cut(epoch)?;
                Ok(Answer::Cut(CutDone { epoch, emptied }))
            }
            Command::Release(epoch) => {
                let released = self.queue.release(epoch)?;
                self.bridge.port.look();
                self.forward(sender);
                Ok(Answer::Amount(released))
            }
            Command::Open => {
                let released = self.queue.open();
                self.bridge.port.look();
                self.forward(sender);
                Ok(Answer::Amount(released))
            }
            Command::Hold => {
                self.queue.hold();
                Ok(Answer::Amount(Amount::default()))
            }
            Command::Stop => Ok(Answer::Amount(Amount::default())),
            Command::Status => Ok(Answer::Status(Box::new(self.status()))),
        }
    }

    /// Reads what the guest has said until there is no more, within the bound that the module states.
    fn drain(&mut self, long: &mut Received) -> bool {
        let mut left = self.ring.slots() + BATCH_FRAMES;
        while left > 0 {
            if self.take(long) == End::Again {
                return true;
            }
            left = left.saturating_sub(BATCH_FRAMES);
        }
        false
    }

    /// Guest to queue, one batch.
    fn take(&mut self, long: &mut Received) -> End {
        let now_ns = self.now_ns();
        let (queue, port) = (&mut self.queue, &mut self.guest.port);
        let (read, end) = self.ring.read(port, long, BATCH_FRAMES, |frame| {
            // Drops are counted by the queue.
            let _kept: Pushed = queue.push(frame, now_ns);
        });
        self.outbound.received_frames += read.frames as u64;
        self.outbound.unreadable_frames += read.unreadable;
        self.outbound.socket_drops += read.dropped;
        if read.frames > 0 && self.guest.port.state() == PortState::Down {
            self.guest.port.look();
        }
        end
    }

    /// Queue to bridge, one batch.
    fn forward(&mut self, sender: &mut Sender) {
        if !self.queue.has_ready() || self.bridge.port.state() != PortState::Up {
            return;
        }
        let (sent, end) = sender.send(&mut self.bridge.port, self.queue.ready());
        self.outbound.sent_frames += sent as u64;
        self.queue.consume(sent);
        if matches!(end, End::Refused(_)) {
            self.queue.consume(1);
        }
        count_end(&mut self.outbound, end);
        self.bridge.wrote = end;
    }

    /// Bridge to guest: the rest of the last batch, or the next one.
    fn bring_back(&mut self, back: &mut Received, sender: &mut Sender) {
        if self.sent_back >= back.len() {
            back.receive(&mut self.bridge.port);
            self.sent_back = 0;
            self.inbound.received_frames += back.len() as u64;
            self.inbound.unreadable_frames += back.take_unreadable();
        }
        if back.is_empty() {
            return;
        }
        if self.guest.port.state() != PortState::Up {
            self.inbound.unwanted_frames += (back.len() - self.sent_back) as u64;
            self.sent_back = back.len();
            return;
        }
        let (sent, end) = sender.send(&mut self.guest.port, back.frames(self.sent_back));
        self.sent_back += sent + usize::from(matches!(end, End::Refused(_)));
        self.inbound.sent_frames += sent as u64;
        count_end(&mut self.inbound, end);
        self.guest.wrote = end;
    }

    fn wait(&mut self, back_waits: bool) {
        let out_waits = self.queue.has_ready();
        self.guest.watch(&self.epoll, true, back_waits);
        self.bridge.watch(&self.epoll, !back_waits, out_waits);
        let waits = [
            self.guest.wait_ms(back_waits),
            self.bridge.wait_ms(out_waits),
        ];
        let bounded = waits.into_iter().filter(|wait_ms| *wait_ms >= 0).min();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 3];
        // SAFETY: epoll_wait writes at most three events into our array.
        let got = unsafe {
            let list = events.as_mut_ptr();
            libc::epoll_wait(self.epoll.as_raw_fd(), list, 3, bounded.unwrap_or(-1))
        };
        for event in events.iter().take(usize::try_from(got).unwrap_or(0)) {
            let side = match event.u64 {
                GUEST => &mut self.guest,
                BRIDGE => &mut self.bridge,
                _ => {
                    let mut rung = 0u64;
                    // SAFETY: read(2) writes eight bytes into our number.
                    unsafe { libc::read(self.bell.as_raw_fd(), (&raw mut rung).cast(), 8) };
                    continue;
                }
            };
            // Or it would be told again and again.
            if event.events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0 {
                side.port.look();
            }
        }
        for side in [&mut self.guest, &mut self.bridge] {
            if side.port.state() == PortState::Down {
                side.port.look();
            }
        }
    }

    fn tell_alarm(&mut self) {
        if self.queue.alarm() == self.alarm {
            return;
        }
        let stats = self.queue.stats(self.now_ns());
        self.alarm = stats.alarm;
        let (charged_bytes, limit_bytes) = (stats.charged_bytes, stats.limit_bytes);
        if self.alarm {
            tracing::warn!(charged_bytes, limit_bytes, "Held frames near their limit");
        } else {
            tracing::info!(
                charged_bytes,
                limit_bytes,
                "Held frames are below half of their limit"
            );
        }
    }

    fn status(&mut self) -> RelayStatus {
        self.outbound.socket_drops += self.guest.port.take_drops();
        self.inbound.socket_drops += self.bridge.port.take_drops();
        RelayStatus {
            queue: self.queue.stats(self.now_ns()),
            guest: self.guest.port.state(),
            bridge: self.bridge.port.state(),
            outbound: self.outbound,
            inbound: self.inbound,
            turns: self.turns,
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn count_end(traffic: &mut Traffic, end: End) {
    match end {
        End::Refused(_) => traffic.refused_frames += 1,
        End::Again | End::Busy => traffic.busy += 1,
        End::More | End::Unusable => {}
    }
}
