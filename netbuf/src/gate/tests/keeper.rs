//! What the world of the tests gives orders to: a queue with a limit, and a model of what counts in it.

use super::places::Places;
use super::plug::Plug;
use super::{FRAME_BYTES, LIMIT_BYTES};
use crate::gate::Order;
use std::collections::VecDeque;

#[derive(Debug)]
enum Count {
    Plug(Plug),
    Places(Places),
}

#[derive(Debug)]
pub(super) struct Keeper {
    count: Count,
    queue: VecDeque<u64>,
    limit_bytes: u32,
    down: bool,
    dropped: Vec<u64>,
    wire: Vec<u64>,
}

impl Keeper {
    pub(super) fn new(capacity: usize) -> Self {
        let count = match capacity {
            1 => Count::Plug(Plug::new()),
            capacity => Count::Places(Places::new(capacity)),
        };
        Self {
            count,
            queue: VecDeque::new(),
            limit_bytes: LIMIT_BYTES,
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
        self.queue.push_back(frame);
        match &mut self.count {
            Count::Plug(plug) => plug.took(),
            Count::Places(places) => places.took(),
        }
    }

    /// Up to `count` frames that may leave do.
    pub(super) fn run(&mut self, count: usize) {
        for _ in 0..count {
            let backlog = self.backlog();
            let may = match &mut self.count {
                _ if self.down => false,
                Count::Plug(plug) => plug.may(),
                Count::Places(places) => places.may(backlog),
            };
            let Some(frame) = may.then(|| self.queue.pop_front()).flatten() else {
                return;
            };
            self.wire.push(frame);
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        match order {
            Order::Limit { bytes } => self.limit_bytes = bytes,
            Order::Shut => {
                self.dropped.extend(self.queue.drain(..));
                self.down = true;
            }
            order => {
                let empty = self.queue.is_empty();
                match &mut self.count {
                    Count::Plug(plug) => plug.order(order, empty),
                    Count::Places(places) => places.order(order, empty),
                }
            }
        }
    }

    pub(super) fn backlog(&self) -> u64 {
        self.queue.len() as u64
    }

    pub(super) fn dropped(&self) -> &[u64] {
        &self.dropped
    }

    pub(super) fn wire(&self) -> &[u64] {
        &self.wire
    }
}
