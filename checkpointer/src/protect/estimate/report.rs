//! What an operator reads: a table, or JSON.

use super::Estimation;
use super::figures::{Measured, Pause, Point, Wanted, choose, rank};
use crate::hypervisor::qemu::check::Finding;
use crate::protect::guest::Guest;
use serde::Serialize;
use std::fmt::{self, Write as _};

/// Measured, or by which formula.
const FORMULAS: [&str; 9] = [
    "dirty pages, zero pages: measured, over windows as long as the interval",
    "wire: measured on a sample of the pages, through the encoder that protection uses (zero, same, difference, packed)",
    "pause: measured (stop + scan + device state + cont), and the measured copy of a page times the dirty pages; the p99 is the \
     slowest pause made with the p95 of dirty pages. Cutting disks and output is not in it",
    "share: mean pause / (interval + mean pause)",
    "memory link: (mean dirty pages x wire bytes of a page + device state) / (interval + mean pause); with the disks' write rate, \
     measured, where their daemon was asked",
    "buffer_mib: p95 of dirty pages x (in_flight_max + 1)",
    "primary: buffer_mib + cache_mib, and as much as the guest has where pages are compared",
    "backup: 2 x the guest's memory + p95 of dirty pages x in_flight_max; journal: 4 x disk write rate x answer_max_ms, at least \
     64 MiB",
    "latency of output: interval / 2 + mean pause + sending (with --link-mib-per-s) + round trip (as told, else 0)",
];

/// Of fewer the p95 is the most.
const WINDOWS_FEW: u64 = 20;

/// What does not depend on the interval.
#[derive(Debug, Clone, Serialize)]
pub(super) struct About {
    guest_mib: u64,
    tracker: &'static str,
    tracker_why: String,
    state_way: String,
    warnings: Vec<String>,
}

