//! A bounded mailbox through which other threads talk to an I/O thread and wake it.
//!
//! Messages go through a standard bounded channel; an eventfd wakes the receiver, who sleeps in
//! [`super::Reactor::poll`] with [`super::Op::PollIn`] on [`Mailbox::fd`]. The eventfd is written
//! only when the receiver has said that it may sleep, and once per sleep:
//!
//! ```text
//!   receiver                                    sender
//!   drain
//!   prepare_wait: asleep = true; look again     send; if asleep.swap(false): write the eventfd
//!   poll (wait only if prepare_wait said so)
//!   woken: asleep = false, empty the eventfd
//! ```
//!
//! Both sides first write their own word and then look at the other's, with sequentially consistent
//! order, so either the receiver sees the message or the sender sees the sleeper.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

/// Why a message was not taken; it comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError<T> {
    #[error("The mailbox is full")]
    Full(T),
    #[error("The receiver is gone")]
    Closed(T),
}

/// Makes a mailbox for at most `limit` undelivered messages.
///
/// # Errors
/// What `eventfd` says.
///
/// # Panics
/// When `limit` is zero.
pub fn mailbox<T>(limit: usize) -> io::Result<(MailSender<T>, Mailbox<T>)> {
    assert!(limit > 0, "a mailbox holds at least one message");
    // SAFETY: eventfd(2) touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let bell = Arc::new(Bell {
        fd,
        asleep: AtomicBool::new(false),
        senders: AtomicUsize::new(1),
    });
    let (sender, receiver) = sync_channel(limit);
    let mailbox = Mailbox {
        receiver,
        bell: Arc::clone(&bell),
        waiting: None,
    };
    Ok((
        MailSender {
            sender: Some(sender),
            bell,
        },
        mailbox,
    ))
}

#[derive(Debug)]
struct Bell {
    fd: OwnedFd,
    /// Whether the receiver may be asleep and nobody has rung yet.
    asleep: AtomicBool,
    senders: AtomicUsize,
}

impl Bell {
    fn ring_if_asleep(&self) {
        // Orders the send before the look, against the store and the look of `prepare_wait`.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::SeqCst) {
            self.ring();
        }
    }

    fn ring(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes from a live integer. It fails only when the counter is full,
        // and then the receiver is being woken anyway.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// The sending end; clone it for every thread.
#[derive(Debug)]
pub struct MailSender<T> {
    /// `None` only while being dropped.
    sender: Option<SyncSender<T>>,
    bell: Arc<Bell>,
}

impl<T> MailSender<T> {
    /// Sends without waiting.
    ///
    /// # Errors
    /// The mailbox is full, or its receiver is gone; the message comes back.
    pub fn try_send(&self, message: T) -> Result<(), MailError<T>> {
        self.channel()
            .try_send(message)
            .map_err(|error| match error {
                TrySendError::Full(message) => MailError::Full(message),
                TrySendError::Disconnected(message) => MailError::Closed(message),
            })?;
        self.bell.ring_if_asleep();
        Ok(())
    }

    /// Sends, and waits while the mailbox is full. Not for I/O threads.
    ///
    /// # Errors
    /// The receiver is gone; the message comes back.
    pub fn send(&self, message: T) -> Result<(), MailError<T>> {
        // A full mailbox is never slept upon: its first message rang, or found the receiver awake.
        self.channel()
            .send(message)
            .map_err(|error| MailError::Closed(error.0))?;
        self.bell.ring_if_asleep();
        Ok(())
    }

    fn channel(&self) -> &SyncSender<T> {
        self.sender.as_ref().expect("taken only by drop")
    }
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> MailSender<T> {
        self.bell.senders.fetch_add(1, Ordering::Relaxed);
        MailSender {
            sender: self.sender.clone(),
            bell: Arc::clone(&self.bell),
        }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        // Disconnect first, then wake: the receiver must find out why.
        drop(self.sender.take());
        if self.bell.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.bell.ring();
        }
    }
}

/// The receiving end, owned by the I/O thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    receiver: Receiver<T>,
    bell: Arc<Bell>,
    /// A message seen by `prepare_wait`.
    waiting: Option<T>,
}

