//! `cargo xtask migrate`: QEMU itself moves a guest with a vhost-user-blk disk into a file and out of it.
//!
//! ```text
//!  QEMU 1 ──migrate──► file ──incoming──► QEMU 2        one daemon, which serves one after the other
//! ```
//!
//! While QEMU copies the guest's memory the guest goes on, and the daemon writes what is read from the
//! disk into pages that may have been copied already. It has to say which (LOG_ALL, LOG_SHMFD): a page
//! that was not copied anew is found, because the memory of both QEMUs is compared before the guest
//! goes on; and the guest keeps what it has read and compares it again later. `--plant no-log` is a daemon
//! that does not say it; `--disk own` is the same without any daemon.
//! Besides, the guest's flushes are told in order, without one missing or told twice; and in the end all
//! of it is killed, the backup promoted, and the disk surveyed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::ear::Ear;
use super::qmp::{self, Monitor};
use super::stage::{Common, Disk, Layout, Stage, Survey};
use super::{memory, plant};
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
/// The guest is stopped when no more than this is left of the first pass over its memory.
const LEFT_AT_STOP: u64 = BYTES_PER_SECOND;
/// So short that QEMU does not stop the guest itself.
const DOWNTIME_MS: u64 = 1;
const MIGRATE_LIMIT: Duration = Duration::from_secs(120);
/// Everything in the guest's memory is compared once more within this time.
const ROUND_LIMIT: Duration = Duration::from_secs(120);

/// Pages that are named.
const PAGES_SHOWN: usize = 16;

/// A bug that the guest has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// The daemon does not log which pages of the guest it writes.
    NoLog,
}

/// What the guest has for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Under {
    /// blockrep's, which is promoted in the end.
    Blockrep,
    /// A raw image by QEMU itself, without a daemon: what fails here as well is QEMU's.
    Own,
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
    /// Which disk the guest has; with its own a failure is none of blockrep's
    #[arg(long, value_enum, default_value = "blockrep", conflicts_with = "plant")]
    disk: Under,
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
    /// The guest stood still before QEMU asked for the second time which pages were written.
    in_time: bool,
    /// Pages that did not come along.
    lost: BTreeSet<u64>,
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
    let whose = match options.disk {
        Under::Blockrep => "",
        Under::Own => " of a guest with a disk of QEMU's own",
    };
    let headline = stage.headline(
        &format!("{times} migrations to a file and back{whose}"),
        planted,
    );
    ui::note(headline.clone());
    let result = play(&stage, options.disk, times, planted);
    let conclusion = stage.conclude(&headline, result, |seen| judge(&seen, times))?;
    Ok(conclusion.verdict(planted, is_lost_memory))
}

/// What a guest says whose memory did not come along: of what it had read before, or of a read that ended
/// while it was moved.
fn is_lost_memory(fault: &str) -> bool {
    let of_a_read = fault.contains("the guest says: block ") && fault.contains(" is of turn ");
    fault.contains("memory after a read") || fault.starts_with("memory of the guest:") || of_a_read
}

fn judge(seen: &Seen, times: u32) -> Vec<String> {
    let Seen { ear, moves, survey } = seen;
    for (number, one) in moves.iter().enumerate() {
        let lost = one.lost.len();
        println!(
            "  {}: {} operations while {} pages were copied in {} passes{}",
            number + 1,
            one.operations,
            one.pages,
            one.passes,
            match one.in_time {
                true => String::new(),
                false => format!("; stopped too late, QEMU may have lost pages: {lost} were"),
            }
        );
    }
    let mut faults = survey.faults.clone();
    faults.extend(ear.gaps.iter().map(|gap| format!("a gap: {gap}")));
    for (number, one) in moves.iter().enumerate() {
        if one.in_time && !one.lost.is_empty() {
            let (number, count, pages) = (number + 1, one.lost.len(), named(&one.lost));
            faults.push(format!(
                "memory of the guest: {count} pages did not come along with move {number}:{pages}"
            ));
        }
    }
    if faults.is_empty() {
        println!(
            "  {} operations in all; the guest's memory was the same after every move; its flushes \
             follow each other without a gap; on the disk {} blocks are as after the \
             last answered one, or later",
            ear.operations, survey.blocks
        );
    }
    let idle = moves
        .iter()
        .any(|one| one.operations == 0 || one.passes < 2);
    let none_in_time = moves.iter().all(|one| !one.in_time);
    if moves.len() < times as usize || idle || none_in_time || survey.blocks == 0 {
        faults.push("the guest did too little meanwhile: this proves nothing".to_owned());
    }
    faults
}

