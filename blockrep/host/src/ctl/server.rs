//! The server: one thread that owns listener and clients and sleeps in poll.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blkback_proto::ctl::{ErrorCode, PACKET_BYTES_MAX};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::conn::{Conn, Context, UNREAD_BYTES_MAX};
use super::events::EventLog;
use super::reply::{Handler, Outbox, ReplyHandle};
use super::socket::{BindError, ControlSocket, Listener, peer_cred};
use crate::Waker;

/// How long no connection is taken after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What a server is made of.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where the socket is to be.
    pub path: PathBuf,
    /// Name and version of the daemon, told to every client.
    pub daemon: String,
    /// Bounds of the server.
    pub limits: Limits,
}

/// Bounds of the server that may be set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients at a time; further ones are refused with a message.
    pub clients_max: usize,
    /// From connect to hello; slower clients are closed.
    pub hello_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients_max: 32,
            hello_ms_max: 10_000,
        }
    }
}

impl Limits {
    /// The most memory that answers waiting for their clients take.
    pub fn memory_bytes_max(&self) -> u64 {
        (self.clients_max * UNREAD_BYTES_MAX + PACKET_BYTES_MAX) as u64
    }
}

/// A running control server. Dropping it tries once to hand out the answers that are ready, ends
/// the thread and removes the socket file.
#[derive(Debug)]
pub struct Server {
    outbox: Arc<Outbox>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds the socket and starts the thread, named `ctl`.
    ///
    /// # Errors
    /// [`BindError`], one line for the user.
    pub fn start(
        config: ServerConfig,
        log: EventLog,
        handler: impl Handler + 'static,
    ) -> Result<Self, BindError> {
        let socket = ControlSocket::claim(&config.path)?;
        Self::start_on(socket, config, log, handler)
    }

    /// Starts the thread on a socket that was claimed before.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_on(
        socket: ControlSocket,
        config: ServerConfig,
        log: EventLog,
        handler: impl Handler + 'static,
    ) -> Result<Self, BindError> {
        let ServerConfig {
            path,
            daemon,
            limits,
        } = config;
        let listener = socket.0;
        listener.listen()?;
        let io_error = |what| {
            let path = path.clone();
            move |source| BindError::Io { what, path, source }
        };
        let waker = Arc::new(Waker::new().map_err(io_error("make a waker for"))?);
        log.wake_on_event(&waker);
        log.hints_name(&path);
        let outbox = Arc::new(Outbox::new(waker));
        let worker = Worker {
            listener,
            outbox: Arc::clone(&outbox),
            context: Context { daemon, log },
            handler,
            limits,
            conns: Vec::new(),
            next_token: 0,
            accept_after: None,
            buffer: vec![0; PACKET_BYTES_MAX].into_boxed_slice(),
        };
        let thread = thread::Builder::new()
            .name("ctl".to_owned())
            .spawn(move || worker.run())
            .map_err(io_error("start a thread for"))?;
        Ok(Self {
            outbox,
            path,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.outbox.close();
        if let Some(thread) = self.thread.take() {
            // A handler that panicked has already said so.
            let _ = thread.join();
        }
    }
}

struct Worker<H> {
    listener: Listener,
    outbox: Arc<Outbox>,
    context: Context,
    handler: H,
    limits: Limits,
    conns: Vec<Conn>,
    next_token: u64,
    accept_after: Option<Instant>,
    buffer: Box<[u8]>,
}

impl<H: Handler> Worker<H> {
    fn run(mut self) {
        while !self.outbox.is_closed() {
            let (new_clients, ready) = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(
                        "control socket {} ends: poll failed: {error}",
                        self.listener.path().display()
                    );
                    return;
                }
            };
            self.outbox.waker.drain();
            self.read_clients(&ready);
            if new_clients {
                self.accept();
            }
            self.finish_turn();
        }
        self.finish_turn();
    }

    /// Sleeps until something is to be done; whether clients wait, and what each client is for.
    fn wait(&self) -> io::Result<(bool, Vec<PollFlags>)> {
        let now = Instant::now();
        let accepting = self.accept_after.is_none_or(|moment| now >= moment);
        let listen_for = if accepting {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.outbox.waker.as_fd(), PollFlags::IN),
            PollFd::new(&self.listener, listen_for),
        ];
        fds.extend(
            self.conns
                .iter()
                .map(|conn| PollFd::new(conn, conn.interest())),
        );
        let pause = self.accept_after.filter(|_| !accepting);
        let deadline = self
            .conns
            .iter()
            .filter_map(Conn::deadline)
            .chain(pause)
            .min();
        let timeout = deadline.map(|moment| timespec(moment.saturating_duration_since(now)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let clients = fds[2..].iter().map(PollFd::revents).collect();
        Ok((
            accepting && fds[1].revents().contains(PollFlags::IN),
            clients,
        ))
    }

    fn read_clients(&mut self, ready: &[PollFlags]) {
        for (conn, flags) in self.conns.iter_mut().zip(ready) {
            let incoming = conn.on_ready(*flags, &mut self.buffer, &self.context);
            if let Some(incoming) = incoming {
                let reply = ReplyHandle::new(
                    &self.outbox,
                    conn.token,
                    incoming.request_id,
                    &incoming.request,
                );
                self.handler.handle(incoming.request, conn.peer, reply);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok(Some(fd)) => self.admit(fd),
                Ok(None) => return,
                Err(error) => {
                    // Out of descriptors, most likely. The listener stays readable: without a
                    // pause this thread would spin.
                    tracing::warn!(
                        "control socket {} takes no clients for a moment: {error}",
                        self.listener.path().display()
                    );
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, fd: OwnedFd) {
        let Ok(peer) = peer_cred(&fd) else { return };
        let hello_by = Instant::now() + Duration::from_millis(self.limits.hello_ms_max);
        self.next_token += 1;
        let mut conn = Conn::new(fd, self.next_token, peer, hello_by);
        let own_uid = rustix::process::geteuid().as_raw();
        if peer.uid != own_uid && peer.uid != 0 {
            let message = format!(
                "user {} may not control this daemon: run as user {own_uid} or as root",
                peer.uid
            );
            conn.refuse(ErrorCode::NotPermitted, &message);
        } else if self.conns.len() >= self.limits.clients_max {
            let message = format!(
                "{} clients are connected already, the limit: end one of them and try again",
                self.limits.clients_max
            );
            conn.refuse(ErrorCode::TooManyClients, &message);
        } else {
            self.conns.push(conn);
        }
    }

    /// Hands answers to their clients, sends what can be sent, drops who is over.
    fn finish_turn(&mut self) {
        for answered in self.outbox.take() {
            // A client that has gone takes its answer with it.
            if let Some(conn) = self
                .conns
                .iter_mut()
                .find(|conn| conn.token == answered.client)
            {
                conn.answer(answered.request_id, &answered.response);
            }
        }
        let now = Instant::now();
        for conn in &mut self.conns {
            conn.pump(&self.context.log);
        }
        self.conns.retain(|conn| !conn.is_over(now));
    }
}

fn timespec(duration: Duration) -> Timespec {
    // One millisecond more, so that the deadline has passed when poll returns.
    let duration = duration + Duration::from_millis(1);
    Timespec::try_from(duration).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    })
}
