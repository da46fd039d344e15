//! The device as a VMM sees it: features, configuration, and which rings run.
//!
//! [`vhost_user_backend`] speaks the protocol. It is given no queues to poll (their kicks go to the
//! I/O thread's ring), so its vrings are watched instead: [`Vring`] tells the I/O thread whenever one
//! of them begins or ceases to be ready, enabled and kicked.

use super::{RingMail, Start};
use crate::daemon::thread::Mail;
use crate::frontend::virtio_blk::config::{self, CONFIG_BYTES};
use crate::frontend::virtio_blk::{QUEUE_ENTRIES_MAX, QUEUES_MAX, feature};
use crate::reactor::MailSender;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringMutex, VringStateGuard,
    VringStateMutGuard, VringT,
};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// How long a ring may take to be stopped: its requests may wait for a backup, and the loss policy
/// ends that.
const STOP_MAX: Duration = Duration::from_secs(120);

type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;

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
    fn stop(&self) -> io::Result<()> {
        let Some(watcher) = self.watcher.get() else {
            return Ok(());
        };
        if !self.is_started.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let (answer, next) = sync_channel(1);
        watcher.tell(RingMail::Stop(watcher.ring, answer));
        let next = next
            .recv_timeout(STOP_MAX)
            .map_err(|_| io::Error::other(format!("ring {} could not be stopped", watcher.ring)))?;
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

/// A disk as the protocol's crate drives it.
struct Device {
    space: [u8; CONFIG_BYTES],
    sender: MailSender<Mail>,
    vrings: OnceLock<Vec<Vring>>,
}

impl VhostUserBackend for Device {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES_MAX
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_ENTRIES_MAX)
    }

    fn features(&self) -> u64 {
        feature::ALWAYS
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// The queue keeps it, and goes to the I/O thread whole.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config::read(&self.space, offset, size).unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        let mail = Mail::Ring(RingMail::Memory(memory));
        self.sender
            .send(mail)
            .map_err(|_| io::Error::other("the I/O thread has ended"))
    }

    /// No worker threads: the I/O thread polls the kicks itself.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn stop_vring(&self, ring: u32) -> io::Result<()> {
        let vring = self.vrings.get().and_then(|v| v.get(ring as usize));
        vring.map_or(Ok(()), Vring::stop)
    }

    fn handle_event(
        &self,
        _event: u16,
        _events: EventSet,
        _vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        Ok(())
    }
}

/// The vhost thread of a volume.
pub(in crate::daemon) struct Server {
    thread: JoinHandle<()>,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Stop {
    wanted: AtomicBool,
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Server {
    /// Ends the connection, if there is one, and the thread.
    pub(in crate::daemon) fn stop(self) {
        self.stop.wanted.store(true, Ordering::Release);
        let connection = self.stop.connection.lock();
        if let Some(handle) = connection.ok().and_then(|c| c.clone()) {
            handle.shutdown();
        }
        if self.thread.join().is_err() {
            tracing::error!("the vhost-user thread panicked");
        }
    }
}

/// Serves one VMM after the other on the socket.
pub(in crate::daemon) fn serve(
    listener: OwnedFd,
    index: usize,
    size_bytes: u64,
    sender: MailSender<Mail>,
) -> io::Result<Server> {
    let stop = Arc::new(Stop::default());
    let seen = stop.clone();
    let thread = std::thread::Builder::new()
        .name(format!("vhost-{index}"))
        .spawn(move || {
            let listener = UnixListener::from(listener);
            while !seen.wanted.load(Ordering::Acquire) {
                if is_ready(&listener)
                    && let Err(error) = serve_one(&listener, index, size_bytes, &sender, &seen)
                {
                    tracing::warn!("volume {index}: vhost-user: {error}");
                }
            }
        })?;
    Ok(Server { thread, stop })
}

/// Waits half a second for somebody to connect.
fn is_ready(listener: &UnixListener) -> bool {
    let mut poll = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one live entry.
    unsafe { libc::poll(&raw mut poll, 1, 500) > 0 }
}

fn serve_one(
    listener: &UnixListener,
    index: usize,
    size_bytes: u64,
    sender: &MailSender<Mail>,
    stop: &Stop,
) -> io::Result<()> {
    let other = |error: vhost_user_backend::Error| io::Error::other(error.to_string());
    let queues = u16::try_from(QUEUES_MAX).expect("few");
    let device = Arc::new(Device {
        space: config::space(size_bytes, queues),
        sender: sender.clone(),
        vrings: OnceLock::new(),
    });
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    MADE.take();
    let mut daemon =
        VhostUserDaemon::new(format!("vhost-{index}-io"), device.clone(), memory).map_err(other)?;
    let vrings = MADE.take();
    for (ring, vring) in vrings.iter().enumerate() {
        let sender = sender.clone();
        let fresh = vring.watcher.set(Watcher { ring, sender });
        assert!(fresh.is_ok(), "made just now");
    }
    device.vrings.get_or_init(|| vrings.clone());
    daemon
        .start(&mut Listener::from(listener.try_clone()?))
        .map_err(other)?;
    tracing::info!("volume {index}: a VMM is connected by vhost-user");
    if let Ok(mut connection) = stop.connection.lock() {
        *connection = daemon.shutdown_handle();
    }
    if stop.wanted.load(Ordering::Acquire) {
        daemon.request_shutdown();
    }
    let result = daemon.wait();
    // What was taken is answered into the guest's memory, whether the VMM comes back or not.
    for vring in &vrings {
        vring.stop()?;
    }
    match result {
        Err(vhost_user_backend::Error::HandleRequest(
            vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::PartialMessage,
        ))
        | Ok(()) => {
            tracing::info!("volume {index}: the VMM is gone");
            Ok(())
        }
        Err(error) => Err(other(error)),
    }
}
