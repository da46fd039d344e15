//! Rules about the repository itself: what depends on what, what stays pure, how large things get,
//! and whether the documents tell the truth.
//!
//! Every rule is a function over text, so that each can be shown to fail on a planted case. The
//! program in `tests/tests/tidy.rs` applies them to the files that git tracks.

pub mod documents;
pub mod packages;
pub mod sizes;
pub mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// File, relative to the repository.
    pub path: String,
    /// Line from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl Finding {
    /// A finding at a line.
    #[must_use]
    pub fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// A tracked text file.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// Relative to the repository.
    pub path: String,
    /// Contents.
    pub text: String,
}

/// Root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a folder of the repository")
        .to_owned()
}

/// Every tracked file that is text; what git does not know is nobody's business.
///
/// # Errors
/// git cannot be run or a file cannot be read.
pub fn tracked_files() -> anyhow::Result<Vec<TextFile>> {
    let root = root();
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&root)
        .output()?;
    anyhow::ensure!(output.status.success(), "git ls-files failed");
    let mut files = Vec::new();
    for path in String::from_utf8(output.stdout)?
        .split('\0')
        .filter(|p| !p.is_empty())
    {
        // A file that is being moved or deleted is still listed.
        let Ok(bytes) = std::fs::read(root.join(path)) else {
            continue;
        };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(TextFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(files)
}

/// All findings, one a line.
#[must_use]
pub fn listed(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{f}\n")).collect()
}
