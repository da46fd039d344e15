//! A guest's request between its ring and the engine: data moves in pieces, one copy each way.

use super::Guest;
use crate::frontend::virtio_blk::request::{Ask, Segment, Status};
use crate::reactor::Foreign;
use std::sync::Arc;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// A request that was taken from a ring.
pub(super) struct RingRequest {
    pub(super) ring: usize,
    pub(super) head: u16,
    /// Guest address of the status byte.
    pub(super) status: u64,
    pub(super) ask: Ask,
    pub(super) data: Vec<Segment>,
    /// Bytes, or ranges, that were handed to the engine.
    pub(super) handed: u64,
    /// Pieces that are with the engine, and one until all of them are.
    pub(super) left: u32,
    pub(super) answer: Status,
}

/// A piece of a request that is with the engine.
#[derive(Clone, Copy)]
pub(super) struct RingPart {
    pub(super) request: usize,
    /// Where in the request's data it begins.
    pub(super) at: u64,
    /// Journal charge it is counted with while it is in flight, in bytes.
    pub(super) charge: u64,
}

impl RingRequest {
    /// Everything is with the engine.
    pub(super) fn is_handed(&self) -> bool {
        match &self.ask {
            Ask::Read { length, .. } | Ask::Write { length, .. } => self.handed == *length,
            Ask::Zero(ranges) => self.handed == ranges.len() as u64,
            Ask::Flush => self.handed > 0,
            Ask::GetId => true,
        }
    }

    /// Bytes the guest finds in its writable memory, status included.
    pub(super) fn written_bytes(&self) -> u32 {
        let data = match &self.ask {
            Ask::Read { length, .. } if self.answer == Status::Ok => *length,
            Ask::GetId => crate::frontend::virtio_blk::request::ID_BYTES,
            _ => 0,
        };
        u32::try_from(data).unwrap_or(u32::MAX - 1) + 1
    }
}

/// The stretches of the segments from byte `at` on, `length` bytes in all.
fn stretches(
    segments: &[Segment],
    at: u64,
    length: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
    let mut skip = at;
    let mut left = length;
    segments.iter().filter_map(move |segment| {
        let whole = u64::from(segment.length);
        if skip >= whole {
            skip -= whole;
            return None;
        }
        let take = usize::try_from(whole - skip).unwrap_or(left).min(left);
        if take == 0 {
            return None;
        }
        // One that passes the end of the address space is none of the guest's memory.
        let address = GuestAddress(segment.address.saturating_add(skip));
        skip = 0;
        left -= take;
        Some((address, take))
    })
}

/// Copies data of a write out of the guest; false when it names memory the guest has not.
pub(super) fn gather(guest: &Guest, segments: &[Segment], at: u64, out: &mut [u8]) -> bool {
    let mut filled = 0;
    for (address, length) in stretches(segments, at, out.len()) {
        let to = &mut out[filled..filled + length];
        if guest.read_slice(to, address).is_err() {
            return false;
        }
        filled += length;
    }
    filled == out.len()
}

/// Copies data of a read into the guest, which the log of a migration sees.
pub(super) fn scatter(guest: &Guest, segments: &[Segment], at: u64, data: &[u8]) -> bool {
    let mut done = 0;
    for (address, length) in stretches(segments, at, data.len()) {
        let piece = &data[done..done + length];
        let is_there = if crate::mutant!("no-log") {
            write_unlogged(guest, piece, address)
        } else {
            guest.write_slice(piece, address).is_ok()
        };
        if !is_there {
            return false;
        }
        done += length;
    }
    done == data.len()
}

