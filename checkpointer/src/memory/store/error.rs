//! What goes wrong with the store, by what the caller does about it.

use blkback_proto::ids::Epoch;
use std::io;
use std::path::PathBuf;

/// One line each, for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it.
    #[error("{} is in use by another process: stop it first, or name another directory", dir.display())]
    InUse { dir: PathBuf },
    /// A copy does not fit; nothing was changed.
    #[error(
        "{} has no room for the guest's memory: {missing_bytes} bytes are missing of {needed_bytes} \
         ({free_bytes} are free); make it larger (mount -o remount,size=…) or free some",
        dir.display()
    )]
    Room {
        dir: PathBuf,
        needed_bytes: u64,
        free_bytes: u64,
        missing_bytes: u64,
    },
    /// Epochs come in faster than they are committed, or one is too large.
    #[error("{bytes} bytes of epochs that are not committed; {limit} are allowed")]
    Pending { bytes: u64, limit: u64 },
    /// Whoever sends broke a rule.
    #[error("{text}")]
    Peer { text: String },
    /// Nothing is received any more.
    #[error("this backup was promoted: the guest runs here")]
    Promoted,
    /// An epoch that was asked for is not there.
    #[error("epoch {epoch} is not here; the last committed one is {committed}")]
    NotHere { epoch: Epoch, committed: Epoch },
    /// The guest was switched off.
    #[error("the guest is off as of epoch {epoch}")]
    Off { epoch: Epoch },
    /// What is there contradicts itself; nothing was changed.
    #[error("{}: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{}: {what}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn peer(text: impl Into<String>) -> Self {
        Self::Peer { text: text.into() }
    }
}
