//! The soak: a backup slower than the load, for minutes. Both daemons must stay under the memory
//! bound that `status` names before anything happens, and the loss policy must do what it says.
//!
//! ```text
//!  hold     throttled backup, load as fast as it goes: back-pressure nearly all the time,
//!           memory sampled; nothing may fail, nothing may be given up
//!  policy   a short back-pressure timeout: pause holds, degrade goes on alone and is made
//!           equal again once the load lets it
//!  end      the primary is killed under load, the backup promoted, checked, killed, checked
//! ```

mod sample;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use blockrep_host::signals::Shutdown;
use blockrep_tools::load::check;
use blockrep_tools::load::image::Source;
use blockrep_tools::load::oracle::{Ack, Rules};
use clap::ValueEnum;
use serde_json::Value;

use crate::harness::{Pair, Process, binary};
pub use sample::{Memory, Sample, Samples};

/// Size of the disk: more than the journal holds.
const DISK_BYTES: u64 = 64 << 20;
/// The longest a change of state may take; a throttled comparison takes the most of it.
const STATE_LIMIT: Duration = Duration::from_secs(180);
/// What the backup is slowed down to.
const THROTTLE: &str = "2MB/s";
/// Back-pressure timeout of the second part.
const SHORT_TIMEOUT: &str = "3s";
/// How far the group may stay in that part before it is judged.
const POLICY_TIME: Duration = Duration::from_secs(8);
/// Share of the time in back-pressure that the hold has to reach, in percent.
pub const PRESSURE_PERCENT_MIN: f64 = 95.0;

/// What of the backup is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// It writes to its image slowly: the journal fills.
    Apply,
    /// It receives slowly: the window closes.
    Link,
}

/// What the primary does about it in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Writes wait.
    Pause,
    /// Writes go on without the backup.
    Degrade,
}

impl Policy {
    fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Degrade => "degrade",
        }
    }
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long back-pressure is held.
    pub hold: Duration,
    /// What is slow.
    pub mode: Mode,
    /// Loss policy.
    pub policy: Policy,
    /// Seed of the loads.
    pub seed: u64,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Share of the hold in which writes waited for the backup, in percent.
    pub pressure_percent: f64,
    /// Writes that were acknowledged in the hold.
    pub hold_writes: u64,
    /// Epochs committed in the hold.
    pub hold_epochs: u64,
    /// Memory of the primary.
    pub primary: Memory,
    /// Memory of the backup.
    pub backup: Memory,
    /// What the policy did, in words.
    pub policy: String,
    /// The epoch promoted in the end.
    pub epoch: u64,
    /// What was wrong; empty if nothing.
    pub faults: Vec<String>,
}

struct Soak {
    options: Options,
    pair: Pair,
    primary: Process,
    backup: Process,
    faults: Vec<String>,
}

/// Runs the soak in `dir`. Nothing it started runs on when it returns.
///
/// # Errors
/// It could not be done to the end.
pub fn run(options: Options, dir: &Path, stop: &Shutdown) -> Result<Outcome> {
    let mut pair = Pair::new(dir, DISK_BYTES)?;
    let throttle = match options.mode {
        Mode::Apply => "--throttle-apply",
        Mode::Link => "--throttle-link",
    };
    pair.backup_flags = ["--journal-size", "32MiB", throttle, THROTTLE]
        .map(String::from)
        .to_vec();
    // The images are equal by construction: no comparison at 2 MB/s before it begins.
    pair.primary_flags = primary_flags(options.policy, "3600s");
    pair.primary_flags.push("--assume-identical".into());
    let backup = pair.start_backup()?;
    let primary = pair.start_primary()?;
    let mut soak = Soak {
        options,
        pair,
        primary,
        backup,
        faults: Vec::new(),
    };
    soak.wait("a", "protected")?;
    let bounds = [soak.bound("a")?, soak.bound("b")?];
    let mut samples = Samples::new(&soak.pair, [soak.primary.pid(), soak.backup.pid()])?;
    let (hold_writes, hold_epochs) = soak.hold(&mut samples, stop)?;
    let pressure_percent = samples.pressure_percent();
    if pressure_percent < PRESSURE_PERCENT_MIN {
        let text = format!("back-pressure held only {pressure_percent:.1} % of the time");
        soak.faults.push(text);
    }
    let [primary, backup] = samples.memory(bounds);
    let policy = soak.policy()?;
    let epoch = soak.end()?;
    for (who, memory) in [("primary", &primary), ("backup", &backup)] {
        if memory.peak_bytes > memory.bound_bytes {
            let (peak, bound) = (memory.peak_bytes, memory.bound_bytes);
            soak.faults
                .push(format!("the {who} took {peak} bytes, its bound is {bound}"));
        }
    }
    Ok(Outcome {
        pressure_percent,
        hold_writes,
        hold_epochs,
        primary,
        backup,
        policy,
        epoch,
        faults: soak.faults,
    })
}

