//! A timeline of one round as SVG: answers, pauses, the guest's clock; the kill, the gap, and what came after.

use svg::Document;
use svg::node::element::{Line, Polyline, Rectangle, Text};

/// Pixels: all of it, what stands left of the lanes, and the lanes.
const WIDTH: f64 = 1060.0;
const LEFT: f64 = 130.0;
const ACROSS: f64 = WIDTH - LEFT - 20.0;
const TOP: f64 = 70.0;
const LANE: f64 = 90.0;
const BETWEEN: f64 = 24.0;
/// Bars of the answers' lane.
const BUCKETS: usize = 300;
/// Marks on the axis of time.
const TICKS: u32 = 8;

const ANSWERS: &str = "#4878a8";
const PAUSES: &str = "#c0804d";
const CLOCK: &str = "#8a6aa8";
const GAP: &str = "#f6dede";

/// What is drawn. Times in Unix ns.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    pub(super) title: String,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) answers: Vec<u64>,
    pub(super) gap: Option<(u64, u64)>,
    /// Moments with their names.
    pub(super) marks: Vec<(u64, String)>,
    /// Cut of an epoch, and how long the guest stood still, in us.
    pub(super) pauses: Vec<(u64, u64)>,
    /// How far the guest's clock is behind, in ns.
    pub(super) clock: Vec<(u64, i64)>,
}

impl Timeline {
    /// The same round from nearer.
    pub(super) fn zoomed(&self, title: String, from: u64, to: u64) -> Self {
        Self {
            title,
            from: from.max(self.from),
            to: to.min(self.to).max(from + 1),
            ..self.clone()
        }
    }

    fn x(&self, at: u64) -> f64 {
        let span = self.to.saturating_sub(self.from).max(1) as f64;
        let into = at.clamp(self.from, self.to.max(self.from)) - self.from;
        LEFT + into as f64 / span * ACROSS
    }

    fn shows(&self, at: u64) -> bool {
        (self.from..=self.to).contains(&at)
    }

    pub(super) fn draw(&self) -> String {
        let mut lanes: Vec<Lane> = vec![self.answers_lane()];
        if !self.pauses.is_empty() {
            lanes.push(self.pauses_lane());
        }
        if !self.clock.is_empty() {
            lanes.push(self.clock_lane());
        }
        let bottom = TOP + (LANE + BETWEEN) * lanes.len() as f64;
        let height = bottom + 30.0;
        let mut document = Document::new()
            .set("viewBox", (0, 0, WIDTH, height))
            .set("width", WIDTH)
            .set("height", height)
            .set("font-family", "sans-serif")
            .set("font-size", 12)
            .add(rectangle(0.0, 0.0, WIDTH, height, "white"))
            .add(text(&self.title, 10.0, 22.0, "start").set("font-weight", "bold"));
        if let Some((begin, end)) = self
            .gap
            .filter(|(begin, end)| *end > self.from && *begin < self.to)
        {
            let (x, to) = (self.x(begin), self.x(end));
            document = document.add(rectangle(x, TOP, to - x, bottom - TOP, GAP));
        }
        for (number, lane) in lanes.into_iter().enumerate() {
            document = lane.add_to(document, TOP + (LANE + BETWEEN) * number as f64);
        }
        document = self.add_marks(document, bottom);
        self.add_axis(document, bottom).to_string()
    }

    fn answers_lane(&self) -> Lane {
        let span = self.to.saturating_sub(self.from).max(1);
        let mut counts = vec![0u64; BUCKETS];
        for at in self.answers.iter().filter(|at| self.shows(**at)) {
            let part = u128::from(at - self.from) * BUCKETS as u128 / u128::from(span);
            counts[usize::try_from(part).unwrap_or(0).min(BUCKETS - 1)] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0);
        let width = ACROSS / BUCKETS as f64;
        let bars = (0..BUCKETS).map(|at| (LEFT + width * at as f64, width, counts[at] as f64));
        let bucket_ms = span as f64 / BUCKETS as f64 / 1e6;
        Lane {
            name: "answers".to_owned(),
            most: format!("{most} in {bucket_ms:.0} ms"),
            colour: ANSWERS,
            bars: scaled(bars.filter(|bar| bar.2 > 0.0).collect(), most as f64),
            line: Vec::new(),
        }
    }

    fn pauses_lane(&self) -> Lane {
        let shown = self.pauses.iter().filter(|(at, _)| self.shows(*at));
        let most = shown.clone().map(|(_, us)| *us).max().unwrap_or(0);
        let bars = shown.map(|(at, us)| {
            let width = self.x(at + us * 1000) - self.x(*at);
            (self.x(*at), width.max(1.0), *us as f64)
        });
        Lane {
            name: "pauses".to_owned(),
            most: format!("{:.1} ms", most as f64 / 1000.0),
            colour: PAUSES,
            bars: scaled(bars.collect(), most as f64),
            line: Vec::new(),
        }
    }

    fn clock_lane(&self) -> Lane {
        let shown: Vec<_> = self
            .clock
            .iter()
            .filter(|(at, _)| self.shows(*at))
            .collect();
        let most = shown
            .iter()
            .map(|(_, lag)| lag.unsigned_abs())
            .max()
            .unwrap_or(0)
            .max(1);
        let point = |(at, lag): &&(u64, i64)| (self.x(*at), *lag as f64 / most as f64);
        Lane {
            name: "clock behind".to_owned(),
            most: format!("{:.1} ms", most as f64 / 1e6),
            colour: CLOCK,
            bars: Vec::new(),
            line: shown.iter().map(point).collect(),
        }
    }

