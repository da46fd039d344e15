//! Bugs that the tests and the simulator plant, each of which they have to find.

use super::Sequence;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(test, feature = "plants")),
    allow(dead_code, unreachable_pub, reason = "planted by tests only")
)]
pub enum Plant {
    /// Output is released when the guest goes on, before the backup has anything.
    NoAck,
    /// Output is released when the backup has the memory, whatever became of the disks.
    NoDisk,
    /// Answers of an attempt that was given up count for the next.
    LateAnswers,
    /// What was sent and not acknowledged is forgotten with the link.
    NoTakeBack,
    /// A checkpoint is sent though the link was lost while it was made.
    Spoiled,
    /// A plug is cut while a cut of it is unreleased.
    CutTwice,
    /// A cut of the output that was given up before it was answered is forgotten.
    Unsure,
    /// Pages of a checkpoint that was given up are forgotten.
    NoAbandon,
    /// A guest stays paused as long as an answer takes.
    NoLimit,
    /// A guest that switched itself off is handed over when its hypervisor ends.
    Resurrects,
    /// An early cut is made whatever is under way already.
    EarlyFlood,
    /// An early cut is made however near the last one is.
    EarlyAtOnce,
}

impl Sequence {
    /// Makes it do this one thing wrong from now on.
    #[cfg(any(test, feature = "plants"))]
    pub fn plant(&mut self, plant: Plant) {
        self.plant = Some(plant);
    }

    #[cfg(any(test, feature = "plants"))]
    pub(super) fn planted(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    #[cfg(not(any(test, feature = "plants")))]
    #[allow(clippy::unused_self, reason = "the tests' twin looks")]
    pub(super) const fn planted(&self, _: Plant) -> bool {
        false
    }
}
