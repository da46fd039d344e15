//! A model of what keeps the place of every cut, as a relay does.

use crate::gate::{Epoch, Order};

#[derive(Debug)]
pub(super) struct Places {
    /// Frames ever taken in; those below `may` may leave.
    taken: u64,
    may: u64,
    cuts: Vec<(Epoch, u64)>,
    capacity: usize,
    open: bool,
    /// Counts are void until `OpenAll`.
    void: bool,
}

impl Places {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            taken: 0,
            may: 0,
            cuts: Vec::new(),
            capacity,
            open: false,
            void: false,
        }
    }

    /// A frame was taken in.
    pub(super) fn took(&mut self) {
        self.taken += 1;
        if self.open {
            self.may = self.taken;
        }
    }

    /// Whether the first of `backlog` frames may leave.
    pub(super) fn may(&self, backlog: u64) -> bool {
        self.taken - backlog < self.may
    }

    pub(super) fn order(&mut self, order: Order, empty: bool) {
        match order {
            Order::Buffer(epoch) => {
                assert!(!self.void, "a cut on void counts");
                assert!(self.cuts.last().is_none_or(|(last, _)| *last < epoch));
                self.cuts.push((epoch, self.taken));
                assert!(self.cuts.len() <= self.capacity, "more than agreed");
                self.open = false;
            }
            Order::Count => {
                assert!(self.open && empty, "Count after OpenAll only");
                self.open = false;
            }
            Order::ReleaseOne(epoch) => {
                assert!(!self.void, "a release on void counts");
                // An interface that came after the cut knows nothing of it.
                let done = self.cuts.iter().rposition(|(cut, _)| *cut <= epoch);
                if let Some(at) = done {
                    self.may = self.cuts[at].1;
                    self.cuts.drain(..=at);
                }
            }
            Order::OpenAll => {
                self.may = self.taken;
                self.cuts.clear();
                (self.open, self.void) = (true, false);
            }
            Order::Freeze => (self.open, self.void) = (false, true),
            Order::Limit { .. } | Order::Shut => unreachable!("of the queue, not of what counts"),
        }
    }
}
