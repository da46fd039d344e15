//! What a round does, drawn from its seed.

use std::fmt;
use std::str::FromStr;

use fastrand::Rng;

macro_rules! phases {
    ($($(#[$meta:meta])* $phase:ident = $name:literal;)+) => {
        /// What befalls the hosts of a round.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Phase { $($(#[$meta])* $phase),+ }

        impl Phase {
            /// Every phase, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$phase),+];

            /// What it is called on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$phase => $name),+ }
            }
        }
    };
}

phases! {
    /// The primary is killed under load.
    KillPrimary = "kill-primary";
    /// The backup is killed under load and comes back; once it is equal, the primary is killed.
    KillBackup = "kill-backup";
    /// Both are killed; the backup alone comes back.
    KillBoth = "kill-both";
    /// The primary stands still, the backup is promoted, the old primary wakes up.
    StopPrimary = "stop-primary";
    /// The backup stands still until the primary gives it up, wakes up and is made equal.
    StopBackup = "stop-backup";
    /// A host is killed while a first sync copies.
    KillFirstSync = "kill-first-sync";
    /// Both are killed while the backup applies a backlog; it is promoted over the rest of it.
    KillApply = "kill-apply";
    /// A promoted backup is killed under load while it still applies its backlog.
    KillDrain = "kill-drain";
    /// The backup is killed while it is being promoted.
    KillPromotion = "kill-promotion";
    /// The primary is killed under load and comes back; once the backup is equal, it is killed again.
    RestartPrimary = "restart-primary";
    /// Daemons are asked to end, under load.
    Terminate = "terminate";
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|phase| phase.name() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|phase| phase.name()).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

/// A round, drawn from its seed. The load and the moments of the kills are then up to the machine:
/// the same seed gives the same round, not the same interleaving.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of the round.
    pub seed: u64,
    /// What happens.
    pub phase: Phase,
    /// Ack mode of the primary: `local`, `flush` or `write`.
    pub ack: &'static str,
    /// Length of an epoch in milliseconds.
    pub epoch_ms: u64,
    /// Writes wait while the backup is away, instead of going on without it.
    pub pause: bool,
    /// Choices inside a phase.
    pub variant: u32,
    /// From the moment a round is long enough to what befalls it, in milliseconds.
    pub delay_ms: u64,
    /// Flags of the load generator.
    pub load: Vec<String>,
    /// Time between cuts that the load asks for and logs, in milliseconds.
    pub cut_every_ms: u64,
}

impl Plan {
    /// Draws a round. Without a wish the phases come in turn, by seed.
    #[must_use]
    pub fn draw(seed: u64, wish: Option<Phase>) -> Self {
        let count = Phase::ALL.len() as u64;
        let turn = usize::try_from(seed % count).expect("fewer phases than memory");
        let phase = wish.unwrap_or(Phase::ALL[turn]);
        let mut rng = Rng::with_seed(seed);
        let ack = ["local", "flush", "write"][rng.usize(..3)];
        let epoch_ms = [1, 3, 10, 25, 40][rng.usize(..5)];
        // The first sync needs something to copy: writes without a backup.
        let pause = rng.bool() && phase != Phase::KillFirstSync;
        let variant = rng.u32(..);
        let delay_ms = rng.u64(..400);
        let cut_every_ms = rng.u64(5..60);
        // Queues deep enough that writes which wait for commits come to 2,000 in seconds.
        let depth = if ack == "write" { 32 } else { rng.u32(4..32) };
        let sizes = ["4k", "512,4k,16k", "4k,64k", "512"][rng.usize(..4)];
        // With an image written slowly on purpose, 2,000 long writes would wait for the journal.
        let slow = matches!(phase, Phase::KillApply | Phase::KillDrain);
        let sizes = if slow { "4k" } else { sizes };
        let mut load: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: String| load.extend([name.to_owned(), value]);
        flag("--queue-depth", depth.to_string());
        flag("--connections", rng.u32(1..3).to_string());
        flag("--block-sizes", sizes.to_owned());
        flag("--flush-every", rng.u32(20..200).to_string());
        flag("--fua-percent", rng.u32(..4).to_string());
        flag("--zero-percent", rng.u32(..6).to_string());
        flag("--discard-percent", rng.u32(..6).to_string());
        flag("--overlap-percent", rng.u32(5..30).to_string());
        flag("--dependent-percent", rng.u32(5..30).to_string());
        flag("--rate", rng.u32(2_000..8_000).to_string());
        Self {
            seed,
            phase,
            ack,
            epoch_ms,
            pause,
            variant,
            delay_ms,
            load,
            cut_every_ms,
        }
    }

    /// Whether the primary goes on alone, or waits.
    #[must_use]
    pub fn policy(&self) -> &'static str {
        if self.pause { "pause" } else { "degrade" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failing round that cannot be drawn again cannot be looked into.
    #[test]
    fn a_round_is_drawn_from_its_seed() {
        for seed in 0..50 {
            let (one, two) = (Plan::draw(seed, None), Plan::draw(seed, None));
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
            let wished = Plan::draw(seed, Some(one.phase));
            assert_eq!(format!("{one:?}"), format!("{wished:?}"));
        }
        let phases: std::collections::BTreeSet<Phase> = (0..Phase::ALL.len() as u64)
            .map(|seed| Plan::draw(seed, None).phase)
            .collect();
        assert_eq!(phases.len(), Phase::ALL.len());
    }

    /// The name in the table is what is typed to run a phase again.
    #[test]
    fn names_are_read_back() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(*phase));
        }
        assert!("kill".parse::<Phase>().is_err());
    }
}
