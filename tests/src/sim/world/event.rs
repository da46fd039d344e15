//! What can happen, and its order: by time, and in the order of asking where the time is the same, so
//! that a seed is one run.

use crate::sim::memory::Step;
use blockrep::engine::{Nanos, ToGroup, ToVolume};

/// Something that happens at a time.
#[derive(Debug)]
pub enum Event {
    /// An operation of a disk ends.
    Io {
        host: usize,
        boot: u32,
        volume: usize,
        token: u64,
    },
    /// A message from the group arrives.
    ToVolume {
        host: usize,
        boot: u32,
        volume: usize,
        message: ToVolume,
    },
    /// A message for the group arrives.
    ToGroup {
        host: usize,
        boot: u32,
        volume: usize,
        message: ToGroup,
    },
    /// Something arrives at that side of a connection.
    Wire { conn: usize, side: usize },
    /// A primary volume may try to connect.
    Connect {
        host: usize,
        boot: u32,
        volume: usize,
    },
    /// A volume wants to be called.
    Tick {
        host: usize,
        boot: u32,
        volume: usize,
    },
    /// A group wants to be called.
    GroupTick { host: usize, boot: u32 },
    /// A guest does something.
    Guest { boot: u32, volume: usize },
    /// A fault of the plan.
    Fault(usize),
    /// A host dies.
    Crash {
        host: usize,
        boot: u32,
        power: bool,
        back_ns: Option<u64>,
    },
    /// A host is started.
    Start { host: usize },
    /// Disks of a host are as fast as ever.
    Fast { host: usize },
    /// Something of the guest's memory.
    Memory(Step),
}

pub(super) struct Queued {
    pub(super) at: Nanos,
    pub(super) order: u64,
    pub(super) event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
