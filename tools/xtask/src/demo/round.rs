//! One round with a guest: boot, kill, promote, check, boot again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::judge::{self, Ledger, PROMISED_MIN, Reports, Row, Shown};
use super::{Plant, Stage, plant, sparse_file};
use crate::fsck::{self, FileSystem};
use crate::guest::{BOOT_LIMIT, Boot, Guest, GuestFailed, Heard, MEMORY_MIB, Word};
use crate::lab::{Blockrep, Lab, Place, QemuNbd, serve};
use crate::netns::Host;
use crate::process::Process;
use crate::stop::minutes;
use crate::ui::{self, Step};

const DISK_BYTES: u64 = 256 << 20;
/// Entries the guest adds on the promoted disk, to show that it goes on.
const MORE: u64 = 25;
/// A guest that writes fewer than [`PROMISED_MIN`] entries in this time is stuck.
const SLOWEST: Duration = minutes(1);
/// One entry comes well within this.
const ENTRY_LIMIT: Duration = Duration::from_secs(30);

pub(super) fn run(stage: &Stage<'_>, place: &Place, mut random: fastrand::Rng) -> Result<Row> {
    let ledger_id = random.u64(..);
    let mut lab = start(stage, place)?;
    let step = ui::step("booting the guest at the primary");
    let role = format!("role=ledger run={ledger_id}");
    let host = lab.hosts().map(|[primary, _]| primary);
    let mut guest = boot(stage, place, "ledger", role, lab.primary_socket(), host)?;
    match guest.expect_word("to mount its disk", BOOT_LIMIT)? {
        Word::Ready => step.done(""),
        _ => bail!("the guest began with something else than LEDGER-READY"),
    }

    let step = ui::step("the guest writes its ledger");
    let mut heard = Vec::new();
    let mut stand_in = None;
    if stage.options.plant == Some(Plant::OlderEpoch) {
        listen(
            lab.as_mut(),
            &mut guest,
            &mut heard,
            Duration::from_secs(1),
            &step,
        )?;
        step.now("keeping a copy of this moment, to be planted later");
        stand_in = Some(keep_older(lab.as_mut(), &mut guest, place)?);
    }
    let until_kill = Duration::from_millis(random.u64(1_000..6_000));
    listen(lab.as_mut(), &mut guest, &mut heard, until_kill, &step)?;
    let latency = lab.commit_latency()?;
    // Both at once, as when a host dies.
    guest.signal(libc::SIGKILL);
    lab.kill_primary();
    heard.extend(guest.rest_after_kill());
    step.done(format!(
        "{} entries reported, then SIGKILL to guest and primary",
        last_entry(&heard)
    ));

    let step = ui::step("promoting the backup");
    let promotion = lab.promote()?;
    step.done(format!("epoch {}", promotion.epoch));
    if stage.options.plant == Some(Plant::Flip) {
        lab.wait_until_applied()?;
        let at = plant::flip_ledger_byte(lab.backup_image(), ledger_id)?;
        ui::note(format!(
            "  planted: one byte changed at offset {at} of the backup's image"
        ));
    }
    let disk = stand_in
        .as_ref()
        .map_or(lab.backup_socket(), |(_, socket)| socket.as_path());
    let reports = Reports::split(&heard, promotion.cut_unix_ns);
    let found = examine(stage, place, lab.as_ref(), disk, (ledger_id, reports.last))?;
    let promises_all = stage.options.ack.promises_all();
    let mut faults = found.faults;
    if let Some(ledger) = found.ledger {
        faults.extend(judge::faults(reports, ledger, promises_all));
    }
    let shown = Shown::Guest {
        reports,
        ledger: found.ledger,
        file_system: found.file_system,
    };
    Ok(Row {
        promotion,
        latency,
        shown,
        faults,
    })
}

fn start(stage: &Stage<'_>, place: &Place) -> Result<Box<dyn Lab>> {
    let image = place.dir.join("a.img");
    let step = ui::step("making an ext4 disk");
    sparse_file(&image, DISK_BYTES)?;
    fsck::make(&image, &place.log("mkfs"))?;
    step.done(format!("{} MiB", DISK_BYTES >> 20));
    let Some(setup) = stage.setup(&image) else {
        return Ok(Box::new(QemuNbd::start(place.clone(), image)?));
    };
    let step = ui::step("starting backup and primary");
    let hosts = stage.hosts()?;
    let lab = Blockrep::start(place.clone(), &setup, hosts, |state| step.now(state))?;
    step.done("protected");
    Ok(Box::new(lab))
}

fn boot(
    stage: &Stage<'_>,
    place: &Place,
    name: &str,
    arguments: String,
    disk: &Path,
    host: Option<&Host>,
) -> Result<Guest> {
    let (kernel, accelerator) = stage
        .guest
        .as_ref()
        .context("this round is without a guest")?;
    Guest::boot(&Boot {
        kernel,
        accelerator: *accelerator,
        arguments,
        memory_mib: MEMORY_MIB,
        disk_socket: Some(disk),
        devices: &[],
        dir: &place.dir,
        name,
        host,
        half_line: Vec::new(),
    })
}

