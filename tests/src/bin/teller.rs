//! `teller`: the client of the whole demo, and the report of its rounds; see [`blockrep_tests::teller`].
//!
//! Started by `cargo xtask demo`, the client inside the clients' network.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use blockrep_host::signals::Shutdown;
use blockrep_tests::teller::{self, Options, Progress};
use clap::{Args, Parser, Subcommand};

/// Streams transactions to a guest that survives its host, and judges what it was promised.
#[derive(Debug, Parser)]
#[command(name = "teller", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stream over one connection until SIGTERM or the time is over, read all back, judge
    Client(ClientArgs),
    /// Write the HTML page of rounds
    Report {
        #[arg(long, default_value = "blockrep: a whole VM that survives its host")]
        title: String,
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Directories with client.json, and round.json and epochs.json where there are such
        #[arg(required = true)]
        rounds: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct ClientArgs {
    /// The guest
    #[arg(long, value_name = "IP:PORT")]
    address: SocketAddr,
    /// The ledger's run, as the guest was told
    #[arg(long)]
    run: u64,
    /// What is in the transactions follows from it
    #[arg(long)]
    seed: u64,
    /// Transactions in flight
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=16))]
    window: u64,
    /// How long to stream
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// A guest that answers nothing for so long is lost
    #[arg(long, default_value_t = 30)]
    stall_seconds: u64,
    /// How long the first connection may take
    #[arg(long, default_value_t = 60)]
    connect_seconds: u64,
    /// What was seen, as JSON
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

const EXIT_CODES: &str = "Exit codes:
  0  all that was promised is there
  1  it is not, or the connection did not hold
  2  wrong usage, or nothing could be run";

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Client(args) => client(&args),
        Command::Report { title, out, rounds } => {
            teller::report(&title, &rounds, &out).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("teller: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn client(args: &ClientArgs) -> Result<bool> {
    let shutdown = Shutdown::install()?;
    let options = Options {
        address: args.address,
        run: args.run,
        seed: args.seed,
        // At most 16.
        window: usize::try_from(args.window)?,
        time: Duration::from_secs(args.seconds),
        stall: Duration::from_secs(args.stall_seconds),
        connect: Duration::from_secs(args.connect_seconds),
    };
    let mut tell = |progress: &Progress| {
        println!(
            "answered {} silent_ms {} longest_gap_ms {}",
            progress.answered,
            progress.silent.as_millis(),
            progress.longest_gap.as_millis()
        );
    };
    let outcome = teller::run(&options, &|| shutdown.requested(), &mut tell)?;
    outcome.write(&args.out)?;
    println!("{}", outcome.summary);
    for fault in &outcome.faults {
        println!("FAULT {fault}");
    }
    Ok(outcome.faults.is_empty())
}
