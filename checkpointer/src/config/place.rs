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
        let key = text.split('=').next().unwrap_or_default();
        let key = key.rsplit('.').next().unwrap_or_default().trim();
        let message = error.message();
        let missing = message.strip_prefix("missing field `");
        let missing = missing.and_then(|rest| rest.split('`').next());
        let instead = match example_of(missing.unwrap_or(key)) {
            _ if message.starts_with("unknown ") => "write one of these".to_owned(),
            Some(shown) => format!("write for example {shown}"),
            None => "write it as the example in the manual has it".to_owned(),
        };
        self.error(line, &format!("{}; {instead}", message))
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

/// The key as an example has it, without its comment and what stands beside it.
fn example_of(key: &str) -> Option<String> {
    if key.is_empty() {
        return None;
    }
    let wanted = format!("{key} = ");
    let lines = PROTECT_EXAMPLE.lines().chain(STANDBY_EXAMPLE.lines());
    let mut starts = lines.filter_map(|line| {
        let line = line.trim_start_matches(['#', ' ', '{']);
        line.starts_with(&wanted).then_some(line)
    });
    let line = starts.next()?;
    let value = line.split("  #").next().unwrap_or(line);
    let value = value.split(", addresses").next().unwrap_or(value).trim();
    (!value.ends_with('[') && !value.contains("[ ")).then(|| value.to_owned())
}
