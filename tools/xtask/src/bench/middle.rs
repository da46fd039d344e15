//! Figures of several rounds as one, and tables of them.

use std::fmt::Write;

use crate::demo::widths;

/// A median, and the lowest and highest of what it is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Middle {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Middle {
    /// Of no values there is none.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[half],
            _ => f64::midpoint(values[half - 1], values[half]),
        };
        Some(Self {
            median,
            lowest,
            highest,
        })
    }

    /// Nanoseconds for one as how many in a second.
    pub(super) fn per_second(self) -> Self {
        Self {
            median: 1e9 / self.median,
            lowest: 1e9 / self.highest,
            highest: 1e9 / self.lowest,
        }
    }

    /// The same in another unit.
    pub(super) fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self {
            median: change(self.median),
            lowest: change(self.lowest),
            highest: change(self.highest),
        }
    }
}

/// "120 (100–150)"; the brackets only if the rounds differ.
pub(super) fn cell(middle: Option<Middle>, decimals: usize) -> String {
    let Some(middle) = middle else {
        return "not measured".to_owned();
    };
    let text = |value: f64| format!("{value:.decimals$}");
    let (lowest, highest) = (text(middle.lowest), text(middle.highest));
    let median = text(middle.median);
    match lowest == highest {
        true => median,
        false => format!("{median} ({lowest}–{highest})"),
    }
}

/// A table of markdown that can be read as it stands; the first row is its head.
pub(super) fn table(rows: Vec<Vec<String>>) -> String {
    let widths = widths(&rows);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if index == 0 {
            let lines: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            let _ = writeln!(text, "| {} |", lines.join(" | "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // A mean would let one disturbed round speak for all of them.
    #[test]
    fn medians() {
        assert_eq!(Middle::of(Vec::new()), None);
        let middle = |values: &[f64]| Middle::of(values.to_vec()).expect("there are values");
        let odd = middle(&[30.0, 10.0, 20.0]);
        assert_eq!((odd.median, odd.lowest, odd.highest), (20.0, 10.0, 30.0));
        assert_eq!(middle(&[1.0, 2.0]).median, 1.5);
    }
}
