//! Which bars the charts have.

use super::chart::{self, Row};
use super::figures::{Ground, Of};
use super::report::{RATES, Report};

impl Report {
    pub(super) fn delay_chart(&self) -> String {
        let mut rows = Vec::new();
        for length in self.figures.epoch_lengths() {
            for (kind, (ground, way)) in self.ways().into_iter().enumerate() {
                let point = match way {
                    "nothing" => "hop".to_owned(),
                    _ => format!("epochs-{length}"),
                };
                let of = Of {
                    ground,
                    way,
                    point: &point,
                    figure: "p50_us",
                };
                if let Some(middle) = self.figures.middle(of) {
                    let value = middle.median / 1000.0;
                    let name = format!("{length} ms, {way} ({})", ground.key());
                    rows.push(Row {
                        name,
                        value,
                        label: format!("{value:.2} ms"),
                        kind,
                    });
                }
            }
        }
        chart::draw("A frame's median delay by the length of the epochs", &rows)
    }

    pub(super) fn rate_chart(&self) -> String {
        let mut rows = Vec::new();
        for (point, text) in RATES
            .into_iter()
            .filter(|(point, _)| !point.ends_with("paced"))
        {
            for (kind, (ground, way)) in self
                .ways()
                .into_iter()
                .enumerate()
                .filter(|(_, (g, _))| *g == Ground::Here)
            {
                let of = Of {
                    ground,
                    way,
                    point,
                    figure: "frames_per_s",
                };
                if let Some(middle) = self.figures.middle(of) {
                    let value = middle.median;
                    let name = format!("{text}: {way}");
                    rows.push(Row {
                        name,
                        value,
                        label: format!("{value:.0}/s"),
                        kind,
                    });
                }
            }
        }
        chart::draw("Frames per second, this machine's kernel", &rows)
    }
}
