//! The daemon: one thread that owns every guest's [`Hold`], woken by requests, links and the clock.
//!
//! ```text
//!   ctl thread ── request, ReplyHandle ──► mailbox + eventfd ─┐
//!   kernel ── links changed ──────────────────────────────────┼─► poll ─► Guests ─► Hold …
//!   SIGTERM ──────────────────────────────────────────────────┘     └─► announcements, limits (100 ms)
//! ```
//! A relay has a thread of its own, so a request that takes long delays no frame.
//!
//! Ending and being killed are the same to a plug: it stays as it is, held what was held. A relay ends with
//! the process, and what it held is gone. Nothing is written to a disk; see [`crate::hold`].

mod announcer;
mod guests;
mod mechanism;
mod requests;
mod rights;

pub use mechanism::{Choice, Chosen, EPOCHS_MAX};

use crate::hold::HoldError;
use crate::netlink::{LinkWatch, Netlink, NetlinkError};
use blkback_proto::ctl::{ErrorCode, EventKind, Request};
use blockrep_host::ctl::{
    BindError, ControlSocket, EventLog, Handler, Limits, NewEvent, PeerCred, ReplyHandle, Server,
    ServerConfig,
};
use blockrep_host::lock::{FileLock, LockError};
use blockrep_host::signals::Shutdown;
use blockrep_host::{Waker, notify};
use guests::Guests;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Name of the default socket, without its directory.
pub const SOCKET: &str = "netbuf.sock";
/// What an interface holds without `--limit`.
pub const LIMIT_BYTES_DEFAULT: u32 = 64 << 20;
/// Below one largest segment the guest would be silent.
pub const LIMIT_BYTES_MIN: u64 = 128 << 10;
/// What the plug is told has 32 bits, and it counts a frame too many before it drops.
pub const LIMIT_BYTES_MAX: u64 = 1 << 31;
/// Requests that wait for the thread; clients have fewer in flight than this together.
const MAILBOX: usize = 256;
/// Between two looks at the limits while something is held; and while nothing is.
const LOOK_HELD: Duration = Duration::from_millis(100);
const LOOK_OPEN: Duration = Duration::from_secs(1);

/// What a daemon is made of.
#[derive(Debug, Clone)]
pub struct Config {
    pub control: PathBuf,
    pub limit_bytes: u32,
    pub choice: Choice,
    /// Guests and the devices that are theirs from the start.
    pub attach: Vec<(String, Vec<String>)>,
}

/// Why the daemon did not start, or ended. One line each.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("another netbuf works in this network namespace: {0}")]
    Lock(#[from] LockError),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("{guest}: {source}")]
    Guest {
        guest: String,
        #[source]
        source: HoldError,
    },
    #[error("this kernel has no plug ({0}); type --mechanism relay, or load the module sch_plug")]
    NoPlug(String),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { what, source }
}

/// The default control socket.
#[must_use]
pub fn control_path() -> PathBuf {
    blockrep_host::ctl::runtime_dir().join(SOCKET)
}

/// Only one of these works in a network namespace: the lock of this one. Held by the daemon, and by
/// `cleanup`.
///
/// # Errors
/// [`LockError::Held`] names who has it.
pub fn namespace_lock(dir: &Path) -> Result<FileLock, LockError> {
    FileLock::lock_file(&namespace_file(dir, "netbuf"))
}

/// The lock file of this network namespace for a purpose. The directory is made where it is the default.
pub(crate) fn namespace_file(dir: &Path, purpose: &str) -> PathBuf {
    // Any other directory is the user's to make.
    if dir == Path::new(blockrep_host::ctl::RUNTIME_DIR) {
        let _ = std::fs::create_dir(dir);
    }
    let namespace = std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |meta| meta.ino());
    dir.join(format!("{purpose}.{namespace}.lock"))
}

struct Mailbox {
    letters: SyncSender<(Request, ReplyHandle)>,
    bell: Arc<Waker>,
}

