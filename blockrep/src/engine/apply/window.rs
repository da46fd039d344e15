//! Bytes of the journal that are in memory, for apply to take without a read of its own.
//!
//! Two ways in: records as they come from the link, as long as everything that is not applied yet
//! is here ([`Window::keep`]), and stretches that a pass reads in one go because it needs many small
//! pieces of them ([`plan`]). Owned by [`super::Apply`]; bounded, since memory
//! held here is memory that no record can come in by. What is
//! not here is read piece by piece: nothing depends on it but speed.

use crate::io::Memory;
use crate::overlay::{Extent, Source};
use blkback_proto::ids::Place;
use std::collections::BTreeMap;

/// Bytes read from the journal in one operation.
const CHUNK_BYTES: u64 = 256 << 10;
/// Pieces this far apart are read together, what stands between them with them, in bytes.
const GAP_BYTES_MAX: u64 = 16 << 10;
/// Pieces of this size are read for themselves, in bytes: nothing is gained by more.
const PIECE_BYTES_MIN: u64 = 64 << 10;
/// Chunks begin and end at multiples of this, in bytes, as all records do.
const ALIGN_BYTES: u64 = 4096;

/// Stretches of the journal in memory.
pub(super) struct Window<M: Memory> {
    chunks: BTreeMap<Place, M::Buf>,
    bytes: u64,
    /// At most.
    bytes_max: u64,
    /// Everything that is not applied yet is here.
    is_whole: bool,
}

impl<M: Memory> Window<M> {
    /// Nothing, and no more than that many bytes ever.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            chunks: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            is_whole: false,
        }
    }

    /// The bytes at a place, if they are here as a whole.
    pub(super) fn get(&self, mem: &mut M, place: Place, length: u64) -> Option<M::Buf> {
        let (chunk, skip) = self.find(place, length)?;
        let (start, length) = (usize::try_from(skip).ok()?, usize::try_from(length).ok()?);
        Some(mem.slice(chunk, start, length))
    }

    /// The chunk that holds the bytes at a place as a whole, and where in it they begin.
    fn find(&self, place: Place, length: u64) -> Option<(&M::Buf, u64)> {
        let (at, chunk) = self.chunks.range(..=place).next_back()?;
        let skip = place.offset.checked_sub(at.offset)?;
        let fits = at.serial == place.serial && skip + length <= chunk.as_ref().len() as u64;
        fits.then_some((chunk, skip))
    }

    /// There is room for that much more.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.bytes + bytes <= self.bytes_max
    }

    /// A record came in. It is kept if everything else that waits for apply is here: then apply
    /// will come to it before there is no room.
    pub(super) fn keep(&mut self, place: Place, record: &M::Buf, nothing_waits: bool) {
        if nothing_waits {
            self.clear();
            self.is_whole = true;
        }
        self.is_whole &= self.has_room(record.as_ref().len() as u64);
        if self.is_whole {
            self.insert(place, record.clone());
        }
    }

    /// Keeps what stands at a place.
    pub(super) fn insert(&mut self, place: Place, bytes: M::Buf) {
        self.bytes += bytes.as_ref().len() as u64;
        if let Some(old) = self.chunks.insert(place, bytes) {
            self.bytes -= old.as_ref().len() as u64;
        }
    }

    /// Everything before that place is applied.
    pub(super) fn forget_before(&mut self, place: Place) {
        let kept = self.chunks.split_off(&place);
        for (_, gone) in std::mem::replace(&mut self.chunks, kept) {
            self.bytes -= gone.as_ref().len() as u64;
        }
    }

    /// Nothing of it is needed any more.
    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }
}

/// A stretch of the journal that is read in one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) place: Place,
    pub(super) length: u64,
}

