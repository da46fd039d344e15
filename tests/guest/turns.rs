//! What every thread of the churn does, turn by turn, and what it must have left.
//!
//! All of it follows from thread and turn, so a disk is surveyed by doing the turns again. A thread asks
//! for one thing after the other: what it leaves is the state after one of its turns, exactly, wherever
//! it was cut off; and not before the last turn whose flush was answered.

/// Threads, each with blocks of its own.
pub(crate) const THREADS: u64 = 40;
/// Blocks of one thread.
pub(crate) const BLOCKS: u64 = 128;
pub(crate) const BLOCK_BYTES: usize = 4096;
/// From one flush of a thread to its next, in turns.
pub(crate) const FLUSH_EVERY: u64 = 32;
const WORDS: usize = BLOCK_BYTES / 8;

/// One turn of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read this block of the thread's own.
    Read(u64),
    Write(u64),
    Flush,
}

/// The turns of a thread, the first one first; they have no end.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    number: u64,
    random: u64,
}

impl Turns {
    pub(crate) fn of(thread: u64) -> Self {
        Self {
            number: 0,
            random: thread * 2 + 1,
        }
    }
}

impl Iterator for Turns {
    /// The number of the turn, from 1, and what is done.
    type Item = (u64, Step);

    fn next(&mut self) -> Option<(u64, Step)> {
        self.number += 1;
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let slot = (self.random >> 33) % BLOCKS;
        let step = if self.number.is_multiple_of(FLUSH_EVERY) {
            Step::Flush
        } else if self.random >> 62 == 0 {
            Step::Read(slot)
        } else {
            Step::Write(slot)
        };
        Some((self.number, step))
    }
}

/// The last turn that `found`, the generation of each block, may be the state after.
///
/// # Errors
/// It is the state after no turn at all.
pub(crate) fn reached(thread: u64, found: &[u64]) -> Result<u64, String> {
    let newest = found.iter().copied().max().unwrap_or(0);
    let mut expected = vec![0; found.len()];
    for (turn, step) in Turns::of(thread) {
        let Step::Write(slot) = step else { continue };
        if turn <= newest {
            expected[slot as usize] = turn;
            continue;
        }
        let wrong = (0..found.len()).find(|slot| found[*slot] != expected[*slot]);
        return match wrong {
            None => Ok(turn - 1),
            Some(slot) => Err(format!(
                "block {} of thread {thread} is of turn {}, not {}, beside one of turn {newest}",
                slot, found[slot], expected[slot]
            )),
        };
    }
    unreachable!("turns have no end")
}

/// A block at an address the disk takes without a copy.
#[repr(align(4096))]
pub(crate) struct Block(pub(crate) [u8; BLOCK_BYTES]);

impl Block {
    pub(crate) fn zeros() -> Box<Self> {
        Box::new(Self([0; BLOCK_BYTES]))
    }

    /// What the block holds after it was written in turn `generation`: no two words of the disk are equal.
    pub(crate) fn fill(&mut self, number: u64, generation: u64) {
        for (at, word) in self.0.chunks_exact_mut(8).enumerate() {
            let value = (generation << 32) | (number << 12) | at as u64;
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
    }

    /// The generation that all words agree upon; 0 for a block of zeros.
    pub(crate) fn generation(&self, number: u64) -> Result<u64, String> {
        let generation = self.word(0) >> 32;
        for at in 0..WORDS {
            let expected = match generation {
                0 => 0,
                _ => (generation << 32) | (number << 12) | at as u64,
            };
            if self.word(at) != expected {
                let found = self.word(at);
                return Err(format!(
                    "block {number} word {at}: {found:x}, not {expected:x}"
                ));
            }
        }
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_after(thread: u64, last: u64) -> Vec<u64> {
        let mut state = vec![0; BLOCKS as usize];
        for (turn, step) in Turns::of(thread).take_while(|(turn, _)| *turn <= last) {
            if let Step::Write(slot) = step {
                state[slot as usize] = turn;
            }
        }
        state
    }

    // A survey that takes an older state for a later one passes a disk that has lost what was promised.
    #[test]
    fn the_state_after_every_turn_is_told_from_all_others() {
        for last in [0, 1, 63, 64, 65, 1000, 4096] {
            let reached = reached(3, &state_after(3, last)).expect("a whole state");
            assert!(reached >= last, "{last}");
            let between = Turns::of(3).filter(|(turn, _)| (last + 1..=reached).contains(turn));
            let between = between.take((reached - last) as usize);
            let mut steps = between.map(|(_, step)| step);
            assert!(steps.all(|step| !matches!(step, Step::Write(_))), "{last}");
        }
    }

    // One lost write in the middle leaves a block that is whole, and old.
    #[test]
    fn a_lost_or_repeated_write_is_seen() {
        let whole = state_after(5, 2000);
        for slot in 0..BLOCKS as usize {
            for turn in [1u64, 17] {
                let mut state = whole.clone();
                state[slot] -= turn.min(state[slot]);
                if state != whole && whole[slot] < 1990 {
                    assert!(reached(5, &state).is_err(), "block {slot}");
                }
            }
        }
        assert!(reached(6, &whole).is_err(), "of another thread");
    }

    // A byte of another block, or of another generation, makes a block that was never written.
    #[test]
    fn a_torn_block_is_none() {
        let mut block = Block::zeros();
        assert_eq!(block.generation(7), Ok(0));
        block.fill(7, 3);
        assert_eq!(block.generation(7), Ok(3));
        assert!(block.generation(8).is_err());
        block.0[512] ^= 1;
        assert!(block.generation(7).is_err());
    }
}
