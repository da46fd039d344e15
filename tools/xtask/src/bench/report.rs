//! Medians, ratios within rounds, and how they are told.

use serde_json::json;

use super::middle::{Middle, cell, table};
use super::point::{Figures, Measured, Point};
use super::session::{Stack, sizes};

/// What holds for all figures.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    pub(super) kernel: String,
    /// QEMU executes the guest's instructions itself.
    pub(super) emulated: bool,
    pub(super) rounds: u32,
    pub(super) seconds: u64,
}

/// Which ratios are made: each of the first to the second.
const RATIOS: [(Stack, Stack); 3] = [
    (Stack::VhostUser, Stack::Nbd),
    (Stack::VhostUser, Stack::Image),
    (Stack::Nbd, Stack::Image),
];

/// All that is told.
#[derive(Debug)]
pub(super) struct Report {
    conditions: Conditions,
    measured: Vec<Measured>,
}

impl Conditions {
    /// The guest's processor, and what that means for the figures.
    pub(super) fn told(&self) -> String {
        let kernel = &self.kernel;
        match self.emulated {
            true => format!(
                "The guest (Linux {kernel}) runs under TCG, not KVM: its processor is emulated, and that \
                 is the limit. The figures say little of the disk."
            ),
            false => format!("The guest (Linux {kernel}) runs under KVM."),
        }
    }
}

impl Report {
    pub(super) fn new(conditions: Conditions, measured: Vec<Measured>) -> Self {
        Self {
            conditions,
            measured,
        }
    }

    fn figures(&self, round: u32, stack: Stack, point: Point) -> Option<Figures> {
        let is_it = |one: &&Measured| (one.round, one.stack, one.point) == (round, stack, point);
        self.measured.iter().find(is_it).map(|one| one.figures)
    }

    fn middle(&self, stack: Stack, point: Point, of: impl Fn(Figures) -> f64) -> Option<Middle> {
        let rounds = 1..=self.conditions.rounds;
        let values = rounds.filter_map(|round| self.figures(round, stack, point).map(&of));
        Middle::of(values.collect())
    }

    /// How many times as many requests per second, round by round.
    fn ratio(&self, (stack, other): (Stack, Stack), point: Point) -> Option<Middle> {
        let rounds = 1..=self.conditions.rounds;
        let ratios = rounds.filter_map(|round| {
            let ours = self.figures(round, stack, point)?;
            let theirs = self.figures(round, other, point)?;
            Some(ours.iops / theirs.iops)
        });
        Middle::of(ratios.collect())
    }

    pub(super) fn markdown(&self) -> String {
        let Conditions {
            rounds, seconds, ..
        } = self.conditions;
        let told = self.conditions.told();
        let rounds = match rounds {
            1 => "One round".to_owned(),
            more => format!("Medians of {more} rounds, in brackets the lowest and the highest"),
        };
        let figures = table(self.figure_rows());
        let ratios = table(self.ratio_rows());
        format!(
            "# fio in a guest\n\n**{told}**\n\n{rounds}; up to {seconds} s per point. Protected: ack local, the \
             backup on this machine.\n\n{figures}\nIOPS as ratios, made within each round:\n\n{ratios}"
        )
    }

    fn figure_rows(&self) -> Vec<Vec<String>> {
        let head = ["workload", "disk", "IOPS", "p50 us", "p99 us"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for point in Point::ALL {
            for stack in Stack::ALL {
                let whole = |of: fn(Figures) -> f64| cell(self.middle(stack, point, of), 0);
                rows.push(vec![
                    point.to_string(),
                    stack.to_string(),
                    whole(|figures| figures.iops),
                    whole(|figures| figures.p50_us),
                    whole(|figures| figures.p99_us),
                ]);
            }
        }
        rows
    }

    fn ratio_rows(&self) -> Vec<Vec<String>> {
        let names = RATIOS.map(|(stack, other)| format!("{} / {}", stack.key(), other.key()));
        let mut rows = vec![[vec!["workload".to_owned()], names.to_vec()].concat()];
        for point in Point::ALL {
            let cells = RATIOS.map(|pair| cell(self.ratio(pair, point), 2));
            rows.push([vec![point.to_string()], cells.to_vec()].concat());
        }
        rows
    }

    /// Every point of every round.
    pub(super) fn json(&self) -> String {
        let Conditions {
            kernel,
            emulated,
            rounds,
            seconds,
        } = &self.conditions;
        let point = |one: &Measured| {
            json!({
                "round": one.round,
                "stack": one.stack.key(),
                "workload": one.point.pattern(),
                "depth": one.point.depth,
                "iops": one.figures.iops,
                "p50_us": one.figures.p50_us,
                "p99_us": one.figures.p99_us,
                "kib": one.figures.kib,
            })
        };
        let points: Vec<_> = self.measured.iter().map(point).collect();
        let report = json!({
            "kernel": kernel,
            "accelerator": if *emulated { "tcg" } else { "kvm" },
            "rounds": rounds,
            "seconds": seconds,
            "sizes": sizes(),
            "points": points,
        });
        format!("{report:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(round: u32, stack: Stack, iops: f64) -> Measured {
        let figures = Figures {
            iops,
            p50_us: 10.0,
            p99_us: 20.0,
            kib: 4,
        };
        let point = Point::ALL[0];
        Measured {
            round,
            stack,
            point,
            figures,
        }
    }

    fn report(emulated: bool, measured: Vec<Measured>) -> Report {
        let conditions = Conditions {
            kernel: "6.1".to_owned(),
            emulated,
            rounds: 3,
            seconds: 3,
        };
        Report::new(conditions, measured)
    }

    // A machine that is slow in one round is slow for both; a ratio of medians would not know it.
    #[test]
    fn ratios_are_made_within_a_round() {
        let rounds = [(1, 100.0, 200.0), (2, 10.0, 10.0), (3, 300.0, 400.0)];
        let both = rounds.iter().flat_map(|(round, ours, theirs)| {
            let ours = measured(*round, Stack::VhostUser, *ours);
            [ours, measured(*round, Stack::Nbd, *theirs)]
        });
        let report = report(false, both.collect());
        let ratio = report.ratio((Stack::VhostUser, Stack::Nbd), Point::ALL[0]);
        let ratio = ratio.expect("both were measured");
        assert_eq!(
            (ratio.lowest, ratio.median, ratio.highest),
            (0.5, 0.75, 1.0)
        );
        let none = report.ratio((Stack::VhostUser, Stack::Image), Point::ALL[0]);
        assert_eq!(cell(none, 2), "not measured");
        assert_eq!(cell(Some(ratio), 2), "0.75 (0.50–1.00)");
    }

    // Who reads the table alone must not take an emulated processor for a slow disk.
    #[test]
    fn an_emulated_processor_is_named_before_the_first_figure() {
        let text = |emulated| report(emulated, vec![measured(1, Stack::Image, 5.0)]).markdown();
        let place = |text: &str, word: &str| text.find(word).expect("it is told");
        let emulated = text(true);
        assert!(place(&emulated, "TCG") < place(&emulated, "| workload"));
        let real = text(false);
        assert!(real.contains("KVM") && !real.contains("TCG"), "{real}");
        assert!(real.contains("| unprotected image"), "{real}");
    }
}
