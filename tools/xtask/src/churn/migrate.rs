//! `cargo xtask migrate`: QEMU itself moves a guest with a vhost-user-blk disk into a file and out of it.
//!
//! ```text
//!  QEMU 1 ──migrate──► file ──incoming──► QEMU 2        one daemon, which serves one after the other
//! ```
//!
//! While QEMU copies the guest's memory the guest goes on, and the daemon writes what is read from the
//! disk into pages that may have been copied already. It has to say which (LOG_ALL, LOG_SHMFD): the
//! guest keeps what it has read and compares it again later, so that a page that was not copied anew is
//! found by the guest that goes on from the file. `--plant no-log` is a daemon that does not say it.
//! Besides, the guest's flushes are told in order, without one missing or told twice; and in the end all
//! of it is killed, the backup promoted, and the disk surveyed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::ear::Ear;
use super::plant;
use super::qmp::{self, Monitor};
use super::stage::{Common, Disk, Layout, Stage, Survey};
use crate::checkout::Checkout;
use crate::demo::{self, Verdict};
use crate::guest::{BOOT_LIMIT, Guest};
use crate::lab::{Blockrep, Lab};
use crate::{stop, ui};

const LAYOUT: Layout = Layout {
    disk_mib: 64,
    settled: None,
    live: None,
    pause_ms: 0,
};
/// So that the guest gets far while its memory is copied.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// What is left of memory when the guest is stopped may take this long. Enough for a guest that never
/// stops reading.
const DOWNTIME_MS: u64 = 2000;
const MIGRATE_LIMIT: Duration = Duration::from_secs(120);
/// Everything in the guest's memory is compared once more within this time.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// A bug that the guest has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// The daemon does not log which pages of the guest it writes.
    NoLog,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How often the guest is moved
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Plant a bug into the daemon; the command must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    #[command(flatten)]
    common: Common,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    ear: Ear,
    moves: Vec<Move>,
    survey: Survey,
}

/// One migration.
#[derive(Debug)]
struct Move {
    /// Operations of the guest while its memory was copied.
    operations: u64,
    /// As QEMU counts them: pages that were copied, and passes over memory.
    pages: u64,
    passes: u64,
}

/// Runs it once; prints what was seen.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let common = &options.common;
    let planted = options.plant.map(|Plant::NoLog| "no-log");
    let build = || match planted {
        Some(_) => plant::build(checkout, common.release),
        None => demo::build(checkout, common.release),
    };
    let stage = Stage::prepare(checkout, common, LAYOUT, build)?;
    let times = options.times;
    let headline = stage.headline(&format!("{times} migrations to a file and back"), planted);
    ui::note(headline.clone());
    let result = play(&stage, times, planted);
    let conclusion = stage.conclude(&headline, result, |seen| judge(&seen, times))?;
    Ok(conclusion.verdict(planted, is_lost_memory))
}

/// What a guest says whose memory did not come along: of what it had read before, or of a read that ended
/// while it was moved.
fn is_lost_memory(fault: &str) -> bool {
    let of_a_read = fault.contains("the guest says: block ") && fault.contains(" is of turn ");
    fault.contains("memory after a read") || of_a_read
}

fn judge(seen: &Seen, times: u32) -> Vec<String> {
    let Seen { ear, moves, survey } = seen;
    for (number, one) in moves.iter().enumerate() {
        println!(
            "  {}: {} operations while {} pages were copied in {} passes",
            number + 1,
            one.operations,
            one.pages,
            one.passes
        );
    }
    let mut faults = survey.faults.clone();
    faults.extend(ear.gaps.iter().map(|gap| format!("a gap: {gap}")));
    if faults.is_empty() {
        println!(
            "  {} operations in all; what the guest had read was in its memory after every move; its \
             flushes follow each other without a gap; after the promotion {} blocks are as after the \
             last answered one, or later",
            ear.operations, survey.blocks
        );
    }
    let idle = moves
        .iter()
        .any(|one| one.operations == 0 || one.passes < 2);
    if moves.len() < times as usize || idle || survey.blocks == 0 {
        faults.push("the guest did too little meanwhile: this proves nothing".to_owned());
    }
    faults
}

