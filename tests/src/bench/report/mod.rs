//! The report: bars, tables and charts, as text, markdown, JSON and SVG.

pub(super) mod chart;
pub(super) mod tables;

use super::DiskOptions;
use super::bars::Bar;
use super::plan::StackKind;
use super::point::Point;
use super::stats::Middle;
use super::workload::{Pattern, Workload};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Name of the chart of all bars.
const BARS_CHART: &str = "disk-bars.svg";

/// Everything measured.
#[derive(Debug)]
pub(super) struct Report {
    options: DiskOptions,
    points: Vec<Point>,
    bars: Vec<Bar>,
    skipped: Vec<String>,
    machine: String,
}

impl Report {
    pub(super) fn new(
        options: &DiskOptions,
        points: Vec<Point>,
        bars: Vec<Bar>,
        skipped: Vec<String>,
    ) -> Self {
        Self {
            options: options.clone(),
            points,
            bars,
            skipped,
            machine: machine(),
        }
    }

    /// Points of a stack under a workload, by round.
    fn of(&self, workload: Workload, stack: StackKind) -> Vec<&Point> {
        let same = |p: &&Point| p.workload == workload && p.stack == stack;
        self.points.iter().filter(same).collect()
    }

    fn median(&self, workload: Workload, stack: StackKind, of: impl Fn(&Point) -> f64) -> f64 {
        let values: Vec<f64> = self.of(workload, stack).into_iter().map(of).collect();
        Middle::of(&values).map_or(0.0, |m| m.median)
    }

    fn iops(&self, workload: Workload, stack: StackKind) -> Option<Middle> {
        let points = self.of(workload, stack);
        Middle::of(&points.iter().map(|p| p.load.iops).collect::<Vec<_>>())
    }

    /// Median of the ratios of `stack` to `base` within each round.
    fn ratio(&self, workload: Workload, stack: StackKind, base: StackKind) -> Option<f64> {
        let bases = self.of(workload, base);
        let ratios: Vec<f64> = self
            .of(workload, stack)
            .into_iter()
            .filter_map(|p| {
                let base = bases.iter().find(|b| b.round == p.round)?;
                Some(p.load.iops / base.load.iops)
            })
            .collect();
        Middle::of(&ratios).map(|m| m.median)
    }

    fn head(&self) -> String {
        let o = &self.options;
        let mut text = format!(
            "\n# bench disk\n\n{}\n{} rounds of {} s per point, interleaved; images of {} MiB; \
             journals of {} MiB (burst) and {} MiB (sustained); epochs of {} ms.\nFigures are \
             medians over the rounds; ratios are medians of the ratios within each round, spread is \
             what lies between the lowest and the highest. Only ratios within one run count: other \
             work on the machine moves the figures themselves.\n",
            self.machine,
            o.rounds,
            o.seconds,
            o.size_mib,
            o.burst_journal_mib,
            o.sustained_journal_mib,
            o.epoch_ms
        );
        for skipped in &self.skipped {
            text += &format!("Skipped: {skipped}\n");
        }
        text
    }

    /// The report for a terminal: what is read first stands last.
    pub(super) fn text(&self) -> String {
        let mut text = self.head();
        for workload in Workload::ALL {
            self.points_text(workload, &mut text);
        }
        text + "\n## Bars\n\n" + &tables::bars(&self.bars)
    }

    /// The report as markdown, with charts.
    fn markdown(&self) -> String {
        let mut text = self.head();
        text += &format!("\n## Bars\n\n{}\n", tables::bars(&self.bars));
        text += &format!("![bars]({BARS_CHART})\n");
        for workload in Workload::ALL {
            self.points_text(workload, &mut text);
            if self.is_charted(workload) {
                text += &format!("![{}]({})\n", workload.name(), chart_name(workload));
            }
        }
        text
    }

    fn is_charted(&self, workload: Workload) -> bool {
        workload.pattern == Pattern::Free && self.points.iter().any(|p| p.workload == workload)
    }

    fn charts(&self) -> Vec<(String, String)> {
        let over: Vec<chart::Row> = self.bars.iter().filter_map(chart::Row::of_bar).collect();
        let title = "How far over the bar (1 is met)";
        let mut charts = vec![(BARS_CHART.to_owned(), chart::draw(title, &over, Some(1.0)))];
        for workload in Workload::ALL.into_iter().filter(|w| self.is_charted(*w)) {
            let rows: Vec<chart::Row> = StackKind::all()
                .into_iter()
                .filter_map(|stack| {
                    let iops = self.iops(workload, stack)?;
                    Some(chart::Row::of_rate(stack.name(), iops))
                })
                .collect();
            let title = format!("{}: requests per second", workload.name());
            charts.push((chart_name(workload), chart::draw(&title, &rows, None)));
        }
        charts
    }

    fn json(&self) -> Value {
        let mut summary = Vec::new();
        for workload in Workload::ALL {
            for stack in StackKind::all() {
                let Some(iops) = self.iops(workload, stack) else {
                    continue;
                };
                summary.push(json!({"workload": workload.name(), "stack": stack.name(),
                    "iops_median": iops.median, "spread": iops.spread,
                    "ratio_to_qemu_nbd": self.ratio(workload, stack, StackKind::QemuNbd),
                    "ratio_to_raw": self.ratio(workload, stack, StackKind::Raw)}));
            }
        }
        let o = &self.options;
        let points: Vec<Value> = self.points.iter().map(Point::json).collect();
        let bars: Vec<Value> = self.bars.iter().map(Bar::json).collect();
        json!({"machine": self.machine, "skipped": self.skipped,
            "options": {"seconds": o.seconds, "rounds": o.rounds, "size_mib": o.size_mib,
                "burst_journal_mib": o.burst_journal_mib,
                "sustained_journal_mib": o.sustained_journal_mib, "epoch_ms": o.epoch_ms},
            "bars": bars, "summary": summary, "points": points})
    }

    /// Writes `disk.md`, `disk.json` and the charts.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.json())?;
        let mut files = self.charts();
        files.push(("disk.md".to_owned(), self.markdown()));
        files.push(("disk.json".to_owned(), json));
        for (name, text) in files {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

fn chart_name(workload: Workload) -> String {
    format!("disk-{}.svg", workload.name())
}

/// The machine in a line: ratios are told with it.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = read("/proc/meminfo");
    let kib: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("unknown");
    format!(
        "{model}, {cores} cores, {} GiB, Linux {}; load average at the end {load}.",
        kib >> 20,
        kernel.trim()
    )
}
