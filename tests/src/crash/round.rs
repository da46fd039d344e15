//! One round: two daemons, a load with its log, and what is asked of the outcome.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use blockrep_tools::load::check;
use blockrep_tools::load::history::{History, NEVER};
use blockrep_tools::load::image::Source;
use blockrep_tools::load::nbd::{Address, Reader};
use blockrep_tools::load::oracle::{Ack, Rules};
use serde_json::Value;

use super::plan::Plan;
use crate::harness::{Pair, Process, binary};

/// Size of the disk.
const DISK_BYTES: u64 = 32 << 20;
/// Acknowledged writes that a round has at least.
pub const WRITES_MIN: u64 = 2_000;
/// Committed epochs that a round has at least.
pub const EPOCHS_MIN: u64 = 20;
/// Writes that may be stamped and not yet acknowledged; the load's queues are shorter.
const UNANSWERED_MAX: u64 = 100;
/// The longest any step of a round may take.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(60);

/// A promise that was broken. Anything else that ends a round is trouble of another kind; neither
/// is success.
#[derive(Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Ends the round when something that must hold does not.
pub(super) fn demand(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(anyhow!(Violation(what())))
}

/// Figures of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Writes, zeroings and discards that were acknowledged.
    pub acknowledged: u64,
    /// Epochs committed under load.
    pub epochs: u64,
    /// How long the promotion took, as the daemon says.
    pub promotion_us: u64,
    /// Images and exports that were judged.
    pub checks: u64,
}

/// What a load is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    pub(super) ack: Ack,
    pub(super) epoch: Option<u64>,
    /// Requests in flight may have landed in part.
    pub(super) split: bool,
    /// Another load wrote before.
    pub(super) earlier: bool,
}

/// A load that runs.
pub(super) struct Load {
    pub(super) process: Process,
    pub(super) log: PathBuf,
    host: &'static str,
    writes_before: u64,
    epoch_before: u64,
}

impl Load {
    /// Waits until it has noticed that its server is gone. No request may have failed: a guest
    /// would have seen an I/O error.
    pub(super) fn ended(&mut self, codes: &[i32]) -> Result<()> {
        let code = self.process.wait(STEP_LIMIT)?;
        let text = self.process.text();
        demand(codes.contains(&code), || {
            format!("the load ended with code {code}: {}", text.trim())
        })
    }
}

/// A round that runs.
pub(super) struct Round<'a> {
    pub(super) plan: &'a Plan,
    pub(super) pair: Pair,
    pub(super) primary: Option<Process>,
    pub(super) backup: Option<Process>,
    pub(super) facts: Facts,
}

impl<'a> Round<'a> {
    /// Two hosts in `dir`; nothing runs yet.
    pub(super) fn new(plan: &'a Plan, dir: &Path) -> Result<Self> {
        let mut pair = Pair::new(dir, DISK_BYTES)?;
        let epoch = format!("{}ms", plan.epoch_ms);
        pair.primary_flags = ["--ack", plan.ack, "--epoch", &epoch]
            .iter()
            .chain(&["--on-backup-loss", plan.policy()])
            .map(ToString::to_string)
            .collect();
        pair.backup_flags = vec!["--journal-size".into(), "32MiB".into()];
        Ok(Self {
            plan,
            pair,
            primary: None,
            backup: None,
            facts: Facts::default(),
        })
    }

    pub(super) fn start_backup(&mut self) -> Result<()> {
        self.backup = Some(self.pair.start_backup()?);
        Ok(())
    }

    pub(super) fn start_primary(&mut self) -> Result<()> {
        self.primary = Some(self.pair.start_primary()?);
        Ok(())
    }

    /// Both hosts, protected.
    pub(super) fn start_both(&mut self) -> Result<()> {
        self.start_backup()?;
        self.start_primary()?;
        self.wait("a", "protected")?;
        Ok(())
    }

    pub(super) fn wait(&self, host: &str, state: &str) -> Result<Value> {
        self.pair.wait_state(host, state, STEP_LIMIT)
    }

    pub(super) fn process(&mut self, host: &str) -> Result<&mut Process> {
        let process = if host == "a" {
            self.primary.as_mut()
        } else {
            self.backup.as_mut()
        };
        process.with_context(|| format!("host {host} is not running"))
    }

