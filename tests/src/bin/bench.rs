//! `bench disk`: this project's disk paths beside other stacks, as ratios of one run.
//!
//! Exit codes: 0 measured; 2 it could not be measured; 130 interrupted.

use blockrep_tests::bench::{self, DiskOptions, Interrupted};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measurements of the blockrep project
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    bin_name = "cargo xtask bench",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the disk against its bars: qemu-nbd, QEMU's mirror, a bare disk, over NBD and vhost-user
    Disk(DiskOptions),
}

fn main() -> ExitCode {
    let Command::Disk(options) = Cli::parse().command;
    match bench::disk(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("{Interrupted}");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
