//! All rounds as one HTML page: a table, and a timeline of each round beside it.
//!
//! A round is a directory with `client.json` (written by the client), and, as far as they are there, `round.json` (what
//! was done to it) and `epochs.json` (`[{"cut_unix_ns", "pause_us", "steps": {name: us}, "bytes"}]`, from the
//! checkpointer).

mod timeline;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Percentiles;
use timeline::Timeline;

/// What is drawn around the longest gap, in ns before and after it.
const AROUND_NS: u64 = 750_000_000;
/// Moments of a round: field of `round.json`, name in the picture.
const MOMENTS: [(&str, &str); 4] = [
    ("killed_unix_ns", "host A cut off and killed"),
    ("detected_unix_ns", "loss detected"),
    ("promoted_unix_ns", "promoted"),
    ("running_unix_ns", "guest runs at B"),
];
const STYLE: &str = "body{font-family:sans-serif;margin:2em;max-width:1100px}table{border-collapse:collapse}\
    td,th{border:1px solid #bbb;padding:3px 8px;text-align:right}td:first-child,th:first-child{text-align:left}\
    .bad{color:#b00020;font-weight:bold}.good{color:#2b7a3b}";

/// One round.
#[derive(Debug)]
struct Round {
    name: String,
    client: Value,
    told: Value,
    epochs: Vec<Value>,
}

/// Writes the page of `rounds` to `out`.
///
/// # Errors
/// A file cannot be read, or the page cannot be written.
pub fn report(title: &str, rounds: &[PathBuf], out: &Path) -> Result<()> {
    let rounds: Result<Vec<Round>> = rounds.iter().map(|dir| Round::read(dir)).collect();
    std::fs::write(out, page(title, &rounds?)).with_context(|| format!("write {}", out.display()))
}

impl Round {
    fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Value> {
            let path = dir.join(name);
            let text = std::fs::read_to_string(&path);
            let text = text.with_context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
        };
        let if_there = |name: &str| match dir.join(name).exists() {
            true => read(name),
            false => Ok(Value::Null),
        };
        let name = dir.file_name().unwrap_or(dir.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            client: read("client.json")?,
            told: if_there("round.json")?,
            epochs: if_there("epochs.json")?
                .as_array()
                .cloned()
                .unwrap_or_default(),
        })
    }

    fn figure(&self, name: &str) -> Option<f64> {
        self.client["figures"][name].as_f64()
    }

    fn moment(&self, name: &str) -> Option<u64> {
        self.told[name].as_u64()
    }

    /// Of the client and of whoever led the round.
    fn faults(&self) -> Vec<&str> {
        let all = [&self.client["faults"], &self.told["faults"]];
        let all = all.into_iter().filter_map(Value::as_array).flatten();
        all.filter_map(Value::as_str).collect()
    }

    fn timeline(&self) -> Timeline {
        let triples = self.client["answers"].as_array().into_iter().flatten();
        let answers: Vec<u64> = triples.filter_map(|one| one[2].as_u64()).collect();
        let begun = self.client["begun_unix_ns"].as_u64().unwrap_or(0);
        let gap = self.client["figures"]["longest_gap_unix_ns"].as_u64();
        let gap_us = self.client["figures"]["longest_gap_us"].as_u64();
        let marks = MOMENTS.iter().filter_map(|(field, name)| {
            let at = self.moment(field)?;
            Some((at, (*name).to_owned()))
        });
        let pauses = self.epochs.iter().filter_map(|epoch| {
            Some((epoch["cut_unix_ns"].as_u64()?, epoch["pause_us"].as_u64()?))
        });
        let clock = self.client["clock"].as_array().into_iter().flatten();
        let clock = clock.filter_map(|one| Some((one[0].as_u64()?, one[1].as_i64()?)));
        Timeline {
            title: format!("{}: all of it", self.name),
            from: begun,
            to: answers.last().copied().unwrap_or(begun),
            gap: gap.zip(gap_us).map(|(at, us)| (at, at + us * 1000)),
            marks: marks.collect(),
            pauses: pauses.collect(),
            clock: clock.collect(),
            answers,
        }
    }
}

fn page(title: &str, rounds: &[Round]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n{1}",
        text(title),
        table(rounds)
    );
    for round in rounds {
        // Writing to a String cannot fail.
        let _ = writeln!(html, "<h2>{}</h2>", text(&round.name));
        for fault in round.faults() {
            let _ = writeln!(html, "<p class=\"bad\">{}</p>", text(fault));
        }
        let whole = round.timeline();
        let _ = writeln!(html, "{}", whole.draw());
        if let Some((begin, end)) = whole.gap {
            let title = format!("{}: around the longest gap", round.name);
            let near = whole.zoomed(title, begin.saturating_sub(AROUND_NS), end + AROUND_NS);
            let _ = writeln!(html, "{}", near.draw());
        }
        html.push_str(&steps(&round.epochs));
    }
    html.push_str("</body></html>\n");
    html
}

/// How a cell is made of a round.
type Cell = fn(&Round) -> Option<String>;

const COLUMNS: [(&str, Cell); 13] = [
    ("round", |round| Some(text(&round.name))),
    ("answered", |round| whole(round.figure("answered"))),
    ("resets", |round| whole(round.figure("resets"))),
    ("longest gap", |round| ms(round.figure("longest_gap_us"))),
    ("latency p50", |round| ms(round.figure("latency_p50_us"))),
    ("latency p99", |round| ms(round.figure("latency_p99_us"))),
    ("detected", |round| since_kill(round, "detected_unix_ns")),
    ("promoted", |round| since_kill(round, "promoted_unix_ns")),
    ("runs", |round| since_kill(round, "running_unix_ns")),
    ("pause p50 / p99", pauses),
    ("bytes an epoch", bytes),
    ("clock lost", |round| ms(round.figure("clock_lost_us"))),
    ("result", |round| {
        let class = if round.faults().is_empty() {
            "good"
        } else {
            "bad"
        };
        let word = if class == "good" { "holds" } else { "FAILED" };
        Some(format!("<span class=\"{class}\">{word}</span>"))
    }),
];

