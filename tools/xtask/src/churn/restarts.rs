//! `cargo xtask restarts`: the daemon behind a guest's disk is killed and started again, over and over.
//!
//! A guest on vhost-user-blk keeps more than 32 requests in flight: fio at depth 32, which verifies what
//! it writes, and 40 threads that write blocks of their own and read them back. The primary's storage
//! answers in another order than it was asked in, so that at every kill requests are open between
//! answered ones: a successor that goes by the number of answers alone would lose some and repeat
//! others, and `--plant used-index` is that successor. In the end guest and primary are killed for good,
//! the backup is promoted, and a second guest surveys every block there, again over vhost-user.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};

use super::ear::Ear;
use super::plant;
use super::stage::{Area, Common, Disk, Layout, Stage, Survey};
use crate::checkout::Checkout;
use crate::demo::{self, Verdict};
use crate::guest::{BOOT_LIMIT, Guest, GuestFailed};
use crate::lab::{Blockrep, Lab};
use crate::{stop, ui};

const LAYOUT: Layout = Layout {
    disk_mib: 64,
    settled: None,
    live: Some(Area {
        offset_mib: 32,
        size_mib: 16,
    }),
    pause_ms: 0,
};
/// Every operation on the primary's image takes up to this long, each another time.
const SHUFFLE: &str = "image=any:1+=shuffle:30ms";
/// Operations of the guest's threads between two kills, at least.
const OPERATIONS_MIN: u64 = 200;
/// A guest that gets no answer for that long has lost a request.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// Requests that are to be in flight at a kill, in the median.
const DEPTH_MIN: u64 = 32;

/// What the daemon says when a VMM has come.
const CONNECTED: &str = "is connected by vhost-user";

/// A bug that the guest has to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// The daemon goes by the used index alone, as if there were no in-flight table.
    UsedIndex,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How many times the daemon is killed
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
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
    /// For each kill, how many requests the successor found open and carried out again.
    open: Vec<u64>,
    survey: Survey,
}

/// Runs it once; prints what was seen.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let common = &options.common;
    let planted = options.plant.map(|Plant::UsedIndex| "used-index");
    let build = || match planted {
        Some(_) => plant::build(checkout, common.release),
        None => demo::build(checkout, common.release),
    };
    let stage = Stage::prepare(checkout, common, LAYOUT, build)?;
    let kills = options.kills;
    let headline = stage.headline(&format!("{kills} kills"), planted);
    ui::note(headline.clone());
    let result = play(&stage, kills, planted);
    let conclusion = stage.conclude(&headline, result, |seen| judge(&seen, kills))?;
    // Requests that are lost or answered twice show as a guest that hangs, or reads what it should not.
    Ok(conclusion.verdict(planted, |fault| fault.starts_with("the guest says")))
}

