//! `soak`: see [`blockrep_tests::soak`].

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use blockrep_host::signals::Shutdown;
use blockrep_tests::soak::{self, Mode, Options, Policy};
use clap::Parser;

/// Holds back-pressure for minutes; memory must stay under the bound that status names before.
#[derive(Debug, Parser)]
#[command(name = "soak", version, after_help = EXIT_CODES)]
struct Cli {
    /// How long back-pressure is held
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What of the backup is throttled to 2 MB/s
    #[arg(long, value_enum, default_value_t = Mode::Apply)]
    mode: Mode,
    /// What the primary does when the backup cannot follow
    #[arg(long, value_enum, default_value_t = Policy::Pause)]
    policy: Policy,
    /// Seed of the loads
    #[arg(long)]
    seed: Option<u64>,
    /// Keep images, journals and logs
    #[arg(long)]
    keep: bool,
}

const EXIT_CODES: &str = "Exit codes:
  0  bounds and promises held
  1  they did not
  2  wrong usage, or the soak could not be done to the end";

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let stop = Shutdown::install()?;
    let hold = Duration::try_from_secs_f64(cli.minutes * 60.0).context("--minutes")?;
    let options = Options {
        hold,
        mode: cli.mode,
        policy: cli.policy,
        seed: cli.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
    };
    let dir = tempfile::Builder::new()
        .prefix("blockrep-soak-")
        .tempdir()?;
    let result = soak::run(options, dir.path(), &stop);
    let good = matches!(&result, Ok(outcome) if outcome.faults.is_empty());
    if cli.keep || (!good && !stop.requested()) {
        println!("all of it: {}", dir.keep().display());
    }
    let outcome = result?;
    println!("{}", soak::table(&options, &outcome));
    Ok(outcome.faults.is_empty())
}
