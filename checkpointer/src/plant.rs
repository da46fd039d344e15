//! Bugs that the demo plants, each of which it has to find; and an end at a chosen step of a checkpoint. Only a build with
//! the feature `plants` has them, and warns of it.

use crate::sequence::Order;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// What the guest says is never held: it leaves before the backup has what it came from.
    EarlyRelease,
    /// The standby goes on from older memory than its disks are of.
    OlderEpoch,
    /// One page in sixteen is copied once, with the first copy, and with no checkpoint.
    SkipPage,
}

#[cfg(feature = "plants")]
pub(crate) fn planted(plant: Plant) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Plant>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("CHECKPOINTER_PLANT").ok()?;
        tracing::warn!("a bug is planted: {name}");
        match name.as_str() {
            "early-release" => Some(Plant::EarlyRelease),
            "older-epoch" => Some(Plant::OlderEpoch),
            "skip-page" => Some(Plant::SkipPage),
            other => panic!("CHECKPOINTER_PLANT={other}: no such bug"),
        }
    });
    *chosen == Some(plant)
}

#[cfg(not(feature = "plants"))]
pub(crate) const fn planted(_: Plant) -> bool {
    false
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Nothing of it was done.
    Before,
    /// It was carried out, and its answer is not known yet.
    After,
}

/// A step at which this process can be made to end.
#[derive(Debug)]
pub(crate) struct Step {
    #[cfg(feature = "plants")]
    order: String,
}

#[cfg(not(feature = "plants"))]
impl Step {
    pub(crate) const fn of(_: &Order) -> Self {
        Self {}
    }

    #[allow(clippy::unused_self, reason = "with the feature it is used")]
    pub(crate) const fn may_be_killed(&self, _: Moment) {}
}

#[cfg(feature = "plants")]
impl Step {
    pub(crate) fn of(order: &Order) -> Self {
        let text = format!("{order:?}");
        let order = text.split('(').next().unwrap_or_default().to_owned();
        Self { order }
    }

    /// Ends this process as SIGKILL does, where `CHECKPOINTER_KILL_AT` says so: `Collect:after:20` is the 20th time that
    /// [`Order::Collect`] has been carried out.
    pub(crate) fn may_be_killed(&self, moment: Moment) {
        use std::sync::OnceLock;
        use std::sync::atomic::{AtomicU64, Ordering};
        static CHOSEN: OnceLock<Option<(String, Moment, u64)>> = OnceLock::new();
        static SEEN: AtomicU64 = AtomicU64::new(0);
        let chosen = CHOSEN.get_or_init(|| {
            let text = std::env::var("CHECKPOINTER_KILL_AT").ok()?;
            tracing::warn!("this process is to be killed at {text}");
            let words: Vec<&str> = text.split(':').collect();
            let (order, moment, nth) = match words[..] {
                [order, "before", nth] => (order, Moment::Before, nth),
                [order, "after", nth] => (order, Moment::After, nth),
                _ => panic!("CHECKPOINTER_KILL_AT={text}: write ORDER:before:N or ORDER:after:N"),
            };
            let nth = nth
                .parse()
                .expect("CHECKPOINTER_KILL_AT ends with a number");
            Some((order.to_owned(), moment, nth))
        });
        let Some((order, at, nth)) = chosen else {
            return;
        };
        if *order == self.order && *at == moment && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *nth
        {
            // SAFETY: no memory involved.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    }
}
