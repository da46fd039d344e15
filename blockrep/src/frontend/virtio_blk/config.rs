//! The configuration space of the device (`struct virtio_blk_config`, virtio 1.2, section 5.2.4).

use super::{RANGE_SECTORS_MAX, RANGES_MAX, SEGMENTS_MAX};
use blkback_proto::ids::UNIT_BYTES;

/// Bytes of the space that are known here; what lies behind reads as zeros.
pub const CONFIG_BYTES: usize = 60;
/// A front end asks for no more than that at once.
const READ_BYTES_MAX: u32 = 256;

/// The bytes of the space.
#[must_use]
pub fn space(size_bytes: u64, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(size_bytes / UNIT_BYTES).to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &(UNIT_BYTES as u32).to_le_bytes());
    // writeback: a cache that FLUSH empties.
    put(32, &[1]);
    put(34, &queues.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &1u32.to_le_bytes());
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    space
}

/// A part of the space, as a front end asks for it; `None` where the numbers make no sense.
#[must_use]
pub fn read(space: &[u8; CONFIG_BYTES], offset: u32, length: u32) -> Option<Vec<u8>> {
    let end = offset.checked_add(length)?;
    if length == 0 || end > READ_BYTES_MAX {
        return None;
    }
    let byte = |at: u32| space.get(at as usize).copied().unwrap_or(0);
    Some((offset..end).map(byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that read another capacity would write past the end, or lose its last blocks.
    #[test]
    fn fields_stand_where_the_specification_says() {
        let space = space(3 << 20, 4);
        assert_eq!(space[..8], 6144u64.to_le_bytes());
        assert_eq!(space[12..16], SEGMENTS_MAX.to_le_bytes());
        assert_eq!(space[20..24], 512u32.to_le_bytes());
        assert_eq!(space[34..36], 4u16.to_le_bytes());
        assert_eq!(space[36..40], 2_097_152u32.to_le_bytes());
        assert_eq!(space[56], 1);
    }

    /// Offset and length come from another process.
    #[test]
    fn absurd_reads_are_refused() {
        let space = space(1 << 20, 1);
        assert_eq!(read(&space, 0, 8).unwrap(), 2048u64.to_le_bytes());
        assert_eq!(read(&space, 56, 16).unwrap()[4..], [0; 12]);
        assert_eq!(read(&space, u32::MAX, 2), None);
        assert_eq!(read(&space, 250, 10), None);
        assert_eq!(read(&space, 0, 0), None);
    }
}
