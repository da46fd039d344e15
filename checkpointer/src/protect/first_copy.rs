//! All of the guest's memory once, while it runs: armed in slices, then one pause so that what was under way when a
//! page was armed has ended, then copied in slices.

use super::guest::Guest;
use crate::memory::PAGE_BYTES;
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
    pub(super) since: Instant,
    stage: Stage,
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
    /// Pages that are copied, of all.
    #[must_use]
    pub(super) fn done_pages(&self) -> u64 {
        match self.stage {
            Stage::Copying { next } => next,
            _ => 0,
        }
    }
}

impl Guest {
    /// # Errors
    /// Pages cannot be watched, or the disks keep no record, one line.
    pub(super) fn begin_copy(&mut self, attempt: Attempt) -> Result<(), String> {
        self.forget();
        self.choose_tracker()?;
        self.records.arm()?;
        self.copy = Some(FirstCopy {
            attempt,
            since: Instant::now(),
            stage: Stage::Arming { next: 0 },
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
            Stage::Copying { next } if *next < pages => {
                let (at, behind) = self.mapping.at(*next);
                let count = COPY_PAGES.min(behind);
                let bytes = usize::try_from(count * PAGE_BYTES).expect("a slice is small");
                let mut slice = vec![0; bytes];
                // SAFETY: `at` has `count` pages behind it, and the slice as much room. The guest may write
                // meanwhile: what is torn so is dirty, and copied again with a checkpoint.
                unsafe { std::ptr::copy_nonoverlapping(at, slice.as_mut_ptr(), bytes) };
                let first = *next;
                tracker.copied(first, &slice);
                *next += count;
                Ok(Step::Slice(first, slice))
            }
            Stage::Copying { .. } => {
                let attempt = copy.attempt;
                self.copy = None;
                Ok(Step::Done(attempt))
            }
        }
    }
}
