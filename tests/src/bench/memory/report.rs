//! Bars and steps, as text, markdown, JSON and a chart.

use super::super::bars::{Bar, Limit};
use super::super::report::{chart, tables};
use super::bare::Pause;
use super::pauses::{Beside, DIRTY_PAGES, Round, ms, of, pauses_of, percentile};
use super::wire::Wire;
use super::{EPOCH_MS, Part, Run};
use anyhow::{Context, Result};
use blkback_proto::ctl::{EpochFigures, GuestPromoteAnswer};
use serde_json::{Value, json};
use std::path::Path;

const CHART: &str = "memory-bars.svg";
/// Of a guest of 1 GiB that wrote all of it.
const POPULATED_GIB: f64 = 1.0;

/// What the figures were measured under.
#[derive(Debug)]
pub(super) struct Conditions(String);

impl Conditions {
    pub(super) fn new(run: &Run, load_before: String, load_after: String) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let options = &run.options;
        let pauses = format!(
            "{} rounds of {} s per point",
            options.rounds, options.seconds
        );
        let failovers = format!("{} failovers", options.failovers);
        let measured = match options.only {
            None => format!("{pauses}, {failovers}"),
            Some(Part::Pauses) => format!("{pauses} only"),
            Some(Part::Failovers) => format!("{failovers} only"),
            Some(Part::Wire) => "bytes on the wire only".to_owned(),
        };
        let idle = match run.kernel {
            Some(_) => "Linux",
            None => "one boot sector (no kernel was named)",
        };
        Self(format!(
            "{cores} cores, QEMU without KVM, all daemons and the standby on the same machine; load average {load_before} \
             before, {load_after} after. Epochs of {EPOCH_MS} ms; {measured}. The idle guest of 256 MiB is {idle}; the guest of 1 GiB is one boot sector that has written all of it. Figures are medians over the \
             rounds, spread is what lies between the lowest and the highest.",
        ))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Report {
    conditions: Conditions,
    bars: Vec<Bar>,
    steps: String,
}

type Pick<'a> = &'a dyn Fn(&Round) -> f64;

impl Report {
    pub(super) fn new(
        conditions: Conditions,
        rounds: &[Round],
        failovers: &[GuestPromoteAnswer],
        wire: &[Wire],
    ) -> Self {
        let mut bars = Vec::new();
        if !rounds.is_empty() {
            pauses(rounds, &mut bars);
            ours(rounds, &mut bars);
        }
        self::failovers(failovers, &mut bars);
        self::wire(wire, &mut bars);
        let mut steps = String::new();
        for (name, of) in [
            (
                "idle 256 MiB, devices alone",
                (|r| &r.devices.epochs) as fn(&Round) -> &Vec<EpochFigures>,
            ),
            ("idle 256 MiB, migration", |r| &r.migrate.epochs),
            ("1 GiB, idle", |r| &r.large),
            ("1 GiB, 2,000 pages", |r| &r.dirty),
        ] {
            if rounds.is_empty() {
                break;
            }
            let all: Vec<EpochFigures> = rounds.iter().flat_map(of).cloned().collect();
            steps += &row(name, &all);
            let bare: Vec<Pause> = match name {
                _ if name.ends_with("alone") => rounds
                    .iter()
                    .flat_map(|r| &r.devices.bare)
                    .copied()
                    .collect(),
                _ if name.ends_with("migration") => rounds
                    .iter()
                    .flat_map(|r| &r.migrate.bare)
                    .copied()
                    .collect(),
                _ => continue,
            };
            steps += &bare_row(&bare);
        }
        Self {
            conditions,
            bars,
            steps,
        }
    }

    pub(super) fn markdown(&self) -> String {
        let steps = match self.steps.is_empty() {
            true => String::new(),
            false => self.steps(),
        };
        format!(
            "\n# bench memory\n\n{}\n{steps}\n## Bars\n\n{}\n",
            self.conditions.0,
            tables::bars(&self.bars)
        )
    }

    fn steps(&self) -> String {
        format!(
            "\n## Steps of a pause, p50 / p99 in ms\n\nThe disks' cut runs beside scan, copy and device \
             state; \"ours\" is scan, copy, the output's cut, and what the disks' cut takes beyond the rest.\n\n| guest | \
             checkpoints | pause | stop | disk cut | scan | copy | device state | cont | ours | pages |\n|---|---:|---:|---:|---:\
             |---:|---:|---:|---:|---:|---:|\n{}",
            self.steps
        )
    }

