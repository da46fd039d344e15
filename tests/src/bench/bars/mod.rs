//! The bar table: what was measured, what is wanted, and whether it is met.

mod lines;

use super::plan::{Family, StackKind};
use super::point::Point;
use super::stats::Middle;
use super::workload::Workload;
use serde_json::{Value, json};

/// The points of one round.
struct Round<'a>(Vec<&'a Point>);

impl Round<'_> {
    fn point(&self, workload: Workload, stack: StackKind) -> Option<&Point> {
        let same = |p: &&&Point| p.workload == workload && p.stack == stack;
        self.0.iter().find(same).copied()
    }

    fn iops(&self, workload: Workload, stack: StackKind) -> Option<f64> {
        self.point(workload, stack).map(|p| p.load.iops)
    }
}

/// What is wanted of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing: it is told.
    None,
}

/// How a line came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    Missed,
    /// No bar stands for it.
    Shown,
    /// A peer was skipped, or the load was too short.
    NotMeasured,
}

impl Verdict {
    fn of(value: Option<f64>, limit: Limit) -> Self {
        let Some(value) = value else {
            return Self::NotMeasured;
        };
        let met = match limit {
            Limit::None => return Self::Shown,
            Limit::AtLeast(bar) => value >= bar,
            Limit::AtMost(bar) => value <= bar,
        };
        if met { Self::Met } else { Self::Missed }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Shown => "-",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A line of the table.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) text: String,
    unit: &'static str,
    measured: Option<Middle>,
    limit: Limit,
    pub(super) verdict: Verdict,
    /// What has to be known beside it.
    pub(super) remark: String,
}

impl Bar {
    pub(super) fn new(
        text: &str,
        unit: &'static str,
        values: &[f64],
        limit: Limit,
        remark: Option<String>,
    ) -> Self {
        let measured = Middle::of(values);
        Self {
            text: text.to_owned(),
            unit,
            measured,
            limit,
            verdict: Verdict::of(measured.map(|m| m.median), limit),
            remark: remark.unwrap_or_default(),
        }
    }

    /// Turns what is met into missed: the figure was bought with something.
    fn unless(mut self, unsound: Option<&str>) -> Self {
        if let Some(why) = unsound
            && self.measured.is_some()
        {
            self.verdict = Verdict::Missed;
            self.remark = format!("{}; {why}", self.remark);
        }
        self
    }

    fn figure(&self, value: f64) -> String {
        let digits = if value.abs() < 10.0 { 2 } else { 1 };
        format!("{value:.digits$} {}", self.unit).trim().to_owned()
    }

    /// The median.
    pub(super) fn measured(&self) -> String {
        self.measured
            .map_or("-".to_owned(), |m| self.figure(m.median))
    }

    pub(super) fn spread(&self) -> String {
        self.measured
            .map_or("-".to_owned(), |m| format!("{:.0} %", m.spread * 100.0))
    }

    pub(super) fn bar(&self) -> String {
        match self.limit {
            Limit::AtLeast(bar) => format!(">= {}", self.figure(bar)),
            Limit::AtMost(bar) => format!("<= {}", self.figure(bar)),
            Limit::None => "-".to_owned(),
        }
    }

    /// How far it is over the bar: 1 is just met, whichever side is the good one.
    pub(super) fn over(&self) -> Option<f64> {
        let value = self.measured?.median;
        match self.limit {
            Limit::AtLeast(bar) => Some(value / bar),
            Limit::AtMost(bar) => Some(bar / value.max(1e-9)),
            Limit::None => None,
        }
    }

    pub(super) fn json(&self) -> Value {
        let (side, bar) = match self.limit {
            Limit::AtLeast(bar) => (Some("at least"), Some(bar)),
            Limit::AtMost(bar) => (Some("at most"), Some(bar)),
            Limit::None => (None, None),
        };
        json!({"line": self.text, "unit": self.unit, "median": self.measured.map(|m| m.median),
            "spread": self.measured.map(|m| m.spread), "wanted": side, "bar": bar,
            "verdict": self.verdict.word(), "remark": self.remark})
    }
}

