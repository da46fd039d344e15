//! `sim`: runs seeds of the simulator, and shows that it finds planted bugs.

use anyhow::{Result, bail};
use blockrep::journal::recovery::TABLE;
use blockrep::mutants;
use blockrep_tests::sim::memory::plants;
use blockrep_tests::sim::scenarios::ALL;
use blockrep_tests::sim::world::Stats;
use clap::Parser;
use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A combination of facts that no scan can give: it must never be met.
const IMPOSSIBLE: &str = "R8-seal-without-trace";
/// From that many seeds on every other row of the table must have been met.
const SEEDS_FOR_ALL_ROWS: u64 = 10_000;
/// So many must have been failovers of a guest that somebody outside had heard of.
const FAILOVERS_MIN: u64 = 1000;
/// Seeds in which a planted bug must be found.
const SEEDS_PER_MUTANT: u64 = 2000;

/// Planted bugs that take a meeting of accidents rarer than one seed in 2000: a story finds them.
const FOUND_BY_STORY: &[(&str, &str)] = &[
    ("own-prefix-dropped", "killed_before_an_own_seal"),
    (
        "own-synced-unnamed",
        "rot_in_an_own_write_that_is_being_applied",
    ),
    (
        "old-copy-in-new-session",
        "a_copy_of_a_lost_session_lands_after_the_comparison",
    ),
    ("reuse-before-metadata", "the_ring_goes_round"),
    (
        "vouched-at-every-start",
        "the_word_for_equal_images_at_a_second_start",
    ),
    (
        "hello-before-join",
        "backup_daemon_restarted_while_the_holder_is_away",
    ),
];

/// Runs the whole of blockrep, two hosts in one process, by seed
#[derive(Parser)]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Only this one
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens
    #[arg(long)]
    trace: bool,
    /// At once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Plant one bug after the other; each must be found within 2000 seeds
    #[arg(long)]
    mutants: bool,
    /// Plant this bug
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Run this story instead of seeds
    #[arg(long, value_name = "NAME")]
    story: Option<String>,
}

thread_local! {
    static SEED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn replay(seed: u64, mutant: Option<&str>) -> String {
    let planted = mutant.map_or(String::new(), |name| format!(" --mutant {name}"));
    let features = if mutants::ENABLED {
        " --features mutants"
    } else {
        ""
    };
    format!(
        "replay: cargo run --release -p blockrep-tests{features} --bin sim -- --seed {seed} \
         --trace{planted}"
    )
}

/// A panic of the code under test is a violation like any other; where panics abort, this is the
/// last that is heard.
fn tell_panics(mutant: Option<&'static str>) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let seed = SEED.get();
        println!("VIOLATION seed {seed}: {info}");
        println!("{}", replay(seed, mutant));
        if mutant.is_none() {
            before(info);
        }
    }));
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

struct Run {
    all: Vec<Stats>,
    failed: Vec<(u64, String)>,
}

