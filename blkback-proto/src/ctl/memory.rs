//! What a checkpointer and a standby's daemon ask of the disks: who makes the epochs, and the guest's memory
//! as a member of the backup's group.

use serde::{Deserialize, Serialize};

/// Most whole epochs of memory that one join names.
pub const MEMORY_WHOLE_MAX: usize = 1024;

/// Asked of a primary, again and again: the client makes the epochs. While it asks, and for two seconds
/// after, the daemon cuts none of its own accord.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveRequest {
    /// The answer waits until the group's state is another word than this, or a cut is wanted.
    #[serde(default)]
    pub state: String,
    /// At most this long; 0 answers at once.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// How the disks stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveAnswer {
    /// The group's state.
    pub state: String,
    /// Why.
    pub reason: String,
    /// The journals fill up, or what was compared waits for its first commit: cut before the time.
    pub cut_wanted: bool,
    /// `local`, `flush` or `write`.
    pub ack_mode: String,
    /// What becomes of writes without a backup: `degrade` or `pause`; empty where an older daemon does not tell.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub on_backup_loss: String,
    /// The history that is written, hex.
    pub lineage: String,
    /// Names of the volumes.
    pub volumes: Vec<String>,
}

/// A whole epoch of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryEpoch {
    /// Its number, as the cut of the disks gave it.
    pub epoch: u64,
    /// The history of the disks that it is of, hex: as the cut answered it.
    pub lineage: String,
}

/// Asked of a backup: the guest's memory is a member of the group from now on, durably.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryJoinRequest {
    /// The epoch that the memory is, as the group committed it; absent if there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u64>,
    /// Whole epochs above that, at most [`MEMORY_WHOLE_MAX`].
    #[serde(default)]
    pub whole: Vec<MemoryEpoch>,
}

/// Waits for a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryWaitRequest {
    /// The answer waits until more than this is committed with memory.
    pub above: u64,
    /// At most this long; 0 answers at once.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// No parameters: protection has ended in order, the disks alone decide again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryLeaveRequest {}

/// To all of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryAnswer {
    /// The last epoch that is committed; 0 if none is.
    pub committed: u64,
    /// The last that was committed with memory, if that is the same: what would be promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_memory: Option<u64>,
}
