//! What protects the guest: the seam between a round and the programs that it shows.

mod checkpointer;
mod configuration;
mod none;
mod said;
mod shared;

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::Plant;
use super::machine::Machine;
use super::stage::Stage;
use crate::lab::{Place, Programs};

pub(super) use checkpointer::Checkpointer;
pub(super) use none::Unprotected;

/// A guest, and what lets it survive its host. Dropped = everything of it has ended.
pub(super) trait Protection {
    /// Whether the guest goes on when host A is killed.
    fn survives(&self) -> bool;

    /// Starts what waits at host B.
    fn start_standby(&mut self) -> Result<()>;

    /// Starts the guest at host A, with what protects it; returns when its server listens.
    fn start_primary(&mut self) -> Result<()>;

    fn wait_until_protected(&mut self) -> Result<()>;

    /// Fails if something that should run does not.
    fn check(&mut self) -> Result<()>;

    /// SIGKILL to all that runs at host A; returns when it is gone.
    fn kill_host_a(&mut self);

    /// Returns when the guest runs at host B.
    fn wait_for_takeover(&mut self) -> Result<Takeover>;

    /// What each checkpoint took, as the report reads it:
    /// `[{"cut_unix_ns", "pause_us", "steps": {name: us}, "bytes"}]`.
    fn epochs(&mut self) -> Result<Value>;
}

/// When the guest went on; what nobody said is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Takeover {
    /// The standby has seen that its primary is gone.
    pub(super) detected_unix_ns: Option<u64>,
    /// It began to take over.
    pub(super) promoted_unix_ns: Option<u64>,
    pub(super) running_unix_ns: Option<u64>,
    /// The checkpoint that the guest went on from.
    pub(super) epoch: Option<u64>,
    /// What its clock had lost then.
    pub(super) clock_behind_ms: Option<u64>,
}

impl Takeover {
    /// For people, counted from the kill.
    pub(super) fn words(&self, killed_unix_ns: u64) -> String {
        let ms = |at: u64| at.saturating_sub(killed_unix_ns) / 1_000_000;
        let named = [
            ("detected after", self.detected_unix_ns.map(ms)),
            ("running after", self.running_unix_ns.map(ms)),
        ];
        let times = named
            .iter()
            .filter_map(|(name, ms)| Some(format!("{name} {} ms", (*ms)?)));
        let epoch = self.epoch.map(|epoch| format!("epoch {epoch}"));
        epoch
            .into_iter()
            .chain(times)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Adds it to what is told of the round.
    pub(super) fn tell(&self, told: &mut Value) {
        for (name, value) in [
            ("detected_unix_ns", self.detected_unix_ns),
            ("promoted_unix_ns", self.promoted_unix_ns),
            ("running_unix_ns", self.running_unix_ns),
            ("epoch", self.epoch),
            ("clock_behind_ms", self.clock_behind_ms),
        ] {
            told[name] = json!(value);
        }
    }
}

/// The programs that protect a guest, and how they are told to.
#[derive(Debug)]
pub(super) struct Means {
    pub(super) programs: Programs,
    /// The checkpointer; built with planted bugs where one is wanted.
    pub(super) checkpointer: PathBuf,
    pub(super) plant: Option<Plant>,
    /// From one checkpoint to the next; adaptive where none is given.
    pub(super) interval_ms: Option<u64>,
    /// Cuts before that, where output waits and the guest is idle; 0 for none.
    pub(super) early_ms: u64,
    /// Until a silent primary counts as dead; the default where none is given.
    pub(super) silence_ms: Option<u64>,
}

/// Where a guest is to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) means: &'a Means,
    pub(super) machine: Machine<'a>,
    pub(super) stage: &'a Stage,
    pub(super) place: &'a Place,
}
