//! A disk image that is measured.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};

use crate::stop;

const CHUNK_BYTES: usize = 4 << 20;

/// Writes it from end to end, so that nothing measured allocates, and leaves none of it in the page
/// cache: the kernel would hand direct writes to threads of its own there.
pub(super) fn write(path: &Path, size_mib: u64) -> Result<()> {
    let chunk = vec![0xa5_u8; CHUNK_BYTES];
    let fill = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        let mut left = usize::try_from(size_mib << 20).unwrap_or(usize::MAX);
        while left > 0 && stop::check().is_ok() {
            let bytes = left.min(CHUNK_BYTES);
            file.write_all(&chunk[..bytes])?;
            left -= bytes;
        }
        file.sync_all()?;
        // SAFETY: no memory involved, and the file is open for the call.
        match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(error)),
        }
    };
    fill().with_context(|| format!("write {}", path.display()))?;
    stop::check()
}
