//! `cargo xtask guest-fio`: fio in a guest, until its host dies.
//!
//! ```text
//!  disk: | churn's blocks | settled: fio wrote and flushed it | live: fio writes and verifies, QD32 |
//! ```
//!
//! All at the same time, through a journal that goes round several times. Then guest and primary are
//! killed at a random moment, the backup is promoted, and a second guest on the promoted disk has to
//! find: what was settled, as fio verifies it; every thread of the churn after one of its turns, not
//! before the last flush that was answered; and a disk on which fio goes on.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::ear::Ear;
use super::stage::{Area, Common, Disk, Layout, SURVEY_MIB, Stage, Survey};
use super::turns::FLUSH_EVERY;
use crate::checkout::Checkout;
use crate::demo::{self, Verdict, plant};
use crate::guest::{BOOT_LIMIT, Guest};
use crate::lab::{Blockrep, Lab, serve};
use crate::process::Process;
use crate::stop::minutes;
use crate::ui::{self, Step};

const SETTLED: Area = Area {
    offset_mib: 32,
    size_mib: 16,
};
const LAYOUT: Layout = Layout {
    disk_mib: 80,
    settled: Some(SETTLED),
    live: Some(Area {
        offset_mib: 48,
        size_mib: 32,
    }),
    pause_ms: 100,
};
const JOURNAL_MIB: u64 = 32;
/// What fio has to write at least, in journals.
const JOURNALS_MIN: u64 = 3;
/// A guest that has not written that in this time is stuck.
const SLOWEST: Duration = minutes(10);

/// Damage done on purpose, which the second guest has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plant {
    /// One bit of the settled area is changed in the promoted image.
    Flip,
    /// An older copy of the backup's disk stands in for it.
    OlderEpoch,
}

/// What the command line says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How long the guest runs, in seconds; longer if it has not written three journals by then
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Do damage on purpose; the command must then fail
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    #[command(flatten)]
    common: Common,
}

/// What was seen.
#[derive(Debug)]
struct Seen {
    ear: Ear,
    epoch: u64,
    survey: Survey,
}

/// Runs it once; prints what was seen.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<Verdict> {
    let common = &options.common;
    let build = || demo::build(checkout, common.release);
    let stage = Stage::prepare(checkout, common, LAYOUT, build)?;
    let planted = match options.plant {
        Some(Plant::Flip) => Some("flip"),
        Some(Plant::OlderEpoch) => Some("older-epoch"),
        None => None,
    };
    let what = format!(
        "fio for {} s, journal of {JOURNAL_MIB} MiB",
        options.seconds
    );
    let headline = stage.headline(&what, planted);
    ui::note(headline.clone());
    let result = play(&stage, options);
    let is_whole = planted.is_none();
    let conclusion = stage.conclude(&headline, result, |seen| judge(&seen, is_whole))?;
    Ok(conclusion.verdict(planted, |fault| match options.plant {
        Some(Plant::Flip) => fault.contains("fio: ") && fault.contains("verify"),
        _ => fault.starts_with("lost:"),
    }))
}

fn judge(seen: &Seen, is_whole: bool) -> Vec<String> {
    let Seen { ear, survey, .. } = seen;
    let (written, verified) = (ear.written_kib >> 10, ear.verified_kib >> 10);
    let times = written as f64 / JOURNAL_MIB as f64;
    println!(
        "  fio wrote {written} MiB ({times:.1} journals) and verified {verified} MiB while it ran; \
         {} operations beside it, {} threads with answered flushes",
        ear.operations,
        ear.safe.len()
    );
    let mut faults = survey.faults.clone();
    if faults.is_empty() {
        println!(
            "  after the promotion to epoch {}: fio verified {} MiB that were settled, wrote and \
             verified {} MiB more; {} blocks are as after the last answered flush, or later",
            seen.epoch, SETTLED.size_mib, SURVEY_MIB, survey.blocks
        );
    }
    let few = written < JOURNALS_MIN * JOURNAL_MIB || verified == 0 || ear.safe.is_empty();
    if is_whole && few {
        faults.push("the guest did too little: this proves nothing".to_owned());
    }
    faults
}

