//! A directory whose files are memory: the guest's, and what a standby keeps of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::checkout::{SOCKETS_PREFIX, sweep};

/// Where files are memory.
const PLACE: &str = "/dev/shm";

/// Removed with the guard, and by the next run if this one is killed.
#[derive(Debug)]
pub(super) struct SharedMemory(PathBuf);

impl SharedMemory {
    pub(super) fn new() -> Result<Self> {
        let shared = Path::new(PLACE);
        sweep(shared, SOCKETS_PREFIX);
        let dir = shared.join(format!("{SOCKETS_PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
