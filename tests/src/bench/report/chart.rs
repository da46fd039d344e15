//! A chart of horizontal bars, as SVG.

use super::super::bars::{Bar, Verdict};
use super::super::stats::Middle;
use svg::Document;
use svg::node::element::{Line, Rectangle, Text};

/// Pixels: a row, a name, the longest bar, and what stands behind it.
const ROW: f64 = 22.0;
const NAME: f64 = 540.0;
const LONGEST: f64 = 360.0;
const BEHIND: f64 = 180.0;
/// A title, and the first row under it.
const TITLE: f64 = 24.0;
const TOP: f64 = 40.0;
/// What is this many times over its bar is drawn no longer.
const OVER_MAX: f64 = 3.0;

/// Colours: neither good nor bad, good, bad.
const PLAIN: &str = "#4878a8";
const GOOD: &str = "#3c8d4f";
const BAD: &str = "#c0504d";

/// One bar.
#[derive(Debug)]
pub(in crate::bench) struct Row {
    name: String,
    value: f64,
    /// What is told behind it.
    label: String,
    colour: &'static str,
    /// How far the rounds are apart, as a part of the value.
    spread: f64,
}

impl Row {
    /// How far a line is over its bar; none where there is no bar or no figure.
    pub(in crate::bench) fn of_bar(bar: &Bar) -> Option<Self> {
        let colour = match bar.verdict {
            Verdict::Met => GOOD,
            Verdict::Missed => BAD,
            Verdict::Shown | Verdict::NotMeasured => PLAIN,
        };
        Some(Self {
            name: bar.text.clone(),
            value: bar.over()?.min(OVER_MAX),
            label: format!("{} ({})", bar.measured(), bar.bar()),
            colour,
            spread: 0.0,
        })
    }

    /// Requests per second.
    pub(super) fn of_rate(name: &str, rate: Middle) -> Self {
        Self {
            name: name.to_owned(),
            value: rate.median,
            label: format!("{:.0}", rate.median),
            colour: PLAIN,
            spread: rate.spread,
        }
    }
}

/// Draws rows under a title, with a line across at `mark`.
pub(in crate::bench) fn draw(title: &str, rows: &[Row], mark: Option<f64>) -> String {
    let most = rows.iter().map(|row| row.value).fold(0.0, f64::max);
    let most = most.max(mark.unwrap_or(0.0)).max(1e-9);
    let pixels = |value: f64| (value / most * LONGEST).clamp(0.0, LONGEST);
    let (width, height) = (
        NAME + LONGEST + BEHIND,
        TOP + ROW * rows.len() as f64 + 10.0,
    );
    let mut document = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width)
        .set("height", height)
        .set("font-family", "sans-serif")
        .set("font-size", 13)
        .add(
            Rectangle::new()
                .set("width", width)
                .set("height", height)
                .set("fill", "white"),
        )
        .add(text(title, 10.0, TITLE, "start").set("font-weight", "bold"));
    for (index, row) in rows.iter().enumerate() {
        let top = TOP + ROW * index as f64;
        let (middle, base) = (top + ROW / 2.0, top + ROW * 0.7);
        let length = pixels(row.value);
        let bar = Rectangle::new()
            .set("x", NAME)
            .set("y", top + 3.0)
            .set("width", length)
            .set("height", ROW - 6.0)
            .set("fill", row.colour);
        let half = pixels(row.value * row.spread / 2.0);
        let (from, to) = ((length - half).max(0.0), (length + half).min(LONGEST));
        document = document
            .add(text(&row.name, NAME - 8.0, base, "end"))
            .add(bar)
            .add(text(&row.label, NAME + to.max(length) + 6.0, base, "start"));
        if half > 0.0 {
            document = document.add(line((NAME + from, middle), (NAME + to, middle)));
        }
    }
    if let Some(mark) = mark {
        let x = NAME + pixels(mark);
        document = document.add(line((x, TOP), (x, height - 10.0)));
    }
    document.to_string()
}

fn text(text: &str, x: f64, y: f64, anchor: &str) -> Text {
    Text::new(text)
        .set("x", x)
        .set("y", y)
        .set("text-anchor", anchor)
}

fn line(from: (f64, f64), to: (f64, f64)) -> Line {
    Line::new()
        .set("x1", from.0)
        .set("y1", from.1)
        .set("x2", to.0)
        .set("y2", to.1)
        .set("stroke", "black")
        .set("stroke-width", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(name: &str, median: f64) -> Row {
        Row::of_rate(
            name,
            Middle {
                median,
                spread: 0.1,
            },
        )
    }

    /// A name with a mark of the markup in it would make a file that no program opens.
    #[test]
    fn the_longest_bar_is_as_long_as_there_is_room_and_names_are_text() {
        let drawn = draw("a & b", &[rate("x < y", 50.0), rate("z", 100.0)], None);
        assert!(drawn.starts_with("<svg"), "{drawn}");
        assert!(drawn.contains("x &lt; y") && drawn.contains("a &amp; b"));
        assert!(drawn.contains("width=\"360\"") && drawn.contains("width=\"180\""));
    }

    /// Nothing measured, nothing drawn, and no division by nothing.
    #[test]
    fn no_rows_are_no_error() {
        let drawn = draw("empty", &[], Some(1.0));
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}
