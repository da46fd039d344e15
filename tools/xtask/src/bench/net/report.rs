//! How the figures are told: tables, charts, and all of it for programs.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::bars;
use super::figures::{Figures, Ground, Of};
use crate::bench::middle::{cell, table};

/// What holds for all figures.
#[derive(Debug)]
pub(super) struct Conditions {
    /// Where the plug was; `None` without a guest.
    pub(super) guest_kernel: Option<String>,
    pub(super) skipped: Vec<String>,
    pub(super) quick: bool,
}

/// All that is told.
#[derive(Debug)]
pub(super) struct Report {
    conditions: Conditions,
    pub(super) figures: Figures,
}

const HERE: [&str; 2] = ["nothing", "relay"];
const GUEST: [&str; 2] = ["nothing", "plug"];

/// Point, what it is, and the figure that is told first.
pub(super) const RATES: [(&str, &str); 6] = [
    ("small-open", "60-byte frames, open"),
    ("small-held", "60-byte frames, 25 ms epochs"),
    ("small-paced", "60-byte frames, paced"),
    ("full-open", "1514-byte frames, open"),
    ("full-held", "1514-byte frames, 25 ms epochs"),
    ("full-paced", "1514-byte frames, paced"),
];
pub(super) const STREAMS: [(&str, &str); 2] = [
    ("tcp", "one TCP stream, offloads as the kernel has them"),
    (
        "tcp-1500",
        "one TCP stream, cut by its sender to 1500 bytes",
    ),
];
pub(super) const DELAYS: [(&str, &str, [&str; 2]); 5] = [
    ("hop", "one frame, open", ["p50_us", "p99_us"]),
    (
        "burst",
        "first of 32, open",
        ["first_p50_us", "first_p99_us"],
    ),
    ("burst", "last of 32, open", ["last_p50_us", "last_p99_us"]),
    (
        "release",
        "RELEASE to first of 32",
        ["first_p50_us", "first_p99_us"],
    ),
    (
        "release",
        "RELEASE to last of 32",
        ["last_p50_us", "last_p99_us"],
    ),
];

fn strings<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

impl Report {
    pub(super) fn new(conditions: Conditions, figures: Figures) -> Self {
        Self {
            conditions,
            figures,
        }
    }

    /// Kernel and way of every column or row.
    pub(super) fn ways(&self) -> Vec<(Ground, &'static str)> {
        let here = HERE.map(|way| (Ground::Here, way));
        let guest = GUEST.map(|way| (Ground::Guest, way));
        let all = here.into_iter().chain(guest);
        all.filter(|(ground, _)| self.figures.has(*ground))
            .collect()
    }

    pub(super) fn markdown(&self) -> String {
        let guest = match &self.conditions.guest_kernel {
            Some(kernel) if kernel.ends_with("tcg") => format!(
                "The guest's kernel ({kernel}) has the plug; its processor is emulated: compare with *nothing* in \
                 the same kernel only."
            ),
            Some(kernel) => format!("The guest's kernel ({kernel}) has the plug."),
            None => "No guest, no plug.".to_owned(),
        };
        let quick = match self.conditions.quick {
            true => " The shortest points: the figures mean little.",
            false => "",
        };
        let skipped: String = self
            .conditions
            .skipped
            .iter()
            .map(|text| format!("Skipped: {text}.\n\n"))
            .collect();
        format!(
            "# netbuf: what holding costs\n\n{guest}{quick} Medians of the rounds ({} here, {} in the guest), in brackets \
             the lowest and the highest; ratios within rounds.\n\n{skipped}## Bars\n\n{}\n## Delay, microseconds\n\n\
             From sending, or from before RELEASE is ordered, until the witness's kernel has the frame.\n\n{}\n\
             ## Added by epochs, milliseconds\n\nFrames at any time, each epoch released as soon as it is cut, over a hop \
             that nothing holds: half an epoch and a whole one at best.\n\n{}\n## Frames and streams\n\nAF_PACKET, \
             `sendmmsg` of 64 from one thread, counted at the witness's interface; TCP of the kernel. Processor time of \
             load and kernel together, and of the relay's thread alone, per frame that arrived.\n\n{}\n## Memory of the \
             daemon, MiB\n\n{}",
            self.figures.rounds(Ground::Here),
            self.figures.rounds(Ground::Guest),
            table(self.bar_rows()),
            table(self.delay_rows()),
            table(self.epoch_rows()),
            table(self.rate_rows()),
            table(self.memory_rows())
        )
    }