fn play(stage: &Stage, under: Under, times: u32, mutant: Option<&'static str>) -> Result<Seen> {
    let mut setup = stage.setup()?;
    setup.mutant = mutant;
    let mut seen = Seen::default();
    if under == Under::Own {
        let disk = Disk::Image(&setup.image);
        let mut guest = rounds(stage, disk, times, &mut seen)?;
        guest.signal(libc::SIGKILL);
        seen.ear.take_rest(&guest.rest_after_kill());
        survey(stage, disk, &mut seen)?;
        return Ok(seen);
    }
    let step = ui::step("starting backup and primary");
    let mut lab = Blockrep::start(stage.place.clone(), &setup, None, |state| step.now(state))?;
    step.done("protected");
    let [socket, _] = lab.vhost_sockets();
    let mut guest = rounds(stage, Disk::VhostUser(socket), times, &mut seen)?;
    let step = ui::step("killing guest and primary, promoting the backup");
    lab.wait_until_protected(|state| step.now(state))?;
    guest.signal(libc::SIGKILL);
    lab.kill_primary();
    seen.ear.take_rest(&guest.rest_after_kill());
    let promotion = lab.promote()?;
    step.done(format!("epoch {}", promotion.epoch));
    let [_, socket] = lab.vhost_sockets();
    survey(stage, Disk::VhostUser(socket), &mut seen)?;
    Ok(seen)
}

/// Boots the guest, moves it so many times, and returns it as it runs then.
fn rounds(stage: &Stage, disk: Disk<'_>, times: u32, seen: &mut Seen) -> Result<Guest> {
    let Seen { ear, moves, .. } = seen;
    let step = ui::step("booting the guest");
    let socket = stage.place.socket("q0");
    let monitor = qmp::arguments(&socket).to_vec();
    let mut guest = stage.boot_or_resume("churn", disk, monitor, Vec::new())?;
    let mut monitor = Monitor::connect(&socket)?;
    round(ear, &mut guest, 1)?;
    step.done("");
    for number in 1..=times {
        let step = ui::step(format!("moving the guest, {number} of {times}"));
        let file = stage.place.dir.join(format!("state-{number}"));
        let before = ear.operations;
        let (copied, in_time) = migrate(&mut monitor, &file, ear, &mut guest)?;
        let left = guest.memory()?;
        let (rest, half_line) = guest.rest_and_half_line()?;
        ear.take_rest(&rest);
        step.now("comparing its memory");
        let socket = stage.place.socket(&format!("q{number}"));
        let mut more = qmp::arguments(&socket).to_vec();
        more.extend([
            "-S".to_owned(),
            "-incoming".to_owned(),
            format!("exec:cat < {}", quoted(&file)?),
        ]);
        guest = stage.boot_or_resume(&format!("moved-{number}"), disk, more, half_line)?;
        monitor = Monitor::connect(&socket)?;
        arrive(&mut monitor)?;
        let lost = memory::mend(&left, &guest.memory()?)?;
        moves.push(Move {
            operations: ear.operations - before,
            pages: copied["ram"]["normal"].as_u64().unwrap_or(0),
            passes: copied["ram"]["dirty-sync-count"].as_u64().unwrap_or(0),
            in_time,
            lost,
        });
        monitor.execute("cont", &json!({}))?;
        step.now("the guest goes on from the file");
        // One round may have begun before.
        round(ear, &mut guest, 2)?;
        std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        step.done(format!("{} operations", ear.operations));
    }
    Ok(guest)
}

