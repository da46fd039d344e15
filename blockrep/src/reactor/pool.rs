//! Bounded pool of page-aligned I/O buffers, cut from one memory mapping.
//!
//! One thread owns a pool and everything cut from it (`Rc` inside, not `Send`). The mapping is made
//! once and never grows: when it is full, [`Pool::alloc`] returns `None`, counts it, and the caller
//! waits until a buffer comes back. That is the back-pressure of the data path.
//!
//! ```text
//!   alloc(len) ──► BufMut ── freeze ──► Buf ── clone, slice ──► Buf ...
//!                    │                   └── last one dropped ──► pages free
//!                    └────────────────────── dropped ───────────► pages free
//! ```
//!
//! Invariants: a page belongs to at most one allocation; a [`BufMut`] is the only handle of its
//! allocation; the mapping outlives every handle. No handle allocates heap memory: reference counts
//! stand in a side table indexed by the first page of the allocation.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use super::buffer::BufMut;

/// Bytes of one page: the unit of allocation and the alignment of every fresh buffer.
pub const PAGE_BYTES: usize = 4096;

const WORD_BITS: u32 = u64::BITS;

/// What a pool holds and has held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Pages of the whole arena.
    pub pages_total: u32,
    /// Pages in allocations now.
    pub pages_used: u32,
    /// The most pages ever in use at once.
    pub pages_used_max: u32,
    /// Allocations ever granted.
    pub allocs: u64,
    /// Allocations refused because no run of free pages was long enough.
    pub failures: u64,
}

/// A handle on the arena; cloning it is cheap and shares the arena.
#[derive(Clone)]
pub struct Pool(pub(super) Rc<Arena>);

pub(super) struct Arena {
    pub(super) base: NonNull<u8>,
    pages: u32,
    alloc_pages_max: u32,
    /// One bit a page, set while the page belongs to an allocation.
    used: Box<[Cell<u64>]>,
    /// Valid at the first page of an allocation only.
    pub(super) heads: Box<[Head]>,
    /// Where the next search begins.
    cursor: Cell<u32>,
    stats: Cell<PoolStats>,
}

#[derive(Default)]
pub(super) struct Head {
    pub(super) refs: Cell<u32>,
    pub(super) span_pages: Cell<u32>,
}