fn run(from: u64, count: u64, arguments: &Arguments, stop_at_first: bool) -> Run {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let run = Mutex::new(Run {
        all: Vec::new(),
        failed: Vec::new(),
    });
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    SEED.set(seed);
                    let (stats, result) = blockrep_tests::sim::run(seed, arguments.trace);
                    let mut run = run.lock().expect("no panic while it is held");
                    run.all.push(stats);
                    if let Err(text) = result {
                        println!("VIOLATION seed {seed}: {text}");
                        println!("{}", replay(seed, arguments.mutant.as_deref()));
                        run.failed.push((seed, text));
                        stop.fetch_or(stop_at_first || run.failed.len() >= 20, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    run.into_inner().expect("no panic while it is held")
}

/// Prints the table of rows; false when one that must be met was not, or the reverse.
fn tell_rows(all: &[Stats], enough: bool) -> bool {
    let mut rows: BTreeMap<&str, u64> = TABLE.iter().map(|row| (row.name, 0)).collect();
    for (name, hits) in all.iter().flat_map(|s| &s.rows) {
        *rows.entry(name).or_default() += hits;
    }
    let mut good = true;
    println!("rows of the recovery table:");
    for (name, hits) in &rows {
        let wrong = if *name == IMPOSSIBLE {
            *hits > 0
        } else {
            enough && *hits == 0
        };
        good &= !wrong;
        let note = match (*name == IMPOSSIBLE, wrong) {
            (true, false) => "  (cannot be met, and was not)",
            (true, true) => "  must never be met",
            (false, true) => "  NEVER MET",
            (false, false) => "",
        };
        println!("  {name:<26} {hits:>9}{note}");
    }
    good
}

fn tell(run: &Run, seconds: f64, jobs: usize, enough: bool) -> bool {
    let count = run.all.len();
    let median_of =
        |what: fn(&Stats) -> u64| median(&mut run.all.iter().map(what).collect::<Vec<_>>());
    let sum = |what: fn(&Stats) -> u64| run.all.iter().map(what).sum::<u64>();
    println!("{count} seeds, {} violations", run.failed.len());
    println!("{:.0} seeds/s with {jobs} jobs", count as f64 / seconds);
    println!(
        "medians per seed: {} steps, {} crashes, {} recoveries, {} epochs, {} answers",
        median_of(|s| s.steps),
        median_of(|s| s.crashes),
        median_of(|s| s.recoveries),
        median_of(|s| s.epochs),
        median_of(|s| s.replies),
    );
    println!(
        "in all: {} crashes, {} recoveries, {} epochs, {} promotions ({} with memory), {} checkpoints, {} times protected",
        sum(|s| s.crashes),
        sum(|s| s.recoveries),
        sum(|s| s.epochs),
        sum(|s| s.promotions),
        sum(|s| s.with_memory),
        sum(|s| s.checkpoints),
        sum(|s| s.syncs),
    );
    let judged = sum(|s| s.judged);
    println!(
        "whole guests: {judged} failovers before a witness that had seen {} replies, {} replies seen in all, {} \
         checkpoints sent, {} given up, {} guests switched off, {} promotions refused by the authority",
        sum(|s| s.judged_replies),
        sum(|s| s.seen),
        sum(|s| s.sent),
        sum(|s| s.abandoned),
        sum(|s| s.ended),
        sum(|s| s.refused),
    );
    if enough && judged < FAILOVERS_MIN {
        println!("{judged} failovers prove too little: {FAILOVERS_MIN} are wanted");
        return false;
    }
    tell_rows(&run.all, enough) && run.failed.is_empty()
}

/// Each bug in a process of its own: where panics abort, one of them ends it.
fn hunt(arguments: &Arguments) -> Result<bool> {
    if !mutants::ENABLED {
        bail!(
            "this build cannot plant bugs: cargo run --release -p blockrep-tests --features \
             mutants --bin sim -- --mutants"
        );
    }
    let program = std::env::current_exe()?;
    let mut missed = Vec::new();
    let all: Vec<_> = mutants::ALL.iter().chain(plants::ALL).collect();
    for (name, what) in &all {
        let began = Instant::now();
        let story = FOUND_BY_STORY.iter().find(|(bug, _)| bug == name);
        let mut command = Command::new(&program);
        command.args(["--mutant", name]);
        match story {
            Some((_, story)) => command.args(["--story", story]),
            None => command
                .args(["--seeds", &SEEDS_PER_MUTANT.to_string()])
                .args(["--from", &arguments.from.to_string()])
                .args(["--jobs", &arguments.jobs.to_string()]),
        };
        let out = command.stderr(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        let found = text.lines().find(|line| line.starts_with("VIOLATION"));
        let seconds = began.elapsed().as_secs_f64();
        match found {
            Some(line) => {
                let line: String = line.chars().skip("VIOLATION ".len()).take(110).collect();
                println!("{name:<26} found in {seconds:>5.1} s, {line}");
            }
            None => {
                let by = story.map_or(format!("in {SEEDS_PER_MUTANT} seeds"), |(_, story)| {
                    format!("by the story {story}")
                });
                println!("{name:<26} NOT FOUND {by} ({what})");
                missed.push(*name);
            }
        }
    }
    println!(
        "{} planted bugs, {} of them for stories, the others for {SEEDS_PER_MUTANT} seeds; {} not found",
        all.len(),
        FOUND_BY_STORY.len(),
        missed.len()
    );
    Ok(missed.is_empty())
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let code = |good: bool| ExitCode::from(u8::from(!good));
    if arguments.mutants {
        return Ok(code(hunt(&arguments)?));
    }
    let mut planted = None;
    if let Some(name) = &arguments.mutant {
        let Some((name, _)) = mutants::ALL
            .iter()
            .chain(plants::ALL)
            .find(|(known, _)| known == name)
        else {
            bail!("no bug of the name {name}");
        };
        if !mutants::ENABLED {
            bail!("this build cannot plant bugs: build it with --features mutants");
        }
        mutants::plant(name);
        planted = Some(*name);
    }
    tell_panics(planted);
    if let Some(name) = &arguments.story {
        let Some((_, story)) = ALL.iter().find(|(known, _)| known == name) else {
            bail!("no story of the name {name}");
        };
        story();
        println!("the story went well");
        return Ok(code(true));
    }
    let (from, count) = arguments
        .seed
        .map_or((arguments.from, arguments.seeds), |seed| (seed, 1));
    let began = Instant::now();
    let run = run(from, count, &arguments, planted.is_some());
    let enough = count >= SEEDS_FOR_ALL_ROWS;
    Ok(code(tell(
        &run,
        began.elapsed().as_secs_f64(),
        arguments.jobs,
        enough,
    )))
}
