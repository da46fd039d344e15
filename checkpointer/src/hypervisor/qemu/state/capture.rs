//! Device state by a migration that leaves shared memory out, read from a pipe.

use super::super::{Error, Qemu, Ticket};
use super::STATE_BYTES_MAX;
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Asked for: most states fit, and QEMU never waits for us.
pub(in super::super) const PIPE_BYTES: usize = 1 << 20;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// No limit to the rate: a pause lasts as long as this takes.
const BANDWIDTH: u64 = 1 << 40;
/// How often it is asked whether a migration that was given up is over.
const CANCEL_POLL: Duration = Duration::from_millis(2);
const NAME: &str = "blockrep-state";

/// Of QEMU's migration, before ours.
#[derive(Debug)]
pub(super) struct Settings {
    capabilities: Value,
    bandwidth: Option<u64>,
}

/// Capabilities that a stream of ours needs, as told or as they were.
pub(in super::super) fn capabilities(on: &Value) -> Value {
    let list = ["events", "x-ignore-shared"].map(|name| {
        let state = match on {
            Value::Array(all) => all
                .iter()
                .find(|one| one["capability"] == name)
                .is_some_and(|one| one["state"] == true),
            other => *other == true,
        };
        json!({"capability": name, "state": state})
    });
    json!({"capabilities": list})
}

impl Settings {
    pub(super) fn read(qemu: &mut Qemu) -> Result<Self, Error> {
        let all = qemu.ask("query-migrate-capabilities", None)?;
        let on = |name: &str| {
            let mut listed = all.as_array().into_iter().flatten();
            listed.any(|one| one["capability"] == name && one["state"] == true)
        };
        // Each changes what the stream looks like.
        let foreign = [
            "compress",
            "xbzrle",
            "multifd",
            "postcopy-ram",
            "x-colo",
            "mapped-ram",
        ];
        if let Some(name) = foreign.into_iter().find(|name| on(name)) {
            return Err(Error::Unfit(format!(
                "QEMU is set to migrate with {name}; turn that off: migrate_set_capability {name} off"
            )));
        }
        let parameters = qemu.ask("query-migrate-parameters", None)?;
        Ok(Self {
            capabilities: capabilities(&all),
            bandwidth: parameters["max-bandwidth"].as_u64(),
        })
    }
}

/// A migration on its way.
#[derive(Debug)]
pub(super) struct Capture {
    reader: File,
    /// Of commands that are not answered yet.
    tickets: Vec<Ticket>,
    /// QEMU took the order to migrate: it is our migration that runs.
    is_ours: bool,
    is_completed: bool,
}

/// A pipe as large as the host allows.
pub(in super::super) fn wide_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let pipe = pipe_with(PipeFlags::CLOEXEC);
    let (reader, writer) = pipe.map_err(|e| Error::io("a pipe")(e.into()))?;
    // Where it may not be that large it is as large as it is.
    let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
    Ok((reader, writer))
}

impl Capture {
    /// Sets QEMU for it and gives it the pipe, while the guest may run yet. [`Capture::end`] and
    /// [`Capture::settle`] are to follow.
    pub(super) fn prepare(qemu: &mut Qemu, settings: &Settings) -> Result<Self, Error> {
        let (reader, writer) = wide_pipe()?;
        rustix::io::ioctl_fionbio(&reader, true).map_err(|e| Error::io("a pipe")(e.into()))?;
        let qmp = qemu.qmp();
        // Of an earlier one.
        while qmp.queue().take_migration().is_some() {}
        let mut tickets = vec![qmp.begin(
            "migrate-set-capabilities",
            Some(capabilities(&Value::Bool(true))),
            None,
        )?];
        if settings.bandwidth.is_some() {
            let wide = json!({"max-bandwidth": BANDWIDTH});
            tickets.push(qmp.begin("migrate-set-parameters", Some(wide), None)?);
        }
        let name = Some(json!({"fdname": NAME}));
        tickets.push(qmp.begin("getfd", name, Some(writer.as_fd()))?);
        let limit = qemu.limits().pause;
        for ticket in tickets {
            qemu.qmp().finish(ticket, limit)?;
        }
        Ok(Self {
            reader: File::from(reader),
            tickets: Vec::new(),
            is_ours: false,
            is_completed: false,
        })
    }

    /// The migration; the guest stands still.
    pub(super) fn begin(&mut self, qemu: &mut Qemu) -> Result<(), Error> {
        let to = Some(json!({"uri": format!("fd:{NAME}")}));
        self.tickets.push(qemu.qmp().begin("migrate", to, None)?);
        Ok(())
    }

