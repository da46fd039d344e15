//! `cargo xtask postgres`: Debian's PostgreSQL in a guest that loses its host, with clients that keep their connections.
//!
//! The stage and what protects the guest are the demo's. The guest's one disk holds a Debian system, server and database
//! ([`image`]); clients are Debian's psql ([`clients`]). Afterwards every acknowledged transaction is read back, balances are
//! compared and pg_amcheck looks at all tables and indexes ([`judge`]).

mod clients;
mod compile;
mod contents;
mod image;
mod judge;
mod round;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::build::Wanted;
use super::machine::Machine;
use super::protection::{self, Means, Protection, Scene};
use super::stage::{GUEST, Stage};
use super::{Kind, Plant};
use crate::checkout::{Checkout, Scratch};
use crate::demo::{Verdict, aligned};
use crate::guest::{self, Accelerator};
use crate::kernel::{self, Contents, GuestKernel};
use crate::lab::Place;
use crate::packages::{self, Purpose};
use crate::stop::minutes;
use crate::{stop, ui};
use image::Debian;
use round::Row;

const MEMORY_MIB: u32 = 384;
/// A server that was not stopped in order is there later than one that was.
const BOOT_LIMIT: Duration = minutes(5);
/// The disk is read whole by both sides and compared.
const PROTECTED_LIMIT: Duration = minutes(6);
/// What is sent should not be more than this part of what was written.
const RATIO_BAR: f64 = 0.4;

/// What keeps the guest busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// PostgreSQL with four clients, whose transactions are pgbench's
    Pgbench,
    /// gcc on a file of some thousand lines, again and again; each object must be the same
    Compile,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How often to do it all, each time with a fresh guest, killed at another moment
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Decides the random moments and amounts; without it a new one is taken and printed
    #[arg(long)]
    seed: Option<u64>,
    /// Do damage on purpose; it must then fail
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
    /// Seconds under load, until the kill at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Time from one checkpoint to the next
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(5..=10_000))]
    epoch_ms: u64,
    /// What keeps the guest busy
    #[arg(long, value_enum, default_value = "pgbench")]
    load: Load,
}

/// What all rounds share.
#[derive(Debug)]
struct Ground<'a> {
    options: &'a Options,
    kernel: GuestKernel,
    accelerator: Accelerator,
    debian: Debian,
    means: Means,
    out: PathBuf,
    words: String,
}

/// Runs it all; prints the table.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let stage = Stage::build();
    drop(stage.context("this takes network namespaces: run it as root")?);
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let scratch = Scratch::new(checkout)?;
    let purposes = [Purpose::Guest, Purpose::Hosts];
    packages::provide(checkout, &purposes, options.no_install)?;
    packages::require(&purposes)?;
    let wanted = Wanted {
        client: None,
        protection: options.protection,
        is_release: options.release,
    };
    let (programs, checkpointer) = wanted.build(checkout, options.plant)?;
    let debian = image::provide(checkout)?;
    let contents = Contents {
        program: "debian",
        modules: &["virtio_net"],
        files: &[],
    };
    let kernel = kernel::provide_with(checkout, &contents)?;
    let accelerator = guest::accelerator(checkout, &kernel)?;
    let (program, user) = (options.load.program(), image::USER);
    let ground = Ground {
        options,
        kernel,
        accelerator,
        debian,
        means: Means {
            programs,
            checkpointer,
            plant: options.plant,
            interval_ms: Some(options.epoch_ms),
            early_ms: 5,
            silence_ms: None,
        },
        out: super::fresh_out(checkout, "postgres")?,
        words: format!("role=debian run={program} user={user} address={GUEST} no_timer_check"),
    };
    let headline = ground.headline(seed);
    ui::note(&headline);
    let mut rows = Vec::new();
    for number in 1..=options.rounds {
        if options.rounds > 1 {
            ui::note(format!("round {number} of {}", options.rounds));
        }
        rows.push(ground.round(&scratch, number, seed)?);
    }
    Ok(conclude(&headline, &rows, options))
}

impl Load {
    fn program(self) -> &'static str {
        match self {
            Self::Pgbench => contents::SERVE,
            Self::Compile => contents::COMPILE,
        }
    }
}

