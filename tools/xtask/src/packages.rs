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
    /// Without it there is another way, so that it need not be there when nothing may be installed.
    spare: bool,
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
    /// `guest-fio`, `restarts` and `bench guest`: fio inside the guest.
    GuestFio,
    /// `bench disk`: fio and the programs it is compared with.
    Bench,
    /// `test`: everything above and real programs as peers.
    Test,
}

use Purpose::{Bench, Guest, GuestFio, Hosts, Images, Test};

const PACKAGES: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        program: Some("qemu-system-x86_64"),
        why: "runs the guest",
        for_commands: &[Guest, Test],
        spare: false,
    },
    Package {
        name: "qemu-utils",
        program: Some("qemu-nbd"),
        why: "copies and serves disk images",
        for_commands: &[Guest, Images, Bench, Test],
        spare: false,
    },
    Package {
        name: "e2fsprogs",
        program: Some("mkfs.ext4"),
        why: "makes and checks the guest's file system",
        for_commands: &[Guest, Test],
        spare: false,
    },
    Package {
        name: "kmod",
        program: Some("depmod"),
        why: "orders the guest kernel's modules",
        for_commands: &[Guest, Test],
        spare: false,
    },
    Package {
        name: "xz-utils",
        program: Some("xz"),
        why: "unpacks the guest kernel's modules",
        for_commands: &[Guest, Test],
        spare: false,
    },
    Package {
        name: "libc6-dev",
        program: None,
        why: "links the guest's program",
        for_commands: &[Guest, Test],
        spare: false,
    },
    Package {
        name: "iproute2",
        program: Some("ip"),
        why: "joins the two hosts by a virtual cable",
        for_commands: &[Guest, Hosts, Test],
        spare: true,
    },
    Package {
        name: "fio",
        program: Some("fio"),
        why: "loads disks and verifies what it wrote",
        for_commands: &[Bench, GuestFio, Test],
        spare: false,
    },
    Package {
        name: "libnbd-bin",
        program: Some("nbdinfo"),
        why: "an NBD client by other people",
        for_commands: &[Test],
        spare: false,
    },
];