    /// It was prepared for nothing.
    pub(super) fn unused(self, qemu: &mut Qemu) {
        let name = Some(json!({"fdname": NAME}));
        drop(qemu.qmp().begin("closefd", name, None));
    }

    /// Reads until the stream has ended and QEMU calls it completed.
    pub(super) fn finish(&mut self, qemu: &mut Qemu, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let until = Instant::now() + qemu.limits().pause;
        let mut is_read = false;
        while !is_read {
            let qmp = qemu.qmp();
            let ready = qmp.wait_with(self.reader.as_fd(), PollFlags::IN, until, "migrate")?;
            if ready {
                is_read = self.read(bytes)?;
            }
            self.news(qemu)?;
        }
        while !self.is_completed || !self.tickets.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            self.news(qemu)?;
            if self.is_completed && self.tickets.is_empty() {
                break;
            }
            qemu.qmp().wait_word(until, "migrate", left)?;
        }
        Ok(())
    }

    fn took(&mut self, ticket: &Ticket, answer: Result<Value, Error>) -> Result<(), Error> {
        answer?;
        self.is_ours |= ticket.command() == "migrate";
        Ok(())
    }

    /// Takes in answers and events that have come.
    fn news(&mut self, qemu: &mut Qemu) -> Result<(), Error> {
        let mut open = Vec::new();
        let mut failed = None;
        for ticket in std::mem::take(&mut self.tickets) {
            match qemu.qmp().answer(&ticket) {
                None => open.push(ticket),
                Some(answer) => failed = failed.or(self.took(&ticket, answer).err()),
            }
        }
        self.tickets = open;
        if let Some(error) = failed {
            return Err(error);
        }
        while let Some(status) = qemu.qmp().queue().take_migration() {
            match status.as_str() {
                "completed" => self.is_completed = true,
                "failed" | "cancelled" => {
                    let told = qemu.ask("query-migrate", None)?;
                    let why = told["error-desc"]
                        .as_str()
                        .unwrap_or("no reason")
                        .to_owned();
                    return Err(Error::Refused {
                        command: "migrate",
                        why: format!("{status}: {why}"),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether that was all.
    fn read(&mut self, bytes: &mut Vec<u8>) -> Result<bool, Error> {
        loop {
            let had = bytes.len();
            bytes.resize(had + READ_BYTES, 0);
            let read = self.reader.read(&mut bytes[had..]);
            bytes.truncate(had + read.as_ref().map_or(0, |bytes| *bytes));
            match read {
                Ok(0) => return Ok(true),
                Ok(_) if bytes.len() as u64 > STATE_BYTES_MAX => {
                    return Err(Error::Unfit(format!(
                        "more than {STATE_BYTES_MAX} bytes of device state"
                    )));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("a pipe")(e)),
            }
        }
    }

    /// Breaks off what is not completed. [`Capture::settle`] is to follow.
    pub(super) fn end(mut self, qemu: &mut Qemu, is_whole: bool) {
        if !is_whole {
            // What was refused may have been followed by what was not; a migration that another began is left.
            for ticket in std::mem::take(&mut self.tickets) {
                let is_migrate = ticket.command() == "migrate";
                let limit = qemu.limits().pause;
                self.is_ours |= qemu.qmp().finish(ticket, limit).is_ok() && is_migrate;
            }
            if self.is_ours {
                Self::cancel(qemu);
            }
        }
        // Only now: QEMU would call the migration failed because of it.
        drop(self.reader);
    }

    /// Sets QEMU back to what it was, once the guest runs again. The answers are not waited for: whatever is asked next
    /// is answered behind them.
    pub(super) fn settle(qemu: &mut Qemu, settings: &Settings) {
        let qmp = qemu.qmp();
        let back = qmp.begin(
            "migrate-set-capabilities",
            Some(settings.capabilities.clone()),
            None,
        );
        drop(back);
        if let Some(bandwidth) = settings.bandwidth {
            let back = json!({"max-bandwidth": bandwidth});
            drop(qmp.begin("migrate-set-parameters", Some(back), None));
        }
    }

    /// A guest whose migration goes on cannot go on itself.
    fn cancel(qemu: &mut Qemu) {
        let until = Instant::now() + qemu.limits().pause;
        let _ = qemu.ask("migrate_cancel", None);
        while Instant::now() < until {
            let Ok(told) = qemu.ask("query-migrate", None) else {
                return;
            };
            let is_over = matches!(
                told["status"].as_str(),
                None | Some("none" | "completed" | "failed" | "cancelled")
            );
            if is_over {
                return;
            }
            std::thread::sleep(CANCEL_POLL);
        }
    }
}
