//! The copy that is made in the pause: the dirty pages of one checkpoint, one behind the other.
//!
//! ```text
//!   pages:  3   4   5   90  …            numbers, ascending
//!   bytes: [3 ][4 ][5 ][90]…            4 KiB each, in the same order
//! ```
//!
//! Invariants:
//! - The pause pays for one pass of memcpy and for nothing else: memory for bytes and numbers is made and touched
//!   before ([`Staging::new`]), and copying allocates nothing.
//! - All or nothing: what does not fit is told before anything is copied.
//!
//! # When more is dirty than fits
//!
//! [`TooMuch`] leaves the set of dirty pages as it was, and they only get more until some copy has them. So that checkpoint is
//! given up, the guest goes on, what it said stays held, and all is copied anew, live, as in a first copy: with turns for what is
//! written meanwhile, until the rest fits. The backup keeps what it had until the first checkpoint of the new copy. To stay paused
//! and send the checkpoint in several buffers would be exact too, but the pause would last as long as the link is slow; it is
//! bounded instead.
//!
//! # Why past the caches, and by one thread
//!
//! 2,000 scattered pages of 1 GiB on two cores, best tenth of 100 copies, while others used the machine: memcpy 2.15 ms,
//! with the next page fetched ahead 2.16, with stores past the caches 1.86, by two threads 2.10. The pages are not in the
//! caches, so memory is what counts, and a plain store reads the line that it is about to overwrite. A second
//! thread has to be woken, and then shares the same memory; it may pay with more channels than here.

use super::PAGE_BYTES;
use super::dirty::Pages;
use super::ram::Mapping;
use memmap2::{Advice, MmapMut};
use std::io;
use thiserror::Error;

/// Most that a buffer may hold: 1 TiB.
pub const LIMIT_BYTES_MAX: u64 = 1 << 40;

/// More is dirty than the buffer holds; nothing was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{dirty_bytes} bytes are dirty, and the staging buffer holds {limit_bytes}")]
pub struct TooMuch {
    pub dirty_bytes: u64,
    pub limit_bytes: u64,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    pub pages: u64,
    /// Runs of pages that lie behind one another.
    pub runs: u64,
    pub bytes: u64,
}

/// The buffer. Whoever copies owns it; what it holds is good until the next copy.
#[derive(Debug)]
pub struct Staging {
    buffer: MmapMut,
    /// Never more than fit its capacity.
    numbers: Vec<u64>,
    limit_bytes: u64,
}

impl Staging {
    /// A buffer for that much, rounded up to whole pages; all of it is taken from the system here.
    ///
    /// # Errors
    /// Of getting the memory; more than [`LIMIT_BYTES_MAX`].
    pub fn new(limit_bytes: u64) -> io::Result<Self> {
        if limit_bytes > LIMIT_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a staging buffer of {limit_bytes} bytes; at most {LIMIT_BYTES_MAX} can be had"
                ),
            ));
        }
        let pages = limit_bytes.div_ceil(PAGE_BYTES).max(1);
        let limit_bytes = pages * PAGE_BYTES;
        let size = |n: u64| usize::try_from(n).map_err(io::Error::other);
        let mut buffer = MmapMut::map_anon(size(limit_bytes)?)?;
        // Fewer misses of the TLB while copying; without it all works.
        let _ = buffer.advise(Advice::HugePage);
        for page in buffer.chunks_mut(size(PAGE_BYTES)?) {
            page[0] = 0;
        }
        let mut numbers = Vec::new();
        numbers
            .try_reserve_exact(size(pages)?)
            .map_err(io::Error::other)?;
        // Touches the memory.
        numbers.resize(size(pages)?, 0);
        numbers.clear();
        Ok(Self {
            buffer,
            numbers,
            limit_bytes,
        })
    }

    /// What it can hold, which is also what it costs.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Copies these pages, in place of what it held. Nothing is allocated.
    ///
    /// # Errors
    /// More is dirty than fits; nothing is copied, and it holds nothing.
    ///
    /// # Panics
    /// Where the set is of another guest.
    pub fn copy(&mut self, mapping: &Mapping, pages: &Pages) -> Result<Copied, TooMuch> {
        assert_eq!(pages.of(), mapping.pages(), "pages of one guest");
        self.clear();
        let mut copied = Copied {
            pages: pages.count(),
            ..Copied::default()
        };
        copied.bytes = copied.pages * PAGE_BYTES;
        if copied.bytes > self.limit_bytes {
            return Err(TooMuch {
                dirty_bytes: copied.bytes,
                limit_bytes: self.limit_bytes,
            });
        }
        let mut to = self.buffer.as_mut_ptr();
        for (first, count) in pages.runs() {
            copied.runs += 1;
            self.numbers.extend(first..first + count);
            let (mut page, mut left) = (first, count);
            // A run may go from one block of the guest to the next.
            while left > 0 {
                let (from, behind) = mapping.at(page);
                let here = left.min(behind);
                let bytes = usize::try_from(here * PAGE_BYTES).expect("it fits the buffer");
                // SAFETY: `from` has `here` pages of a mapping that outlives this; they may change under the
                // copy only where the caller has not paused the guest. `to` has as many: all that is dirty fits,
                // and no page comes twice.
                unsafe {
                    copy_pages(from, to, bytes);
                    to = to.add(bytes);
                }
                page += here;
                left -= here;
            }
        }
        finish_copies();
        Ok(copied)
    }

    /// Holds nothing from now on.
    pub fn clear(&mut self) {
        self.numbers.clear();
    }

    /// Numbers of the pages, ascending.
    #[must_use]
    pub fn pages(&self) -> &[u64] {
        &self.numbers
    }

    /// Their bytes, in that order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let page = usize::try_from(PAGE_BYTES).expect("small");
        &self.buffer[..self.numbers.len() * page]
    }
}

