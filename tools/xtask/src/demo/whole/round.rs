//! One round: guest, client, load; host A cut off and killed; and what the client says of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::{Client, Load};
use super::machine::{self, Machine};
use super::protection::{self, Protection, Scene, Takeover};
use super::stage::Stage;
use super::{Ground, Kind};
use crate::guest::now_unix_ns;
use crate::lab::Place;
use crate::{stop, ui};

/// Transactions that a round without a kill has to see.
const ANSWERED_MIN: u64 = 50;
/// Transactions that must be answered after the kill.
const MORE: u64 = 100;
/// How long they may take, with what TCP waits before it tries again.
const MORE_LIMIT: Duration = Duration::from_secs(60);
/// How long it is watched after them.
const AFTER: Duration = Duration::from_secs(3);

/// What a round has shown.
#[derive(Debug)]
pub(super) struct Row {
    /// The client's.
    figures: Value,
    killed_unix_ns: Option<u64>,
    takeover: Option<Takeover>,
    pub(super) faults: Vec<String>,
    /// Where its JSON is.
    pub(super) kept: PathBuf,
}

/// What the kill came to.
struct Kill {
    unix_ns: u64,
    takeover: Result<Takeover>,
    faults: Vec<String>,
}

pub(super) fn run(
    ground: &Ground<'_>,
    place: &Place,
    kept: &Path,
    mut random: fastrand::Rng,
) -> Result<Row> {
    let load = Load {
        run: random.u64(1..),
        seed: random.u64(..),
        window: ground.options.window,
    };
    let stage = Stage::build()?;
    let words = machine::words(load.run, ground.options.pages_per_second);
    let scene = Scene {
        means: &ground.means,
        machine: Machine {
            memory_mib: ground.options.memory_mib,
            protected_limit: machine::protected_limit(ground.options.memory_mib),
            ..Machine::teller(&ground.kernel, ground.accelerator, &words)
        },
        stage: &stage,
        place,
    };
    let mut protection: Box<dyn Protection + '_> = match ground.options.protection {
        Kind::None => Box::new(protection::Unprotected::new(scene)),
        Kind::Checkpointer => Box::new(protection::Checkpointer::new(scene)?),
    };
    protection.start_standby()?;
    protection.start_primary()?;
    let step = ui::step("the client connects");
    let mut client = Client::start(&stage, &ground.means.programs, place, kept, load)?;
    step.done("");
    protection.wait_until_protected()?;
    let kill = match protection.survives() {
        true => {
            let until = Duration::from_millis(
                random.u64(2_000..=2_000.max(ground.options.seconds * 1_000)),
            );
            watch(protection.as_mut(), &mut client, until)?;
            Some(kill(&stage, protection.as_mut(), &mut client)?)
        }
        false => {
            let time = Duration::from_secs(ground.options.seconds);
            watch(protection.as_mut(), &mut client, time)?;
            None
        }
    };
    let step = ui::step("the client reads the ledger back and judges");
    let seen = client.finish()?;
    step.done(format!("{} answered", seen["figures"]["answered"]));
    let epochs = protection.epochs()?;
    conclude(kept, seen, kill, &epochs)
}

/// Lets the client stream for `time`.
fn watch(protection: &mut dyn Protection, client: &mut Client, time: Duration) -> Result<()> {
    let step = ui::step(format!(
        "the client streams for {:.1} s",
        time.as_secs_f32()
    ));
    let end = Instant::now() + time;
    while Instant::now() < end && client.goes_on()? {
        protection.check()?;
        step.now(format!("{} answered", client.answered()?));
        stop::sleep(Duration::from_millis(100).min(end.saturating_duration_since(Instant::now())))?;
    }
    step.done(format!("{} answered", client.answered()?));
    Ok(())
}