    pub(super) fn signal(&mut self, host: &str, signal: i32) -> Result<()> {
        self.process(host)?.signal(signal)
    }

    /// SIGKILL, and gone.
    pub(super) fn kill(&mut self, host: &str) -> Result<()> {
        self.signal(host, libc::SIGKILL)?;
        self.process(host)?.kill();
        Ok(())
    }

    /// SIGTERM; has to end in order.
    pub(super) fn terminate(&mut self, host: &str) -> Result<()> {
        self.signal(host, libc::SIGTERM)?;
        let process = self.process(host)?;
        let code = process.wait(STEP_LIMIT)?;
        let text = process.text();
        demand(code == 0, || {
            format!("host {host} ended with code {code} after SIGTERM: {text}")
        })
    }

    /// Starts a load on a host that goes on until its server is gone.
    pub(super) fn load(&self, host: &'static str, name: &str, more: &[&str]) -> Result<Load> {
        let log = self.pair.path(&format!("{name}.log"));
        let status = self.pair.status(host)?;
        let mut command = Command::new(binary("blockrep-load")?);
        command.args(["run", "--json", "--nbd", &self.pair.nbd(host)]);
        command.args(["--seed", &self.plan.seed.to_string()]);
        command
            .args(&self.plan.load)
            .args(more)
            .arg("--log")
            .arg(&log);
        if !more.contains(&"--writes") {
            command.args(["--seconds", "600"]);
        }
        if host == "a" {
            command.arg("--control").arg(self.pair.path("a.ctl"));
            command.args(["--cut-every", &self.plan.cut_every_ms.to_string()]);
        }
        let output = self.pair.path(&format!("{name}.txt"));
        let process = Process::start("load", &mut command, &output)?;
        Ok(Load {
            process,
            log,
            host,
            writes_before: writes(&status),
            epoch_before: committed(&status),
        })
    }

