//! Where in the file a mistake is.

use super::{ConfigError, PROTECT_EXAMPLE, STANDBY_EXAMPLE};
use blkback_proto::ctl::one_line;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A text and its name.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Place<'_> {
    /// A mistake at a key, given by its tables and its name; at the nearest table where the key is not there.
    pub(super) fn at(&self, path: &[&str], what: impl AsRef<str>) -> ConfigError {
        self.error(self.line_of_key(path), what.as_ref())
    }

    /// A mistake that the reader of TOML found.
    pub(super) fn of_toml(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().unwrap_or(0..0);
        let line = self.line(&at);
        // A field that is missing has the table for a place, and the message names it.
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let key = text.split('=').next().unwrap_or_default().trim();
        let missing = error.message().split('`').nth(1).unwrap_or_default();
        let shown = example_of(key).or_else(|| example_of(missing));
        let instead = shown.map_or_else(
            || "see the example in checkpointer --help".to_owned(),
            |shown| format!("write for example {shown}"),
        );
        self.error(line, &format!("{}; {instead}", error.message()))
    }

    fn error(&self, line: usize, what: &str) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line,
            what: one_line(what),
        }
    }

    fn line(&self, at: &Range<usize>) -> usize {
        let before = self.text.as_bytes().iter().take(at.start);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn line_of_key(&self, path: &[&str]) -> usize {
        let Ok(whole) = DeTable::parse(self.text) else {
            return 1;
        };
        let mut line = 1;
        let mut table = whole.get_ref();
        for name in path {
            let found = table.iter().find(|(key, _)| key.get_ref() == name);
            let Some((key, value)) = found else {
                return line;
            };
            line = self.line(&key.span());
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => return line,
            }
        }
        line
    }
}

/// The key as an example has it, without its comment.
fn example_of(key: &str) -> Option<String> {
    let lines = PROTECT_EXAMPLE.lines().chain(STANDBY_EXAMPLE.lines());
    for line in lines.map(|line| line.trim_start_matches("# ")) {
        if let Some((name, value)) = line.split_once(" = ")
            && name == key
            && !key.is_empty()
            && !value.starts_with("[  ")
        {
            let value = value.split("  #").next().unwrap_or(value);
            return Some(format!("{name} = {}", value.trim()));
        }
    }
    None
}
