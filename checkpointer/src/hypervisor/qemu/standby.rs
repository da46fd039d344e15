//! The QEMU at the backup that waits for the guest's state, and runs it after a failover.
//!
//! It is started when the first epoch is committed, has built its machine, and costs nothing while it waits: its
//! memory is a file that others fill. Loading a state and going on takes milliseconds. A state of another machine is refused
//! by QEMU, which ends with that; so nothing half-loaded ever runs.

use super::spec::{Child, Place, Role, Spec};
use super::state::{capture, framing};
use super::{Error, Event, Limits, Qemu};
use rustix::event::PollFlags;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long a QEMU that hung up may take to end and tell why.
const WORDS_LIMIT: Duration = Duration::from_secs(2);
const NAME: &str = "blockrep-state";

/// A standby.
#[derive(Debug)]
pub struct Standby {
    qemu: Qemu,
    child: Child,
}

/// How long each step of a failover took.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the order to load until the machine had its state.
    pub load: Duration,
    /// From the order to go on until it ran.
    pub cont: Duration,
}

impl Standby {
    /// Starts it; its memory file has to be there.
    ///
    /// # Errors
    /// It cannot be started, or ends: with what it printed.
    pub fn start(spec: &Spec, place: &Place, limits: Limits) -> Result<Self, Error> {
        let mut child = spec.start(Role::Standby, place)?;
        let qemu = child.attach(limits)?;
        let mut standby = Self { qemu, child };
        let on = capture::capabilities(&Value::Bool(true));
        standby.qemu.ask("migrate-set-capabilities", Some(on))?;
        standby.check()?;
        Ok(standby)
    }

    /// That it still waits: to be asked now and then.
    ///
    /// # Errors
    /// It does not, in words.
    pub fn check(&mut self) -> Result<(), Error> {
        let status = match self.qemu.status() {
            Ok(status) => status,
            Err(error) => return Err(self.why(error)),
        };
        if status.word == "inmigrate" {
            return Ok(());
        }
        Err(Error::Unfit(format!(
            "the standby is {}, and not waiting for a state",
            status.word
        )))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its monitor.
    pub fn qemu(&mut self) -> &mut Qemu {
        &mut self.qemu
    }

    /// Loads a state. The memory file must be of the same epoch, and nobody may write to it any more.
    ///
    /// `constant` is [`super::state::Saver::constant`] of the saver that saved `state`.
    ///
    /// # Errors
    /// QEMU does not take it, with what it printed; the standby is then of no use any more.
    pub fn load(&mut self, constant: &[u8], state: &[u8]) -> Result<Duration, Error> {
        let begun = Instant::now();
        let parts = framing::stream(constant, state);
        let parts =
            parts.map_err(|why| Error::Unfit(format!("the state cannot be loaded: {why}")))?;
        match self.load_parts(parts) {
            Ok(()) => Ok(begun.elapsed()),
            Err(error) => Err(self.why(error)),
        }
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// Of the monitor.
    pub fn cont(&mut self) -> Result<Duration, Error> {
        let begun = Instant::now();
        match self.qemu.cont_anyway() {
            Ok(()) => Ok(begun.elapsed()),
            Err(error) => Err(self.why(error)),
        }
    }

    /// Loads and lets run.
    ///
    /// # Errors
    /// As those do.
    pub fn take_over(&mut self, constant: &[u8], state: &[u8]) -> Result<Times, Error> {
        Ok(Times {
            load: self.load(constant, state)?,
            cont: self.cont()?,
        })
    }

    /// The guest's monitor and process, once it runs.
    #[must_use]
    pub fn into_parts(self) -> (Qemu, Child) {
        (self.qemu, self.child)
    }

    fn load_parts(&mut self, parts: [&[u8]; 3]) -> Result<(), Error> {
        let limit = self.qemu.limits().ask;
        let until = Instant::now() + limit;
        let (reader, writer) = capture::wide_pipe()?;
        rustix::io::ioctl_fionbio(&writer, true).map_err(|e| Error::io("a pipe")(e.into()))?;
        let mut writer = File::from(writer);
        let qmp = self.qemu.qmp();
        let name = Some(json!({"fdname": NAME}));
        let named = qmp.begin("getfd", name, Some(reader.as_fd()))?;
        let from = Some(json!({"uri": format!("fd:{NAME}")}));
        let loading = qmp.begin("migrate-incoming", from, None)?;
        drop(reader);
        for mut part in parts {
            while !part.is_empty() {
                match writer.write(part) {
                    Ok(written) => part = &part[written..],
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        let out = PollFlags::OUT;
                        self.qemu.qmp().wait_with(
                            writer.as_fd(),
                            out,
                            until,
                            "migrate-incoming",
                        )?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // It does not want the rest: it is about to tell why.
                    Err(_) => part = &[],
                }
            }
        }
        drop(writer);
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        self.qemu.qmp().finish(named, left(until))?;
        self.qemu.qmp().finish(loading, left(until))?;
        loop {
            match self.qemu.qmp().queue().take_migration().as_deref() {
                Some("completed") => return Ok(()),
                Some("failed") => {
                    return Err(Error::Refused {
                        command: "migrate-incoming",
                        why: "the state does not fit".to_owned(),
                    });
                }
                Some(_) => {}
                None => self
                    .qemu
                    .qmp()
                    .wait_word(until, "migrate-incoming", limit)?,
            }
        }
    }

    /// With what it printed, where it has ended.
    fn why(&mut self, error: Error) -> Error {
        let is_gone = matches!(error, Error::Gone(_) | Error::Refused { .. });
        let limit = if is_gone { WORDS_LIMIT } else { Duration::ZERO };
        if !self.child.wait(limit) {
            return error;
        }
        Error::Gone(format!("{error}; it printed: {}", self.child.tail()))
    }

    /// The next event.
    ///
    /// # Errors
    /// As [`Qemu::event`].
    pub fn event(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        self.qemu.event(limit)
    }
}