/// The guest's memory for `length` bytes of a read from byte `at` on, for the kernel to fill; `None`
/// when it names memory the guest has not. `vector` serves to list it.
pub(super) fn memory_of(
    guest: &Arc<Guest>,
    segments: &[Segment],
    at: u64,
    length: usize,
    mut vector: Vec<libc::iovec>,
) -> Option<Foreign> {
    for (address, length) in stretches(segments, at, length) {
        let slice = guest.get_slice(address, length).ok()?;
        vector.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: length,
        });
    }
    // SAFETY: the slices lie in mappings that live as long as the guest's memory, which is held on to,
    // and which is never borrowed.
    let memory = unsafe { Foreign::new(vector, Arc::clone(guest) as _) };
    (memory.len() == length as u64).then_some(memory)
}

/// The kernel has written to the guest's memory, from byte `at` of the segments on: the log of a
/// migration hears of it.
pub(super) fn note_filled(guest: &Guest, segments: &[Segment], at: u64, length: usize) {
    if crate::mutant!("no-log") {
        return;
    }
    for (address, length) in stretches(segments, at, length) {
        if let Ok(slice) = guest.get_slice(address, length) {
            slice.bitmap().mark_dirty(0, length);
        }
    }
}

/// For a planted bug: the bytes arrive, and the log of a migration hears nothing of them.
fn write_unlogged(guest: &Guest, data: &[u8], address: GuestAddress) -> bool {
    let Ok(slice) = guest.get_slice(address, data.len()) else {
        return false;
    };
    let place = slice.ptr_guard_mut();
    // SAFETY: the slice is as long as the data; it is the guest's, so nothing of ours borrows it.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place.as_ptr(), data.len()) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: [Segment; 3] = [
        Segment {
            address: 0x1000,
            length: 600,
        },
        Segment {
            address: 0x3000,
            length: 0,
        },
        Segment {
            address: 0x2000,
            length: 424,
        },
    ];

    /// A piece may begin and end anywhere in the guest's segments.
    #[test]
    fn pieces_find_their_place_in_the_segments() {
        let guest = Guest::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let data: Vec<u8> = (0..1024u32).map(|n| (n % 251) as u8).collect();
        assert!(scatter(&guest, &SEGMENTS, 0, &data[..512]));
        assert!(scatter(&guest, &SEGMENTS, 512, &data[512..]));
        let mut back = vec![0; 1024];
        assert!(gather(&guest, &SEGMENTS, 0, &mut back));
        assert_eq!(back, data);
        assert!(gather(&guest, &SEGMENTS, 700, &mut back[..100]));
        assert_eq!(back[..100], data[700..800]);
        assert!(!gather(&guest, &SEGMENTS, 1000, &mut back[..100]));
    }

    /// The kernel fills what the segments name, in their order, and what is not the guest's is refused.
    #[test]
    fn memory_is_listed_as_the_segments_name_it() {
        let guest = Arc::new(Guest::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
        let host = |address: u64| guest.get_host_address(GuestAddress(address)).unwrap();
        let memory = memory_of(&guest, &SEGMENTS, 512, 512, Vec::new()).unwrap();
        assert_eq!(memory.len(), 512);
        let expected = [(host(0x1000 + 512), 88), (host(0x2000), 424)];
        let found: Vec<_> = memory
            .stretches()
            .iter()
            .map(|part| (part.iov_base.cast::<u8>(), part.iov_len))
            .collect();
        assert_eq!(found, expected);
        assert!(memory_of(&guest, &SEGMENTS, 1000, 100, Vec::new()).is_none());
        let outside = [Segment {
            address: 0x3f00,
            length: 512,
        }];
        assert!(memory_of(&guest, &outside, 0, 512, Vec::new()).is_none());
    }

    /// Addresses come from the guest.
    #[test]
    fn memory_the_guest_has_not_is_an_error() {
        let guest = Guest::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        for address in [0x0f00, 0x1000, u64::MAX - 10] {
            let segments = [Segment {
                address,
                length: 512,
            }];
            assert!(!scatter(&guest, &segments, 0, &[1; 512]));
            assert!(!gather(&guest, &segments, 0, &mut [0; 512]));
        }
    }
}
