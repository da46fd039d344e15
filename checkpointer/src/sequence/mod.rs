//! One guest's checkpoints, step by step. Pure: an event and the time go in, orders for the hypervisor, the
//! disks, the output and the memory link come out; one owner holds it and carries them out.
//!
//! ```text
//!            interval over          paused            disk and state      output cut        goes on
//!   Running ───────────► Pausing ──────────► Closing ──────────► Cutting ──────► Resuming ──────────► Running
//!                           │ late, refused     │                   │               │ late
//!                           └───────────────────┴──── given up ─────┴──► Resuming   └──► Over
//! ```
//!
//! Beside it, for every checkpoint that is whole: memory acknowledged, disk committed → output released.
//!
//! | phase | orders on entry | leaves by | when late, refused or lost |
//! |---|---|---|---|
//! | `Waiting` | FirstCopy, once memory is linked | FirstCopied | stays; the reason names what is missing |
//! | `Running` | – | the interval, CutWanted, OutputWaits → Pausing | a part is lost: no cut until it is back; a copy is lost: `Waiting` |
//! | `Pausing` | Pause | Paused | given up: Resume |
//! | `Closing` | CutDisk, Collect | both done → Cutting, or Resuming where the output has no room for a cut | given up: Abandon, Resume |
//! | `Cutting` | CutOutput n | OutputCut | given up: Abandon, Resume |
//! | `Resuming` | Resume | Resumed: Send n | `Over`: the hypervisor does not answer |
//! | `Ending` | CutDisk, then SendEnd n | both acknowledged: Finish n → `Over` | `Over` at the limit; output stays held |
//! | `Open` | OpenOutput | – | the guest is alone, on the authority's word |
//! | `Over` | HoldOutput; HandOver, once the hypervisor's process has ended | – | – |
//!
//! Invariants:
//! - Output cut at n is released after the backup has memory and disk of one checkpoint m ≥ n, not before.
//! - The disks number the epochs: a cut of theirs is asked for without a number while the guest is paused, and
//!   the answer's number is the checkpoint's. A cut that is late and belongs to an attempt that was given up
//!   ends an epoch that has no memory, and is never taken for another attempt's.
//! - Output is cut last: whatever fails before has changed nothing that needs undoing, and what was said stays
//!   in an epoch that is released later, never earlier.
//! - An early cut ([`Event::OutputWaits`]) is a cut like any other, within the same bounds; it is made only where its output
//!   can be cut too, and never nearer to the last than [`Sequence::set_interval_min`] says.
//! - Output with no room for a cut (a plug has one) is not cut: the checkpoint counts all the same, and what
//!   was cut before is released by it.
//! - A guest that is paused goes on within [`Settings::pause_max_ns`], or the hypervisor is called stuck.
//! - A cut of the output that was given up and may still be carried out is waited for: frames that it takes in
//!   after the next pause would leave with an epoch that does not know them.
//! - Where the authority's record has a backup in from before ([`Sequence::found`]), the output is held from the start; it is let go
//!   by a checkpoint that this backup has, or opened when the authority has taken it out.
//! - Memory that is lost while a checkpoint is made spoils it: what was taken back is not in it.
//! - Pages of a checkpoint that is given up or not acknowledged are sent again ([`Order::Abandon`]).

mod before;
mod early;
mod pause;
mod plant;
mod standing;
mod steps;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "plants"))]
pub use plant::Plant;

pub use before::Found;

use blkback_proto::ids::{Epoch, LineageId};
use std::collections::{BTreeMap, VecDeque};

/// Nanoseconds of a clock that never goes back.
pub type Nanos = u64;

/// What is asked of every checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// From one cut to the next, at least.
    pub interval_ns: Nanos,
    /// From the order to pause to the order to go on, at most.
    pub pause_max_ns: Nanos,
    /// How long the hypervisor may take to let the guest go on.
    pub resume_max_ns: Nanos,
    /// How long an acknowledgement may take before memory or disk counts as lost; and the end of a guest.
    pub answer_max_ns: Nanos,
    /// Checkpoints that may be under way to the backup, at least 1.
    pub in_flight_max: usize,
    /// Cuts of the output that may be unreleased: 1 with a plug.
    pub output_cuts_max: usize,
    pub on_loss: OnLoss,
}

/// What becomes of a guest that cannot be protected any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLoss {
    /// It runs, and what it says is held until it is protected again.
    Hold,
    /// The authority is asked; with its word the guest runs on alone, unprotected.
    Degrade,
}

/// What a checkpoint needs besides the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The link to the backup's memory store.
    Memory,
    /// The group of disks, protected.
    Disk,
    /// What holds the output.
    Output,
}

impl Part {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Memory => "the memory link",
            Self::Disk => "the disks",
            Self::Output => "the output",
        }
    }
}

/// One run through pause, cut and resume; orders carry it and answers bring it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u64);

