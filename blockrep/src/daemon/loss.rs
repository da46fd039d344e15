//! What can be lost if the primary's host dies now, in words.

use crate::config::OutputClass;
use crate::group::State;
use blkback_proto::meta::{LineageEntry, LineageWhy};
use blockrep_host::clock::{utc_text, utc_text_ms};

/// Answers wait for the backup as the mode says.
pub(super) fn ack_is_in_force(state: State) -> bool {
    state == State::Protected
}

/// The last epoch that a backup holds, and when it was cut; 0 where that is not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) epoch: u64,
    pub(super) cut_unix_ns: u64,
}

/// `tip`: the history written now. `waits`: writes wait for a backup, by the loss policy.
pub(super) fn possible_loss(
    state: State,
    output: OutputClass,
    tip: Option<&LineageEntry>,
    waits: bool,
    held: Option<Held>,
) -> String {
    match state {
        State::Protected => match output {
            OutputClass::Held => "none: output waits for the commit".to_owned(),
            OutputClass::Open => "writes answered and not yet committed: at most the open epoch \
                                  and those in flight"
                .to_owned(),
        },
        State::Following => "the status of the primary says it".to_owned(),
        State::Inconsistent => {
            "everything, if the primary does not come back: the image here is no \
                                epoch until the comparison has ended"
                .to_owned()
        }
        // The primary may be dead: that is when it is asked for here.
        State::Waiting | State::Suspect | State::Promoting => beyond(held),
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

/// What a backup that is alone cannot know. No promotion is named here: to read a note is no reason
/// for one.
fn beyond(held: Option<Held>) -> String {
    let Some(Held { epoch, cut_unix_ns }) = held else {
        return "everything: this backup holds no epoch".to_owned();
    };
    let cut = match cut_unix_ns {
        0 => "cut at a time that is not known any more".to_owned(),
        ns => format!("cut {}", utc_text_ms(ns / 1_000_000)),
    };
    format!(
        "what the primary answered after epoch {epoch} ({cut}), the last one that is here; how much that \
         is it alone knows: under --on-backup-loss degrade (the default) it goes on without this backup"
    )
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
        let loss = |state, why, waits| {
            possible_loss(state, OutputClass::Open, Some(&tip(why)), waits, None)
        };
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
        assert_eq!(text, "everything: this backup holds no epoch");
        let text = loss(State::Protected, LineageWhy::Started, false);
        assert!(text.contains("at most the open epoch"), "{text}");
    }

    /// "see the note of `blockrepctl promote`" had people promote in order to read it.
    #[test]
    fn a_backup_says_what_it_knows_and_quotes_no_promotion() {
        let held = |cut_unix_ns| {
            let epoch = 7;
            Some(Held { epoch, cut_unix_ns })
        };
        for state in [
            State::Waiting,
            State::Inconsistent,
            State::Suspect,
            State::Promoting,
            State::Following,
        ] {
            let cut = 1_763_758_503_123_000_000;
            let text = possible_loss(state, OutputClass::Open, None, false, held(cut));
            assert!(!text.contains("blockrepctl"), "{text}");
            let tells = text.contains("after epoch 7 (cut 2025-11-21 20:55:03.123 UTC)");
            let knows = !matches!(state, State::Inconsistent | State::Following);
            assert_eq!(tells, knows, "{text}");
        }
        assert!(beyond(held(0)).contains("not known any more"));
    }
}
