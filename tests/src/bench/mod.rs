//! `bench disk`: the same load on several stacks, interleaved, told as ratios.
//!
//! A *point* is one workload on one freshly started stack. Every round measures every point once,
//! stack after stack within a workload, so that whatever else the machine does hits all of them
//! alike; the figure of a stack is the median over the rounds, and its ratios are medians of the
//! ratios within each round. Figures of different runs, let alone machines, do not compare.
//!
//! ```text
//!   plan ──► stack (processes, sockets) ──► load (fio, ring) ──► samples of /proc and status
//!                                             points of all rounds ──► bars ──► report
//! ```

mod append;
mod bars;
mod fio;
mod load;
mod memory;
mod plan;
mod point;
mod qmp;
mod replica;
mod report;
mod sample;
mod stack;
mod stats;
mod vhost;
mod workload;

pub use memory::{MemoryOptions, memory};
pub use plan::Family;

use crate::harness::{Process, binary};
use anyhow::{Context, Result, ensure};
use clap::Args;
use plan::StackKind;
use point::{Bench, Point};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use workload::Workload;

/// Somebody pressed Ctrl-C: everything was cleaned up.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted; processes and files of the bench are gone")
    }
}

impl std::error::Error for Interrupted {}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub struct DiskOptions {
    /// Seconds of load per point
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Rounds; every round measures every point once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Size of each image in MiB; fully written before the first round
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    pub size_mib: u64,
    /// Journal of the burst points in MiB: they write less than this
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    pub burst_journal_mib: u64,
    /// Journal of the sustained points in MiB: they write three times this or more
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    pub sustained_journal_mib: u64,
    /// Milliseconds from cut to cut of the protected stacks
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub epoch_ms: u64,
    /// Only these families of bars; repeatable [default: all but extra]
    #[arg(long, value_name = "FAMILY")]
    pub only: Vec<Family>,
    /// Only stacks whose names contain this; repeatable
    #[arg(long, value_name = "WORD")]
    pub stack: Vec<String>,
    /// Only workloads whose names contain this; repeatable
    #[arg(long, value_name = "WORD")]
    pub workload: Vec<String>,
    /// Where to write disk.md, disk.json and charts; images stand in a directory there meanwhile
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
}

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// Measures and reports.
///
/// # Errors
/// A needed program is missing, a stack does not come up, or [`Interrupted`].
pub fn disk(options: &DiskOptions) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catching signals")?;
    }
    build_daemons()?;
    fio::check()?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("creating {}", options.out.display()))?;
    let work = tempfile::Builder::new()
        .prefix("work-")
        .tempdir_in(&options.out)
        .context("a directory for the images")?;
    let families = if options.only.is_empty() {
        Family::usual()
    } else {
        options.only.clone()
    };
    let (plan, skipped) = choose(options, &families)?;
    for text in &skipped {
        println!("skipped: {text}");
    }
    let bench = Bench {
        dir: work.path().canonicalize()?,
        options: options.clone(),
        stop,
    };
    make_images(&bench)?;
    let points = measure(&bench, &plan)?;
    let bars = bars::table(&points, &families);
    let report = report::Report::new(options, points, bars, skipped);
    print!("{}", report.text());
    report.write(&options.out)?;
    println!(
        "\nwritten: {}, disk.json and charts beside it",
        options.out.join("disk.md").display()
    );
    Ok(())
}

/// Workloads, and the stacks to measure under each.
type Plan = Vec<(Workload, Vec<StackKind>)>;

/// What is to be measured, and a line for each stack that cannot be.
fn choose(options: &DiskOptions, families: &[Family]) -> Result<(Plan, Vec<String>)> {
    let wanted =
        |name: &str, words: &[String]| words.is_empty() || words.iter().any(|w| name.contains(w));
    let mut skipped = Vec::new();
    let mut plan = Vec::new();
    for workload in Workload::ALL {
        if !wanted(workload.name(), &options.workload) {
            continue;
        }
        let mut stacks = plan::stacks(workload, families);
        stacks.retain(|kind| {
            let missing = kind.missing();
            let line = missing
                .as_ref()
                .map(|why| format!("{}: {why}", kind.name()));
            skipped.extend(line.filter(|line| !skipped.contains(line)));
            missing.is_none() && wanted(kind.name(), &options.stack)
        });
        if !stacks.is_empty() {
            plan.push((workload, stacks));
        }
    }
    ensure!(!plan.is_empty(), "nothing is left to be measured");
    Ok((plan, skipped))
}

/// Builds what is measured, when cargo started us; else the programs beside us are taken.
fn build_daemons() -> Result<()> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut command = Command::new(cargo);
        command.args(["build", "-p", "blockrep", "-p", "blockrep-tools"]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        let status = command.status().context("starting cargo")?;
        ensure!(status.success(), "the daemons do not build");
    }
    if cfg!(debug_assertions) {
        eprintln!("warning: not a release build, the figures mean little: cargo xtask bench disk");
    }
    for name in ["blockrep", "blockrep-backup", "blockrepctl"] {
        binary(name)?;
    }
    Ok(())
}

/// Three files, written once from end to end: nothing measured allocates.
fn make_images(bench: &Bench) -> Result<()> {
    let block = vec![0xa5_u8; 4 << 20];
    for name in plan::FILES {
        let path = bench.dir.join(name);
        println!(
            "writing {} MiB to {}",
            bench.options.size_mib,
            path.display()
        );
        let mut file = std::fs::File::create(&path)?;
        let mut left = bench.options.size_mib * MIB;
        while left > 0 {
            bench.check_stop()?;
            let bytes = left.min(block.len() as u64);
            file.write_all(&block[..usize::try_from(bytes)?])
                .with_context(|| format!("writing {}", path.display()))?;
            left -= bytes;
        }
        file.sync_all()?;
    }
    Ok(())
}

fn measure(bench: &Bench, plan: &Plan) -> Result<Vec<Point>> {
    let per_round = plan.iter().map(|(_, stacks)| stacks.len()).sum::<usize>();
    let total = per_round * bench.options.rounds as usize;
    let mut points: Vec<Point> = Vec::new();
    let since = Instant::now();
    for round in 0..bench.options.rounds {
        for (workload, stacks) in plan {
            for kind in stacks {
                bench.check_stop()?;
                let point = bench
                    .point(round, *workload, *kind, &points)
                    .with_context(|| format!("{} on {}", workload.name(), kind.name()))?;
                println!(
                    "[{}/{total} {} s] {}",
                    points.len() + 1,
                    since.elapsed().as_secs(),
                    point.line()
                );
                points.push(point);
            }
        }
    }
    Ok(points)
}

impl Bench {
    /// # Errors
    /// [`Interrupted`], when a signal came.
    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    /// Waits for something, looking every few milliseconds; false when it did not come in time.
    fn wait_for(&self, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
        let end = Instant::now() + limit;
        while !done()? {
            self.check_stop()?;
            if Instant::now() > end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(true)
    }

    /// Waits until a process has made its socket.
    fn wait_socket(&self, process: &mut Process, socket: &Path) -> Result<()> {
        let limit = Duration::from_secs(30);
        let up = self.wait_for(limit, || {
            ensure!(
                process.is_running(),
                "{} ended: {}",
                process.name,
                process.text().trim()
            );
            Ok(std::os::unix::net::UnixStream::connect(socket).is_ok())
        })?;
        ensure!(up, "{} does not open {}", process.name, socket.display());
        Ok(())
    }
}
