//! Who may run a guest: one record per guest, changed by compare-and-swap and by nothing else.
//!
//! ```text
//!   claim ──► {primary a, in sync a} ◄──────── degrade (by a) ───────┐
//!                       │                                            │
//!                       └── protect (by a: b has joined) ──► {primary a, in sync a b}
//!                                                                    │
//!             {primary b, in sync b} ◄──────── promote (by b) ───────┘
//! ```
//!
//! What a guest says is held until the backup has it, so silence needs no clock and no lease: a primary whose backup
//! is gone cannot speak, and what it does meanwhile nobody sees. Before it speaks alone it takes the backup out of the
//! in-sync set (*degrade*); before the backup lets the guest go on there it makes itself the primary (*promote*). Both
//! are swaps of the same generation, so one of them wins; the loser stops its guest.
//!
//! What the callers keep, and the record cannot see:
//! - a standby acknowledges nothing more *before* it asks for its promotion;
//! - a primary holds its output *before* it lets a backup join, and lets it join when the backup has acknowledged a
//!   whole checkpoint *since then*: a copy that it has from before lacks what was said;
//! - a guest that *begins* while a backup is in is held from before it runs, until that backup has a checkpoint of it or is out:
//!   what it has is of the guest before, and it may be promoted to that;
//! - an answer that did not come ([`AuthorityError`]) is no answer: the guest stays held, and is asked for again.
//!
//! Back ends: [`FileAuthority`] for a single host, [`ManualAuthority`] for an operator, [`CommandAuthority`] for a
//! fence command. No thread of its own; every wait has a limit, but a disk that hangs hangs the call: ask from a
//! thread that may wait.

mod command;
mod decide;
mod error;
mod file;
mod manual;
mod record;
mod rules;
#[cfg(test)]
mod tests;

use std::fmt;

pub use command::{COMMAND_RUN_MAX, CommandAuthority};
pub use decide::{Decision, Wish, decide};
pub use error::AuthorityError;
pub use file::FileAuthority;
pub use manual::ManualAuthority;
pub use record::{HOST_BYTES_MAX, Record, is_host_name};
pub use rules::{Change, Refusal, Ruling, Stamp, claim, degrade, promote, protect, who_won};

/// On whose word a record is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The daemon's own.
    Daemon,
    /// An operator's, who vouches that the guest does not run at the other host, nor will.
    Operator,
}

/// What became of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swapped {
    /// The new record is the record, durably.
    Swapped,
    /// Somebody was faster; nothing was changed. Their record.
    Changed(Record),
}

/// Keeps the record of one guest.
pub trait Authority: fmt::Debug + Send {
    /// The record as it is now; `None` where the guest has none yet.
    ///
    /// # Errors
    /// [`AuthorityError`]: nothing is known then, also not that there is no record.
    fn read(&self) -> Result<Option<Record>, AuthorityError>;

    /// Makes `new` the record if the present one has the generation `expected` (`None`: if there is none).
    ///
    /// # Errors
    /// [`AuthorityError`]: not swapped as far as it is known; after [`AuthorityError::Unclear`] it may have been.
    ///
    /// # Panics
    /// Where `new` is not of the generation after `expected`.
    fn swap(&self, expected: Option<u64>, new: &Record, by: By) -> Result<Swapped, AuthorityError>;

    /// Takes in what the primary told over the memory link. Only for those that keep a record on each host; the
    /// others know it already.
    ///
    /// # Errors
    /// [`AuthorityError::Split`] where this host has run the guest alone since.
    fn adopt(&self, told: &Record) -> Result<(), AuthorityError> {
        let _ = told;
        Ok(())
    }

    /// Which one it is, for people.
    fn words(&self) -> String;
}
