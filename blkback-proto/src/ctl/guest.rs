//! Requests to the two checkpointer daemons of a guest: how it is protected, what each checkpoint took, its end, and
//! its promotion.
//!
//! A socket answers for one guest and one side: [`guest_socket_name`]. A blockrep or netbuf daemon answers
//! [`ErrorCode::Unsupported`](super::ErrorCode::Unsupported) to all of them. What a side does not know is absent.

use serde::{Deserialize, Serialize};

use super::frame::ANSWER_BYTES_MAX;
use super::status::{Bounds, DaemonStatus, Stated, SyncProgress, number_or_null};
use super::text::bounded_line;
use super::words::{
    GuestProtection, GuestSide, IntervalMode, LinkState, NetMechanism, NetState, StatePath,
    TrackerKind,
};

/// Most checkpoints in one answer to `guest-timeline`.
pub const EPOCH_FIGURES_MAX: usize = 200;
/// Longest reason of a checkpoint that was given up.
pub const GIVEN_UP_BYTES_MAX: usize = 200;
/// What one of them takes at most: 20 numbers of 20 digits with their names, and a reason in which every byte is
/// escaped.
const EPOCH_FIGURES_BYTES_MAX: usize = 1300;
const _: () = assert!(EPOCH_FIGURES_MAX * EPOCH_FIGURES_BYTES_MAX + 1024 < ANSWER_BYTES_MAX);

/// File name of the control socket, in the directory of them.
#[must_use]
pub fn guest_socket_name(guest: &str, side: &GuestSide) -> String {
    let daemon = match side {
        GuestSide::Primary => "checkpointer",
        GuestSide::Standby => "standby",
        GuestSide::Other(word) => word,
    };
    format!("{guest}.{daemon}.sock")
}

/// No parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestStatusRequest {}

/// Which checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestTimelineRequest {
    /// First one wanted; 0 is the oldest kept.
    #[serde(default)]
    pub from_seq: u64,
}

/// Ends the protection; the guest runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestStopRequest {
    /// Why, for status and events.
    #[serde(default)]
    pub reason: String,
    /// An operator vouches that the guest does not run at the backup, nor will.
    #[serde(default)]
    pub by_hand: bool,
}

/// Lets the guest go on at its standby, at the newest checkpoint that is whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPromoteRequest {
    /// Also beside a living primary.
    #[serde(default)]
    pub force: bool,
    /// An operator vouches that the guest does not run at the other host, nor will.
    #[serde(default)]
    pub by_hand: bool,
    /// Why, for the record of the authority and the events.
    #[serde(default)]
    pub reason: String,
}

/// Answer to `guest-status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Who answers.
    pub daemon: DaemonStatus,
    /// Name of the guest.
    pub guest: String,
    /// Name of this host, as the authority's record has it.
    pub host: String,
    /// Which daemon of the guest this is.
    pub side: GuestSide,
    /// How it is protected.
    #[serde(flatten)]
    pub stated: Stated<GuestProtection>,
    /// What runs the guest, or would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<GuestHypervisor>,
    /// How written pages are found; only at the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<GuestTracker>,
    /// Who says who may run it.
    pub authority: GuestAuthority,
    /// Its disks; absent for a guest without disks of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<GuestDisks>,
    /// What it says; absent where nothing holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<GuestOutput>,
    /// The way of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_link: Option<MemoryLink>,
    /// The first copy, while it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_copy: Option<SyncProgress>,
    /// Newest checkpoint in each stage.
    pub epochs: GuestEpochs,
    /// Time between two; only at the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GuestInterval>,
    /// What the last ones took; absent until there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<GuestTimeline>,
    /// How far the guest's clock fell behind; only at the primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<GuestClock>,
    /// Checkpoints that were not made.
    #[serde(default)]
    pub given_up: GuestGivenUp,
    /// What a promotion would do; only at the standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<GuestStandby>,
    /// The limits this daemon runs under.
    pub bounds: Bounds,
}

/// What runs the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHypervisor {
    /// Of its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name and version.
    pub version: String,
    /// How the state of devices is read; absent until that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_path: Option<StatePath>,
    /// Why that way.
    pub why: String,
}

/// How written pages are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTracker {
    /// Which way.
    pub kind: TrackerKind,
    /// Why that one.
    pub why: String,
    /// What the last scan took; absent until there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scan_us: Option<u64>,
}

/// Who says who may run the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAuthority {
    /// Which one, in words.
    pub words: String,
    /// As it was read last; absent where there is none yet, or it was never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<GuestRecord>,
    /// Why it could not be read, if so, and what to type; one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// The authority's record of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    /// Counts its changes, from 1.
    pub generation: u64,
    /// Who writes the guest, 32 hexadecimal digits.
    pub lineage: String,
    /// Host whose guest it is.
    pub primary: String,
    /// Hosts that it could go on at, the primary among them; by name.
    pub in_sync: Vec<String>,
    /// Why it was changed last.
    pub note: String,
    /// When, Unix time of the host that changed it.
    pub unix_ms: u64,
}

/// The disks of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDisks {
    /// Control socket of their daemon.
    pub control: String,
    /// The state of their group in its own word; absent where it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why, in words.
    pub reason: String,
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestOutput {
    /// As netbuf has it; absent where it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NetState>,
    /// What holds the frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<NetMechanism>,
    /// Why, in words.
    pub reason: String,
}

/// The way of the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLink {
    /// Address of the other side, or the one listened on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// State of the link.
    #[serde(flatten)]
    pub stated: Stated<LinkState>,
    /// Round trip, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Sent since the start of the daemon.
    pub sent_bytes: u64,
    /// Received since then.
    pub received_bytes: u64,
}

