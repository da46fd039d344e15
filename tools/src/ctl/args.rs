//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use super::failure::{EXIT_CODES, Exit};

/// Look at a blockrep daemon and tell it what to do.
///
/// Without --control and --group, the only daemon of this host is used.
#[derive(Debug, Parser)]
#[command(name = "blockrepctl", version, after_help = Exit::help(&EXIT_CODES))]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which daemon, and how long to wait for it.
#[derive(Debug, Default, Args)]
pub(super) struct TargetArgs {
    /// Control socket of the daemon
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "group")]
    pub(super) control: Option<PathBuf>,
    /// Group whose daemon on this host is meant
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) group: Option<String>,
    /// How long to wait for an answer [default: 10; cut --wait: 30; promote: 60; guest stop and guest promote: 120]
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub(super) timeout: Option<u64>,
}

impl TargetArgs {
    /// The time given on the command line, or the default of the command.
    pub(super) fn timeout_or(&self, default_s: u64) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(default_s))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show how well the group is protected, and everything else there is to know
    Status(StatusArgs),
    /// Show the status again each second, until Ctrl-C
    Watch,
    /// Show what happened
    Events(EventsArgs),
    /// End the open epoch now
    Cut(CutArgs),
    /// Make this backup the primary, at the last complete epoch
    ///
    /// Be sure that the primary is dead, and stays so: nothing here fences it. While it runs, its
    /// guest goes on to write to a disk that is a different one from now on. Epochs that were not
    /// complete at the backup are dropped; every flush that was answered under --ack flush or write
    /// while the primary was protected is kept, under --ack local the epochs on their way are lost.
    /// What a degraded primary answered after it had lost this backup is not here.
    ///
    /// Beside a primary that is still connected it is refused; one that was killed a moment ago is
    /// noticed within seconds. --force promotes beside it all the same: its link is cut and it is
    /// not stopped. Stop it yourself, at once: what it answers from then on is lost.
    /// --accept-suspect is for a backup whose state is "suspect": the last sealed epoch is damaged,
    /// and it cannot be told whether it was ever acknowledged. If the primary or its image is still
    /// to be had, start that one instead; if not, this serves the epoch before.
    Promote(PromoteArgs),
    /// Keep and read the record of guest pages that this daemon writes, for a checkpointer
    ///
    /// A checkpointer that watches the memory of a hypervisor does not see what a vhost-user disk
    /// writes there. Armed, the daemon remembers it until it is taken, turn by turn; PROTOCOL.md
    /// says what a turn promises.
    #[command(subcommand)]
    Pages(PagesCommand),
    /// Look at a guest that is protected with its memory, and tell its checkpointers what to do
    #[command(subcommand)]
    Guest(GuestCommand),
    /// Read a journal and its metadata while no daemon uses them
    Journal(crate::journal::JournalArgs),
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// As JSON, just as the daemon sent it
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
    /// Go on with what happens from now on
    #[arg(long)]
    pub(super) follow: bool,
    /// Number of the first event wanted; 0 is the oldest kept
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(super) from: u64,
}

#[derive(Debug, Args)]
pub(super) struct CutArgs {
    /// Wait until the epoch is committed at the backup
    #[arg(long)]
    pub(super) wait: bool,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// Also beside a primary that is still connected: it is cut off, not stopped
    #[arg(long)]
    pub(super) force: bool,
    /// Also if a record of the last acknowledged epoch is damaged
    #[arg(long)]
    pub(super) accept_suspect: bool,
    /// Without the guest's memory, where that is kept too: the guest boots as after a power cut
    #[arg(long)]
    pub(super) disk_only: bool,
    /// Why, for the lineage and the events
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "asked for with blockrepctl"
    )]
    pub(super) reason: String,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum PagesCommand {
    /// Begin a record of what is written from now on; one that was kept ends
    Arm(PagesArgs),
    /// Read a turn: the one after the last begins a turn, the last is given again
    Take(PagesTakeArgs),
    /// End the record
    Disarm(PagesArgs),
}

