//! `blockrepctl`: looks at a daemon and tells it what to do, over its control socket.
//!
//! Every error is one line on stderr: what, where, what to type instead. Exit codes stand in
//! [`Exit`]. A closed pipe on stdout (`| head`) is an end, not an error.

mod actions;
mod args;
mod events;
mod failure;
mod guest;
mod pages;
mod render;
mod target;
mod units;
mod watch;

use blockrep_host::lock::{FileLock, LockError};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Cli, Command};
pub use self::failure::{EXIT_CODES, Exit, Failure};
use crate::journal::JournalArgs;
use blockrep_host::ctl::shell_word;

/// The command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return args::explain(&error),
    };
    let mut out = io::stdout().lock();
    let result = run(&cli, &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(failure) if failure.is_closed_pipe() => Exit::Ok.into(),
        Err(failure) => {
            eprintln!(
                "blockrepctl: {}",
                target::as_typed(&failure.to_string(), &cli.target)
            );
            failure.exit.into()
        }
    }
}

fn run(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    match &cli.command {
        Command::Status(args) => actions::status(&cli.target, args, out),
        Command::Watch => watch::watch(&cli.target, out),
        Command::Events(args) => events::events(&cli.target, args, out),
        Command::Cut(args) => actions::cut(&cli.target, args, out),
        Command::Promote(args) => actions::promote(&cli.target, args, out),
        Command::Pages(command) => pages::pages(&cli.target, command, out),
        Command::Guest(command) => guest::guest(&cli.target, command, out),
        Command::Journal(args) => {
            let _quiet = args
                .must_be_quiet()
                .map(|dir| not_in_use(dir, args))
                .transpose()?;
            Ok(crate::journal::run(args, out)?)
        }
    }
}

/// Keeps daemons out of a state directory.
fn not_in_use(dir: &Path, args: &JournalArgs) -> Result<Option<FileLock>, Failure> {
    match FileLock::exclusive(&dir.join("lock")) {
        Ok(lock) => Ok(Some(lock)),
        Err(LockError::Held { holder, .. }) => {
            let who = holder.map_or("a daemon".to_owned(), |pid| format!("process {pid}"));
            let text = format!(
                "{} is in use by {who}: stop the daemon first, or type blockrepctl journal dump {}",
                dir.display(),
                dirs_as_typed(args)
            );
            Err(Failure::new(Exit::Refused, text))
        }
        // A journal directory, or a copy of a state directory.
        Err(LockError::Io { .. }) => Ok(None),
    }
}

/// The directories of a journal command, as a shell takes them.
fn dirs_as_typed(args: &JournalArgs) -> String {
    let word = |path: &Path| shell_word(&path.display().to_string());
    let dir = word(args.dir());
    match args.elsewhere() {
        Some(elsewhere) => format!("{dir} --journal {}", word(elsewhere)),
        None => dir,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that says what to type instead was no command: without a directory it failed, too.
    #[test]
    fn a_directory_in_use_names_a_command_that_works() {
        let dir = tempfile::tempdir().unwrap();
        let held = dir.path().join("it is");
        std::fs::create_dir(&held).unwrap();
        std::fs::write(held.join("lock"), "").unwrap();
        let _lock = FileLock::exclusive(&held.join("lock")).unwrap();
        let shown = held.display().to_string();
        for (more, words) in [
            (&[][..], format!("blockrepctl journal dump '{shown}'")),
            (
                &["--journal", "/j"],
                format!("blockrepctl journal dump '{shown}' --journal /j"),
            ),
        ] {
            let line = ["blockrepctl", "journal", "verify", &shown];
            let cli = Cli::try_parse_from(line.iter().chain(more)).unwrap();
            let failure = run(&cli, &mut Vec::new()).unwrap_err();
            assert_eq!(failure.exit, Exit::Refused);
            assert!(failure.to_string().ends_with(&words), "{failure}");
        }
    }
}
