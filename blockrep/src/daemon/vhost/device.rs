//! The device as a VMM sees it: features, configuration, and which rings run.
//!
//! [`vhost_user_backend`] speaks the protocol. It is given no queues to poll (their kicks go to the
//! I/O thread's ring), so its vrings are watched instead: [`Vring`] tells the I/O thread whenever one
//! of them begins or ceases to be ready, enabled and kicked.

use super::bitmap::{self, GuestBitmap, LogMemory};
use super::vring::{Memory, Vring};
use super::{Guest, RingMail};
use crate::daemon::thread::Mail;
use crate::frontend::virtio_blk::config::{self, CONFIG_BYTES};
use crate::frontend::virtio_blk::{QUEUE_ENTRIES_MAX, QUEUES_MAX, feature};
use crate::reactor::MailSender;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// A disk as the protocol's crate drives it.
struct Device {
    space: [u8; CONFIG_BYTES],
    sender: MailSender<Mail>,
    vrings: OnceLock<Vec<Vring>>,
    told: Mutex<Told>,
}

/// What the VMM said last of the guest's memory.
#[derive(Default)]
struct Told {
    memory: Option<Arc<Guest>>,
    /// Where it wants to read what is written there.
    log: Option<LogMemory>,
}

impl Told {
    /// The memory lies elsewhere, or there is more or less of it.
    fn moved(&mut self, memory: &Arc<Guest>) -> io::Result<()> {
        // Also when all of the memory goes for a moment.
        self.log = self
            .memory
            .as_deref()
            .and_then(bitmap::log_of)
            .or(self.log.take());
        if let Some(log) = &self.log {
            bitmap::carry_log_over(memory, log)?;
        }
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    fn end_log(&mut self) {
        self.log = None;
        if let Some(memory) = &self.memory {
            bitmap::end_log(memory);
        }
    }
}

impl Device {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, mail: RingMail) {
        if self.sender.send(Mail::Ring(mail)).is_err() {
            tracing::debug!("vhost-user: the I/O thread has ended");
        }
    }
}

impl VhostUserBackend for Device {
    type Bitmap = GuestBitmap;
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

    fn acked_features(&self, features: u64) {
        if features & VhostUserVirtioFeatures::LOG_ALL.bits() == 0 {
            self.told().end_log();
        }
        self.tell(RingMail::Features(features));
    }

    /// The queue keeps it, and goes to the I/O thread whole.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        config::read(&self.space, offset, size).unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        self.told().moved(&memory)?;
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
        told: Mutex::default(),
    });
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    drop(Vring::made(sender));
    let mut daemon =
        VhostUserDaemon::new(format!("vhost-{index}-io"), device.clone(), memory).map_err(other)?;
    let vrings = Vring::made(sender);
    device.vrings.get_or_init(|| vrings.clone());
    daemon
        .start(&mut Listener::from(listener.try_clone()?))
        .map_err(other)?;
    device.tell(RingMail::Connected);
    if let Ok(mut connection) = stop.connection.lock() {
        *connection = daemon.shutdown_handle();
    }
    if stop.wanted.load(Ordering::Acquire) {
        daemon.request_shutdown();
    }
    let result = daemon.wait();
    // What was taken is answered into the guest's memory, whether the VMM comes back or not.
    for vring in &vrings {
        while let Err(error) = vring.stop() {
            tracing::warn!("volume {index}: vhost-user: {error}; no VMM is served until they are");
            if stop.wanted.load(Ordering::Acquire) {
                return Err(error);
            }
        }
    }
    let result = match result {
        Err(vhost_user_backend::Error::HandleRequest(
            vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::PartialMessage,
        ))
        | Ok(()) => Ok(()),
        Err(error) => Err(other(error)),
    };
    let reason = match &result {
        Ok(()) => "the VMM closed the connection".to_owned(),
        Err(error) => format!("the connection of the VMM ended: {error}"),
    };
    device.tell(RingMail::Gone(reason));
    result
}
