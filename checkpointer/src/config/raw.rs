//! What the file may say. Everything else is a mistake.

use crate::sequence::OnLoss;
use blkback_proto::ctl::NetStation;
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) guest: String,
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) disks: Disks,
    pub(super) output: Option<Output>,
    #[serde(default)]
    pub(super) memory: Memory,
    #[serde(default)]
    pub(super) epochs: Epochs,
    #[serde(default)]
    pub(super) standby: Standby,
    #[serde(default)]
    pub(super) authority: Authority,
    #[serde(default)]
    pub(super) qemu: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disks {
    pub(super) control: Option<PathBuf>,
    #[serde(default)]
    pub(super) none: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Output {
    pub(super) control: Option<PathBuf>,
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) bridge: Option<String>,
    #[serde(default)]
    pub(super) stations: Vec<NetStation>,
    pub(super) held: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    pub(super) backup: Option<String>,
    pub(super) backup_host: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) store: Option<PathBuf>,
    pub(super) copy_mib_per_s: Option<u64>,
    pub(super) buffer_mib: Option<u64>,
    pub(super) cache_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Epochs {
    pub(super) interval_ms: Option<u64>,
    pub(super) adaptive: Option<Adaptive>,
    pub(super) early_ms: Option<u64>,
    pub(super) pause_max_ms: Option<u64>,
    pub(super) answer_max_ms: Option<u64>,
    pub(super) in_flight_max: Option<u64>,
    pub(super) on_loss: Option<Loss>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Adaptive {
    pub(super) min_ms: Option<u64>,
    pub(super) max_ms: Option<u64>,
    pub(super) pause_percent: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Loss {
    Hold,
    Degrade,
}

impl From<Loss> for OnLoss {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Hold => Self::Hold,
            Loss::Degrade => Self::Degrade,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Standby {
    pub(super) promote: Option<Promote>,
    pub(super) silence_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Promote {
    Auto,
    ByHand,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authority {
    pub(super) file: Option<PathBuf>,
    pub(super) command: Option<Vec<String>>,
    pub(super) manual: Option<bool>,
    pub(super) record: Option<PathBuf>,
}
