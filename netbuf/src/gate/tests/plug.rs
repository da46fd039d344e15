//! A model of the kernel's plug, as `net/sched/sch_plug.c` counts.

use super::{FRAME_BYTES, LIMIT_BYTES};
use crate::gate::Order;
use std::collections::VecDeque;

/// The plug of the kernel: counters, not marks in the queue.
#[derive(Debug)]
pub(super) struct Plug {
    pub(super) queue: VecDeque<u64>,
    throttled: bool,
    indefinite: bool,
    current: u64,
    last: u64,
    to_release: u64,
    limit_bytes: u32,
    /// A BUFFER came while one was unreleased, or counts were void: `ReleaseOne` is forbidden.
    void: bool,
    closed: bool,
    down: bool,
    pub(super) dropped: Vec<u64>,
    pub(super) wire: Vec<u64>,
}

impl Plug {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            throttled: true,
            indefinite: false,
            current: 0,
            last: 0,
            to_release: 0,
            limit_bytes: LIMIT_BYTES,
            void: false,
            closed: false,
            down: false,
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
        if !self.indefinite {
            self.current += 1;
        }
        self.queue.push_back(frame);
    }

    /// Up to `count` runs of the kernel's dequeue.
    pub(super) fn run(&mut self, count: usize) {
        for _ in 0..count {
            if self.throttled || self.down {
                return;
            }
            if !self.indefinite {
                if self.to_release == 0 {
                    self.throttled = true;
                    return;
                }
                self.to_release -= 1;
            }
            match self.queue.pop_front() {
                Some(frame) => self.wire.push(frame),
                None => return,
            }
        }
    }

    fn buffer(&mut self) {
        self.last = self.current;
        self.current = 0;
        if self.indefinite {
            self.throttled = true;
        }
        self.indefinite = false;
    }

    pub(super) fn order(&mut self, order: Order) {
        match order {
            Order::Buffer(_) => {
                assert!(!self.closed, "a second BUFFER");
                assert!(!self.void, "BUFFER on void counts");
                // From open it closes an epoch without a counted frame: no count can be lost.
                self.closed = !self.indefinite;
                self.buffer();
            }
            Order::Count => {
                assert!(
                    self.indefinite && self.queue.is_empty(),
                    "not after OpenAll"
                );
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
            Order::Limit { bytes } => self.limit_bytes = bytes,
            Order::Shut => {
                self.dropped.extend(self.queue.drain(..));
                self.down = true;
            }
        }
    }
}
