//! A guest of an unmodified QEMU, driven over its monitor.
//!
//! ```text
//!  running guest ── attach ──► check ──► layout (ram) ──► Saver::choose (state)
//!   every epoch:  Saver::prepare ─► stop, Saver::begin ─► (memory is copied) ─► Saver::finish ─► cont ─► Saver::settle
//!  standby ───────── Standby::start ──────────────── at failover: load ─► cont
//! ```
//!
//! One thread holds a [`Qemu`] and all that is done through it; every call has a limit. Nothing here writes to
//! the guest's memory.
//!
//! Invariants:
//! - A pause that was there before ours is not undone by [`Qemu::cont`].
//! - What is changed at QEMU for the saving of device state is changed back when it is done, so that a migration
//!   of an operator's is never run with settings of ours.
//! - Whoever lets the guest go on in the middle of our pause is noticed ([`Resumed::was_disturbed`]): what was
//!   copied in that pause is no state of any moment.

pub mod check;
mod command;
mod error;
mod event;
mod input;
mod qmp;
pub mod ram;
pub mod spec;
pub mod standby;
pub mod state;
mod ticket;

pub use error::Error;
pub(crate) use error::is_nobody;
pub use event::{EVENTS_MAX, Event};
pub use qmp::{LINE_BYTES_MAX, Qmp};
pub use ticket::Ticket;

use serde_json::{Value, json};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two tries to let a guest go on whose migration is not over yet.
const NOT_YET: Duration = Duration::from_micros(200);

/// Of QEMU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u64,
    /// The second.
    pub minor: u64,
    /// The third.
    pub micro: u64,
}

impl Version {
    fn read(value: &Value) -> Option<Self> {
        let number = |of: &str| value[of].as_u64();
        Some(Self {
            major: number("major")?,
            minor: number("minor")?,
            micro: number("micro")?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// How long QEMU may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To greet, and to answer questions outside of a pause.
    pub ask: Duration,
    /// To pause, to go on, and to save its device state, each.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ask: Duration::from_secs(5),
            pause: Duration::from_secs(2),
        }
    }
}

/// What a pause found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It ran until now; [`Qemu::cont`] lets it go on.
    ByUs,
    /// It stood still before; [`Qemu::cont`] leaves it so.
    Before,
}

/// What became of the end of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    /// Somebody else let the guest run within the pause: what was copied is void.
    pub was_disturbed: bool,
    /// The guest runs now; not so where the pause was not ours.
    pub is_running: bool,
}

/// As `query-status` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its processors run.
    pub is_running: bool,
    /// QEMU's word, such as `running`, `paused`, `shutdown`, `io-error`, `postmigrate`.
    pub word: String,
}

/// A guest.
#[derive(Debug)]
pub struct Qemu {
    qmp: Qmp,
    limits: Limits,
    pid: u32,
    /// Within a pause of ours.
    pause: Option<Stopped>,
    /// Resumptions that were told before it.
    resumes: u64,
}

