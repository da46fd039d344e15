//! `blockrep-load`: see [`blockrep_tools::load`].

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use blockrep_tools::load::cli::{CheckArgs, Cli, Command, RunArgs};
use blockrep_tools::load::control::{Cutter, DaemonCutter};
use blockrep_tools::load::image::Source;
use blockrep_tools::load::log::LogReader;
use blockrep_tools::load::run::{End, Summary};
use blockrep_tools::load::{check, run};
use clap::Parser;

const EXIT_REJECTED: u8 = 1;
const EXIT_UNUSABLE: u8 = 2;
const EXIT_LOST: u8 = 3;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run_load(&args),
        Command::Check(args) => check_image(&args),
        Command::Dump { log } => dump(&log),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("blockrep-load: {error}");
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}

fn run_load(args: &RunArgs) -> Result<u8> {
    let options = args.options().map_err(anyhow::Error::msg)?;
    let cutter = match &args.control {
        Some(path) => Some(Box::new(DaemonCutter::connect(path)?) as Box<dyn Cutter>),
        None => None,
    };
    let summary = run::run(&options, cutter)?;
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        print_summary(&summary);
    }
    Ok(match (&summary.end, summary.failed) {
        (End::Done, 0) => 0,
        (End::Done, _) => EXIT_REJECTED,
        _ => EXIT_LOST,
    })
}

fn print_summary(summary: &Summary) {
    let end = match &summary.end {
        End::Done => "done".into(),
        End::ConnectionLost(reason) => format!("connection lost: {reason}"),
        End::Stalled => "the server stopped answering".into(),
        End::ControlLost(reason) => format!("control socket lost: {reason}"),
    };
    println!("{end} (run {:016x}, seed {})", summary.run, summary.seed);
    println!(
        "requests: {} submitted, {} completed, {} failed; {} flushes; {} cuts ({} refused)",
        summary.submitted,
        summary.completed,
        summary.failed,
        summary.flushes,
        summary.cuts,
        summary.cuts_refused
    );
    println!(
        "rate:     {:.0} requests/s, {:.1} MiB/s over {:.2} s",
        summary.requests_per_second,
        summary.bytes as f64 / summary.seconds.max(1e-9) / f64::from(1 << 20),
        summary.seconds
    );
}

fn check_image(args: &CheckArgs) -> Result<u8> {
    let mut source = match (&args.image, &args.nbd) {
        (Some(path), _) => Source::open_file(path)?,
        (None, Some(address)) => Source::open_nbd(address, &args.export)?,
        (None, None) => bail!("name an image with --image or --nbd"),
    };
    let report = check::check(&args.log, &mut source, &args.rules(), args.earlier_runs)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.accepted { 0 } else { EXIT_REJECTED })
}

fn dump(log: &std::path::Path) -> Result<u8> {
    let mut reader = LogReader::open(log)?;
    let mut out = BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut out, &reader.header())?;
    writeln!(out)?;
    while let Some(record) = reader.next_record()? {
        serde_json::to_writer(&mut out, &record)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(0)
}
