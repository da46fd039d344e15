//! `check`: reads log and image, asks the oracle, reports.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::history::History;
use super::image::{self, Fault, ImageError, Source};
use super::log::{Kind, LogError};
use super::oracle::{self, Because, Rules, Violation};

/// Violations written out; the others are counted.
const LISTED_MAX: usize = 20;

/// Why no verdict is possible.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// One broken rule in words.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Byte on the disk, if the rule is about a place.
    pub offset: Option<u64>,
    /// Name of the rule, stable.
    pub rule: &'static str,
    /// What is wrong there.
    pub text: String,
}

/// The outcome of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The image is a state the disk could have been in, and keeps the promises.
    pub accepted: bool,
    /// Id of the run.
    pub run: u64,
    /// Units in the span of the run.
    pub units: u64,
    /// Of these, zero.
    pub units_zero: u64,
    /// Of these, showing a write of the run.
    pub units_written: u64,
    /// Requests that change the disk, in the log.
    pub requests: u64,
    /// Of these, completed with success.
    pub requests_completed: u64,
    /// Distinct writes visible in the image.
    pub writes_visible: u64,
    /// Requests that must be in the image, seen or overwritten.
    pub requests_included: u64,
    /// Completed requests that need not be in it.
    pub lost_tail: u64,
    /// Submission stamp of the latest included request; 0 if none.
    pub latest_included_stamp: u64,
    /// Id of it; 0 if none.
    pub latest_included_id: u64,
    /// Cuts with an epoch in the log.
    pub cuts: u64,
    /// Broken rules in total.
    pub violations_total: u64,
    /// The first of them by kind and offset.
    pub violations: Vec<Finding>,
}

/// Judges `source` by the log.
pub fn check(
    log: &Path,
    source: &mut Source,
    rules: &Rules,
    earlier_runs: bool,
) -> Result<Report, CheckError> {
    let history = History::read(log)?;
    let contents = image::read(source, &history, earlier_runs, LISTED_MAX)?;
    let verdict = oracle::judge(&history, &contents.units, rules);
    let findings = contents
        .faults
        .iter()
        .map(|(offset, fault)| of_fault(*offset, fault));
    let findings = findings.chain(verdict.violations.iter().map(of_violation));
    let violations: Vec<Finding> = findings.take(LISTED_MAX).collect();
    let violations_total = contents.faults_total + verdict.violations.len() as u64;
    let changing = || {
        history
            .requests
            .iter()
            .filter(|request| request.kind != Kind::Flush)
    };
    let completed = changing().filter(|request| request.completed != super::history::NEVER);
    Ok(Report {
        accepted: violations_total == 0,
        run: history.header.run,
        units: contents.units.len() as u64,
        units_zero: contents.units_zero,
        units_written: contents.units_written,
        requests: changing().count() as u64,
        requests_completed: completed.count() as u64,
        writes_visible: verdict.writes_visible,
        requests_included: verdict.included,
        lost_tail: verdict.lost_tail,
        latest_included_stamp: verdict.latest_stamp,
        latest_included_id: verdict.latest_id,
        cuts: history.cuts.len() as u64,
        violations_total,
        violations,
    })
}

fn of_fault(offset: u64, fault: &Fault) -> Finding {
    let (rule, text) = match fault {
        Fault::Garbage => (
            "garbage",
            "neither zero nor a whole unit: torn or corrupt".into(),
        ),
        Fault::Misdirected { write, meant_for } => (
            "misdirected",
            format!("a unit of write {write} that belongs at byte {meant_for}"),
        ),
        Fault::OtherRun { run } => ("other-run", format!("a unit of run {run:016x}")),
        Fault::NotInLog { write } => (
            "not-in-log",
            format!("a unit of write {write}, which the log has not like this"),
        ),
    };
    Finding {
        offset: Some(offset),
        rule,
        text,
    }
}

fn of_violation(violation: &Violation) -> Finding {
    match violation {
        Violation::Lost {
            offset,
            shows,
            lost,
            because,
        } => {
            let shows = match shows {
                Some(write) => format!("write {write}"),
                None => "no write".into(),
            };
            let because = match because {
                Because::Visible => "other units show it",
                Because::Acknowledged => "its acknowledgement promised it",
                Because::Epoch => "it was acknowledged before the cut of an epoch the image has",
                Because::Before => "it completed before a request in the image was submitted",
            };
            let text = format!("shows {shows}, but request {lost} must be there: {because}");
            Finding {
                offset: Some(*offset),
                rule: "lost",
                text,
            }
        }
        Violation::AfterCut { offset, write } => {
            let text = format!("shows write {write}, submitted after the epoch's cut was answered");
            Finding {
                offset: Some(*offset),
                rule: "after-cut",
                text,
            }
        }
        Violation::PromiseAfterCut { request } => {
            let text =
                format!("request {request} was promised, but came after the cut of this epoch");
            Finding {
                offset: None,
                rule: "promise-after-cut",
                text,
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.accepted {
            "consistent"
        } else {
            "NOT CONSISTENT"
        };
        writeln!(f, "{verdict} (run {:016x})", self.run)?;
        writeln!(
            f,
            "units:    {} ({} zero, {} written)",
            self.units, self.units_zero, self.units_written
        )?;
        writeln!(
            f,
            "requests: {} ({} completed), {} writes visible, {} included, latest included {}",
            self.requests,
            self.requests_completed,
            self.writes_visible,
            self.requests_included,
            self.latest_included_id
        )?;
        match self.lost_tail {
            0 => write!(f, "lost:     no completed request")?,
            1 => write!(f, "lost:     at most 1 completed request")?,
            lost => write!(f, "lost:     at most {lost} completed requests")?,
        }
        if self.violations_total > 0 {
            write!(f, "\nviolations: {}", self.violations_total)?;
        }
        for finding in &self.violations {
            match finding.offset {
                Some(offset) => write!(f, "\n  byte {offset}: {}", finding.text)?,
                None => write!(f, "\n  {}", finding.text)?,
            }
        }
        let unlisted = self.violations_total - self.violations.len() as u64;
        if unlisted > 0 {
            write!(f, "\n  and {unlisted} more")?;
        }
        Ok(())
    }
}
