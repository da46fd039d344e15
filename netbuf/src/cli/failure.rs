//! How the program ends.

use crate::daemon::DaemonError;
pub use blockrep_host::exit::Exit;
pub(super) use blockrep_host::exit::Failure;

/// Every exit code of `netbuf`, with its line in `--help`.
pub const EXIT_CODES: [(Exit, &str); 5] = [
    (Exit::Ok, "done"),
    (Exit::Failed, "failed"),
    (Exit::Usage, "wrong usage"),
    (Exit::Unreachable, "the daemon cannot be reached"),
    (Exit::Refused, "refused by the daemon, or one is in the way"),
];

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
