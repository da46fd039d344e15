//! The tables: medians over rounds, ratios within rounds, as markdown and JSON.

use super::plan::{StackKind, Workload};
use super::point::{Cost, JOURNALS_MIN, Point, Replica};
use super::{DiskOptions, MIB};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// Everything measured.
#[derive(Debug)]
pub(super) struct Report {
    options: DiskOptions,
    points: Vec<Point>,
    skipped: Vec<String>,
    machine: String,
}

/// A median and how far the rounds are apart, as a part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Middle {
    median: f64,
    spread: f64,
}

impl Report {
    pub(super) fn new(options: &DiskOptions, points: Vec<Point>, skipped: Vec<String>) -> Self {
        Self {
            options: options.clone(),
            points,
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
        middle(&values).map_or(0.0, |m| m.median)
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
        middle(&ratios).map(|m| m.median)
    }

    /// The report as markdown; it reads well on a terminal, too.
    pub(super) fn text(&self) -> String {
        let o = &self.options;
        let mut text = format!(
            "\n# bench disk\n\n{}\n{} rounds of {} s per point, interleaved; images of {} MiB; \
             journals of {} MiB (burst) and {} MiB (sustained); epochs of {}.\nFigures are medians \
             over the rounds; ratios are medians of the ratios within each round. Only ratios \
             within one run count: other work on the machine moves the figures themselves.\n",
            self.machine,
            o.rounds,
            o.seconds,
            o.size_mib,
            o.burst_journal_mib,
            o.sustained_journal_mib,
            o.epoch
        );
        for skipped in &self.skipped {
            let _ = writeln!(text, "Skipped: {skipped}");
        }
        for workload in Workload::ALL {
            if self.points.iter().any(|p| p.workload == workload) {
                self.speeds(workload, &mut text);
                self.replicas(workload, &mut text);
                self.costs(workload, &mut text);
            }
        }
        text
    }

    fn speeds(&self, workload: Workload, text: &mut String) {
        let mut rows = vec![row(&[
            "stack",
            "IOPS",
            "MB/s",
            "spread",
            "x qemu-nbd",
            "x raw",
            "p50 us",
            "p99 us",
            "p99.9 us",
        ])];
        for stack in StackKind::ALL {
            let iops: Vec<f64> = self
                .of(workload, stack)
                .iter()
                .map(|p| p.load.iops)
                .collect();
            let Some(iops) = middle(&iops) else { continue };
            let ratio = |base| {
                self.ratio(workload, stack, base)
                    .map_or("-".to_owned(), |r| format!("{r:.2}"))
            };
            let (qemu, raw) = (ratio(StackKind::QemuNbd), ratio(StackKind::Raw));
            let at = |of: fn(&Point) -> f64| format!("{:.0}", self.median(workload, stack, of));
            let bytes = iops.median * workload.block_bytes as f64;
            // The streams end at different times: latencies of one of them say nothing.
            let latencies = if stack == StackKind::ThreeStreams {
                ["-".to_owned(), "-".to_owned(), "-".to_owned()]
            } else {
                [
                    at(|p| p.load.p50_us),
                    at(|p| p.load.p99_us),
                    at(|p| p.load.p999_us),
                ]
            };
            let mut cells = vec![
                stack.name().to_owned(),
                format!("{:.0}", iops.median),
                format!("{:.1}", bytes / 1e6),
                format!("{:.0} %", iops.spread * 100.0),
                qemu,
                raw,
            ];
            cells.extend(latencies);
            rows.push(cells);
        }
        let _ = writeln!(text, "\n## {}\n\n{}", workload.name(), table(&rows));
    }

    fn replicas(&self, workload: Workload, text: &mut String) {
        let mut rows = vec![row(&[
            "protected stack",
            "journals written",
            "window used",
            "lag half way MiB",
            "lag at end MiB",
            "drain ms",
            "commit p50 us",
            "commit p99 us",
            "backup wrote per byte",
        ])];
        for stack in StackKind::ALL {
            let points = self.of(workload, stack);
            let replicas: Vec<Replica> = points.iter().filter_map(|p| p.replica).collect();
            if replicas.is_empty() || !workload.writes() {
                continue;
            }
            let of = |pick: &dyn Fn(&Replica) -> f64| {
                let values: Vec<f64> = replicas.iter().map(pick).collect();
                middle(&values).map_or(0.0, |m| m.median)
            };
            let commit = |pick: fn(&Replica) -> Option<u64>| {
                let values: Vec<f64> = replicas.iter().filter_map(pick).map(|v| v as f64).collect();
                middle(&values).map_or("-".to_owned(), |m| format!("{:.0}", m.median))
            };
            let journals = self.median(workload, stack, |p| p.journals().unwrap_or(0.0));
            let sustained = matches!(
                stack,
                StackKind::Protected {
                    sustained: true,
                    ..
                }
            );
            let short = sustained && journals < JOURNALS_MIN as f64;
            let mib = MIB as f64;
            rows.push(vec![
                stack.name().to_owned(),
                format!("{journals:.1}{}", if short { " (too few)" } else { "" }),
                format!(
                    "{:.0} %",
                    of(&|r| r.journal_used_bytes as f64 * 100.0 / r.journal_bytes.max(1) as f64)
                ),
                format!("{:.1}", of(&|r| r.lag_half_bytes as f64 / mib)),
                format!("{:.1}", of(&|r| r.lag_end_bytes as f64 / mib)),
                format!("{:.0}", of(&|r| r.drain_ms as f64)),
                commit(|r| r.commit_p50_us),
                commit(|r| r.commit_p99_us),
                format!("{:.2}", of(&|r| r.written_ratio)),
            ]);
        }
        if rows.len() > 1 {
            let _ = writeln!(text, "{}", table(&rows));
        }
    }

    fn costs(&self, workload: Workload, text: &mut String) {
        let mut rows = vec![row(&[
            "stack",
            "front CPU us/request",
            "second copy CPU us/request",
            "front MiB",
            "second copy MiB",
        ])];
        for stack in StackKind::ALL {
            let points = self.of(workload, stack);
            if points.iter().all(|p| p.front.is_none()) {
                continue;
            }
            let of = |side: fn(&Point) -> Option<Cost>, pick: fn(Cost) -> f64| {
                let values: Vec<f64> = points.iter().filter_map(|p| side(p)).map(pick).collect();
                middle(&values).map_or("-".to_owned(), |m| format!("{:.1}", m.median))
            };
            let mib = |c: Cost| c.resident_bytes as f64 / MIB as f64;
            rows.push(vec![
                stack.name().to_owned(),
                of(|p| p.front, |c| c.cpu_us_per_request),
                of(|p| p.back, |c| c.cpu_us_per_request),
                of(|p| p.front, mib),
                of(|p| p.back, mib),
            ]);
        }
        if rows.len() > 1 {
            let _ = writeln!(text, "{}", table(&rows));
        }
    }

    fn json(&self) -> Value {
        let mut summary = Vec::new();
        for workload in Workload::ALL {
            for stack in StackKind::ALL {
                let iops: Vec<f64> = self
                    .of(workload, stack)
                    .iter()
                    .map(|p| p.load.iops)
                    .collect();
                let Some(iops) = middle(&iops) else { continue };
                summary.push(json!({"workload": workload.name(), "stack": stack.name(),
                    "iops_median": iops.median, "spread": iops.spread,
                    "ratio_to_qemu_nbd": self.ratio(workload, stack, StackKind::QemuNbd),
                    "ratio_to_raw": self.ratio(workload, stack, StackKind::Raw)}));
            }
        }
        let o = &self.options;
        let points: Vec<Value> = self.points.iter().map(Point::json).collect();
        json!({"machine": self.machine, "skipped": self.skipped,
            "options": {"seconds": o.seconds, "rounds": o.rounds, "size_mib": o.size_mib,
                "burst_journal_mib": o.burst_journal_mib,
                "sustained_journal_mib": o.sustained_journal_mib, "epoch": o.epoch},
            "summary": summary, "points": points})
    }

    /// Writes `disk.md` and `disk.json`.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.json())?;
        for (name, text) in [("disk.md", self.text()), ("disk.json", json)] {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn middle(values: &[f64]) -> Option<Middle> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    };
    let spread = if median > 0.0 {
        (last - first) / median
    } else {
        0.0
    };
    Some(Middle { median, spread })
}

/// A markdown table whose columns stand under each other; the first row is the head.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 {
                write!(text, "| {cell:width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let end = if column == 0 { "-" } else { ":" };
                let _ = write!(text, "|{dashes}{end}");
            }
            text.push_str("|\n");
        }
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A mean would let one disturbed round speak for all of them.
    #[test]
    fn medians() {
        assert_eq!(middle(&[]), None);
        let odd = middle(&[30.0, 10.0, 20.0]).unwrap();
        assert_eq!((odd.median, odd.spread), (20.0, 1.0));
        assert_eq!(middle(&[1.0, 2.0]).unwrap().median, 1.5);
    }

    /// A table whose columns slip is read wrongly.
    #[test]
    fn columns_stand_under_each_other() {
        let rows = [row(&["name", "n"]), row(&["a", "100"])];
        assert_eq!(
            table(&rows),
            "| name |   n |\n|------|----:|\n| a    | 100 |\n"
        );
    }
}
