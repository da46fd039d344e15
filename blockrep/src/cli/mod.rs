//! The command lines of `blockrep` and `blockrep-backup`, in the library so that binaries, man
//! pages and tests use the same.
//!
//! A binary is three lines:
//!
//! ```no_run
//! use blockrep::cli::{self, ExitCode, Start};
//!
//! fn main() -> ExitCode {
//!     match cli::primary(std::env::args_os()) {
//!         Ok(Start::Run(config)) => run(config),
//!         Ok(Start::Print(text)) => cli::print(&text),
//!         Err(error) => error.print("blockrep"),
//!     }
//! }
//! # fn run(config: blockrep::config::PrimaryConfig) -> ExitCode { ExitCode::Ok }
//! ```
//!
//! Runs once, before any thread is started. The only file touched is the one of `--config`.

mod args;
mod exit;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use blkback_proto::diskspec::text::{quoted, visible};
use clap::error::{ContextKind, ContextValue, ErrorKind};

pub use args::{BackupArgs, CommonArgs, PrimaryArgs};
pub use exit::ExitCode;

use crate::config::{
    BackupConfig, CONFIG_FILE_BYTES_MAX, ConfigError, PrimaryConfig, Program, Settings,
};
use args::Flags;

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start<C> {
    /// Run with this configuration.
    Run(C),
    /// Print this on standard output and end: help, version, or the checked configuration.
    Print(String),
}

/// Why a daemon does not start. `Display` is one line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The flags themselves are wrong.
    #[error("{0}; see --help")]
    Flags(String),
    /// The configuration file cannot be read.
    #[error("--config: cannot read {}: {}; give a readable file",
        quoted(&path.display().to_string()), reason(source))]
    ReadConfig { path: PathBuf, source: io::Error },
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The kernel's words without its number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

impl CliError {
    /// What a terminal shows: the line, and for a wrong spec its drawing below.
    pub fn report(&self, program: &str) -> String {
        let mut out = format!("{program}: {self}\n");
        if let Self::Config(ConfigError::Spec { source, .. }) = self
            && !source.spec().is_empty()
        {
            for line in source.caret().lines() {
                out.push_str("  ");
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }

    /// Writes [`CliError::report`] to standard error; the exit code is always "usage".
    pub fn print(&self, program: &str) -> ExitCode {
        // There is nowhere left to complain to when standard error is gone.
        let _ = io::stderr().write_all(self.report(program).as_bytes());
        ExitCode::Usage
    }
}

/// Writes what was asked for to standard output.
pub fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::Ok,
        // `blockrep --help | head -1` is no fault.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
        Err(_) => ExitCode::Other,
    }
}

/// Reads the command line of `blockrep`, the program's name first.
///
/// # Errors
/// One line for the first mistake in flags, file or their sum.
pub fn primary(args: impl IntoIterator<Item = OsString>) -> Result<Start<PrimaryConfig>, CliError> {
    start::<PrimaryArgs, _>(Program::Primary, args, PrimaryConfig::new)
}

/// Reads the command line of `blockrep-backup`, the program's name first.
///
/// # Errors
/// As [`primary`].
pub fn backup(args: impl IntoIterator<Item = OsString>) -> Result<Start<BackupConfig>, CliError> {
    start::<BackupArgs, _>(Program::Backup, args, BackupConfig::new)
}

fn start<F: Flags, C: fmt::Display>(
    program: Program,
    args: impl IntoIterator<Item = OsString>,
    check: impl Fn(&Settings) -> Result<C, ConfigError>,
) -> Result<Start<C>, CliError> {
    let flags = match F::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => return not_flags(&error).map(Start::Print),
    };
    let mut settings = flags.settings();
    // The daemon never changes its directory, so what is made of a path now stays true.
    if let Ok(dir) = std::env::current_dir()
        && let Some(dir) = dir.to_str()
    {
        settings.made_absolute(dir);
    }
    if let Some(path) = &flags.common().config {
        let text = read_config(path)?;
        let file = Settings::from_toml(program, &path.display().to_string(), &text)?;
        settings = settings.over(file);
    }
    let config = check(&settings)?;
    if flags.common().check_config {
        return Ok(Start::Print(config.to_string()));
    }
    Ok(Start::Run(config))
}

/// Help and version are texts to print; the rest becomes one line.
fn not_flags(error: &clap::Error) -> Result<String, CliError> {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return Ok(error.to_string());
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let mut line: String = first
        .trim_start_matches("error: ")
        .chars()
        .map(visible)
        .collect();
    if let Some(ContextValue::String(near)) = error.get(ContextKind::SuggestedArg) {
        line.push_str(", did you mean ");
        line.push_str(near);
    }
    Err(CliError::Flags(line))
}

/// The text of the configuration file. Whatever it is, at most [`CONFIG_FILE_BYTES_MAX`] bytes
/// of it are read.
fn read_config(path: &Path) -> Result<String, CliError> {
    let wrong = |source| CliError::ReadConfig {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let mut file = File::open(path)
        .map_err(wrong)?
        .take(CONFIG_FILE_BYTES_MAX + 1);
    let bytes = file.read_to_string(&mut text).map_err(wrong)?;
    if bytes as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(wrong(io::Error::other("it is longer than 1 MiB")));
    }
    Ok(text)
}