    fn bar_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![strings(["bar", "demanded", "measured", "verdict"])];
        for bar in bars::table(&self.figures) {
            rows.push(vec![
                bar.text.to_owned(),
                bar.demanded(),
                cell(bar.measured, bar.decimals),
                bar.verdict().to_owned(),
            ]);
        }
        rows
    }

    fn delay_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![strings([
            "kernel",
            "way",
            "what",
            "p50",
            "p99",
            "p50 / hop of nothing",
        ])];
        for (ground, way) in self.ways() {
            for (point, text, [p50, p99]) in DELAYS {
                let of = |figure| Of {
                    ground,
                    way,
                    point,
                    figure,
                };
                if self.figures.middle(of(p50)).is_none() {
                    continue;
                }
                let hop = Of {
                    ground,
                    way: "nothing",
                    point: "hop",
                    figure: "p50_us",
                };
                rows.push(vec![
                    ground.key().to_owned(),
                    way.to_owned(),
                    text.to_owned(),
                    cell(self.figures.middle(of(p50)), 1),
                    cell(self.figures.middle(of(p99)), 1),
                    cell(self.figures.ratio(of(p50), hop), 2),
                ]);
            }
        }
        rows
    }

    fn epoch_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![strings(["epoch ms", "way", "p50", "p99"])];
        for length in self.figures.epoch_lengths() {
            for (ground, way) in self.ways().into_iter().filter(|(_, way)| *way != "nothing") {
                let name = format!("epochs-{length}");
                let added = |figure| {
                    let hop = Of {
                        ground,
                        way: "nothing",
                        point: "hop",
                        figure: "p50_us",
                    };
                    let of = Of {
                        ground,
                        way,
                        point: &name,
                        figure,
                    };
                    self.figures
                        .difference(of, hop)
                        .map(|added| added.map(|us| us / 1000.0))
                };
                let (p50, p99) = (added("p50_us"), added("p99_us"));
                rows.push(vec![
                    length.to_string(),
                    way.to_owned(),
                    cell(p50, 2),
                    cell(p99, 2),
                ]);
            }
        }
        rows
    }

    fn rate_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![strings([
            "load",
            "kernel",
            "way",
            "1000 frames/s",
            "Gbit/s",
            "of nothing",
            "cpu ns",
            "relay ns",
        ])];
        for (point, text) in RATES.into_iter().chain(STREAMS) {
            for (ground, way) in self.ways() {
                let of = |figure| Of {
                    ground,
                    way,
                    point,
                    figure,
                };
                let Some(rate) = self.figures.middle(of("gbit_per_s")) else {
                    continue;
                };
                // Held or not, it is compared with the bridge alone.
                let base = point.replace("held", "open");
                let nothing = Of {
                    ground,
                    way: "nothing",
                    point: &base,
                    figure: "gbit_per_s",
                };
                let or_dash = |figure, scale: f64| {
                    let middle = self
                        .figures
                        .middle(of(figure))
                        .filter(|middle| middle.highest > 0.0);
                    middle.map_or_else(
                        || "-".to_owned(),
                        |middle| cell(Some(middle.map(|value| value / scale)), 0),
                    )
                };
                rows.push(vec![
                    text.to_owned(),
                    ground.key().to_owned(),
                    way.to_owned(),
                    or_dash("frames_per_s", 1000.0),
                    cell(Some(rate), 2),
                    cell(self.figures.ratio(of("gbit_per_s"), nothing), 2),
                    or_dash("cpu_ns_per_frame", 1.0),
                    or_dash("relay_ns_per_frame", 1.0),
                ]);
            }
        }
        rows
    }

    fn memory_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![strings([
            "way",
            "limit",
            "nothing held",
            "at the limit",
            "at most",
        ])];
        for (ground, way) in self.ways().into_iter().filter(|(_, way)| *way != "nothing") {
            let mib = |figure| {
                let middle = self.figures.middle(Of {
                    ground,
                    way,
                    point: "memory",
                    figure,
                });
                cell(middle.map(|middle| middle.map(|kib| kib / 1024.0)), 1)
            };
            let cells = ["limit_kib", "empty_kib", "full_kib", "most_kib"].map(mib);
            rows.push([vec![way.to_owned()], cells.to_vec()].concat());
        }
        rows
    }

    pub(super) fn write(&self, out: &Path, markdown: &str) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
        let bars = bars::table(&self.figures).into_iter().map(|bar| {
            json!({"bar": bar.text, "demanded": bar.demanded(), "measured": bar.measured.map(|m| m.median), "verdict": bar.verdict()})
        });
        let all = json!({
            "guest_kernel": self.conditions.guest_kernel,
            "skipped": self.conditions.skipped,
            "quick": self.conditions.quick,
            "bars": bars.collect::<Vec<_>>(),
            "points": self.figures.json(),
        });
        let files = [
            ("net.md", markdown.to_owned()),
            ("net.json", format!("{all:#}\n")),
            ("net-delay.svg", self.delay_chart()),
            ("net-rate.svg", self.rate_chart()),
        ];
        for (name, text) in files {
            let path = out.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A table that leaves out what was not measured tells a story of its own.
    #[test]
    fn every_bar_is_told_and_so_is_an_emulated_processor() {
        let line = "BENCH-NET {\"round\":1,\"way\":\"plug\",\"point\":\"hop\",\"figures\":{\"p50_us\":1.0,\"p99_us\":2.0}}";
        let figures = Figures::read(Ground::Guest, line).unwrap();
        let conditions = Conditions {
            guest_kernel: Some("Linux 6.1, tcg".to_owned()),
            skipped: vec!["relay: needs root".to_owned()],
            quick: true,
        };
        let text = Report::new(conditions, figures).markdown();
        assert!(
            text.contains("emulated") && text.contains("Skipped: relay: needs root."),
            "{text}"
        );
        assert_eq!(text.matches("not measured |").count() % 2, 0, "{text}");
        assert!(text.contains("| one frame, open"), "{text}");
        for bar in bars::table(&Figures::default()) {
            assert!(text.contains(bar.text), "{}", bar.text);
        }
    }
}
