//! fio: what it is told, and what it says.

use super::plan::find_program;
use super::workload::{OFFERED_BYTES_PER_S, Pattern, RUN_BLOCKS, Workload};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What the load goes to.
#[derive(Debug, Clone, Copy)]
pub(super) enum To<'a> {
    /// A file, by io_uring with O_DIRECT.
    File(&'a Path),
    /// The default export of an NBD server on a Unix socket.
    Nbd(&'a Path),
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// At the latest, in seconds.
    pub(super) seconds: u64,
    /// Probably, in seconds.
    pub(super) expected_s: u64,
    /// After this many bytes, if given.
    pub(super) bytes: Option<u64>,
}

/// What one job did; all zero where there was no load.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outcome {
    /// Of what counts; a load may have a beginning that does not.
    pub(super) iops: f64,
    /// All that were made.
    pub(super) requests: u64,
    pub(super) bytes: u64,
    pub(super) runtime_ms: u64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
}

/// Whether fio is there and speaks NBD.
///
/// # Errors
/// What to install.
pub(super) fn check() -> Result<()> {
    ensure!(
        find_program("fio").is_some(),
        "fio is missing: apt-get install fio"
    );
    let engines = Command::new("fio").arg("--enghelp").output()?;
    let engines = String::from_utf8_lossy(&engines.stdout).into_owned();
    for engine in ["nbd", "io_uring"] {
        ensure!(
            engines.split_whitespace().any(|word| word == engine),
            "this fio has no {engine} engine; Debian's package has: apt-get install fio"
        );
    }
    Ok(())
}

/// A fio of which nothing but the jobs is to be said.
pub(super) fn command(output: &Path) -> Command {
    let mut command = Command::new("fio");
    command
        .arg(format!("--output={}", output.display()))
        .args(["--output-format=json", "--percentile_list=50:99:99.9"])
        .arg("--thread=1");
    command
}

/// Adds a job.
pub(super) fn add_job(
    command: &mut Command,
    name: &str,
    workload: Workload,
    to: To<'_>,
    size_bytes: u64,
    extent: Extent,
    seed: u64,
) {
    command
        .arg(format!("--name={name}"))
        .arg(format!("--rw={}", workload.rw))
        .arg(format!("--bs={}", workload.block_bytes))
        .arg(format!("--iodepth={}", workload.depth))
        .arg(format!("--size={size_bytes}"))
        .arg(format!("--runtime={}", extent.seconds))
        .arg(format!("--randseed={seed}"));
    add_pattern(command, workload);
    match extent.bytes {
        Some(bytes) => command.arg(format!("--io_size={bytes}")),
        None => command.arg("--time_based=1"),
    };
    match to {
        To::File(path) => command
            .args(["--ioengine=io_uring", "--direct=1"])
            .arg(format!("--filename={}", path.display())),
        To::Nbd(socket) => command
            .arg("--ioengine=nbd")
            .arg(format!("--uri=nbd+unix:///?socket={}", socket.display())),
    };
}

fn add_pattern(command: &mut Command, workload: Workload) {
    let map = |none: u8| format!("--norandommap={none}");
    match workload.pattern {
        Pattern::Once => command.arg(map(0)),
        Pattern::TenTimes => {
            let run = RUN_BLOCKS * workload.block_bytes;
            command
                .arg("--zonemode=strided")
                .arg(format!("--zonerange={run}"))
                .arg(format!("--zonesize={}", run * 10))
        }
        Pattern::Offered => command
            .arg(map(1))
            .arg(format!("--rate={OFFERED_BYTES_PER_S}")),
        Pattern::Free | Pattern::Idle => command.arg(map(1)),
    };
}

/// The jobs of a finished fio, in order.
///
/// # Errors
/// It failed, or says what is no report.
pub(super) fn outcomes(output: &Path, workload: Workload) -> Result<Vec<Outcome>> {
    let text = std::fs::read_to_string(output).context("the report of fio")?;
    // Notes may stand before the report.
    let begin = text.find('{').context("fio wrote no report")?;
    let report: Value = serde_json::from_str(&text[begin..]).context("the report of fio")?;
    let jobs = report["jobs"].as_array().context("no jobs in it")?;
    let side = if workload.writes() { "write" } else { "read" };
    jobs.iter().map(|job| outcome(job, side)).collect()
}

fn outcome(job: &Value, side: &str) -> Result<Outcome> {
    ensure!(job["error"] == 0, "fio met error {} (errno)", job["error"]);
    let part = &job[side];
    let number = |value: &Value| value.as_u64().context("a number of fio's report");
    let percentile = |name: &str| {
        let ns = part["clat_ns"]["percentile"][name].as_f64();
        ns.map_or(0.0, |ns| ns / 1000.0)
    };
    let out = Outcome {
        iops: part["iops"].as_f64().context("iops")?,
        requests: number(&part["total_ios"])?,
        bytes: number(&part["io_bytes"])?,
        runtime_ms: number(&part["runtime"])?,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
    };
    ensure!(out.requests > 0, "fio did nothing");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack that answers with errors is fast: its figure must not be believed.
    #[test]
    fn a_failed_job_is_no_figure() {
        let mut job = serde_json::json!({"error": 0, "write": {"iops": 10.5, "total_ios": 21,
            "io_bytes": 86016, "runtime": 2000,
            "clat_ns": {"percentile": {"50.000000": 1500}}}});
        let good = outcome(&job, "write").unwrap();
        assert_eq!((good.requests, good.p50_us, good.p99_us), (21, 1.5, 0.0));
        assert!(outcome(&job, "read").is_err());
        job["error"] = 5.into();
        assert!(outcome(&job, "write").is_err());
        job["error"] = 0.into();
        job["write"]["total_ios"] = 0.into();
        assert!(outcome(&job, "write").is_err());
    }
}