/// The lines of these families.
pub(super) fn table(points: &[Point], families: &[Family]) -> Vec<Bar> {
    let rounds: Vec<Round<'_>> = (0..points.iter().map(|p| p.round + 1).max().unwrap_or(0))
        .map(|round| Round(points.iter().filter(|p| p.round == round).collect()))
        .collect();
    let mut bars = Vec::new();
    for family in families {
        lines::of(*family, &rounds, &mut bars);
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::super::fio::Outcome;
    use super::*;
    use clap::ValueEnum;

    fn point(round: u32, workload: Workload, stack: StackKind, iops: f64) -> Point {
        let load = Outcome {
            iops,
            ..Outcome::default()
        };
        Point {
            round,
            workload,
            stack,
            load,
            front: None,
            back: None,
            replica: None,
        }
    }

    /// A bar met from the wrong side would praise the slowest run.
    #[test]
    fn verdicts() {
        assert_eq!(Verdict::of(Some(1.0), Limit::AtLeast(1.0)), Verdict::Met);
        assert_eq!(
            Verdict::of(Some(0.99), Limit::AtLeast(1.0)),
            Verdict::Missed
        );
        assert_eq!(Verdict::of(Some(0.99), Limit::AtMost(1.0)), Verdict::Met);
        assert_eq!(Verdict::of(Some(1.01), Limit::AtMost(1.0)), Verdict::Missed);
        assert_eq!(Verdict::of(None, Limit::AtMost(1.0)), Verdict::NotMeasured);
        assert_eq!(Verdict::of(Some(7.0), Limit::None), Verdict::Shown);
        let bar = Bar::new("x", "ms", &[2.0], Limit::AtMost(1.0), None);
        assert_eq!((bar.over(), bar.bar().as_str()), (Some(0.5), "<= 1.00 ms"));
        let met = Bar::new("x", "x", &[2.0], Limit::AtLeast(1.0), None);
        assert_eq!(met.verdict, Verdict::Met);
        assert_eq!(
            met.unless(Some("the backlog grows")).verdict,
            Verdict::Missed
        );
    }

    /// A ratio of medians mixes rounds in which the machine was busy with rounds in which it was not.
    #[test]
    fn ratios_are_of_one_round() {
        let write = Workload::WRITE_1;
        let points = [
            point(0, write, StackKind::QemuNbd, 100.0),
            point(0, write, StackKind::BURST, 90.0),
            point(1, write, StackKind::QemuNbd, 50.0),
            point(1, write, StackKind::BURST, 60.0),
            point(2, write, StackKind::QemuNbd, 100.0),
            point(2, write, StackKind::BURST, 110.0),
        ];
        let bars = table(&points, &[Family::Burst]);
        assert_eq!(bars.len(), 4);
        assert_eq!(bars[0].measured(), "1.10 x");
        assert_eq!(bars[0].verdict, Verdict::Met);
        assert_eq!(bars[1].verdict, Verdict::NotMeasured);
    }

    /// The lower of two bases is what counts, and one of them alone says nothing.
    #[test]
    fn the_lower_base_counts() {
        let write = Workload::WRITE_1;
        let mut points = vec![
            point(0, write, StackKind::QemuNbd, 100.0),
            point(0, write, StackKind::SUSTAINED, 45.0),
        ];
        let alone = table(&points, &[Family::Sustained]);
        assert_eq!(alone[0].verdict, Verdict::NotMeasured);
        points.push(point(0, write, StackKind::ThreeStreams, 50.0));
        let both = table(&points, &[Family::Sustained]);
        assert_eq!(both[0].measured(), "0.90 x");
    }

    /// A family without a line would be measured for nothing.
    #[test]
    fn every_family_has_lines() {
        for family in Family::value_variants() {
            let lines = table(&[], &[*family]).len();
            assert_eq!(lines == 0, *family == Family::Extra, "{family:?}");
        }
    }
}
