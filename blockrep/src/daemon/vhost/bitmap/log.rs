//! The log of a migration: memory of the VMM with one bit for each of the guest's pages, which it reads
//! and clears while the guest runs.
//!
//! The log is the connection's, not the memory's: a VMM that tells its memory anew goes on reading the
//! log that it gave before. So new regions get it as well, until the VMM takes logging away.

use super::{GuestBitmap, PAGE_LEN};
use crate::daemon::vhost::Guest;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use vhost_user_backend::bitmap::{AtomicBitmapMmap, MemRegionBitmap, MmapLogReg};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

const BYTE_BITS: usize = u8::BITS as usize;

/// The log, mapped.
pub(in crate::daemon::vhost) type LogMemory = Arc<MmapLogReg>;

/// The log as a region of memory sees it.
#[derive(Debug)]
pub(in crate::daemon) struct RegionLog {
    memory: LogMemory,
    /// Where the region begins and how long it is, in the guest's memory.
    start: usize,
    len: usize,
}

impl MemRegionBitmap for RegionLog {
    /// Fails when the log is too short for the region.
    fn new<R: GuestMemoryRegion>(region: &R, memory: LogMemory) -> io::Result<Self> {
        // For its checks; it can be made only, not marked.
        AtomicBitmapMmap::new(region, Arc::clone(&memory))?;
        let place = |value: u64| usize::try_from(value).map_err(io::Error::other);
        Ok(Self {
            memory,
            start: place(region.start_addr().0)?,
            len: place(region.len())?,
        })
    }
}

impl RegionLog {
    /// What was written there before can be seen by whoever sees the bits.
    pub(super) fn mark(&self, offset: usize, len: usize) {
        let end = offset.saturating_add(len).min(self.len);
        if offset >= end {
            return;
        }
        for page in (self.start + offset) / PAGE_LEN..=(self.start + end - 1) / PAGE_LEN {
            let bit = 1 << (page % BYTE_BITS);
            self.memory[page / BYTE_BITS].fetch_or(bit, Ordering::Release);
        }
    }
}

/// The log that the VMM gave for this memory.
pub(in crate::daemon::vhost) fn log_of(guest: &Guest) -> Option<LogMemory> {
    let log = |bits: &GuestBitmap| {
        let log = bits.log.read().unwrap_or_else(PoisonError::into_inner);
        log.as_ref().map(|log| Arc::clone(&log.memory))
    };
    guest
        .iter()
        .find_map(|region| log(MmapRegion::bitmap(region)))
}

/// Logs what is written to this memory; fails when the log is too short for it.
pub(in crate::daemon::vhost) fn carry_log_over(guest: &Guest, log: &LogMemory) -> io::Result<()> {
    for region in guest.iter() {
        let log = RegionLog::new(region, Arc::clone(log))
            .map_err(|_| io::Error::other("the guest's memory is larger than the log for it"))?;
        MmapRegion::bitmap(region).set_log(Some(log));
    }
    Ok(())
}

/// Logs nothing any more.
pub(in crate::daemon::vhost) fn end_log(guest: &Guest) {
    for region in guest.iter() {
        MmapRegion::bitmap(region).set_log(None);
    }
}
