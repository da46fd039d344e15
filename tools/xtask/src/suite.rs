//! `cargo xtask test`: every part of the suite in turn, each with a limit, its output in a file, and
//! a table of times at the end, and below it what failed, in few lines: where only the end of a log is
//! kept, that is what is needed of it. A part that cannot run here is listed with the reason; a part
//! that fails does not keep the others from running.

mod failed;
mod guests;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::checkout::{Checkout, Metadata, find_program};
use crate::demo::{Verdict, aligned};
use crate::packages::{self, Purpose};
use crate::process::{self, Process};
use crate::stop::minutes;
use crate::{EXIT_FAILED, stop, ui};
use failed::Failure;

/// The package with the simulator, the crash runner and the bench.
pub(crate) const TESTS_PACKAGE: &str = "blockrep-tests";

/// What the command line says.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// At most ten minutes: no lints, no guests, few seeds and rounds
    #[arg(long, conflicts_with = "all")]
    quick: bool,
    /// Seeds and rounds as for a release; may take hours
    #[arg(long)]
    all: bool,
    /// Only print the command that would install what is missing
    #[arg(long)]
    no_install: bool,
    /// Only the parts whose names contain this
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
}

/// How much of each part.
#[derive(Debug, Clone, Copy)]
struct Extent {
    seeds: u32,
    crash_rounds: u32,
    load_rounds: u32,
    /// 0 = no guests.
    guest_rounds: u32,
    /// A guest of a whole Debian system, under emulation minutes each.
    postgres_rounds: u32,
    power_rounds: u32,
    fio_seconds: u32,
    migrations: u32,
    /// Of netbuf with the plug.
    net_kills: u32,
    tcp_seconds: u32,
    mutants: bool,
    /// Lints check everything a second time, which on a fresh machine takes minutes.
    lints: bool,
    /// Without what only builds and tests the project itself, and netbuf's long tests short.
    short: bool,
    /// Limits are multiplied by this.
    patience: u32,
}

const QUICK: Extent = Extent {
    seeds: 300,
    crash_rounds: 0,
    load_rounds: 1,
    guest_rounds: 0,
    postgres_rounds: 0,
    power_rounds: 0,
    fio_seconds: 0,
    migrations: 0,
    net_kills: 0,
    tcp_seconds: 0,
    mutants: false,
    lints: false,
    short: true,
    patience: 1,
};
const WHOLE: Extent = Extent {
    seeds: 10_000,
    crash_rounds: 33,
    load_rounds: 2,
    guest_rounds: 1,
    postgres_rounds: 0,
    power_rounds: 2,
    fio_seconds: 40,
    migrations: 2,
    net_kills: 25,
    tcp_seconds: 15,
    mutants: true,
    lints: true,
    short: false,
    patience: 1,
};
const ALL: Extent = Extent {
    seeds: 30_000,
    crash_rounds: 200,
    load_rounds: 5,
    guest_rounds: 10,
    postgres_rounds: 3,
    power_rounds: 20,
    fio_seconds: 300,
    migrations: 20,
    net_kills: 200,
    tcp_seconds: 600,
    mutants: true,
    lints: true,
    short: false,
    patience: 8,
};

/// One part of the suite.
#[derive(Debug)]
struct Part {
    name: String,
    command: Command,
    limit: Duration,
    /// The exit code that is right: parts with planted damage must fail, and in the right way.
    code: i32,
    /// Why it cannot run here.
    skip: Option<String>,
}

/// What became of a part.
#[derive(Debug)]
enum Outcome {
    Passed,
    /// What failed of it.
    Failed(Vec<Failure>),
    Skipped(String),
}

/// Runs the suite; the last line says how many parts passed and failed.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let extent = match (options.quick, options.all) {
        (true, _) => QUICK,
        (_, true) => ALL,
        _ => WHOLE,
    };
    let purpose = if options.quick {
        Purpose::Hosts
    } else {
        Purpose::Test
    };
    packages::provide(checkout, &[purpose], options.no_install)?;
    let logs = checkout.work().join("test");
    if logs.exists() {
        std::fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
    }
    std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let since = Instant::now();
    let mut results = Vec::new();
    for part in parts(checkout, extent)? {
        if options
            .only
            .as_ref()
            .is_some_and(|word| !part.name.contains(word.as_str()))
        {
            continue;
        }
        let begun = Instant::now();
        let name = part.name.clone();
        let outcome = run_part(part, &logs)?;
        results.push((name, outcome, begun.elapsed()));
    }
    Ok(print(&results, since.elapsed()))
}