#[derive(Debug, Args)]
pub(super) struct PagesArgs {
    /// Which volume's guest; it may be left out where there is one volume
    #[arg(long, value_name = "NAME")]
    pub(super) volume: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PagesTakeArgs {
    /// Id of the record, as arm printed it
    pub(super) record: String,
    /// Number of the turn: 1 after arm, then one more each time
    pub(super) turn: u64,
    #[command(flatten)]
    pub(super) pages: PagesArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum GuestCommand {
    /// Show how the guest is protected, and everything else there is to know
    Status(GuestArgs),
    /// Show the last checkpoints one by one, with what each step took
    Timeline(GuestTimelineArgs),
    /// End the protection; the guest runs on, unprotected
    ///
    /// The backup is taken out of the in-sync set first, so that it is not promoted beside the
    /// guest. With an operator for an authority that needs --by-hand: look first that the guest does
    /// not run at the backup.
    Stop(GuestStopArgs),
    /// Let the guest go on at this standby, at the last checkpoint that is whole
    ///
    /// The authority decides; what it has given to the primary, nothing here can take. Beside a
    /// primary that is heard of it needs --force. --by-hand is for an operator who has looked that
    /// the guest does not run at the other host, nor will: where nothing fences that host, only you
    /// can say so. If it runs there all the same, two guests with one name and one disk are the end
    /// of both.
    Promote(GuestPromoteArgs),
}

#[derive(Debug, Args)]
pub(super) struct GuestArgs {
    /// Name of the guest; it may be left out where this host has one
    pub(super) guest: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct GuestTimelineArgs {
    #[command(flatten)]
    pub(super) guest: GuestArgs,
    /// Number of the first checkpoint wanted; 0 is the oldest kept
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub(super) from: u64,
}

#[derive(Debug, Args)]
pub(super) struct GuestStopArgs {
    #[command(flatten)]
    pub(super) guest: GuestArgs,
    /// The guest does not run at the other host, nor will: you have looked
    #[arg(long)]
    pub(super) by_hand: bool,
    /// Why, for the events
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "asked for with blockrepctl"
    )]
    pub(super) reason: String,
}

#[derive(Debug, Args)]
pub(super) struct GuestPromoteArgs {
    #[command(flatten)]
    pub(super) stop: GuestStopArgs,
    /// Also beside a primary that is heard of
    #[arg(long)]
    pub(super) force: bool,
}

/// Help and version go out as they are; a mistake becomes one line.
pub(super) fn explain(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Nothing to be done where help cannot be printed.
        let _ = error.print();
        return Exit::Ok.into();
    }
    eprintln!("blockrepctl: {}", mistake(error));
    Exit::Usage.into()
}

fn mistake(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let typed = command_of(&text);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return no_command(&typed);
    }
    let what: Vec<String> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .map(|line| match line.strip_prefix("tip: ") {
            Some(tip) => format!("; {tip}"),
            None => format!(" {line}"),
        })
        .collect();
    let what = what.concat();
    let what = what.trim_start();
    format!(
        "{}; type blockrepctl{typed} --help",
        what.strip_prefix("error: ").unwrap_or(what)
    )
}

/// The command that a usage line is about, with a blank in front; empty for the program itself.
fn command_of(text: &str) -> String {
    let usage = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: blockrepctl"));
    let words = usage.unwrap_or_default().split_whitespace();
    let words = words.take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()));
    words.map(|word| format!(" {word}")).collect()
}

/// A command was left out: the program's, or one of a command that has its own.
fn no_command(typed: &str) -> String {
    if typed.is_empty() {
        return "no command: type blockrepctl status, or blockrepctl --help".to_owned();
    }
    let mut all = super::command();
    all.build();
    let mut words = typed.split_whitespace();
    let command = words.try_fold(&all, |command, word| command.find_subcommand(word));
    let names = command.into_iter().flat_map(clap::Command::get_subcommands);
    let names = names
        .map(clap::Command::get_name)
        .filter(|name| *name != "help");
    let lines: Vec<String> = names
        .map(|name| format!("blockrepctl{typed} {name}"))
        .collect();
    format!(
        "no command: type {}, or blockrepctl{typed} --help",
        lines.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A definition that clap rejects only shows when that command is typed.
    #[test]
    fn definition_is_sound() {
        super::super::command().debug_assert();
    }

    /// Whoever mistypes in an emergency needs the right word at once, not a page of help.
    #[test]
    fn mistakes_are_one_line_with_what_to_type() {
        for (words, expected) in [
            (&["promote", "--forse"][..], "--force"),
            (&["statsu"], "'status'"),
            (
                &["--json", "status"],
                "unexpected argument '--json' found; 'status --json' exists; type",
            ),
            (&[], "type blockrepctl status"),
            (
                &["pages"],
                "type blockrepctl pages arm, blockrepctl pages take, blockrepctl pages disarm, or \
                 blockrepctl pages --help",
            ),
            (
                &["--group", "g", "journal"],
                "type blockrepctl journal dump, blockrepctl journal verify, or blockrepctl journal \
                 --help",
            ),
            (
                &["journal", "dump"],
                "<DIR>; type blockrepctl journal dump --help",
            ),
            (
                &["status", "--control", "/x", "--group", "g"],
                "cannot be used with",
            ),
            (&["events", "--from", "-1"], "--from"),
            (&["events", "--from", "soon"], "'soon'"),
            (&["cut", "--timeout", "0"], "1..=86400"),
            (&["status", "--control"], "--control <PATH>"),
            (&["pages", "take", "9f0c", "soon"], "'soon'"),
            (&["pages", "take", "9f0c"], "<TURN>"),
            (
                &["guest"],
                "type blockrepctl guest status, blockrepctl guest timeline, blockrepctl guest stop, \
                 blockrepctl guest promote, or blockrepctl guest --help",
            ),
            (&["guest", "promote", "vm1", "--byhand"], "--by-hand"),
        ] {
            let line = ["blockrepctl"].iter().chain(words);
            let text = mistake(&Cli::try_parse_from(line).expect_err("a mistake"));
            assert!(!text.contains('\n'), "{text}");
            assert!(text.contains(expected), "{words:?}: {text}");
        }
    }

    /// The target may be typed before or after the command.
    #[test]
    fn target_stands_on_either_side() {
        for line in [
            ["blockrepctl", "--group", "g", "cut"],
            ["blockrepctl", "cut", "--group", "g"],
        ] {
            assert_eq!(
                Cli::try_parse_from(line).unwrap().target.group.as_deref(),
                Some("g")
            );
        }
    }
}