fn play(stage: &Stage, options: &Options) -> Result<Seen> {
    let mut random = fastrand::Rng::with_seed(stage.seed);
    let mut setup = stage.setup()?;
    setup.journal_size = "32MiB";
    let step = ui::step("starting backup and primary");
    let mut lab = Blockrep::start(stage.place.clone(), &setup, None, |state| step.now(state))?;
    step.done("protected");
    let step = ui::step("booting the guest; fio writes what is to stay");
    let mut guest = stage.boot(Disk::VhostUser(lab.vhost_sockets()[0]))?;
    let mut ear = Ear::default();
    ear.until(&mut guest, "fio has settled nothing", 2 * BOOT_LIMIT, |e| {
        e.is_settled
    })?;
    step.done(format!("{} MiB", SETTLED.size_mib));
    let step = ui::step("fio writes and verifies, and the churn beside it");
    let stand_in = load(stage, options, &mut lab, &mut guest, &mut ear, &step)?;
    ear.listen(&mut guest, Duration::from_millis(random.u64(0..2000)))?;
    lab.wait_until_protected(|state| step.now(state))?;
    // Both at once, as when a host dies.
    guest.signal(libc::SIGKILL);
    lab.kill_primary();
    ear.take_rest(&guest.rest_after_kill());
    step.done(format!(
        "{} MiB written, then SIGKILL to guest and primary",
        ear.written_kib >> 10
    ));
    let step = ui::step("promoting the backup");
    let promotion = lab.promote()?;
    step.done(format!("epoch {}", promotion.epoch));
    if options.plant == Some(Plant::Flip) {
        lab.wait_until_applied()?;
        let at = (SETTLED.offset_mib << 20) + random.u64(0..SETTLED.size_mib << 20);
        plant::flip_byte_at(lab.backup_image(), at)?;
        ui::note(format!(
            "  planted: one bit changed at offset {at} of the backup's image"
        ));
    }
    let disk = match &stand_in {
        Some((_, socket)) => Disk::Nbd(socket),
        None => Disk::VhostUser(lab.vhost_sockets()[1]),
    };
    let step = ui::step("a second guest verifies the promoted disk and goes on");
    let survey = stage.survey(disk, &ear.safe)?;
    match survey.faults.is_empty() {
        true => step.done(format!("{} blocks, and what fio settled", survey.blocks)),
        false => step.done("it finds damage"),
    }
    let epoch = promotion.epoch;
    Ok(Seen { ear, epoch, survey })
}

/// Lets the guest do its work; returns the older disk that is planted later, if one is.
fn load(
    stage: &Stage,
    options: &Options,
    lab: &mut Blockrep,
    guest: &mut Guest,
    ear: &mut Ear,
    step: &Step,
) -> Result<Option<(Process, PathBuf)>> {
    let mut stand_in = None;
    if options.plant == Some(Plant::OlderEpoch) {
        ear.until(guest, "no flush was answered", BOOT_LIMIT, |e| {
            !e.safe.is_empty()
        })?;
        step.now("keeping a copy of this moment, to be planted later");
        stand_in = Some(keep_older(stage, lab, guest)?);
        // So much later that the copy cannot have it.
        ear.catch_up(guest)?;
        let last = |e: &Ear| e.safe.values().copied().max().unwrap_or(0);
        let later = last(ear) + 2 * FLUSH_EVERY;
        ear.until(guest, "no further flush was answered", BOOT_LIMIT, |e| {
            last(e) >= later
        })?;
    }
    for second in 1..=options.seconds {
        lab.check()?;
        ear.listen(guest, Duration::from_secs(1))?;
        let (written, verified) = (ear.written_kib >> 10, ear.verified_kib >> 10);
        step.now(format!(
            "{second} s: {written} MiB written, {verified} MiB verified"
        ));
    }
    // Planted damage is found after any load.
    if options.plant.is_none() {
        let least = (JOURNALS_MIN * JOURNAL_MIB) << 10;
        ear.until(guest, "three journals are not written", SLOWEST, |e| {
            e.written_kib >= least && e.verified_kib > 0
        })?;
    }
    Ok(stand_in)
}

/// Copies the backup's view while the guest is paused, and serves the copy.
fn keep_older(stage: &Stage, lab: &mut Blockrep, guest: &mut Guest) -> Result<(Process, PathBuf)> {
    let place = &stage.place;
    let (copy, socket) = (place.dir.join("older.img"), place.socket("older"));
    guest.signal(libc::SIGSTOP);
    let copied = lab
        .settle()
        .and_then(|()| lab.copy_backup_view(&copy, &place.log("older-copy")));
    guest.signal(libc::SIGCONT);
    copied?;
    Ok((serve(&copy, &socket, &place.log("older-serve"))?, socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(written_kib: u64, verified_kib: u64, faults: &[&str]) -> Seen {
        Seen {
            ear: Ear {
                written_kib,
                verified_kib,
                safe: [(0, 64)].into(),
                ..Ear::default()
            },
            epoch: 9,
            survey: Survey {
                blocks: 5,
                faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
            },
        }
    }

    // A journal that never went round proves nothing about the ring.
    #[test]
    fn too_little_load_does_not_hold() {
        let enough = (JOURNALS_MIN * JOURNAL_MIB) << 10;
        assert_eq!(judge(&seen(enough, 9999, &[]), true), [""; 0]);
        assert_eq!(judge(&seen(enough - 1024, 9999, &[]), true).len(), 1);
        assert_eq!(judge(&seen(enough, 0, &[]), true).len(), 1);
        assert_eq!(judge(&seen(enough, 9999, &["lost: x"]), true), ["lost: x"]);
    }
}
