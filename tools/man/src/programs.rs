//! The programs that users meet, as their own libraries describe them.

use blockrep::cli::{BackupArgs, ExitCode, PrimaryArgs};
use blockrep_tools::{ctl, load};
use clap::{Command, CommandFactory};

/// One program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) command: Command,
    /// Of the manual: 8 for daemons, 1 for what users type.
    pub(crate) section: &'static str,
    /// Code and meaning.
    pub(crate) exit_codes: Vec<(u8, &'static str)>,
}

/// Those with a man page.
pub(crate) fn all() -> Vec<Program> {
    let daemon = |command| Program {
        command,
        section: "8",
        exit_codes: ExitCode::ALL.map(|(code, text)| (code.code(), text)).into(),
    };
    vec![
        daemon(PrimaryArgs::command()),
        daemon(BackupArgs::command()),
        Program {
            command: netbuf::cli::Cli::command(),
            section: "8",
            exit_codes: netbuf::cli::EXIT_CODES
                .map(|(exit, text)| (exit as u8, text))
                .into(),
        },
        Program {
            command: netbuf::script::Cli::command(),
            section: "8",
            exit_codes: netbuf::script::EXIT_CODES
                .map(|(exit, text)| (exit as u8, text))
                .into(),
        },
        Program {
            command: checkpointer::cli::Cli::command(),
            section: "8",
            exit_codes: checkpointer::cli::EXIT_CODES
                .map(|(exit, text)| (exit as u8, text))
                .into(),
        },
        Program {
            command: ctl::command(),
            section: "1",
            exit_codes: ctl::EXIT_CODES
                .map(|(exit, text)| (exit as u8, text))
                .into(),
        },
        Program {
            command: load::cli::Cli::command(),
            section: "1",
            exit_codes: load::cli::EXIT_CODES.into(),
        },
    ]
}
