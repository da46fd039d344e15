//! A fence command decides: before the guest is taken from a host, that host is switched off.
//!
//! The record is kept in a file of each host, as [`ManualAuthority`](super::ManualAuthority) does; a promotion or a
//! degrade runs the command first. Its exit codes are those of DRBD's fence-peer handler:
//!
//! | code | it says of the other host | promote | degrade |
//! |---:|---|---|---|
//! | 3 | its copy is not usable | no | yes |
//! | 4 | it has agreed not to use its copy | yes | yes |
//! | 5 | it cannot be reached | no | no |
//! | 6 | it runs the guest | no | no |
//! | 7 | it was switched off | yes | yes |
//!
//! Anything else, a signal, or no end in time says nothing, and nothing is done. It gets `BLOCKREP_GUEST`,
//! `BLOCKREP_WISH` (`promote` or `degrade`), `BLOCKREP_HOST`, `BLOCKREP_PEER` (the one to fence),
//! `BLOCKREP_GENERATION` and `BLOCKREP_LINEAGE` of the record, runs in `/` without input, and as a process group of its
//! own that is killed at the limit. What it wrote last is told when it fails.

use super::record::hex;
use super::{Authority, AuthorityError, By, Change, FileAuthority, Record, Swapped};
use blkback_proto::ctl::one_line;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a fence device may take.
pub const COMMAND_RUN_MAX: Duration = Duration::from_secs(60);
/// How long what it wrote is waited for before it is looked at again.
const LOOK: Duration = Duration::from_millis(20);
/// Of what it wrote, the end.
const SAID_BYTES_MAX: usize = 4096;

/// The record in a file of this host, and a fence command.
#[derive(Debug)]
pub struct CommandAuthority {
    file: FileAuthority,
    host: String,
    command: Vec<String>,
    run_max: Duration,
}

/// What the command says of the other host.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fenced,
    /// Its copy is of no use: it cannot be promoted, and may be the primary.
    Unusable,
    Runs,
    Unclear(String),
}

impl CommandAuthority {
    /// Program and arguments; the program with its whole path. `run_max` is [`COMMAND_RUN_MAX`] if nobody says else.
    ///
    /// # Panics
    /// Where the command is empty: the configuration refuses that.
    #[must_use]
    pub fn new(file: FileAuthority, host: &str, command: Vec<String>, run_max: Duration) -> Self {
        assert!(!command.is_empty(), "a command has a program");
        Self {
            file,
            host: host.to_owned(),
            command,
            run_max,
        }
    }

    fn fence(&self, old: &Record, wish: &str, peer: &str) -> Result<(), AuthorityError> {
        let (verdict, said) = match self.run(old, wish, peer) {
            Ok((status, said)) => (judge(status, self.run_max), said),
            Err(error) => (
                Verdict::Unclear(format!("it cannot be run: {error}")),
                String::new(),
            ),
        };
        let said = if said.is_empty() {
            said
        } else {
            format!("; it said: {said}")
        };
        let program = &self.command[0];
        let guest = &old.guest;
        let why = match verdict {
            Verdict::Fenced => return Ok(()),
            Verdict::Unusable if wish == "degrade" => return Ok(()),
            Verdict::Runs => {
                return Err(AuthorityError::OtherRuns(one_line(&format!(
                    "{program} says that {peer} runs {guest}: it is not run here{said}"
                ))));
            }
            Verdict::Unusable => {
                "it says that the copy there is not usable, not that it is off".to_owned()
            }
            Verdict::Unclear(why) => why,
        };
        let command = if wish == "promote" { "promote" } else { "stop" };
        Err(AuthorityError::NeedsByHand(one_line(&format!(
            "{program} did not fence {peer}: {why}{said}; when you have seen that {guest} does not run at {peer}, type \
             here: blockrepctl guest {command} {guest} --by-hand"
        ))))
    }