/// Columns that have nothing to say in any round are left out.
fn table(rounds: &[Round]) -> String {
    let rows: Vec<Vec<Option<String>>> = rounds
        .iter()
        .map(|round| COLUMNS.iter().map(|(_, cell)| cell(round)).collect())
        .collect();
    let is_there = |column: &usize| rows.iter().any(|row| row[*column].is_some());
    let shown: Vec<usize> = (0..COLUMNS.len()).filter(is_there).collect();
    let mut html = String::from("<table><tr>");
    for column in &shown {
        let _ = write!(html, "<th>{}</th>", COLUMNS[*column].0);
    }
    html.push_str("</tr>\n");
    for row in &rows {
        html.push_str("<tr>");
        for column in &shown {
            let _ = write!(html, "<td>{}</td>", row[*column].as_deref().unwrap_or("-"));
        }
        html.push_str("</tr>\n");
    }
    html + "</table>\n"
}

fn whole(figure: Option<f64>) -> Option<String> {
    figure.map(|figure| format!("{figure:.0}"))
}

fn ms(us: Option<f64>) -> Option<String> {
    us.map(|us| format!("{:.1} ms", us / 1000.0))
}

fn since_kill(round: &Round, field: &str) -> Option<String> {
    let (kill, at) = (round.moment("killed_unix_ns")?, round.moment(field)?);
    Some(format!("{:.1} ms", at.saturating_sub(kill) as f64 / 1e6))
}

fn of_epochs(epochs: &[Value], figure: impl Fn(&Value) -> Option<u64>) -> Option<Percentiles> {
    let values: Vec<u64> = epochs.iter().filter_map(figure).collect();
    (!values.is_empty()).then(|| Percentiles::of(values))
}

fn pauses(round: &Round) -> Option<String> {
    let found = of_epochs(&round.epochs, |epoch| epoch["pause_us"].as_u64())?;
    let ms = |us: u64| us as f64 / 1000.0;
    Some(format!("{:.2} / {:.2} ms", ms(found.p50), ms(found.p99)))
}

fn bytes(round: &Round) -> Option<String> {
    let found = of_epochs(&round.epochs, |epoch| epoch["bytes"].as_u64())?;
    Some(format!("{} KiB", found.p50 / 1024))
}

/// What a pause is made of, median and 99 of 100.
fn steps(epochs: &[Value]) -> String {
    let mut by_name: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for step in epochs.iter().filter_map(|epoch| epoch["steps"].as_object()) {
        for (name, us) in step {
            by_name.entry(name).or_default().extend(us.as_u64());
        }
    }
    if by_name.is_empty() {
        return String::new();
    }
    let mut html = String::from("<table><tr><th>step</th><th>p50 us</th><th>p99 us</th></tr>\n");
    for (name, values) in by_name {
        let found = Percentiles::of(values);
        let (name, p50, p99) = (text(name), found.p50, found.p99);
        let _ = writeln!(html, "<tr><td>{name}</td><td>{p50}</td><td>{p99}</td></tr>");
    }
    html + "</table>\n"
}

fn text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    //! A page that shows a failed round as good, or leaves out a column of the bar, is the page people look at.

    use super::*;
    use serde_json::json;

    fn round(faults: &[&str]) -> Round {
        Round {
            name: "round-1".to_owned(),
            client: json!({
                "begun_unix_ns": 1_000_000_000u64,
                "answers": [[1, 1_000_000_000u64, 1_001_000_000u64], [2, 1_002_000_000u64, 1_900_000_000u64]],
                "clock": [[1_001_000_000u64, 0], [1_900_000_000u64, 1000]],
                "figures": {"answered": 2, "resets": 0, "longest_gap_us": 899_000,
                    "longest_gap_unix_ns": 1_001_000_000u64, "latency_p50_us": 1000},
                "faults": faults,
            }),
            told: json!({"killed_unix_ns": 1_100_000_000u64, "running_unix_ns": 1_400_000_000u64}),
            epochs: vec![
                json!({"cut_unix_ns": 1_010_000_000u64, "pause_us": 5000, "steps": {"stop": 700, "copy": 80}}),
                json!({"cut_unix_ns": 1_050_000_000u64, "pause_us": 7000, "steps": {"stop": 900, "copy": 90}}),
            ],
        }
    }

    #[test]
    fn the_table_tells_what_there_is_and_no_more() {
        let html = page("a < b", &[round(&[])]);
        for words in [
            "a &lt; b",
            "899.0 ms",
            "300.0 ms",
            "5.00 / 7.00 ms",
            "holds",
            "copy",
            "host A cut off",
        ] {
            assert!(html.contains(words), "{words} in {html}");
        }
        assert!(
            !html.contains("<th>detected") && !html.contains("FAILED"),
            "{html}"
        );
    }

    #[test]
    fn a_fault_of_either_side_fails_the_round() {
        assert!(page("x", &[round(&["lost"])]).contains("FAILED"));
        let mut of_leader = round(&[]);
        of_leader.told["faults"] = json!(["not promoted"]);
        assert!(page("x", &[of_leader]).contains("FAILED"));
    }
}
