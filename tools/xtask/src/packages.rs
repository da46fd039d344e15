//! What each command needs of the system, and its installation.
//!
//! Nothing is installed without having been shown. Only what is missing is installed.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::aside::{self, Plan};
use crate::checkout::{Checkout, find_program, tool};
use crate::stop::minutes;
use crate::{process, ui};

/// A Debian package and how to see that it is there.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: &'static str,
    /// A program of it; `None` where it has none, then dpkg is asked.
    program: Option<&'static str>,
    why: &'static str,
    for_commands: &'static [Purpose],
}

/// What packages are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// `demo` and `guest-selftest`: QEMU guests.
    Guest,
    /// `demo --no-guest`: replication alone.
    Hosts,
    /// `demo --no-guest --plant older-epoch`: an older image served over NBD.
    Images,
    /// `bench disk`: fio and the programs it is compared with.
    Bench,
    /// `test`: everything above and real programs as peers.
    Test,
}

use Purpose::{Bench, Guest, Hosts, Images, Test};

const PACKAGES: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        program: Some("qemu-system-x86_64"),
        why: "runs the guest",
        for_commands: &[Guest, Test],
    },
    Package {
        name: "qemu-utils",
        program: Some("qemu-nbd"),
        why: "copies and serves disk images",
        for_commands: &[Guest, Images, Bench, Test],
    },
    Package {
        name: "e2fsprogs",
        program: Some("mkfs.ext4"),
        why: "makes and checks the guest's file system",
        for_commands: &[Guest, Test],
    },
    Package {
        name: "kmod",
        program: Some("depmod"),
        why: "orders the guest kernel's modules",
        for_commands: &[Guest, Test],
    },
    Package {
        name: "xz-utils",
        program: Some("xz"),
        why: "unpacks the guest kernel's modules",
        for_commands: &[Guest, Test],
    },
    Package {
        name: "libc6-dev",
        program: None,
        why: "links the guest's program",
        for_commands: &[Guest, Test],
    },
    Package {
        name: "iproute2",
        program: Some("ip"),
        why: "joins the two hosts by a virtual cable",
        for_commands: &[Guest, Hosts, Test],
    },
    Package {
        name: "fio",
        program: Some("fio"),
        why: "loads disks and verifies what it wrote",
        for_commands: &[Bench, Test],
    },
    Package {
        name: "libnbd-bin",
        program: Some("nbdinfo"),
        why: "an NBD client by other people",
        for_commands: &[Test],
    },
];

/// Shows what `purposes` need and installs what is missing. With `no_install` the command is only
/// printed, and whoever needs a missing program will say so.
pub(crate) fn provide(checkout: &Checkout, purposes: &[Purpose], no_install: bool) -> Result<()> {
    let missing: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| {
            package
                .for_commands
                .iter()
                .any(|one| purposes.contains(one))
        })
        .filter(|package| !is_there(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    ui::note("Needed from Debian and not on this system:");
    for package in &missing {
        ui::note(format!("  {:<16} {}", package.name, package.why));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let line = install_line(&names);
    if no_install {
        ui::note(format!(
            "Not installed, as you asked (--no-install). The command is:\n  {line}"
        ));
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("no apt-get here; install the programs above with this system's own means");
    }
    install(checkout, &names, &line)
}

/// Prints the whole table.
pub(crate) fn list() {
    println!("{:<17} {:<8} {:<42} needed for", "package", "here", "why");
    for package in PACKAGES {
        let here = if is_there(package) { "yes" } else { "no" };
        let purposes: Vec<String> = package
            .for_commands
            .iter()
            .filter_map(|one| one.to_possible_value())
            .map(|value| value.get_name().to_owned())
            .collect();
        println!(
            "{:<17} {here:<8} {:<42} {}",
            package.name,
            package.why,
            purposes.join(", ")
        );
    }
}

fn is_there(package: &Package) -> bool {
    match package.program {
        Some(program) => find_program(program).is_some(),
        None => {
            let mut query = Command::new("dpkg-query");
            query.args(["-W", "-f", "${Status}", package.name]);
            process::ask(&mut query)
                .is_ok_and(|output| output.stdout.starts_with(b"install ok installed"))
        }
    }
}

fn install_line(names: &[&str]) -> String {
    let sudo = if is_root() { "" } else { "sudo " };
    format!("{sudo}apt-get {} {}", INSTALL.join(" "), names.join(" "))
}

fn install(checkout: &Checkout, names: &[&str], line: &str) -> Result<()> {
    std::fs::create_dir_all(checkout.work())?;
    let log = checkout.work().join("install.log");
    if is_root() && !all_known(names)? {
        update(&log)?;
    }
    let plan = Plan::make(names)?;
    if !plan.remove.is_empty() {
        ui::note(format!(
            "apt would remove {} to install them, so they are not installed but unpacked:",
            plan.remove.join(", ")
        ));
        ui::note(format!("  apt-get download {}", plan.install.join(" ")));
        return aside::unpack(&plan.install, &log);
    }
    if !is_root() {
        bail!("only root can install; run this first:\n  {line}");
    }
    ui::note(format!(
        "Installing them and what they need, {} packages:",
        plan.install.len()
    ));
    ui::note(format!("  {line}"));
    let step = ui::step(format!("installing {} packages", plan.install.len()));
    if apt(&log, &INSTALL, names).is_err() {
        // Package lists age: the usual failure is a file that the mirror has replaced.
        update(&log)?;
        apt(&log, &INSTALL, names)?;
    }
    step.done(format!("log in {}", log.display()));
    Ok(())
}

/// apt must never take anything away.
const INSTALL: [&str; 4] = ["install", "-y", "--no-remove", "--no-install-recommends"];

fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether apt knows a version to install of each.
fn all_known(names: &[&str]) -> Result<bool> {
    let mut command = tool("apt-cache");
    command.arg("policy").args(names).env("LC_ALL", "C");
    let output = process::ask(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let candidates = text
        .lines()
        .filter(|line| line.trim().starts_with("Candidate:"));
    Ok(candidates.filter(|line| !line.contains("(none)")).count() == names.len())
}

pub(crate) fn update(log: &Path) -> Result<()> {
    apt(log, &["update"], &[])
}

fn apt(log: &Path, verb: &[&str], names: &[&str]) -> Result<()> {
    let mut command = tool("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2"]);
    command
        .args(verb)
        .args(names)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let said = process::run(&mut command, log, minutes(15))?;
    said.success(&format!("apt-get {} {}", verb.join(" "), names.join(" ")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // A package that no command asks for would never be installed, and its user would fail late.
    #[test]
    fn every_package_has_a_user_and_test_needs_all() {
        for package in PACKAGES {
            assert!(!package.for_commands.is_empty(), "{}", package.name);
            assert!(package.for_commands.contains(&Test), "{}", package.name);
        }
    }
}
