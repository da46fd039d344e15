//! `bench memory`: what a protected guest pays, against fixed bars, beside QEMU's own means.
//!
//! ```text
//!  round:  Linux 256 MiB          the same, with a screen    boot sector 1 GiB        failovers
//!          bare pauses, protected  bare pauses, protected     live migration, dirty    each with a guest of its own
//!                     └──── of one process, so that ratios are of one guest ────┘
//! ```
//! Daemons, guests and standbys are real and on this machine, which they share: on a quiet machine with more
//! processors figures are lower.

mod bare;
mod failover;
mod machine;
mod pauses;
mod record;
mod report;
mod stage;
mod wire;

use super::Interrupted;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// From one checkpoint to the next.
const EPOCH_MS: u64 = 25;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// What a checkpoint costs the guest
    Pauses,
    /// From the decision until the guest runs at the other host
    Failovers,
    /// Bytes on the wire
    Wire,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub struct MemoryOptions {
    /// Rounds of pauses; each starts its guests anew
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Failovers of a guest of 1 GiB; the bar wants 50
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub failovers: u32,
    /// Seconds of checkpoints per point
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Linux kernel of the idle guest; without it a guest of one boot sector is idle
    #[arg(long, value_name = "FILE", requires = "initramfs")]
    pub kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE", requires = "append")]
    pub initramfs: Option<PathBuf>,
    /// Its command line; it says LEDGER-READY when it is idle
    #[arg(long, value_name = "WORDS")]
    pub append: Option<String>,
    /// Only this
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<Part>,
    /// Where to write memory.md, memory.json and a chart
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
}

/// A Linux that does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kernel {
    image: PathBuf,
    initramfs: PathBuf,
    append: String,
}

/// What a run has.
#[derive(Debug)]
struct Run {
    options: MemoryOptions,
    kernel: Option<Kernel>,
    stop: Arc<AtomicBool>,
    begun: Instant,
}

impl Run {
    /// # Errors
    /// [`Interrupted`], when a signal came.
    fn check_stop(&self) -> Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Interrupted.into()),
            false => Ok(()),
        }
    }

    /// Says what is done.
    fn say(&self, text: &str) {
        println!("[{:>3} s] {text}", self.begun.elapsed().as_secs());
    }
}

/// Measures and reports.
///
/// # Errors
/// QEMU is missing, something does not come up, or [`Interrupted`].
pub fn memory(options: &MemoryOptions) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catching signals")?;
    }
    qemu()?;
    build()?;
    let kernel = match (&options.kernel, &options.initramfs, &options.append) {
        (Some(image), Some(initramfs), Some(append)) => Some(Kernel {
            image: image.clone(),
            initramfs: initramfs.clone(),
            append: append.clone(),
        }),
        _ => None,
    };
    let run = Run {
        options: options.clone(),
        kernel,
        stop,
        begun: Instant::now(),
    };
    std::fs::create_dir_all(&run.options.out)
        .with_context(|| format!("creating {}", run.options.out.display()))?;
    let load_before = load();
    let is_wanted = |part| options.only.is_none_or(|only| only == part);
    let mut rounds = Vec::new();
    if is_wanted(Part::Pauses) {
        for round in 1..=options.rounds {
            run.say(&format!("round {round} of {}", options.rounds));
            rounds.push(pauses::round(&run)?);
        }
    }
    let failovers = match is_wanted(Part::Failovers) {
        true => failover::all(&run)?,
        false => Vec::new(),
    };
    let wire = match is_wanted(Part::Wire) {
        true => wire::all(&run)?,
        false => Vec::new(),
    };
    let conditions = report::Conditions::new(&run, load_before, load());
    let report = report::Report::new(conditions, &rounds, &failovers, &wire);
    print!("{}", report.markdown());
    report.write(&options.out)?;
    let path = options.out.join("memory.md");
    println!(
        "\nwritten: {}, memory.json and a chart beside it",
        path.display()
    );
    Ok(())
}

/// The program.
fn qemu() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("qemu-system-x86_64"));
    let found = found.into_iter().find(|program| program.is_file());
    found.context("qemu-system-x86_64 is not installed: cargo xtask install guest")
}

/// Work that waited for a processor, over the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// Builds what is measured, when cargo started us; else the programs beside us are taken.
fn build() -> Result<()> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.args(["build", "-p", "blockrep", "-p", "checkpointer", "--bins"]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        let status = command.status().context("starting cargo")?;
        ensure!(status.success(), "the daemons do not build");
    }
    if cfg!(debug_assertions) {
        eprintln!(
            "warning: not a release build, the figures mean little: cargo xtask bench memory"
        );
    }
    Ok(())
}
