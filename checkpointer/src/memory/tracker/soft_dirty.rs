//! Soft-dirty bits: the kernel marks pages that are written; all marks of a process are cleared at once.
//!
//! What is assumed:
//! - **Nobody writes between reading the marks and clearing them**, which are two steps: the guest is paused, and the
//!   process's own threads leave its memory alone then (QEMU's do after `stop`).
//! - The guest's memory is not swapped. The marks lie in the page tables, and a shared page that is thrown out there
//!   takes its mark along. Such a page is told as written where it was there at the scan before; one that came and went
//!   between two scans is lost. QEMU with `-overcommit mem-lock=on` has no such pages.
//!
//! For the first copy everything is cleared once, then copied. Clearing again for every slice would wipe out what was
//! written to slices before it; so only the first [`arm`](Tracker::arm) clears.

use super::maps::Maps;
use super::{Kind, Pages, Tracker, TrackerError, Watched};
use crate::memory::PAGE_BYTES;
use memmap2::MmapMut;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Entries of the page map that are read at once, and the bytes of one.
const ENTRIES: usize = 32 << 10;
const ENTRY_BYTES: usize = 8;
/// Entries are read as the processor has them.
const _: () = assert!(cfg!(target_endian = "little"));
const SOFT_DIRTY: u64 = 1 << 55;
/// In memory, or swapped.
const IS_THERE: u64 = 1 << 63 | 1 << 62;

#[derive(Debug)]
struct Part {
    watched: Watched,
    /// Pages that the page tables had at the last scan, counted from the part's first.
    there: Pages,
    there_now: Pages,
}

/// The pages of one process, watched.
#[derive(Debug)]
pub(super) struct SoftDirty {
    pid: u32,
    pagemap: File,
    clear: File,
    maps: Maps,
    parts: Vec<Part>,
    buffer: Vec<u8>,
    is_armed: bool,
}

impl SoftDirty {
    pub(super) fn attach(pid: u32, watched: &[Watched]) -> Result<Self, TrackerError> {
        if !has_soft_dirty().map_err(TrackerError::of("looking for soft-dirty bits"))? {
            return Err(TrackerError::Refused(
                "the kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".to_owned(),
            ));
        }
        let opening = |e: io::Error| TrackerError::opening(pid, &e);
        let part = |watched: &Watched| Part {
            watched: *watched,
            there: Pages::none(watched.pages),
            there_now: Pages::none(watched.pages),
        };
        Ok(Self {
            pid,
            maps: Maps::of(pid, watched)?,
            pagemap: File::open(format!("/proc/{pid}/pagemap")).map_err(opening)?,
            clear: File::options()
                .write(true)
                .open(format!("/proc/{pid}/clear_refs"))
                .map_err(opening)?,
            parts: watched.iter().map(part).collect(),
            buffer: vec![0; ENTRIES * ENTRY_BYTES],
            is_armed: false,
        })
    }

    /// What is marked goes into `dirty`; what is there is remembered.
    fn read(&mut self, dirty: &mut Pages) -> Result<(), TrackerError> {
        for part in &mut self.parts {
            part.there_now.clear();
            let watched = part.watched;
            let mut page = 0;
            while page < watched.pages {
                let count = (watched.pages - page).min(ENTRIES as u64);
                let bytes = usize::try_from(count).expect("a buffer's") * ENTRY_BYTES;
                let buffer = &mut self.buffer[..bytes];
                let at = (watched.address / PAGE_BYTES + page) * ENTRY_BYTES as u64;
                self.pagemap
                    .read_exact_at(buffer, at)
                    .map_err(|e| match e.kind() {
                        io::ErrorKind::UnexpectedEof => TrackerError::ended(self.pid),
                        _ => TrackerError::of("reading the page map")(e),
                    })?;
                for entry in buffer.chunks_exact(ENTRY_BYTES) {
                    let entry = u64::from_le_bytes(entry.try_into().expect("8 bytes"));
                    let is_there = entry & IS_THERE != 0;
                    if is_there {
                        part.there_now.insert_run(page, 1);
                    }
                    if entry & SOFT_DIRTY != 0 || (!is_there && part.there.contains(page)) {
                        dirty.insert_run(watched.first_page + page, 1);
                    }
                    page += 1;
                }
            }
            std::mem::swap(&mut part.there, &mut part.there_now);
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), TrackerError> {
        self.clear
            .write_all(b"4")
            .map_err(|e| match e.raw_os_error() {
                Some(libc::ESRCH) => TrackerError::ended(self.pid),
                _ => TrackerError::of("clearing soft-dirty bits")(e),
            })
    }
}

impl Tracker for SoftDirty {
    fn kind(&self) -> Kind {
        Kind::SoftDirty
    }

    fn arm(&mut self, _first: u64, _count: u64) -> Result<(), TrackerError> {
        if !self.is_armed {
            let total = |part: &Part| part.watched.first_page + part.watched.pages;
            let pages = self.parts.iter().map(total).max().unwrap_or(0);
            self.clear()?;
            // Pages that are there now are armed. Read after the clearing: one that goes in between is not there.
            self.read(&mut Pages::none(pages))?;
            self.is_armed = true;
        }
        Ok(())
    }

    fn copied(&mut self, _first: u64, _bytes: &[u8]) {}

    fn scan(&mut self, dirty: &mut Pages) -> Result<(), TrackerError> {
        self.read(dirty)?;
        self.clear()?;
        self.maps.check()
    }

    fn disarm(&mut self) -> Result<(), TrackerError> {
        // Marks cost nothing where they are not cleared.
        self.is_armed = false;
        Ok(())
    }
}

/// Whether this kernel marks pages: a page of our own, just written, has to be marked.
fn has_soft_dirty() -> io::Result<bool> {
    let mut page = MmapMut::map_anon(usize::try_from(PAGE_BYTES).expect("a page"))?;
    page[0] = 1;
    let mut entry = [0; ENTRY_BYTES];
    let at = page.as_ptr() as u64 / PAGE_BYTES * ENTRY_BYTES as u64;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at)?;
    Ok(u64::from_le_bytes(entry) & SOFT_DIRTY != 0)
}
