//! A model of the kernel's plug, as `net/sched/sch_plug.c` counts.

use crate::gate::Order;

/// The plug of the kernel: counters, not marks in the queue.
#[derive(Debug)]
pub(super) struct Plug {
    throttled: bool,
    indefinite: bool,
    current: u64,
    last: u64,
    to_release: u64,
    /// A BUFFER came while one was unreleased, or counts were void: `ReleaseOne` is forbidden.
    void: bool,
    closed: bool,
}

impl Plug {
    pub(super) fn new() -> Self {
        Self {
            throttled: true,
            indefinite: false,
            current: 0,
            last: 0,
            to_release: 0,
            void: false,
            closed: false,
        }
    }

    /// A frame was taken in.
    pub(super) fn took(&mut self) {
        if !self.indefinite {
            self.current += 1;
        }
    }

    /// One run of the kernel's dequeue: whether it asks the queue for a frame.
    pub(super) fn may(&mut self) -> bool {
        if self.throttled || self.indefinite {
            return !self.throttled;
        }
        self.throttled = self.to_release == 0;
        self.to_release = self.to_release.saturating_sub(1);
        !self.throttled
    }

    fn buffer(&mut self) {
        self.last = self.current;
        self.current = 0;
        if self.indefinite {
            self.throttled = true;
        }
        self.indefinite = false;
    }

    pub(super) fn order(&mut self, order: Order, empty: bool) {
        match order {
            Order::Buffer(_) => {
                assert!(!self.closed, "a second BUFFER");
                assert!(!self.void, "BUFFER on void counts");
                // From open it closes an epoch without a counted frame: no count can be lost.
                self.closed = !self.indefinite;
                self.buffer();
            }
            Order::Count => {
                assert!(self.indefinite && empty, "not after OpenAll");
                self.buffer();
            }
            Order::Freeze => {
                self.buffer();
                self.void = true;
            }
            Order::ReleaseOne(_) => {
                assert!(!self.void, "RELEASE_ONE on void counts");
                self.to_release += self.last;
                self.last = 0;
                self.throttled = false;
                self.closed = false;
            }
            Order::OpenAll => {
                self.indefinite = true;
                (self.to_release, self.last, self.current) = (0, 0, 0);
                self.throttled = false;
                self.void = false;
                self.closed = false;
            }
            Order::Limit { .. } | Order::Shut => unreachable!("of the queue, not of what counts"),
        }
    }
}