/// Hears the guest for `time`, and longer if it has not yet written enough to prove something.
fn listen(
    lab: &mut dyn Lab,
    guest: &mut Guest,
    heard: &mut Vec<Heard>,
    time: Duration,
    step: &Step,
) -> Result<()> {
    let first = last_entry(heard);
    let since = Instant::now();
    // The entries of the last moments may be reported after the cut: ask for twice the minimum.
    while since.elapsed() < time || last_entry(heard) < first + 2 * PROMISED_MIN {
        if since.elapsed() > time + SLOWEST {
            let entries = last_entry(heard) - first;
            bail!(
                "the guest wrote only {entries} entries in {} s",
                since.elapsed().as_secs()
            );
        }
        lab.check()?;
        let Some(one) = guest.next(Duration::from_millis(100))? else {
            continue;
        };
        match one.word {
            Word::Entry(number) => step.now(format!("entry {number}")),
            _ => bail!("the guest stopped writing its ledger: the disk is full"),
        }
        heard.push(one);
    }
    Ok(())
}

fn last_entry(heard: &[Heard]) -> u64 {
    let entries = heard.iter().filter_map(|one| match one.word {
        Word::Entry(number) => Some(number),
        _ => None,
    });
    entries.max().unwrap_or(0)
}

/// Copies the backup's view while the guest is paused, and serves the copy.
fn keep_older(lab: &mut dyn Lab, guest: &mut Guest, place: &Place) -> Result<(Process, PathBuf)> {
    let (copy, socket) = (place.dir.join("older.img"), place.socket("older"));
    guest.signal(libc::SIGSTOP);
    let copied = lab
        .settle()
        .and_then(|()| lab.copy_backup_view(&copy, &place.log("older-copy")));
    guest.signal(libc::SIGCONT);
    copied?;
    Ok((serve(&copy, &socket, &place.log("older-serve"))?, socket))
}

/// What was found on the promoted disk; a fault of the disk is a finding, not an error.
#[derive(Debug, Default)]
struct Found {
    ledger: Option<Ledger>,
    file_system: String,
    faults: Vec<String>,
}

/// Checks the file system from outside, boots the guest from it, checks it again.
fn examine(
    stage: &Stage<'_>,
    place: &Place,
    lab: &dyn Lab,
    disk: &Path,
    (ledger_id, reported): (u64, u64),
) -> Result<Found> {
    let mut found = Found::default();
    let step = ui::step("checking the file system on a copy of the promoted disk");
    match fsck::check(disk, &place.dir, "fsck-promoted")? {
        FileSystem::Clean { replayed } => {
            found.file_system = "clean".to_owned();
            step.done(if replayed {
                "clean after journal replay"
            } else {
                "clean"
            });
        }
        FileSystem::Damaged(how) => {
            found.file_system = "DAMAGED".to_owned();
            found.faults.push(how);
            step.done("DAMAGED");
        }
    }
    let step = ui::step("booting the guest from the promoted disk");
    let role = format!("role=verify run={ledger_id} more={MORE}");
    let host = lab.hosts().map(|[_, backup]| backup);
    let mut guest = boot(stage, place, "verify", role, disk, host)?;
    match verify(&mut guest, &mut found) {
        Ok(()) => {}
        Err(error) if error.is::<GuestFailed>() => {
            found.faults.push(error.to_string());
            step.done("it finds damage");
            return Ok(found);
        }
        Err(error) => return Err(error),
    }
    let last = found.ledger.map_or(0, |ledger| ledger.last);
    step.done(format!(
        "entries 1 to {last} are there ({reported} were reported), and it goes on to {}",
        last + MORE
    ));
    let step = ui::step("checking the file system after its orderly end");
    match fsck::check(disk, &place.dir, "fsck-end")? {
        FileSystem::Clean { replayed: false } => step.done("clean"),
        FileSystem::Clean { replayed: true } => {
            found
                .faults
                .push("after an orderly end the journal was not empty".to_owned());
        }
        FileSystem::Damaged(how) => found.faults.push(format!("after an orderly end: {how}")),
    }
    Ok(found)
}

/// Hears the second guest: its survey, its further entries, its orderly end.
fn verify(guest: &mut Guest, found: &mut Found) -> Result<()> {
    let Word::Verified { last, torn } = guest.expect_word("to survey its ledger", BOOT_LIMIT)?
    else {
        bail!("the second guest began with something else than VERIFIED");
    };
    found.ledger = Some(Ledger { last, torn });
    for number in last + 1..=last + MORE {
        if guest.expect_word("to go on", ENTRY_LIMIT)? != Word::Entry(number) {
            bail!("the second guest did not go on with entry {number}");
        }
    }
    if guest.expect_word("to unmount", ENTRY_LIMIT)? != Word::Done {
        bail!("the second guest did not come to its end");
    }
    guest.wait_for_power_off()
}
