//! A model of what keeps the place of every cut, as a relay does.

use super::{FRAME_BYTES, LIMIT_BYTES};
use crate::gate::{Epoch, Order};
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Places {
    pub(super) queue: VecDeque<u64>,
    /// Frames ever taken in; those below `may` may leave.
    taken: u64,
    may: u64,
    cuts: Vec<(Epoch, u64)>,
    capacity: usize,
    open: bool,
    /// Counts are void until `OpenAll`.
    void: bool,
    down: bool,
    limit_bytes: u32,
    pub(super) dropped: Vec<u64>,
    pub(super) wire: Vec<u64>,
}

impl Places {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            taken: 0,
            may: 0,
            cuts: Vec::new(),
            capacity,
            open: false,
            void: false,
            down: false,
            limit_bytes: LIMIT_BYTES,
            dropped: Vec::new(),
            wire: Vec::new(),
        }
    }

    pub(super) fn enqueue(&mut self, frame: u64) {
        let backlog = FRAME_BYTES * u32::try_from(self.queue.len()).unwrap();
        if self.down || backlog + FRAME_BYTES > self.limit_bytes {
            self.dropped.push(frame);
            return;
        }
        self.queue.push_back(frame);
        self.taken += 1;
        if self.open {
            self.may = self.taken;
        }
    }

    pub(super) fn run(&mut self, count: usize) {
        for _ in 0..count {
            let first = self.taken - self.queue.len() as u64;
            if self.down || first >= self.may {
                return;
            }
            self.wire.extend(self.queue.pop_front());
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        match order {
            Order::Buffer(epoch) => {
                assert!(!self.void, "a cut on void counts");
                assert!(self.cuts.last().is_none_or(|(last, _)| *last < epoch));
                self.cuts.push((epoch, self.taken));
                assert!(self.cuts.len() <= self.capacity, "more than agreed");
                self.open = false;
            }
            Order::Count => {
                assert!(
                    self.open && self.queue.is_empty(),
                    "Count after OpenAll only"
                );
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
            Order::Limit { bytes } => self.limit_bytes = bytes,
            Order::Freeze => (self.open, self.void) = (false, true),
            Order::Shut => {
                self.dropped.extend(self.queue.drain(..));
                self.down = true;
            }
        }
    }
}