impl Pool {
    /// Maps an arena of `size_bytes`, rounded up to whole pages. No allocation may exceed
    /// `alloc_bytes_max`, also rounded up.
    ///
    /// # Errors
    /// What `mmap` says, or `InvalidInput` when a size is zero, the largest allocation does not fit
    /// the arena, or the arena exceeds 1 GiB (the kernel's limit for one registered buffer).
    pub fn new(size_bytes: usize, alloc_bytes_max: usize) -> io::Result<Pool> {
        let sizes_are_sane = size_bytes > 0
            && size_bytes <= 1 << 30
            && alloc_bytes_max > 0
            && alloc_bytes_max <= size_bytes;
        if !sizes_are_sane {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "Pool sizes must be above zero, at most 1 GiB, the largest buffer within the arena",
            ));
        }
        let pages = pages_of(size_bytes);
        let base = map_anonymous(pages as usize * PAGE_BYTES)?;
        Ok(Pool(Rc::new(Arena {
            base,
            pages,
            alloc_pages_max: pages_of(alloc_bytes_max),
            used: (0..pages.div_ceil(WORD_BITS))
                .map(|_| Cell::new(0))
                .collect(),
            heads: (0..pages).map(|_| Head::default()).collect(),
            cursor: Cell::new(0),
            stats: Cell::new(PoolStats {
                pages_total: pages,
                ..PoolStats::default()
            }),
        })))
    }

    /// A buffer of exactly `len` bytes that starts on a page boundary, or `None` while no run of
    /// free pages is long enough. The content is whatever the pages held before, never unmapped.
    ///
    /// # Panics
    /// When `len` exceeds [`Pool::alloc_bytes_max`]: a caller that waited for it would wait forever.
    pub fn alloc(&self, len: usize) -> Option<BufMut> {
        assert!(
            len <= self.alloc_bytes_max(),
            "allocation larger than the pool's stated maximum"
        );
        let arena = &*self.0;
        let span = pages_of(len.max(1));
        let mut stats = arena.stats.get();
        let Some(page) = arena.find_run(span) else {
            stats.failures += 1;
            arena.stats.set(stats);
            return None;
        };
        arena.mark(page, span, true);
        arena.heads[page as usize].refs.set(1);
        arena.heads[page as usize].span_pages.set(span);
        arena.cursor.set(if page + span == arena.pages {
            0
        } else {
            page + span
        });
        stats.pages_used += span;
        stats.pages_used_max = stats.pages_used_max.max(stats.pages_used);
        stats.allocs += 1;
        arena.stats.set(stats);
        Some(BufMut::new(Rc::clone(&self.0), page, len as u32))
    }

    /// The largest length [`Pool::alloc`] accepts.
    pub fn alloc_bytes_max(&self) -> usize {
        self.0.alloc_pages_max as usize * PAGE_BYTES
    }

    /// Counters as of now.
    pub fn stats(&self) -> PoolStats {
        self.0.stats.get()
    }

    /// Start and length of the mapping, for registration with a ring.
    pub(super) fn region(&self) -> (*mut u8, usize) {
        (self.0.base.as_ptr(), self.0.pages as usize * PAGE_BYTES)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl Arena {
    /// First page of `span` free pages in a row: searched from the cursor on, then from the start,
    /// so that `None` really means that there is no such run.
    fn find_run(&self, span: u32) -> Option<u32> {
        let cursor = self.cursor.get();
        self.find_run_within(cursor, self.pages, span).or_else(|| {
            // A run that begins before the cursor may reach over it.
            let end = (cursor + span - 1).min(self.pages);
            self.find_run_within(0, end, span)
        })
    }

    fn find_run_within(&self, begin: u32, end: u32, span: u32) -> Option<u32> {
        let mut page = begin;
        loop {
            page = self.next_page(page, end, false)?;
            if page + span > end {
                return None;
            }
            match self.next_page(page, page + span, true) {
                None => return Some(page),
                Some(taken) => page = taken,
            }
        }
    }

    /// First page in `begin..end` that is in use (`want_used`) or free.
    fn next_page(&self, begin: u32, end: u32, want_used: bool) -> Option<u32> {
        let mut page = begin;
        while page < end {
            let word = self.used[(page / WORD_BITS) as usize].get();
            let hits = if want_used { word } else { !word } >> (page % WORD_BITS);
            if hits != 0 {
                let hit = page + hits.trailing_zeros();
                return (hit < end).then_some(hit);
            }
            page = (page / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    /// Gives back the pages of the allocation that begins at `page`.
    pub(super) fn free(&self, page: u32) {
        let span = self.heads[page as usize].span_pages.get();
        self.mark(page, span, false);
        let mut stats = self.stats.get();
        stats.pages_used -= span;
        self.stats.set(stats);
    }

    fn mark(&self, page: u32, span: u32, used: bool) {
        let mut first = page;
        let end = page + span;
        while first < end {
            let bit = first % WORD_BITS;
            let count = (WORD_BITS - bit).min(end - first);
            let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
            let word = &self.used[(first / WORD_BITS) as usize];
            let expected = if used { 0 } else { mask };
            assert!(
                word.get() & mask == expected,
                "a pool page was handed out or freed twice"
            );
            word.set(word.get() ^ mask);
            first += count;
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map_anonymous` with this length, every handle holds an
        // `Rc` of the arena, so none is left that could point into it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages as usize * PAGE_BYTES) };
    }
}

/// Whole pages that hold `len` bytes. Callers have bounded `len` by 1 GiB before.
fn pages_of(len: usize) -> u32 {
    len.div_ceil(PAGE_BYTES) as u32
}

/// Zeroed private memory, page aligned; not inherited by forked children, which could otherwise
/// turn a page the kernel writes to into a copy.
fn map_anonymous(len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping touches no memory of ours.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: advice on the mapping just made; refusal is harmless.
    unsafe { libc::madvise(start, len, libc::MADV_DONTFORK) };
    Ok(NonNull::new(start.cast()).expect("mmap without MAP_FIXED never returns address zero"))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
