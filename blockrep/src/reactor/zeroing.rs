//! Zero and Discard: whole pages by fallocate, edges and everything fallocate refuses by writing.
//!
//! A file or device that does not know an fallocate mode is asked once: Discard falls back from
//! punching a hole to zeroing a range, both to writing zeros. So the range always reads as zeros
//! afterwards; only how much space it takes differs.

use io_uring::opcode;

use super::Reactor;
use super::files::clipped;
use super::flight::Step;
use super::op::FileOp;
use super::slots::FileState;

/// fallocate is used for whole pages: file systems zero parts of one through the page cache.
const ALLOCATE_UNIT: u64 = 4096;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

impl Reactor {
    /// Takes the next part of a Zero or Discard.
    pub(super) fn issue_zero_part(&mut self, index: u32, op: FileOp) {
        let flight = self.flights.get_mut(index);
        if flight.done == flight.len {
            return self.finish(index, Ok(0));
        }
        let file = self.slots.file_in_flight(flight.slot);
        let end = flight.offset + flight.len;
        let (fd, flags) = file.target.parts();
        let part = zero_part(
            flight.position(),
            flight.offset..end,
            file.block,
            fallocate_mode(file, op),
        );
        flight.part_end = part.end() - flight.offset;
        match part {
            ZeroPart::Allocate { end, mode } => {
                flight.step = Step::Allocate;
                let at = flight.position();
                let entry = opcode::Fallocate::new(fd, end - at).offset(at).mode(mode);
                self.hand_over(index, entry.build().flags(flags));
            }
            ZeroPart::Write { end } => {
                flight.step = Step::Straight;
                let at = flight.position();
                let wanted = (end - at).min(self.zeros.len() as u64);
                let len = clipped(&mut flight.clip, wanted);
                let entry = opcode::Write::new(fd, self.zeros.as_ptr(), len).offset(at);
                self.hand_over(index, entry.build().flags(flags));
            }
            ZeroPart::Change { .. } => self.issue_chunk(index),
        }
    }
}

/// The mode that was to do `op` is not supported here: do not try it again.
pub(super) fn give_up_fallocate(file: &mut FileState, op: FileOp) {
    match fallocate_mode(file, op) {
        Some(PUNCH_HOLE) => file.no_punch_hole = true,
        _ => file.no_zero_range = true,
    }
}

/// How fallocate can do `op` on this file; `None` when zeros have to be written.
fn fallocate_mode(file: &FileState, op: FileOp) -> Option<i32> {
    if op == FileOp::Discard && !file.no_punch_hole {
        Some(PUNCH_HOLE)
    } else if !file.no_zero_range {
        Some(libc::FALLOC_FL_ZERO_RANGE)
    } else {
        None
    }
}

/// How the next stretch of a range becomes zero; `end` is where the stretch ends in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ZeroPart {
    /// By fallocate.
    Allocate { end: u64, mode: i32 },
    /// By writing whole blocks of zeros.
    Write { end: u64 },
    /// Less than a block: read it, zero the part, write it.
    Change { end: u64 },
}

impl ZeroPart {
    fn end(self) -> u64 {
        match self {
            ZeroPart::Allocate { end, .. } | ZeroPart::Write { end } | ZeroPart::Change { end } => {
                end
            }
        }
    }
}

/// The stretch that begins at `at` within `range`. Whole pages go to fallocate, if there is a mode
/// for it; edges are written.
fn zero_part(at: u64, range: std::ops::Range<u64>, block: u64, mode: Option<i32>) -> ZeroPart {
    let unit = block.max(ALLOCATE_UNIT);
    let middle = range.start.next_multiple_of(unit)..range.end - range.end % unit;
    let mut end = range.end;
    if let Some(mode) = mode
        && middle.start < middle.end
    {
        if middle.contains(&at) {
            return ZeroPart::Allocate {
                end: middle.end,
                mode,
            };
        }
        if at < middle.start {
            end = middle.start;
        }
    }
    let whole_end = end - end % block;
    if at.is_multiple_of(block) && at < whole_end {
        ZeroPart::Write { end: whole_end }
    } else {
        ZeroPart::Change {
            end: end.min((at + 1).next_multiple_of(block)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A stretch left out keeps a guest's old data; one too far destroys its neighbour's.
        #[test]
        fn parts_of_a_zero_cover_the_range_once(
            start in 0u64..200, len in 1u64..200, block_log in 9u32..14, allocates in any::<bool>(),
        ) {
            let (range, block) = (start * 512..(start + len) * 512, 1u64 << block_log);
            let mut at = range.start;
            while at < range.end {
                let part = zero_part(at, range.clone(), block, allocates.then_some(1));
                prop_assert!(part.end() > at && part.end() <= range.end);
                match part {
                    ZeroPart::Allocate { end, .. } => {
                        prop_assert!(allocates);
                        prop_assert_eq!((at % block.max(4096), end % block.max(4096)), (0, 0));
                    }
                    ZeroPart::Write { end } => prop_assert_eq!((at % block, end % block), (0, 0)),
                    ZeroPart::Change { end } => {
                        prop_assert_eq!(at / block, (end - 1) / block);
                        prop_assert!(end - at < block);
                    }
                }
                at = part.end();
            }
        }
    }
}
