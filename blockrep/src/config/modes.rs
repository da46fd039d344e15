//! The settings that are a choice of words: what they mean, and how they are spelled in flags,
//! in the configuration file and in status.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use blkback_proto::diskspec::text::{nearest, quoted};
use blkback_proto::units::{UnitError, exact_duration, parse_duration};
use serde::{Deserialize, Serialize};

/// A word that is none of the choices. One line with what to type instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is no {what}{}; give {}", quoted(value), self.hint(), self.choices())]
pub struct ChoiceError {
    value: String,
    what: &'static str,
    choices: &'static [&'static str],
}

impl ChoiceError {
    fn hint(&self) -> String {
        let near = nearest(&self.value.to_lowercase(), self.choices.iter().copied());
        near.map_or(String::new(), |word| format!(" (did you mean {word}?)"))
    }

    fn choices(&self) -> String {
        match self.choices {
            [] => String::new(),
            [one] => (*one).to_owned(),
            [most @ .., last] => format!("{} or {last}", most.join(", ")),
        }
    }
}

/// An enum of words: `NAMES`, `Display`, `FromStr` and serde all use the same spelling.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $what:literal, {
        $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every spelling, in the order of the documentation.
            pub const NAMES: &'static [&'static str] = &[$($word),+];

            /// The spelling of this choice.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = ChoiceError;

            fn from_str(word: &str) -> Result<Self, ChoiceError> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ChoiceError {
                        value: word.to_owned(),
                        what: $what,
                        choices: Self::NAMES,
                    }),
                }
            }
        }
    };
}

words! {
    /// When a write is answered to the guest, per group.
    AckMode, "ack mode", {
        /// After the local write. Sensible where output is held: nobody hears of the write
        /// before the backup has it.
        Local = "local",
        /// Writes after the local write; FLUSH and FUA wait until everything before them is
        /// sealed at the backup, cutting the epoch early.
        Flush = "flush",
        /// Every write waits for the backup's durable acknowledgement.
        Write = "write",
    }
}

words! {
    /// What a primary does when its backup is lost, or back-pressure lasts too long.
    LossPolicy, "loss policy", {
        /// Hold guest writes until the backup is back or an operator decides.
        Pause = "pause",
        /// Go on without protection, after the loss of protection is durable.
        Degrade = "degrade",
    }
}

words! {
    /// Who may see a write before it is committed.
    OutputClass, "output class", {
        /// Others may: a bare volume, or a guest whose network is not held.
        Open = "open",
        /// Nobody may: everything the guest says is held until its epoch is committed.
        Held = "held",
    }
}

impl OutputClass {
    /// The ack mode of a group of this class that asked for none.
    pub const fn default_ack(self) -> AckMode {
        match self {
            Self::Open => AckMode::Flush,
            Self::Held => AckMode::Local,
        }
    }
}

words! {
    /// Least important line that is logged.
    LogLevel, "log level", {
        /// What ended or broke.
        Error = "error",
        /// What needs an operator soon.
        Warn = "warn",
        /// Changes of state.
        Info = "info",
        /// Every epoch.
        Debug = "debug",
        /// Every request.
        Trace = "trace",
    }
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// When epochs are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EpochMode {
    /// By a timer, this long after the last cut.
    Every(Duration),
    /// Only when a checkpointer or an operator asks.
    Manual,
}

impl fmt::Display for EpochMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(period) => f.write_str(&exact_duration(*period)),
            Self::Manual => f.write_str("manual"),
        }
    }
}

/// Neither a time nor the word `manual`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source}, or manual")]
pub struct EpochModeError {
    source: UnitError,
}

impl FromStr for EpochMode {
    type Err = EpochModeError;

    /// Reads a time or `manual`. Bounds are checked with the rest of the configuration.
    fn from_str(text: &str) -> Result<Self, EpochModeError> {
        match text {
            "manual" => Ok(Self::Manual),
            _ => parse_duration(text)
                .map(Self::Every)
                .map_err(|source| EpochModeError { source }),
        }
    }
}

impl TryFrom<String> for EpochMode {
    type Error = EpochModeError;

    fn try_from(text: String) -> Result<Self, EpochModeError> {
        text.parse()
    }
}

impl From<EpochMode> for String {
    fn from(mode: EpochMode) -> Self {
        mode.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Status, flags and file spelling one mode differently sends people round in circles.
    #[test]
    fn every_word_has_one_spelling() {
        for name in AckMode::NAMES {
            let mode: AckMode = name.parse().unwrap();
            assert_eq!(mode.to_string(), *name);
            let file = toml::from_str::<Holder>(&format!("ack = '{name}'")).unwrap();
            assert_eq!(file.ack, mode);
        }
        assert_eq!("manual".parse(), Ok(EpochMode::Manual));
        let every = EpochMode::Every(Duration::from_millis(25));
        assert_eq!("25ms".parse(), Ok(every));
        assert_eq!(every.to_string(), "25ms");
    }

    #[derive(Deserialize)]
    struct Holder {
        ack: AckMode,
    }

    // With held output `flush` would make every fsync of the guest wait for no gain; with open
    // output `local` would lose what a client was told is safe.
    #[test]
    fn the_default_ack_follows_the_output_class() {
        assert_eq!(OutputClass::Open.default_ack(), AckMode::Flush);
        assert_eq!(OutputClass::Held.default_ack(), AckMode::Local);
    }
}
