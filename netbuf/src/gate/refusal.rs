//! Why an event was not taken. Nothing has changed then.

use super::{Epoch, Interface, Lineage};

/// One line each: what, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("CUT {asked}: epoch {unreleased} is cut and not released; RELEASE {unreleased} first")]
    Unreleased { asked: Epoch, unreleased: Epoch },
    #[error(
        "CUT {asked}: {capacity} epochs are cut and not released, the most there may be; RELEASE {unreleased} first"
    )]
    Full {
        asked: Epoch,
        capacity: usize,
        unreleased: Epoch,
    },
    #[error("CUT {asked}: epoch {last} is cut already; CUT {} or later", last.0.saturating_add(1))]
    NotNewer { asked: Epoch, last: Epoch },
    #[error("epoch {0} is the last number there is; begin a new lineage")]
    Exhausted(Epoch),
    #[error(
        "CUT {0}: frames that passed while open are still on their way; wait until the backlog is empty"
    )]
    NotDrained(Epoch),
    #[error("RELEASE {asked}: epoch {last} and all before it are out already; CUT the next one")]
    AlreadyOut { asked: Epoch, last: Epoch },
    #[error("RELEASE {asked}: it was never cut; CUT {asked} first")]
    NotCut { asked: Epoch },
    #[error("RELEASE {asked}: the epoch that waits is {waits}; RELEASE {waits}")]
    OtherEpoch { asked: Epoch, waits: Epoch },
    #[error("{what}: output is held ({why}); OPEN with the authority's lineage, or RESYNC")]
    Held { what: &'static str, why: String },
    #[error("{what}: {of} failed ({why}); detach it and attach it again")]
    Failed {
        what: &'static str,
        of: Interface,
        why: String,
    },
    #[error("OPEN {asked}: the authority has not been heard; ask it who writes this guest")]
    NoAuthority { asked: Lineage },
    #[error("OPEN {asked}: the authority names {authority}; ask it again, then OPEN {authority}")]
    OtherLineage { asked: Lineage, authority: Lineage },
    #[error("RESYNC {0}: the counts are right as they are; go on with CUT and RELEASE")]
    NothingToResync(Epoch),
    #[error("RESYNC {0}: the guest runs; pause it first")]
    NotPaused(Epoch),
    #[error("RESYNC {0}: the backup does not have it; wait for its commit")]
    NotCommitted(Epoch),
    #[error("RESYNC {asked}: epoch {last} was cut; RESYNC {last} or later")]
    Older { asked: Epoch, last: Epoch },
    #[error(
        "RESYNC {0}: the plugs may hold frames; OPEN with the authority's lineage, or detach to drop them"
    )]
    NotEmpty(Epoch),
    #[error("{0} is known already; detach it before it is attached again")]
    Known(Interface),
    #[error("{0} is not of this guest; attach it first")]
    Unknown(Interface),
    #[error("a limit of 0 bytes drops everything; give one above the largest frame")]
    NoLimit,
    #[error("restarted: the gate is in use; a restart begins with a new one")]
    InUse,
}
