//! One round with a compiler: what its checkpoints send, and whether it goes on at the other host with the same result.
//!
//! Each object is compared with the first one in the guest, and each is a line on its serial line. A guest where one
//! differs, or whose compiler fails, says `LEDGER-FAIL`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::protection::Scene;
use super::super::stage::Stage;
use super::Ground;
use super::judge::Wire;
use super::round::{Row, duration};
use crate::guest::now_unix_ns;
use crate::lab::Place;
use crate::stop::{self, minutes};
use crate::ui;

/// Of a guest that emulates its processor, on a machine with other things to do.
const OBJECT_LIMIT: Duration = minutes(5);

pub(super) fn run(
    ground: &Ground<'_>,
    place: &Place,
    kept: &Path,
    mut random: fastrand::Rng,
) -> Result<Row> {
    let stage = Stage::build()?;
    let scene = Scene {
        means: &ground.means,
        machine: ground.machine(),
        stage: &stage,
        place,
    };
    let mut protection = ground.protection(scene)?;
    let [at_a, at_b] = match protection.survives() {
        true => ["a-serial", "b-serial"].map(|name| place.log(name)),
        false => ["guest-serial"; 2].map(|name| place.log(name)),
    };
    protection.start_standby()?;
    protection.start_primary()?;
    protection.wait_until_protected()?;
    let since = now_unix_ns();
    let mut row = Row::default();
    let time = duration(ground, &mut random);
    let step = ui::step(format!(
        "it compiles for {:.1} s at least",
        time.as_secs_f32()
    ));
    let (begun, end) = (Instant::now(), Instant::now() + time);
    // The first is what the others are compared with.
    while Instant::now() < end || objects(&at_a)? < 2 {
        protection.check()?;
        if let Some(fault) = failure(&at_a)? {
            row.faults.push(fault);
            break;
        }
        if begun.elapsed() > time + OBJECT_LIMIT {
            row.faults.push("no two objects came of it".to_owned());
            break;
        }
        stop::sleep(Duration::from_millis(100))?;
    }
    let before = objects(&at_a)?;
    step.done(ui::count(before, "object"));
    let mut after = 0;
    if protection.survives() {
        row.cut_off(&stage, protection.as_mut())?;
        if row.takeover.is_some() {
            after = compiles_on(&at_b, &mut row)?;
        }
    }
    let epochs = protection.epochs()?;
    row.wire = Wire::of(&epochs, since);
    row.figures = vec![before.to_string(), after.to_string()];
    row.check = if row.faults.is_empty() {
        "the same"
    } else {
        ""
    }
    .to_owned();
    let path = kept.join("epochs.json");
    let text = format!("{epochs}\n");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(row)
}

/// Objects that it made at host B.
fn compiles_on(at_b: &Path, row: &mut Row) -> Result<usize> {
    let step = ui::step("it compiles on at host B");
    let end = Instant::now() + OBJECT_LIMIT;
    let mut after = 0;
    // The first may have been in the making when the host died.
    while after < 2 && Instant::now() < end && failure(at_b)?.is_none() {
        stop::sleep(Duration::from_millis(100))?;
        after = objects(at_b)?;
    }
    row.faults.extend(failure(at_b)?);
    if after < 2 {
        row.faults
            .push(format!("{} at host B", ui::count(after, "object")));
    }
    step.done(ui::count(after, "object"));
    Ok(after)
}

fn said(serial: &Path) -> Result<String> {
    let bytes = std::fs::read(serial).with_context(|| format!("read {}", serial.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn objects(serial: &Path) -> Result<usize> {
    Ok(said(serial)?.matches("COMPILED ").count())
}

fn failure(serial: &Path) -> Result<Option<String>> {
    let said = said(serial)?;
    let at = said.find("LEDGER-FAIL");
    Ok(at.map(|at| {
        let line = said[at..].lines().next().unwrap_or_default();
        format!("the guest says: {line}")
    }))
}
