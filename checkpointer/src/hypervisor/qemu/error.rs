//! Errors of the driver, and what they mean.

use std::path::PathBuf;

/// What goes wrong with a QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there.
    #[error("QEMU's monitor {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// QEMU has ended, or closed the monitor; for good.
    #[error("QEMU is gone: {0}")]
    Gone(String),
    /// What it says is not the monitor's protocol; for good.
    #[error("what listens is no QEMU, or a broken one: {0}")]
    Nonsense(String),
    /// No answer in time; a later command may get one.
    #[error("QEMU did not answer {what} within {limit_ms} ms")]
    Late {
        /// The command, or what was waited for.
        what: &'static str,
        /// How long.
        limit_ms: u128,
    },
    /// It did not do what it was told.
    #[error("QEMU refuses {command}: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its words.
        why: String,
    },
    /// This guest cannot be handled; in words.
    #[error("{0}")]
    Unfit(String),
    /// Of this host.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Whether a connection failed because there is no monitor: no socket, or one that an ended QEMU left behind.
pub(crate) fn is_nobody(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
    )
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