fn primary_flags(policy: Policy, timeout: &str) -> Vec<String> {
    ["--ack", "local", "--on-backup-loss", policy.word()]
        .iter()
        .chain(&["--backpressure-timeout", timeout])
        .map(ToString::to_string)
        .collect()
}

impl Soak {
    fn wait(&self, host: &str, state: &str) -> Result<Value> {
        self.pair.wait_state(host, state, STATE_LIMIT)
    }

    fn bound(&self, host: &str) -> Result<u64> {
        let status = self.pair.status(host)?;
        let bound = &status["bounds"]["memory_bytes_max"];
        bound.as_u64().context("status names no memory bound")
    }

    fn load(&self, name: &str, more: &[&str]) -> Result<(Process, PathBuf)> {
        let log = self.pair.path(&format!("{name}.log"));
        let mut command = Command::new(binary("blockrep-load")?);
        command.args(["run", "--nbd", &self.pair.nbd("a")]);
        command.args(["--seconds", "86400", "--queue-depth", "64"]);
        command.args(["--connections", "2", "--block-sizes", "4k,16k"]);
        command.args(["--flush-every", "500"]);
        command.args(["--seed", &self.options.seed.to_string()]);
        command.arg("--control").arg(self.pair.path("a.ctl"));
        command.args(["--cut-every", "500"]).args(more);
        command.arg("--log").arg(&log);
        let output = self.pair.path(&format!("{name}.txt"));
        Ok((Process::start("load", &mut command, &output)?, log))
    }

    /// Back-pressure, as long as was asked for; gives writes and epochs of that time.
    fn hold(&mut self, samples: &mut Samples, stop: &Shutdown) -> Result<(u64, u64)> {
        let (mut load, log) = self.load("hold", &[])?;
        self.until_pressed(samples)?;
        let before = samples.last().clone();
        samples.begin();
        let end = Instant::now() + self.options.hold;
        let mut next = Instant::now();
        while Instant::now() < end {
            ensure!(!stop.requested(), "stopped early");
            ensure!(load.is_running(), "the load ended: {}", load.text());
            samples.take()?;
            next += sample::INTERVAL;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let after = samples.last().clone();
        if after.state != "protected" {
            let text = format!("the group is {} at the end of the hold", after.state);
            self.faults.push(text);
        }
        load.signal(libc::SIGINT)?;
        load.wait(Duration::from_secs(10))?;
        self.settled()?;
        self.check("b", &log, Ack::Write, None, false)?;
        let writes = after.writes.saturating_sub(before.writes);
        Ok((writes, after.committed.saturating_sub(before.committed)))
    }

    /// The journal, or the window, is full for the first time.
    fn until_pressed(&self, samples: &mut Samples) -> Result<()> {
        let end = Instant::now() + STATE_LIMIT;
        loop {
            samples.take()?;
            if samples.last().waiting > 0 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "no back-pressure");
            std::thread::sleep(sample::INTERVAL);
        }
    }

    /// No load: waits until the backup has committed everything.
    fn settled(&self) -> Result<()> {
        let end = Instant::now() + STATE_LIMIT;
        while self.pair.ctl_json("a", &["cut", "--wait"]).is_err() {
            ensure!(
                Instant::now() < end,
                "not committed: {}",
                self.pair.status("a")?["group"]
            );
        }
        Ok(())
    }

    fn check(
        &mut self,
        host: &str,
        log: &Path,
        ack: Ack,
        epoch: Option<u64>,
        earlier: bool,
    ) -> Result<()> {
        let text = self.pair.nbd(host);
        let address = text.parse().map_err(|error| anyhow!("{text}: {error}"))?;
        let mut source = Source::open_nbd(&address, "")?;
        let rules = Rules {
            ack,
            epoch,
            split: false,
        };
        let report = check::check(log, &mut source, &rules, earlier)?;
        if !report.accepted {
            self.faults.push(format!("host {host}: {report}"));
        }
        Ok(())
    }