impl Handler for Mailbox {
    fn handle(&mut self, request: Request, _peer: PeerCred, reply: ReplyHandle) {
        match self.letters.try_send((request, reply)) {
            Ok(()) => self.bell.wake(),
            Err(TrySendError::Full((_, reply)) | TrySendError::Disconnected((_, reply))) => {
                reply.error(
                    ErrorCode::Internal,
                    "the daemon is behind or ending; ask again",
                );
            }
        }
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`]. What was attached stays as it is.
pub fn run(config: &Config) -> Result<(), DaemonError> {
    let shutdown = Shutdown::install().map_err(io_error("signals"))?;
    let socket = ControlSocket::claim(&config.control)?;
    let _lock = namespace_lock(&blockrep_host::ctl::runtime_dir())?;
    rights::drop_others().map_err(io_error("give up rights"))?;
    let log = EventLog::new().map_err(io_error("random numbers"))?;
    let watch = LinkWatch::open()?;
    let chosen = mechanism::choose(&mut Netlink::open()?, config.choice)?;
    let mut guests = Guests::new(chosen, config.limit_bytes, log.clone())?;
    guests.adopt()?;
    for (guest, interfaces) in &config.attach {
        for interface in interfaces {
            let attached = guests.attach(guest, interface, None);
            attached.map_err(|source| DaemonError::Guest {
                guest: guest.clone(),
                source,
            })?;
        }
    }
    let (letters, inbox) = sync_channel(MAILBOX);
    let bell = Arc::new(Waker::new().map_err(io_error("a waker"))?);
    let mailbox = Mailbox {
        letters,
        bell: Arc::clone(&bell),
    };
    let server = ServerConfig {
        path: config.control.clone(),
        daemon: format!("netbuf {}", env!("CARGO_PKG_VERSION")),
        limits: Limits::default(),
    };
    let server = Server::start_on(socket, server, log.clone(), mailbox)?;
    let text = guests.summary();
    log.publish(NewEvent::new("netbuf", EventKind::DaemonStarted, &text, ""));
    notify::ready(&text);
    turn(&mut guests, &inbox, &bell, &watch, &shutdown);
    let text = guests.at_the_end();
    let stopping = NewEvent::new("netbuf", EventKind::DaemonStopping, &text, "start it again");
    log.publish(stopping.asked_for());
    notify::stopping(&text);
    drop(server);
    Ok(())
}

fn turn(
    guests: &mut Guests,
    inbox: &Receiver<(Request, ReplyHandle)>,
    bell: &Waker,
    watch: &LinkWatch,
    shutdown: &Shutdown,
) {
    let mut looked = Instant::now();
    while !shutdown.requested() {
        let look = if guests.all_open() {
            LOOK_OPEN
        } else {
            LOOK_HELD
        };
        let now = Instant::now();
        let until = (looked + look).saturating_duration_since(now);
        let wait = guests
            .announcer
            .wait(now)
            .map_or(until, |next| next.min(until));
        wait_for_any(
            [
                bell.as_fd().as_raw_fd(),
                watch.as_fd().as_raw_fd(),
                shutdown.as_fd().as_raw_fd(),
            ],
            wait,
        );
        bell.drain();
        while let Ok((request, reply)) = inbox.try_recv() {
            guests.answer(&request, reply);
        }
        let links = watch.take();
        if links {
            guests.look();
        }
        if links || looked.elapsed() >= look {
            guests.poll();
            looked = Instant::now();
        }
        guests.announcer.run(Instant::now());
    }
}

fn wait_for_any(descriptors: [i32; 3], wait: Duration) {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up: a wait that ends too early turns the loop once more.
    let wait_ms = i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX);
    // SAFETY: three pollfds, alive through the call. Whatever it answers, the sources are asked.
    unsafe { libc::poll(polled.as_mut_ptr(), 3, wait_ms) };
}
