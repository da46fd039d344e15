//! What was heard of a guest that churns.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::turns::FLUSH_EVERY;
use crate::guest::{Guest, GuestFailed, Heard, Word};
use crate::stop;

/// The sum of what a guest said.
#[derive(Debug, Default)]
pub(super) struct Ear {
    pub(super) operations: u64,
    /// How often everything that was read was compared in the guest's memory.
    pub(super) rounds: u64,
    /// The last turn of each thread whose flush was answered.
    pub(super) safe: BTreeMap<u64, u64>,
    /// Flushes of a thread that were never told, with one after them that was.
    pub(super) gaps: Vec<String>,
    /// fio has written and flushed the area that stays.
    pub(super) is_settled: bool,
    /// KiB that fio has written, and has read to verify, in the area it keeps writing.
    pub(super) written_kib: u64,
    pub(super) verified_kib: u64,
}

impl Ear {
    fn take(&mut self, word: &Word) {
        match *word {
            Word::Churn { operations, rounds } => {
                self.operations = operations;
                self.rounds = rounds;
            }
            Word::Safe { thread, turn } => {
                let before = self.safe.insert(thread, turn).unwrap_or(0);
                if turn != before + FLUSH_EVERY {
                    let gap = format!("thread {thread} told of turn {before}, then of {turn}");
                    self.gaps.push(gap);
                }
            }
            // What was written to settle the area is no load.
            Word::FioSettled => {
                self.is_settled = true;
                self.written_kib = 0;
            }
            Word::Fio { written, verified } => {
                self.written_kib = written;
                self.verified_kib = verified;
            }
            _ => {}
        }
    }

    /// Takes what is left of a guest that was killed.
    pub(super) fn take_rest(&mut self, rest: &[Heard]) {
        rest.iter().for_each(|heard| self.take(&heard.word));
    }

    /// Takes what has been said already.
    pub(super) fn catch_up(&mut self, guest: &mut Guest) -> Result<()> {
        while let Some(heard) = guest.next(Duration::ZERO)? {
            self.take(&heard.word);
        }
        Ok(())
    }

    /// Listens until `is_enough`; a guest that does not come so far within `limit` has failed.
    pub(super) fn until(
        &mut self,
        guest: &mut Guest,
        what: &str,
        limit: Duration,
        is_enough: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        while !is_enough(self) {
            stop::check()?;
            let left = end.saturating_duration_since(Instant::now());
            match guest.next(left)? {
                Some(heard) => self.take(&heard.word),
                None => return Err(self.too_little(what, limit)),
            }
        }
        Ok(())
    }

    /// Listens for `time`.
    pub(super) fn listen(&mut self, guest: &mut Guest, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match guest.next(left)? {
                Some(heard) => self.take(&heard.word),
                None => return Ok(()),
            }
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    fn too_little(&self, what: &str, limit: Duration) -> anyhow::Error {
        let (seconds, operations) = (limit.as_secs(), self.operations);
        let (written, verified) = (self.written_kib, self.verified_kib);
        GuestFailed(format!(
            "too little: {what} in {seconds} s; it stands at {operations} operations, {written} KiB \
             written by fio and {verified} KiB verified"
        ))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A guest that went on from an older state would tell of some flushes twice, or never.
    #[test]
    fn every_flush_is_told_once_and_in_order() {
        let safe = |thread, flushes: u64| Word::Safe {
            thread,
            turn: flushes * FLUSH_EVERY,
        };
        let mut ear = Ear::default();
        for word in [safe(0, 1), safe(1, 1), safe(0, 2)] {
            ear.take(&word);
        }
        assert_eq!(ear.gaps, [""; 0]);
        ear.take(&safe(1, 3));
        ear.take(&safe(0, 2));
        assert_eq!(ear.gaps.len(), 2);
        assert_eq!(ear.safe[&0], 2 * FLUSH_EVERY);
    }

    // What fio wrote only once proves nothing about the disk under load.
    #[test]
    fn what_settled_is_not_counted_as_load() {
        let mut ear = Ear::default();
        let fio = |written, verified| Word::Fio { written, verified };
        for word in [fio(900, 0), Word::FioSettled, fio(5, 4)] {
            ear.take(&word);
        }
        assert_eq!((ear.written_kib, ear.verified_kib), (5, 4));
    }
}
