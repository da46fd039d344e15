//! The log of a migration as a VMM holds it: a shared file with a bit for each of the guest's pages.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vhost::VhostUserDirtyLogRegion;

const PAGES_A_BYTE: u64 = 8 * 4096;

pub(crate) struct Log {
    file: File,
    bytes: u64,
}

impl Log {
    /// For that much of the guest's address space.
    pub(crate) fn new(end: u64) -> Self {
        let file = tempfile::tempfile().unwrap();
        let bytes = end.div_ceil(PAGES_A_BYTE);
        file.set_len(bytes).unwrap();
        Self { file, bytes }
    }

    pub(super) fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.bytes,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Numbers of the pages that are logged; the log is empty afterwards. Nothing may be in flight.
    pub(crate) fn take(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; self.bytes as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        self.file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
        let bit = |page: &u64| bytes[*page as usize / 8] >> (page % 8) & 1 == 1;
        (0..self.bytes * 8).filter(bit).collect()
    }
}
