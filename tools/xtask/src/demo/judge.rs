//! What a round has shown, the verdict on it, and the table.

use std::fmt::Write as _;
use std::time::Duration;

use crate::guest::Heard;
use crate::guest::Word;
use crate::lab::{CommitLatency, Promotion};
use crate::ui;

/// A round with fewer entries before the cut has proved nothing.
pub(crate) const PROMISED_MIN: u64 = 50;

/// Of all rounds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    Failed,
}

/// What the guest reported before it was killed, split at the cut of the promoted epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reports {
    /// Highest entry reported before the cut: it and all before it must be found.
    pub(crate) before_cut: u64,
    /// Highest entry reported at all.
    pub(crate) last: u64,
}

impl Reports {
    /// `cut_unix_ns` is of the same clock as the reports. A report is heard later than it is said,
    /// so that one heard before the cut was certainly said, and synced, before it.
    pub(crate) fn split(heard: &[Heard], cut_unix_ns: u64) -> Self {
        let mut reports = Self {
            before_cut: 0,
            last: 0,
        };
        for one in heard {
            if let Word::Entry(number) = one.word {
                reports.last = reports.last.max(number);
                if one.at_unix_ns < cut_unix_ns {
                    reports.before_cut = reports.before_cut.max(number);
                }
            }
        }
        reports
    }
}

/// What was found on the promoted disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Entries 1..=last are there and whole.
    pub(crate) last: u64,
    pub(crate) torn: u64,
}

/// One round.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) promotion: Promotion,
    pub(crate) latency: Option<CommitLatency>,
    pub(crate) shown: Shown,
    /// What does not hold; none = the round holds.
    pub(crate) faults: Vec<String>,
}

/// What the load of the round makes visible.
#[derive(Debug)]
pub(crate) enum Shown {
    Guest {
        reports: Reports,
        ledger: Option<Ledger>,
        file_system: String,
    },
    Load {
        verdict: String,
    },
}

impl Row {
    pub(crate) fn holds(&self) -> bool {
        self.faults.is_empty()
    }
}

/// What is wrong with `ledger`, given what was reported.
pub(crate) fn faults(reports: Reports, ledger: Ledger, promises_all: bool) -> Vec<String> {
    let mut faults = Vec::new();
    if reports.before_cut < PROMISED_MIN {
        faults.push(format!(
            "only {} entries before the cut: this proves nothing",
            reports.before_cut
        ));
    }
    if ledger.torn > 0 {
        faults.push(format!(
            "{} torn entries behind entry {}",
            ledger.torn, ledger.last
        ));
    }
    if ledger.last < reports.before_cut {
        faults.push(format!(
            "the ledger ends at {}, but {} was reported before the epoch's cut",
            ledger.last, reports.before_cut
        ));
    } else if promises_all && ledger.last < reports.last {
        faults.push(format!(
            "the ledger ends at {}, but {} was reported as synced",
            ledger.last, reports.last
        ));
    }
    faults
}

/// Prints the table to stdout, and what its words mean.
pub(crate) fn print(headline: &str, rows: &[Row], promises_all: bool) -> Verdict {
    println!("\n{headline}");
    print!("{}{}", table(rows), legend(rows, promises_all));
    for (number, row) in rows.iter().enumerate() {
        for fault in &row.faults {
            println!("round {}: {fault}", number + 1);
        }
    }
    let failed = rows.iter().filter(|row| !row.holds()).count();
    println!("{}", sum(rows.len() - failed, failed));
    if failed == 0 {
        Verdict::Holds
    } else {
        Verdict::Failed
    }
}

fn sum(hold: usize, failed: usize) -> String {
    let verb = if hold == 1 { "holds" } else { "hold" };
    format!("{} {verb}, {failed} failed", ui::count(hold, "round"))
}

fn with_guest(rows: &[Row]) -> bool {
    let guest = |row: &Row| matches!(row.shown, Shown::Guest { .. });
    rows.iter().any(guest)
}

fn table(rows: &[Row]) -> String {
    let mut cells: Vec<Vec<String>> = Vec::new();
    let mut head = vec!["round", "epoch"];
    if with_guest(rows) {
        head.extend([
            "before cut",
            "after cut",
            "unreported",
            "torn",
            "file system",
        ]);
    } else {
        head.push("check");
    }
    head.extend(["promotion", "commit p50 / p99", "result"]);
    cells.push(head.into_iter().map(str::to_owned).collect());
    for (number, row) in rows.iter().enumerate() {
        let mut line = vec![(number + 1).to_string(), row.promotion.epoch.to_string()];
        line.extend(shown(&row.shown));
        line.push(milliseconds(row.promotion.took));
        line.push(row.latency.map_or("-".to_owned(), |latency| {
            let ms = |us| milliseconds(Duration::from_micros(us));
            format!("{} / {}", ms(latency.p50_us), ms(latency.p99_us))
        }));
        line.push(if row.holds() { "holds" } else { "FAILED" }.to_owned());
        cells.push(line);
    }
    aligned(&cells)
}

