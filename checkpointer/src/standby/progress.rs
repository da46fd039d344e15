//! How far a promotion has come, beside the store: a daemon that is started anew goes on from there.
//!
//! In shared memory, as the store is: with the host's power all of it is gone. What outlives that is the authority's
//! record.

use crate::authority::Record;
use blkback_proto::ctl::GuestPromoteAnswer;
use blkback_proto::ids::{Epoch, LineageId};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;

const NAME: &str = "promotion.json";
const NEW: &str = "promotion.json.new";

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Of the authority's record: what is told of another decision counts for nothing.
    lineage: String,
    /// The disks serve this epoch.
    disks: Option<u64>,
    /// All is done.
    pub(super) answer: Option<GuestPromoteAnswer>,
}

impl Progress {
    pub(super) fn new(lineage: LineageId) -> Self {
        Self {
            lineage: lineage.to_string(),
            ..Self::default()
        }
    }

    /// What was kept of this decision; nothing is as good as what cannot be read, for every step may be repeated.
    pub(super) fn of(store: &Path, record: Option<&Record>) -> Self {
        let read = || -> Option<Self> {
            let text = fs::read(store.join(NAME)).ok()?;
            let kept: Self = serde_json::from_slice(&text).ok()?;
            let is_known = record.is_none_or(|record| kept.lineage == record.lineage.to_string());
            is_known.then_some(kept)
        };
        read().unwrap_or_else(|| record.map_or_else(Self::default, |own| Self::new(own.lineage)))
    }

    pub(super) fn disks(&self) -> Option<Epoch> {
        self.disks.map(Epoch)
    }

    pub(super) fn set_disks(&mut self, epoch: Epoch) {
        self.disks = Some(epoch.0);
    }

    pub(super) fn write(&self, store: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        fs::write(store.join(NEW), text)?;
        fs::rename(store.join(NEW), store.join(NAME))
    }
}