    /// # Errors
    /// Of writing.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let rows: Vec<chart::Row> = self.bars.iter().filter_map(chart::Row::of_bar).collect();
        let drawn = chart::draw(
            "Memory: times over the bar; 1 is just met",
            &rows,
            Some(1.0),
        );
        let bars: Vec<Value> = self.bars.iter().map(Bar::json).collect();
        let json = json!({"conditions": self.conditions.0, "bars": bars});
        let files = [
            (CHART, drawn),
            (
                "memory.md",
                format!("{}![bars]({CHART})\n", self.markdown()),
            ),
            ("memory.json", serde_json::to_string_pretty(&json)?),
        ];
        for (name, text) in files {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

fn row(name: &str, all: &[EpochFigures]) -> String {
    let both = |pick: fn(&EpochFigures) -> u64| {
        let values = of(all, pick);
        format!(
            "{:.2} / {:.2}",
            percentile(&values, 50),
            percentile(&values, 99)
        )
    };
    let pages = of(all, |one| one.dirty_pages * 1000);
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} |\n",
        all.len(),
        both(|one| one.us.pause),
        both(|one| one.us.stop),
        both(|one| one.us.disk_cut),
        both(|one| one.us.scan),
        both(|one| one.us.copy),
        both(|one| one.us.device_state),
        both(|one| one.us.cont),
        both(|one| one.us.ours),
        percentile(&pages, 50)
    )
}

fn bare_row(all: &[Pause]) -> String {
    let both = |pick: fn(&Pause) -> u64| {
        let values: Vec<f64> = all.iter().map(|one| ms(pick(one))).collect();
        format!(
            "{:.2} / {:.2}",
            percentile(&values, 50),
            percentile(&values, 99)
        )
    };
    format!(
        "| by QEMU alone | {} | {} | {} | | | | {} | {} | | |\n",
        all.len(),
        both(|one| one.all()),
        both(|one| one.stop),
        both(|one| one.state),
        both(|one| one.cont),
    )
}

/// A line of a figure of each round.
fn line(rounds: &[Round], text: &str, unit: &'static str, limit: Limit, pick: Pick<'_>) -> Bar {
    let values: Vec<f64> = rounds
        .iter()
        .map(pick)
        .filter(|value| *value > 0.0)
        .collect();
    Bar::new(text, unit, &values, limit, None)
}

fn pauses(rounds: &[Round], bars: &mut Vec<Bar>) {
    type Of = fn(&Round) -> &Beside;
    for (name, of, p50, p99) in [
        ("devices alone", (|r| &r.devices) as Of, 6.5, 20.0),
        ("migration", |r| &r.migrate, 12.0, 40.0),
    ] {
        let at = |percent| move |round: &Round| percentile(&pauses_of(&of(round).epochs), percent);
        let bare = |percent| move |round: &Round| percentile(&of(round).bare_ms(), percent);
        let name = format!("pause, idle 256 MiB, {name}");
        let most = Limit::AtMost;
        bars.push(line(
            rounds,
            &format!("{name}, p50"),
            "ms",
            most(p50),
            &at(50),
        ));
        bars.push(line(
            rounds,
            &format!("{name}, p99"),
            "ms",
            most(p99),
            &at(99),
        ));
        let text = format!("{name}: QEMU alone, p50");
        bars.push(line(rounds, &text, "ms", Limit::None, &bare(50)));
        let text = format!("{name}: ratio to QEMU alone, p50");
        bars.push(line(rounds, &text, "x", Limit::None, &|round| {
            at(50)(round) / bare(50)(round).max(1e-6)
        }));
        if let Some(round) = rounds.first()
            && let Some(bar) = bars.iter_mut().rev().nth(3)
        {
            let of = of(round);
            bar.remark = format!("state by {}, pages by {}", of.state_way, of.tracker);
        }
    }
}

fn ours(rounds: &[Round], bars: &mut Vec<Bar>) {
    let ours = |epochs: &[EpochFigures]| percentile(&of(epochs, |one| one.us.ours), 50);
    let most = Limit::AtMost;
    bars.push(line(
        rounds,
        "ours, idle 256 MiB, p50",
        "ms",
        most(1.0),
        &|r| ours(&r.devices.epochs),
    ));
    bars.push(line(
        rounds,
        "scan per populated GiB, p50",
        "ms",
        most(0.5),
        &|round| percentile(&of(&round.large, |one| one.us.scan), 50) / POPULATED_GIB,
    ));
    let text = format!("ours, {DIRTY_PAGES} dirty pages of 1 GiB, p50");
    bars.push(line(rounds, &text, "ms", most(2.5), &|round| {
        ours(&round.dirty)
    }));
    bars.push(line(
        rounds,
        "1 GiB: QEMU's own live migration, standstill",
        "ms",
        Limit::None,
        &|r| r.live.0,
    ));
    bars.push(line(
        rounds,
        "1 GiB: QEMU's own live migration, in all",
        "ms",
        Limit::None,
        &|r| r.live.1,
    ));
}

fn failovers(failovers: &[GuestPromoteAnswer], bars: &mut Vec<Bar>) {
    let all: Vec<f64> = failovers.iter().map(|one| ms(one.duration_us)).collect();
    if all.is_empty() {
        return;
    }
    let line = |text: &str, percent, limit, values: &[f64]| {
        Bar::new(text, "ms", &[percentile(values, percent)], limit, None)
    };
    let mut p50 = line(
        "failover of 1 GiB, decision to running, p50",
        50,
        Limit::AtMost(30.0),
        &all,
    );
    p50.remark = format!("of {}", all.len());
    bars.push(p50);
    bars.push(line(
        "failover of 1 GiB, decision to running, longest",
        100,
        Limit::AtMost(150.0),
        &all,
    ));
    type Pick = fn(&GuestPromoteAnswer) -> u64;
    for (name, pick) in [
        ("authority", (|one| one.steps.decide_us) as Pick),
        ("disks", |one| one.steps.disk_us),
        ("memory", |one| one.steps.memory_us),
        ("QEMU loads the state", |one| one.steps.load_us),
        ("QEMU goes on", |one| one.steps.cont_us),
    ] {
        let values: Vec<f64> = failovers.iter().map(|one| ms(pick(one))).collect();
        bars.push(line(
            &format!("failover: {name}, p50"),
            50,
            Limit::None,
            &values,
        ));
    }
}

fn wire(wire: &[Wire], bars: &mut Vec<Bar>) {
    for one in wire {
        let text = format!("bytes on the wire of raw: {}", one.name);
        let mut bar = Bar::new(&text, "", &[one.counts.ratio()], Limit::AtMost(0.4), None);
        let counts = &one.counts;
        bar.remark = format!(
            "{:.1} us a page; {} full, {} differences, {} same",
            one.us_per_page, counts.full, counts.delta, counts.same
        );
        bars.push(bar);
    }
}