fn kill(stage: &Stage, protection: &mut dyn Protection, client: &mut Client) -> Result<Kill> {
    let step = ui::step("host A is cut off and killed");
    let unix_ns = now_unix_ns();
    stage.cut_off_a()?;
    protection.kill_host_a();
    let before = client.answered()?;
    step.done("");
    let step = ui::step("the guest goes on at host B");
    let takeover = protection.wait_for_takeover();
    let mut faults = Vec::new();
    match &takeover {
        Ok(takeover) => step.done(takeover.words(unix_ns)),
        Err(error) if error.is::<stop::Interrupted>() => return Err(stop::Interrupted.into()),
        Err(error) => faults.push(format!("the guest did not go on: {error:#}")),
    }
    if takeover.is_ok() {
        let step = ui::step("the client streams on in its connection");
        let end = Instant::now() + MORE_LIMIT;
        while client.goes_on()? && client.answered()? < before + MORE && Instant::now() < end {
            stop::sleep(Duration::from_millis(50))?;
        }
        let more = client.answered()?.saturating_sub(before);
        if more < MORE {
            faults.push(format!(
                "only {more} transactions were answered after the kill"
            ));
        }
        stop::sleep(AFTER)?;
        step.done(format!(
            "{} more answered",
            client.answered()?.saturating_sub(before)
        ));
    }
    Ok(Kill {
        unix_ns,
        takeover,
        faults,
    })
}

/// Writes what is known of the round for the report, and makes its row.
fn conclude(kept: &Path, seen: Value, kill: Option<Kill>, epochs: &Value) -> Result<Row> {
    let (mut own, mut killed_unix_ns, mut takeover) = (Vec::new(), None, None);
    match kill {
        Some(kill) => {
            killed_unix_ns = Some(kill.unix_ns);
            own = kill.faults;
            takeover = kill.takeover.ok();
        }
        None => {
            let answered = seen["figures"]["answered"].as_u64().unwrap_or(0);
            if answered < ANSWERED_MIN {
                own.push(format!("only {answered} transactions: this proves nothing"));
            }
        }
    }
    let mut told = json!({"faults": own, "killed_unix_ns": killed_unix_ns});
    if let Some(takeover) = &takeover {
        takeover.tell(&mut told);
    }
    for (name, value) in [("round.json", &told), ("epochs.json", epochs)] {
        let path = kept.join(name);
        std::fs::write(&path, format!("{value}\n"))
            .with_context(|| format!("write {}", path.display()))?;
    }
    let found = seen["faults"].as_array().into_iter().flatten();
    let mut faults: Vec<String> = found.filter_map(Value::as_str).map(str::to_owned).collect();
    faults.extend(own);
    Ok(Row {
        figures: seen["figures"].clone(),
        killed_unix_ns,
        takeover,
        faults,
        kept: kept.to_owned(),
    })
}

impl Row {
    pub(super) fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn head() -> Vec<String> {
        let names = [
            "round",
            "answered",
            "a second",
            "resets",
            "latency p50 / p99",
            "p50 before the gap",
            "longest gap",
            "detected",
            "runs at B",
            "clock lost",
            "result",
        ];
        names.map(str::to_owned).to_vec()
    }

    pub(super) fn cells(&self, number: usize) -> Vec<String> {
        let figure = |name: &str| self.figures[name].as_f64().unwrap_or(0.0);
        let ms = |name: &str| figure(name) / 1000.0;
        let since_kill = |at: fn(&Takeover) -> Option<u64>| {
            let at = self.takeover.as_ref().and_then(at);
            let both = self.killed_unix_ns.zip(at);
            both.map_or("-".to_owned(), |(kill, at)| {
                format!("{:.0} ms", at.saturating_sub(kill) as f64 / 1e6)
            })
        };
        vec![
            number.to_string(),
            self.figures["answered"].to_string(),
            format!("{:.0}", figure("per_second")),
            self.figures["resets"].to_string(),
            format!(
                "{:.1} / {:.1} ms",
                ms("latency_p50_us"),
                ms("latency_p99_us")
            ),
            format!("{:.1} ms", ms("latency_before_gap_p50_us")),
            format!("{:.1} ms", ms("longest_gap_us")),
            since_kill(|takeover| takeover.detected_unix_ns),
            since_kill(|takeover| takeover.running_unix_ns),
            format!(
                "{:.1} ms of {:.0} s",
                ms("clock_lost_us"),
                figure("observed_us") / 1e6
            ),
            if self.holds() { "holds" } else { "FAILED" }.to_owned(),
        ]
    }
}
