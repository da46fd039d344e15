//! Whether a guest can be protected, before anything is done to it.
//!
//! Everything that stands in the way is told at once, each with what to change. Nothing of the guest is touched.

use super::{Error, Qemu, Version, ram};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;

mod devices;
mod disks;

/// The oldest QEMU that has all that is asked of it.
const OLDEST: Version = Version {
    major: 5,
    minor: 2,
    micro: 0,
};
/// Major and minor versions that the tests were run with.
const TESTED: [(u64, u64); 1] = [(7, 2)];

/// Whether a finding stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The guest cannot be protected.
    Refused,
    /// It can, but something of it is not.
    Warning,
}

/// Something about a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it stands in the way.
    pub weight: Weight,
    /// What, with its name.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to type instead.
    pub change: String,
}

impl Finding {
    fn refused(what: impl Into<String>, why: &str, change: impl Into<String>) -> Self {
        Self {
            weight: Weight::Refused,
            what: what.into(),
            why: why.to_owned(),
            change: change.into(),
        }
    }

    fn warning(what: impl Into<String>, why: &str, change: impl Into<String>) -> Self {
        Self {
            weight: Weight::Warning,
            ..Self::refused(what, why, change)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.change)
    }
}

/// Where a daemon of ours serves disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// A Unix socket: NBD, or vhost-user.
    Socket(PathBuf),
    /// NBD over TCP.
    Tcp {
        /// As QEMU was told it.
        host: String,
        /// As QEMU was told it.
        port: u16,
    },
}

/// All that is to be said about a guest: first what stands in the way.
///
/// `served` is where the daemons of its disks serve.
///
/// # Errors
/// Of the monitor.
pub fn check(qemu: &mut Qemu, served: &[Served]) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    version(qemu.version(), &mut findings);
    standing(qemu, &mut findings)?;
    memory(qemu, &mut findings)?;
    disks::check(qemu, served, &mut findings)?;
    devices::check(qemu, served, &mut findings)?;
    blockers(qemu, &mut findings)?;
    findings.sort_by_key(|finding| finding.weight);
    Ok(findings)
}

fn version(version: Version, findings: &mut Vec<Finding>) {
    if version < OLDEST {
        findings.push(Finding::refused(
            format!("QEMU {version}"),
            "it is older than what this needs",
            format!("use {OLDEST} or newer"),
        ));
    } else if !TESTED.contains(&(version.major, version.minor)) {
        findings.push(Finding::warning(
            format!("QEMU {version}"),
            "this was tested with 7.2",
            "try a failover before you rely on it",
        ));
    }
}

fn standing(qemu: &mut Qemu, findings: &mut Vec<Finding>) -> Result<(), Error> {
    let status = qemu.status()?;
    if !status.is_running {
        findings.push(Finding::refused(
            format!("the guest is {}", status.word),
            "only a running guest is protected",
            "let it go on: cont",
        ));
    }
    let told = qemu.ask("query-migrate", None)?;
    let word = told["status"].as_str().unwrap_or("none");
    let idle = ["none", "completed", "failed", "cancelled"];
    if !idle.contains(&word) {
        findings.push(Finding::refused(
            format!("a migration is {word}"),
            "QEMU saves a guest's state for one at a time",
            "wait for it, or migrate_cancel",
        ));
    }
    Ok(())
}

fn memory(qemu: &mut Qemu, findings: &mut Vec<Finding>) -> Result<(), Error> {
    let blocks = ram::ram_blocks(qemu)?;
    let backends = ram::backends(qemu)?;
    let used = backends
        .iter()
        .filter(|backend| blocks.iter().any(|block| block.is_of(&backend.id)));
    let mut any = false;
    for backend in used {
        any = true;
        let (id, size) = (&backend.id, backend.size_bytes);
        let is_file =
            ["", "memory-backend-file", "memory-backend-memfd"].contains(&backend.kind.as_str());
        if !backend.is_shared || !is_file {
            findings.push(Finding::refused(
                format!("memory {id}"),
                "it lies in no shared file, so nobody else can read it",
                format!(
                    "-object memory-backend-file,id={id},size={size},mem-path=/dev/shm/FILE,share=on -machine \
                     memory-backend={id}"
                ),
            ));
        }
    }
    if !any {
        findings.push(Finding::refused(
            "memory",
            "it is no object of QEMU's, so nobody else can read it",
            "-object memory-backend-file,id=m0,size=SIZE,mem-path=/dev/shm/FILE,share=on -machine memory-backend=m0",
        ));
    }
    let plugged = qemu.ask("query-memory-devices", None)?;
    for device in plugged.as_array().into_iter().flatten() {
        let kind = device["type"].as_str().unwrap_or("dimm");
        let id = device["data"]["id"].as_str().unwrap_or("without an id");
        findings.push(Finding::refused(
            format!("{kind} {id}"),
            "memory that is plugged in is not tracked",
            "give the guest all of it with -m",
        ));
    }
    Ok(())
}

/// What QEMU itself holds against a migration.
fn blockers(qemu: &mut Qemu, findings: &mut Vec<Finding>) -> Result<(), Error> {
    let told = qemu.ask("query-migrate", None)?;
    let Some(reasons) = told["blocked-reasons"].as_array() else {
        return Ok(());
    };
    let mut reasons: Vec<String> = reasons
        .iter()
        .map(|reason| reason.as_str().unwrap_or("no reason").to_owned())
        .collect();
    if reasons.is_empty() {
        // A device has no state to be saved: QEMU names it to who tries. It looks at that before the address,
        // which is none, so nothing begins.
        let nowhere = json!({"uri": "blockrep-nowhere:"});
        match qemu.ask("migrate", Some(nowhere)) {
            Err(Error::Refused { why, .. }) => reasons.push(why),
            Err(other) => return Err(other),
            Ok(_) => reasons.push("no reason".to_owned()),
        }
    }
    for reason in reasons {
        findings.push(Finding::refused(
            format!("QEMU says: {reason}"),
            "it cannot save this guest's state",
            "take the device or setting out that it names",
        ));
    }
    Ok(())
}

/// The text of a field, or nothing.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    //! A finding that is not told is a guest that is taken for protected.
    use super::*;

    #[test]
    fn versions() {
        let of = |major, minor| Version {
            major,
            minor,
            micro: 0,
        };
        let told = |major, minor| {
            let mut findings = Vec::new();
            version(of(major, minor), &mut findings);
            findings.first().map(|finding| finding.weight)
        };
        assert_eq!(told(5, 1), Some(Weight::Refused));
        assert_eq!(told(5, 2), Some(Weight::Warning));
        assert_eq!(told(7, 2), None);
    }
}