fn play(stage: &Stage, times: u32, mutant: Option<&'static str>) -> Result<Seen> {
    let mut setup = stage.setup()?;
    setup.mutant = mutant;
    let step = ui::step("starting backup and primary");
    let mut lab = Blockrep::start(stage.place.clone(), &setup, None, |state| step.now(state))?;
    step.done("protected");
    let mut seen = Seen::default();
    let Seen { ear, moves, survey } = &mut seen;
    let step = ui::step("booting the guest on vhost-user-blk");
    let socket = stage.place.socket("q0");
    let disk = Disk::VhostUser(lab.vhost_sockets()[0]);
    let monitor = qmp::arguments(&socket).to_vec();
    let mut guest = stage.boot_or_resume("churn", disk, monitor, Vec::new())?;
    let mut monitor = Monitor::connect(&socket)?;
    round(ear, &mut guest, 1)?;
    step.done("");
    for number in 1..=times {
        let step = ui::step(format!("moving the guest, {number} of {times}"));
        let file = stage.place.dir.join(format!("state-{number}"));
        let before = ear.operations;
        let copied = migrate(&mut monitor, &file, ear, &mut guest)?;
        let (rest, half_line) = guest.rest_and_half_line()?;
        ear.take_rest(&rest);
        moves.push(Move {
            operations: ear.operations - before,
            pages: copied["ram"]["normal"].as_u64().unwrap_or(0),
            passes: copied["ram"]["dirty-sync-count"].as_u64().unwrap_or(0),
        });
        step.now("the guest goes on from the file");
        let socket = stage.place.socket(&format!("q{number}"));
        let mut more = qmp::arguments(&socket).to_vec();
        more.extend([
            "-incoming".to_owned(),
            format!("exec:cat < {}", quoted(&file)?),
        ]);
        let disk = Disk::VhostUser(lab.vhost_sockets()[0]);
        guest = stage.boot_or_resume(&format!("moved-{number}"), disk, more, half_line)?;
        monitor = Monitor::connect(&socket)?;
        // One round may have begun before.
        round(ear, &mut guest, 2)?;
        std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        step.done(format!("{} operations", ear.operations));
    }
    let step = ui::step("killing guest and primary, promoting the backup");
    lab.wait_until_protected(|state| step.now(state))?;
    guest.signal(libc::SIGKILL);
    lab.kill_primary();
    ear.take_rest(&guest.rest_after_kill());
    let promotion = lab.promote()?;
    step.done(format!("epoch {}", promotion.epoch));
    let step = ui::step("surveying the promoted disk from another guest");
    *survey = stage.survey(Disk::VhostUser(lab.vhost_sockets()[1]), &ear.safe)?;
    step.done(format!("{} blocks", survey.blocks));
    Ok(seen)
}

/// Hears the guest until all that it keeps in memory was compared `count` times more.
fn round(ear: &mut Ear, guest: &mut Guest, count: u64) -> Result<()> {
    ear.catch_up(guest)?;
    let least = ear.rounds + count;
    let limit = ROUND_LIMIT + BOOT_LIMIT;
    ear.until(guest, "its memory was not compared", limit, |e| {
        e.rounds >= least
    })
}

/// Copies the guest into `file` while it runs; afterwards it stands still. Returns what QEMU says of it.
fn migrate(monitor: &mut Monitor, file: &Path, ear: &mut Ear, guest: &mut Guest) -> Result<Value> {
    let limits = json!({ "max-bandwidth": BYTES_PER_SECOND, "downtime-limit": DOWNTIME_MS });
    monitor.execute("migrate-set-parameters", &limits)?;
    let uri = json!({ "uri": format!("exec:cat > {}", quoted(file)?) });
    monitor.execute("migrate", &uri)?;
    stop::wait_for("the migration", MIGRATE_LIMIT, || {
        ear.catch_up(guest)?;
        let state = monitor.execute("query-migrate", &json!({}))?;
        match state["status"].as_str() {
            Some("completed") => Ok(Some(state)),
            Some("failed" | "cancelled") => bail!("QEMU could not migrate: {state}"),
            _ => Ok(None),
        }
    })
}

/// A path for the shell that QEMU starts.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains('\''));
    let text = text.with_context(|| format!("{} cannot be quoted", path.display()))?;
    Ok(format!("'{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // A guest that was idle while it was copied would prove nothing of the log.
    #[test]
    fn an_idle_guest_or_a_gap_does_not_hold() {
        let judged = |operations, passes, gap: bool| {
            let mut seen = Seen::default();
            seen.moves.push(Move {
                operations,
                pages: 9,
                passes,
            });
            seen.survey.blocks = 1;
            if gap {
                seen.ear.gaps.push("told twice".to_owned());
            }
            judge(&seen, 1)
        };
        assert_eq!(judged(5, 3, false), [""; 0]);
        assert_eq!(judged(0, 3, false).len(), 1);
        assert_eq!(judged(5, 1, false).len(), 1);
        assert_eq!(judged(5, 3, true), ["a gap: told twice"]);
    }
}
