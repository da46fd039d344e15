//! What could go wrong: a unit that systemd reads otherwise than meant, or that ends the guest with its daemon.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

use std::path::Path;
use std::process::Command;

const UNITS: [&str; 2] = [
    "checkpointer-protect@.service",
    "checkpointer-receive@.service",
];

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("systemd")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn systemd_reads_the_units() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: needs systemd-analyze (Debian package systemd)");
        return;
    }
    for name in UNITS {
        let dir = tempfile::tempdir().unwrap();
        // The program stands elsewhere here, and a template is looked at by one guest of it.
        let here = dir.path().join(name.replace('@', "@vm1"));
        let text = unit(name).replace("/usr/sbin/checkpointer", env!("CARGO_BIN_EXE_checkpointer"));
        std::fs::write(&here, text).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&here)
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&output.stderr);
        let ours: Vec<&str> = found
            .lines()
            .filter(|line| line.contains("checkpointer"))
            .collect();
        assert!(output.status.success() && ours.is_empty(), "{found}");
    }
}

/// Stopped or started again, a daemon leaves the guest alone; the right to trace is there where it is needed.
#[test]
fn a_daemon_that_ends_does_not_take_the_guest_along() {
    for name in UNITS {
        let text = unit(name);
        let has = |line: &str| text.lines().any(|other| other == line);
        for line in ["Type=notify", "KillMode=process", "Restart=on-failure"] {
            assert!(has(line), "{name}: {line}");
        }
        // Of `checkpointer run` a second start would be a second guest.
        assert!(!text.contains("checkpointer run"), "{name}");
    }
    let bounding = unit(UNITS[0]);
    let line = bounding
        .lines()
        .find(|line| line.starts_with("CapabilityBoundingSet="));
    assert!(line.unwrap().contains("CAP_SYS_PTRACE"));
}
