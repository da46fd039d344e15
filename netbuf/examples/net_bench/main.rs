//! What holding a guest's frames costs: the load and the witness of `cargo xtask bench net`.
//!
//! ```text
//!   guest's namespace          this one                       witness's namespace
//!   load ─ g0 ════════ g1 ──(nothing, relay, plug)── bridge ─ w0 ════════ w1 ─ witness
//! ```
//!
//! One way after the other in every round, each on interfaces made anew; between g1 and the bridge stands
//! what the daemon puts there (`netbuf::hold`), walls and all. The same program runs on this machine and in a
//! guest whose kernel has the plug. Every figure is a line that begins with `BENCH-NET`, for whoever reads it.
//!
//! Times are the kernel's: of a frame, when it came in at w1 (`SO_TIMESTAMPNS`); of an order, when this program
//! was about to give it. So no figure has a witness's wake-up in it.

mod delay;
mod dissect;
mod memory;
mod rate;
mod site;
mod stream;
mod wire;

use clap::Parser;
use serde_json::{Map, Value, json};
use site::{Site, Way};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Load and witness of `cargo xtask bench net`.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; every round measures every point once
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// What stands between guest and bridge
    #[arg(long, value_delimiter = '+', default_value = "nothing+relay")]
    ways: Vec<Way>,
    /// Milliseconds that one rate is measured
    #[arg(long, default_value_t = 1000)]
    run_ms: u64,
    /// Epochs of every delay
    #[arg(long, default_value_t = 200)]
    epochs: u64,
    /// Lengths of the epochs, in milliseconds
    #[arg(long, value_delimiter = '+', default_value = "5+10+25+50+100")]
    epoch_ms: Vec<u64>,
    /// Frames per second of the load at which the processor's time is taken
    #[arg(long, default_value_t = 20_000)]
    paced: u64,
    /// The daemon whose memory is measured
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// What it may hold then, in MiB
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2000))]
    limit_mib: u32,
    /// Only: where the time of a plug's RELEASE goes
    #[arg(long)]
    dissect: bool,
}

impl Options {
    fn run(&self) -> Duration {
        Duration::from_millis(self.run_ms)
    }
}

/// Named figures of one point.
type Figures = Vec<(&'static str, f64)>;

fn tell(round: u32, way: Way, point: &str, figures: Figures) -> io::Result<()> {
    let figures: Map<String, Value> = figures
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    let line = json!({"round": round, "way": way.word(), "point": point, "figures": figures});
    let mut out = io::stdout().lock();
    writeln!(out, "BENCH-NET {line}")?;
    out.flush()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    // Before the first thread: all of them are in it.
    site::leave_the_hosts_network()?;
    for round in 1..=options.rounds {
        if options.dissect {
            dissect_release(round, options.epochs)?;
            continue;
        }
        // Another one first in every round.
        let first = round as usize % options.ways.len();
        for &way in options
            .ways
            .iter()
            .cycle()
            .skip(first)
            .take(options.ways.len())
        {
            measure(round, way, &options)?;
        }
    }
    Ok(())
}

fn dissect_release(round: u32, epochs: u64) -> Result<(), Box<dyn std::error::Error>> {
    tell(
        round,
        Way::Nothing,
        "hop",
        delay::hop(&mut Site::new(Way::Nothing)?, epochs)?,
    )?;
    for (manner, figures) in dissect::release(&mut Site::new(Way::Plug)?, epochs)? {
        tell(round, Way::Plug, manner, figures)?;
    }
    Ok(())
}

/// Every point of one way.
fn measure(round: u32, way: Way, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let say = |point: &str, figures| tell(round, way, point, figures);
    let fresh = || Site::new(way);
    say("hop", delay::hop(&mut fresh()?, options.epochs)?)?;
    say("burst", delay::burst(&mut fresh()?, options.epochs)?)?;
    if way != Way::Nothing {
        say("release", delay::release(&mut fresh()?, options.epochs)?)?;
        for &epoch_ms in &options.epoch_ms {
            let figures = delay::epochs(&mut fresh()?, epoch_ms, options.epochs / 10)?;
            say(&format!("epochs-{epoch_ms}"), figures)?;
        }
    }
    for (bytes, name) in [(60, "small"), (1514, "full")] {
        let figures = rate::flood(&mut fresh()?, bytes, options.run(), None)?;
        say(&format!("{name}-open"), figures)?;
        let figures = rate::paced(&mut fresh()?, bytes, options.run(), options.paced)?;
        say(&format!("{name}-paced"), figures)?;
        if way != Way::Nothing {
            let figures = rate::flood(&mut fresh()?, bytes, options.run(), Some(25))?;
            say(&format!("{name}-held"), figures)?;
        }
    }
    for (offload, name) in [(true, "tcp"), (false, "tcp-1500")] {
        let figures = stream::stream(&mut fresh()?, offload, options.run())?;
        say(name, figures)?;
    }
    if let (Some(daemon), true) = (&options.daemon, way != Way::Nothing) {
        say("memory", memory::daemon(daemon, way, options.limit_mib)?)?;
    }
    Ok(())
}
