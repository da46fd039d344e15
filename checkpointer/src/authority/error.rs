//! Why an authority gave no answer.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Nothing was decided, or it is not known. One line each: what, where, what to type.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// A file could not be used; nothing was changed.
    #[error("{}: cannot {doing}: {source}; mend it, and try again", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The record is there and makes no sense. It is left as it is.
    #[error(
        "{} is no record of {guest}: {what}; mend it by hand, or, when it is known that no host runs {guest}, remove it",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Of which guest it should be.
        guest: String,
        /// What is wrong.
        what: String,
    },
    /// Somebody else is changing it, for longer than anybody should.
    #[error("{}.lock is held by another process for more than {waited_ms} ms; find it with fuser", path.display())]
    Busy {
        /// Which record.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// It may have been changed or not: read it again before anything else.
    #[error("{}: cannot tell whether it was changed: {source}; it is read again at the next try", path.display())]
    Unclear {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It changed again and again while it was being changed.
    #[error("the record of {guest} changed {rounds} times while it was to be changed; try again")]
    Contended {
        /// Of which guest.
        guest: String,
        /// How often it was tried.
        rounds: u32,
    },
    /// Only an operator can say it.
    #[error("{0}")]
    NeedsByHand(String),
    /// The other host is known to run the guest.
    #[error("{0}")]
    OtherRuns(String),
    /// Both hosts have run the guest on their own.
    #[error("{0}")]
    Split(String),
}

impl AuthorityError {
    /// Whether another host is known to have the guest: what runs here must stop.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::OtherRuns(_))
    }

    /// Whether an operator's word would help.
    #[must_use]
    pub fn needs_by_hand(&self) -> bool {
        matches!(self, Self::NeedsByHand(_))
    }
}
