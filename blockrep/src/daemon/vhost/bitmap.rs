//! What is written into a region of guest memory, told to two readers: the log of a migration, and
//! the record for a checkpointer ([`super::record`]).
//!
//! Every access of the daemon goes through the memory's own types, which tell this bitmap *after*
//! they have written; what the kernel writes for a read without a copy is told when the read has
//! ended ([`super::request::note_filled`]). Nothing is told before a write: the record is taken by
//! the thread that writes, between two writes, so that nobody can look in the middle of one; reads
//! that the kernel still has are asked for then.

mod log;

use log::RegionLog;
pub(super) use log::{LogMemory, carry_log_over, end_log, log_of};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use vhost_user_backend::bitmap::BitmapReplace;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use blkback_proto::ctl::PAGE_BYTES;

const WORD_BITS: usize = u64::BITS as usize;
/// [`PAGE_BYTES`] as a length in memory.
const PAGE_LEN: usize = PAGE_BYTES as usize;

/// Both bitmaps of a region. Clones are the same bitmaps.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct GuestBitmap {
    log: Arc<RwLock<Option<RegionLog>>>,
    /// Made when a record is armed for the first time.
    pages: Arc<OnceLock<Pages>>,
}

/// One bit a page, from the beginning of the region.
#[derive(Debug)]
struct Pages {
    is_armed: AtomicBool,
    words: Box<[AtomicU64]>,
}

impl GuestBitmap {
    /// Remembers from now on what is written to the region, which is that long.
    pub(super) fn arm(&self, bytes: u64) {
        let pages = usize::try_from(bytes.div_ceil(PAGE_BYTES)).expect("the region is mapped");
        let pages = self.pages.get_or_init(|| Pages {
            is_armed: AtomicBool::new(false),
            words: std::iter::repeat_with(AtomicU64::default)
                .take(pages.div_ceil(WORD_BITS))
                .collect(),
        });
        pages.is_armed.store(true, Ordering::Release);
    }

    /// Remembers nothing from now on, and forgets what it knew.
    pub(super) fn disarm(&self) {
        if let Some(pages) = self.pages.get() {
            pages.is_armed.store(false, Ordering::Release);
            for word in &pages.words {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Moves what is remembered into `words`, one bit a page; false when nothing is armed.
    pub(super) fn take(&self, words: &mut Vec<u64>) -> bool {
        words.clear();
        let Some(pages) = self.pages.get() else {
            return false;
        };
        // Most words of a large guest are zero, and a load is cheaper than a swap.
        words.extend(
            pages
                .words
                .iter()
                .map(|word| match word.load(Ordering::Acquire) {
                    0 => 0,
                    _ => word.swap(0, Ordering::AcqRel),
                }),
        );
        pages.is_armed.load(Ordering::Acquire)
    }

    fn set_log(&self, log: Option<RegionLog>) {
        *self.log.write().unwrap_or_else(PoisonError::into_inner) = log;
    }

    /// Remembers these pages as well.
    pub(super) fn put_back(&self, words: &[u64]) {
        if let Some(pages) = self.pages.get() {
            for (word, more) in pages.words.iter().zip(words) {
                word.fetch_or(*more, Ordering::AcqRel);
            }
        }
    }
}

impl Pages {
    /// As [`Bitmap::mark_dirty`].
    fn mark(&self, offset: usize, len: usize) {
        if len == 0 || !self.is_armed.load(Ordering::Acquire) {
            return;
        }
        let first = offset / PAGE_LEN;
        let last = offset.saturating_add(len - 1) / PAGE_LEN;
        for word in first / WORD_BITS..=last / WORD_BITS {
            let from = first.max(word * WORD_BITS) % WORD_BITS;
            let to = last.min(word * WORD_BITS + WORD_BITS - 1) % WORD_BITS;
            let bits = u64::MAX << from & u64::MAX >> (WORD_BITS - 1 - to);
            // Nobody writes beyond the region; what is said to lie there is none of its pages.
            let Some(word) = self.words.get(word) else {
                return;
            };
            word.fetch_or(bits, Ordering::Release);
        }
    }
}

impl Bitmap for GuestBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(log) = &*self.log.read().unwrap_or_else(PoisonError::into_inner) {
            log.mark(offset, len);
        }
        if let Some(pages) = self.pages.get() {
            pages.mark(offset, len);
        }
    }

    /// Nobody asks: the log is the VMM's to read.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Slice<'_> {
        Slice {
            of: self,
            base: offset,
        }
    }
}

impl<'a> WithBitmapSlice<'a> for GuestBitmap {
    type S = Slice<'a>;
}

impl NewBitmap for GuestBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl BitmapReplace for GuestBitmap {
    type InnerBitmap = RegionLog;

    fn replace(&self, log: RegionLog) {
        self.set_log(Some(log));
    }
}

/// The bitmap from an offset on.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Slice<'a> {
    of: &'a GuestBitmap,
    base: usize,
}

impl Bitmap for Slice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.of.mark_dirty(self.base.wrapping_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.of.dirty_at(self.base.wrapping_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            of: self.of,
            base: self.base.wrapping_add(offset),
        }
    }
}

impl WithBitmapSlice<'_> for Slice<'_> {
    type S = Self;
}

impl BitmapSlice for Slice<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pages_of(words: &[u64]) -> BTreeSet<usize> {
        let bit = |page: &usize| words[page / WORD_BITS] >> (page % WORD_BITS) & 1 == 1;
        (0..words.len() * WORD_BITS).filter(bit).collect()
    }

    /// A guest without a checkpointer pays for no record.
    #[test]
    fn nothing_is_remembered_unless_it_is_asked_for() {
        let bitmap = GuestBitmap::with_len(1 << 20);
        let mut words = Vec::new();
        bitmap.mark_dirty(0, 1 << 20);
        assert!(!bitmap.take(&mut words) && words.is_empty());
        bitmap.arm(1 << 20);
        assert!(bitmap.take(&mut words) && pages_of(&words).is_empty());
        bitmap.mark_dirty(4096, 1);
        bitmap.disarm();
        bitmap.mark_dirty(8192, 1);
        bitmap.arm(1 << 20);
        assert!(bitmap.take(&mut words) && pages_of(&words).is_empty());
    }

    proptest! {
        /// A page that the arithmetic of words and bits forgets is lost to the backup.
        #[test]
        fn every_page_that_a_write_touches_is_remembered(
            base in 0usize..300 * PAGE_LEN,
            writes in prop::collection::vec((0usize..300 * PAGE_LEN, 0usize..200 * PAGE_LEN), 0..8),
        ) {
            let pages = 700;
            let bitmap = GuestBitmap::with_len(pages * PAGE_LEN);
            bitmap.arm((pages * PAGE_LEN) as u64);
            let slice = bitmap.slice_at(base / 2).slice_at(base - base / 2);
            let mut expected = BTreeSet::new();
            for (offset, len) in writes {
                slice.mark_dirty(offset, len);
                expected.extend((0..len).step_by(512).map(|at| (base + offset + at) / PAGE_LEN));
                expected.extend((len > 0).then(|| (base + offset + len - 1) / PAGE_LEN));
            }
            expected.retain(|page| *page < 704);
            let mut words = Vec::new();
            bitmap.take(&mut words);
            prop_assert_eq!(&pages_of(&words), &expected);
            bitmap.put_back(&words);
            bitmap.take(&mut words);
            prop_assert_eq!(pages_of(&words), expected);
        }
    }
}
