//! One round without a guest: the load generator writes, and checks what was promoted.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::judge::{Row, Shown};
use super::{Plant, Stage, plant, sparse_file};
use crate::lab::{Blockrep, Lab, Place, serve};
use crate::process::{self, Process};
use crate::stop::minutes;
use crate::{stop, ui};

const DISK_BYTES: u64 = 128 << 20;
/// The generator would run this long; it loses its disk before.
const LOAD_SECONDS: u64 = 12;
const CHECK_LIMIT: Duration = minutes(2);
/// What `blockrep-load check` ends with when the disk breaks a promise.
const EXIT_VIOLATION: i32 = 1;

pub(super) fn run(stage: &Stage<'_>, place: &Place, mut random: fastrand::Rng) -> Result<Row> {
    let image = place.dir.join("a.img");
    sparse_file(&image, DISK_BYTES)?;
    let setup = stage
        .setup(&image)
        .context("a round without a guest needs the daemons")?;
    let step = ui::step("starting backup and primary");
    let mut lab = Blockrep::start(place.clone(), &setup, stage.hosts()?, |state| {
        step.now(state)
    })?;
    step.done("protected");

    let step = ui::step("loading the disk");
    let history = place.dir.join("load.history");
    let mut command = setup.programs.command("blockrep-load");
    command.args(["run", "--nbd", &unix(lab.primary_socket())]);
    command.arg("--control").arg(lab.primary_control());
    command
        .args(["--cut-every", "250", "--flush-every", "50"])
        .args(["--seconds", &LOAD_SECONDS.to_string()])
        .arg("--log")
        .arg(&history);
    command.args(["--seed", &random.u32(..).to_string()]);
    let mut load = Process::spawn(&mut command, "blockrep-load run", &place.log("load"))?;
    let mut stand_in = None;
    if stage.options.plant == Some(Plant::OlderEpoch) {
        run_for(&mut lab, &mut load, Duration::from_secs(2))?;
        step.now("keeping a copy of this moment, to be planted later");
        stand_in = Some(keep_older(&mut lab, &mut load, place)?);
    }
    run_for(
        &mut lab,
        &mut load,
        Duration::from_millis(random.u64(2_000..6_000)),
    )?;
    let latency = lab.commit_latency()?;
    lab.kill_primary();
    // It has lost its disk and ends by itself; how, is its own business: its history counts.
    if load.wait(Duration::from_secs(10)).is_err() {
        stop::check()?;
        load.kill();
    }
    step.done("SIGKILL to the primary");

    let step = ui::step("promoting the backup");
    let promotion = lab.promote()?;
    step.done(format!("epoch {}", promotion.epoch));
    if stage.options.plant == Some(Plant::Flip) {
        lab.wait_until_applied()?;
        let at = plant::flip_any_byte(lab.backup_image())?;
        ui::note(format!(
            "  planted: one byte changed at offset {at} of the backup's image"
        ));
    }
    let disk = stand_in
        .as_ref()
        .map_or(lab.backup_socket(), |(_, socket)| socket.as_path());
    let step = ui::step("checking the promoted disk against what was acknowledged");
    let mut command = setup.programs.command("blockrep-load");
    command
        .args(["check", "--nbd", &unix(disk)])
        .arg("--log")
        .arg(&history);
    command.args([
        "--epoch",
        &promotion.epoch.to_string(),
        "--ack",
        stage.options.ack.name(),
    ]);
    let said = process::run(&mut command, &place.log("check"), CHECK_LIMIT)?;
    let words = last_line(&said.text);
    let (verdict, faults) = match said.status.code() {
        Some(0) => ("sound", vec![]),
        Some(EXIT_VIOLATION) => ("VIOLATED", vec![words.clone()]),
        _ => {
            let how = process::describe(said.status);
            bail!("blockrep-load check: {how}{}", process::tail_of(&said.log));
        }
    };
    step.done(match faults.is_empty() {
        true => format!("all that was promised is there; {words}"),
        false => words,
    });
    Ok(Row {
        promotion,
        latency,
        shown: Shown::Load {
            verdict: verdict.to_owned(),
        },
        faults,
    })
}

/// The last words of a report, without the spaces that line up its columns.
fn last_line(text: &str) -> String {
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    let words: Vec<&str> = line.unwrap_or("").split_whitespace().collect();
    words.join(" ")
}

/// Lets the load run for `time`; it must not end before.
fn run_for(lab: &mut Blockrep, load: &mut Process, time: Duration) -> Result<()> {
    stop::sleep(time)?;
    lab.check()?;
    load.must_be_alive()
}

/// Copies the backup's view while the load is paused, and serves the copy.
fn keep_older(
    lab: &mut Blockrep,
    load: &mut Process,
    place: &Place,
) -> Result<(Process, std::path::PathBuf)> {
    let (copy, socket) = (place.dir.join("older.img"), place.socket("older"));
    load.signal(libc::SIGSTOP);
    let copied = lab
        .settle()
        .and_then(|()| lab.copy_backup_view(&copy, &place.log("older-copy")));
    load.signal(libc::SIGCONT);
    copied?;
    Ok((serve(&copy, &socket, &place.log("older-serve"))?, socket))
}

fn unix(path: &std::path::Path) -> String {
    format!("unix:{}", path.display())
}
