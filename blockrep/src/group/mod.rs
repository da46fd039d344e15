//! What concerns all volumes of a virtual machine at once.
//!
//! [`primary::PrimaryGroup`] cuts epochs and decides what a lost backup means;
//! [`backup::BackupGroup`] decides commits and promotions. Both are pure and live on the I/O thread
//! of the group's first volume.

pub mod backup;
pub mod memory;
pub mod primary;
pub mod refusal;

#[cfg(test)]
mod tests;

use crate::engine::{Nanos, ToVolume};
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::link::RefuseCode;
use blkback_proto::meta::GroupMeta;

/// The time, twice, and where random ids come from.
pub struct Now<'a> {
    /// Monotonic.
    pub ns: Nanos,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// Makes a fresh random lineage id.
    pub fresh: &'a mut dyn FnMut() -> LineageId,
}

impl std::fmt::Debug for Now<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ns", self.ns)
    }
}

/// The state of a group, as people and programs read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Primary: no backup was reached since start.
    Standalone,
    /// Primary: images are being compared and copied.
    Resyncing,
    /// Primary: the backup follows.
    Protected,
    /// Primary: the backup was lost; that is being made durable.
    Degrading,
    /// Primary: the backup was lost; writes go on here alone.
    Degraded,
    /// Primary: the backup is not there and policy holds writes.
    Paused,
    /// Former primary: its backup was promoted and has the current disk.
    Superseded,
    /// Backup: no primary is connected.
    Waiting,
    /// Backup: follows a primary.
    Following,
    /// Backup: the image is being compared and copied: no epoch.
    Inconsistent,
    /// Backup: promotion takes the operator's word.
    Suspect,
    /// Backup: becoming primary.
    Promoting,
    /// Was backup, is primary.
    Promoted,
    /// A store failed for good.
    Failed,
}

impl State {
    /// The word for status, events and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Resyncing => "resyncing",
            Self::Protected => "protected",
            Self::Degrading => "degrading",
            Self::Degraded => "degraded",
            Self::Paused => "paused",
            Self::Superseded => "superseded",
            Self::Waiting => "waiting-for-primary",
            Self::Following => "following",
            Self::Inconsistent => "inconsistent",
            Self::Suspect => "suspect",
            Self::Promoting => "promoting",
            Self::Promoted => "promoted",
            Self::Failed => "failed",
        }
    }

    /// What happens next, or what to do.
    #[must_use]
    pub fn next(self) -> &'static str {
        match self {
            Self::Standalone | Self::Degraded => {
                "keeps trying to reach the backup; the images are compared when it answers"
            }
            Self::Resyncing => "protected when everything that differs is copied and committed",
            Self::Protected => "nothing to do",
            Self::Degrading => "degraded once the loss of protection is durable",
            Self::Paused => {
                "writes go on when the backup is back and equal; to go on without it, start this daemon again \
                 with --on-backup-loss degrade"
            }
            Self::Superseded => refusal::remedy(RefuseCode::Superseded),
            Self::Waiting => "follows a primary when one connects, or `blockrepctl promote`",
            Self::Following => "nothing to do; `blockrepctl promote` when the primary is dead",
            Self::Inconsistent => {
                "let the primary connect and finish the comparison; until then not promotable"
            }
            Self::Suspect => {
                "let the primary connect, or `blockrepctl promote --accept-suspect` to accept \
                 that one acknowledged epoch may be missing"
            }
            Self::Promoting => "promoted in a moment",
            Self::Promoted => {
                "serves the volumes, without a backup: a promoted side takes none of its own yet; \
                 to be protected again, stop it and start `blockrep` on a copy of its image with a \
                 new backup (README, \"After a failover\")"
            }
            Self::Failed => "see the reason, repair the storage, start the daemon again",
        }
    }
}

/// A state with its reason and the time it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// Why.
    pub reason: String,
    /// Since when, in nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What happens next, or what to do.
    pub next: &'static str,
}

/// What a group wants done.
#[derive(Debug)]
pub enum GroupEffect {
    /// A message to the volume of that index.
    ToVolume(usize, ToVolume),
    /// Write and sync this metadata; [`primary::PrimaryGroup::meta_written`] or its twin follows.
    WriteMeta(Box<GroupMeta>),
    /// The state changed.
    Changed {
        /// Before.
        old: State,
        /// After, with its reason.
        new: Standing,
    },
    /// The answer to a cut that was asked for.
    CutReply {
        /// Who asked.
        token: u64,
        /// The epoch that ended.
        epoch: Epoch,
        /// When.
        cut_unix_ns: u64,
    },
    /// Time from cut to commit of an epoch, in nanoseconds.
    Latency(Nanos),
    /// The answer to a promotion.
    PromoteReply {
        /// Who asked.
        token: u64,
        /// What came of it.
        result: Result<Promoted, PromoteError>,
    },
    /// The answer to a member's coming or going.
    MemoryReply {
        /// Who asked.
        token: u64,
        /// What is committed now, or why it is not taken.
        result: Result<Epoch, memory::MemoryError>,
    },
}

/// What is asked of a promotion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromoteWish {
    /// Also beside a living link.
    pub force: bool,
    /// Also where the last acknowledged epoch may be damaged.
    pub accept_suspect: bool,
    /// By whom the guest's memory is held, and goes on from it.
    pub with_memory: bool,
    /// Without the guest's memory: it boots from the disks as after a power cut.
    pub disk_only: bool,
    /// The primary, if it is connected.
    pub alive: Option<Alive>,
}

/// A promotion that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// Last epoch that counts.
    pub epoch: Epoch,
    /// New history.
    pub lineage: LineageId,
    /// Epochs above it that had begun to arrive and were not whole in every volume.
    pub dropped_epochs: u64,
    /// The highest of them that was damaged here and may have been acknowledged.
    pub damaged: Option<Epoch>,
    /// How long it took.
    pub took_ns: Nanos,
}

/// A primary that is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// Where.
    pub peer: String,
    /// How long ago it was heard of.
    pub heard_ms: u64,
}

/// Why a promotion is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// The primary is alive.
    #[error(
        "the primary at {} is still connected, heard of {} ms ago: stop it and promote again (a dead \
         one is noticed within seconds, without --force); --force promotes beside it: it is cut off, \
         not stopped, and what it answers from then on is lost, so stop it at once", .0.peer, .0.heard_ms
    )]
    Alive(Alive),
    /// No epoch.
    #[error(
        "volume {volume} is no epoch: it was compared with the primary only in part, or not with all volumes \
         of its group; let the primary connect and finish (status says whether it does); if it is dead \
         for good, what is here was never the disk of one moment: the primary's own image is what is left"
    )]
    Inconsistent {
        /// Which one.
        volume: usize,
    },
    /// The operator's word is needed.
    #[error(
        "an epoch above {epoch} may have been acknowledged and is damaged: say --accept-suspect to \
         go on from epoch {epoch}"
    )]
    Suspect {
        /// Last whole epoch.
        epoch: Epoch,
    },
    /// Memory is a member.
    #[error("{0}")]
    Memory(String),
    /// Nothing there.
    #[error("this backup never held an epoch: there is nothing to promote")]
    Blank,
    /// Another one goes on.
    #[error("a promotion is under way: see `blockrepctl status`")]
    UnderWay,
    /// A store failed.
    #[error(
        "the store of this backup failed: {0}: repair the storage, start the daemon again, then promote"
    )]
    Failed(String),
}
