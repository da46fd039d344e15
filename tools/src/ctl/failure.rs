//! How the program ends.

pub use blockrep_host::exit::{Exit, Failure};

use crate::journal::JournalError;

/// Every exit code of `blockrepctl`, with its line in `--help`.
pub const EXIT_CODES: [(Exit, &str); 5] = [
    (Exit::Ok, "done"),
    (Exit::Failed, "failed, or damage was found"),
    (Exit::Usage, "wrong usage"),
    (Exit::Unreachable, "the daemon cannot be reached"),
    (Exit::Refused, "refused by the daemon, or in use by one"),
];

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Output(error) => error.into(),
            error if error.is_usage() => Self::new(Exit::Usage, error.to_string()),
            error => Self::new(Exit::Failed, error.to_string()),
        }
    }
}
