//! `blockrepctl journal`: reads journals and metadata of a backup that is not running.
//!
//! An independent reading of JOURNAL.md: it shares the encoders and decoders of `blkback-proto`
//! with the daemons and nothing else. Where recovery follows the chain from the tail on, this
//! gathers every record that stands where it says it was stored ([`gather`]), puts the records into
//! chains afterwards ([`chains`]), and only then looks at the metadata ([`slots`]). A mistake in one
//! of the two readings shows as a difference.
//!
//! Nothing is written, nothing is locked: of a journal in use it tells what stood there at that
//! moment.
//!
//! ```text
//!   DIR ─► layout ─┬─► gather ─► chains ─┬─► verdict ─► report
//!                  └─► slots ────────────┘
//! ```

mod chains;
mod gather;
mod json;
mod layout;
mod report;
mod slots;
#[cfg(test)]
mod tests;
mod verdict;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

/// What to do with journals.
#[derive(Debug, Args)]
pub struct JournalArgs {
    #[command(subcommand)]
    command: JournalCommand,
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// List segments, records and metadata
    Dump(DirArgs),
    /// Follow every chain of records and say which epochs are whole
    ///
    /// Ends with 0 when nothing is damaged, with 1 when something is or cannot be read, and with 4
    /// while a daemon uses the directory.
    Verify(DirArgs),
}

#[derive(Debug, Args)]
struct DirArgs {
    /// State directory of a backup, or one journal directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where the journals are, if the daemon was given another directory for them (its --journal)
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Why there is nothing good to say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The directory is not one of a backup.
    #[error(
        "{}: neither volume metadata nor journal segments there: give the --state or --journal \
         directory of a backup", dir.display()
    )]
    NothingThere {
        /// What was given.
        dir: PathBuf,
    },
    /// There is no such directory.
    #[error("{}: {what}; type {}", dir.display(), suggested(command, found))]
    NoDirectory {
        /// What was given.
        dir: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// `dump` or `verify`.
        command: &'static str,
        /// State directories that may have been meant.
        found: Vec<PathBuf>,
    },
    /// There is no directory where the journals were said to be.
    #[error(
        "{}: {what}; type --journal with the directory that the daemon was given by its own --journal, \
         or leave it out if it was given none", dir.display()
    )]
    NoJournals {
        /// What was given.
        dir: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file of the journal has an impossible size.
    #[error("{}: {bytes} bytes are no journal segment", path.display())]
    SegmentSize {
        /// File.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// More files than a journal can have.
    #[error("{}: more segments than a journal can have", dir.display())]
    TooMany {
        /// Directory.
        dir: PathBuf,
    },
    /// Something cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Damage was found; the report is out already.
    #[error("{0}")]
    Damaged(String),
    /// The report cannot be written.
    #[error("writing the report: {0}")]
    Output(#[from] io::Error),
}

/// What to type instead of a directory that is not there.
fn suggested(command: &str, found: &[PathBuf]) -> String {
    if found.is_empty() {
        return format!(
            "blockrepctl journal {command} DIR with the state directory of a stopped daemon: \
             IMAGE.blockrep beside its first image, or its --state"
        );
    }
    let lines = found
        .iter()
        .map(|dir| format!("blockrepctl journal {command} {}", dir.display()));
    lines.collect::<Vec<_>>().join(" or ")
}

impl JournalError {
    /// The command line, not a journal, is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NothingThere { .. } | Self::NoDirectory { .. } | Self::NoJournals { .. }
        )
    }
}

impl JournalArgs {
    /// What is to be read.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dirs().dir
    }

    /// Where its journals are, if not inside of it.
    #[must_use]
    pub fn elsewhere(&self) -> Option<&Path> {
        self.dirs().journal.as_deref()
    }

    fn dirs(&self) -> &DirArgs {
        match &self.command {
            JournalCommand::Verify(args) | JournalCommand::Dump(args) => args,
        }
    }

    /// The directory that no daemon may write to meanwhile: what it is about to write would look like
    /// damage.
    #[must_use]
    pub fn must_be_quiet(&self) -> Option<&Path> {
        match &self.command {
            JournalCommand::Verify(args) => Some(&args.dir),
            JournalCommand::Dump(_) => None,
        }
    }
}

/// Carries the command out; the report goes to `out`.
///
/// # Errors
/// [`JournalError::Damaged`] when `verify` found damage, else why there is no report.
pub fn run(args: &JournalArgs, out: &mut dyn Write) -> Result<(), JournalError> {
    let (dir_args, verify, command) = match &args.command {
        JournalCommand::Dump(args) => (args, false, "dump"),
        JournalCommand::Verify(args) => (args, true, "verify"),
    };
    let found = layout::find(&dir_args.dir, dir_args.journal.as_deref(), command)?;
    let slots = slots::read(&found)?;
    let mut volumes = Vec::new();
    for journal in &found.journals {
        let mut gathered = gather::gather(journal)?;
        if verify {
            gathered.forget_before(slots.needed_from(journal.index));
        }
        let linked = chains::link(&gathered);
        volumes.push(verdict::judge(journal, gathered, linked, &slots));
    }
    let report = report::Report {
        group: slots.group,
        volumes,
        problems: found.missing().into_iter().chain(slots.problems).collect(),
    };
    if dir_args.json {
        report.json(verify, out)?;
    } else if verify {
        report.verify_text(out)?;
    } else {
        report.dump_text(out)?;
    }
    match report.first_problem() {
        Some(text) if verify => Err(JournalError::Damaged(text)),
        _ => Ok(()),
    }
}
