//! The way to the standby: one thread that connects, sends, and connects again; one that reads what it answers.
//!
//! ```text
//!  owner ── Job ──► link thread ── frames ──► standby
//!    ▲ ◄── Told ──┘    ▲
//!    └──── Told ───────┴ acks thread ◄─── WHOLE, COMMITTED
//! ```
//! A job is of a session. One that comes after its session has ended goes back unsent; what became of it the owner
//! knows by [`Told::Down`], which comes before any [`Told::Up`] of the next.

use super::guest::Load;
use crate::memory::stream::frames::set_limits;
use crate::memory::stream::{Acked, Counts, Cut, Sender, Settings};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::Hello;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(200);
/// The standby hears of us at least this often.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// How many pieces of the first copy may wait.
const JOBS_MAX: usize = 8;

/// What a sent epoch is named by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    pub(super) epoch: Epoch,
    pub(super) lineage: LineageId,
}

/// What is to be sent.
#[derive(Debug)]
pub(super) enum Job {
    /// A copy begins, under this id.
    StartCopy(u64),
    /// Pages of it, behind one another.
    Slice(u64, Vec<u8>),
    /// A checkpoint.
    Epoch(Named, Load),
    /// The guest is off.
    End(Named),
    /// The guest is to go on at the backup, and why.
    HandOver(String),
    /// The session ends; the next one says this hello.
    Renew(Box<Hello>),
}

/// What the threads say.
#[derive(Debug)]
pub(super) enum Told {
    /// A session; and whether the standby has what this process goes on from.
    Up { session: u64, has_base: bool },
    /// It is over.
    Down { why: String },
    /// The standby's word.
    Acked { session: u64, acked: Acked },
    /// A checkpoint was handed to the kernel; the buffer is back.
    Sent {
        named: Named,
        load: Load,
        counts: Counts,
        took: Duration,
    },
    /// The buffer of one that was not.
    Unsent(Load),
}

/// Of the link.
#[derive(Debug, Clone)]
pub(super) struct LinkSettings {
    /// `HOST:PORT` of the standby.
    pub(super) peer: String,
    /// Of every read and write.
    pub(super) limit: Duration,
    pub(super) sender: Settings,
}

/// The way in.
#[derive(Debug)]
pub(super) struct MemoryLink {
    jobs: SyncSender<(u64, Job)>,
}

impl MemoryLink {
    /// Starts the thread; it ends when this goes.
    ///
    /// # Errors
    /// Of starting it.
    pub(super) fn start(
        settings: LinkSettings,
        hello: Hello,
        told: impl Fn(Told) -> bool + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, todo) = sync_channel(JOBS_MAX);
        let run = move || {
            let mut worker = Worker {
                settings,
                hello,
                session: 0,
                told,
            };
            while worker.session(&todo) {
                thread::sleep(AGAIN);
            }
        };
        thread::Builder::new()
            .name("memory-link".to_owned())
            .spawn(run)?;
        Ok(Self { jobs })
    }

    /// Hands a job over; the job comes back where there is no room for it now.
    ///
    /// # Errors
    /// The job.
    pub(super) fn send(&self, session: u64, job: Job) -> Result<(), Job> {
        self.jobs
            .try_send((session, job))
            .map_err(|error| match error {
                TrySendError::Full((_, job)) | TrySendError::Disconnected((_, job)) => job,
            })
    }
}

struct Worker<F> {
    settings: LinkSettings,
    hello: Hello,
    /// The number of the session, from 1.
    session: u64,
    told: F,
}

/// How a session goes on.
enum Next {
    Same,
    /// The owner wants another.
    Over(String),
    /// The owner has gone.
    End,
}

