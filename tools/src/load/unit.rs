//! The 512-byte self-describing unit.
//!
//! | bytes    | field                                             |
//! |----------|---------------------------------------------------|
//! | 0..8     | magic                                             |
//! | 8..16    | run id                                            |
//! | 16..24   | write id: dense from 1, in order of submission    |
//! | 24..32   | byte offset of this unit on the disk              |
//! | 32..36   | index of this unit within its write               |
//! | 36..40   | count of units of the write                       |
//! | 40..508  | filler that differs for every unit of every write |
//! | 508..512 | crc32 of bytes 0..508                             |
//!
//! Integers are little-endian. The filler makes a unit that mixes two writes fail its checksum.

/// Bytes of one unit: the atomic size of the disks under test.
pub const UNIT_SIZE: usize = 512;

const MAGIC: [u8; 8] = *b"brLdUnit";
const CRC_AT: usize = UNIT_SIZE - 4;
const FILLER_AT: usize = 40;

/// What a unit says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Random id of the run that wrote it.
    pub run: u64,
    /// Id of the write within the run.
    pub write: u64,
    /// Byte offset on the disk this unit was meant for.
    pub offset: u64,
    /// Place of this unit within its write, from 0.
    pub index: u32,
    /// Units of the whole write.
    pub count: u32,
}

/// What 512 bytes of a disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// All bytes zero.
    Zero,
    /// A stamp with a good checksum. Whether it belongs here is the caller's question.
    Stamped(Stamp),
    /// Neither zero nor a stamp with a good checksum: torn, rotten or foreign.
    Garbage,
}

/// Fills `out` (one unit long) with the unit that `stamp` describes.
pub fn encode(stamp: &Stamp, out: &mut [u8]) {
    assert_eq!(
        out.len(),
        UNIT_SIZE,
        "a unit is encoded into exactly one unit"
    );
    out[0..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&stamp.run.to_le_bytes());
    out[16..24].copy_from_slice(&stamp.write.to_le_bytes());
    out[24..32].copy_from_slice(&stamp.offset.to_le_bytes());
    out[32..36].copy_from_slice(&stamp.index.to_le_bytes());
    out[36..40].copy_from_slice(&stamp.count.to_le_bytes());
    let mut state = stamp.run ^ stamp.write.rotate_left(32) ^ stamp.offset.wrapping_mul(ODD) | 1;
    for chunk in out[FILLER_AT..CRC_AT].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let crc = crc32fast::hash(&out[..CRC_AT]);
    out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Reads one unit.
pub fn decode(bytes: &[u8]) -> Unit {
    assert_eq!(
        bytes.len(),
        UNIT_SIZE,
        "a unit is decoded from exactly one unit"
    );
    if bytes == [0; UNIT_SIZE] {
        return Unit::Zero;
    }
    let crc = le_u32(bytes, CRC_AT);
    if bytes[0..8] != MAGIC || crc32fast::hash(&bytes[..CRC_AT]) != crc {
        return Unit::Garbage;
    }
    Unit::Stamped(Stamp {
        run: le_u64(bytes, 8),
        write: le_u64(bytes, 16),
        offset: le_u64(bytes, 24),
        index: le_u32(bytes, 32),
        count: le_u32(bytes, 36),
    })
}

/// The little-endian u64 at byte `at`.
pub(super) fn le_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
}

/// The little-endian u32 at byte `at`.
pub(super) fn le_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(run: u64, write: u64, offset: u64) -> Stamp {
        Stamp {
            run,
            write,
            offset,
            index: 3,
            count: 8,
        }
    }

    proptest! {
        /// Production: a flipped bit taken for a valid unit would hide corruption from the oracle.
        #[test]
        fn a_unit_reads_back_and_any_flipped_bit_is_garbage(
            run: u64, write: u64, offset: u64, bit in 0..UNIT_SIZE * 8
        ) {
            let mut bytes = [0; UNIT_SIZE];
            let stamp = stamp(run, write, offset);
            encode(&stamp, &mut bytes);
            prop_assert_eq!(decode(&bytes), Unit::Stamped(stamp));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&bytes), Unit::Garbage);
        }

        /// Production: half of one write and half of the next in a sector (a torn write) must not
        /// pass.
        #[test]
        fn a_unit_torn_between_two_writes_is_garbage(write: u64, cut in 20..CRC_AT) {
            let (mut old, mut new) = ([0; UNIT_SIZE], [0; UNIT_SIZE]);
            encode(&stamp(1, write, 4096), &mut old);
            encode(&stamp(1, write.wrapping_add(1), 4096), &mut new);
            old[..cut].copy_from_slice(&new[..cut]);
            prop_assert_eq!(decode(&old), Unit::Garbage);
        }
    }

    /// Production: a unit half zeroed by a torn discard must not count as zero.
    #[test]
    fn only_all_zero_is_zero() {
        let mut bytes = [0; UNIT_SIZE];
        assert_eq!(decode(&bytes), Unit::Zero);
        bytes[UNIT_SIZE - 1] = 1;
        assert_eq!(decode(&bytes), Unit::Garbage);
    }
}
