//! Packages unpacked under `.work/packages` instead of installed.
//!
//! For systems where apt could install only by removing something the user has: nothing of theirs is
//! touched, the programs run from where they were unpacked. apt still checks every download.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::checkout::{Checkout, tool};
use crate::stop::minutes;
use crate::{process, ui};

/// What apt would do to install some packages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Packages that are not there yet: the wanted ones and what they need.
    pub(crate) install: Vec<String>,
    /// Packages that would have to go.
    pub(crate) remove: Vec<String>,
}

impl Plan {
    /// Asks apt; changes nothing and needs no privileges.
    pub(crate) fn make(names: &[&str]) -> Result<Self> {
        let mut command = tool("apt-get");
        command
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(names);
        let output = process::ask(command.env("LC_ALL", "C"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "apt-get install --simulate {}: {}",
                names.join(" "),
                said.trim()
            );
        }
        Ok(Self::read(&String::from_utf8_lossy(&output.stdout)))
    }

    fn read(text: &str) -> Self {
        let mut plan = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Inst"), Some(name)) => plan.install.push(name.to_owned()),
                (Some("Remv"), Some(name)) => plan.remove.push(name.to_owned()),
                _ => {}
            }
        }
        plan
    }
}

/// Where unpacked packages are.
pub(crate) fn tree() -> PathBuf {
    Checkout::root().join(".work/packages")
}

/// Lets `command` find the libraries that were unpacked with it.
pub(crate) fn with_libraries(command: &mut Command) {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    let dirs = ["usr/lib", "lib"].map(|dir| tree().join(dir).join(&machine));
    if let Ok(paths) = std::env::join_paths(dirs) {
        command.env("LD_LIBRARY_PATH", paths);
    }
}

/// Downloads and unpacks `packages`.
pub(crate) fn unpack(packages: &[String], log: &Path) -> Result<()> {
    let tree = tree();
    let step = ui::step(format!(
        "unpacking {} packages under .work/packages",
        packages.len()
    ));
    let partial = tree.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let mut download = tool("apt-get");
    download
        .args(["-o", "Acquire::Retries=2", "download"])
        .args(packages)
        .current_dir(&partial);
    process::run(&mut download, log, minutes(15))?.success("apt-get download")?;
    for entry in fs::read_dir(&partial)? {
        let deb = entry?.path();
        let mut extract = tool("dpkg-deb");
        extract.arg("-x").arg(&deb).arg(&tree);
        process::run(&mut extract, log, minutes(2))?.success("dpkg-deb -x")?;
    }
    fs::remove_dir_all(&partial)?;
    step.done("");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // A removal that is overlooked takes a program away from the user of the machine.
    #[test]
    fn removals_are_seen() {
        let text = "Reading package lists...\n\
            Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]\n\
            Inst libfdt1 (1.6.1-4+b1 Debian:12.11/oldstable [amd64])\n\
            Inst qemu-system-x86 (1:7.2 Debian:12.11/oldstable [amd64]) []\n\
            Conf libfdt1 (1.6.1-4+b1 Debian:12.11/oldstable [amd64])\n";
        let plan = Plan::read(text);
        assert_eq!(plan.install, ["libfdt1", "qemu-system-x86"]);
        assert_eq!(plan.remove, ["qemu-utils"]);
    }
}
