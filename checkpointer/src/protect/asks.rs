//! One question to the authority at a time, and none that takes the backup in once the guest is alone.
//!
//! That the backup is taken in and that the guest goes on alone are two swaps of one record by the same host, each on a
//! thread of its own. Asked at once, the first may be carried out last: the guest would speak to everybody while the record
//! has a backup that may take it over, from before what was said.

use blkback_proto::ids::Epoch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    TakeIn { epoch: Epoch, generation: u64 },
    Degrade,
}

/// What is asked.
#[derive(Debug, Default)]
pub(super) struct Asks {
    now: Option<Asked>,
    /// Asked for while the other question was under way.
    degrade_waits: bool,
    /// The guest is alone for good, as far as this daemon goes.
    is_alone: bool,
}

/// What follows from the answer to the question whether the backup is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TakenIn {
    /// If it is, this epoch counts as acknowledged.
    pub(super) epoch: Option<Epoch>,
    /// The other question is due.
    pub(super) degrades: bool,
}

impl Asks {
    /// This epoch of this copy was committed: whether the authority is to be asked now. If not, it is with the next commit.
    pub(super) fn take_in(&mut self, epoch: Epoch, generation: u64) -> bool {
        if self.is_alone {
            return false;
        }
        match &mut self.now {
            None => {
                self.now = Some(Asked::TakeIn { epoch, generation });
                true
            }
            Some(Asked::TakeIn {
                epoch: asked,
                generation: of,
            }) => {
                // Of a copy that is over nothing counts any more.
                if *of == generation {
                    *asked = epoch;
                }
                false
            }
            Some(Asked::Degrade) => false,
        }
    }

    /// The answer to that came, while this is the copy.
    pub(super) fn taken_in(&mut self, generation: u64) -> TakenIn {
        let asked = self.now.take();
        let degrades = std::mem::take(&mut self.degrade_waits);
        let epoch = match asked {
            Some(Asked::TakeIn {
                epoch,
                generation: of,
            }) if of == generation && !degrades => Some(epoch),
            _ => None,
        };
        TakenIn { epoch, degrades }
    }

    /// The guest shall go on alone: whether the authority is to be asked now. If not, it is when its answer comes.
    pub(super) fn degrade(&mut self) -> bool {
        match self.now {
            None => {
                self.now = Some(Asked::Degrade);
                true
            }
            Some(Asked::TakeIn { .. }) => {
                self.degrade_waits = true;
                false
            }
            Some(Asked::Degrade) => false,
        }
    }

    /// The answer to that came.
    pub(super) fn told(&mut self) {
        if self.now == Some(Asked::Degrade) {
            self.now = None;
        }
    }

    /// The guest is alone for good, as far as this daemon goes: no backup is taken in any more.
    pub(super) fn ends_alone(&mut self) {
        self.is_alone = true;
    }

    #[must_use]
    pub(super) fn is_alone(&self) -> bool {
        self.is_alone
    }
}

#[cfg(test)]
mod tests {
    //! A guest that speaks to everybody, and a backup that the record lets take it over.
    use super::*;

    /// The record as two threads that were started would make it, in the worst order.
    #[test]
    fn the_backup_is_never_taken_in_after_the_guest_went_alone() {
        // Degrade while the backup is being taken in: asked afterwards, and what was committed does not count.
        let mut asks = Asks::default();
        assert!(asks.take_in(Epoch(5), 1));
        assert!(!asks.degrade());
        assert!(!asks.take_in(Epoch(6), 1));
        let answer = asks.taken_in(1);
        assert_eq!((answer.epoch, answer.degrades), (None, true));
        assert!(asks.degrade() && !asks.degrade());
        // Commits meanwhile, and after the word.
        assert!(!asks.take_in(Epoch(7), 1));
        asks.told();
        asks.ends_alone();
        assert!(!asks.take_in(Epoch(8), 1));
    }

    #[test]
    fn an_answer_counts_for_its_copy() {
        let mut asks = Asks::default();
        assert!(asks.take_in(Epoch(5), 1));
        assert!(!asks.take_in(Epoch(6), 1));
        let counted = |epoch| TakenIn {
            epoch,
            degrades: false,
        };
        assert_eq!(asks.taken_in(1), counted(Some(Epoch(6))));
        // The copy was begun anew before the answer: its first epoch is not committed yet.
        assert!(asks.take_in(Epoch(7), 1));
        assert!(!asks.take_in(Epoch(9), 2));
        assert_eq!(asks.taken_in(2), counted(None));
        // Refused, or the backup was out to be taken in anew: it is asked again.
        assert!(asks.degrade());
        asks.told();
        assert!(asks.take_in(Epoch(10), 2));
    }
}
