//! `cargo xtask demo`: a whole VM loses its host in the middle of a TCP connection, and goes on.
//!
//! ```text
//!  host A ── br0 ── up0 ─┐                      ┌─ up0 ── br0 ── host B
//!  guest's tap0 ──┘      ├── bridge: switch ────┤              └── tap0 of the standby
//!                        └──────── eth0, client ┘
//!  host A ── repl0 ──────────────────────────────── repl0 ── host B
//! ```
//!
//! Hosts, switch and client are network namespaces without a name ([`stage`]). The guest runs `tests/guest/teller.rs`,
//! the client is the program `teller` of the tests package, in the clients' namespace. What protects the guest is a
//! [`protection::Protection`]; without any, the same round shows that guest, client and network are sound.

mod build;
mod client;
mod clock;
mod machine;
pub(crate) mod postgres;
mod protection;
mod round;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::{Verdict, aligned};
use crate::checkout::{Checkout, Scratch};
use crate::guest::{self, Accelerator};
use crate::kernel::{self, Contents, GuestKernel};
use crate::lab::Place;
use crate::packages::{self, Purpose};
use crate::process;
use crate::stop::minutes;
use crate::{stop, ui};
use build::Wanted;
pub(crate) use clock::{ClockOptions, run as clock};
use protection::Means;
use round::Row;
use stage::Stage;

const BUILD_LIMIT: Duration = minutes(25);
const REPORT_LIMIT: Duration = minutes(1);

/// What protects the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Kind {
    /// blockrep, netbuf and the checkpointer
    #[default]
    Checkpointer,
    /// Nothing: it runs at host A until the end, which tests guest, client and network
    None,
}

/// Damage done on purpose, which the client has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// Output is let go before the backup has its epoch.
    EarlyRelease,
    /// The memory of an epoch before is taken.
    OlderEpoch,
    /// One page in sixteen is in no checkpoint.
    SkipPage,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How often to do it all, each time with a fresh guest, killed at another moment
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Decides the random moments; without it a new one is taken and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Do damage on purpose; the demo must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
    /// Build and use optimised daemons
    #[arg(long)]
    release: bool,
    /// What protects the guest
    #[arg(long, value_enum, default_value = "checkpointer")]
    protection: Kind,
    /// Seconds that the client streams, until the kill at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Time from one checkpoint to the next
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(5..=10_000))]
    epoch_ms: u64,
    /// Cut so soon already where output waits and the guest is idle; 0 for never
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    early_ms: u64,
    /// Transactions in flight
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=16))]
    window: u64,
    /// Pages of its memory that the guest rewrites each second
    #[arg(long, default_value_t = 2_000)]
    pages_per_second: u64,
    /// Memory of the guest; both hosts and what is under way between them take about three times as much here
    #[arg(long, value_name = "MIB", default_value_t = guest::MEMORY_MIB,
        value_parser = clap::value_parser!(u32).range(256..=16_384))]
    memory_mib: u32,
}

/// What all rounds share.
#[derive(Debug)]
struct Ground<'a> {
    options: &'a Options,
    kernel: GuestKernel,
    accelerator: Accelerator,
    means: Means,
    /// Where what the rounds have shown is kept.
    out: PathBuf,
}

/// Two hosts take rights that not everybody has: what can be shown without them.
fn without_hosts(checkout: &Checkout, options: &Options, error: &anyhow::Error) -> Result<Verdict> {
    let text = format!(
        "hosts, network, memory and the guest's going on, for want of network namespaces ({error:#})"
    );
    if options.plant.is_some() || options.protection != Kind::Checkpointer {
        bail!("left out: {text}; run it as root");
    }
    ui::note(format!(
        "left out: {text}; as root it shows them. The disk alone follows, as `cargo xtask demo-disk`"
    ));
    let disk = super::Options {
        rounds: options.rounds,
        seed: options.seed,
        ack: super::Ack::Flush,
        plant: None,
        no_install: options.no_install,
        no_guest: false,
        release: options.release,
    };
    super::run(checkout, &disk, super::Under::Blockrep)
}