/// The authority's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// The guest is this host's, alone, under this lineage.
    Won(LineageId),
    /// The backup has taken the guest over.
    Lost,
    Unreachable(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nothing but the clock.
    Tick,
    /// A part that was missing is there (again), and nothing that was ordered of it before is carried out any
    /// more. Of memory: `false` where the backup has no copy to go on from.
    Back {
        part: Part,
        has_base: bool,
    },
    Lost {
        part: Part,
        why: String,
    },
    /// All memory was copied once, while the guest ran; or the link went. It may take hours, so it has no limit:
    /// whoever copies sees to it that this, or the loss of memory, is told.
    FirstCopied(Attempt, Result<(), String>),
    Paused(Attempt, Result<(), String>),
    /// The number that the disks gave the epoch that has ended.
    DiskCut(Attempt, Result<Epoch, String>),
    /// Dirty pages and device state lie in the staging buffer.
    Collected(Attempt, Result<(), String>),
    OutputCut(Attempt, Result<(), String>),
    Resumed(Attempt, Result<(), String>),
    /// The backup has memory (or the end) of this and every earlier checkpoint.
    MemoryAcked(Epoch),
    /// Of every disk of the group.
    DiskCommitted(Epoch),
    /// The disks run out of journal before the interval is over.
    CutWanted,
    /// The guest has said something that is held, and is idle: waiting for the interval would only delay it. A remark about
    /// this moment, which is not remembered.
    OutputWaits,
    /// The guest switched itself off.
    GuestOff,
    /// It does not answer any more, and may be there yet.
    HypervisorGone(String),
    /// Its process has ended. Where the guest had not switched itself off before, it can go on at the backup only.
    HypervisorEnded(String),
    /// An operator ends the protection; the guest runs on.
    Stop,
    Authority(Word),
}

/// What is to be done. An order is answered by an event, or its limit passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Everything once, live.
    FirstCopy(Attempt),
    Pause(Attempt),
    CutDisk(Attempt),
    Collect(Attempt),
    CutOutput(Attempt, Epoch),
    Resume(Attempt),
    /// What was collected is void from now on, and its pages count as dirty still.
    Abandon(Attempt),
    /// What was collected by the attempt goes to the backup, as this epoch.
    Send(Attempt, Epoch),
    /// The guest is off: as memory of this epoch.
    SendEnd(Epoch),
    /// Pages of all checkpoints that were sent and not acknowledged count as dirty again.
    TakeBack,
    /// Output up to the cut of this epoch may leave.
    Release(Epoch),
    AskAuthority,
    OpenOutput(LineageId),
    HoldOutput(String),
    /// Another host has the guest.
    StopGuest,
    /// Protection ends at both sides; the guest is off. Its last words may leave, as of this epoch; of a guest that was alone they
    /// have left.
    Finish(Option<Epoch>),
    /// The guest cannot go on here: the backup is to take it over, and why.
    HandOver(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting { copying: bool },
    Running,
    Pausing,
    Closing { disk: Option<Epoch>, state: bool },
    Cutting { epoch: Epoch },
    Resuming { whole: Option<Epoch> },
    Ending { epoch: Option<Epoch> },
    Open,
    Over,
}

/// A checkpoint that the guest has gone on from.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    epoch: Epoch,
    since: Nanos,
}

/// How it stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub state: &'static str,
    pub reason: String,
    pub next: &'static str,
}

/// The checkpoints of one guest.
#[derive(Debug)]
pub struct Sequence {
    settings: Settings,
    phase: Phase,
    /// When the phase began; of a paused one, when the pause was ordered.
    since: Nanos,
    attempt: Attempt,
    /// Parts that are not there, and why.
    missing: BTreeMap<Part, String>,
    in_flight: VecDeque<InFlight>,
    /// Cuts of the output that were not released.
    output_cuts: VecDeque<Epoch>,
    /// The last cut of whoever was here before: how many more there are nobody knows, so none is added before it is
    /// released.
    found_cut: Option<Epoch>,
    /// A cut that was given up before it was answered, and since when: it may have been carried out, or be
    /// carried out yet.
    unsure: Option<(Attempt, Epoch, Nanos)>,
    /// The highest that was told. Of disks that may be before the guest goes on.
    memory_acked: Option<Epoch>,
    disk_committed: Option<Epoch>,
    /// The last checkpoint that the backup has.
    committed: Option<Epoch>,
    /// The backup has a copy that checkpoints can go on from.
    is_copied: bool,
    /// What the guest says is held, or will be from the next cut on.
    is_held: bool,
    /// The record had a backup in from before, and nothing has come of that yet.
    found: Option<Found>,
    /// The disks want a cut before the interval is over.
    is_cut_wanted: bool,
    /// The step at hand is of [`Event::OutputWaits`].
    is_output_waiting: bool,
    /// An early cut is not nearer to the last one; 0 for none at all.
    interval_min_ns: Nanos,
    /// When the authority was asked last and has not answered.
    asked: Option<Nanos>,
    /// An operator wants the end of protection.
    is_stopping: bool,
    /// It is over because the hypervisor does not answer: the guest is nowhere else, and not off.
    is_stuck: bool,
    /// Why the last checkpoint was given up, or why it is over.
    why: String,
    #[cfg(any(test, feature = "plants"))]
    plant: Option<plant::Plant>,
}
