//! The record of guest pages: what this daemon wrote into guest memory, in turns.
//!
//! ```text
//!   arm ── bits of every region are set from now on ──┐
//!   take n+1:  1. reads that the kernel has: their pages are set, too
//!              2. the bits move into `given`, all at once for every writer is this thread
//!              3. answers come from `given` until the turn after is asked for
//! ```
//!
//! A page that was written before 2 is in the turn. One that the kernel writes after 2 belongs to a
//! read that was in flight, whose end sets its bits again: it is in a later turn. What a turn cannot
//! speak for (memory that came or went) makes it incomplete, with a reason; PROTOCOL.md §2 has the
//! contract. Owned by the I/O thread of the volume.

#[cfg(test)]
mod tests;

use super::Guest;
use super::bitmap::GuestBitmap;
use super::request::note_filled;
use super::rings::Rings;
use crate::frontend::virtio_blk::request::Ask;
use blkback_proto::ctl::{
    PAGE_BYTES, PAGE_REGIONS_MAX, PAGE_RUNS_MAX, PageRegion, PagesTakeAnswer,
};
use blockrep_host::ids;
use std::io;
use std::os::unix::fs::MetadataExt;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// Most pages of a guest: 1 TiB of memory, of which the record takes 64 MiB.
pub(super) const PAGES_MAX: u64 = 1 << 28;

const ANOTHER_GUEST: &str = "a VMM went or came since the turn before: compare everything";
const ANOTHER_TABLE: &str =
    "the memory table of the guest changed since the turn before: compare everything";
const TOO_LARGE: &str =
    "the guest's memory is larger than 1 TiB, which no record is kept for: compare everything";

/// A record that is kept.
pub(super) struct Record {
    id: String,
    /// The turn that was given last; 0: none yet.
    turn: u64,
    /// Why the turn to come is not complete.
    gap: Option<&'static str>,
    /// The guest has more memory than is remembered.
    is_too_large: bool,
    regions: Vec<PageRegion>,
    given: Turn,
}

/// A turn, until the next one begins.
#[derive(Default)]
struct Turn {
    gap: Option<&'static str>,
    pages: u64,
    regions: Vec<PageRegion>,
    /// One bit a page, for each region.
    words: Vec<Vec<u64>>,
}

/// Why there is no turn to be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// Memory beyond [`PAGES_MAX`] or [`PAGE_REGIONS_MAX`].
    #[error(
        "the guest has {pages} pages of memory in {regions} regions, at most {PAGES_MAX} in \
         {PAGE_REGIONS_MAX} are remembered: compare everything instead"
    )]
    TooLarge { pages: u64, regions: usize },
    /// Not the record that is kept.
    #[error(
        "record {found:?} ended, {kept} is kept: arm one of your own with `blockrepctl pages arm`, \
         then compare everything"
    )]
    Other { found: String, kept: String },
    /// Neither the last turn nor the next.
    #[error(
        "turn {found} cannot be had, {last} was the last: ask for that or for {}, or arm anew with \
         `blockrepctl pages arm` and compare everything", last + 1
    )]
    Turn { found: u64, last: u64 },
    /// No random bytes.
    #[error("no id can be made: {0}")]
    Random(String),
}