/// For somebody who sees the table for the first time.
fn legend(rows: &[Row], promises_all: bool) -> String {
    let times = "promotion: until the backup was primary; \
        commit: from an epoch's cut until the backup had it safely (median / 99 of 100)";
    let all = match promises_all {
        true => "all must be there",
        false => "only those before must be there (--ack local)",
    };
    if with_guest(rows) {
        format!(
            "before / after cut: entries found of those the guest had reported before / after the epoch's cut; {all}\n\
             unreported: entries found whose report the kill cut off; torn: entries only half there (none may be)\n\
             {times}\n"
        )
    } else {
        format!(
            "check: every block was compared with the record of what was written, answered and flushed, and when\n\
             sound: all that was promised is there, and nothing from after the epoch's cut\n\
             {times}\n"
        )
    }
}

fn shown(shown: &Shown) -> Vec<String> {
    match shown {
        Shown::Load { verdict } => vec![verdict.clone()],
        Shown::Guest {
            reports,
            ledger,
            file_system,
        } => {
            let number =
                |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
            let found = ledger.map(|ledger| ledger.last);
            let before = number(found.map(|last| last.min(reports.before_cut)));
            let later = reports.last - reports.before_cut;
            let after =
                number(found.map(|last| last.saturating_sub(reports.before_cut).min(later)));
            vec![
                format!("{before} of {}", reports.before_cut),
                format!("{after} of {later}"),
                number(found.map(|last| last.saturating_sub(reports.last))),
                number(ledger.map(|ledger| ledger.torn)),
                file_system.clone(),
            ]
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Characters of the widest cell of each column.
pub(crate) fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    (0..columns).map(width).collect()
}

/// Columns as wide as their widest cell.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}", line.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(entries: &[(u64, u64)]) -> Vec<Heard> {
        let word = |(at, number): &(u64, u64)| Heard {
            at_unix_ns: *at,
            word: Word::Entry(*number),
        };
        entries.iter().map(word).collect()
    }

    // An entry heard at the very cut may have been written after it: it must not be demanded, and
    // one before it must be.
    #[test]
    fn reports_are_split_at_the_cut() {
        let reports = Reports::split(&heard(&[(10, 1), (20, 2), (30, 3)]), 20);
        assert_eq!(
            reports,
            Reports {
                before_cut: 1,
                last: 3
            }
        );
    }

    // A demo that passes with a promised entry missing is worth nothing.
    #[test]
    fn every_kind_of_loss_is_a_fault() {
        let reports = Reports {
            before_cut: 100,
            last: 104,
        };
        let fault = |last, torn, all| faults(reports, Ledger { last, torn }, all).len();
        assert_eq!(fault(104, 0, true), 0);
        assert_eq!(
            fault(100, 0, false),
            0,
            "local may lose what follows the cut"
        );
        assert_eq!(
            fault(105, 0, true),
            0,
            "one entry may be synced and not yet reported"
        );
        assert_eq!(fault(103, 0, true), 1, "flush may not");
        assert_eq!(fault(99, 0, false), 1, "the cut holds in every mode");
        assert_eq!(fault(104, 1, true), 1, "torn");
        let few = Reports {
            before_cut: PROMISED_MIN - 1,
            last: PROMISED_MIN,
        };
        assert_eq!(
            faults(
                few,
                Ledger {
                    last: PROMISED_MIN,
                    torn: 0
                },
                true
            )
            .len(),
            1
        );
    }

    // "345 entries, found 345" beside "entries 1 to 346 are there" was taken for a contradiction.
    #[test]
    fn what_is_found_is_told_against_what_was_reported() {
        let reports = Reports {
            before_cut: 345,
            last: 350,
        };
        let cells = |last| {
            shown(&Shown::Guest {
                reports,
                ledger: Some(Ledger { last, torn: 0 }),
                file_system: "clean".to_owned(),
            })
        };
        assert_eq!(cells(351)[..3], ["345 of 345", "5 of 5", "1"]);
        assert_eq!(cells(347)[..3], ["345 of 345", "2 of 5", "0"]);
        assert_eq!(cells(340)[..3], ["340 of 345", "0 of 5", "0"]);
        assert_eq!(sum(1, 0), "1 round holds, 0 failed");
        assert_eq!(sum(0, 2), "0 rounds hold, 2 failed");
    }
}
