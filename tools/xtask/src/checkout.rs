//! Where things are: the checkout, its scratch space, its built programs.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{aside, process};

/// The checkout this program was built from.
#[derive(Debug, Clone)]
pub(crate) struct Checkout {
    pub(crate) root: PathBuf,
}

impl Checkout {
    /// This package stands two levels below the root.
    pub(crate) fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap_or(Path::new("/"))
            .into()
    }

    pub(crate) fn find() -> Result<Self> {
        let root = Self::root();
        if !root.join("Cargo.toml").exists() {
            bail!(
                "{} is not there any more; run `cargo xtask` in a checkout",
                root.display()
            );
        }
        Ok(Self { root })
    }

    /// Kept between runs and ignored by git: the guest's kernel, logs of the last failure.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join(".work")
    }

    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        // Tests and measurements look for other people's programs there.
        command.env("PATH", aside::path());
        command
    }

    /// What `cargo metadata` says of the workspace.
    pub(crate) fn metadata(&self) -> Result<Metadata> {
        let mut command = self.cargo();
        command.args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ]);
        let output = process::ask(&mut command)?;
        if !output.status.success() {
            bail!(
                "cargo metadata: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let value = serde_json::from_slice(&output.stdout).context("answer of cargo metadata")?;
        Ok(Metadata { value })
    }
}

/// The workspace as cargo sees it.
#[derive(Debug)]
pub(crate) struct Metadata {
    value: Value,
}

impl Metadata {
    pub(crate) fn target_dir(&self) -> Result<PathBuf> {
        let dir = self.value["target_directory"].as_str();
        Ok(PathBuf::from(
            dir.context("cargo metadata names no target directory")?,
        ))
    }

    /// Whether `package` has a program `name`.
    pub(crate) fn has_program(&self, package: &str, name: &str) -> bool {
        let packages = self.value["packages"].as_array().into_iter().flatten();
        packages
            .filter(|candidate| candidate["name"] == package)
            .flat_map(|found| found["targets"].as_array().into_iter().flatten())
            .any(|target| {
                target["name"] == name
                    && target["kind"]
                        .as_array()
                        .is_some_and(|kinds| kinds.contains(&"bin".into()))
            })
    }
}

/// A directory for the files of one run and a second, short-named one for its sockets (a socket's
/// path holds 107 bytes at most). Both are removed with the guard.
#[derive(Debug)]
pub(crate) struct Scratch {
    files: PathBuf,
    sockets: PathBuf,
    last_failure: PathBuf,
}

impl Scratch {
    pub(crate) fn new(checkout: &Checkout) -> Result<Self> {
        let runs = checkout.work().join("run");
        let short = std::env::temp_dir();
        sweep(&runs, "");
        sweep(&short, SOCKETS_PREFIX);
        let pid = std::process::id();
        let scratch = Self {
            files: runs.join(pid.to_string()),
            sockets: short.join(format!("{SOCKETS_PREFIX}{pid}")),
            last_failure: checkout.work().join("last-failure"),
        };
        fs::create_dir_all(&runs).with_context(|| format!("create {}", runs.display()))?;
        for dir in [&scratch.files, &scratch.sockets] {
            // Not create_dir_all: a directory that is there already is somebody else's.
            DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(scratch)
    }

    /// A new directory for the files of one round.
    pub(crate) fn round(&self, name: &str) -> Result<PathBuf> {
        let dir = self.files.join(name);
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    /// Keeps the logs (not the images) of a failed round; says where.
    pub(crate) fn keep_logs(&self, round: &Path) -> Result<PathBuf> {
        if self.last_failure.exists() {
            fs::remove_dir_all(&self.last_failure)?;
        }
        fs::create_dir_all(&self.last_failure)?;
        for entry in fs::read_dir(round)? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "log") {
                let name = path
                    .file_name()
                    .expect("an entry of a directory has a name");
                fs::copy(&path, self.last_failure.join(name))?;
            }
        }
        Ok(self.last_failure.clone())
    }
}

pub(crate) const SOCKETS_PREFIX: &str = "blockrep-xtask-";

impl Drop for Scratch {
    fn drop(&mut self) {
        for dir in [&self.files, &self.sockets] {
            if let Err(error) = fs::remove_dir_all(dir) {
                eprintln!("cannot remove {}: {error}", dir.display());
            }
        }
    }
}

/// Removes what runs that were killed outright have left: directories named after dead processes.
pub(crate) fn sweep(dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        let own = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if own && !Path::new("/proc").join(pid.to_string()).exists() {
            // What cannot be removed belongs to another user.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The program that cargo says it has built, in what it prints with `--message-format=json…`.
pub(crate) fn built_program(said: &str, name: &str, kind: &str) -> Result<PathBuf> {
    said.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|one| one["target"]["name"] == name && one["target"]["kind"][0] == kind)
        .filter_map(|one| one["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("cargo names no {kind} {name}"))
}

/// Finds a program on PATH, where Debian keeps those of the administrator, or among those unpacked
/// for this checkout.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(administrators)
        .chain([aside::starters()])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command for a program that may stand in a directory that is not on a user's PATH.
pub(crate) fn tool(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| PathBuf::from(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The peers' tests and the benchmark look on PATH only: fio was unpacked, and they went without.
    #[test]
    fn what_cargo_starts_finds_unpacked_programs_after_those_of_the_system() {
        let command = Checkout::find().expect("this one").cargo();
        let path = command.get_envs().find(|(name, _)| *name == "PATH");
        let path = path
            .and_then(|(_, value)| value)
            .expect("it is given a PATH");
        let dirs: Vec<PathBuf> = std::env::split_paths(path).collect();
        assert_eq!(dirs.last(), Some(&aside::starters()));
        assert!(dirs.len() > 1, "the system's come before");
    }
}