/// The stretches that hold the small pieces among `extents` that are not in memory, oldest first,
/// as far as there is room.
pub(super) fn plan<'a, M: Memory>(
    window: &Window<M>,
    extents: impl Iterator<Item = &'a Extent>,
) -> Vec<Chunk> {
    let mut pieces: Vec<(u64, u64, u64)> = extents
        .filter(|extent| extent.length < PIECE_BYTES_MIN)
        .filter_map(|extent| match extent.source {
            Source::Journal(place) if window.find(place, extent.length).is_none() => {
                let begin = place.offset - place.offset % ALIGN_BYTES;
                let end = (place.offset + extent.length).next_multiple_of(ALIGN_BYTES);
                Some((place.serial, begin, end))
            }
            _ => None,
        })
        .collect();
    pieces.sort_unstable();
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut small = 0;
    let mut total = 0;
    for (serial, begin, end) in pieces {
        if let Some(last) = chunks.last_mut() {
            let until = last.place.offset + last.length;
            let near = last.place.serial == serial && begin <= until + GAP_BYTES_MAX;
            if near && end - last.place.offset <= CHUNK_BYTES {
                let more = end.saturating_sub(until);
                if !window.has_room(total + more) {
                    break;
                }
                total += more;
                last.length += more;
                small += 1;
                continue;
            }
        }
        if !window.has_room(total + end - begin) {
            break;
        }
        total += end - begin;
        let place = Place {
            serial,
            offset: begin,
        };
        chunks.push(Chunk {
            place,
            length: end - begin,
        });
    }
    // Pieces that stand alone gain nothing.
    if small == 0 { Vec::new() } else { chunks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::HeapMemory;
    use blkback_proto::ids::Epoch;
    use proptest::prelude::*;

    const BYTES_MAX: u64 = 1 << 20;

    fn extent(serial: u64, offset: u64, length: u64) -> Extent {
        Extent {
            offset: 0,
            length,
            source: Source::Journal(Place { serial, offset }),
            epoch: Epoch(1),
        }
    }

    fn kept(mem: &mut HeapMemory, length: usize, fill: u8) -> <HeapMemory as Memory>::Buf {
        let mut buf = mem.alloc(length).unwrap();
        buf.as_mut().fill(fill);
        mem.freeze(buf)
    }

    #[test]
    fn gives_what_it_has_as_a_whole_and_nothing_else() {
        let mut mem = HeapMemory::new(1 << 20);
        let mut window = Window::<HeapMemory>::new(BYTES_MAX);
        let place = |serial, offset| Place { serial, offset };
        window.insert(place(7, 8192), kept(&mut mem, 8192, 3));
        window.insert(place(8, 4096), kept(&mut mem, 4096, 4));
        let got = window.get(&mut mem, place(7, 12288), 4096).unwrap();
        assert_eq!(got.as_ref(), [3; 4096]);
        for (serial, offset, length) in [
            (7, 4096, 512),
            (7, 12288, 4608),
            (8, 8192, 512),
            (9, 4096, 512),
        ] {
            assert!(
                window
                    .get(&mut mem, place(serial, offset), length)
                    .is_none()
            );
            assert!(window.find(place(serial, offset), length).is_none());
        }
        window.forget_before(place(8, 4096));
        assert!(window.find(place(7, 8192), 512).is_none());
        assert!(window.find(place(8, 4096), 512).is_some());
        assert_eq!(window.bytes, 4096);
    }

    /// Kept records would take the memory that the next one comes in by, and nothing would move again.
    #[test]
    fn keeps_no_more_than_it_may() {
        let mut mem = HeapMemory::new(2 << 20);
        let mut window = Window::<HeapMemory>::new(8192);
        let records = [1, 2, 3].map(|fill| kept(&mut mem, 4096, fill));
        for (at, record) in records.iter().enumerate() {
            let offset = 4096 * (at as u64 + 1);
            window.keep(Place { serial: 1, offset }, record, at == 0);
        }
        assert_eq!((window.bytes, window.is_whole), (8192, false));
        let place = Place {
            serial: 2,
            offset: 4096,
        };
        window.keep(place, &records[2], false);
        assert!(window.find(place, 512).is_none(), "behind a gap");
        window.keep(place, &records[2], true);
        assert_eq!((window.bytes, window.is_whole), (4096, true));
    }

    #[test]
    fn neighbours_are_read_together() {
        let window = Window::<HeapMemory>::new(BYTES_MAX);
        let extents = [
            extent(3, 40960, 4096),
            extent(3, 8192, 4096),
            extent(3, 12288, 512),
            extent(3, 90112, 4096),
            extent(4, 8192, 4096),
            extent(3, 200_704, 128 << 10),
        ];
        let chunks = plan(&window, extents.iter());
        let shapes: Vec<_> = chunks
            .iter()
            .map(|c| (c.place.serial, c.place.offset, c.length))
            .collect();
        assert_eq!(
            shapes,
            [
                (3, 8192, 8192),
                (3, 40960, 4096),
                (3, 90112, 4096),
                (4, 8192, 4096)
            ]
        );
        assert_eq!(plan(&window, extents[3..].iter()), []);
    }

    proptest! {
        /// Chunks are in order, aligned and short, and no more is read than there is room for.
        #[test]
        fn chunks_are_bounded_and_aligned(
            pieces in prop::collection::vec((1u64..4, 2u64..40_000, 1u64..64), 0..400),
        ) {
            let window = Window::<HeapMemory>::new(BYTES_MAX);
            let extents: Vec<Extent> = pieces
                .iter()
                .map(|(serial, at, units)| extent(*serial, at * 2048, units * 512))
                .collect();
            let chunks = plan(&window, extents.iter());
            let total: u64 = chunks.iter().map(|c| c.length).sum();
            prop_assert!(total <= BYTES_MAX);
            for pair in chunks.windows(2) {
                let (a, b) = (pair[0], pair[1]);
                prop_assert!(a.place < b.place);
            }
            for chunk in &chunks {
                prop_assert!(chunk.length <= CHUNK_BYTES.max(PIECE_BYTES_MIN + 2 * ALIGN_BYTES));
                prop_assert!((chunk.place.offset | chunk.length).is_multiple_of(ALIGN_BYTES));
            }
        }
    }
}
