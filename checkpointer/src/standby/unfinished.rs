//! A promotion that was decided and is not done: what is kept of it, and when it is tried again.

use super::{AGAIN, Keeper};
use crate::authority::Record;
use crate::config::Promote;
use blkback_proto::ctl::GuestProtection;
use blkback_proto::ids::LineageId;
use std::time::{Duration, Instant};

/// The rest between two tries grows to so many times [`AGAIN`].
const BACK_OFF_MAX: u32 = 16;

/// A promotion that the authority has decided and that is not done.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) lineage: LineageId,
    /// Of the promotion.
    reason: String,
    pub(super) tries: u32,
    at: Instant,
}

impl Unfinished {
    /// Found by a daemon that starts.
    pub(super) fn found(record: &Record) -> Self {
        Self {
            lineage: record.lineage,
            reason: record.note.clone(),
            tries: 0,
            at: Instant::now(),
        }
    }

    /// From the last try to the next.
    fn rest(&self) -> Duration {
        match self.tries {
            0 => Duration::ZERO,
            tries => AGAIN * BACK_OFF_MAX.min(1 << (tries - 1).min(31)),
        }
    }
}

impl Keeper {
    /// Decided, and something failed.
    pub(super) fn set_unfinished(
        &mut self,
        lineage: LineageId,
        reason: &str,
        why: &str,
        tries: u32,
    ) {
        if self.is_over {
            return;
        }
        self.unfinished = Some(Unfinished {
            lineage,
            reason: reason.to_owned(),
            tries: tries.saturating_add(1),
            at: Instant::now(),
        });
        let text = format!("the guest is this host's and does not run yet: {why}");
        self.change(GuestProtection::Unfinished, text);
    }

    /// What was decided is tried again, ever more seldom, where no operator is waited for.
    pub(super) fn try_again(&mut self) {
        if self.config.standby.promote != Promote::Auto || self.is_over {
            return;
        }
        let Some(unfinished) = &self.unfinished else {
            return;
        };
        if unfinished.at.elapsed() < unfinished.rest() || self.may_promote().is_err() {
            return;
        }
        let reason = unfinished.reason.clone();
        if let Err(error) = self.promote(&reason, false) {
            tracing::error!("not promoted: {}", error.why);
        }
    }
}

#[cfg(test)]
mod tests {
    //! A promotion that is tried in a loop, and takes the machine from what it waits for; or one that is tried once a day.
    use super::*;

    #[test]
    fn the_rest_grows_to_its_bound() {
        let rest = |tries| {
            let unfinished = Unfinished {
                lineage: LineageId([1; 16]),
                reason: String::new(),
                tries,
                at: Instant::now(),
            };
            unfinished.rest()
        };
        assert_eq!(rest(0), Duration::ZERO);
        let times = [1, 2, 4, 8, 16, 16].map(|times| AGAIN * times);
        assert_eq!([1, 2, 3, 4, 5, 6].map(rest), times);
        assert_eq!(rest(u32::MAX), AGAIN * BACK_OFF_MAX);
    }
}
