//! A QEMU that was started here: until when it is ours, and how it ends.

use super::super::{Error, Limits, Qemu};
use super::Place;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time to end in good order before it is killed.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How often a process is looked at that is waited for.
const POLL: Duration = Duration::from_millis(2);
/// Shown of what it printed.
const TAIL_BYTES: u64 = 1000;

/// A process of QEMU's, ended when this goes, unless it was let go.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    log: PathBuf,
    monitor: PathBuf,
    is_ours: bool,
}

impl Child {
    /// # Errors
    /// The program cannot be run.
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        place: &Place,
    ) -> Result<Self, Error> {
        let told = || Error::io(place.log.display().to_string());
        let log = File::create(&place.log).map_err(told())?;
        let out = log.try_clone().map_err(told())?;
        let mut command = Command::new(program);
        // A group of its own: what ends us from a terminal must not end the guest.
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log)
            .process_group(0);
        let process = command
            .spawn()
            .map_err(Error::io(program.display().to_string()))?;
        Ok(Self {
            process,
            log: place.log.clone(),
            monitor: place.monitor.clone(),
            is_ours: true,
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it listens, and connects.
    ///
    /// # Errors
    /// It ends before, with what it printed; or it does not listen within `limits.ask`.
    pub fn attach(&mut self, limits: Limits) -> Result<Qemu, Error> {
        let until = Instant::now() + limits.ask;
        loop {
            let error = match Qemu::attach(&self.monitor, limits) {
                Ok(mut qemu) => {
                    qemu.set_pid(self.pid());
                    return Ok(qemu);
                }
                Err(error) => error,
            };
            if let Some(status) = self.ended()? {
                return Err(Error::Gone(format!("{status}: {}", self.tail())));
            }
            if Instant::now() >= until {
                return Err(error);
            }
            std::thread::sleep(POLL);
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Of the system.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.process.try_wait().map_err(Error::io("a QEMU"))
    }

    /// Waits for its end; whether it came.
    pub fn wait(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            // Nothing to wait for is as good as an end.
            if !matches!(self.process.try_wait(), Ok(None)) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }

    /// The end of what it printed, in one line.
    #[must_use]
    pub fn tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let told = lines.join("; ");
        if told.is_empty() {
            "it printed nothing".to_owned()
        } else {
            told
        }
    }

    /// Lets it run when this goes.
    pub fn let_go(mut self) {
        self.is_ours = false;
    }

    /// Ends it: asked first, then killed.
    pub fn end(&mut self) {
        if self.wait(Duration::ZERO) {
            return;
        }
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It is not waited for yet, so the number is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
        if !self.wait(END_LIMIT) {
            self.kill();
        }
    }

    /// Kills it at once, as the loss of a host would.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        self.wait(END_LIMIT);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_ours {
            self.end();
        }
    }
}
