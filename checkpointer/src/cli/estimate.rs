//! `checkpointer estimate`.

use super::args::EstimateArgs;
use super::{failed, served, spec, usage};
use crate::config::{Config, Interval, Side};
use crate::protect::ProtectError;
use crate::protect::estimate::{self, Estimation};
use blockrep_host::ctl::runtime_dir;
use blockrep_host::exit::{Exit, Failure};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Of the configuration's defaults.
const PAUSE_PERCENT: u64 = 5;
const IN_FLIGHT_MAX: u64 = 2;
const BUFFER_MIB: u64 = 256;
const ANSWER_MAX_MS: u64 = 2_000;

pub(super) fn estimate(args: &EstimateArgs) -> Result<(), Failure> {
    let config = (args.config.as_deref())
        .map(|path| Config::read(path, Side::Protect).map_err(usage))
        .transpose()?;
    let estimation = Estimation {
        monitor: monitor(args, config.as_ref())?,
        served: served(&args.served)?,
        tracker: args.tracker.map(Into::into),
        looked: Duration::from_secs(args.seconds),
        intervals_ms: ascending(&args.interval_ms),
        pause_percent: args.pause_percent.unwrap_or_else(|| share(config.as_ref())),
        link_mib_per_s: args.link_mib_per_s,
        round_trip_us: args.round_trip_us,
        disks: config.as_ref().and_then(|config| config.disks.clone()),
        in_flight_max: (config.as_ref()).map_or(IN_FLIGHT_MAX, |c| c.epochs.in_flight_max as u64),
        buffer_mib: (config.as_ref()).map_or(BUFFER_MIB, |c| c.memory.buffer_mib),
        cache_mib: config.as_ref().map(|config| config.memory.cache_mib),
        answer_max_ms: (config.as_ref()).map_or(ANSWER_MAX_MS, |c| c.epochs.answer_max_ms),
    };
    let report = estimate::run(&estimation).map_err(|error| match error {
        ProtectError::Unfit(findings) => {
            // Each is a line with what to change.
            let lines: Vec<String> = findings.iter().map(|f| format!("\n  {f}")).collect();
            let text = format!("this guest cannot be protected:{}", lines.concat());
            Failure::new(Exit::Refused, text)
        }
        other => failed(other),
    })?;
    let text = if args.json {
        report.json()
    } else {
        report.to_string()
    };
    // A closed pipe is an end.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(())
}

fn monitor(args: &EstimateArgs, config: Option<&Config>) -> Result<PathBuf, Failure> {
    match (&args.qmp, config, &args.config) {
        (Some(qmp), ..) => Ok(qmp.clone()),
        (None, Some(config), Some(file)) if !config.qemu.is_empty() => {
            Ok(spec(config, file)?.place(&runtime_dir()).monitor)
        }
        _ => Err(usage(
            "the configuration has no [qemu], so its monitor is not known: name it with --qmp PATH",
        )),
    }
}

fn share(config: Option<&Config>) -> u64 {
    match config.map(|config| config.epochs.interval) {
        Some(Interval::Adaptive { pause_percent, .. }) => pause_percent,
        _ => PAUSE_PERCENT,
    }
}

fn ascending(intervals_ms: &[u64]) -> Vec<u64> {
    let mut all = intervals_ms.to_vec();
    all.sort_unstable();
    all.dedup();
    all
}