    /// The primary starts again with a short timeout; what its policy does under a full load.
    fn policy(&mut self) -> Result<String> {
        self.primary.signal(libc::SIGTERM)?;
        let code = self.primary.wait(Duration::from_secs(30))?;
        ensure!(code == 0, "the primary ended with code {code}");
        self.pair.primary_flags = primary_flags(self.options.policy, SHORT_TIMEOUT);
        self.primary = self.pair.start_primary()?;
        self.wait("a", "protected")?;
        let (mut load, log) = self.load("policy", &[])?;
        let said = match self.options.policy {
            Policy::Pause => self.pause_holds()?,
            Policy::Degrade => self.degrade_goes_on()?,
        };
        ensure!(load.is_running(), "the load ended: {}", load.text());
        load.signal(libc::SIGINT)?;
        load.wait(Duration::from_secs(10))?;
        let begun = Instant::now();
        self.wait("a", "protected")?;
        let again = begun.elapsed().as_secs_f64();
        self.settled()?;
        self.check("b", &log, Ack::Write, None, true)?;
        Ok(format!("{said}; protected {again:.1} s after the load"))
    }

    fn pause_holds(&mut self) -> Result<String> {
        let end = Instant::now() + STATE_LIMIT;
        loop {
            let group = self.pair.status("a")?["group"].clone();
            let reason = group["reason"].as_str().unwrap_or("");
            // The timeout, where nothing at all was let in for so long; else that writes have been waiting.
            if ["waited too long", "wait for room"]
                .iter()
                .any(|word| reason.contains(word))
            {
                break;
            }
            ensure!(Instant::now() < end, "no word of the timeout: {group}");
            std::thread::sleep(sample::INTERVAL);
        }
        std::thread::sleep(POLICY_TIME);
        let status = self.pair.status("a")?;
        let state = status["group"]["state"].as_str().unwrap_or("of no state");
        if state == "degraded" {
            self.faults
                .push("degraded although the policy is pause".to_owned());
        }
        Ok(format!(
            "pause: {state} after {SHORT_TIMEOUT} of waiting and more"
        ))
    }

    fn degrade_goes_on(&mut self) -> Result<String> {
        self.wait("a", "degraded")?;
        let status = self.pair.status("a")?;
        let before = status["volumes"][0]["counters"]["writes"].as_u64();
        let reason = status["group"]["reason"].as_str().unwrap_or("").to_owned();
        let end = Instant::now() + STATE_LIMIT;
        loop {
            std::thread::sleep(sample::INTERVAL);
            let now = self.pair.status("a")?["volumes"][0]["counters"]["writes"].as_u64();
            if now > before {
                return Ok(format!("degrade: {reason}; writes went on"));
            }
            ensure!(Instant::now() < end, "degraded, and no write goes on");
        }
    }

    /// Kill under load, promote, check, kill, check.
    fn end(&mut self) -> Result<u64> {
        let (mut load, log) = self.load("end", &[])?;
        std::thread::sleep(POLICY_TIME.min(self.options.hold) / 4);
        ensure!(load.is_running(), "the load ended: {}", load.text());
        self.primary.kill();
        load.wait(STATE_LIMIT)?;
        self.wait("b", "waiting-for-primary")?;
        let answer = self.pair.ctl_json("b", &["promote"])?;
        let epoch = answer["epoch"].as_u64().context("promote names an epoch")?;
        self.check("b", &log, Ack::Local, Some(epoch), true)?;
        self.backup.kill();
        self.backup = self.pair.start_backup()?;
        self.wait("b", "promoted")?;
        self.check("b", &log, Ack::Local, Some(epoch), true)?;
        Ok(epoch)
    }
}

/// The table at the end.
#[must_use]
pub fn table(options: &Options, outcome: &Outcome) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut text = format!(
        "{:<9} {:>12} {:>12} {:>12} {:>9}\n",
        "daemon", "bound", "peak", "median", "samples"
    );
    for (who, memory) in [("primary", &outcome.primary), ("backup", &outcome.backup)] {
        text += &format!(
            "{who:<9} {:>12} {:>12} {:>12} {:>9}\n",
            mib(memory.bound_bytes),
            mib(memory.peak_bytes),
            mib(memory.median_bytes),
            memory.samples
        );
    }
    text += &format!(
        "hold:   {:.0} s, back-pressure {:.1} % of it, {} writes, {} epochs committed\n",
        options.hold.as_secs_f64(),
        outcome.pressure_percent,
        outcome.hold_writes,
        outcome.hold_epochs
    );
    text += &format!("policy: {}\n", outcome.policy);
    text += &format!(
        "end:    killed, promoted at epoch {}, checked twice",
        outcome.epoch
    );
    for fault in &outcome.faults {
        text += &format!("\nFAULT:  {fault}");
    }
    text
}
