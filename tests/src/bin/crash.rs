//! `crash`: see [`blockrep_tests::crash`].

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use blockrep_host::signals::Shutdown;
use blockrep_tests::crash::{self, Options, Phase};
use clap::Parser;

/// Kills and stops real daemons under load, and judges what the promoted side holds.
#[derive(Debug, Parser)]
#[command(name = "crash", version, after_help = EXIT_CODES)]
struct Cli {
    /// Rounds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Seed of the first round, each further one takes the next; drawn if not given
    #[arg(long)]
    seed: Option<u64>,
    /// This phase only
    #[arg(long, value_name = "NAME")]
    phase: Option<Phase>,
    /// Rounds at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
    jobs: u64,
    /// Keep images, journals and logs of good rounds, too
    #[arg(long)]
    keep: bool,
}

const EXIT_CODES: &str = "Exit codes:
  0  every round was good
  1  a promise was broken, or a round could not be ended
  2  wrong usage, or nothing could be run";

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let stop = Shutdown::install()?;
    let options = Options {
        rounds: cli.rounds,
        // Small enough to be typed.
        seed: cli.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
        phase: cli.phase,
        jobs: cli.jobs,
        keep: cli.keep,
    };
    println!("{} rounds from seed {}", options.rounds, options.seed);
    let begun = Instant::now();
    let outcomes = crash::run(&options, &stop, &|line| println!("{line}"))?;
    println!("{}", crash::summary(&outcomes, begun.elapsed()));
    let whole = outcomes.len() as u64 == options.rounds;
    if !whole {
        println!("stopped early");
    }
    Ok(whole && outcomes.iter().all(|outcome| outcome.result.is_ok()))
}
