//! All of the guest's memory once, while it runs: armed in slices, then one pause so that what was under way when a
//! page was armed has ended, then copied in slices. What was written meanwhile is taken in a pause and copied again, live, as
//! often as it takes until the rest fits a checkpoint: that one is copied while the guest stands still, and its buffer is bounded.
//!
//! ```text
//!   arm ─► pause ─► copy all ─► pause: what was written? ─► few ─► the first checkpoint has them
//!                                 ▲          │ many
//!                                 └ copy those
//! ```

use super::guest::Guest;
use crate::memory::PAGE_BYTES;
use crate::memory::dirty::Pages;
use crate::sequence::Attempt;
use std::time::Instant;

/// Pages armed in one step: the guest waits for it a little.
const ARM_PAGES: u64 = 4096;
/// Pages copied in one step.
const COPY_PAGES: u64 = 256;

/// How far it is.
#[derive(Debug)]
pub(super) struct FirstCopy {
    pub(super) attempt: Attempt,
    /// When this turn began.
    pub(super) since: Instant,
    stage: Stage,
    /// Turns of copying: 1 while all is copied, more for what was written meanwhile.
    turn: u32,
    /// Of the later turns.
    written: Pages,
    /// Pages of this turn.
    of_pages: u64,
    done_pages: u64,
}

#[derive(Debug)]
enum Stage {
    Arming { next: u64 },
    Settling,
    Copying { next: u64 },
}

/// What a step gave.
#[derive(Debug)]
pub(super) enum Step {
    /// More is to be done.
    More,
    /// Pages behind one another, and the first one's number.
    Slice(u64, Vec<u8>),
    Done(Attempt),
}

impl FirstCopy {
    /// Pages that are copied in this turn, and of how many.
    #[must_use]
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.done_pages, self.of_pages)
    }

    /// What there is to be said of it beside how far it is.
    #[must_use]
    pub(super) fn words(&self) -> Option<String> {
        (self.turn > 1).then(|| {
            format!(
                "{} pages that the guest wrote meanwhile are copied again, turn {}; if that does not end, it writes as fast as \
                 the link takes it: raise memory.copy_mib_per_s or memory.buffer_mib",
                self.of_pages, self.turn
            )
        })
    }

    /// The pages that this turn has from `next` on: the first run, in a slice.
    fn slice_from(&self, next: u64) -> Option<(u64, u64)> {
        if self.turn == 1 {
            return (next < self.of_pages).then_some((next, COPY_PAGES));
        }
        let (first, count) = self.written.run_from(next)?;
        Some((first, count.min(COPY_PAGES)))
    }
}

/// Whether what was written in a turn is left to a checkpoint with room for so many pages. `before` was copied in the turn: as
/// long as much less is written than that, another turn makes the pause shorter; where it is not, none does.
fn is_rest(written: u64, before: u64, room: u64) -> bool {
    let is_few = written <= room / 8;
    let ends = written > before / 2;
    is_few || (ends && written <= room / 2)
}

impl Guest {
    /// # Errors
    /// Pages cannot be watched, or the disks keep no record, one line.
    pub(super) fn begin_copy(&mut self, attempt: Attempt) -> Result<(), String> {
        self.forget();
        self.choose_tracker()?;
        self.records.arm()?;
        let pages = self.mapping.pages();
        self.copy = Some(FirstCopy {
            attempt,
            since: Instant::now(),
            stage: Stage::Arming { next: 0 },
            turn: 1,
            written: Pages::none(pages),
            of_pages: pages,
            done_pages: 0,
        });
        Ok(())
    }

    /// Carries it on for some milliseconds.
    ///
    /// # Errors
    /// It cannot go on, one line.
    pub(super) fn copy_step(&mut self) -> Result<Step, String> {
        let pages = self.mapping.pages();
        let (Some(copy), Some(tracker)) = (&mut self.copy, &mut self.tracker) else {
            return Err("no copy was begun".to_owned());
        };
        match &mut copy.stage {
            Stage::Arming { next } if *next < pages => {
                let count = ARM_PAGES.min(pages - *next);
                tracker.arm(*next, count).map_err(|e| e.to_string())?;
                *next += count;
                Ok(Step::More)
            }
            Stage::Arming { .. } => {
                copy.stage = Stage::Settling;
                Ok(Step::More)
            }
            Stage::Settling => {
                copy.stage = Stage::Copying { next: 0 };
                self.pause()?;
                self.resume()?;
                Ok(Step::More)
            }
            Stage::Copying { next } => {
                let next = *next;
                let Some((first, count)) = copy.slice_from(next) else {
                    return self.look_again();
                };
                let (at, behind) = self.mapping.at(first);
                let count = count.min(behind);
                let bytes = usize::try_from(count * PAGE_BYTES).expect("a slice is small");
                let mut slice = vec![0; bytes];
                // SAFETY: `at` has `count` pages behind it, and the slice as much room. The guest may write
                // meanwhile: what is torn so is dirty, and copied again.
                unsafe { std::ptr::copy_nonoverlapping(at, slice.as_mut_ptr(), bytes) };
                tracker.copied(first, &slice);
                copy.stage = Stage::Copying {
                    next: first + count,
                };
                copy.done_pages += count;
                Ok(Step::Slice(first, slice))
            }
        }
    }

    /// At the end of a turn: what was written meanwhile.
    fn look_again(&mut self) -> Result<Step, String> {
        let Some(mut copy) = self.copy.take() else {
            return Err("no copy was begun".to_owned());
        };
        if let Err(why) = self.take_written(&mut copy.written) {
            self.copy = Some(copy);
            return Err(why);
        }
        let count = copy.written.count();
        if is_rest(count, copy.of_pages, self.load_pages()) {
            self.leave_to_checkpoint(&copy.written);
            return Ok(Step::Done(copy.attempt));
        }
        copy.turn = copy.turn.saturating_add(1);
        tracing::info!(
            "{count} pages were written while the guest's memory was copied: copied again, turn {}",
            copy.turn
        );
        copy.since = Instant::now();
        (copy.of_pages, copy.done_pages) = (count, 0);
        copy.stage = Stage::Copying { next: 0 };
        self.copy = Some(copy);
        Ok(Step::More)
    }

    fn take_written(&mut self, written: &mut Pages) -> Result<(), String> {
        written.clear();
        self.pause()?;
        let seen = self.see_written(written);
        let resumed = self.resume()?;
        seen?;
        match resumed.was_disturbed {
            true => Err("somebody let the guest run within a pause".to_owned()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    //! A guest that is never protected because it always has written too much for one checkpoint, though less each time;
    //! or one that is copied for ever because a rest never is nothing.
    use super::is_rest;

    #[test]
    fn a_turn_follows_where_it_helps() {
        const ROOM: u64 = 1600;
        assert!(is_rest(0, 100_000, ROOM) && is_rest(200, 100_000, ROOM));
        // It still gets less.
        assert!(!is_rest(700, 100_000, ROOM));
        // No more: it fits, and takes the pause that it takes.
        assert!(is_rest(700, 900, ROOM) && is_rest(800, 800, ROOM));
        // It does not fit, whatever it did before; nor does what is on its edge.
        assert!(!is_rest(900, 900, ROOM) && !is_rest(100_000, 100_000, ROOM));
        assert!(!is_rest(1, 1, 0) && is_rest(0, 0, 0));
    }
}