/// Runs it all; prints the table and writes the report.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    if let Err(error) = Stage::build() {
        return without_hosts(checkout, options, &error);
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let scratch = Scratch::new(checkout)?;
    let ground = prepare(checkout, options)?;
    let headline = ground.headline(seed);
    ui::note(&headline);
    let mut rows = Vec::new();
    for number in 1..=options.rounds {
        if options.rounds > 1 {
            ui::note(format!("round {number} of {}", options.rounds));
        }
        rows.push(ground.round(&scratch, number, seed)?);
    }
    let page = ground.report(&headline, &rows)?;
    print_all(&headline, &rows);
    println!("report: {}", page.display());
    let verdict = match rows.iter().all(Row::holds) {
        true => Verdict::Holds,
        false => Verdict::Failed,
    };
    if options.plant.is_some() {
        let found = if verdict == Verdict::Failed {
            "was found"
        } else {
            "WAS NOT FOUND"
        };
        println!("planted damage: {found}");
    }
    Ok(verdict)
}

/// Installs and builds what is needed.
fn prepare<'a>(checkout: &Checkout, options: &'a Options) -> Result<Ground<'a>> {
    packages::provide(
        checkout,
        &[Purpose::Guest, Purpose::Hosts],
        options.no_install,
    )?;
    packages::require(&[Purpose::Guest, Purpose::Hosts])?;
    let client = ("blockrep-tests", "teller");
    let wanted = Wanted {
        client: Some(client),
        protection: options.protection,
        is_release: options.release,
    };
    let (programs, checkpointer) = wanted.build(checkout, options.plant)?;
    let out = fresh_out(checkout, "demo")?;
    let contents = Contents {
        program: "teller",
        modules: &["virtio_net"],
        files: &[],
    };
    let kernel = kernel::provide_with(checkout, &contents)?;
    let accelerator = guest::accelerator(checkout, &kernel)?;
    Ok(Ground {
        options,
        kernel,
        accelerator,
        means: Means {
            programs,
            checkpointer,
            plant: options.plant,
            interval_ms: Some(options.epoch_ms),
            early_ms: options.early_ms,
            silence_ms: None,
        },
        out,
    })
}

impl Ground<'_> {
    fn headline(&self, seed: u64) -> String {
        let protection = match self.options.protection {
            Kind::Checkpointer => format!("checkpoints every {} ms", self.options.epoch_ms),
            Kind::None => "NO protection".to_owned(),
        };
        format!(
            "whole VM, {protection}; {} transactions in flight; guest Linux {} under {}, {} MiB; seed {seed}",
            self.options.window,
            self.kernel.version,
            self.accelerator.name(),
            self.options.memory_mib
        )
    }

    /// One round in a directory of its own, which is gone afterwards; logs stay if it failed.
    fn round(&self, scratch: &Scratch, number: u32, seed: u64) -> Result<Row> {
        let dir = scratch.round(&format!("whole-{number}"))?;
        let place = Place {
            dir: dir.clone(),
            sockets: scratch.socket(&format!("{number}-")),
        };
        let kept = self.out.join(format!("round-{number}"));
        std::fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
        let random = fastrand::Rng::with_seed(seed.wrapping_add(u64::from(number)));
        let row = round::run(self, &place, &kept, random);
        let is_failed = match &row {
            Ok(row) => !row.holds(),
            Err(error) => !error.is::<stop::Interrupted>(),
        };
        if is_failed {
            let logs = scratch.keep_logs(&dir)?;
            ui::note(format!(
                "the logs of this round are kept in {}",
                logs.display()
            ));
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        row
    }

    fn report(&self, headline: &str, rows: &[Row]) -> Result<PathBuf> {
        let page = self.out.join("whole.html");
        let mut command = self.means.programs.command("teller");
        command
            .args(["report", "--title", headline, "--out"])
            .arg(&page);
        command.args(rows.iter().map(|row| &row.kept));
        let said = process::run(&mut command, &self.out.join("report.log"), REPORT_LIMIT)?;
        said.success("teller report")?;
        Ok(page)
    }
}

fn print_all(headline: &str, rows: &[Row]) {
    println!("\n{headline}");
    let lines = rows.iter().enumerate().map(|(at, row)| row.cells(at + 1));
    let cells: Vec<Vec<String>> = std::iter::once(Row::head()).chain(lines).collect();
    print!("{}", aligned(&cells));
    for (at, row) in rows.iter().enumerate() {
        for fault in &row.faults {
            println!("round {}: {fault}", at + 1);
        }
    }
    let held = rows.iter().filter(|row| row.holds()).count();
    println!("{held} of {} hold", ui::count(rows.len(), "round"));
}

/// An empty directory for what the rounds show.
fn fresh_out(checkout: &Checkout, name: &str) -> Result<PathBuf> {
    let out = checkout.metadata()?.target_dir()?.join(name);
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("remove {}", out.display()))?;
    }
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    Ok(out)
}
