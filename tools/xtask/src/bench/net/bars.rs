//! What the figures have to be.

use super::figures::{Figures, Ground, Of};
use crate::bench::middle::Middle;

/// Kilobytes a relay may need besides what it holds.
const BESIDES_KIB: f64 = 32.0 * 1024.0;

/// One demand, and how it stands.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) text: &'static str,
    pub(super) measured: Option<Middle>,
    pub(super) demand: f64,
    pub(super) at_most: bool,
    pub(super) decimals: usize,
}

impl Bar {
    /// `None`: not measured.
    pub(super) fn met(&self) -> Option<bool> {
        let median = self.measured?.median;
        Some(match self.at_most {
            true => median <= self.demand,
            false => median >= self.demand,
        })
    }

    pub(super) fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        }
    }

    pub(super) fn demanded(&self) -> String {
        let sign = if self.at_most { "≤" } else { "≥" };
        format!("{sign} {:.*}", self.decimals, self.demand)
    }
}

/// All of them.
pub(super) fn table(figures: &Figures) -> Vec<Bar> {
    let mut bars = of_plug(figures);
    bars.extend(of_relay(figures));
    bars
}

fn of(ground: Ground, way: &'static str, point: &'static str, figure: &'static str) -> Of<'static> {
    Of {
        ground,
        way,
        point,
        figure,
    }
}

fn at_most(text: &'static str, demand: f64, measured: Option<Middle>) -> Bar {
    Bar {
        text,
        measured,
        demand,
        at_most: true,
        decimals: 1,
    }
}

fn at_least(text: &'static str, demand: f64, measured: Option<Middle>) -> Bar {
    Bar {
        text,
        measured,
        demand,
        at_most: false,
        decimals: if demand < 10.0 { 2 } else { 0 },
    }
}

fn of_plug(figures: &Figures) -> Vec<Bar> {
    let over_hop = |released, hop| {
        figures.ratio(
            of(Ground::Guest, "plug", "release", released),
            of(Ground::Guest, "nothing", "hop", hop),
        )
    };
    vec![
        at_most(
            "plug, RELEASE to first frame / a hop that nothing holds, p50",
            3.0,
            over_hop("first_p50_us", "p50_us"),
        ),
        at_most(
            "plug, RELEASE to first frame / a hop that nothing holds, p99",
            10.0,
            over_hop("first_p99_us", "p99_us"),
        ),
    ]
}

fn of_relay(figures: &Figures) -> Vec<Bar> {
    let relay = |point, figure| of(Ground::Here, "relay", point, figure);
    let nothing = |point, figure| of(Ground::Here, "nothing", point, figure);
    let over_limit = figures.difference(relay("memory", "most_kib"), relay("memory", "limit_kib"));
    vec![
        at_least(
            "relay, 1500-byte frames through epochs / bridge alone",
            0.5,
            figures.ratio(
                relay("full-held", "frames_per_s"),
                nothing("full-open", "frames_per_s"),
            ),
        ),
        at_least(
            "the same by processor time: a frame's of bridge alone / of the relay's thread",
            0.5,
            figures.ratio(
                nothing("full-open", "cpu_ns_per_frame"),
                relay("full-held", "relay_ns_per_frame"),
            ),
        ),
        at_least(
            "relay, one TCP stream with offloads / bridge alone",
            0.5,
            figures.ratio(relay("tcp", "gbit_per_s"), nothing("tcp", "gbit_per_s")),
        ),
        at_least(
            "relay, small frames per second through epochs",
            200_000.0,
            figures.middle(relay("small-held", "frames_per_s")),
        ),
        at_least(
            "the same per second of processor time of the relay's thread",
            200_000.0,
            figures
                .middle(relay("small-held", "relay_ns_per_frame"))
                .map(Middle::per_second),
        ),
        at_most(
            "relay's daemon at its limit, MiB more than limit and 32",
            0.0,
            over_limit.map(|over| over.map(|kib| (kib - BESIDES_KIB).max(0.0) / 1024.0)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(ground: Ground, lines: &[(&str, &str, &str, f64)]) -> Figures {
        let line = |(way, point, figure, value): &(&str, &str, &str, f64)| {
            format!(
                "BENCH-NET {{\"round\":1,\"way\":\"{way}\",\"point\":\"{point}\",\"figures\":{{\"{figure}\":{value}}}}}\n"
            )
        };
        Figures::read(ground, &lines.iter().map(line).collect::<String>()).unwrap()
    }

    // A bar whose sides are exchanged is met by whoever misses it.
    #[test]
    fn slow_misses_and_quick_meets() {
        let verdicts = |hop, release, rate| {
            let mut all = figures(
                Ground::Guest,
                &[
                    ("nothing", "hop", "p50_us", hop),
                    ("plug", "release", "first_p50_us", release),
                ],
            );
            all.extend(figures(
                Ground::Here,
                &[("relay", "small-held", "frames_per_s", rate)],
            ));
            let bars = table(&all);
            [bars[0].verdict(), bars[2].verdict(), bars[5].verdict()]
        };
        assert_eq!(
            verdicts(10.0, 29.0, 200_001.0),
            ["met", "not measured", "met"]
        );
        assert_eq!(
            verdicts(10.0, 31.0, 199_999.0),
            ["missed", "not measured", "missed"]
        );
    }

    #[test]
    fn memory_is_what_is_over_the_limit() {
        let line = |most| {
            let text = format!(
                "BENCH-NET {{\"round\":1,\"way\":\"relay\",\"point\":\"memory\",\
                 \"figures\":{{\"most_kib\":{most},\"limit_kib\":65536}}}}"
            );
            table(&Figures::read(Ground::Here, &text).unwrap())[7].verdict()
        };
        assert_eq!([line(98_000), line(99_000)], ["met", "missed"]);
    }
}