/// Copies whole pages, past the caches. Done only after [`finish_copies`].
///
/// # Safety
/// Both have that many bytes, whole pages at the boundary of a page, and do not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_pages(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _mm_load_si128, _mm_stream_si128};
    let (from, to) = (from.cast::<__m128i>(), to.cast::<__m128i>());
    for at in (0..bytes / size_of::<__m128i>()).step_by(4) {
        // SAFETY: `at` and the three behind it lie within, since a page has a multiple of four; aligned as a page
        // is. Every processor of this kind has these instructions.
        unsafe {
            let first = _mm_load_si128(from.add(at));
            let second = _mm_load_si128(from.add(at + 1));
            let third = _mm_load_si128(from.add(at + 2));
            let fourth = _mm_load_si128(from.add(at + 3));
            _mm_stream_si128(to.add(at), first);
            _mm_stream_si128(to.add(at + 1), second);
            _mm_stream_si128(to.add(at + 2), third);
            _mm_stream_si128(to.add(at + 3), fourth);
        }
    }
}

/// What was stored past the caches is there for every thread from now on.
#[cfg(target_arch = "x86_64")]
fn finish_copies() {
    // SAFETY: every processor of this kind has it.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// # Safety
/// Both have that many bytes, and do not overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_pages(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's word.
    unsafe { from.copy_to_nonoverlapping(to, bytes) };
}

#[cfg(not(target_arch = "x86_64"))]
fn finish_copies() {}

#[cfg(test)]
mod tests {
    //! A page under another's number is a guest that goes on with foreign memory; a copy that stops in the
    //! middle is one with memory of two moments.
    use super::*;
    use crate::memory::ram::{Block, Ram};

    /// Two blocks of one file, the second one first; every page begins with its number.
    fn guest(pages: u64, split: u64) -> (tempfile::NamedTempFile, Mapping) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(pages * PAGE_BYTES).expect("set");
        let block = |id: &str, at: u64, count: u64| Block {
            id: id.to_owned(),
            file: file.path().to_owned(),
            file_offset: at * PAGE_BYTES,
            size_bytes: count * PAGE_BYTES,
        };
        let ram = Ram::new(vec![
            block("high", split, pages - split),
            block("low", 0, split),
        ])
        .expect("blocks");
        let mapping = Mapping::open(&ram).expect("mapped");
        for page in 0..pages {
            let words = mapping.at(page).0.cast::<u64>();
            // SAFETY: a page of the mapping that nobody else has.
            unsafe {
                words.write(page.to_le());
                words.add(511).write((!page).to_le());
            }
        }
        (file, mapping)
    }

    fn check(staging: &Staging, pages: &Pages) {
        let expected: Vec<u64> = pages
            .runs()
            .flat_map(|(first, n)| first..first + n)
            .collect();
        assert_eq!(staging.pages(), expected);
        assert_eq!(staging.bytes().len(), expected.len() * 4096);
        for (page, bytes) in expected.iter().zip(staging.bytes().chunks(4096)) {
            let word =
                |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
            assert_eq!((word(0), word(4088)), (*page, !page));
        }
    }

    #[test]
    fn pages_are_copied_under_their_numbers() {
        let mut random = fastrand::Rng::with_seed(11);
        let (_file, mapping) = guest(300, 100);
        let mut staging = Staging::new(300 * PAGE_BYTES).expect("a buffer");
        for _ in 0..300 {
            let mut pages = Pages::none(300);
            for _ in 0..random.usize(0..12) {
                let first = random.u64(0..300);
                pages.insert_run(first, random.u64(0..=(300 - first).min(40)));
            }
            let copied = staging.copy(&mapping, &pages).expect("it fits");
            assert_eq!(copied.pages, pages.count());
            assert_eq!(copied.runs, pages.runs().count() as u64);
            check(&staging, &pages);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_begun() {
        let (_file, mapping) = guest(64, 20);
        let mut staging = Staging::new(7 * PAGE_BYTES + 1).expect("a buffer");
        assert_eq!(staging.limit_bytes(), 8 * PAGE_BYTES);
        let mut pages = Pages::none(64);
        pages.insert_run(16, 8);
        staging.copy(&mapping, &pages).expect("just fits");
        check(&staging, &pages);
        pages.insert_run(60, 1);
        let refused = staging.copy(&mapping, &pages).expect_err("one too many");
        assert_eq!(refused.dirty_bytes, 9 * PAGE_BYTES);
        assert_eq!(refused.limit_bytes, 8 * PAGE_BYTES);
        assert!(staging.pages().is_empty() && staging.bytes().is_empty());
        let mut staging = Staging::new(9 * PAGE_BYTES).expect("a buffer");
        staging.copy(&mapping, &pages).expect("fits there");
        check(&staging, &pages);
        assert!(Staging::new(LIMIT_BYTES_MAX + 1).is_err());
    }
}
