//! How a program that is typed ends: an exit code, and one line on stderr if it did not do what was asked.
//!
//! What a code means is the same in every program; the words of `--help` are each program's own.

use crate::ctl::ClientError;
use blkback_proto::ctl::one_line;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit codes of `blockrepctl`, `netbuf` and `remus-netbuf-setup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// What was asked, or something on the way, failed; or what was read is damaged.
    Failed = 1,
    /// The command line is wrong or not clear enough.
    Usage = 2,
    /// No daemon there, or none that answers.
    Unreachable = 3,
    /// It was understood and declined, or is used by somebody.
    Refused = 4,
}

impl Exit {
    /// The table for `--help`.
    #[must_use]
    pub fn help(table: &[(Self, &str)]) -> String {
        let line = |(exit, text): &(Self, &str)| format!("  {}  {text}", *exit as u8);
        let lines: Vec<String> = table.iter().map(line).collect();
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
pub struct Failure {
    /// With which code to end.
    pub exit: Exit,
    message: String,
    closed_pipe: bool,
}

impl Failure {
    /// `message` becomes one line when it is shown.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            closed_pipe: false,
        }
    }

    /// True where whoever read the output has seen enough.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A script that is told of a closed pipe as a failure, or gets two lines where it reads one.
    #[test]
    fn an_end_is_one_line_and_a_closed_pipe_is_known() {
        let broken = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(broken.is_closed_pipe());
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!full.is_closed_pipe());
        let text = Failure::new(Exit::Refused, "first\nsecond").to_string();
        assert!(
            text.starts_with("first") && !text.contains('\n'),
            "{text:?}"
        );
        let table = [(Exit::Ok, "done"), (Exit::Refused, "refused")];
        assert_eq!(Exit::help(&table), "Exit codes:\n  0  done\n  4  refused");
    }
}