impl<T> Mailbox<T> {
    /// The next message, without waiting.
    ///
    /// # Errors
    /// `Empty`, or `Disconnected` when all senders are gone and everything was received.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        match self.waiting.take() {
            Some(message) => Ok(message),
            None => self.receiver.try_recv(),
        }
    }

    /// Announces that the receiver is about to sleep. True: it may, and the next message will make
    /// [`Mailbox::fd`] readable. False: there is a message (or the senders are gone); do not sleep.
    pub fn prepare_wait(&mut self) -> bool {
        if self.waiting.is_some() {
            return false;
        }
        self.bell.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        match self.receiver.try_recv() {
            Err(TryRecvError::Empty) => true,
            Ok(message) => {
                self.waiting = Some(message);
                self.bell.asleep.store(false, Ordering::SeqCst);
                false
            }
            Err(TryRecvError::Disconnected) => {
                self.bell.asleep.store(false, Ordering::SeqCst);
                false
            }
        }
    }

    /// To be called after every sleep: says that the receiver is awake and, if `rung` (the poll on
    /// [`Mailbox::fd`] has completed), quiets the eventfd before it is polled again.
    pub fn woken(&mut self, rung: bool) {
        self.bell.asleep.store(false, Ordering::SeqCst);
        if rung {
            let mut count = 0u64;
            // SAFETY: reads eight bytes into a live integer; the descriptor does not block.
            unsafe { libc::read(self.bell.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        }
    }

    /// The eventfd to poll. It lives as long as the mailbox.
    pub fn fd(&self) -> RawFd {
        self.bell.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Op, Reactor, ReactorConfig};
    use super::*;
    use std::time::Duration;

    fn readable(mailbox: &Mailbox<u64>) -> bool {
        let mut poll = libc::pollfd {
            fd: mailbox.fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live pollfd, no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    /// An eventfd write for every message costs the sender a system call; none at all hangs the
    /// volume.
    #[test]
    fn the_bell_rings_once_per_sleep() {
        let (sender, mut mailbox) = mailbox::<u64>(4).unwrap();
        sender.try_send(1).unwrap();
        assert!(!readable(&mailbox), "nobody said that it sleeps");
        assert!(!mailbox.prepare_wait(), "there is a message");
        assert_eq!(mailbox.try_recv(), Ok(1));
        assert_eq!(mailbox.try_recv(), Err(TryRecvError::Empty));
        assert!(mailbox.prepare_wait());
        sender.try_send(2).unwrap();
        assert!(readable(&mailbox));
        mailbox.woken(true);
        sender.try_send(3).unwrap();
        assert!(!readable(&mailbox), "it is awake");
        assert_eq!((mailbox.try_recv(), mailbox.try_recv()), (Ok(2), Ok(3)));
    }

    /// An unbounded mailbox is memory without a limit; a vanished peer must be noticed on both ends.
    #[test]
    fn full_and_closed_are_told_apart() {
        let (sender, mut mailbox) = mailbox::<u64>(1).unwrap();
        sender.try_send(1).unwrap();
        assert_eq!(sender.try_send(2), Err(MailError::Full(2)));
        let other = sender.clone();
        drop(sender);
        assert_eq!(mailbox.try_recv(), Ok(1));
        assert!(mailbox.prepare_wait());
        drop(other);
        assert!(readable(&mailbox), "the last sender wakes the receiver");
        assert_eq!(mailbox.try_recv(), Err(TryRecvError::Disconnected));
        assert!(!mailbox.prepare_wait());

        let (sender, mailbox) = super::mailbox::<u64>(1).unwrap();
        drop(mailbox);
        assert_eq!(sender.try_send(5), Err(MailError::Closed(5)));
    }

    /// One lost wake-up and the I/O thread sleeps with work waiting.
    #[test]
    fn no_wake_up_is_lost_among_threads() {
        const EACH: u64 = 20_000;
        let (sender, mut mailbox) = mailbox::<u64>(64).unwrap();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..EACH).for_each(|n| sender.send(n).unwrap()))
            })
            .collect();
        drop(sender);
        let mut reactor = Reactor::new(&ReactorConfig {
            entries: 8,
            file_slots: 4,
            pool_bytes: 1 << 16,
            alloc_bytes_max: 4096,
        })
        .unwrap();
        let (mut sum, mut armed, mut out) = (0, false, Vec::new());
        'receive: loop {
            loop {
                match mailbox.try_recv() {
                    Ok(n) => sum += n,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => break 'receive,
                }
            }
            if !armed {
                reactor.submit(1, Op::PollIn { fd: mailbox.fd() });
            }
            let may_sleep = mailbox.prepare_wait();
            // The limit turns a lost wake-up into a failure instead of a hang.
            let limit = Duration::from_secs(20);
            reactor
                .poll(
                    Some(if may_sleep { limit } else { Duration::ZERO }),
                    &mut out,
                )
                .unwrap();
            assert!(!may_sleep || !out.is_empty(), "slept through its messages");
            mailbox.woken(!out.is_empty());
            armed = out.is_empty();
            out.clear();
        }
        assert_eq!(sum, 3 * (EACH * (EACH - 1) / 2));
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}
