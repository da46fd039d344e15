//! The configuration file: TOML, flat, with the names of the long flags as keys.
//!
//! Only the text is read here; whoever read the file names it. Unknown keys are refused, because
//! a misspelt `on-backup-loss` that is ignored is found out on the worst day.

use std::sync::Arc;

use blkback_proto::diskspec::text::{nearest, visible};
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::settings::{Key, Place, Program, Settings, Takes};

/// Largest configuration file that is read, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;

impl Settings {
    /// Reads the text of a configuration file; `path` is named in messages.
    ///
    /// # Errors
    /// The first mistake in the order of the file: no TOML, an unknown key, a key of the other
    /// daemon, a value of the wrong kind. What a value means is checked later.
    pub fn from_toml(program: Program, path: &str, text: &str) -> Result<Self, ConfigError> {
        let path: Arc<str> = path.chars().map(visible).collect::<String>().into();
        let line_of = |at: usize| {
            1 + text.as_bytes()[..at]
                .iter()
                .filter(|&&b| b == b'\n')
                .count()
        };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = line_of(at);
            let mut what = error.message().lines().collect::<Vec<_>>().join(" ");
            if what == "duplicate key" {
                let line = text.lines().nth(line - 1).unwrap_or_default();
                let key = line.split('=').next().unwrap_or_default().trim();
                what += &format!(" '{}'", key.chars().map(visible).collect::<String>());
            }
            ConfigError::Syntax {
                path: path.clone(),
                line,
                what,
            }
        })?;
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut settings = Self::default();
        for (name, value) in entries {
            let line = line_of(name.span().start);
            let key = known_key(program, &path, line, name.get_ref())?;
            let texts = texts(key, value.get_ref()).ok_or_else(|| ConfigError::WrongKind {
                place: Place::File {
                    path: path.clone(),
                    line,
                    key,
                },
                expected: match key.takes() {
                    Takes::Text => "a string in quotes",
                    Takes::List => "a string in quotes, or a list of them",
                    Takes::Switch => "true or false",
                },
            })?;
            for (text, at) in texts {
                let line = at.map_or(line, line_of);
                settings.add(
                    key,
                    text,
                    Place::File {
                        path: path.clone(),
                        line,
                        key,
                    },
                );
            }
        }
        Ok(settings)
    }
}

fn known_key(
    program: Program,
    path: &Arc<str>,
    line: usize,
    name: &str,
) -> Result<Key, ConfigError> {
    match Key::named(name) {
        Some(key) if key.belongs_to(program) => Ok(key),
        Some(key) => {
            let (path, program) = (path.clone(), program.name());
            Err(ConfigError::OtherDaemon {
                path,
                line,
                key: key.name(),
                program,
            })
        }
        None => {
            let known = Key::ALL
                .iter()
                .filter(|key| key.belongs_to(program))
                .map(|key| key.name());
            Err(ConfigError::UnknownKey {
                path: path.clone(),
                line,
                key: name.to_owned(),
                nearest: nearest(name, known),
            })
        }
    }
}

/// The texts of a value, each with its place where that is not the key's.
fn texts(key: Key, value: &DeValue<'_>) -> Option<Vec<(String, Option<usize>)>> {
    let one = |text: String| Some(vec![(text, None)]);
    match (key.takes(), value) {
        (Takes::Switch, DeValue::Boolean(on)) => one(on.to_string()),
        (Takes::Switch, _) => None,
        (_, DeValue::String(text)) => one(text.to_string()),
        // `journal-size = 1073741824` is plain; `epoch = 25` gets to hear that a unit is missing.
        (Takes::Text, DeValue::Integer(number)) if number.radix() == 10 => {
            one(number.as_str().to_owned())
        }
        (Takes::List, DeValue::Array(items)) => items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Some((text.to_string(), Some(item.span().start))),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}
