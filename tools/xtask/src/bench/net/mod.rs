//! `cargo xtask bench net`: what holding a guest's frames costs, for relay and plug beside nothing.
//!
//! ```text
//!   on this kernel             nothing   relay         all points, one way after the other in every round
//!   in a guest's kernel        nothing   plug          the same; an emulated processor: ratios only
//! ```
//!
//! Load and witness are one program (`netbuf/examples/net_bench`), which runs here in namespaces of its own and
//! in a guest whose kernel has `sch_plug`. Ratios are made within a round of one kernel.

mod bars;
mod chart;
mod charts;
mod figures;
mod report;
mod whole;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::checkout::{Checkout, built_program, find_program};
use crate::demo::Verdict;
use crate::guest::{self, Boot, Guest, Word};
use crate::packages::{self, Purpose};
use crate::stop::minutes;
use crate::{net, process, ui};
use figures::{Figures, Ground};
use report::{Conditions, Report};

/// The load needs room for what the plug holds at its limit, each frame in a buffer of the kernel's.
const MEMORY_MIB: u32 = 1024;

/// A measurement is wanted on a busy machine, too.
const BOOT: Duration = minutes(6);

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Rounds; every round measures every point once [default: 5, in the guest's kernel as many as 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// One round of the shortest points: it shows that all of it runs, its figures mean little
    #[arg(long)]
    quick: bool,
    /// Only on this machine's kernel: no plug, where that has none
    #[arg(long)]
    no_guest: bool,
    /// Only in the guest's kernel: no relay
    #[arg(long, conflicts_with = "no_guest")]
    only_guest: bool,
    /// Only where the time from RELEASE to the first frame goes, in the guest's kernel
    #[arg(long, conflicts_with = "no_guest")]
    dissect: bool,
    /// Where to write net.md, net.json and charts [default: `bench` in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
}

/// The two programs that cargo builds for it.
struct Built {
    bench: PathBuf,
    daemon: PathBuf,
}

/// Measures and reports.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let out = match &options.out {
        Some(out) => out.clone(),
        None => checkout.metadata()?.target_dir()?.join("bench"),
    };
    let mut skipped = Vec::new();
    if options.no_guest {
        skipped.push("plug: no guest was wanted".to_owned());
    } else {
        packages::provide(checkout, &[Purpose::Guest], options.no_install)?;
    }
    let dir = checkout.work().join("run/net");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let step = ui::step("building netbuf and its load");
    let built = build(checkout, &dir.join("build.log"))?;
    step.done("");
    let mut figures = Figures::default();
    match possible() {
        _ if options.only_guest || options.dissect => {
            skipped.push("relay: only the guest was wanted".to_owned())
        }
        Ok(()) => figures.extend(here(&built, options, &dir)?),
        Err(why) => skipped.push(format!("relay: {why}")),
    }
    let mut kernel = None;
    if !options.no_guest {
        let (version, more) = in_guest(checkout, &built, options, &dir)?;
        kernel = Some(version);
        figures.extend(more);
    }
    if options.dissect {
        print!("{}", figures.lines());
        return Ok(Verdict::Holds);
    }
    for text in &skipped {
        println!("skipped: {text}");
    }
    let report = Report::new(
        Conditions {
            guest_kernel: kernel,
            skipped,
            quick: options.quick,
        },
        figures,
    );
    let text = report.markdown();
    print!("\n{text}");
    report.write(&out, &text)?;
    println!(
        "\nwritten: {}, net.json and charts beside it",
        out.join("net.md").display()
    );
    let missing = report.missing();
    if !missing.is_empty() {
        bail!("not measured: {}", missing.join("; "));
    }
    whole::check_charts(&out, &report.ways())?;
    Ok(Verdict::Holds)
}

/// Why nothing can be measured on this machine's kernel.
fn possible() -> Result<(), &'static str> {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Err("needs root");
    }
    find_program("ip")
        .map(drop)
        .ok_or("needs ip (Debian package iproute2)")
}

fn words(options: &Options, ground: Ground, built: &Built) -> Vec<String> {
    let rounds = match (options.rounds, options.quick, ground) {
        (Some(rounds), _, _) => rounds,
        (None, true, _) => 1,
        (None, false, Ground::Here) => 5,
        (None, false, Ground::Guest) => 3,
    };
    let (ways, paced, limit_mib) = match ground {
        Ground::Here => ("nothing+relay", 20_000, 64),
        // An emulated processor has to sleep as well, and fills no 64 MiB within a minute.
        Ground::Guest => ("nothing+plug", 2000, 4),
    };
    let mut words = vec![
        format!("--rounds={rounds}"),
        format!("--ways={ways}"),
        format!("--paced={paced}"),
        format!("--limit-mib={limit_mib}"),
        format!("--daemon={}", built.daemon.display()),
    ];
    if options.dissect {
        words.push("--dissect".to_owned());
    }
    if options.quick {
        words.extend(["--run-ms=100", "--epochs=20", "--epoch-ms=5+25"].map(str::to_owned));
    }
    words
}

fn here(built: &Built, options: &Options, dir: &Path) -> Result<Figures> {
    let step = ui::step("nothing and the relay, on this kernel");
    let mut command = std::process::Command::new(&built.bench);
    command.args(words(options, Ground::Here, built));
    let said = process::run(&mut command, &dir.join("here.log"), minutes(60))?;
    let figures = Figures::read(Ground::Here, &said.success("the load")?);
    step.done("");
    figures
}

fn in_guest(
    checkout: &Checkout,
    built: &Built,
    options: &Options,
    dir: &Path,
) -> Result<(String, Figures)> {
    let kernel = net::kernel_with(checkout, &[&built.bench, &built.daemon], dir)?;
    let accelerator = guest::accelerator(checkout, &kernel)?;
    let step = ui::step("nothing and the plug, in a guest's kernel");
    let arguments = words(options, Ground::Guest, built).join(",");
    let mut guest = Guest::boot(&Boot {
        kernel: &kernel,
        accelerator,
        // A busy machine is late with the ticks by which the kernel tries its timer, and it gives up.
        arguments: format!(
            "no_timer_check program={} arguments={arguments}",
            built.bench.display()
        ),
        memory_mib: MEMORY_MIB,
        disk_socket: None,
        devices: &[],
        dir,
        name: "net",
        host: None,
        half_line: Vec::new(),
    })?;
    guest.expect_word("to boot", BOOT)?;
    match guest.expect_word("to measure", minutes(60))? {
        Word::Done => {}
        other => bail!("the guest says {other:?}"),
    }
    drop(guest);
    let log = dir.join("net-serial.log");
    let bytes = std::fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let figures = Figures::read(Ground::Guest, &String::from_utf8_lossy(&bytes))?;
    let name = format!("Linux {}, {}", kernel.version, accelerator.name());
    step.done(&name);
    Ok((name, figures))
}

/// Builds both, optimised, and asks cargo where they are.
fn build(checkout: &Checkout, log: &Path) -> Result<Built> {
    let mut cargo = checkout.cargo();
    cargo.args([
        "build",
        "--release",
        "-p",
        "netbuf",
        "--bin",
        "netbuf",
        "--example",
        "net_bench",
    ]);
    cargo.arg("--message-format=json-render-diagnostics");
    let said = process::run(&mut cargo, log, minutes(30))?;
    let text = said.success("cargo build -p netbuf")?;
    let program = |name: &str, kind: &str| {
        let found = built_program(&text, name, kind);
        found.with_context(|| format!("see {}", log.display()))
    };
    Ok(Built {
        bench: program("net_bench", "example")?,
        daemon: program("netbuf", "bin")?,
    })
}
