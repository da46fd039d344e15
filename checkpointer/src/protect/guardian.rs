//! A guest must not stand still because its checkpointer was killed within a pause.
//!
//! A small process of the same program holds one end of a pipe. Before each pause it is told one byte, after it another; when
//! the pipe ends within a pause, it lets the guest go on. It has no other way to know: QEMU tells nobody who
//! paused it, and takes one monitor at a time.

use crate::hypervisor::qemu::{Error, Limits, Qemu, is_nobody};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

const PAUSING: u8 = b'p';
const RUNNING: u8 = b'r';
/// How long the guardian tries to reach QEMU.
const LIMIT: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(20);

/// The owner's end.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    /// Starts it for the guest of this monitor.
    ///
    /// # Errors
    /// Of starting the program.
    pub(super) fn start(monitor: &Path) -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("guardian")
            .arg(monitor)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What ends the owner from a terminal must not end it first.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// Before a pause, and after it.
    ///
    /// # Errors
    /// It has ended: a pause would be without it.
    pub(super) fn say(&mut self, is_pausing: bool) -> io::Result<()> {
        let byte = if is_pausing { PAUSING } else { RUNNING };
        let pipe = self.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(&[byte])
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // The end of the pipe outside of a pause ends it.
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// What the guardian's process does.
///
/// # Errors
/// The guest was left standing, and why.
pub fn guard(monitor: &Path) -> Result<(), String> {
    let mut last = RUNNING;
    let mut bytes = [0; 64];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => last = bytes[read - 1],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    if last == RUNNING {
        return Ok(());
    }
    let until = Instant::now() + LIMIT;
    loop {
        let limits = Limits {
            ask: Duration::from_secs(1),
            pause: Duration::from_secs(2),
        };
        let gone_on = Qemu::attach(monitor, limits).and_then(|mut qemu| {
            // One that is off, or has another host's word, stays as it is.
            let status = qemu.status()?;
            if status.word == "paused" {
                qemu.cont_anyway()
            } else {
                Ok(())
            }
        });
        match gone_on {
            Ok(()) => return Ok(()),
            // It has ended, and with it the guest.
            Err(Error::Connect { source, .. }) if is_nobody(&source) => return Ok(()),
            Err(error) if Instant::now() >= until => {
                return Err(format!(
                    "the guest stands still, type `cont` in QEMU's monitor: {error}"
                ));
            }
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}
