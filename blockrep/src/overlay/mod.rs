//! Overlay: what the journal holds beyond the image.
//!
//! Maps ranges of a volume to the newest committed place of their contents, 512 bytes granular.
//! Pure; owned by the engine of the volume. Entries never overlap. An entry goes away when its
//! contents are in the image and the image is synced, unless it was overwritten meanwhile.

use blkback_proto::ids::{Epoch, Place};
use std::collections::BTreeMap;

/// Where the contents of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the journal, from this place on.
    Journal(Place),
    /// All zeros; the range may be given back if `discard`.
    Zero {
        /// The guest does not need the space.
        discard: bool,
    },
}

impl Source {
    fn advanced(self, bytes: u64) -> Self {
        match self {
            Self::Journal(place) => Self::Journal(Place {
                offset: place.offset + bytes,
                ..place
            }),
            zero @ Self::Zero { .. } => zero,
        }
    }
}

/// A range of a volume and where its contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset on the volume.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where the contents are.
    pub source: Source,
    /// Epoch that wrote it.
    pub epoch: Epoch,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The part of the extent inside `[start, end)`, which must overlap it.
    fn clip(&self, start: u64, end: u64) -> Self {
        let from = self.offset.max(start);
        let to = self.end().min(end);
        Self {
            offset: from,
            length: to - from,
            source: self.source.advanced(from - self.offset),
            epoch: self.epoch,
        }
    }
}

/// A piece of a range that is read: from the journal, zeros, or the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset on the volume.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// `None`: the image has it.
    pub source: Option<Source>,
}

/// Ranges that the journal holds beyond the image.
#[derive(Debug, Default)]
pub struct Overlay {
    extents: BTreeMap<u64, Extent>,
}

impl Overlay {
    /// Number of extents: what bounds the memory of the overlay.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// True when the image alone is the volume.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Puts a newer extent over what is there.
    pub fn insert(&mut self, extent: Extent) {
        self.cut(extent.offset, extent.end());
        self.extents.insert(extent.offset, extent);
    }

    /// Removes `[start, end)`, keeping the parts of extents outside of it.
    fn cut(&mut self, start: u64, end: u64) {
        if let Some((_, &left)) = self.extents.range(..start).next_back()
            && left.end() > start
        {
            self.extents
                .insert(left.offset, left.clip(left.offset, start));
            if left.end() > end {
                self.extents.insert(end, left.clip(end, left.end()));
            }
        }
        while let Some((&key, &inside)) = self.extents.range(start..end).next() {
            self.extents.remove(&key);
            if inside.end() > end {
                self.extents.insert(end, inside.clip(end, inside.end()));
            }
        }
    }

    /// The pieces that make up `[offset, offset + length)`, in order, without gaps.
    pub fn lookup(&self, offset: u64, length: u64, pieces: &mut Vec<Piece>) {
        let end = offset + length;
        let mut at = offset;
        let before = self.extents.range(..offset).next_back().map(|(_, e)| e);
        let overlapping = before.filter(|e| e.end() > offset).into_iter();
        for extent in overlapping.chain(self.extents.range(offset..end).map(|(_, e)| e)) {
            let part = extent.clip(at, end);
            if part.offset > at {
                pieces.push(Piece {
                    offset: at,
                    length: part.offset - at,
                    source: None,
                });
            }
            pieces.push(Piece {
                offset: part.offset,
                length: part.length,
                source: Some(part.source),
            });
            at = part.end();
        }
        if at < end {
            pieces.push(Piece {
                offset: at,
                length: end - at,
                source: None,
            });
        }
    }

    /// The first extents at or behind `from` whose epoch is at most `limit`, by offset.
    pub fn iter_from(&self, from: u64, limit: Epoch) -> impl Iterator<Item = &Extent> {
        self.extents
            .range(from..)
            .map(|(_, e)| e)
            .filter(move |e| e.epoch <= limit)
    }

    /// Forgets an extent whose contents are in the synced image, where it was not overwritten.
    pub fn remove_applied(&mut self, applied: &Extent) {
        let end = applied.end();
        let mut at = applied.offset;
        while let Some(found) = self
            .extents
            .range(..=at)
            .next_back()
            .map(|(_, e)| *e)
            .filter(|e| e.end() > at)
            .or_else(|| self.extents.range(at..end).next().map(|(_, e)| *e))
        {
            let part = found.clip(at.max(found.offset), end);
            let same = applied.clip(part.offset, part.end());
            if same.source == part.source && same.epoch == part.epoch {
                self.cut(part.offset, part.end());
            }
            at = part.end();
            if at >= end {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNITS: u64 = 48;

    fn extent(start: u64, units: u64, serial: u64) -> Extent {
        Extent {
            offset: start * 512,
            length: units * 512,
            source: Source::Journal(Place {
                serial,
                offset: 4096,
            }),
            epoch: Epoch(serial),
        }
    }

    /// Contents of each unit: which write put it there and which part of the write.
    fn model_of(overlay: &Overlay) -> Vec<Option<(u64, u64)>> {
        let mut pieces = Vec::new();
        overlay.lookup(0, UNITS * 512, &mut pieces);
        let mut units = Vec::new();
        let mut at = 0;
        for piece in pieces {
            assert_eq!(piece.offset, at, "pieces have no gap");
            at += piece.length;
            for unit in 0..piece.length / 512 {
                units.push(piece.source.map(|source| match source {
                    Source::Journal(place) => (place.serial, (place.offset - 4096) / 512 + unit),
                    Source::Zero { .. } => (u64::MAX, 0),
                }));
            }
        }
        units
    }

    proptest! {
        /// A read through the overlay must see the newest write of every sector, and forgetting
        /// an applied extent must never forget a newer one: that would lose a committed write.
        #[test]
        fn agrees_with_an_array(
            steps in prop::collection::vec((0u64..UNITS, 1u64..12, any::<bool>()), 1..60),
        ) {
            let mut overlay = Overlay::default();
            let mut model: Vec<Option<(u64, u64)>> = vec![None; UNITS as usize];
            let mut all = Vec::new();
            for (serial, (start, units, apply)) in (1u64..).zip(steps) {
                let units = units.min(UNITS - start);
                if apply && !all.is_empty() {
                    let index = (start * 7 + units) as usize % all.len();
                    let applied: Extent = all.swap_remove(index);
                    let Source::Journal(place) = applied.source else { unreachable!() };
                    overlay.remove_applied(&applied);
                    for slot in &mut model {
                        if slot.is_some_and(|(by, _)| by == place.serial) {
                            *slot = None;
                        }
                    }
                } else {
                    let new = extent(start, units, serial);
                    overlay.insert(new);
                    all.push(new);
                    for unit in 0..units {
                        model[(start + unit) as usize] = Some((serial, unit));
                    }
                }
                prop_assert_eq!(&model_of(&overlay), &model);
            }
        }
    }

    /// Apply must not take an epoch that is not committed yet.
    #[test]
    fn iteration_respects_the_limit() {
        let mut overlay = Overlay::default();
        overlay.insert(extent(0, 2, 1));
        overlay.insert(extent(4, 2, 2));
        overlay.insert(extent(8, 2, 3));
        let seen: Vec<u64> = overlay
            .iter_from(512, Epoch(2))
            .map(|e| e.epoch.0)
            .collect();
        assert_eq!(seen, [2]);
    }
}
