//! One round: server, clients, load; host A cut off and killed; and what the database has then.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::super::protection::{Protection, Scene, Takeover};
use super::super::stage::Stage;
use super::clients::{self, Clients};
use super::judge::{self, Read, Told, Wire};
use super::{Ground, Load};
use crate::guest::now_unix_ns;
use crate::lab::Place;
use crate::process;
use crate::stop::{self, minutes};
use crate::ui;

/// Transactions that each connection must have before and after the kill.
const EACH: usize = 5;
/// How long those may take, with what TCP waits before it tries again.
const EACH_LIMIT: Duration = minutes(3);
/// How long it is watched after them.
const AFTER: Duration = Duration::from_secs(3);
/// Of all tables and indexes, of a guest that emulates its processor.
const CHECK_LIMIT: Duration = minutes(15);

const LEDGER: &str = "SELECT client, txid, delta FROM ledger";
const SUMS: &str = "SELECT (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(tbalance) FROM pgbench_tellers), \
    (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(delta) FROM pgbench_history), (SELECT sum(delta) FROM ledger)";

/// What a round has shown.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) faults: Vec<String>,
    pub(super) wire: Wire,
    /// Of this load: acknowledged, missing, more; or objects at A, at B.
    pub(super) figures: Vec<String>,
    pub(super) killed_unix_ns: Option<u64>,
    pub(super) takeover: Option<Takeover>,
    /// What was looked at besides.
    pub(super) check: String,
}

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
    let seed = random.u64(..);
    let mut protection = ground.protection(scene)?;
    protection.start_standby()?;
    protection.start_primary()?;
    protection.wait_until_protected()?;
    let step = ui::step(format!("{} clients connect", clients::CONNECTIONS));
    clients::wait_until_served(&stage, &ground.debian, place)?;
    let clients = Clients::start(&stage, &ground.debian, place, kept, seed)?;
    step.done("");
    let since = now_unix_ns();
    let mut row = Row::default();
    watch(protection.as_mut(), &clients, duration(ground, &mut random))?;
    wait_for_each(&clients, &mut row, &[0; clients::CONNECTIONS as usize])?;
    if protection.survives() {
        kill(&stage, protection.as_mut(), &clients, &mut row)?;
    }
    let step = ui::step("the clients end");
    let told = clients.finish()?;
    let epochs = protection.epochs()?;
    row.wire = Wire::of(&epochs, since);
    let count = row.tell(&told);
    step.done(format!("{count} acknowledged"));
    if row.takeover.is_some() || !protection.survives() {
        read_back(ground, &stage, place, &told, &mut row)?;
        check(ground, &stage, place, &mut row)?;
    }
    let told = json!({
        "faults": row.faults, "killed_unix_ns": row.killed_unix_ns, "connected_unix_ns": since, "ratio": row.wire.ratio(),
    });
    for (name, value) in [("round.json", &told), ("epochs.json", &epochs)] {
        let path = kept.join(name);
        let text = format!("{value}\n");
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(row)
}

/// How long there is load before the kill.
pub(super) fn duration(ground: &Ground<'_>, random: &mut fastrand::Rng) -> Duration {
    let most = ground.options.seconds * 1000;
    match ground.means.plant {
        // Damage needs some time to be done.
        Some(_) => Duration::from_millis(most),
        None => Duration::from_millis(random.u64(2_000.min(most)..=most)),
    }
}

fn watch(protection: &mut dyn Protection, clients: &Clients, time: Duration) -> Result<()> {
    let seconds = time.as_secs_f32();
    let step = ui::step(format!("the clients work for {seconds:.1} s"));
    let end = Instant::now() + time;
    while Instant::now() < end && clients.go_on() {
        protection.check()?;
        step.now(format!("{} acknowledged", clients.acknowledged()));
        stop::sleep(Duration::from_millis(100).min(end.saturating_duration_since(Instant::now())))?;
    }
    step.done(format!("{} acknowledged", clients.acknowledged()));
    Ok(())
}

/// Waits until each connection has some transactions more than `begun`.
fn wait_for_each(clients: &Clients, row: &mut Row, begun: &[usize]) -> Result<()> {
    let end = Instant::now() + EACH_LIMIT;
    loop {
        let more = clients.counts().zip(begun).map(|(now, then)| now - then);
        let least = more.min().unwrap_or(0);
        if least >= EACH {
            return Ok(());
        }
        if !clients.go_on() || Instant::now() >= end {
            row.faults
                .push(format!("a connection had only {least} answers"));
            return Ok(());
        }
        stop::sleep(Duration::from_millis(50))?;
    }
}

fn kill(
    stage: &Stage,
    protection: &mut dyn Protection,
    clients: &Clients,
    row: &mut Row,
) -> Result<()> {
    row.cut_off(stage, protection)?;
    if row.takeover.is_some() {
        let step = ui::step("the clients go on in their connections");
        let before: Vec<usize> = clients.counts().collect();
        wait_for_each(clients, row, &before)?;
        stop::sleep(AFTER)?;
        let more = clients.acknowledged() - before.iter().sum::<usize>();
        step.done(format!("{more} more acknowledged"));
    }
    Ok(())
}