    /// How it ended (`None`: killed at the limit), and the last line it wrote.
    fn run(
        &self,
        old: &Record,
        wish: &str,
        peer: &str,
    ) -> io::Result<(Option<ExitStatus>, String)> {
        let (mut ear, mouth) = UnixStream::pair()?;
        ear.set_read_timeout(Some(LOOK))?;
        let mouth = OwnedFd::from(mouth);
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .env("BLOCKREP_GUEST", &old.guest)
            .env("BLOCKREP_WISH", wish)
            .env("BLOCKREP_HOST", &self.host)
            .env("BLOCKREP_PEER", peer)
            .env("BLOCKREP_GENERATION", old.generation.to_string())
            .env("BLOCKREP_LINEAGE", hex(&old.lineage))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(mouth.try_clone()?)
            .stderr(mouth)
            .process_group(0)
            .spawn()?;
        let mut said = Vec::new();
        let ended = follow(
            &mut child,
            &mut ear,
            &mut said,
            Instant::now() + self.run_max,
        );
        if !matches!(ended, Ok(Some(_))) {
            let group = libc::pid_t::try_from(child.id()).expect("a process id of Linux");
            // SAFETY: takes no memory. The leader of the group was not waited for yet, so the number is its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            child.wait()?;
        }
        Ok((ended?, last_line(&said)))
    }
}

/// Listens until it has ended, or the limit.
fn follow(
    child: &mut Child,
    ear: &mut UnixStream,
    said: &mut Vec<u8>,
    until: Instant,
) -> io::Result<Option<ExitStatus>> {
    loop {
        let ended = child.try_wait()?;
        // What it left running may go on to write: not waited for.
        let is_quiet = listen(ear, said, ended.is_some())?;
        if ended.is_some() && is_quiet {
            return Ok(ended);
        }
        if Instant::now() >= until {
            return Ok(ended);
        }
    }
}

/// One read; whether there was nothing.
fn listen(ear: &mut UnixStream, said: &mut Vec<u8>, has_ended: bool) -> io::Result<bool> {
    let mut piece = [0; SAID_BYTES_MAX];
    ear.set_nonblocking(has_ended)?;
    match ear.read(&mut piece) {
        Ok(0) => {
            // It closed its output and goes on.
            if !has_ended {
                std::thread::sleep(LOOK);
            }
            Ok(true)
        }
        Ok(count) => {
            said.extend_from_slice(&piece[..count]);
            said.drain(..said.len().saturating_sub(SAID_BYTES_MAX));
            Ok(false)
        }
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(true),
            io::ErrorKind::Interrupted => Ok(false),
            _ => Err(error),
        },
    }
}

fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    one_line(lines.next_back().unwrap_or_default())
}

fn judge(ended: Option<ExitStatus>, run_max: Duration) -> Verdict {
    let Some(status) = ended else {
        let text = format!("it did not end in {} s, and was killed", run_max.as_secs());
        return Verdict::Unclear(text);
    };
    match (status.code(), status.signal()) {
        (Some(3), _) => Verdict::Unusable,
        (Some(4 | 7), _) => Verdict::Fenced,
        (Some(5), _) => {
            Verdict::Unclear("it cannot reach it, which does not say that it is off".to_owned())
        }
        (Some(6), _) => Verdict::Runs,
        (Some(code), _) => Verdict::Unclear(format!("it ended with {code}, which says nothing")),
        (None, signal) => {
            Verdict::Unclear(format!("it was killed by signal {}", signal.unwrap_or(0)))
        }
    }
}

impl Authority for CommandAuthority {
    fn read(&self) -> Result<Option<Record>, AuthorityError> {
        self.file.read()
    }

    fn swap(&self, expected: Option<u64>, new: &Record, by: By) -> Result<Swapped, AuthorityError> {
        // Not under the lock: it may take a minute. What changes meanwhile is seen by the swap.
        if by == By::Daemon
            && let Some(old) = self.file.read()?
            && Some(old.generation) == expected
        {
            match Change::between(&old, new) {
                Change::Quiet => {}
                Change::Promote { from } => self.fence(&old, "promote", from)?,
                Change::Degrade { out } => self.fence(&old, "degrade", out)?,
            }
        }
        self.file.swap(expected, new, by)
    }

    fn adopt(&self, told: &Record) -> Result<(), AuthorityError> {
        self.file.take_in(told)
    }

    fn words(&self) -> String {
        let file = self.file.path().display();
        format!(
            "the fence command {}; this host's record is {file}",
            self.command[0]
        )
    }
}

#[cfg(test)]
mod tests;