fn judge(seen: &Seen, kills: u32) -> Vec<String> {
    let Seen { ear, open, survey } = seen;
    let (again, median) = (open.iter().sum::<u64>(), median(open));
    println!(
        "  {} kills under {} operations of the guest; {median} requests in flight at a kill in the \
         median, {again} in all, which were carried out again; fio wrote {} MiB and verified {} MiB",
        open.len(),
        ear.operations,
        ear.written_kib >> 10,
        ear.verified_kib >> 10
    );
    let mut faults = survey.faults.clone();
    if faults.is_empty() {
        println!(
            "  after the promotion {} blocks are as after the last answered flush, or later",
            survey.blocks
        );
        println!("  no answer was lost, wrong, or given twice; fio verify clean, no I/O error");
    }
    let few = open.len() < kills as usize || ear.verified_kib == 0 || survey.blocks == 0;
    if few || median < DEPTH_MIN {
        faults.push("too few requests were open at the kills: this proves nothing".to_owned());
    }
    faults
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn play(stage: &Stage, kills: u32, mutant: Option<&'static str>) -> Result<Seen> {
    let mut random = fastrand::Rng::with_seed(stage.seed);
    let mut setup = stage.setup()?;
    setup.faults = Some(SHUFFLE);
    setup.mutant = mutant;
    let step = ui::step("starting backup and primary");
    let mut lab = Blockrep::start(stage.place.clone(), &setup, None, |state| step.now(state))?;
    step.done("protected");
    let mut seen = Seen::default();
    let Seen { ear, open, survey } = &mut seen;
    let step = ui::step("booting the guest on vhost-user-blk");
    let mut guest = stage.boot(Disk::VhostUser(lab.vhost_sockets()[0]))?;
    let both = |e: &Ear| e.operations > 0 && e.written_kib > 0;
    // Before the first kill it is the lab that fails, and nothing planted.
    ear.until(&mut guest, "nothing was written", 2 * BOOT_LIMIT, both)
        .map_err(|error| match error.downcast::<GuestFailed>() {
            Ok(failed) => anyhow!("before the first kill {failed}"),
            Err(error) => error,
        })?;
    step.done("");
    let step = ui::step("killing the daemon and starting it again");
    for number in 1..=kills {
        further(ear, &mut guest, OPERATIONS_MIN)?;
        stop::sleep(Duration::from_millis(random.u64(0..200)))?;
        lab.kill_primary();
        let log = lab.start_primary_again(number)?;
        // The VMM comes back within a second; then the guest must get on.
        stop::wait_for("the VMM to come back", PROGRESS_LIMIT, || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(said.contains(CONNECTED).then_some(()))
        })?;
        ear.catch_up(&mut guest)?;
        further(ear, &mut guest, 1)?;
        open.push(carried_out_again(&log)?);
        step.now(format!("{number} of {kills}"));
    }
    step.done(format!("{} operations", ear.operations));
    let step = ui::step("killing both for good, promoting the backup");
    lab.wait_until_protected(|state| step.now(state))?;
    further(ear, &mut guest, OPERATIONS_MIN)?;
    let verified = |e: &Ear| e.verified_kib > 0;
    ear.until(
        &mut guest,
        "fio has verified nothing",
        2 * PROGRESS_LIMIT,
        verified,
    )?;
    guest.signal(libc::SIGKILL);
    lab.kill_primary();
    ear.take_rest(&guest.rest_after_kill());
    let promotion = lab.promote()?;
    step.done(format!("epoch {}", promotion.epoch));
    let step = ui::step("surveying the promoted disk from a second guest");
    *survey = stage.survey(Disk::VhostUser(lab.vhost_sockets()[1]), &ear.safe)?;
    step.done(format!("{} blocks", survey.blocks));
    Ok(seen)
}

/// Hears the guest until its threads have done `count` more operations.
fn further(ear: &mut Ear, guest: &mut Guest, count: u64) -> Result<()> {
    let least = ear.operations + count;
    let what = format!("not {count} more operations");
    ear.until(guest, &what, PROGRESS_LIMIT, |e| e.operations >= least)
}

/// What the successor said of requests it found open.
fn carried_out_again(log: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    Ok(count_again(&text))
}

fn count_again(log: &str) -> u64 {
    log.lines()
        .filter_map(|line| line.split_once(" requests are carried out again"))
        .filter_map(|(before, _)| before.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A run in which few requests were open at a kill must not count as proof.
    #[test]
    fn open_requests_are_counted_and_asked_for() {
        let log = "x INFO vhost-user: ring 0: 17 requests are carried out again\n\
                   x INFO vhost-user: ring 1: 3 requests are carried out again\n";
        assert_eq!(count_again(log), 20);
        let judged = |open: &[u64]| {
            let mut seen = Seen {
                open: open.to_vec(),
                ..Seen::default()
            };
            seen.survey.blocks = 1;
            seen.ear.verified_kib = 1;
            judge(&seen, 3)
        };
        assert_eq!(judged(&[0, 40, 33]), [""; 0]);
        assert_eq!(judged(&[0, 40, 31]).len(), 1);
        assert_eq!(judged(&[40, 40]).len(), 1);
    }
}
