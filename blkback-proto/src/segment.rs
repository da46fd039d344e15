//! Segment header of a journal, version 1 (JOURNAL.md §2).
//!
//! A journal is a ring of segment files of one size. Serial numbers count up for ever; serial `s`
//! lives in file `s % segment_count`. The header ties what follows to its volume and to the place
//! in the chain where the segment takes over, so records of an earlier lap never pass.

use crate::ids::{GroupUuid, LineageId, VolumeUuid};
use crate::record::{FORMAT_VERSION, HEADER_BYTES, RecordError};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every used segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"BRSEGMNT";
/// Size of the segment header: the first record stands right behind it, in bytes.
pub const SEGMENT_HEADER_BYTES: usize = HEADER_BYTES;
/// Smallest segment, in bytes: a header and two of the largest records.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Largest segment, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Bounds of the number of segments of a journal.
pub const SEGMENT_COUNT_MIN: u32 = 4;
/// Bounds of the number of segments of a journal.
pub const SEGMENT_COUNT_MAX: u32 = 4096;

/// Name of the file of a segment inside the journal directory.
#[must_use]
pub fn segment_file_name(index: u32) -> String {
    format!("segment-{index:04}.brj")
}

/// A decoded segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Serial number, from 1.
    pub serial: u64,
    /// Size of every segment of this journal, in bytes.
    pub segment_bytes: u64,
    /// Number of segments of this journal.
    pub segment_count: u32,
    /// Group.
    pub group: GroupUuid,
    /// Volume.
    pub volume: VolumeUuid,
    /// Lineage of the first record.
    pub lineage: LineageId,
    /// `record_seq` of the first record.
    pub first_record_seq: u64,
    /// `prev_crc` of the first record.
    pub first_prev_crc: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSegment {
    magic: [u8; 8],
    version: U16,
    reserved: U16,
    header_crc: U32,
    serial: U64,
    segment_bytes: U64,
    segment_count: U32,
    first_prev_crc: U32,
    group: [u8; 16],
    volume: [u8; 16],
    lineage: [u8; 16],
    first_record_seq: U64,
    reserved2: [u8; SEGMENT_HEADER_BYTES - 96],
}

const _: () = assert!(size_of::<RawSegment>() == SEGMENT_HEADER_BYTES);

fn crc_without_field(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

impl SegmentHeader {
    /// The 4096 bytes of the header.
    ///
    /// # Panics
    /// If `out` is not [`SEGMENT_HEADER_BYTES`] long.
    pub fn encode(&self, out: &mut [u8]) {
        out.fill(0);
        let raw = RawSegment::mut_from_bytes(out).expect("the caller gives 4096 bytes");
        raw.magic = SEGMENT_MAGIC;
        raw.version = FORMAT_VERSION.into();
        raw.serial = self.serial.into();
        raw.segment_bytes = self.segment_bytes.into();
        raw.segment_count = self.segment_count.into();
        raw.first_prev_crc = self.first_prev_crc.into();
        raw.group = self.group.0;
        raw.volume = self.volume.0;
        raw.lineage = self.lineage.0;
        raw.first_record_seq = self.first_record_seq.into();
        let crc = crc_without_field(out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a segment header.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes = bytes
            .get(..SEGMENT_HEADER_BYTES)
            .ok_or(RecordError::Short)?;
        let raw = RawSegment::ref_from_bytes(bytes).map_err(|_| RecordError::Short)?;
        if raw.magic != SEGMENT_MAGIC {
            return Err(RecordError::Magic);
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(RecordError::Version(raw.version.get()));
        }
        if raw.header_crc.get() != crc_without_field(bytes) {
            return Err(RecordError::HeaderCrc);
        }
        if raw.reserved.get() != 0 || raw.reserved2.iter().any(|b| *b != 0) {
            return Err(RecordError::Field("reserved"));
        }
        let header = Self {
            serial: raw.serial.get(),
            segment_bytes: raw.segment_bytes.get(),
            segment_count: raw.segment_count.get(),
            group: GroupUuid(raw.group),
            volume: VolumeUuid(raw.volume),
            lineage: LineageId(raw.lineage),
            first_record_seq: raw.first_record_seq.get(),
            first_prev_crc: raw.first_prev_crc.get(),
        };
        check_geometry(header.segment_bytes, header.segment_count)?;
        if header.serial == 0 || header.first_record_seq == 0 {
            return Err(RecordError::Bounds("serial"));
        }
        Ok(header)
    }
}

/// Checks the size and number of segments of a journal.
///
/// # Errors
/// [`RecordError::Bounds`].
pub fn check_geometry(segment_bytes: u64, segment_count: u32) -> Result<(), RecordError> {
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
        || !segment_bytes.is_multiple_of(HEADER_BYTES as u64)
    {
        return Err(RecordError::Bounds("segment_bytes"));
    }
    if !(SEGMENT_COUNT_MIN..=SEGMENT_COUNT_MAX).contains(&segment_count) {
        return Err(RecordError::Bounds("segment_count"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            serial: 9,
            segment_bytes: 64 << 20,
            segment_count: 16,
            group: GroupUuid([1; 16]),
            volume: VolumeUuid([2; 16]),
            lineage: LineageId([3; 16]),
            first_record_seq: 1000,
            first_prev_crc: 0xdead_beef,
        }
    }

    /// Frozen bytes: an older journal must stay readable.
    #[test]
    fn golden_bytes() {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        sample().encode(&mut bytes);
        crate::golden::check("segment-v1.bin", &bytes);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(sample()));
    }

    /// A flipped bit must not turn one segment into another.
    #[test]
    fn every_flipped_bit_and_truncation_is_refused() {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        sample().encode(&mut bytes);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for length in 0..bytes.len() {
            assert!(SegmentHeader::decode(&bytes[..length]).is_err());
        }
    }

    /// Absurd geometry must not reach arithmetic or allocations.
    #[test]
    fn geometry_is_bounded() {
        assert!(check_geometry(64 << 20, 16).is_ok());
        assert!(check_geometry(0, 16).is_err());
        assert!(check_geometry((64 << 20) + 512, 16).is_err());
        assert!(check_geometry(64 << 20, 1).is_err());
        assert!(check_geometry(u64::MAX, u32::MAX).is_err());
    }
}