/// Newest checkpoint in each stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEpochs {
    /// Disks, memory and output were cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<u64>,
    /// Its memory was handed to the kernel for the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// The backup has all of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<u64>,
    /// The backup has its disks, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u64>,
    /// What was said until then has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
}

/// Time between two checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestInterval {
    /// How it is chosen.
    pub mode: IntervalMode,
    /// As it is now.
    pub now_ms: u64,
    /// The least there is.
    pub min_ms: u64,
    /// The most there is.
    pub max_ms: u64,
    /// Part of the time that the guest stood still, over the last checkpoints.
    #[serde(deserialize_with = "number_or_null")]
    pub pause_percent: f64,
    /// What that is kept to, where the interval is adaptive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_percent_max: Option<f64>,
}

/// Of many values: half are at most the first, 99 in 100 at most the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub p50: u64,
    /// All but one in a hundred are at most this.
    pub p99: u64,
}

/// The steps of a checkpoint, in microseconds: of one, or of many as a [`Spread`]. Those up to `cont` are parts of the
/// pause; the others count from the end of the pause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes<T> {
    /// The guest is stopped.
    pub stop: T,
    /// The disks' epoch ends; beside scan, copy and device state.
    pub disk_cut: T,
    /// Written pages are found.
    pub scan: T,
    /// They are copied.
    pub copy: T,
    /// The state of the devices is read.
    pub device_state: T,
    /// The output's epoch ends.
    pub output_cut: T,
    /// The guest goes on.
    pub cont: T,
    /// The whole pause.
    pub pause: T,
    /// What is ours in it: scan, copy, the output's cut, and what the disks' cut takes beyond what runs beside it.
    pub ours: T,
    /// Until the pages are compressed.
    pub encode: T,
    /// Until all is handed to the kernel.
    pub send: T,
    /// Until the backup has the memory; absent while it has not.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub whole: Option<T>,
    /// Until it has the disks, too.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub committed: Option<T>,
    /// Until the output is let go.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub released: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

/// What the last checkpoints took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTimeline {
    /// How many they are.
    pub epochs: u64,
    /// Each step, in microseconds.
    pub us: StepTimes<Spread>,
    /// Pages of a checkpoint.
    pub dirty_pages: Spread,
    /// Their bytes, with the state of the devices.
    pub raw_bytes: Spread,
    /// The same on the wire.
    pub wire_bytes: Spread,
}

/// How far the guest's clock fell behind by its pauses, since protection began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestClock {
    /// All together.
    pub lost_ms: u64,
    /// Of the time since then.
    #[serde(deserialize_with = "number_or_null")]
    pub lost_percent: f64,
}

/// Checkpoints that were not made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestGivenUp {
    /// Since the start of the daemon.
    pub count: u64,
    /// Why the last one was; empty if none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_reason: String,
}

/// What waits at the standby.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStandby {
    /// Counts the copies that were begun from nothing.
    pub generation: u64,
    /// Process of the hypervisor that would take the guest over; absent where none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Checkpoint that a promotion would go on from; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotable_epoch: Option<u64>,
    /// Since it was whole here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotable_age_ms: Option<u64>,
    /// What a promotion would do now, in words, and what to type if it would be refused.
    pub if_promoted: String,
}

/// A bounded batch of kept checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTimelineAnswer {
    /// Random id of this run of the daemon: sequence numbers of another run mean nothing.
    pub log: String,
    /// Oldest first; at most [`EPOCH_FIGURES_MAX`].
    pub epochs: Vec<EpochFigures>,
    /// Those between the one asked for and the oldest kept, gone for good.
    pub lost: u64,
    /// Ask from here next.
    pub next_seq: u64,
    /// Whether more are kept from `next_seq` on.
    pub more: bool,
}

/// One checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochFigures {
    /// Number within this run of the daemon, from 1, without gaps.
    pub seq: u64,
    /// The disks' number; absent where it was given up before it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When the pause was ordered, Unix time.
    pub unix_ms: u64,
    /// Each step, in microseconds.
    pub us: StepTimes<u64>,
    /// Pages that were written.
    pub dirty_pages: u64,
    /// Those of them that held nothing but zeros, once they were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_pages: Option<u64>,
    /// Their bytes, with the state of the devices.
    pub raw_bytes: u64,
    /// The same on the wire.
    pub wire_bytes: u64,
    /// Why it was given up, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
}

impl EpochFigures {
    /// Shortens the reason to what an answer has room for.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.given_up = self
            .given_up
            .map(|reason| bounded_line(&reason, GIVEN_UP_BYTES_MAX));
        self
    }
}

/// Protection ends, or has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStopAnswer {
    /// It had ended before.
    pub already: bool,
    /// How it stands now.
    pub state: GuestProtection,
    /// The last checkpoint that the backup has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u64>,
    /// What else to know or to type, one line; empty if nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The guest goes on here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPromoteAnswer {
    /// It had been promoted before; times are those of then.
    pub already: bool,
    /// Checkpoint that it went on from.
    pub epoch: u64,
    /// Who writes it now, 32 hexadecimal digits.
    pub lineage: String,
    /// From the request to the running guest.
    pub duration_us: u64,
    /// What that was spent on.
    pub steps: PromoteSteps,
    /// How far the guest's clock is behind, by its pauses and since the cut, where it could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_behind_ms: Option<u64>,
    /// What else to know or to type, one line; empty if nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What a promotion was spent on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteSteps {
    /// The authority.
    pub decide_us: u64,
    /// The disks, promoted to the same epoch.
    pub disk_us: u64,
    /// Memory put in its place.
    pub memory_us: u64,
    /// The state of the devices loaded.
    pub load_us: u64,
    /// Until the guest runs.
    pub cont_us: u64,
    /// Until the network was told the first time.
    pub announce_us: u64,
}

#[cfg(test)]
mod tests;