    /// Waits until a load has come so far that the round counts, then for a moment that the seed
    /// chose. `share` of 2 waits for half of it.
    pub(super) fn progress(&self, load: &mut Load, share: u64) -> Result<()> {
        let end = Instant::now() + STEP_LIMIT;
        let (writes_min, epochs_min) = (WRITES_MIN / share, EPOCHS_MIN / share);
        loop {
            let status = self.pair.status(load.host)?;
            let done = writes(&status).saturating_sub(load.writes_before);
            let epochs = committed(&status).saturating_sub(load.epoch_before);
            let enough = load.host == "b" || epochs > epochs_min;
            if done > writes_min + UNANSWERED_MAX && enough {
                break;
            }
            ensure!(
                load.process.is_running(),
                "the load ended early: {}",
                load.process.text()
            );
            ensure!(
                Instant::now() < end,
                "only {done} writes and {epochs} epochs in a minute: {}",
                status["group"]
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(self.plan.delay_ms));
        Ok(())
    }

    /// Runs `blockrepctl promote`.
    pub(super) fn try_promote(&self, force: bool) -> Result<Output> {
        let mut args = vec!["promote", "--json", "--reason", "the crash runner asks"];
        if force {
            args.push("--force");
        }
        self.pair.ctl("b", &args)
    }

    /// Promotes the backup; gives the epoch it stands at.
    pub(super) fn promote(&mut self, force: bool) -> Result<u64> {
        let out = self.try_promote(force)?;
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        demand(out.status.success(), || {
            format!("promotion refused: {said}")
        })?;
        let answer: Value = serde_json::from_slice(&out.stdout).context("answer to promote")?;
        self.facts.promotion_us = answer["duration_us"].as_u64().unwrap_or(0);
        answer["epoch"].as_u64().context("promote names an epoch")
    }

    /// A promotion that must not happen.
    pub(super) fn promotion_is_refused(&self, force: bool, why: &str) -> Result<()> {
        let out = self.try_promote(force)?;
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        demand(out.status.code() == Some(4), || {
            let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            format!("a promotion had to be refused ({why}), but: {said} {text}")
        })
    }

    /// The promise of the ack mode in force, at an epoch.
    pub(super) fn promise(&self, epoch: u64) -> Promise {
        Promise {
            ack: match self.plan.ack {
                "local" => Ack::Local,
                "flush" => Ack::Flush,
                _ => Ack::Write,
            },
            epoch: Some(epoch),
            split: false,
            earlier: false,
        }
    }

    /// Judges what a host serves.
    pub(super) fn check(&mut self, host: &str, log: &Path, promise: Promise) -> Result<()> {
        let address: Address = self.address(host)?;
        let mut source = Source::open_nbd(&address, "")?;
        self.judge(&format!("host {host}"), &mut source, log, promise)
    }

    /// Judges the primary's own image after its daemon ended: everything acknowledged is in it, as
    /// only the process died. `split`: requests in flight may have landed in part.
    pub(super) fn check_image(&mut self, log: &Path, split: bool, earlier: bool) -> Result<()> {
        let mut source = Source::open_file(&self.pair.path("a.img"))?;
        let promise = Promise {
            ack: Ack::Write,
            epoch: None,
            split,
            earlier,
        };
        self.judge("the primary's image", &mut source, log, promise)
    }

    fn judge(
        &mut self,
        what: &str,
        source: &mut Source,
        log: &Path,
        promise: Promise,
    ) -> Result<()> {
        let rules = Rules {
            ack: promise.ack,
            epoch: promise.epoch,
            split: promise.split,
        };
        let report = check::check(log, source, &rules, promise.earlier)?;
        self.facts.checks += 1;
        demand(report.accepted, || {
            let name = log.display();
            format!("{what} against {name}, held to {promise:?}: {report}")
        })
    }

    fn address(&self, host: &str) -> Result<Address> {
        let text = self.pair.nbd(host);
        text.parse().map_err(|error| anyhow!("{text}: {error}"))
    }

    /// Everything a host serves, from byte `from` on.
    pub(super) fn contents(&self, host: &str, from: u64) -> Result<Vec<u8>> {
        let mut reader = Reader::open(&self.address(host)?, "")?;
        let length = usize::try_from(DISK_BYTES - from)?;
        let mut bytes = vec![0; length];
        let mut offset = from;
        for chunk in bytes.chunks_mut(1 << 20) {
            reader.read(offset, chunk)?;
            offset += chunk.len() as u64;
        }
        Ok(bytes)
    }

    /// Counts what a load had acknowledged, and the epochs committed since it began.
    pub(super) fn count(&mut self, load: &Load, epoch: u64) -> Result<()> {
        self.facts.acknowledged += acknowledged(&load.log)?;
        self.facts.epochs += epoch.saturating_sub(load.epoch_before);
        Ok(())
    }

    /// The promoted side is killed and started again: what it served must still be there.
    pub(super) fn restart_and_check(&mut self, log: &Path, promise: Promise) -> Result<()> {
        self.kill("b")?;
        self.start_backup()?;
        self.wait("b", "promoted")?;
        self.check("b", log, promise)
    }

    /// The end of most rounds: the primary is gone, the backup takes over.
    pub(super) fn take_over(&mut self, load: &Load, earlier: bool) -> Result<()> {
        self.wait("b", "waiting-for-primary")?;
        let epoch = self.promote(false)?;
        self.count(load, epoch)?;
        let promise = Promise {
            earlier,
            ..self.promise(epoch)
        };
        self.check("b", &load.log, promise)?;
        self.restart_and_check(&load.log, promise)
    }
}

/// Half of the disk: a second load may keep to the part below.
pub(super) const HALF_BYTES: u64 = DISK_BYTES / 2;

/// Requests that change the disk and were acknowledged, by the log of a load.
pub(super) fn acknowledged(log: &Path) -> Result<u64> {
    let history = History::read(log)?;
    let done =
        |r: &&blockrep_tools::load::history::Request| r.changes_disk() && r.completed != NEVER;
    Ok(history.requests.iter().filter(done).count() as u64)
}

pub(super) fn writes(status: &Value) -> u64 {
    status["volumes"][0]["counters"]["writes"]
        .as_u64()
        .unwrap_or(0)
}

fn committed(status: &Value) -> u64 {
    status["epochs"]["committed"].as_u64().unwrap_or(0)
}

/// Bytes in a backup's journal that are not in its image yet.
pub(super) fn backlog(status: &Value) -> u64 {
    status["volumes"][0]["journal"]["bytes_used"]
        .as_u64()
        .unwrap_or(0)
}
