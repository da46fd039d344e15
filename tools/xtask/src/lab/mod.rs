//! What a demo round runs on: something that keeps a disk, loses its primary, and has a copy
//! elsewhere. Two kinds: blockrep itself, and a plain `qemu-nbd` on one image that is killed and
//! started again. The second loses nothing by construction; where it fails, the lab is at fault and
//! not the product.

mod blockrep;
mod qemu_nbd;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::netns::Host;

pub(crate) use blockrep::{Blockrep, JOURNAL_SIZE, Programs, Setup};
pub(crate) use qemu_nbd::{QemuNbd, serve};

/// What promotion answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promotion {
    /// The epoch the backup became.
    pub(crate) epoch: u64,
    /// When that epoch was cut, Unix time in ns: what was durable before is in it.
    pub(crate) cut_unix_ns: u64,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

/// From a cut to its commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommitLatency {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
}

/// Two sides of one disk. Dropped = everything of it has ended.
pub(crate) trait Lab {
    /// The NBD socket at the primary.
    fn primary_socket(&self) -> &Path;

    /// The NBD socket at the backup; serves after [`Lab::promote`] at the latest.
    fn backup_socket(&self) -> &Path;

    /// The backup's image file.
    fn backup_image(&self) -> &Path;

    /// The primary's and the backup's host, where they are hosts of their own.
    fn hosts(&self) -> Option<&[Host; 2]>;

    /// Fails if something that should run does not.
    fn check(&mut self) -> Result<()>;

    /// Waits until all that was written so far is at the backup. Nobody may be writing.
    fn settle(&mut self) -> Result<()>;

    /// Copies what the backup holds at this moment. Nobody may be writing.
    fn copy_backup_view(&mut self, to: &Path, log: &Path) -> Result<()>;

    fn commit_latency(&mut self) -> Result<Option<CommitLatency>>;

    /// SIGKILL; returns when the process is gone.
    fn kill_primary(&mut self);

    fn promote(&mut self) -> Result<Promotion>;

    /// Waits until the promoted side's image holds everything its view shows.
    fn wait_until_applied(&mut self) -> Result<()>;
}

/// The files a round may use.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Images and logs.
    pub(crate) dir: PathBuf,
    /// Start of the names of sockets, short enough for sun_path.
    pub(crate) sockets: PathBuf,
}

impl Place {
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        let mut path = self.sockets.clone().into_os_string();
        path.push(name);
        PathBuf::from(path)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}