fn parts(checkout: &Checkout, extent: Extent) -> Result<Vec<Part>> {
    let metadata = checkout.metadata()?;
    let mut parts = static_parts(checkout, extent);
    parts.extend(test_parts(checkout, &metadata, extent));
    let daemons = missing_program(&metadata, "blockrep", "blockrep")
        .or_else(|| missing_program(&metadata, "blockrep-tools", "blockrep-load"))
        .or_else(|| missing_program(&metadata, "blockrep-tools", "blockrepctl"));
    let load = ["demo-disk", "--no-guest", "--no-install"];
    let rounds = extent.load_rounds.to_string();
    parts.push(xtask(
        checkout,
        "disk demo without a guest",
        10,
        0,
        &daemons,
        |command| {
            command.args(load).args(["--rounds", &rounds]);
        },
    ));
    for plant in ["flip", "older-epoch"] {
        let skip = daemons.clone().or_else(|| match plant {
            "older-epoch" => missing_tool("qemu-nbd"),
            _ => None,
        });
        let name = format!("disk demo without a guest finds {plant}");
        parts.push(xtask(checkout, &name, 5, 1, &skip, |command| {
            command.args(load).args(["--plant", plant]);
        }));
    }
    if extent.guest_rounds > 0 {
        parts.extend(guests::parts(checkout, extent, &daemons));
    }
    for part in &mut parts {
        part.limit *= extent.patience;
    }
    Ok(parts)
}

fn static_parts(checkout: &Checkout, extent: Extent) -> Vec<Part> {
    let cargo = |name: &str, minutes: u64, arguments: &[&str]| {
        let mut command = checkout.cargo();
        command.args(arguments);
        Part::new(name, command, minutes)
    };
    let mut rustfmt = Command::new("rustfmt");
    let programs = ["ledger", "power", "churn", "program", "teller", "debian"]
        .map(|name| format!("tests/guest/{name}.rs"));
    rustfmt
        .args(["--check", "--edition", "2024"])
        .args(programs);
    rustfmt.current_dir(&checkout.root);
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    let mut parts = vec![
        cargo("format", 2, &["fmt", "--all", "--check"]),
        Part::new("format of the guests' programs", rustfmt, 1),
    ];
    if extent.lints {
        parts.push(cargo("clippy", 15, &clippy));
    }
    // The tests run the daemons and tools themselves.
    let mut build = checkout.cargo();
    build.args(["build", "--workspace"]).args(left_out(extent));
    parts.push(Part::new("build", build, 15));
    parts
}

/// Packages that the short half does without, as words for cargo.
fn left_out(extent: Extent) -> &'static [&'static str] {
    match extent.short {
        true => &["--exclude", "xtask", "--exclude", "blockrep-man"],
        false => &[],
    }
}

fn test_parts(checkout: &Checkout, metadata: &Metadata, extent: Extent) -> Vec<Part> {
    let mut tests = checkout.cargo();
    let mut doc_tests = checkout.cargo();
    if find_program("cargo-nextest").is_some() {
        tests.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
        // Read afterwards, see failed.rs; and at the end of the log, what failed.
        tests.args(["--color", "never", "--failure-output", "immediate-final"]);
        // Many of them wait most of the time.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        tests.args(["--test-threads", &processors.max(4).to_string()]);
    } else {
        tests.args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
        ]);
    }
    if extent.short {
        tests.env("NETBUF_TEST_KILLS", "25");
        tests.env("NETBUF_TEST_STREAM_SECONDS", "3");
    }
    tests.args(left_out(extent));
    doc_tests.args(["test", "--workspace", "--doc"]);
    doc_tests.args(left_out(extent));
    let mut parts = vec![
        Part::new("tests", tests, 20),
        Part::new("doc tests", doc_tests, 10),
    ];
    parts.extend(long_parts(checkout, metadata, extent));
    parts
}

