//! Two real daemons on loopback: the whole way once.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use blockrep_tests::harness::{Pair, binary};
use std::process::Command;
use std::time::Duration;

/// The one thing the project is for: what was acknowledged is there after the primary was killed.
#[test]
fn load_kill_promote_check() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::new(dir.path(), 64 << 20).unwrap();
    pair.primary_flags = ["--ack", "flush", "--epoch", "10ms"]
        .map(String::from)
        .to_vec();
    let _backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", Duration::from_secs(60))
        .unwrap();
    let log = pair.path("load.log");
    let run = Command::new(binary("blockrep-load").unwrap())
        .args([
            "run",
            "--nbd",
            &pair.nbd("a"),
            "--writes",
            "5000",
            "--flush-every",
            "50",
        ])
        .args(["--cut-every", "100", "--seed", "7"])
        .arg("--control")
        .arg(pair.path("a.ctl"))
        .arg("--log")
        .arg(&log)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    primary.kill();
    pair.wait_state("b", "waiting-for-primary", Duration::from_secs(10))
        .unwrap();
    let promoted = pair.ctl_json("b", &["promote"]).unwrap();
    let epoch = promoted["epoch"].as_u64().unwrap().to_string();
    let check = Command::new(binary("blockrep-load").unwrap())
        .args([
            "check",
            "--nbd",
            &pair.nbd("b"),
            "--ack",
            "flush",
            "--epoch",
            &epoch,
        ])
        .arg("--log")
        .arg(&log)
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
}
