//! Writes that wait for room in the backup's journal, told of when that goes on for seconds.
//!
//! A single wait says nothing: a window that is full for a moment is what it is there for. A guest that
//! crawls for minutes because the backup's disk is slow is something its operator has to be told.

use super::role::Engine;
use super::thread::VolumeThread;
use blkback_proto::ctl::EventKind;
use blockrep_host::ctl::NewEvent;

/// Seconds in a row after which it is told of, and after which it is over.
const SECONDS_MIN: u32 = 5;
const NEXT: &str = "the backup's disk, or the link, is slower than the guest writes: a faster one helps, for \
                    a burst also a larger --journal-size at the backup";

/// Looked at once a second.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Seconds in a row that were not as `is_told` says.
    other: u32,
    is_told: bool,
    /// Writes that waited at the last look.
    waiting: usize,
}

/// What changed.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Began,
    Ended,
}

impl Pressure {
    fn look(&mut self, waiting: usize) -> Option<Change> {
        self.waiting = waiting;
        if (waiting > 0) == self.is_told {
            self.other = 0;
            return None;
        }
        self.other += 1;
        if self.other < SECONDS_MIN {
            return None;
        }
        self.other = 0;
        self.is_told = waiting > 0;
        Some(if self.is_told {
            Change::Began
        } else {
            Change::Ended
        })
    }

    /// The reason of a state, and that writes wait if they do.
    pub(super) fn reason(&self, reason: &str) -> String {
        if self.is_told {
            format!(
                "{reason}; {} writes wait for room in the backup's journal",
                self.waiting
            )
        } else {
            reason.to_owned()
        }
    }

    /// What can be done about it, or `next`.
    pub(super) fn next(&self, next: &'static str) -> &'static str {
        if self.is_told { NEXT } else { next }
    }

    /// Writes wait, and have been for a while.
    pub(super) fn is_told(&self) -> bool {
        self.is_told
    }
}

impl VolumeThread {
    /// Once a second.
    pub(super) fn tick_pressure(&mut self) {
        let Engine::Primary(engine) = &self.engine else {
            return;
        };
        let Some(change) = self.pressure.look(engine.waiting_for_window()) else {
            return;
        };
        let index = self.about.index;
        let volume = format!("volume {index} ({})", self.exports[index].name());
        let (reason, next) = match change {
            Change::Began => (
                format!("{volume}: writes wait for room in the backup's journal"),
                NEXT,
            ),
            Change::Ended => (
                format!("{volume}: writes no longer wait for room in the backup's journal"),
                "nothing to do",
            ),
        };
        let group = self.about.group_name.clone();
        self.publish(NewEvent::new(group, EventKind::LimitReached, reason, next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest crawled for minutes, and its state said that there was nothing to do.
    #[test]
    fn seconds_in_a_row_are_told_of_once() {
        let mut pressure = Pressure::default();
        let told: Vec<_> = [3, 3, 3, 3, 0, 3, 3, 3, 3, 7, 3, 0, 3, 0, 0, 0, 0, 0, 0]
            .iter()
            .enumerate()
            .filter_map(|(second, waiting)| Some((second, pressure.look(*waiting)?)))
            .collect();
        assert_eq!(told, [(9, Change::Began), (17, Change::Ended)]);
        assert_eq!(pressure.reason("fine"), "fine");
        assert_eq!(pressure.next("nothing"), "nothing");
    }
}
