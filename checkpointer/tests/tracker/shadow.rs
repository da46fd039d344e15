//! What a backup would have: all memory once, then what each scan told.

use checkpointer::memory::PAGE_BYTES;
use checkpointer::memory::dirty::Pages;
use checkpointer::memory::ram::{Mapping, Ram};
use checkpointer::memory::staging::Staging;
use checkpointer::memory::tracker::{self, Kind, Tracker, TrackerError};
use std::sync::Arc;

/// Pages that are armed, then copied.
const SLICE: u64 = 32;

#[derive(Debug)]
pub(crate) struct Shadow {
    pub(crate) tracker: Box<dyn Tracker>,
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) dirty: Pages,
    pub(crate) staging: Staging,
    bytes: Vec<u8>,
}

impl Shadow {
    pub(crate) fn attach(pid: u32, ram: &Ram, kind: Kind) -> Result<Self, TrackerError> {
        let mapping = Arc::new(Mapping::open(ram).expect("its memory"));
        let watched = tracker::find(pid, ram)?;
        let (tracker, _) = tracker::choose(pid, &watched, &mapping, Some(kind))?;
        assert_eq!(tracker.kind(), kind);
        let pages = mapping.pages();
        Ok(Self {
            tracker,
            dirty: Pages::none(pages),
            staging: Staging::new(pages * PAGE_BYTES).expect("a buffer"),
            // Not what any memory begins with: a page that was never copied is seen.
            bytes: vec![0xee; usize::try_from(pages * PAGE_BYTES).expect("small")],
            mapping,
        })
    }

    fn part(first: u64, count: u64) -> std::ops::Range<usize> {
        let at = |page: u64| usize::try_from(page * PAGE_BYTES).expect("small");
        at(first)..at(first + count)
    }

    /// All of it, while it changes.
    pub(crate) fn first_copy(&mut self) {
        let pages = self.mapping.pages();
        for first in (0..pages).step_by(usize::try_from(SLICE).expect("small")) {
            let count = SLICE.min(pages - first);
            self.tracker.arm(first, count).expect("armed");
            let part = &mut self.bytes[Self::part(first, count)];
            let from = self.mapping.at(first).0.cast_const();
            // SAFETY: so many pages of the one block, which stays mapped; whatever they are just now.
            unsafe { from.copy_to_nonoverlapping(part.as_mut_ptr(), part.len()) };
            self.tracker.copied(first, part);
        }
    }

    /// What was written since the last time: how many pages.
    pub(crate) fn follow(&mut self) -> u64 {
        self.dirty.clear();
        self.tracker.scan(&mut self.dirty).expect("scanned");
        self.staging
            .copy(&self.mapping, &self.dirty)
            .expect("it fits");
        let staged = self.staging.bytes().chunks(4096);
        for (page, bytes) in self.staging.pages().iter().zip(staged) {
            self.bytes[Self::part(*page, 1)].copy_from_slice(bytes);
        }
        self.dirty.count()
    }

    /// Page that differs from the memory, of a process that stands still.
    pub(crate) fn differing(&self) -> Option<u64> {
        (0..self.mapping.pages()).find(|page| {
            let theirs = self.mapping.at(*page).0;
            // SAFETY: a whole page that stays mapped; nobody writes it now.
            let theirs = unsafe { std::slice::from_raw_parts(theirs, 4096) };
            theirs != &self.bytes[Self::part(*page, 1)]
        })
    }
}
