//! The lab without the product: one image, one `qemu-nbd`, killed and started again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{CommitLatency, Lab, Place, Promotion};
use crate::checkout::tool;
use crate::guest::now_unix_ns;
use crate::netns::Host;
use crate::process::Process;
use crate::{fsck, stop};

/// `qemu-nbd` on `image`.
#[derive(Debug)]
pub(crate) struct QemuNbd {
    place: Place,
    image: PathBuf,
    primary: PathBuf,
    backup: PathBuf,
    server: Process,
    killed_unix_ns: u64,
}

impl QemuNbd {
    pub(crate) fn start(place: Place, image: PathBuf) -> Result<Self> {
        let (primary, backup) = (place.socket("a"), place.socket("b"));
        let server = serve(&image, &primary, &place.log("qemu-nbd"))?;
        Ok(Self {
            place,
            image,
            primary,
            backup,
            server,
            killed_unix_ns: 0,
        })
    }
}

/// Serves a raw image on a Unix socket; returns when clients can connect.
pub(crate) fn serve(image: &Path, socket: &Path, log: &Path) -> Result<Process> {
    let mut command = tool("qemu-nbd");
    command
        .args([
            "--persistent",
            "--shared=4",
            "--format=raw",
            "--cache=writeback",
            "--discard=unmap",
        ])
        .arg("--socket")
        .arg(socket)
        .arg(image);
    let mut process = Process::spawn(&mut command, "qemu-nbd", log)?;
    stop::wait_for("qemu-nbd to listen", Duration::from_secs(20), || {
        process.must_be_alive()?;
        Ok(socket.exists().then_some(()))
    })?;
    Ok(process)
}

impl Lab for QemuNbd {
    fn primary_socket(&self) -> &Path {
        &self.primary
    }

    fn backup_socket(&self) -> &Path {
        &self.backup
    }

    fn backup_image(&self) -> &Path {
        &self.image
    }

    fn hosts(&self) -> Option<&[Host; 2]> {
        None
    }

    fn check(&mut self) -> Result<()> {
        self.server.must_be_alive()
    }

    /// One image: what is written is there.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    fn copy_backup_view(&mut self, to: &Path, log: &Path) -> Result<()> {
        fsck::copy_view(&self.primary, to, log)
    }

    fn commit_latency(&mut self) -> Result<Option<CommitLatency>> {
        Ok(None)
    }

    fn kill_primary(&mut self) {
        self.killed_unix_ns = now_unix_ns();
        self.server.kill();
    }

    fn promote(&mut self) -> Result<Promotion> {
        let since = Instant::now();
        self.server = serve(&self.image, &self.backup, &self.place.log("qemu-nbd-again"))?;
        Ok(Promotion {
            epoch: 0,
            cut_unix_ns: self.killed_unix_ns,
            took: since.elapsed(),
        })
    }

    fn wait_until_applied(&mut self) -> Result<()> {
        std::fs::File::open(&self.image)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("sync {}", self.image.display()))
    }
}
