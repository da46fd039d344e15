//! What the state of a group says of a peer that was sent away.

use blkback_proto::ctl::{GroupState, RefusedPeer, Stated};

/// A refusal by the backup that this side was says nothing of the primary that it is now.
pub(super) fn is_told_still(stated: &Stated<GroupState>, refused: &RefusedPeer) -> bool {
    stated.state != GroupState::Promoted || refused.unix_ms >= stated.since_unix_ms
}

/// A refused primary that is alive tries again every few seconds. One that did not for so long is
/// no longer told of beside a promotion.
const REFUSED_TOLD_MS_MAX: u64 = 600_000;

/// The peer, where it was refused not long ago.
pub(in crate::daemon) fn refused_lately(
    refused: Option<&RefusedPeer>,
    now_unix_ms: u64,
) -> Option<RefusedPeer> {
    let lately = |r: &&RefusedPeer| now_unix_ms.saturating_sub(r.unix_ms) <= REFUSED_TOLD_MS_MAX;
    refused.filter(lately).cloned()
}

/// A backup that waits may wait because it sent somebody away, who lives and serves a guest: no
/// promotion is offered without a word of it.
pub(super) fn tell_of_refused(
    stated: &mut Stated<GroupState>,
    refused: &RefusedPeer,
    now_unix_ms: u64,
) {
    let RefusedPeer {
        peer,
        reason,
        unix_ms,
    } = refused;
    if stated.state == GroupState::WaitingForPrimary {
        stated.reason += &format!("; a primary at {peer} was refused: {reason}");
    }
    let offers = matches!(
        stated.state,
        GroupState::WaitingForPrimary | GroupState::Following | GroupState::Suspect
    ) && stated.next.contains("blockrepctl promote");
    if offers && refused_lately(Some(refused), now_unix_ms).is_some() {
        let ago_s = now_unix_ms.saturating_sub(*unix_ms) / 1000;
        stated.next = format!(
            "before a promotion stop the primary at {peer}, which was alive {ago_s} s ago when it \
             was refused; {}",
            stated.next
        );
    }
}
