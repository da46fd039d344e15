//! What the load says, and its figures over the rounds.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::middle::Middle;

/// How a line of figures begins; the serial line of a guest may carry something in front.
const MARK: &str = "BENCH-NET ";

/// On which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ground {
    Here,
    Guest,
}

impl Ground {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Here => "this kernel",
            Self::Guest => "guest's kernel",
        }
    }
}

/// One point of one way in one round.
#[derive(Debug, Clone)]
struct Point {
    ground: Ground,
    round: u64,
    way: String,
    name: String,
    figures: BTreeMap<String, f64>,
}

/// Which figure of which point.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) ground: Ground,
    pub(super) way: &'a str,
    pub(super) point: &'a str,
    pub(super) figure: &'a str,
}

/// Everything that was measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    points: Vec<Point>,
}

impl Figures {
    /// Reads the lines of figures among whatever else was said.
    pub(super) fn read(ground: Ground, text: &str) -> Result<Self> {
        let lines = text.lines().filter_map(|line| line.split_once(MARK));
        let points = lines.map(|(_, line)| {
            let value: Value = serde_json::from_str(line.trim()).context("a line of the load")?;
            let word = |key: &str| value[key].as_str().map(str::to_owned);
            let figures = value["figures"].as_object().context("figures")?;
            let figures = figures
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
            Ok(Point {
                ground,
                round: value["round"].as_u64().context("round")?,
                way: word("way").context("way")?,
                name: word("point").context("point")?,
                figures: figures.collect(),
            })
        });
        let points = points.collect::<Result<Vec<_>>>()?;
        ensure!(!points.is_empty(), "the load has measured nothing");
        Ok(Self { points })
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.points.extend(more.points);
    }

    pub(super) fn has(&self, ground: Ground) -> bool {
        self.points.iter().any(|point| point.ground == ground)
    }

    pub(super) fn rounds(&self, ground: Ground) -> u64 {
        let of = self.points.iter().filter(|point| point.ground == ground);
        of.map(|point| point.round).max().unwrap_or(0)
    }

    /// Milliseconds of the epochs that were measured, in order.
    pub(super) fn epoch_lengths(&self) -> Vec<u64> {
        let names = self
            .points
            .iter()
            .filter_map(|point| point.name.strip_prefix("epochs-"));
        let mut lengths: Vec<u64> = names.filter_map(|length| length.parse().ok()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    fn each(&self, of: Of<'_>) -> BTreeMap<u64, f64> {
        let it = self.points.iter().filter(|point| {
            (point.ground, point.way.as_str(), point.name.as_str()) == (of.ground, of.way, of.point)
        });
        it.filter_map(|point| Some((point.round, *point.figures.get(of.figure)?)))
            .collect()
    }

    pub(super) fn middle(&self, of: Of<'_>) -> Option<Middle> {
        Middle::of(self.each(of).into_values().collect())
    }

    /// One over the other, round by round.
    pub(super) fn ratio(&self, of: Of<'_>, to: Of<'_>) -> Option<Middle> {
        self.both(of, to, |of, to| of / to)
    }

    /// One less the other, round by round.
    pub(super) fn difference(&self, of: Of<'_>, to: Of<'_>) -> Option<Middle> {
        self.both(of, to, |of, to| of - to)
    }

    fn both(&self, of: Of<'_>, to: Of<'_>, make: impl Fn(f64, f64) -> f64) -> Option<Middle> {
        let others = self.each(to);
        let pairs = self.each(of).into_iter();
        Middle::of(
            pairs
                .filter_map(|(round, value)| Some(make(value, *others.get(&round)?)))
                .collect(),
        )
    }

    /// Every point in a line.
    pub(super) fn lines(&self) -> String {
        let line = |point: &Point| {
            let each = point.figures.iter();
            let figures: String = each
                .map(|(name, value)| format!("  {name} {value:.0}"))
                .collect();
            format!(
                "round {}  {:<8} {:<16}{figures}\n",
                point.round, point.way, point.name
            )
        };
        self.points.iter().map(line).collect()
    }

    pub(super) fn json(&self) -> Value {
        let point = |point: &Point| {
            json!({
                "kernel": point.ground.key(),
                "round": point.round,
                "way": point.way,
                "point": point.name,
                "figures": point.figures,
            })
        };
        self.points.iter().map(point).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "noise\n\
        [ 1.0] x BENCH-NET {\"round\":1,\"way\":\"nothing\",\"point\":\"hop\",\"figures\":{\"p50_us\":10.0}}\r\n\
        BENCH-NET {\"round\":1,\"way\":\"plug\",\"point\":\"hop\",\"figures\":{\"p50_us\":30.0}}\n\
        BENCH-NET {\"round\":2,\"way\":\"nothing\",\"point\":\"hop\",\"figures\":{\"p50_us\":20.0}}\n\
        BENCH-NET {\"round\":2,\"way\":\"plug\",\"point\":\"hop\",\"figures\":{\"p50_us\":20.0}}\n\
        BENCH-NET {\"round\":1,\"way\":\"plug\",\"point\":\"epochs-25\",\"figures\":{\"p50_us\":1.0}}\n";

    fn hop(way: &str) -> Of<'_> {
        let (ground, point, figure) = (Ground::Guest, "hop", "p50_us");
        Of {
            ground,
            way,
            point,
            figure,
        }
    }

    // A ratio of medians would compare a slow round of one way with a quick one of the other.
    #[test]
    fn figures_are_read_from_between_other_lines_and_compared_within_rounds() {
        let figures = Figures::read(Ground::Guest, TEXT).unwrap();
        assert_eq!(figures.middle(hop("nothing")).unwrap().median, 15.0);
        let ratio = figures.ratio(hop("plug"), hop("nothing")).unwrap();
        assert_eq!((ratio.lowest, ratio.median, ratio.highest), (1.0, 2.0, 3.0));
        assert_eq!(figures.epoch_lengths(), [25]);
        assert_eq!(figures.rounds(Ground::Guest), 2);
        assert!(figures.ratio(hop("relay"), hop("nothing")).is_none());
    }

    #[test]
    fn a_load_that_said_nothing_is_no_measurement() {
        assert!(Figures::read(Ground::Here, "hello\n").is_err());
        assert!(Figures::read(Ground::Here, "BENCH-NET {\n").is_err());
    }
}
