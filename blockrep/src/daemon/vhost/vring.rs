//! Vrings that tell the I/O thread when they start and stop.

use super::{Guest, RingMail, Start};
use crate::daemon::thread::Mail;
use crate::reactor::MailSender;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestMemoryAtomic;

/// How long a ring may take to be stopped: its requests may wait for a backup, and the loss policy
/// ends that.
const STOP_MAX: Duration = Duration::from_secs(120);

pub(super) type Memory = GuestMemoryAtomic<Guest>;

thread_local! {
    /// The vrings that were made last: the protocol's crate makes them without saying for whom.
    static MADE: RefCell<Vec<Vring>> = const { RefCell::new(Vec::new()) };
}

/// Who is told when a vring changes.
struct Watcher {
    ring: usize,
    sender: MailSender<Mail>,
}

/// A vring whose start and stop the I/O thread is told of.
#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Memory>,
    watcher: Arc<OnceLock<Watcher>>,
    is_started: Arc<AtomicBool>,
}

impl Vring {
    /// The vrings that were made on this thread since the last call; they are told apart from now on.
    pub(super) fn made(sender: &MailSender<Mail>) -> Vec<Self> {
        let vrings = MADE.take();
        for (ring, vring) in vrings.iter().enumerate() {
            let sender = sender.clone();
            let fresh = vring.watcher.set(Watcher { ring, sender });
            assert!(fresh.is_ok(), "made just now");
        }
        vrings
    }

    /// Starts the ring at the I/O thread if it is complete and was not started.
    fn changed(&self) {
        let state = self.inner.get_ref();
        let (queue, kick) = (state.get_queue(), state.get_kick());
        let (Some(watcher), Some(kick)) = (self.watcher.get(), kick) else {
            return;
        };
        if !queue.ready() || !state.is_enabled() || self.is_started.load(Ordering::Acquire) {
            return;
        }
        let Ok(kick) = kick.try_clone() else {
            tracing::error!("vhost-user: ring {}: no descriptors are left", watcher.ring);
            return;
        };
        let call = state.get_call().as_ref().and_then(|c| c.try_clone().ok());
        let start = Start {
            ring: watcher.ring,
            queue: queue.state(),
            kick,
            call,
        };
        self.is_started.store(true, Ordering::Release);
        watcher.tell(RingMail::Start(Box::new(start)));
    }

    /// Stops the ring at the I/O thread, and waits until nothing of it is in flight.
    pub(super) fn stop(&self) -> io::Result<()> {
        let Some(watcher) = self.watcher.get() else {
            return Ok(());
        };
        if !self.is_started.load(Ordering::Acquire) {
            return Ok(());
        }
        let (answer, next) = sync_channel(1);
        watcher.tell(RingMail::Stop(watcher.ring, answer));
        let next = match next.recv_timeout(STOP_MAX) {
            Ok(next) => next,
            // The I/O thread has ended, and the ring with it.
            Err(RecvTimeoutError::Disconnected) => {
                self.is_started.store(false, Ordering::Release);
                return Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {
                let (ring, seconds) = (watcher.ring, STOP_MAX.as_secs());
                let text =
                    format!("ring {ring} has requests that are not answered for {seconds} s");
                return Err(io::Error::other(text));
            }
        };
        self.is_started.store(false, Ordering::Release);
        self.inner.set_queue_next_avail(next);
        Ok(())
    }
}

impl Watcher {
    fn tell(&self, mail: RingMail) {
        if self.sender.send(Mail::Ring(mail)).is_err() {
            tracing::debug!("vhost-user: the I/O thread has ended");
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let vring = Self {
            inner: VringMutex::new(memory, max_queue_size)?,
            watcher: Arc::default(),
            is_started: Arc::default(),
        };
        MADE.with_borrow_mut(|made| made.push(vring.clone()));
        Ok(vring)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, head: u16, length: u32) -> Result<(), QueueError> {
        self.inner.add_used(head, length)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        if !enabled && let Err(error) = self.stop() {
            tracing::error!("vhost-user: {error}");
        }
        self.inner.set_enabled(enabled);
        self.changed();
    }

    fn set_queue_info(&self, table: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.inner.set_queue_info(table, avail, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.inner.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, entries: u16) {
        self.inner.set_queue_size(entries);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        self.changed();
    }

    fn set_kick(&self, file: Option<File>) {
        self.inner.set_kick(file);
        self.changed();
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file);
        let state = self.inner.get_ref();
        let call = state.get_call().as_ref().and_then(|c| c.try_clone().ok());
        drop(state);
        if let Some(watcher) = self.watcher.get()
            && self.is_started.load(Ordering::Acquire)
        {
            watcher.tell(RingMail::Call(watcher.ring, call));
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