impl Record {
    /// Begins a record of what is written from now on.
    pub(super) fn arm(guest: Option<&Guest>) -> Result<Self, RecordError> {
        let random = |error: io::Error| RecordError::Random(error.to_string());
        let id = ids::hex(&ids::random_id8().map_err(random)?);
        let mut record = Self {
            id,
            turn: 0,
            gap: None,
            is_too_large: false,
            regions: Vec::new(),
            given: Turn::default(),
        };
        if let Some(guest) = guest {
            let (pages, regions) = extent(guest);
            if is_too_large(pages, regions) {
                return Err(RecordError::TooLarge { pages, regions });
            }
            record.adopt(guest);
        }
        Ok(record)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn regions(&self) -> &[PageRegion] {
        &self.regions
    }

    /// The most memory the record takes: bits that are set, and those of the turn.
    pub(super) fn bytes_max(&self) -> u64 {
        let bits = |regions: &[PageRegion]| regions.iter().map(|r| r.size_bytes).sum::<u64>();
        (bits(&self.regions) + bits(&self.given.regions)) / PAGE_BYTES / 8
    }

    fn adopt(&mut self, guest: &Guest) {
        let (pages, regions) = extent(guest);
        self.is_too_large = is_too_large(pages, regions);
        if self.is_too_large {
            self.regions.clear();
            return;
        }
        self.regions = table(guest);
        for region in guest.iter() {
            // Memory of a record before.
            bits_of(region).disarm();
            bits_of(region).arm(region.len());
        }
    }

    /// The guest's memory lies elsewhere from now on, or the VMM has only said it again.
    pub(super) fn moved(&mut self, old: Option<&Guest>, new: &Guest) {
        match old {
            Some(old) if !self.is_too_large && self.regions == table(new) => {
                let mut words = Vec::new();
                for (old, new) in old.iter().zip(new.iter()) {
                    bits_of(old).take(&mut words);
                    bits_of(new).arm(new.len());
                    bits_of(new).put_back(&words);
                }
            }
            _ => {
                self.gap = self.gap.or(Some(match old {
                    Some(_) => ANOTHER_TABLE,
                    None => ANOTHER_GUEST,
                }));
                self.adopt(new);
            }
        }
    }

    /// The VMM is gone, and its memory with it.
    pub(super) fn gone(&mut self) {
        self.gap = Some(ANOTHER_GUEST);
        self.regions.clear();
    }

    fn begin_turn(&mut self, guest: Option<&Guest>) {
        self.turn += 1;
        let regions: Vec<_> = guest.iter().flat_map(|guest| guest.iter()).collect();
        let gap = self.is_too_large.then_some(TOO_LARGE).or(self.gap.take());
        let given = &mut self.given;
        given.gap = gap;
        given.regions.clone_from(&self.regions);
        given.words.resize_with(self.regions.len(), Vec::new);
        for (region, words) in regions.iter().zip(&mut given.words) {
            bits_of(region).take(words);
        }
        let ones = |words: &Vec<u64>| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        given.pages = given.words.iter().map(ones).sum();
    }

    /// The turn, from a page on.
    fn answer(&self, from_page: u64) -> PagesTakeAnswer {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut next_page = None;
        for (region, words) in self.given.regions.iter().zip(&self.given.words) {
            for page in pages_from(region, words, from_page) {
                let is_full = runs.len() == PAGE_RUNS_MAX;
                match runs.last_mut() {
                    Some((first, count)) if page < *first + *count => {}
                    Some((first, count)) if page == *first + *count => *count += 1,
                    _ if is_full => {
                        next_page = next_page.or(Some(page));
                        break;
                    }
                    _ => runs.push((page, 1)),
                }
            }
        }
        PagesTakeAnswer {
            record: self.id.clone(),
            turn: self.turn,
            complete: self.given.gap.is_none(),
            reason: self.given.gap.map(str::to_owned),
            pages: self.given.pages,
            runs,
            next_page,
            regions: self.given.regions.clone(),
        }
    }
}

/// Numbers of the pages that are set, ascending, from a page on.
fn pages_from<'a>(
    region: &PageRegion,
    words: &'a [u64],
    from_page: u64,
) -> impl Iterator<Item = u64> + 'a {
    // A region that begins within a page: each of its pages touches two.
    let first_page = region.guest_address / PAGE_BYTES;
    let spill = u64::from(!region.guest_address.is_multiple_of(PAGE_BYTES));
    let skip = from_page.saturating_sub(first_page + spill);
    let first_word = skip / 64;
    let from = usize::try_from(first_word).unwrap_or(usize::MAX);
    let bits = |mut word: u64| {
        std::iter::from_fn(move || {
            let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
            word &= word - 1;
            Some(bit)
        })
    };
    (first_word..)
        .zip(words.get(from..).unwrap_or_default())
        .filter(|(_, word)| **word != 0)
        .flat_map(move |(at, word)| bits(*word).map(move |bit| first_page + at * 64 + bit))
        .flat_map(move |page| page..=page + spill)
        .filter(move |page| *page >= from_page)
}

fn bits_of(region: &GuestRegionMmap<GuestBitmap>) -> &GuestBitmap {
    MmapRegion::bitmap(region)
}

fn extent(guest: &Guest) -> (u64, usize) {
    let pages = guest.iter().map(|r| r.len().div_ceil(PAGE_BYTES)).sum();
    (pages, guest.num_regions())
}

fn is_too_large(pages: u64, regions: usize) -> bool {
    pages > PAGES_MAX || regions > PAGE_REGIONS_MAX
}

/// Where the guest's memory lies, and in which files.
fn table(guest: &Guest) -> Vec<PageRegion> {
    let region = |region: &GuestRegionMmap<GuestBitmap>| {
        let file = region.file_offset();
        let known = file.and_then(|file| file.file().metadata().ok());
        PageRegion {
            guest_address: region.start_addr().0,
            size_bytes: region.len(),
            file_offset: file.map_or(0, |file| file.start()),
            file_device: known.as_ref().map_or(0, MetadataExt::dev),
            file_inode: known.as_ref().map_or(0, MetadataExt::ino),
        }
    };
    guest.iter().map(region).collect()
}

impl Rings {
    /// Begins a record; one that was kept ends.
    pub(super) fn arm(&mut self) -> Result<&Record, RecordError> {
        self.disarm();
        let record = Record::arm(self.guest.as_deref())?;
        Ok(self.record.insert(record))
    }

    /// Ends the record, if one was kept.
    pub(super) fn disarm(&mut self) -> bool {
        for region in self.guest.iter().flat_map(|guest| guest.iter()) {
            bits_of(region).disarm();
        }
        self.record.take().is_some()
    }

    /// A part of a turn; `None` when no record is kept.
    pub(super) fn take(
        &mut self,
        id: &str,
        turn: u64,
        from_page: u64,
    ) -> Option<Result<PagesTakeAnswer, RecordError>> {
        let record = self.record.as_mut()?;
        if id != record.id {
            return Some(Err(RecordError::Other {
                found: id.to_owned(),
                kept: record.id.clone(),
            }));
        }
        if Some(turn) == record.turn.checked_add(1) {
            if let Some(guest) = &self.guest {
                for (_, request) in &self.requests {
                    if matches!(request.ask, Ask::Read { .. }) {
                        // Those of its pieces that have ended are marked once more.
                        note_filled(guest, &request.data, 0, usize::MAX);
                    }
                }
            }
            record.begin_turn(self.guest.as_deref());
        } else if turn != record.turn || turn == 0 {
            return Some(Err(RecordError::Turn {
                found: turn,
                last: record.turn,
            }));
        }
        Some(Ok(record.answer(from_page)))
    }
}
