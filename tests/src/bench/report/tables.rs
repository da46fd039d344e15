//! Tables of a report, as markdown that reads well on a terminal, too.

use super::super::MIB;
use super::super::bars::Bar;
use super::super::load::JOURNALS_MIN;
use super::super::plan::{Protected, StackKind};
use super::super::point::{Cost, Point};
use super::super::replica::Replica;
use super::super::stats::Middle;
use super::super::workload::{Pattern, Workload};
use super::Report;
use std::fmt::Write;

/// Heads of columns that hold words.
const WORDS: [&str; 2] = ["verdict", "remark"];

/// Bars with their verdicts.
pub(in crate::bench) fn bars(bars: &[Bar]) -> String {
    let mut rows = vec![row(&[
        "line", "measured", "spread", "bar", "verdict", "remark",
    ])];
    for bar in bars {
        rows.push(vec![
            bar.text.clone(),
            bar.measured(),
            bar.spread(),
            bar.bar(),
            bar.verdict.word().to_owned(),
            bar.remark.clone(),
        ]);
    }
    table(&rows)
}

impl Report {
    /// Everything that was measured under a workload.
    pub(super) fn points_text(&self, workload: Workload, text: &mut String) {
        if self.points.iter().any(|p| p.workload == workload) {
            let _ = writeln!(text, "\n## {}\n", workload.name());
            self.speeds(workload, text);
            self.replicas(workload, text);
            self.costs(workload, text);
        }
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
        for stack in StackKind::all() {
            let Some(iops) = self.iops(workload, stack) else {
                continue;
            };
            // Epochs are not requests.
            if stack == StackKind::Append || workload.pattern == Pattern::Idle {
                continue;
            }
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
        if rows.len() > 1 {
            let _ = writeln!(text, "{}", table(&rows));
        }
    }

    fn replicas(&self, workload: Workload, text: &mut String) {
        let mut rows = vec![row(&[
            "protected stack",
            "journals written",
            "window used",
            "unapplied half way MiB",
            "unapplied at end MiB",
            "drain ms",
            "commit p50 us",
            "commit p99 us",
            "cut held p99 us",
            "backup wrote per byte",
        ])];
        for stack in StackKind::all() {
            let points = self.of(workload, stack);
            let replicas: Vec<Replica> = points.iter().filter_map(|p| p.replica).collect();
            if replicas.is_empty() || !workload.writes() {
                continue;
            }
            let of = |pick: &dyn Fn(&Replica) -> f64| {
                let values: Vec<f64> = replicas.iter().map(pick).collect();
                Middle::of(&values).map_or(0.0, |m| m.median)
            };
            let often = |pick: fn(&Replica) -> Option<u64>| {
                let values: Vec<f64> = replicas.iter().filter_map(pick).map(|v| v as f64).collect();
                Middle::of(&values).map_or("-".to_owned(), |m| format!("{:.0}", m.median))
            };
            let journals = self.median(workload, stack, |p| p.journals().unwrap_or(0.0));
            let sustained = matches!(
                stack,
                StackKind::Protected(Protected {
                    sustained: true,
                    ..
                })
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
                often(|r| r.commit.p50_us),
                often(|r| r.commit.p99_us),
                often(|r| r.hold.p99_us),
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
        for stack in StackKind::all() {
            let points = self.of(workload, stack);
            if points.iter().all(|p| p.front.is_none()) {
                continue;
            }
            let of = |side: fn(&Point) -> Option<Cost>, pick: fn(Cost) -> Option<f64>| {
                let costs = points.iter().filter_map(|p| side(p));
                let values: Vec<f64> = costs.filter_map(pick).collect();
                Middle::of(&values).map_or("-".to_owned(), |m| format!("{:.1}", m.median))
            };
            let mib = |c: Cost| Some(c.resident_bytes as f64 / MIB as f64);
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
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// A markdown table whose columns stand under each other; the first row is the head.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let is_words = |column: usize| column == 0 || WORDS.contains(&rows[0][column].as_str());
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if is_words(column) {
                write!(text, "| {cell:width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let end = if is_words(column) { "-" } else { ":" };
                let _ = write!(text, "|{dashes}{end}");
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
