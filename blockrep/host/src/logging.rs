//! Log lines on stderr, without colours when it is not a terminal.

use std::io::{IsTerminal, stderr};

use thiserror::Error;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Environment variable read when no level is given by flag.
pub const LEVEL_VARIABLE: &str = "BLOCKREP_LOG";
/// Level without flag and variable.
pub const LEVEL_DEFAULT: &str = "info";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why logging cannot begin.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// A level that does not exist.
    #[error(
        "log level \"{word}\" in {place} is unknown: type off, error, warn, info, debug or trace, \
         or MODULE=LEVEL, separated by commas"
    )]
    Level { word: String, place: &'static str },
    /// Called twice.
    #[error("logging is already set up")]
    Twice,
}

/// Sets up logging of the whole process. `flag` is the level of the command line, if given.
///
/// # Errors
/// [`LoggingError::Level`] names the word that is wrong and where it came from.
pub fn init(flag: Option<&str>) -> Result<(), LoggingError> {
    let variable = std::env::var(LEVEL_VARIABLE).ok();
    let (text, place) = chosen_level(flag, variable.as_deref());
    let filter = parse_filter(text, place)?;
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .finish()
        .with(filter)
        .try_init()
        .map_err(|_| LoggingError::Twice)
}

fn chosen_level<'a>(flag: Option<&'a str>, variable: Option<&'a str>) -> (&'a str, &'static str) {
    match (flag, variable.filter(|text| !text.is_empty())) {
        (Some(flag), _) => (flag, "--log"),
        (None, Some(variable)) => (variable, LEVEL_VARIABLE),
        (None, None) => (LEVEL_DEFAULT, "the default"),
    }
}

/// The filter language takes any word for a module name; a misspelt level must not pass for one
/// and silence the log.
fn parse_filter(text: &str, place: &'static str) -> Result<Targets, LoggingError> {
    let bad = |word: &str| LoggingError::Level {
        word: word.to_owned(),
        place,
    };
    for directive in text.split(',') {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        if !LEVELS.contains(&level.trim()) {
            return Err(bad(directive));
        }
    }
    text.parse().map_err(|_| bad(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A typing mistake that silences the log is noticed when the log is needed.
    #[test]
    fn misspelt_levels_are_refused_with_their_place() {
        let error = parse_filter("inof", LEVEL_VARIABLE)
            .unwrap_err()
            .to_string();
        assert!(error.contains("\"inof\" in BLOCKREP_LOG"), "{error}");
        for bad in ["", "info,", "blockrep=loud", "debug trace"] {
            assert!(parse_filter(bad, "--log").is_err(), "{bad}");
        }
        for good in LEVELS.into_iter().chain(["warn,blockrep::journal=debug"]) {
            parse_filter(good, "--log").expect(good);
        }
    }

    /// A flag typed for one run must win over what the unit file sets.
    #[test]
    fn flag_wins_over_variable_wins_over_default() {
        assert_eq!(chosen_level(Some("debug"), Some("warn")).0, "debug");
        assert_eq!(chosen_level(None, Some("warn")).0, "warn");
        assert_eq!(chosen_level(None, Some("")).0, LEVEL_DEFAULT);
        assert_eq!(chosen_level(None, None).0, LEVEL_DEFAULT);
    }
}
