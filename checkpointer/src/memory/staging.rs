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
//! # Why past the caches, and with a look ahead
//!
//! The pages are not in the caches, so memory is what counts, and a plain store reads the line that it is about to
//! overwrite. What the first word of a scattered page costs beside that is finding it: the TLB does not know it, and in
//! a virtual machine each such miss is a walk through two page tables. So some pages ahead are looked up meanwhile;
//! how many does not matter (1 to 32 do the same). 2,000 pages of 1 GiB, in a virtual machine with two processors, medians
//! of 60: scattered 1.03 ms without, 0.52 with; in runs of eight 0.45 and 0.43; in one run 0.30 either way. In
//! the pauses of a guest, in turns: 1.47 and 0.90 ms. The mapping has no page faults then: the first copy has touched all of it.
//!
//! # Why by one thread
//!
//! Tried in the pauses of `bench memory`, where QEMU saves its devices meanwhile, on two processors with other work on
//! them; pauses of each kind took turns. All in ms; p10 is what a quieter machine would show:
//!
//! | 1 GiB | scan p10, p50 | copy p10, p50 | whole pause p10, p50 |
//! |---|---|---|---|
//! | 2,000 pages, one thread, no look ahead | 0.57, 0.84 | 1.37, 1.47 | 4.03, 5.20 |
//! | 2,000 pages, **one thread** | 0.59, 0.83 | 0.84, 0.90 | 3.58, 4.58 |
//! | 2,000 pages, a second one takes what is left | 0.36, 0.60 | 0.51, 0.85 | 3.15, 4.42 |
//! | idle, **one thread** | 0.45, 0.49 | | 2.31, 2.85 |
//! | idle, a second one takes what is left | 0.33, 0.53 | | 2.31, 2.92 |
//!
//! One that waits ready, spinning from the order to stop on, takes its processor from QEMU: stopping went from 0.9 to
//! 3.2 ms, the pause from 3.5 to 9. One that is woken for the scan and takes 32 MiB or 64 pages at a time gains 0.43 of
//! 3.6 ms where much is dirty and the processors are free, 0.16 of 4.6 in the median, and nothing where little is
//! dirty: such a pause waits for device state. It is left out until a guest of many GiB, on more processors, shows more.

use super::PAGE_BYTES;
use super::dirty::Pages;
use super::ram::Mapping;
use memmap2::{Advice, MmapMut};
use std::io;
use thiserror::Error;

/// Most that a buffer may hold: 1 TiB.
pub const LIMIT_BYTES_MAX: u64 = 1 << 40;
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BYTES);
/// How many pages before its turn a page is looked up.
const AHEAD: usize = 4;

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
        for page in buffer.chunks_mut(PAGE) {
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
        for (first, count) in pages.runs() {
            copied.runs += 1;
            self.numbers.extend(first..first + count);
        }
        let mut to = self.buffer.as_mut_ptr();
        for (at, page) in self.numbers.iter().enumerate() {
            if let Some(ahead) = self.numbers.get(at + AHEAD) {
                look_ahead(mapping.at(*ahead).0);
            }
            // SAFETY: `at` points at a whole page of a mapping that outlives this; it may change under the copy
            // only where the caller has not paused the guest. `to` has as many pages left as numbers are left: all
            // that is dirty fits, and no page comes twice.
            unsafe {
                copy_page(mapping.at(*page).0, to);
                to = to.add(PAGE);
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
        &self.buffer[..self.numbers.len() * PAGE]
    }
}

/// Has the processor look up where the page is, and get its first line, while it copies others.
#[cfg(target_arch = "x86_64")]
fn look_ahead(page: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint; it may point anywhere. Every processor of this kind has it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(page.cast()) };
}

/// Copies a page, past the caches. Done only after [`finish_copies`].
///
/// # Safety
/// Both have a whole page at the boundary of a page, and do not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_page(from: *const u8, to: *mut u8) {
    use std::arch::x86_64::{__m128i, _mm_load_si128, _mm_stream_si128};
    let (from, to) = (from.cast::<__m128i>(), to.cast::<__m128i>());
    for at in (0..PAGE / size_of::<__m128i>()).step_by(4) {
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

#[cfg(not(target_arch = "x86_64"))]
fn look_ahead(_page: *const u8) {}

/// # Safety
/// Both have a whole page, and do not overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_page(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's word.
    unsafe { from.copy_to_nonoverlapping(to, PAGE) };
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