/// The simulator and the crash runner: as the tests built them in the short half, else in release.
fn long_parts(checkout: &Checkout, metadata: &Metadata, extent: Extent) -> Vec<Part> {
    let run = |name: &str, program: &str, build: &[&str], words: &[&str]| {
        let mut command = checkout.cargo();
        command.arg("run").args(build);
        command.args(["-p", TESTS_PACKAGE, "--bin", program, "--"]);
        command.args(words);
        let mut part = Part::new(name, command, 15);
        part.skip = missing_program(metadata, TESTS_PACKAGE, program);
        part
    };
    let seeds = extent.seeds.to_string();
    if extent.crash_rounds == 0 {
        return vec![run("simulator", "sim", &[], &["--seeds", &seeds])];
    }
    let release = ["--release"];
    let planting = ["--release", "--features", "mutants"];
    let rounds = extent.crash_rounds.to_string();
    let mut build = checkout.cargo();
    build.args(["build", "--release", "--workspace"]);
    let mut parts = vec![
        // The crash runner takes the daemons and tools that stand beside it.
        Part::new("release build", build, 15),
        run("simulator", "sim", &release, &["--seeds", &seeds]),
        run(
            "crash runner",
            "crash",
            &release,
            &["--rounds", &rounds, "--jobs", "2"],
        ),
    ];
    if extent.mutants {
        parts.push(run(
            "simulator finds planted bugs",
            "sim",
            &planting,
            &["--mutants"],
        ));
    }
    parts
}

/// A part that is a command of this program; through cargo, because a build in an earlier part may
/// have replaced the running file.
fn xtask(
    checkout: &Checkout,
    name: &str,
    minutes: u64,
    code: i32,
    skip: &Option<String>,
    fill: impl FnOnce(&mut Command),
) -> Part {
    let mut command = checkout.cargo();
    command.arg("xtask");
    fill(&mut command);
    let mut part = Part::new(name, command, minutes);
    part.code = code;
    part.skip.clone_from(skip);
    part
}

fn missing_program(metadata: &Metadata, package: &str, name: &str) -> Option<String> {
    let has = metadata.has_program(package, name);
    (!has).then(|| format!("this checkout has no program {name} in {package}"))
}

fn missing_tool(name: &str) -> Option<String> {
    find_program(name)
        .is_none()
        .then(|| format!("{name} is not installed"))
}

impl Part {
    fn new(name: &str, command: Command, limit_minutes: u64) -> Self {
        let limit = minutes(limit_minutes);
        Self {
            name: name.to_owned(),
            command,
            limit,
            code: 0,
            skip: None,
        }
    }
}

fn run_part(mut part: Part, logs: &Path) -> Result<Outcome> {
    stop::check()?;
    let step = ui::step(part.name.clone());
    if let Some(why) = part.skip {
        step.done(format!("SKIPPED, {why}"));
        return Ok(Outcome::Skipped(why));
    }
    let log: PathBuf = logs.join(format!("{}.log", part.name.replace([' ', ','], "-")));
    let mut process = Process::spawn(&mut part.command, &part.name, &log)?;
    let ended = process.wait(part.limit);
    // It takes down what it started, if it is given the time.
    process.stop(Duration::from_secs(15));
    stop::check()?;
    let wrong = match ended {
        Ok(status) if status.code() == Some(part.code) => None,
        Ok(status) if part.code == i32::from(EXIT_FAILED) => {
            let how = process::describe(status);
            Some(format!(
                "{how}, where planted damage must give exit code {EXIT_FAILED}"
            ))
        }
        Ok(status) => Some(process::describe(status)),
        Err(error) => Some(error.to_string()),
    };
    match wrong {
        None => {
            step.done("passed");
            Ok(Outcome::Passed)
        }
        Some(how) => {
            step.done(format!("FAILED, {how}{}", process::tail_of(&log)));
            // A log that cannot be read is as good as an empty one: the part has failed all the same.
            let said = std::fs::read(&log).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            Ok(Outcome::Failed(failed::of_part(&part.name, &how, &said)))
        }
    }
}

fn print(results: &[(String, Outcome, Duration)], whole: Duration) -> Verdict {
    let mut rows = vec![["part", "result", "seconds"].map(str::to_owned).to_vec()];
    for (name, outcome, time) in results {
        let word = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Failed(_) => "FAILED".to_owned(),
            Outcome::Skipped(why) => format!("skipped: {why}"),
        };
        rows.push(vec![
            name.clone(),
            word,
            format!("{:.1}", time.as_secs_f32()),
        ]);
    }
    rows.push(vec![
        "all".to_owned(),
        String::new(),
        format!("{:.1}", whole.as_secs_f32()),
    ]);
    print!("\n{}", aligned(&rows));
    let mut failures = Vec::new();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (_, outcome, _) in results {
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Failed(found) => {
                failed += 1;
                failures.extend(found);
            }
            Outcome::Skipped(_) => skipped += 1,
        }
    }
    for line in failed::digest(&failures) {
        println!("{line}");
    }
    if skipped > 0 {
        println!("{skipped} skipped");
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 {
        Verdict::Holds
    } else {
        Verdict::Failed
    }
}
