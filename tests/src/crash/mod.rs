//! The crash runner: real daemons, killed and stopped in named phases under load.
//!
//! Each round starts a pair of daemons in a directory of its own, writes to the primary with a log
//! of everything that was acknowledged, lets one [`Phase`] happen, promotes the backup and has it
//! judged by the log: nothing promised is missing, nothing from after the last epoch is there. Then
//! the promoted side is killed, started and judged again. `SIGKILL` takes a process, not the page
//! cache: losing unsynced writes is for a power cut, and for the simulator.
//!
//! A round ends in success, a violation, or trouble (a wait that never ended, a daemon that did not
//! start); only rounds of success count.

mod phases;
mod plan;
mod round;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blockrep_host::signals::Shutdown;

pub use plan::{Phase, Plan};
pub use round::{EPOCHS_MIN, Facts, Violation, WRITES_MIN};

use round::Round;

/// Lines of each log that are shown of a round that was not good.
const LAST_LINES: usize = 8;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds.
    pub rounds: u64,
    /// Seed of the first; each further round takes the next.
    pub seed: u64,
    /// This phase only; else they come in turn.
    pub phase: Option<Phase>,
    /// Rounds at a time.
    pub jobs: u64,
    /// Keep the directories of good rounds, too.
    pub keep: bool,
}

/// How a round ended.
#[derive(Debug)]
pub struct Outcome {
    /// What was to be done.
    pub plan: Plan,
    /// Figures, or why there are none.
    pub result: Result<Facts>,
    /// How long it took.
    pub took: Duration,
    /// Where everything of it is, if kept.
    pub dir: Option<PathBuf>,
}

/// Runs one round in `dir`, which is made. Nothing it started runs on when it returns.
///
/// # Errors
/// A [`Violation`], or why the round could not be ended.
pub fn run_round(plan: &Plan, dir: &Path) -> Result<Facts> {
    let mut round = Round::new(plan, dir)?;
    round.run()?;
    let facts = round.facts;
    ensure!(
        facts.acknowledged >= WRITES_MIN && facts.epochs >= EPOCHS_MIN,
        "too short a round: {} acknowledged writes, {} epochs",
        facts.acknowledged,
        facts.epochs
    );
    Ok(facts)
}

/// The last lines of everything that ran in the directory of a round, for a log that is all that
/// will be left of it.
#[must_use]
pub fn last_words(dir: &Path) -> String {
    let mut logs: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            name == "a.log" || name == "b.log" || path.extension().is_some_and(|e| e == "txt")
        })
        .collect();
    logs.sort();
    let mut text = String::new();
    for log in logs {
        let said = std::fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        let name = log.file_name().unwrap_or_default().display();
        text += &format!("\n      {name}, the last of {} lines:", lines.len());
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            text += &format!("\n        {line}");
        }
    }
    text
}

/// Runs all rounds; says one line for each through `say`. Ends early once `stop` is asked for.
///
/// # Errors
/// No directory can be made.
pub fn run(
    options: &Options,
    stop: &Shutdown,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Vec<Outcome>> {
    let base = tempfile::Builder::new().prefix("blockrep-crash-").tempdir();
    let base = base.context("a directory for the rounds")?;
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while !stop.requested() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= options.rounds {
                        break;
                    }
                    let outcome = attempt(options, index, base.path());
                    say(&line(index, &outcome));
                    let mut outcomes = outcomes.lock().expect("nobody panics while pushing");
                    outcomes.push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("nobody panics while pushing");
    if outcomes.iter().any(|outcome| outcome.dir.is_some()) {
        // What failed is in there, for whoever looks into it.
        let _ = base.keep();
    }
    Ok(outcomes)
}

fn attempt(options: &Options, index: u64, base: &Path) -> Outcome {
    let plan = Plan::draw(options.seed.wrapping_add(index), options.phase);
    let dir = base.join(format!("{index}"));
    let begun = Instant::now();
    let result = run_round(&plan, &dir);
    let keep = options.keep || result.is_err();
    if !keep {
        // A directory that cannot be removed is gone with the others at the end.
        let _ = std::fs::remove_dir_all(&dir);
    }
    Outcome {
        plan,
        result,
        took: begun.elapsed(),
        dir: keep.then_some(dir),
    }
}

fn line(index: u64, outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let head = format!(
        "{:4}  seed {:<12} {:<15} ack {:<5} epoch {:>2} ms  {:<7}",
        index + 1,
        plan.seed,
        plan.phase,
        plan.ack,
        plan.epoch_ms,
        plan.policy()
    );
    let seconds = outcome.took.as_secs_f64();
    match &outcome.result {
        Ok(facts) => format!(
            "{head}  ok    {:>6} writes {:>5} epochs  promoted in {:>5.1} ms  {} checks  {seconds:.1} s",
            facts.acknowledged,
            facts.epochs,
            facts.promotion_us as f64 / 1000.0,
            facts.checks
        ),
        Err(error) => {
            let word = if error.is::<Violation>() {
                "VIOLATION"
            } else {
                "TROUBLE"
            };
            let dir = outcome.dir.as_deref().unwrap_or(Path::new(""));
            format!(
                "{head}  {word} after {seconds:.1} s: {error:#}{}\n      all of it: {}\n      \
                 again: crash --rounds 1 --seed {} --phase {}",
                last_words(dir),
                dir.display(),
                plan.seed,
                plan.phase
            )
        }
    }
}

/// The table at the end.
#[must_use]
pub fn summary(outcomes: &[Outcome], took: Duration) -> String {
    let mut phases: BTreeMap<Phase, [u64; 3]> = BTreeMap::new();
    let mut good = Vec::new();
    for outcome in outcomes {
        let row = phases.entry(outcome.plan.phase).or_default();
        match &outcome.result {
            Ok(facts) => {
                row[0] += 1;
                good.push(*facts);
            }
            Err(error) if error.is::<Violation>() => row[1] += 1,
            Err(_) => row[2] += 1,
        }
    }
    let mut text = format!(
        "{:<16} {:>6} {:>10} {:>7}\n",
        "phase", "good", "violations", "trouble"
    );
    for (phase, [good, violations, trouble]) in &phases {
        text += &format!("{phase:<16} {good:>6} {violations:>10} {trouble:>7}\n");
    }
    let sum = |at: usize| phases.values().map(|row| row[at]).sum::<u64>();
    let medians = [
        median(good.iter().map(|f| f.acknowledged).collect()),
        median(good.iter().map(|f| f.epochs).collect()),
        // None where the promotion was done before it was asked for again.
        median(
            good.iter()
                .map(|f| f.promotion_us)
                .filter(|us| *us > 0)
                .collect(),
        ),
    ];
    text += &format!(
        "medians of a round: {} acknowledged writes, {} committed epochs, promotion {:.1} ms\n",
        medians[0],
        medians[1],
        medians[2] as f64 / 1000.0
    );
    text + &format!(
        "{} rounds in {:.0} s: {} good, {} violations, {} in trouble",
        outcomes.len(),
        took.as_secs_f64(),
        sum(0),
        sum(1),
        sum(2)
    )
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
