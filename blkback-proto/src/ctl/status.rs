//! The answer to `status`: the schema that every daemon fills and every tool reads.
//!
//! Units stand in the names. What a side cannot know is absent, never guessed: `None` fields are
//! left out of the JSON. Every state carries its reason, since when, and what comes next.

use serde::{Deserialize, Deserializer, Serialize};

use super::words::{AckMode, GroupState, GuestState, LinkState, OutputClass, Role, VolumeState};

/// Everything there is to know about one group, seen from one daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The process that answers.
    pub daemon: DaemonStatus,
    /// Who the group is and how well it is protected.
    pub group: GroupStatus,
    /// When a write is answered.
    pub ack_mode: AckMode,
    /// Answers wait for the backup as the mode says; not so where there is none, or on a backup.
    #[serde(default = "yes")]
    pub ack_in_force: bool,
    /// What others can see before a commit.
    pub output: OutputStatus,
    /// Newest epoch in each stage.
    pub epochs: Epochs,
    /// On a primary with a backup: bytes for the backup that this host's kernel has not taken yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsent_bytes: Option<u64>,
    /// On a primary: age of the oldest epoch that was cut and is not committed; 0 if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncommitted_ms: Option<u64>,
    /// On a backup, and after a promotion until the journal is drained: bytes that are safe in the
    /// journal and not in the image yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unapplied_bytes: Option<u64>,
    /// The moment whose disk this side holds; only on a backup that holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskTime>,
    /// On a backup whose group has the guest's memory as a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_memory: Option<GuestMemoryStatus>,
    /// The way to the other side. Every volume has one of its own: that of the first volume whose link
    /// is not up, else of the first.
    pub link: LinkStatus,
    /// In the order they were given to the daemon.
    pub volumes: Vec<VolumeStatus>,
    /// The limits this daemon runs under.
    pub bounds: Bounds,
    /// Averages over the last seconds.
    pub rates: Rates,
    /// From a cut to its commit, over the last epochs.
    pub commit_latency: CommitLatency,
    /// How long cuts held answers to the guest, over the last epochs; only on a primary.
    #[serde(default)]
    pub cut_hold: CutHold,
    /// Who wrote what: oldest first.
    pub lineage: Vec<LineageEntry>,
}

/// What a daemon that does not say it yet means.
fn yes() -> bool {
    true
}

/// The guest's memory beside a backup's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryStatus {
    /// Its holder has said what it has, since the start of this daemon.
    pub joined: bool,
    /// The last epoch that was committed with memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Whole epochs of memory that wait for the disks.
    pub waiting: u64,
}

/// A state with its reason; its fields stand directly in the object that has the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stated<S> {
    /// One word.
    pub state: S,
    /// Why, in words.
    pub reason: String,
    /// When it became so, Unix time.
    pub since_unix_ms: u64,
    /// What will happen, or what to do, in words.
    pub next: String,
}

/// The process that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// `blockrep` or `blockrep-backup`.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Since its start.
    pub uptime_s: u64,
}

/// Identity and state of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// As given on the command line.
    pub name: String,
    /// Hex; absent until the first connection made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Side of this daemon.
    pub role: Role,
    /// How well it is protected.
    #[serde(flatten)]
    pub stated: Stated<GroupState>,
}

/// What others can see before a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputStatus {
    /// Held or open.
    pub class: OutputClass,
    /// What can be lost if the primary dies now, in words.
    pub possible_loss: String,
}

/// Newest epoch in each stage, as far as this side knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epochs {
    /// Being written into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    /// On stable storage at the backup, every volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<u64>,
    /// Decided: the backup's state, should the primary die now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u64>,
    /// Its output was let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
    /// In the backup's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
}

/// The moment that a backup's disk is of: what a promotion now would serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTime {
    /// The last committed epoch.
    pub epoch: u64,
    /// When the primary cut it, by its clock, Unix time. After a restart of the backup that of the
    /// last epoch with writes; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_unix_ns: Option<u64>,
}

