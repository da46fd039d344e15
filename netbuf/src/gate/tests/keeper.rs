//! The two models under one name: what the world of the tests gives orders to.

use super::places::Places;
use super::plug::Plug;
use crate::gate::Order;

#[derive(Debug)]
pub(super) enum Keeper {
    Plug(Plug),
    Places(Places),
}

impl Keeper {
    pub(super) fn new(capacity: usize) -> Self {
        match capacity {
            1 => Self::Plug(Plug::new()),
            capacity => Self::Places(Places::new(capacity)),
        }
    }

    pub(super) fn enqueue(&mut self, frame: u64) {
        match self {
            Self::Plug(plug) => plug.enqueue(frame),
            Self::Places(places) => places.enqueue(frame),
        }
    }

    /// Up to `count` frames that may leave do.
    pub(super) fn run(&mut self, count: usize) {
        match self {
            Self::Plug(plug) => plug.run(count),
            Self::Places(places) => places.run(count),
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        match self {
            Self::Plug(plug) => plug.order(order),
            Self::Places(places) => places.order(order),
        }
    }

    pub(super) fn backlog(&self) -> u64 {
        let queue = match self {
            Self::Plug(plug) => &plug.queue,
            Self::Places(places) => &places.queue,
        };
        queue.len() as u64
    }

    pub(super) fn dropped(&self) -> &[u64] {
        match self {
            Self::Plug(plug) => &plug.dropped,
            Self::Places(places) => &places.dropped,
        }
    }

    pub(super) fn wire(&self) -> &[u64] {
        match self {
            Self::Plug(plug) => &plug.wire,
            Self::Places(places) => &places.wire,
        }
    }
}
