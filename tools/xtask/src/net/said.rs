//! What a test program says: its tests with their ends, what they noted, and why they failed. The daemons'
//! own lines stand in between.

use std::path::Path;

use anyhow::{Context, Result};

/// Lines of a message that are of use; a backtrace follows.
const MESSAGE_LINES_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Said {
    /// In their order.
    pub(crate) tests: Vec<Test>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Test {
    name: String,
    /// "ok" or "FAILED"; none of the test that was under way when everything ended.
    end: Option<String>,
    /// Notes, as far as it got.
    notes: Vec<String>,
    /// Of each panic, in one line.
    panics: Vec<String>,
}

impl Said {
    pub(crate) fn read(log: &Path) -> Result<Self> {
        let bytes = std::fs::read(log).with_context(|| format!("read {}", log.display()))?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    fn parse(text: &str) -> Self {
        let mut tests: Vec<Test> = Vec::new();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let begun = line
                .strip_prefix("test ")
                .filter(|rest| rest.contains(" ... ") || rest.ends_with(" ..."))
                .filter(|rest| !rest.contains(" ... ignored"));
            if let Some(name) = begun.and_then(|rest| rest.split_whitespace().next()) {
                tests.push(Test {
                    name: name.to_owned(),
                    end: None,
                    notes: Vec::new(),
                    panics: Vec::new(),
                });
            }
            let Some(test) = tests.last_mut() else {
                continue;
            };
            let end = line
                .rsplit(' ')
                .next()
                .filter(|end| ["ok", "FAILED"].contains(end));
            if let Some(end) = end
                && test.end.is_none()
                && (*line == end || begun.is_some())
            {
                test.end = Some(end.to_owned());
            }
            if let Some(note) = line.strip_prefix("noted: ") {
                test.notes.push(note.to_owned());
            }
            if line.contains("panicked at ") {
                test.panics.push(message(&lines[at + 1..]));
            }
        }
        Self { tests }
    }

    pub(crate) fn print(&self) {
        for test in &self.tests {
            let end = test.end.as_deref().unwrap_or("did not end");
            println!("  {}: {end}", test.name);
            // The notes of a test that passed lead up to the last one.
            let skipped = match end {
                "ok" => test.notes.len().saturating_sub(1),
                _ => 0,
            };
            for line in test.notes.iter().skip(skipped).chain(&test.panics) {
                println!("      {line}");
            }
        }
    }

    /// The test failed, and a panic of it has this in its message.
    pub(crate) fn failed_with(&self, test: &str, reason: &str) -> bool {
        self.tests.iter().any(|one| {
            one.name.starts_with(test)
                && one.end.as_deref() == Some("FAILED")
                && one.panics.iter().any(|panic| panic.contains(reason))
        })
    }
}

/// The message that begins here, in one line.
fn message(lines: &[&str]) -> String {
    let over =
        |line: &&str| line.is_empty() || line.starts_with("note: ") || line.starts_with("stack ");
    let own: Vec<&str> = lines.iter().copied().take(MESSAGE_LINES_MAX).collect();
    let end = own.iter().position(over).unwrap_or(own.len());
    own[..end].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run in which nothing was tested passed for one that was; one that hung named no test.
    #[test]
    fn every_test_has_its_end_its_notes_and_its_reason() {
        let text = "LEDGER-READY\r\ntest a::one ... INFO vm1: attached\r\nINFO more ok\r\n\r\nnoted: 20 kills\r\nok\r\n\
                    test a::two ... ok\r\ntest a::three ... INFO\r\n\
                    thread '<unnamed>' (7) panicked at a.rs:1:2:\r\nheld, and these left early: []\r\n\
                    note: run with `RUST_BACKTRACE=1`\r\nFAILED\r\ntest a::left ... ignored, a measurement\r\ntest a::four ... INFO\r\n\
                    test a::five ... \r\nnoted: 5\r\nok\r\n";
        let said = Said::parse(text);
        let ends: Vec<_> = said
            .tests
            .iter()
            .map(|one| (one.name.as_str(), one.end.as_deref()))
            .collect();
        assert_eq!(
            ends,
            [
                ("a::one", Some("ok")),
                ("a::two", Some("ok")),
                ("a::three", Some("FAILED")),
                ("a::four", None),
                ("a::five", Some("ok"))
            ]
        );
        assert_eq!(said.tests[0].notes, ["20 kills"]);
        assert!(said.failed_with("a::three", "left early"));
        assert!(!said.failed_with("a::three", "lost"));
        assert!(!said.failed_with("a::one", ""));
    }
}