    fn add_marks(&self, mut document: Document, bottom: f64) -> Document {
        let shown = self.marks.iter().filter(|(at, _)| self.shows(*at));
        for (number, (at, name)) in shown.enumerate() {
            let (x, y) = (self.x(*at), 38.0 + 12.0 * (number % 3) as f64);
            document = document.add(line((x, y + 2.0), (x, bottom))).add(text(
                name,
                x + 3.0,
                y + 4.0,
                "start",
            ));
        }
        document
    }

    fn add_axis(&self, mut document: Document, bottom: f64) -> Document {
        document = document.add(line((LEFT, bottom), (LEFT + ACROSS, bottom)));
        let span = self.to.saturating_sub(self.from);
        for tick in 0..=TICKS {
            let at = self.from + span / u64::from(TICKS) * u64::from(tick);
            let seconds = (at - self.from) as f64 / 1e9;
            let x = self.x(at);
            document = document.add(line((x, bottom), (x, bottom + 4.0))).add(text(
                &format!("{seconds:.2} s"),
                x,
                bottom + 18.0,
                "middle",
            ));
        }
        document
    }
}

/// One row of the picture; heights from 0 to 1.
struct Lane {
    name: String,
    most: String,
    colour: &'static str,
    /// Left, width, height.
    bars: Vec<(f64, f64, f64)>,
    line: Vec<(f64, f64)>,
}

impl Lane {
    fn add_to(self, mut document: Document, top: f64) -> Document {
        document = document
            .add(text(&self.name, LEFT - 8.0, top + LANE / 2.0, "end"))
            .add(text(&self.most, LEFT - 8.0, top + 10.0, "end"));
        for (x, width, height) in self.bars {
            let height = (height * LANE).max(1.0);
            let bar = rectangle(x, top + LANE - height, width, height, self.colour);
            document = document.add(bar);
        }
        if !self.line.is_empty() {
            let points = self.line.iter().map(|(x, height)| {
                let y = top + LANE - height.clamp(-0.2, 1.0) * LANE;
                format!("{x:.1},{y:.1}")
            });
            document = document.add(
                Polyline::new()
                    .set("points", points.collect::<Vec<_>>().join(" "))
                    .set("fill", "none")
                    .set("stroke", self.colour)
                    .set("stroke-width", 1.5),
            );
        }
        document
    }
}

fn scaled(bars: Vec<(f64, f64, f64)>, most: f64) -> Vec<(f64, f64, f64)> {
    let scale = 1.0 / most.max(1.0);
    let bars = bars.into_iter();
    bars.map(|(x, width, value)| (x, width, value * scale))
        .collect()
}

fn rectangle(x: f64, y: f64, width: f64, height: f64, colour: &str) -> Rectangle {
    Rectangle::new()
        .set("x", round(x))
        .set("y", round(y))
        .set("width", round(width))
        .set("height", round(height))
        .set("fill", colour)
}

fn text(text: &str, x: f64, y: f64, anchor: &str) -> Text {
    Text::new(text)
        .set("x", round(x))
        .set("y", round(y))
        .set("text-anchor", anchor)
}

fn line(from: (f64, f64), to: (f64, f64)) -> Line {
    Line::new()
        .set("x1", round(from.0))
        .set("y1", round(from.1))
        .set("x2", round(to.0))
        .set("y2", round(to.1))
        .set("stroke", "black")
        .set("stroke-width", 1)
}

/// A hundredth of a pixel is enough, and shorter.
fn round(pixels: f64) -> f64 {
    (pixels * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    //! A picture that draws the gap where there was none, or nothing at all, is believed all the same.

    use super::*;

    fn timeline() -> Timeline {
        Timeline {
            title: "a & b".to_owned(),
            from: 1_000,
            to: 2_000,
            answers: vec![1_000, 1_500, 2_000, 9_000],
            gap: Some((1_500, 2_000)),
            marks: vec![(1_500, "kill <A>".to_owned()), (5_000, "later".to_owned())],
            pauses: vec![(1_200, 3)],
            clock: vec![(1_000, 0), (2_000, 5)],
        }
    }

    #[test]
    fn what_is_in_sight_is_drawn_in_its_place_and_names_are_text() {
        let drawn = timeline().draw();
        assert!(
            drawn.contains("a &amp; b") && drawn.contains("kill &lt;A&gt;"),
            "{drawn}"
        );
        assert!(!drawn.contains("later"), "out of sight");
        let gap = format!("x=\"{}\" y=\"{TOP}\"", LEFT + ACROSS / 2.0);
        let width = format!("width=\"{}\"", ACROSS / 2.0);
        let of_gap = |element: &str| element.contains(&width) && element.contains(GAP);
        assert!(drawn.split('<').any(of_gap), "{gap} in {drawn}");
        assert_eq!(
            drawn.split('<').filter(|e| e.contains(ANSWERS)).count(),
            3,
            "{drawn}"
        );
    }

    #[test]
    fn nothing_is_no_error() {
        for drawn in [
            Timeline::default().draw(),
            timeline().zoomed("near".to_owned(), 3_000, 3_000).draw(),
        ] {
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
    }
}