fn survey(stage: &Stage, disk: Disk<'_>, seen: &mut Seen) -> Result<()> {
    let step = ui::step("surveying the disk from another guest");
    seen.survey = stage.survey(disk, &seen.ear.safe)?;
    step.done(format!("{} blocks", seen.survey.blocks));
    Ok(())
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

/// Copies the guest into `file` while it runs, and stops it. Returns what QEMU says of it, and whether the
/// guest was stopped in time (see [`memory`]).
fn migrate(
    monitor: &mut Monitor,
    file: &Path,
    ear: &mut Ear,
    guest: &mut Guest,
) -> Result<(Value, bool)> {
    let limits = json!({ "max-bandwidth": BYTES_PER_SECOND, "downtime-limit": DOWNTIME_MS });
    monitor.execute("migrate-set-parameters", &limits)?;
    let uri = json!({ "uri": format!("exec:cat > {}", quoted(file)?) });
    monitor.execute("migrate", &uri)?;
    let passes = |state: &Value| state["ram"]["dirty-sync-count"].as_u64();
    let mut in_time = None;
    let state = stop::wait_for("the migration", MIGRATE_LIMIT, || {
        ear.catch_up(guest)?;
        let state = monitor.execute("query-migrate", &json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(Some(state)),
            Some("failed" | "cancelled") => bail!("QEMU could not migrate: {state}"),
            _ => {}
        }
        let left = state["ram"]["remaining"].as_u64();
        let is_near = passes(&state) > Some(1) || left.is_some_and(|left| left <= LEFT_AT_STOP);
        if in_time.is_none() && passes(&state) > Some(0) && is_near {
            monitor.execute("stop", &json!({}))?;
            let stopped = monitor.execute("query-migrate", &json!({}))?;
            in_time = Some(stopped["status"] == "active" && passes(&stopped) == Some(1));
        }
        Ok(None)
    })?;
    Ok((state, in_time.unwrap_or(false)))
}

/// Waits until the guest is in its new place, where it stands still.
fn arrive(monitor: &mut Monitor) -> Result<()> {
    stop::wait_for("the guest to arrive", MIGRATE_LIMIT, || {
        let state = monitor.execute("query-status", &json!({}))?;
        match state["status"].as_str() {
            Some("inmigrate") => Ok(None),
            Some("paused" | "prelaunch") => Ok(Some(())),
            _ => bail!("the guest that arrives is in an odd state: {state}"),
        }
    })
}

/// Some numbers of pages.
fn named(pages: &BTreeSet<u64>) -> String {
    let few = pages.iter().take(PAGES_SHOWN);
    few.map(|page| format!(" {page:#x}")).collect()
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
    fn an_idle_guest_or_a_gap_or_a_lost_page_does_not_hold() {
        let judged = |operations, passes, in_time, lost: &[u64]| {
            let mut seen = Seen::default();
            seen.moves.push(Move {
                operations,
                pages: 9,
                passes,
                in_time,
                lost: lost.iter().copied().collect(),
            });
            seen.survey.blocks = 1;
            judge(&seen, 1)
        };
        assert_eq!(judged(5, 3, true, &[]), [""; 0]);
        assert_eq!(judged(0, 3, true, &[]).len(), 1);
        assert_eq!(judged(5, 1, true, &[]).len(), 1);
        // What QEMU loses is none of the log's, and proves nothing of it either.
        assert_eq!(judged(5, 3, false, &[7]).len(), 1);
        let lost = judged(5, 3, true, &[0x1206, 0xf432]);
        assert!(lost[0].ends_with("2 pages did not come along with move 1: 0x1206 0xf432"));
        assert!(is_lost_memory(&lost[0]));
    }

    #[test]
    fn a_gap_does_not_hold() {
        let mut seen = Seen::default();
        seen.ear.gaps.push("told twice".to_owned());
        assert_eq!(judge(&seen, 0)[0], "a gap: told twice");
    }
}
