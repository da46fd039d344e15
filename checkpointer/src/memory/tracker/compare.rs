//! Every page is compared with a copy that is kept here. Works everywhere, costs as much memory again as the guest uses
//! (pages of zeros cost none) and reads all of both in each pause.
//!
//! The kept copy is what the backup was told, so a page that was changed and changed back is not told: rightly. That
//! is why [`copied`](Tracker::copied) takes the bytes: were they read here a second time, a page that went from A
//! to B and back around the caller's reading would be B at the backup for ever.
//!
//! Pages of the guest's file that were never touched are made by looking at them: the file grows to its full size.

use super::{Kind, Pages, Tracker, TrackerError};
use crate::memory::PAGE_BYTES;
use crate::memory::ram::Mapping;
use memmap2::MmapMut;
use std::sync::Arc;

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BYTES);

#[derive(Debug)]
pub(super) struct Compare {
    mapping: Arc<Mapping>,
    /// Made by the kernel as it is written.
    kept: MmapMut,
    /// Pages of which `kept` is what the caller has.
    known: Pages,
}

impl Compare {
    pub(super) fn new(mapping: Arc<Mapping>) -> Result<Self, TrackerError> {
        let bytes = usize::try_from(mapping.pages() * PAGE_BYTES).expect("it is mapped");
        let kept = MmapMut::map_anon(bytes).map_err(TrackerError::of("memory for a copy"))?;
        Ok(Self {
            kept,
            known: Pages::none(mapping.pages()),
            mapping,
        })
    }
}

impl Tracker for Compare {
    fn kind(&self) -> Kind {
        Kind::Compare
    }

    fn arm(&mut self, _first: u64, _count: u64) -> Result<(), TrackerError> {
        Ok(())
    }

    fn copied(&mut self, first: u64, bytes: &[u8]) {
        let start = usize::try_from(first * PAGE_BYTES).expect("it is mapped");
        let kept = self.kept[start..start + bytes.len()].chunks_mut(PAGE);
        for (kept, bytes) in kept.zip(bytes.chunks(PAGE)) {
            // Pages of zeros stay unmade.
            if kept != bytes {
                kept.copy_from_slice(bytes);
            }
        }
        self.known
            .insert_run(first, bytes.len() as u64 / PAGE_BYTES);
    }

    fn scan(&mut self, dirty: &mut Pages) -> Result<(), TrackerError> {
        let mut page = 0;
        for kept in self.kept.chunks_exact_mut(PAGE) {
            let (theirs, _) = self.mapping.at(page);
            // SAFETY: `at` points at a whole page that stays mapped; it may change under the comparison, which
            // then tells something or other of a page that the next scan tells again.
            let differs = unsafe { libc::memcmp(theirs.cast(), kept.as_ptr().cast(), PAGE) } != 0;
            if differs {
                // SAFETY: as above; `kept` is a page of ours.
                unsafe {
                    theirs
                        .cast_const()
                        .copy_to_nonoverlapping(kept.as_mut_ptr(), PAGE)
                };
            }
            if differs || !self.known.contains(page) {
                dirty.insert_run(page, 1);
            }
            page += 1;
        }
        self.known.insert_run(0, page);
        Ok(())
    }

    fn disarm(&mut self) -> Result<(), TrackerError> {
        self.known.clear();
        Ok(())
    }
}