impl Qemu {
    /// Connects to the monitor of a running QEMU.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub fn attach(path: &Path, limits: Limits) -> Result<Self, Error> {
        let qmp = Qmp::connect(path, limits.ask)?;
        Ok(Self {
            pid: qmp.peer_pid(),
            qmp,
            limits,
            pause: None,
            resumes: 0,
        })
    }

    /// QEMU's process: whoever made the monitor's socket, unless [`Qemu::set_pid`] said otherwise.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where another process (libvirt) made the socket and handed it to QEMU.
    pub fn set_pid(&mut self, pid: u32) {
        self.pid = pid;
    }

    /// Of its greeting.
    #[must_use]
    pub fn version(&self) -> Version {
        self.qmp.version()
    }

    /// As it was attached with.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The monitor, for commands that are not here.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Pauses the guest. An operator who pauses it in the same instant, before the order is carried out, is taken
    /// for us: QEMU tells who paused it by nothing but an event. QEMU ends what the guest has asked of its disks, and flushes them, before it answers.
    ///
    /// # Errors
    /// Of the monitor. After [`Error::Late`] the guest may be paused yet: [`Qemu::cont`] is to follow.
    pub fn stop(&mut self) -> Result<Stopped, Error> {
        Ok(self.stop_and(|_| Ok(()))?.0)
    }

    /// Pauses the guest, and begins something else behind that before it is answered.
    ///
    /// # Errors
    /// As [`Qemu::stop`]; those of what was begun are told apart.
    pub fn stop_and(
        &mut self,
        then: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(Stopped, Result<(), Error>), Error> {
        self.qmp.look()?;
        let (stops, _) = self.qmp.queue().turns();
        // Unless the answer says otherwise: the guest must not be left standing.
        self.pause = Some(Stopped::ByUs);
        let ticket = self.qmp.begin("stop", None, None)?;
        let begun = then(self);
        self.qmp.finish(ticket, self.limits.pause)?;
        let (stops_now, resumes) = self.qmp.queue().turns();
        self.resumes = resumes;
        let stopped = if stops_now > stops {
            self.qmp.queue().take_last(&Event::Stop);
            Stopped::ByUs
        } else {
            Stopped::Before
        };
        self.pause = Some(stopped);
        Ok((stopped, begun))
    }

    /// Ends the pause, unless the guest was paused before it.
    ///
    /// # Errors
    /// Of the monitor. The guest may stand still; [`Qemu::cont`] may be tried again.
    pub fn cont(&mut self) -> Result<Resumed, Error> {
        self.qmp.look()?;
        let (_, resumes) = self.qmp.queue().turns();
        let was_disturbed = resumes > self.resumes;
        if self.pause.is_none() {
            // It came to no order of ours.
            return Ok(Resumed {
                was_disturbed: false,
                is_running: true,
            });
        }
        if self.pause == Some(Stopped::Before) {
            self.pause = None;
            return Ok(Resumed {
                was_disturbed,
                is_running: was_disturbed,
            });
        }
        self.cont_anyway()?;
        Ok(Resumed {
            was_disturbed,
            is_running: true,
        })
    }

    /// Lets the guest run, whoever paused it.
    ///
    /// # Errors
    /// Of the monitor.
    pub fn cont_anyway(&mut self) -> Result<(), Error> {
        let (_, resumes) = self.qmp.queue().turns();
        let until = Instant::now() + self.limits.pause;
        loop {
            match self.qmp.run("cont", None, self.limits.pause) {
                // It calls a migration completed a moment before it is through with it.
                Err(Error::Refused { why, .. })
                    if why.contains("not finalized") && Instant::now() < until =>
                {
                    std::thread::sleep(NOT_YET);
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        self.pause = None;
        if self.qmp.queue().turns().1 > resumes {
            self.qmp.queue().take_last(&Event::Resume);
        }
        Ok(())
    }

    /// # Errors
    /// Of the monitor.
    pub fn status(&mut self) -> Result<Status, Error> {
        let told = self.ask("query-status", None)?;
        Ok(Status {
            is_running: told["running"].as_bool().unwrap_or(false),
            word: told["status"].as_str().unwrap_or("unknown").to_owned(),
        })
    }

    /// Threads of its processors.
    ///
    /// # Errors
    /// Of the monitor.
    pub fn vcpu_threads(&mut self) -> Result<Vec<u64>, Error> {
        let told = self.ask("query-cpus-fast", None)?;
        let all = told.as_array().into_iter().flatten();
        Ok(all.filter_map(|one| one["thread-id"].as_u64()).collect())
    }

    /// The next event, if one comes within `limit`. Our own pauses make none.
    ///
    /// # Errors
    /// QEMU is gone or talks nonsense, and every event before that was read.
    pub fn event(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        self.qmp.event(limit)
    }

    /// Events that nobody read in time.
    #[must_use]
    pub fn events_dropped(&mut self) -> u64 {
        self.qmp.queue().dropped()
    }

    /// Ends QEMU, as an operator's `quit` does.
    ///
    /// # Errors
    /// Of the monitor; that it hangs up is none.
    pub fn quit(&mut self) -> Result<(), Error> {
        match self.ask("quit", None) {
            Ok(_) | Err(Error::Gone(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    pub(super) fn ask(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, Error> {
        self.qmp.run(command, arguments, self.limits.ask)
    }

    /// A property of an object, where it has that.
    pub(super) fn property(&mut self, path: &str, property: &str) -> Result<Option<Value>, Error> {
        match self.ask("qom-get", Some(json!({"path": path, "property": property}))) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Refused { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// What the human monitor prints.
    pub(super) fn told(&mut self, line: &str) -> Result<String, Error> {
        let told = self.ask("human-monitor-command", Some(json!({"command-line": line})))?;
        Ok(told.as_str().unwrap_or_default().to_owned())
    }
}

impl AsFd for Qemu {
    /// Readable when QEMU says something or is gone. Events that were read with an answer wait already:
    /// [`Qemu::event`] is to be called until there is none before this is polled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.qmp.as_fd()
    }
}
