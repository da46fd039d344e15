//! A wake-up that fits into poll, from any thread and from signal handlers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd: readable from [`Waker::wake`] until [`Waker::drain`].
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A waker that is not readable yet.
    ///
    /// # Errors
    /// The kernel's, when file descriptors run out.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Makes it readable. Async-signal-safe: one write(2), nothing else.
    pub fn wake(&self) {
        // Any number but all ones will do, so the byte order of the host does not matter. The only
        // failure is a counter that is already at its top: then it is readable anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_le_bytes());
    }

    /// Makes it unreadable; true if it was readable.
    pub fn drain(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
