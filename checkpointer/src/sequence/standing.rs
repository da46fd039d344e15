//! How a guest stands, in words for an operator.

use super::{Nanos, Phase, Sequence, Standing};
use blkback_proto::ids::Epoch;

impl Sequence {
    /// How long until the next cut is due; nothing where none is waited for by the clock.
    #[must_use]
    pub fn next_cut(&self, now: Nanos) -> Option<Nanos> {
        // Without room it is an answer that is waited for.
        let is_waited_for = self.phase == Phase::Running && self.has_room();
        let since = now.saturating_sub(self.since);
        is_waited_for.then(|| self.settings.interval_ns.saturating_sub(since))
    }

    /// Output that is there again has a cut that was not released: it is let go with the next commit that covers it. To
    /// be told before [`Event::Back`](super::Event::Back).
    pub fn found_output_cut(&mut self, epoch: Epoch) {
        self.output_cuts.push_back(epoch);
        self.found_cut = Some(epoch);
    }

    /// What holds the output can do that many cuts from now on.
    pub fn set_output_cuts_max(&mut self, cuts_max: usize) {
        self.settings.output_cuts_max = cuts_max;
    }

    /// From now on this is the time from one cut to the next.
    pub fn set_interval(&mut self, interval_ns: Nanos) {
        self.settings.interval_ns = interval_ns;
    }

    /// The last checkpoint that the backup has.
    #[must_use]
    pub fn committed(&self) -> Option<Epoch> {
        self.committed
    }

    /// The state by its name, why, and what comes next or is to be done.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let (state, mut reason, next) = self.words();
        if !self.why.is_empty() && !reason.contains(&self.why) {
            reason += &format!("; {}", self.why);
        }
        Standing {
            state,
            reason,
            next,
        }
    }

    fn words(&self) -> (&'static str, String, &'static str) {
        let missing = self.missing_words();
        match self.phase {
            Phase::Over => (
                "over",
                self.why.clone(),
                "see the backup: it has the guest, or may be promoted",
            ),
            Phase::Open => (
                "open",
                "the guest runs alone, unprotected, on the authority's word".to_owned(),
                "protect it again when the backup is there",
            ),
            Phase::Ending { .. } => (
                "ending",
                "the guest is off; the backup is told".to_owned(),
                "it ends by itself",
            ),
            Phase::Waiting { copying: true } if self.is_held => (
                "copying",
                format!(
                    "all of the guest's memory is copied, while it runs; {}",
                    self.held_words()
                ),
                "the first checkpoint follows by itself, and lets it go",
            ),
            Phase::Waiting { copying: true } => (
                "copying",
                "all of the guest's memory is copied, while it runs".to_owned(),
                "the first checkpoint follows by itself",
            ),
            Phase::Waiting { copying: false } if self.is_held => (
                "held",
                format!("{}; not protected: {missing}", self.held_words()),
                "the first checkpoint lets it go, when all of it is there; or type blockrepctl guest stop with the guest's name, \
                 which asks the authority",
            ),
            Phase::Waiting { copying: false } => (
                "waiting",
                format!("not protected: {missing}"),
                "it begins by itself when all of it is there",
            ),
            _ if !self.missing.is_empty() => (
                "held",
                format!("the guest runs, and what it says is held: {missing}"),
                "it goes on by itself when all of it is there; or stop the protection, which asks the authority",
            ),
            _ => self.protected(),
        }
    }

    fn protected(&self) -> (&'static str, String, &'static str) {
        let reason = match (self.in_flight.front(), self.committed) {
            (Some(oldest), _) if self.in_flight.len() >= self.settings.in_flight_max => {
                let part = self.waits_for(oldest);
                format!("epoch {} waits for {}", oldest.epoch, part.word())
            }
            (_, Some(committed)) => format!("the backup has epoch {committed}"),
            (_, None) => "the first checkpoint is made".to_owned(),
        };
        ("protected", reason, "")
    }

    fn missing_words(&self) -> String {
        let all = self.missing.iter();
        let words: Vec<String> = all
            .map(|(part, why)| format!("{}: {why}", part.word()))
            .collect();
        words.join("; ")
    }
}
