//! Child processes that cannot be left behind, with their output in files.
//!
//! Every child gets its own process group (so that a Ctrl-C reaches this program only, which then
//! ends its children in order), dies with this program (PR_SET_PDEATHSIG), and is killed and reaped
//! when its guard is dropped. Children are started from the main thread only, because the death
//! signal is tied to the thread that started them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::stop;

/// Lines of a log that are shown when its program fails.
const TAIL_LINES: usize = 40;
/// A question is answered within this time or not at all.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// A running child; dropped = killed with its process group and reaped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to `log` and nothing on stdin.
    pub(crate) fn spawn(command: &mut Command, name: &str, log: &Path) -> Result<Self> {
        command.stdout(open_log(log)?);
        Self::spawn_with_stdout(command, name, log)
    }

    /// As [`Process::spawn`], but stdout is a pipe to this program; only stderr goes to `log`.
    pub(crate) fn spawn_piped(
        command: &mut Command,
        name: &str,
        log: &Path,
    ) -> Result<(Self, ChildStdout)> {
        command.stdout(Stdio::piped());
        let mut process = Self::spawn_with_stdout(command, name, log)?;
        let pipe = process
            .child
            .stdout
            .take()
            .expect("stdout was set to a pipe above");
        Ok((process, pipe))
    }

    /// As [`Process::spawn_piped`], and stdin is a pipe from this program.
    pub(crate) fn spawn_talking(
        command: &mut Command,
        name: &str,
        log: &Path,
    ) -> Result<(Self, ChildStdin, ChildStdout)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::start(command, name, log)?;
        let pipes = (process.child.stdin.take(), process.child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else {
            unreachable!("both were set to pipes above");
        };
        Ok((process, stdin, stdout))
    }

    /// As [`Process::spawn`], but what it says goes to this program's stderr.
    pub(crate) fn spawn_shown(command: &mut Command, name: &str) -> Result<Self> {
        let stderr = io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .context("duplicate stderr")?;
        command
            .stdin(Stdio::null())
            .stdout(stderr.try_clone()?)
            .stderr(stderr);
        tie_to_this_program(command);
        let child = command
            .spawn()
            .map_err(|error| cannot_start(command, &error))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log: PathBuf::new(),
            ended: None,
        })
    }

    fn spawn_with_stdout(command: &mut Command, name: &str, log: &Path) -> Result<Self> {
        Self::start(command.stdin(Stdio::null()), name, log)
    }

    fn start(command: &mut Command, name: &str, log: &Path) -> Result<Self> {
        command.stderr(open_log(log)?);
        tie_to_this_program(command);
        let child = command
            .spawn()
            .map_err(|error| cannot_start(command, &error))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log: log.to_owned(),
            ended: None,
        })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self
                .child
                .try_wait()
                .with_context(|| format!("wait for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Fails, with the end of its log, if it has ended.
    pub(crate) fn must_be_alive(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended by itself ({}){}",
                self.name,
                describe(status),
                tail_of(&self.log)
            ),
        }
    }

    /// Waits for its end for at most `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        stop::wait_for(&what, limit, || self.ended())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to it and to the children it may have.
    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        if self.ended.is_none() {
            let group = libc::pid_t::try_from(self.child.id()).expect("pids fit in pid_t");
            // SAFETY: no memory involved. The child is not reaped yet, so the number is still its.
            unsafe { libc::kill(-group, signal) };
        }
    }

    /// SIGKILL and reap.
    pub(crate) fn kill(&mut self) {
        self.end_by(libc::SIGKILL, Duration::from_secs(5));
    }

    /// SIGTERM, `grace` to comply, then SIGKILL.
    pub(crate) fn stop(&mut self, grace: Duration) {
        self.end_by(libc::SIGTERM, grace);
        self.kill();
    }

    /// Does not look at the stop flag: it runs while everything is being taken down.
    fn end_by(&mut self, signal: libc::c_int, limit: Duration) {
        self.signal(signal);
        let end = Instant::now() + limit;
        while let Ok(None) = self.ended() {
            if Instant::now() >= end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a tool said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    /// stdout and stderr in the order they came.
    pub(crate) text: String,
    pub(crate) log: PathBuf,
}

impl Said {
    /// Fails unless it ended with exit code 0.
    pub(crate) fn success(self, what: &str) -> Result<String> {
        if self.status.success() {
            return Ok(self.text);
        }
        bail!(
            "{what} failed ({}){}",
            describe(self.status),
            tail_of(&self.log)
        )
    }
}

/// Runs a tool to its end, for at most `limit`; its output is kept in `log`.
pub(crate) fn run(command: &mut Command, log: &Path, limit: Duration) -> Result<Said> {
    let name = command.get_program().to_string_lossy().into_owned();
    let start = open_log(log)?.seek(SeekFrom::End(0))?;
    let mut process = Process::spawn(command, &name, log)?;
    let status = process.wait(limit)?;
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said {
        status,
        text,
        log: log.to_owned(),
    })
}

/// Runs a tool that only answers a question, stdout apart from stderr, for at most [`ASK_LIMIT`].
pub(crate) fn ask(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    tie_to_this_program(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;
    let stdout = read_aside(child.stdout.take());
    let stderr = read_aside(child.stderr.take());
    let mut process = Process {
        child,
        name,
        log: PathBuf::new(),
        ended: None,
    };
    let status = process.wait(ASK_LIMIT);
    // The pipes end with the process.
    process.kill();
    let [stdout, stderr] = [stdout, stderr].map(|thread| thread.join().unwrap_or_default());
    Ok(Output {
        status: status?,
        stdout,
        stderr,
    })
}

fn read_aside(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is the answer as far as there is one.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// The last lines of `log`, ready to be appended to an error line.
pub(crate) fn tail_of(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    if bytes.is_empty() {
        return format!("; it said nothing ({})", log.display());
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!(
        "; the end of {}:\n    {}",
        log.display(),
        tail.join("\n    ")
    )
}

/// "exit code 3" or "signal 9".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

fn open_log(log: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("log file {}", log.display()))
}

fn cannot_start(command: &Command, error: &io::Error) -> anyhow::Error {
    let name = command.get_program().to_string_lossy();
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow!("{name} is not installed (or not built)");
    }
    anyhow!("cannot start {name}: {error}")
}

/// Own process group; killed by the kernel when the thread that started it ends.
pub(crate) fn tie_to_this_program(command: &mut Command) {
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A process that outlives its guard would hold ports and sockets against the next round.
    #[test]
    fn a_dropped_process_is_gone() {
        let log = std::env::temp_dir().join(format!("xtask-test-{}.log", std::process::id()));
        let process = Process::spawn(Command::new("sleep").arg("600"), "sleep", &log);
        let process = process.expect("sleep exists");
        let proc_dir = PathBuf::from(format!("/proc/{}", process.child.id()));
        assert!(proc_dir.exists());
        drop(process);
        assert!(!proc_dir.exists());
        std::fs::remove_file(&log).expect("the log was made");
    }

    // A tool that hangs would hang the demo with it.
    #[test]
    fn a_tool_that_hangs_is_given_up_and_named() {
        let log = std::env::temp_dir().join(format!("xtask-hang-{}.log", std::process::id()));
        let said = run(
            Command::new("sleep").arg("600"),
            &log,
            Duration::from_millis(50),
        );
        std::fs::remove_file(&log).expect("the log was made");
        let error = said.expect_err("sleep 600 takes longer").to_string();
        assert!(error.contains("sleep to end"), "{error}");
    }
}