/// Shows what `purposes` need and installs what is missing. With `no_install` the command is only
/// printed; who cannot do without asks [`require`] afterwards.
pub(crate) fn provide(checkout: &Checkout, purposes: &[Purpose], no_install: bool) -> Result<()> {
    let missing: Vec<&Package> = needed(purposes).filter(|one| !one.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ui::note("Needed from Debian and not on this system:");
    for package in &missing {
        ui::note(format!("  {:<16} {}", package.name, package.why));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if no_install {
        let line = install_line(&names);
        ui::note(format!(
            "Not installed, as you asked (--no-install). The command is:\n  {line}"
        ));
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("no apt-get here; install the programs above with this system's own means");
    }
    install(checkout, &names)?;
    let remedy =
        "install it by other means, or put the program on PATH; .work/install.log says more";
    all_there(&missing, "was provided, and still", remedy)
}

/// Fails if something is not there that `purposes` cannot do without; to be called before anything long.
pub(crate) fn require(purposes: &[Purpose]) -> Result<()> {
    let wanted: Vec<&Package> = needed(purposes).filter(|one| !one.spare).collect();
    let names = purposes.iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = names.map(|value| value.get_name().to_owned()).collect();
    let remedy = format!("`cargo xtask install {}` provides it", names.join(" "));
    all_there(&wanted, "is needed, and", &remedy)
}

fn needed(purposes: &[Purpose]) -> impl Iterator<Item = &'static Package> {
    let asks = |package: &&Package| {
        package
            .for_commands
            .iter()
            .any(|one| purposes.contains(one))
    };
    PACKAGES.iter().filter(asks)
}

/// One line for all that are not, each with its program, and the remedy.
fn all_there(packages: &[&Package], but: &str, remedy: &str) -> Result<()> {
    let absent: Vec<&&Package> = packages.iter().filter(|one| !one.is_there()).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let what: Vec<String> = absent.iter().map(|one| one.absence(but)).collect();
    bail!("{}: {remedy}", what.join("; "))
}

/// Prints the whole table.
pub(crate) fn list() {
    println!("{:<17} {:<8} {:<42} needed for", "package", "here", "why");
    for package in PACKAGES {
        let here = if package.is_there() { "yes" } else { "no" };
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

impl Package {
    fn is_there(&self) -> bool {
        match self.program {
            Some(program) => find_program(program).is_some(),
            None => {
                let mut query = Command::new("dpkg-query");
                query.args(["-W", "-f", "${Status}", self.name]);
                process::ask(&mut query)
                    .is_ok_and(|output| output.stdout.starts_with(b"install ok installed"))
            }
        }
    }

    fn absence(&self, but: &str) -> String {
        match self.program {
            Some(program) => format!(
                "package {} {but} its program {program} is not found",
                self.name
            ),
            None => format!("package {} {but} it is not installed", self.name),
        }
    }
}

fn install_line(names: &[&str]) -> String {
    let sudo = if is_root() { "" } else { "sudo " };
    format!("{sudo}apt-get {} {}", INSTALL.join(" "), names.join(" "))
}

/// Installs what apt can install without taking anything away, and unpacks the rest.
fn install(checkout: &Checkout, names: &[&str]) -> Result<()> {
    std::fs::create_dir_all(checkout.work())?;
    let log = checkout.work().join("install.log");
    if is_root() && !all_known(names)? {
        update(&log)?;
    }
    let (harmless, rest) = split(names, |set| Ok(Plan::make(set)?.remove.is_empty()))?;
    if !harmless.is_empty() {
        let line = install_line(&harmless);
        if !is_root() {
            bail!("only root can install; run this first, then the same again: {line}");
        }
        install_by_apt(&harmless, &line, &log)?;
    }
    if rest.is_empty() {
        return Ok(());
    }
    // Asked anew: what was installed just now need not be unpacked.
    let plan = Plan::make(&rest)?;
    ui::note(format!(
        "apt would remove {} for {}; so nothing is installed for that, but unpacked:",
        plan.remove.join(", "),
        rest.join(", ")
    ));
    ui::note(format!("  apt-get download {}", plan.install.join(" ")));
    aside::unpack(&plan.install, &log)
}

/// Those of `names` that can be installed together, as `harmless` says of a set, and those that cannot join
/// them. One package in the way must not keep the others from their ordinary place.
fn split<'a>(
    names: &[&'a str],
    harmless: impl Fn(&[&str]) -> Result<bool>,
) -> Result<(Vec<&'a str>, Vec<&'a str>)> {
    if harmless(names)? {
        return Ok((names.to_vec(), Vec::new()));
    }
    let (mut together, mut rest) = (Vec::new(), Vec::new());
    for name in names {
        together.push(*name);
        if !harmless(&together)? {
            together.pop();
            rest.push(*name);
        }
    }
    Ok((together, rest))
}

fn install_by_apt(names: &[&str], line: &str, log: &Path) -> Result<()> {
    let count = ui::count(Plan::make(names)?.install.len(), "package");
    ui::note(format!(
        "Installing {} ({count} with what is needed for it):",
        names.join(", ")
    ));
    ui::note(format!("  {line}"));
    let step = ui::step(format!("installing {count}"));
    if apt(log, &INSTALL, names).is_err() {
        // Package lists age: the usual failure is a file that the mirror has replaced.
        update(log)?;
        apt(log, &INSTALL, names)?;
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

    // With qemu-utils from backports, all of the set was unpacked because of the one package in its way, and
    // depmod, which apt could have installed, did not work from there.
    #[test]
    fn only_what_is_in_the_way_of_something_is_unpacked() {
        let removes = |set: &[&str]| set.contains(&"qemu") || set.ends_with(&["a", "not-a"]);
        let split = |names| split(names, |set| Ok(!removes(set))).expect("nothing fails");
        assert_eq!(split(&["kmod", "fio"]), (vec!["kmod", "fio"], vec![]));
        assert_eq!(split(&["qemu", "kmod"]), (vec!["kmod"], vec!["qemu"]));
        assert_eq!(split(&["qemu"]), (vec![], vec!["qemu"]));
        assert_eq!(split(&["a", "not-a"]), (vec!["a"], vec!["not-a"]));
    }

    // "depmod is not installed" after six minutes of building names neither what to do nor a package.
    #[test]
    fn what_is_not_found_is_told_with_package_and_remedy() {
        let package = |name, program| Package {
            name,
            program,
            why: "",
            for_commands: &[Test],
            spare: false,
        };
        let (gone, here) = (
            package("kmod", Some("depmod-of-nowhere")),
            package("shell", Some("sh")),
        );
        let check = |packages: &[&Package]| all_there(packages, "is needed, and", "do this");
        assert!(check(&[&here]).is_ok());
        let text = check(&[&gone, &here])
            .expect_err("one is missing")
            .to_string();
        assert_eq!(
            text,
            "package kmod is needed, and its program depmod-of-nowhere is not found: do this"
        );
    }
}
