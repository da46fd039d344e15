//! Bytes of the journal that are in memory, for apply to take without a read of its own.
//!
//! Two ways in, each with a part of the memory to itself: records as they come from the link, while there is
//! room ([`Window::keep`]), and stretches that a pass reads in one go because it needs many small
//! pieces of them ([`plan`]). Owned by [`super::Apply`]; bounded, since memory
//! held here is memory that no record can come in by. What is
//! not here is read piece by piece: nothing depends on it but speed.
//!
//! A record is kept whatever else waits: where more waits than there is room for, a part of it is here
//! all the same, and is not read again. No place of a journal is ever written twice in the life of a
//! process (`journal::ring`), so what is kept at a place is what stands there.

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

/// Part of the memory that is for stretches read by a pass; the rest is for records as they come.
const LOADED_PART: u64 = 4;
/// Records of this size and above are large, in bytes: neighbours gain little by being written together.
const LARGE_BYTES_MIN: u64 = 128 << 10;

/// A stretch in memory, and the way it came in.
struct Held<B> {
    bytes: B,
    is_loaded: bool,
}

/// What one way in has in memory.
#[derive(Debug, Default)]
struct Share {
    bytes: u64,
    /// At most.
    bytes_max: u64,
    count: u64,
}

impl Share {
    fn has_room(&self, bytes: u64) -> bool {
        self.bytes + bytes <= self.bytes_max
    }
}

/// Stretches of the journal in memory.
pub(super) struct Window<M: Memory> {
    chunks: BTreeMap<Place, Held<M::Buf>>,
    kept: Share,
    loaded: Share,
}

impl<M: Memory> Window<M> {
    /// Nothing, and no more than that many bytes ever.
    pub(super) fn new(bytes_max: u64) -> Self {
        let share = |bytes_max| Share {
            bytes_max,
            ..Share::default()
        };
        let loaded = bytes_max / LOADED_PART;
        Self {
            chunks: BTreeMap::new(),
            kept: share(bytes_max - loaded),
            loaded: share(loaded),
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
        let chunk = &chunk.bytes;
        let fits = at.serial == place.serial && skip + length <= chunk.as_ref().len() as u64;
        fits.then_some((chunk, skip))
    }

    /// There is room for that much more of what a pass reads.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.loaded.has_room(bytes)
    }

    /// Half of the room for records is taken, and by large ones: they gain nothing by waiting, and from here
    /// they need not be read again.
    pub(super) fn is_filled_by_large(&self) -> bool {
        let Share { bytes, count, .. } = self.kept;
        bytes >= self.kept.bytes_max / 2 && bytes >= count * LARGE_BYTES_MIN && count > 0
    }

    /// A record came in; it is kept while there is room.
    pub(super) fn keep(&mut self, place: Place, record: &M::Buf, nothing_waits: bool) {
        if nothing_waits {
            self.clear();
        }
        if self.kept.has_room(record.as_ref().len() as u64) {
            self.put(place, record.clone(), false);
        }
    }

    /// Keeps what a pass has read.
    pub(super) fn insert(&mut self, place: Place, bytes: M::Buf) {
        self.put(place, bytes, true);
    }

    fn put(&mut self, place: Place, bytes: M::Buf, is_loaded: bool) {
        let share = self.share(is_loaded);
        share.bytes += bytes.as_ref().len() as u64;
        share.count += 1;
        let held = Held { bytes, is_loaded };
        if let Some(old) = self.chunks.insert(place, held) {
            self.gone(&old);
        }
    }

    fn share(&mut self, is_loaded: bool) -> &mut Share {
        if is_loaded {
            &mut self.loaded
        } else {
            &mut self.kept
        }
    }

    fn gone(&mut self, held: &Held<M::Buf>) {
        let share = self.share(held.is_loaded);
        share.bytes -= held.bytes.as_ref().len() as u64;
        share.count -= 1;
    }

    /// Everything before that place is applied.
    pub(super) fn forget_before(&mut self, place: Place) {
        let kept = self.chunks.split_off(&place);
        for (_, held) in std::mem::replace(&mut self.chunks, kept) {
            self.gone(&held);
        }
    }

    /// Nothing of it is needed any more.
    fn clear(&mut self) {
        self.chunks.clear();
        for share in [&mut self.kept, &mut self.loaded] {
            (share.bytes, share.count) = (0, 0);
        }
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
        assert_eq!((window.loaded.bytes, window.loaded.count), (4096, 1));
    }

    /// Kept records would take the memory that the next one comes in by, and nothing would move again. With
    /// more waiting than there is room for, nothing at all was kept, and everything read again.
    #[test]
    fn keeps_what_it_may_and_no_more() {
        let mut mem = HeapMemory::new(2 << 20);
        let mut window = Window::<HeapMemory>::new(16384);
        let records = [1, 2, 3, 4].map(|fill| kept(&mut mem, 4096, fill));
        let place = |at: usize| Place {
            serial: 1,
            offset: 4096 * (at as u64 + 1),
        };
        for (at, record) in records.iter().enumerate() {
            window.keep(place(at), record, at == 0);
        }
        assert_eq!((window.kept.bytes, window.kept.count), (12288, 3));
        assert!(window.find(place(3), 512).is_none(), "over the limit");
        assert!(window.has_room(4096) && !window.has_room(4097));
        window.forget_before(place(1));
        window.keep(place(4), &records[3], false);
        let got = window.get(&mut mem, place(4), 4096).unwrap();
        assert_eq!(got.as_ref(), [4; 4096]);
        assert!(window.find(place(3), 512).is_none(), "behind a gap");
        window.keep(place(5), &records[2], true);
        assert_eq!((window.kept.bytes, window.chunks.len()), (4096, 1));
    }

    /// Small records wait so that neighbours and later versions are written as one; large ones do not.
    #[test]
    fn large_records_fill_it_and_small_ones_do_not() {
        for (length, filled) in [(128 << 10, true), (64 << 10, false)] {
            let mut mem = HeapMemory::new(8 << 20);
            let mut window = Window::<HeapMemory>::new(BYTES_MAX);
            assert!(!window.is_filled_by_large());
            for at in 0..(BYTES_MAX as usize * 3 / 8).div_ceil(length) {
                let offset = (at * length) as u64;
                let record = kept(&mut mem, length, 1);
                window.keep(Place { serial: 1, offset }, &record, false);
            }
            assert_eq!(window.is_filled_by_large(), filled, "{length}");
        }
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
            prop_assert!(total <= BYTES_MAX / LOADED_PART);
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