impl About {
    pub(super) fn of(guest: &Guest, warned: Vec<Finding>) -> Self {
        let kind = guest.tracker.as_ref().map(|tracker| tracker.kind());
        Self {
            guest_mib: guest.mapping.pages() / 256,
            tracker: kind.map_or("none", crate::memory::tracker::Kind::word),
            tracker_why: guest.tracker_why.clone(),
            state_way: guest.saver_why().to_owned(),
            warnings: warned.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A step of the pauses that were made, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Step {
    p50_us: u64,
    max_us: u64,
}

#[derive(Debug, Clone, Serialize)]
struct Steps {
    count: usize,
    stop: Step,
    scan: Step,
    copy: Step,
    device_state: Step,
    cont: Step,
}

impl Steps {
    fn of(pauses: &[Pause]) -> Self {
        let step = |of: &dyn Fn(&Pause) -> u64| {
            let all = || pauses.iter().map(of).collect::<Vec<u64>>();
            Step {
                p50_us: rank(all(), 50),
                max_us: rank(all(), 100),
            }
        };
        Self {
            count: pauses.len(),
            stop: step(&|p| p.stop_us),
            scan: step(&|p| p.scan_us),
            copy: step(&|p| p.copy_us),
            device_state: step(&|p| p.device_state_us),
            cont: step(&|p| p.cont_us),
        }
    }
}

/// What protection would cost.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    #[serde(flatten)]
    about: About,
    pauses: Steps,
    pub(crate) intervals: Vec<Point>,
    pause_percent_max: u64,
    /// The shortest interval that keeps the share, on a link that suffices.
    pub(crate) interval_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal_mib: Option<u64>,
    /// What was not measured, or has to be changed.
    notes: Vec<String>,
    formulas: [&'static str; 9],
}

impl Report {
    pub(super) fn new(
        about: About,
        measured: &Measured,
        intervals: Vec<Point>,
        wanted: &Wanted,
        estimation: &Estimation,
    ) -> Self {
        let notes = notes(measured, &intervals, estimation);
        Self {
            about,
            pauses: Steps::of(&measured.pauses),
            pause_percent_max: wanted.pause_percent,
            interval_ms: choose(&intervals),
            disk_bytes_per_s: measured.disk_bytes_per_s,
            journal_mib: measured
                .journal_bytes(wanted)
                .map(|bytes| bytes.div_ceil(1 << 20)),
            notes,
            intervals,
            formulas: FORMULAS,
        }
    }

    /// As JSON, one line.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("figures and words")
    }
}

fn notes(measured: &Measured, intervals: &[Point], estimation: &Estimation) -> Vec<String> {
    let mut notes = Vec::new();
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let slow = |point: &&Point| point.window_p50_ms > 1.25 * point.interval_ms as f64;
    for point in intervals.iter().filter(slow) {
        notes.push(format!(
            "a look takes longer than {} ms here: its figures are of windows of {:.0} ms",
            point.interval_ms, point.window_p50_ms
        ));
    }
    for point in intervals.iter().filter(|point| point.windows < WINDOWS_FEW) {
        notes.push(format!(
            "{} ms was looked at {} times only: its p95 says little; --seconds gives it longer",
            point.interval_ms, point.windows
        ));
    }
    let most = intervals.iter().map(|point| point.buffer_mib).max();
    if most.is_some_and(|most| most > estimation.buffer_mib) {
        notes.push(format!(
            "buffer_mib = {} is too little at some intervals: take what the table says",
            estimation.buffer_mib
        ));
    }
    if measured.disk_bytes_per_s.is_none() {
        let text = match &estimation.disks {
            Some(control) => format!(
                "the disks are not in it: {} does not answer",
                control.display()
            ),
            None => "the disks are not in it: --config names their daemon".to_owned(),
        };
        notes.push(text);
    }
    if estimation.round_trip_us.is_none() {
        let text =
            "the round trip to the backup is not in the latency: --round-trip-us, as ping shows it";
        notes.push(text.to_owned());
    }
    notes
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.table(f)?;
        self.end(f)
    }
}

impl Report {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = &self.about;
        writeln!(
            f,
            "guest: {} MiB; dirty pages by {} ({}); device state: {}",
            about.guest_mib, about.tracker, about.tracker_why, about.state_way
        )?;
        let steps = &self.pauses;
        let mut line = String::new();
        for (name, step) in [
            ("stop", steps.stop),
            ("scan", steps.scan),
            ("copy", steps.copy),
            ("device state", steps.device_state),
            ("cont", steps.cont),
        ] {
            write!(line, " {name} {}/{}", step.p50_us, step.max_us)?;
        }
        writeln!(f, "{} pauses, p50/max in us:{line}\n", steps.count)
    }

    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>8} {:>13} {:>6} {:>6} {:>13} {:>7} {:>11} {:>7} {:>9} {:>9} {:>8}",
            "interval",
            "dirty pages",
            "zero",
            "wire",
            "pause ms",
            "share",
            "link MiB/s",
            "buffer",
            "primary",
            "backup",
            "latency"
        )?;
        writeln!(
            f,
            "{:>8} {:>13} {:>6} {:>6} {:>13} {:>7} {:>11} {:>7} {:>9} {:>9} {:>8}",
            "ms", "p50/p95", "%", "%", "p50/p99", "%", "memory/all", "MiB", "MiB", "MiB", "ms"
        )?;
        for point in &self.intervals {
            let pair = |one: f64, other: f64| format!("{one:.1}/{other:.1}");
            let link = format!("{:.2}/{:.2}", point.memory_mib_per_s, point.wire_mib_per_s);
            writeln!(
                f,
                "{:>8} {:>13} {:>6.0} {:>6.0} {:>13} {:>7.1} {:>11} {:>7} {:>9} {:>9} {:>8.1}{}",
                point.interval_ms,
                format!("{}/{}", point.dirty_pages_p50, point.dirty_pages_p95),
                point.zero_percent,
                point.wire_percent,
                pair(point.pause_p50_ms, point.pause_p99_ms),
                point.pause_percent,
                link,
                point.buffer_mib,
                point.primary_mib,
                point.backup_mib,
                point.latency_ms,
                if point.link_suffices == Some(false) {
                    "  link too slow"
                } else {
                    ""
                }
            )?;
        }
        writeln!(f)
    }

    fn end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interval_ms {
            Some(interval_ms) => writeln!(
                f,
                "interval_ms = {interval_ms}: the shortest of these with pauses of at most {} % of the time",
                self.pause_percent_max
            )?,
            None => writeln!(
                f,
                "none of these intervals will do (pauses of at most {} % of the time, and a link that suffices): try longer ones \
                 with --interval-ms, or [epochs.adaptive]",
                self.pause_percent_max
            )?,
        }
        if let Some(journal_mib) = self.journal_mib {
            writeln!(f, "journal at the backup: {journal_mib} MiB at least")?;
        }
        for (what, lines) in [("warning", &self.about.warnings), ("note", &self.notes)] {
            for line in lines {
                writeln!(f, "{what}: {line}")?;
            }
        }
        writeln!(f, "\nhow each figure was made:")?;
        for line in self.formulas {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}