fn read_back(
    ground: &Ground<'_>,
    stage: &Stage,
    place: &Place,
    told: &[Told],
    row: &mut Row,
) -> Result<()> {
    let step = ui::step("a new client reads everything back");
    let ask = |sql: &str| clients::ask_anew(stage, &ground.debian, &place.log("read"), sql);
    let read = ask(LEDGER).and_then(|ledger| Read::parse(&ledger, &ask(SUMS)?));
    let found = match read {
        Ok(read) => judge::compare(told, &read),
        Err(error) if error.is::<stop::Interrupted>() => return Err(error),
        Err(error) => {
            row.faults.push(format!("reading back: {error:#}"));
            return Ok(());
        }
    };
    step.done(format!("{} missing", found.missing));
    row.figures[1] = found.missing.to_string();
    row.figures[2] = found.more.to_string();
    row.faults.extend(found.faults);
    Ok(())
}

fn check(ground: &Ground<'_>, stage: &Stage, place: &Place, row: &mut Row) -> Result<()> {
    let step = ui::step("pg_amcheck looks at all tables and indexes");
    let mut command = clients::command(stage, &ground.debian, "pg_amcheck");
    command.args([
        "--all",
        "--heapallindexed",
        "--parent-check",
        "--rootdescend",
        "--verbose",
    ]);
    let said = process::run(&mut command, &place.log("amcheck"), CHECK_LIMIT);
    let looked = match said {
        Ok(said) => judge::amcheck(said.status.code(), &said.text),
        Err(error) if error.is::<stop::Interrupted>() => return Err(error),
        Err(error) => Err(format!("pg_amcheck: {error:#}")),
    };
    match looked {
        Ok(count) => {
            row.check = format!("clean, {count}");
            step.done(format!("{count} are clean"));
        }
        Err(fault) => {
            row.check = "NOT CLEAN".to_owned();
            row.faults.push(fault);
        }
    }
    Ok(())
}

impl Row {
    /// Host A dies; the standby is waited for.
    pub(super) fn cut_off(&mut self, stage: &Stage, protection: &mut dyn Protection) -> Result<()> {
        let step = ui::step("host A is cut off and killed");
        let unix_ns = now_unix_ns();
        self.killed_unix_ns = Some(unix_ns);
        stage.cut_off_a()?;
        protection.kill_host_a();
        step.done("");
        let step = ui::step("the guest goes on at host B");
        match protection.wait_for_takeover() {
            Ok(takeover) => {
                step.done(takeover.words(unix_ns));
                self.takeover = Some(takeover);
            }
            Err(error) if error.is::<stop::Interrupted>() => return Err(error),
            Err(error) => self
                .faults
                .push(format!("the guest did not go on: {error:#}")),
        }
        Ok(())
    }

    /// Takes in what the clients have seen; returns how many transactions were acknowledged.
    fn tell(&mut self, told: &[Told]) -> usize {
        let count: usize = told.iter().map(|one| one.acknowledged.len()).sum();
        let resets = told.iter().filter(|one| one.ended.is_some()).count();
        for (number, one) in (1..).zip(told) {
            if let Some(why) = &one.ended {
                self.faults.push(format!("client {number}: {why}"));
            }
        }
        let gap = told.iter().map(Told::longest_gap).max().unwrap_or_default();
        let gap = format!("{} ms", gap.as_millis());
        let unknown = || "?".to_owned();
        self.figures = vec![
            count.to_string(),
            unknown(),
            unknown(),
            resets.to_string(),
            gap,
        ];
        count
    }

    pub(super) fn head(load: Load) -> Vec<String> {
        let own: &[&str] = match load {
            Load::Pgbench => &[
                "acknowledged",
                "missing",
                "unanswered there",
                "resets",
                "longest gap",
            ],
            Load::Compile => &["objects at A", "at B"],
        };
        let last = match load {
            Load::Pgbench => "pg_amcheck",
            Load::Compile => "objects",
        };
        let names = [
            &["round"],
            own,
            &["detected", "runs at B", last, "sent", "result"],
        ]
        .concat();
        names.into_iter().map(str::to_owned).collect()
    }

    pub(super) fn cells(&self, number: usize) -> Vec<String> {
        let since_kill = |at: fn(&Takeover) -> Option<u64>| {
            let at = self.takeover.as_ref().and_then(at);
            let both = self.killed_unix_ns.zip(at);
            both.map_or("-".to_owned(), |(kill, at)| {
                format!("{} ms", at.saturating_sub(kill) / 1_000_000)
            })
        };
        let mut cells = vec![number.to_string()];
        cells.extend(self.figures.iter().cloned());
        cells.push(since_kill(|takeover| takeover.detected_unix_ns));
        cells.push(since_kill(|takeover| takeover.running_unix_ns));
        cells.push(match self.check.as_str() {
            "" => "-".to_owned(),
            check => check.to_owned(),
        });
        cells.push(
            self.wire
                .ratio()
                .map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
        );
        let result = if self.faults.is_empty() {
            "holds"
        } else {
            "FAILED"
        };
        cells.push(result.to_owned());
        cells
    }
}
