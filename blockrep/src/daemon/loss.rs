//! What can be lost if the primary's host dies now, in words.

use crate::config::OutputClass;
use crate::group::State;
use blkback_proto::meta::{LineageEntry, LineageWhy};
use blockrep_host::clock::utc_text;

/// Answers wait for the backup as the mode says.
pub(super) fn ack_is_in_force(state: State) -> bool {
    state == State::Protected
}

/// `tip`: the history written now. `waits`: writes wait for a backup, by the loss policy.
pub(super) fn possible_loss(
    state: State,
    output: OutputClass,
    tip: Option<&LineageEntry>,
    waits: bool,
) -> String {
    match state {
        State::Protected => match output {
            OutputClass::Held => "none: output waits for the commit".to_owned(),
            OutputClass::Open => "writes answered and not yet committed: at most the open epoch \
                                  and those in flight"
                .to_owned(),
        },
        State::Following => "the status of the primary says it".to_owned(),
        // The primary may be dead: that is when it is asked for here.
        State::Waiting | State::Inconsistent | State::Suspect | State::Promoting => {
            "unknown here: under --on-backup-loss degrade (the default) the primary answers more after \
             the link is lost; its status says it if it lives, else see the note of `blockrepctl \
             promote`"
                .to_owned()
        }
        State::Failed => {
            "what was answered and not committed; nothing is answered any more".to_owned()
        }
        State::Paused | State::Degrading => waiting(),
        State::Resyncing | State::Superseded if waits => waiting(),
        State::Superseded => format!("{}; no backup will take it", since(tip)),
        State::Resyncing => format!("{}, until the comparison has ended", since(tip)),
        State::Standalone | State::Degraded | State::Promoted => since(tip),
    }
}

fn waiting() -> String {
    "what was answered before and is not committed; writes wait, nothing more is answered"
        .to_owned()
}

/// Everything the tip of the history stands for: it began with the loss of protection.
fn since(tip: Option<&LineageEntry>) -> String {
    let Some(tip) = tip else {
        return "everything written".to_owned();
    };
    let (what, more) = match tip.why {
        LineageWhy::Degraded => ("the loss of the backup", ""),
        LineageWhy::Promoted => ("the promotion", ""),
        _ => (
            "the start of this daemon",
            ", and what no backup had before it",
        ),
    };
    format!(
        "everything since {what}, epoch {} on, {}{more}",
        tip.first_epoch,
        utc_text(tip.unix_s * 1000)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkback_proto::ids::{Epoch, LineageId};

    fn tip(why: LineageWhy) -> LineageEntry {
        LineageEntry {
            id: LineageId([1; 16]),
            first_epoch: Epoch(8),
            why,
            unix_s: 1_763_758_503,
        }
    }

    /// Who reads "at most the open epoch" on a host without a backup loses a day of work.
    #[test]
    fn without_a_backup_everything_can_be_lost() {
        let loss =
            |state, why, waits| possible_loss(state, OutputClass::Open, Some(&tip(why)), waits);
        assert_eq!(
            loss(State::Degraded, LineageWhy::Degraded, false),
            "everything since the loss of the backup, epoch 8 on, 2025-11-21 20:55:03 UTC"
        );
        for (state, why, words) in [
            (
                State::Promoted,
                LineageWhy::Promoted,
                "everything since the promotion, epoch 8",
            ),
            (
                State::Standalone,
                LineageWhy::Started,
                "what no backup had before it",
            ),
            (
                State::Superseded,
                LineageWhy::Started,
                "no backup will take it",
            ),
            (
                State::Resyncing,
                LineageWhy::Degraded,
                "until the comparison has ended",
            ),
        ] {
            let text = loss(state, why, false);
            assert!(text.contains(words), "{text}");
            assert!(!text.contains("at most"), "{text}");
            assert!(!ack_is_in_force(state));
        }
        let text = loss(State::Superseded, LineageWhy::Started, true);
        assert!(text.contains("writes wait"), "{text}");
        // A backup cannot send to a primary that is dead.
        let text = loss(State::Waiting, LineageWhy::Started, false);
        assert!(
            text.starts_with("unknown here: under --on-backup-loss degrade"),
            "{text}"
        );
        let text = loss(State::Protected, LineageWhy::Started, false);
        assert!(text.contains("at most the open epoch"), "{text}");
    }
}
