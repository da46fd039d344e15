//! Bugs that the demo plants, each of which it has to find. Only a build with the feature `plants` has them, and
//! warns of it.

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
