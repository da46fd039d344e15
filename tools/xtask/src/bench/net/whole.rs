//! Whether a run measured all that it was to: a line that is left out looks like one that nobody wanted.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::bars;
use super::figures::{Ground, Of};
use super::report::{DELAYS, RATES, Report, STREAMS};

impl Report {
    /// What is not there of the kernels that were measured on, a line each.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (ground, way) in self.ways() {
            let holds = way != "nothing";
            let mut want = |point: &str, figure: &str| {
                let of = Of {
                    ground,
                    way,
                    point,
                    figure,
                };
                if self.figures.middle(of).is_none() {
                    missing.push(format!("{}, {way}: {point} {figure}", ground.key()));
                }
            };
            for (point, _, figures) in DELAYS {
                if holds || point != "release" {
                    for figure in figures {
                        want(point, figure);
                    }
                }
            }
            for (point, _) in RATES.into_iter().chain(STREAMS) {
                if holds || !point.ends_with("-held") {
                    want(point, "gbit_per_s");
                }
            }
            if holds {
                for length in self.figures.epoch_lengths() {
                    for figure in ["p50_us", "p99_us"] {
                        want(&format!("epochs-{length}"), figure);
                    }
                }
                for figure in ["limit_kib", "empty_kib", "full_kib", "most_kib"] {
                    want("memory", figure);
                }
            }
        }
        if self.figures.epoch_lengths().is_empty() {
            missing.push("epochs of any length".to_owned());
        }
        for bar in bars::table(&self.figures) {
            let ground = match bar.text.starts_with("plug") {
                true => Ground::Guest,
                false => Ground::Here,
            };
            if self.figures.has(ground) && bar.measured.is_none() {
                missing.push(format!("the bar \"{}\"", bar.text));
            }
        }
        missing
    }
}

/// The charts in `out` are whole, and have a bar for each way.
pub(super) fn check_charts(out: &Path, ways: &[(Ground, &'static str)]) -> Result<()> {
    for name in ["net-delay.svg", "net-rate.svg"] {
        let path = out.join(name);
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("read {}", path.display()))?;
        let path = path.display();
        ensure!(text.trim_end().ends_with("</svg>"), "{path} is cut short");
        for (ground, way) in ways {
            // Rates are drawn of this machine's kernel only.
            let drawn = name == "net-delay.svg" || *ground == Ground::Here;
            ensure!(!drawn || text.contains(way), "{path} has no bar of {way}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::figures::Figures;
    use super::super::report::Conditions;
    use super::*;

    fn report(text: &str) -> Report {
        let conditions = Conditions {
            guest_kernel: None,
            skipped: Vec::new(),
            quick: true,
        };
        Report::new(conditions, Figures::read(Ground::Here, text).unwrap())
    }

    fn line(way: &str, point: &str, figures: &[&str]) -> String {
        let figures: Vec<String> = figures
            .iter()
            .map(|name| format!("\"{name}\":1.0"))
            .collect();
        let figures = figures.join(",");
        format!(
            "BENCH-NET {{\"round\":1,\"way\":\"{way}\",\"point\":\"{point}\",\"figures\":{{{figures}}}}}\n"
        )
    }

    // A load that stops half-way passes for a run of fewer points.
    #[test]
    fn a_point_that_was_not_measured_is_named() {
        let mut text = String::new();
        for way in ["nothing", "relay"] {
            text += &line(way, "hop", &["p50_us", "p99_us"]);
            let ends = ["first_p50_us", "first_p99_us", "last_p50_us", "last_p99_us"];
            for point in ["burst", "release"] {
                text += &line(way, point, &ends);
            }
            for (point, _) in RATES.into_iter().chain(STREAMS) {
                let figures = [
                    "gbit_per_s",
                    "frames_per_s",
                    "cpu_ns_per_frame",
                    "relay_ns_per_frame",
                ];
                text += &line(way, point, &figures);
            }
            text += &line(way, "epochs-5", &["p50_us", "p99_us"]);
            text += &line(
                way,
                "memory",
                &["limit_kib", "empty_kib", "full_kib", "most_kib"],
            );
        }
        assert_eq!(report(&text).missing(), Vec::<String>::new());
        let last = "BENCH-NET {\"round\":1,\"way\":\"relay\",\"point\":\"memory\"";
        let without = &text[..text.find(last).unwrap()];
        let missing = report(without).missing();
        assert_eq!(missing.len(), 5, "{missing:?}");
        assert!(
            missing[0].contains("relay: memory limit_kib"),
            "{missing:?}"
        );
        assert!(missing[4].contains("the bar"), "{missing:?}");
        let short = text.replace("\"point\":\"tcp\"", "\"point\":\"other\"");
        assert!(
            report(&short)
                .missing()
                .iter()
                .any(|one| one.contains("nothing: tcp "))
        );
    }
}