impl<F: Fn(Told) -> bool + Clone + Send + 'static> Worker<F> {
    fn connect(&self) -> Result<TcpStream, String> {
        let peer = &self.settings.peer;
        let addresses = peer.to_socket_addrs().map_err(|e| format!("{peer}: {e}"))?;
        let mut last = format!("{peer}: no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, self.settings.limit) {
                Ok(stream) => {
                    set_limits(&stream, self.settings.limit).map_err(|e| e.to_string())?;
                    return Ok(stream);
                }
                Err(error) => last = format!("{peer}: {error}"),
            }
        }
        Err(last)
    }

    /// One session, from connecting to its end. False when the owner has gone.
    fn session(&mut self, todo: &Receiver<(u64, Job)>) -> bool {
        self.session += 1;
        let why = match self.serve(todo) {
            Ok(None) => return false,
            Ok(Some(why)) | Err(why) => why,
        };
        if !(self.told)(Told::Down { why }) {
            return false;
        }
        // What was meant for it.
        while let Ok((_, job)) = todo.try_recv() {
            if !self.unsent(job) {
                return false;
            }
        }
        true
    }

    fn unsent(&mut self, job: Job) -> bool {
        match job {
            Job::Epoch(_, load) => (self.told)(Told::Unsent(load)),
            Job::Renew(hello) => {
                self.hello = *hello;
                true
            }
            _ => true,
        }
    }

    fn serve(&mut self, todo: &Receiver<(u64, Job)>) -> Result<Option<String>, String> {
        let stream = self.connect()?;
        let from = stream.try_clone().map_err(|e| e.to_string())?;
        let id = SessionId(random());
        let connected = Sender::connect(from, stream, &self.hello, id, self.settings.sender);
        let (mut sender, acks, welcome) = connected.map_err(|e| e.to_string())?;
        let has_base = welcome.has_base(self.hello.incarnation, self.hello.generation);
        let session = self.session;
        if !(self.told)(Told::Up { session, has_base }) {
            return Ok(None);
        }
        let told = self.told.clone();
        let read = move || acks.run(|acked| told(Told::Acked { session, acked }));
        thread::Builder::new()
            .name("memory-acks".to_owned())
            .spawn(read)
            .map_err(|e| e.to_string())?;
        loop {
            let next = match todo.recv_timeout(HEARTBEAT) {
                Ok((of, job)) if of == session => self.carry_out(&mut sender, job),
                Ok((_, job)) => match self.unsent(job) {
                    true => Next::Same,
                    false => Next::End,
                },
                Err(RecvTimeoutError::Timeout) => match sender.ping(session) {
                    Ok(()) => Next::Same,
                    Err(lost) => Next::Over(lost.to_string()),
                },
                Err(RecvTimeoutError::Disconnected) => Next::End,
            };
            match next {
                Next::Same => {}
                Next::Over(why) => return Ok(Some(why)),
                Next::End => {
                    // The standby hears it, or finds out.
                    let _ = sender.bye("the checkpointer ends");
                    return Ok(None);
                }
            }
        }
    }

    fn carry_out(&mut self, sender: &mut Sender<TcpStream>, job: Job) -> Next {
        let done = match job {
            Job::StartCopy(generation) => {
                self.hello.generation = generation;
                sender.start_copy(generation)
            }
            Job::Slice(first, bytes) => sender.send_copy(first, &bytes),
            Job::Epoch(named, load) => {
                let begun = Instant::now();
                let sent = sender.send_epoch(&Cut {
                    epoch: named.epoch,
                    lineage: named.lineage,
                    pages: load.staging.pages(),
                    bytes: load.staging.bytes(),
                    state: &load.state,
                    kind: self.hello.state_kind,
                });
                let took = begun.elapsed();
                let (told, sent) = match sent {
                    Ok(counts) => {
                        let told = Told::Sent {
                            named,
                            load,
                            counts,
                            took,
                        };
                        (told, Ok(()))
                    }
                    Err(lost) => (Told::Unsent(load), Err(lost)),
                };
                if !(self.told)(told) {
                    return Next::End;
                }
                sent
            }
            Job::End(named) => sender.end_of_guest(named.epoch, named.lineage),
            Job::HandOver(why) => sender.hand_over(&why),
            Job::Renew(hello) => {
                self.hello = *hello;
                return Next::Over("begun anew".to_owned());
            }
        };
        match done {
            Ok(()) => Next::Same,
            Err(lost) => Next::Over(lost.to_string()),
        }
    }
}

/// A random number that is not 0.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers two processes could take one another's copy for theirs.
    getrandom::fill(&mut bytes).expect("the kernel gives random numbers");
    u64::from_le_bytes(bytes).max(1)
}
