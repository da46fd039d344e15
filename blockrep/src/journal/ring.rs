//! Places in a journal of equal segments that are used in turn.
//!
//! Serial `s` lives in segment file `s % count`. A segment may be used again only after metadata
//! that points past it is durable ([`Ring::free_before`]).

use blkback_proto::ids::Place;
use blkback_proto::record::RECORD_BYTES_MAX;
use blkback_proto::segment::SEGMENT_HEADER_BYTES;

/// Size and number of the segments of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of a segment in bytes, header included.
    pub segment_bytes: u64,
    /// Number of segment files.
    pub segment_count: u32,
}

impl Geometry {
    /// Segment file of a serial.
    #[must_use]
    pub fn file_of(&self, serial: u64) -> u32 {
        u32::try_from(serial % u64::from(self.segment_count)).expect("less than the count")
    }

    /// Bytes of records that surely fit into a segment, whatever their sizes.
    #[must_use]
    pub const fn usable_bytes(&self) -> u64 {
        self.segment_bytes - SEGMENT_HEADER_BYTES as u64 - RECORD_BYTES_MAX
    }

    /// Records a peer may have outstanding at most, in bytes: all segments but the one being
    /// filled and one that is kept for a promotion.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.segment_count - 2) * self.usable_bytes()
    }
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Place of the record.
    pub place: Place,
    /// The record is the first of its segment: the header has to be written, too.
    pub new_segment: bool,
}

/// The used part of a journal.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    geometry: Geometry,
    /// First segment that must not be overwritten.
    keep_from: u64,
    /// Where the next record goes, if it fits.
    head: Place,
    /// The segment of `head` has its header.
    open: bool,
}

impl Ring {
    /// A ring whose next record begins segment `serial`; everything before is free.
    #[must_use]
    pub fn starting_at(geometry: Geometry, serial: u64) -> Self {
        let head = Place {
            serial,
            offset: SEGMENT_HEADER_BYTES as u64,
        };
        Self {
            geometry,
            keep_from: serial,
            head,
            open: false,
        }
    }

    /// A ring with records between `keep_from` and `head`.
    #[must_use]
    pub fn recovered(geometry: Geometry, keep_from: u64, head: Place) -> Self {
        Self {
            geometry,
            keep_from,
            head,
            open: true,
        }
    }

    /// Size and number of segments.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Place behind the last record.
    #[must_use]
    pub fn head(&self) -> Place {
        self.head
    }

    /// Takes the place of a record of that size; `None` when the ring is full.
    pub fn take(&mut self, total_bytes: u64) -> Option<Slot> {
        assert!(
            total_bytes <= RECORD_BYTES_MAX,
            "records are bounded before they get here"
        );
        if self.open && self.head.offset + total_bytes > self.geometry.segment_bytes {
            self.next_segment()?;
        }
        if !self.open && self.head.serial >= self.end_serial() {
            return None;
        }
        let slot = Slot {
            place: self.head,
            new_segment: !self.open,
        };
        self.open = true;
        self.head.offset += total_bytes;
        Some(slot)
    }

    /// First serial whose file still holds what must be kept.
    fn end_serial(&self) -> u64 {
        self.keep_from + u64::from(self.geometry.segment_count)
    }

    /// Goes on in a fresh segment, as at the start of a chain; `None` when the ring is full.
    pub fn next_segment(&mut self) -> Option<u64> {
        // A ring made by recovery stands at a fresh segment already.
        let serial = self.head.serial + u64::from(self.open);
        if serial >= self.end_serial() {
            return None;
        }
        self.head = Place {
            serial,
            offset: SEGMENT_HEADER_BYTES as u64,
        };
        self.open = false;
        Some(serial)
    }

    /// Segments from `serial` on hold what was recovered.
    pub fn keep(&mut self, serial: u64) {
        self.keep_from = serial.min(self.keep_from);
    }

    /// Segments before `serial` may be used again.
    pub fn free_before(&mut self, serial: u64) {
        assert!(serial <= self.head.serial, "the head stays");
        self.keep_from = self.keep_from.max(serial);
    }

    /// First segment that must not be overwritten.
    #[must_use]
    pub fn keep_from(&self) -> u64 {
        self.keep_from
    }

    /// Bytes of records that surely still fit, with one segment kept for a promotion.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        if self.head.serial >= self.end_serial() {
            return 0;
        }
        let used = self.head.serial - self.keep_from + 1;
        let whole = u64::from(self.geometry.segment_count).saturating_sub(used + 1);
        let limit = self.geometry.segment_bytes - RECORD_BYTES_MAX;
        whole * self.geometry.usable_bytes() + limit.saturating_sub(self.head.offset)
    }

    /// Bytes of segments in use, for status.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        (self.head.serial - self.keep_from) * self.geometry.segment_bytes + self.head.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry {
        segment_bytes: 4 << 20,
        segment_count: 4,
    };

    proptest! {
        /// A record that was granted a place must find one, never on top of one that is kept, and
        /// a promotion must always find its segment.
        #[test]
        fn what_is_promised_fits(sizes in prop::collection::vec(1u64..=257, 1..400)) {
            let mut ring = Ring::starting_at(GEOMETRY, 1);
            let mut kept: std::collections::VecDeque<(Place, u64)> = Default::default();
            for pages in sizes {
                let bytes = pages * 4096;
                while ring.free_bytes() < bytes {
                    let (oldest, _) = kept.pop_front().expect("an empty ring has room");
                    let next = kept.front().map_or(ring.head().serial, |(p, _)| p.serial);
                    prop_assert!(oldest.serial <= next);
                    ring.free_before(next);
                }
                let mut promotion = ring;
                prop_assert!(promotion.next_segment().is_some());
                let slot = ring.take(bytes).expect("promised");
                prop_assert!(slot.place.offset + bytes <= GEOMETRY.segment_bytes);
                for (place, _) in &kept {
                    prop_assert!(
                        GEOMETRY.file_of(place.serial) != GEOMETRY.file_of(slot.place.serial)
                            || place.serial == slot.place.serial
                    );
                }
                kept.push_back((slot.place, bytes));
            }
        }
    }

    /// The window told to a peer must never be more than an empty journal holds.
    #[test]
    fn an_empty_ring_has_its_capacity() {
        let ring = Ring::starting_at(GEOMETRY, 7);
        assert!(ring.free_bytes() >= GEOMETRY.capacity_bytes());
    }
}
