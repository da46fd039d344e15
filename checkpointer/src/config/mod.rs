//! Configuration of the two daemons of a guest, from a TOML file.
//!
//! [`raw`] is what the file may say, [`check`](self) what it means: defaults, bounds, settings that contradict one
//! another. A mistake is one line: file, line, what, and what to write instead. [`PROTECT_EXAMPLE`] and
//! [`STANDBY_EXAMPLE`] document every key; a test reads them. Nothing here touches anything but the file.

mod check;
mod place;
mod raw;
#[cfg(test)]
mod tests;

use crate::authority::{
    Authority, COMMAND_RUN_MAX, CommandAuthority, FileAuthority, ManualAuthority,
};
use crate::sequence::{Nanos, OnLoss, Settings};
use blkback_proto::ctl::NetStation;
use std::fs;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Every key of the primary's side with its default and bounds.
pub const PROTECT_EXAMPLE: &str = include_str!("protect.toml");
/// The same of the standby's.
pub const STANDBY_EXAMPLE: &str = include_str!("standby.toml");
/// A configuration has some hundred bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
const MILLI: Nanos = 1_000_000;

/// Which daemon reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Beside the running guest.
    Protect,
    /// Where it would go on.
    Standby,
}

/// A mistake in the file: `vm1.toml:7: what; write so`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}:{line}: {what}")]
pub struct ConfigError {
    /// As it was named.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// What is wrong and what to write instead.
    pub what: String,
}

/// Everything, with the defaults filled in and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name of the guest.
    pub guest: String,
    /// Name of this host, as the authority's record has it.
    pub host: String,
    /// Control socket of the daemon of its disks; `None` for a guest without disks of ours.
    pub disks: Option<PathBuf>,
    /// What it says.
    pub output: Output,
    /// The way of its memory.
    pub memory: Memory,
    /// Its checkpoints.
    pub epochs: Epochs,
    /// When the standby takes over.
    pub standby: Standby,
    /// Who says who may run it.
    pub authority: AuthorityChoice,
    /// The hypervisor's, as it stands in the file: `program`, `memory_mib`, `memory_file`, `args`.
    pub qemu: toml::Table,
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Control socket of netbuf.
    pub control: PathBuf,
    /// Its network devices on this host.
    pub interfaces: Vec<String>,
    /// The bridge they speak to.
    pub bridge: Option<String>,
    /// What is announced after a promotion.
    pub stations: Vec<NetStation>,
    /// Until the backup has what it came from.
    pub is_held: bool,
}

/// The way of the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// `HOST:PORT` of the standby; there at the primary's side.
    pub backup: Option<String>,
    /// Name of the standby's host, as the authority's record is to have it.
    pub backup_host: String,
    /// `ADDRESS:PORT` to listen on; there at the standby's side.
    pub listen: Option<String>,
    /// Directory in memory for what was acknowledged.
    pub store: PathBuf,
    /// Limit of the first copy.
    pub copy_mib_per_s: u64,
    /// For pages on their way.
    pub buffer_mib: u64,
    /// For pages that differences are made against.
    pub cache_mib: u64,
}

/// The checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epochs {
    /// From one to the next.
    pub interval: Interval,
    /// Where output waits and the guest is idle it is cut before the interval is over, never nearer than this to the cut
    /// before; 0 for never.
    pub early_ms: u64,
    /// Longest pause.
    pub pause_max_ms: u64,
    /// Longest wait for an acknowledgement.
    pub answer_max_ms: u64,
    /// Most on their way.
    pub in_flight_max: usize,
    /// What becomes of the guest when its backup is lost.
    pub on_loss: OnLoss,
}

/// From one checkpoint to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// Always the same.
    Fixed {
        /// It.
        interval_ms: u64,
    },
    /// So that the pauses keep to a share of the time.
    Adaptive {
        /// The least.
        min_ms: u64,
        /// The most.
        max_ms: u64,
        /// The share.
        pause_percent: u64,
    },
}

/// When the standby takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// On whose word.
    pub promote: Promote,
    /// Then the primary counts as lost.
    pub silence_ms: u64,
}

/// On whose word a standby takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promote {
    /// The authority's, asked when the primary is silent.
    Auto,
    /// An operator's.
    ByHand,
}

/// Who says who may run the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityChoice {
    /// A file that both daemons see.
    File(PathBuf),
    /// A fence command.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// This host's record.
        record: PathBuf,
    },
    /// An operator.
    Manual {
        /// This host's record.
        record: PathBuf,
    },
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], also where it cannot be read.
    pub fn read(path: &Path, side: Side) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let unread = |what: String| ConfigError {
            file: file.clone(),
            line: 1,
            what,
        };
        let meta = fs::metadata(path)
            .map_err(|error| unread(format!("cannot be read: {error}; name another")))?;
        if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
            return Err(unread("is no configuration; name another file".to_owned()));
        }
        let text = fs::read_to_string(path)
            .map_err(|error| unread(format!("cannot be read: {error}; name another")))?;
        Self::parse(&file, &text, side, &host_name())
    }

    /// Reads a text. `host` is the name of this host, where the text gives it no other.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(file: &str, text: &str, side: Side, host: &str) -> Result<Self, ConfigError> {
        let place = place::Place { file, text };
        let raw: raw::Raw = toml::from_str(text).map_err(|error| place.of_toml(&error))?;
        check::check(raw, &place, side, host)
    }
}

impl Epochs {
    /// For the sequence. `output_cuts_max` is what holds the output can do: 1 with a plug.
    #[must_use]
    pub fn settings(&self, output_cuts_max: usize) -> Settings {
        let interval_ms = match self.interval {
            Interval::Fixed { interval_ms } => interval_ms,
            Interval::Adaptive { min_ms, .. } => min_ms,
        };
        Settings {
            interval_ns: interval_ms * MILLI,
            pause_max_ns: self.pause_max_ms * MILLI,
            resume_max_ns: self.answer_max_ms * MILLI,
            answer_max_ns: self.answer_max_ms * MILLI,
            in_flight_max: self.in_flight_max,
            output_cuts_max,
            on_loss: self.on_loss,
        }
    }
}

impl AuthorityChoice {
    /// Makes it ready; nothing is read yet.
    #[must_use]
    pub fn open(&self, guest: &str, host: &str) -> Box<dyn Authority> {
        let file = |path: &PathBuf| FileAuthority::new(path.clone(), guest);
        match self {
            Self::File(path) => Box::new(file(path)),
            Self::Manual { record } => Box::new(ManualAuthority::new(file(record))),
            Self::Command { command, record } => Box::new(CommandAuthority::new(
                file(record),
                host,
                command.clone(),
                COMMAND_RUN_MAX,
            )),
        }
    }
}

/// The host's own name; empty where the kernel does not say.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
