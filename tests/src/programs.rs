//! Programs that run to their end: bounded, with what they said.

use crate::harness::{Pair, Process, binary};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code, or 128 + the signal.
    pub code: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

/// Runs a program; kills it and fails when it takes longer than `limit`.
///
/// # Errors
/// It cannot be started or does not end: what it said.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let log = tempfile::NamedTempFile::new()?;
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::start(&name, command, log.path())?;
    let code = process.wait(limit)?;
    Ok(Ended {
        code,
        text: process.text(),
    })
}

/// The same, and it must succeed: gives what it said.
///
/// # Errors
/// It failed: what it said.
pub fn done(command: &mut Command, limit: Duration) -> Result<String> {
    let ended = run(command, limit)?;
    let line = format!("{command:?}");
    ensure!(ended.code == 0, "{line}: {}: {}", ended.code, ended.text);
    Ok(ended.text)
}

/// Where a program of another project is; `None`, said on stderr, where it is not installed.
///
/// # Panics
/// It is missing and `BLOCKREP_REQUIRE_PEERS` is set.
#[must_use]
pub fn peer(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("BLOCKREP_REQUIRE_PEERS").is_none(),
            "{name} is not installed"
        );
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// The load generator against an export.
#[derive(Debug)]
pub struct Load {
    /// Where it logs.
    pub log: PathBuf,
    args: Vec<String>,
}

impl Load {
    /// Writes to `export` of the pair's primary, as `args` say, with flushes and cuts.
    #[must_use]
    pub fn new(pair: &Pair, name: &str, export: &str, args: &[&str]) -> Self {
        let mut load = Self::plain(pair, name, export, args);
        let control = pair.path("a.ctl").display().to_string();
        let more = ["--flush-every", "20", "--cut-every", "50", "--control"].map(String::from);
        load.args.extend(more);
        load.args.push(control);
        load
    }

    /// The same without flushes and cuts.
    #[must_use]
    pub fn plain(pair: &Pair, name: &str, export: &str, args: &[&str]) -> Self {
        let log = pair.path(&format!("{name}.log"));
        let nbd = pair.nbd("a");
        let mut all = ["run", "--nbd", &nbd, "--export", export, "--log"]
            .map(String::from)
            .to_vec();
        all.push(log.display().to_string());
        all.extend(args.iter().map(ToString::to_string));
        Self { log, args: all }
    }

    /// Starts it and comes back.
    ///
    /// # Errors
    /// It was not built.
    pub fn start(&self) -> Result<Process> {
        let log = self.log.with_extension("said");
        Process::start(
            "blockrep-load",
            Command::new(binary("blockrep-load")?).args(&self.args),
            &log,
        )
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn run(&self, limit: Duration) -> Result<Ended> {
        let mut process = self.start()?;
        let code = process.wait(limit)?;
        let text = process.text();
        Ok(Ended { code, text })
    }

    /// Judges the promoted backup by the log: `ack` is what the primary promised.
    ///
    /// # Errors
    /// Something acknowledged is missing, or something is there that must not be.
    pub fn check(&self, pair: &Pair, export: &str, ack: &str, epoch: u64) -> Result<()> {
        let mut command = Command::new(binary("blockrep-load")?);
        command
            .args(["check", "--nbd", &pair.nbd("b"), "--export", export])
            .args(["--ack", ack, "--epoch", &epoch.to_string()])
            .args(["--earlier-runs", "--log"])
            .arg(&self.log);
        done(&mut command, Duration::from_secs(60))?;
        Ok(())
    }
}

/// Copies a directory tree of plain files, holes and all.
///
/// # Errors
/// What cp said.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--sparse=always"]).arg(from).arg(to);
    done(&mut command, Duration::from_secs(60)).context("copying a directory")?;
    Ok(())
}
