//! `bench disk`: this project's disk paths beside other stacks, as ratios of one run. `bench memory`: what a
//! protected guest pays.
//!
//! Exit codes: 0 measured; 2 it could not be measured; 130 interrupted.

use blockrep_tests::bench::{self, DiskOptions, Interrupted, MemoryOptions};
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
    /// Measure a protected guest against its bars: pauses, failovers and bytes, beside QEMU's own means
    Memory(MemoryOptions),
}

fn main() -> ExitCode {
    let measured = match Cli::parse().command {
        Command::Disk(options) => bench::disk(&options),
        Command::Memory(options) => bench::memory(&options),
    };
    match measured {
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