impl Ground<'_> {
    fn headline(&self, seed: u64) -> String {
        let protection = match self.options.protection {
            Kind::Checkpointer => format!("checkpoints every {} ms", self.options.epoch_ms),
            Kind::None => "NO protection".to_owned(),
        };
        let load = match self.options.load {
            Load::Pgbench => format!(
                "PostgreSQL {}, {} clients",
                self.debian.version,
                clients::CONNECTIONS
            ),
            Load::Compile => "gcc in a loop".to_owned(),
        };
        format!(
            "{load}; {protection}; guest Linux {} under {}, {MEMORY_MIB} MiB; seed {seed}",
            self.kernel.version,
            self.accelerator.name()
        )
    }

    fn machine(&self) -> Machine<'_> {
        Machine {
            kernel: &self.kernel,
            accelerator: self.accelerator,
            memory_mib: MEMORY_MIB,
            words: &self.words,
            image: Some(&self.debian.image),
            boot_limit: BOOT_LIMIT,
            protected_limit: PROTECTED_LIMIT,
        }
    }

    fn protection<'a>(&self, scene: Scene<'a>) -> Result<Box<dyn Protection + 'a>> {
        Ok(match self.options.protection {
            Kind::None => Box::new(protection::Unprotected::new(scene)),
            Kind::Checkpointer => Box::new(protection::Checkpointer::new(scene)?),
        })
    }

    /// One round in a directory of its own, which is gone afterwards; logs stay if it failed.
    fn round(&self, scratch: &Scratch, number: u32, seed: u64) -> Result<Row> {
        let dir = scratch.round(&format!("postgres-{number}"))?;
        let place = Place {
            dir: dir.clone(),
            sockets: scratch.socket(&format!("{number}-")),
        };
        let kept = self.out.join(format!("round-{number}"));
        std::fs::create_dir_all(&kept).with_context(|| format!("create {}", kept.display()))?;
        let random = fastrand::Rng::with_seed(seed.wrapping_add(u64::from(number)));
        let row = match self.options.load {
            Load::Pgbench => round::run(self, &place, &kept, random),
            Load::Compile => compile::run(self, &place, &kept, random),
        };
        let is_failed = match &row {
            Ok(row) => !row.faults.is_empty(),
            Err(error) => !error.is::<stop::Interrupted>(),
        };
        if is_failed {
            let logs = scratch.keep_logs(&dir)?;
            let logs = logs.display();
            ui::note(format!("the logs of this round are kept in {logs}"));
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        row
    }
}

fn conclude(headline: &str, rows: &[Row], options: &Options) -> Verdict {
    println!("\n{headline}");
    let lines = rows.iter().enumerate().map(|(at, row)| row.cells(at + 1));
    let cells: Vec<Vec<String>> = std::iter::once(Row::head(options.load))
        .chain(lines)
        .collect();
    print!("{}", aligned(&cells));
    for (at, row) in rows.iter().enumerate() {
        if let Some(ratio) = row.wire.ratio() {
            let (wire, how) = (
                row.wire,
                if ratio <= RATIO_BAR {
                    "within"
                } else {
                    "above"
                },
            );
            println!(
                "round {}: sent {ratio:.3} of what was written and not zero ({how} the bar of {RATIO_BAR}): {} KiB for {} pages, \
                 {} of them zeros, in {} checkpoints",
                at + 1,
                wire.bytes / 1024,
                wire.pages,
                wire.zero_pages,
                wire.epochs
            );
        }
        for fault in &row.faults {
            println!("round {}: {fault}", at + 1);
        }
    }
    let held = rows.iter().filter(|row| row.faults.is_empty()).count();
    println!("{held} of {} hold", ui::count(rows.len(), "round"));
    let verdict = match held == rows.len() {
        true => Verdict::Holds,
        false => Verdict::Failed,
    };
    if options.plant.is_some() {
        let found = match verdict {
            Verdict::Failed => "was found",
            Verdict::Holds => "WAS NOT FOUND",
        };
        println!("planted damage: {found}");
    }
    verdict
}