/// The way to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Address of the peer, or the address listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// State of the link.
    #[serde(flatten)]
    pub stated: Stated<LinkState>,
    /// Random id of the connection, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Round trip, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// What may still be sent before the backup frees more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit_bytes: Option<u64>,
    /// When the peer of the last session was heard of last, Unix time; absent where there was no
    /// session since the start of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_unix_ms: Option<u64>,
    /// When the last session ended, Unix time; absent while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_unix_ms: Option<u64>,
    /// The peer this side refused last, unless one was taken in since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedPeer>,
}

/// A peer that was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedPeer {
    /// Its address.
    pub peer: String,
    /// What it was told.
    pub reason: String,
    /// When it was refused last, Unix time.
    pub unix_ms: u64,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Name within the group.
    pub name: String,
    /// Path of the image file or block device.
    pub image: String,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Hex; absent until the first connection made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// State of this disk.
    #[serde(flatten)]
    pub stated: Stated<VolumeState>,
    /// Fill of its journal; absent where this side has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalStatus>,
    /// A comparison or copy that is running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncProgress>,
    /// The guest, where it is served by vhost-user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStatus>,
    /// Its own way to the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkStatus>,
    /// Since the start of the daemon.
    pub counters: VolumeCounters,
}

/// A guest that is served by vhost-user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Whether it is there.
    #[serde(flatten)]
    pub stated: Stated<GuestState>,
    /// Queues that requests are taken from.
    pub queues_running: u32,
    /// Features its driver took, in short.
    #[serde(default)]
    pub features: Vec<String>,
}

/// Fill of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Room for records.
    pub bytes_total: u64,
    /// Records not yet applied.
    pub bytes_used: u64,
    /// The same in percent, 0 to 100.
    pub percent: u8,
    /// Pieces of the disk whose newest content is in the journal.
    pub extents: u64,
}

/// How far a comparison or copy is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// Compared, and copied where different.
    pub done_bytes: u64,
    /// All there is to do.
    pub total_bytes: u64,
    /// Speed over the last seconds.
    pub bytes_per_s: u64,
    /// Expected time to the end; absent when it does not move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
}

/// What the front ends asked of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCounters {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard and write-zeroes requests.
    pub discards: u64,
    /// Bytes of the reads.
    pub bytes_read: u64,
    /// Bytes of the writes.
    pub bytes_written: u64,
    /// Bytes of the discards.
    pub bytes_discarded: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// The limits this daemon runs under.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// The most memory the daemon will use: the sum of the parts.
    pub memory_bytes_max: u64,
    /// What the sum is made of.
    #[serde(default)]
    pub memory: Vec<MemoryPart>,
    /// Queues and windows, with their present fill.
    #[serde(default)]
    pub queues: Vec<QueueBound>,
}

/// One use of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPart {
    /// What for, in words.
    pub name: String,
    /// The most it takes.
    pub bytes_max: u64,
}

/// One bounded queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueBound {
    /// Which, in words.
    pub name: String,
    /// What is counted: `bytes`, `requests`, `epochs`, `ms`.
    pub unit: String,
    /// Now.
    pub used: u64,
    /// The most there can be.
    pub limit: u64,
    /// What happens at the limit, in words.
    pub at_limit: String,
}

/// Averages over the last seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Data coming in: writes of the guest, or the link.
    pub in_bytes_per_s: u64,
    /// Data going out: the link, or apply.
    pub out_bytes_per_s: u64,
    /// Epochs committed per second.
    #[serde(deserialize_with = "number_or_null")]
    pub epochs_per_s: f64,
}

/// JSON has no word for "not a number": what a division by no time gave is written as null, and
/// must not make the whole status unreadable.
pub(super) fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(0.0))
}

/// From a cut to its commit; absent until an epoch was committed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitLatency {
    /// Half are faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// One in a hundred is slower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

/// How long a cut held answers to the guest; absent until there was one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutHold {
    /// Half are shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// One in a hundred is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

/// One entry of the lineage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageEntry {
    /// Random id, hex.
    pub id: String,
    /// First epoch written under it.
    pub first_epoch: u64,
    /// Why it began, in words.
    pub why: String,
    /// When it began, Unix time.
    pub unix_ms: u64,
}
