//! How the program ends.

use crate::daemon::DaemonError;
use blkback_proto::ctl::one_line;
use blockrep_host::ctl::ClientError;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit codes of `netbuf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// The daemon or the kernel failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No daemon there, or none that answers.
    Unreachable = 3,
    /// The daemon understood and declined, or one is in the way.
    Refused = 4,
}

impl Exit {
    /// Every code with its line in `--help`.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Ok, "done"),
        (Self::Failed, "failed"),
        (Self::Usage, "wrong usage"),
        (Self::Unreachable, "the daemon cannot be reached"),
        (Self::Refused, "refused by the daemon, or one is in the way"),
    ];

    /// The table for `--help`.
    pub(super) fn help() -> String {
        let line = |(exit, text): &(Self, &str)| format!("  {}  {text}", *exit as u8);
        let lines: Vec<String> = Self::ALL.iter().map(line).collect();
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An end that is not good: one line and an exit code.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    message: String,
    closed_pipe: bool,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            closed_pipe: false,
        }
    }

    /// True where whoever read the output has seen enough.
    pub(super) fn is_closed_pipe(&self) -> bool {
        self.closed_pipe
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl From<io::Error> for Failure {
    /// Errors of writing to stdout.
    fn from(error: io::Error) -> Self {
        let closed_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self {
            exit: Exit::Failed,
            message: format!("cannot write the output: {error}"),
            closed_pipe,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Unreachable { .. }
            | ClientError::TimedOut {
                request: "hello", ..
            }
            | ClientError::Closed { .. } => Exit::Unreachable,
            ClientError::Daemon(reply) if reply.code.is_refusal() => Exit::Refused,
            ClientError::Daemon(_)
            | ClientError::TimedOut { .. }
            | ClientError::Protocol { .. }
            | ClientError::Io { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let exit = match &error {
            DaemonError::Bind(_) | DaemonError::Lock(_) => Exit::Refused,
            DaemonError::NoPlug(_) => Exit::Usage,
            DaemonError::Guest { source, .. } if source.is_refusal() => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}
