//! The handle of a relay: commands go to its thread through a bounded channel and an eventfd, and each is
//! answered when it has taken effect.

use super::port::{Intake, Port, RECORD_BYTES_MAX};
use super::pump::{COMMANDS_MAX, Pump, owned};
use super::queue::{Amount, EpochQueue, QueueError};
use super::{RelayConfig, RelayError, RelayStatus};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// What CUT has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutDone {
    /// In the epoch that was cut.
    pub epoch: Amount,
    /// The guest's socket was empty; always so with a paused guest.
    pub emptied: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Cut(u64),
    Release(u64),
    Hold,
    Open,
    Status,
    Stop,
}

#[derive(Debug)]
pub(super) enum Answer {
    Cut(CutDone),
    Amount(Amount),
    Status(Box<RelayStatus>),
}

pub(super) struct Letter {
    pub(super) command: Command,
    pub(super) reply: SyncSender<Result<Answer, QueueError>>,
}

/// A running relay. Dropping it stops it.
#[derive(Debug)]
pub struct Relay {
    letters: SyncSender<Letter>,
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    answer_timeout: Duration,
}

impl Relay {
    /// Opens both interfaces in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`RelayError::Port`] and [`RelayError::Start`]; then nothing is left.
    pub fn start(config: &RelayConfig) -> Result<Self, RelayError> {
        let open = |interface: &str, intake| {
            let opened = Port::open_with(interface, config.socket_bytes, intake);
            opened.map_err(|source| RelayError::Port {
                interface: interface.to_owned(),
                source,
            })
        };
        let (guest, ring) = open(&config.guest, Intake::Ring(config.ring_bytes))?;
        let ring = ring.expect("one was asked for");
        let (bridge, _) = open(&config.bridge, Intake::Queue)?;
        // SAFETY: eventfd(2) touches no memory of ours.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let bell = Arc::new(owned(bell).map_err(RelayError::Start)?);
        let (letters, inbox) = sync_channel(COMMANDS_MAX);
        let mut queue = EpochQueue::new(config.held_bytes_max, RECORD_BYTES_MAX, config.epochs_max);
        if config.held {
            queue.hold();
        }
        let pump = Pump::new(queue, (guest, ring), bridge, inbox, Arc::clone(&bell));
        let pump = pump.map_err(RelayError::Start)?;
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || pump.run())
            .map_err(RelayError::Start)?;
        Ok(Self {
            letters,
            bell,
            thread: Some(thread),
            answer_timeout: config.answer_timeout,
        })
    }

    /// See [What a CUT promises](super::pump#what-a-cut-promises).
    ///
    /// # Errors
    /// [`RelayError::Queue`] when the number does not grow or too many epochs are in flight.
    pub fn cut(&self, epoch: u64) -> Result<CutDone, RelayError> {
        match self.ask(Command::Cut(epoch))? {
            Answer::Cut(done) => Ok(done),
            _ => Err(RelayError::Ended),
        }
    }

    /// See [What a RELEASE promises](super::pump#what-a-release-promises).
    ///
    /// # Errors
    /// [`RelayError::Queue`] when the epoch was not cut or a later one was released.
    pub fn release(&self, epoch: u64) -> Result<Amount, RelayError> {
        self.amount(Command::Release(epoch))
    }

    /// Nothing that comes from now on goes without a release.
    ///
    /// # Errors
    /// When the relay does not answer.
    pub fn hold(&self) -> Result<(), RelayError> {
        self.amount(Command::Hold).map(|_| ())
    }

    /// Lets everything go and holds nothing until HOLD or CUT. Whoever says so answers for it.
    ///
    /// # Errors
    /// When the relay does not answer.
    pub fn open(&self) -> Result<Amount, RelayError> {
        self.amount(Command::Open)
    }

    /// # Errors
    /// When the relay does not answer.
    pub fn status(&self) -> Result<RelayStatus, RelayError> {
        match self.ask(Command::Status)? {
            Answer::Status(status) => Ok(*status),
            _ => Err(RelayError::Ended),
        }
    }

    /// Drops what is held and passes nothing any more; answered when the thread has ended.
    pub fn stop(mut self) {
        self.end();
    }

    fn amount(&self, command: Command) -> Result<Amount, RelayError> {
        match self.ask(command)? {
            Answer::Amount(amount) => Ok(amount),
            _ => Err(RelayError::Ended),
        }
    }

    fn ask(&self, command: Command) -> Result<Answer, RelayError> {
        let (reply, answer) = sync_channel(1);
        let sent = self.letters.try_send(Letter { command, reply });
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(RelayError::Unanswered(Duration::ZERO)),
            Err(TrySendError::Disconnected(_)) => return Err(RelayError::Ended),
        }
        let one = 1u64;
        // SAFETY: write(2) reads eight bytes of a number that lives through the call.
        unsafe { libc::write(self.bell.as_raw_fd(), (&raw const one).cast(), 8) };
        match answer.recv_timeout(self.answer_timeout) {
            Ok(answer) => Ok(answer?),
            Err(RecvTimeoutError::Timeout) => Err(RelayError::Unanswered(self.answer_timeout)),
            Err(RecvTimeoutError::Disconnected) => Err(RelayError::Ended),
        }
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        match self.ask(Command::Stop) {
            Ok(_) | Err(RelayError::Ended) => {
                if thread.join().is_err() {
                    tracing::error!("The relay's thread had panicked");
                }
            }
            Err(error) => tracing::error!(%error, "The relay is left to itself"),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end();
    }
}
