//! Peers that are away, die, refuse, or are the wrong ones.

use super::{LIMIT, code, ends_with, refused, small, wait_reason};
use blockrep_tests::harness::{Pair, binary};
use blockrep_tests::programs::Load;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

fn with_flags(mut pair: Pair, flags: &[&str]) -> Pair {
    pair.primary_flags
        .extend(flags.iter().map(ToString::to_string));
    pair
}

/// The backup is not there yet: by policy the guest runs unprotected, which is told, or waits.
#[test]
fn a_backup_that_is_away_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let pair = with_flags(small(dir.path()), &["--on-backup-loss", "degrade"]);
    let mut primary = pair.start_primary().unwrap();
    let port = pair.port.to_string();
    let status = wait_reason(&pair, "a", &[port.as_str(), "has not been reached"]);
    assert_eq!(status["group"]["state"], "standalone");
    let load = Load::plain(&pair, "load", "a.img", &["--writes", "100"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 0);
    ends_with(&mut primary, code::OK);

    let dir = tempfile::tempdir().unwrap();
    let pair = with_flags(small(dir.path()), &["--on-backup-loss", "pause"]);
    let _primary = pair.start_primary().unwrap();
    let port = pair.port.to_string();
    let status = wait_reason(&pair, "a", &[port.as_str(), "has not been reached"]);
    assert_eq!(status["group"]["state"], "paused");
    let load = Load::plain(&pair, "load", "a.img", &["--writes", "100"]);
    let mut running = load.start().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(
        running.is_running(),
        "a write was answered: {}",
        running.text()
    );
    let _backup = pair.start_backup().unwrap();
    assert_eq!(running.wait(LIMIT).unwrap(), 0, "{}", running.text());
    pair.wait_state("a", "protected", LIMIT).unwrap();
}

/// The backup is killed with an epoch half sent; what it committed before must be there after.
#[test]
fn a_backup_that_dies_in_an_epoch() {
    for policy in ["degrade", "pause"] {
        let dir = tempfile::tempdir().unwrap();
        let flags = ["--on-backup-loss", policy, "--ack", "flush"];
        let pair = with_flags(small(dir.path()), &flags);
        let mut backup = pair.start_backup().unwrap();
        let mut primary = pair.start_primary().unwrap();
        pair.wait_state("a", "protected", LIMIT).unwrap();
        let load = Load::new(
            &pair,
            "load",
            "a.img",
            &["--writes", "4000", "--rate", "1500"],
        );
        let mut running = load.start().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        backup.kill();
        let state = if policy == "pause" {
            "paused"
        } else {
            "degraded"
        };
        let status = pair.wait_state("a", state, LIMIT).unwrap();
        assert_ne!(status["group"]["reason"], "", "{status}");
        if policy == "degrade" {
            assert_eq!(running.wait(LIMIT).unwrap(), 0, "{}", running.text());
        }
        let _backup = pair.start_backup().unwrap();
        assert_eq!(running.wait(LIMIT).unwrap(), 0, "{}", running.text());
        pair.wait_state("a", "protected", LIMIT).unwrap();
        let cut = pair.ctl_json("a", &["cut", "--wait"]).unwrap();
        assert_eq!(cut["committed"], true, "{cut}");
        primary.kill();
        pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
        let promoted = pair.ctl_json("b", &["promote"]).unwrap();
        let epoch = promoted["epoch"].as_u64().unwrap();
        load.check(&pair, "b.img", "flush", epoch).unwrap();
    }
}

/// Images of different sizes: the primary says what the backup said, serves by its policy, and
/// keeps trying for when the image is put right.
#[test]
fn sizes_that_differ_are_told_at_the_primary() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let image = File::options()
        .write(true)
        .open(pair.path("b.img"))
        .unwrap();
    image.set_len(4 << 20).unwrap();
    let mut backup = pair.start_backup().unwrap();
    let _primary = pair.start_primary().unwrap();
    let words = [
        "refused by the backup",
        "8388608",
        "4194304",
        "make its image as large as the primary's",
    ];
    let status = wait_reason(&pair, "a", &words);
    assert_eq!(status["group"]["state"], "standalone");
    let events = pair.ctl("a", &["events"]).unwrap();
    assert!(
        String::from_utf8_lossy(&events.stdout)
            .contains("make its image as large as the primary's")
    );
    let load = Load::plain(&pair, "load", "a.img", &["--writes", "50"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 0);
    ends_with(&mut backup, code::OK);
    std::fs::remove_dir_all(pair.path("b.state")).unwrap();
    image.set_len(8 << 20).unwrap();
    let _backup = pair.start_backup().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
}

/// A stranger with a smaller disk: following the advice cut off the disk of the backup.
#[test]
fn a_stranger_of_another_size_is_told_whose_backup_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let mut first = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    ends_with(&mut first, code::OK);
    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    let mut other = small(&dir.path().join("other"));
    other.port = pair.port;
    let image = File::options().write(true).open(other.path("a.img"));
    image.unwrap().set_len(4 << 20).unwrap();
    let _second = other.start_primary().unwrap();
    let status = wait_reason(&other, "a", &["belongs to another group"]);
    let seen = pair.status("b").unwrap().to_string();
    for text in [status.to_string(), seen] {
        assert!(!text.contains("truncate"), "{text}");
    }
}

/// Two primaries for one backup: the second must not get in, nor disturb the first.
#[test]
fn a_second_primary_is_refused_by_the_backup() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let mut first = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let mut other = small(&dir.path().join("other"));
    other.port = pair.port;
    let _second = other.start_primary().unwrap();
    let words = ["not taken now", "a primary at 127.0.0.1", "is connected"];
    wait_reason(&other, "a", &words);
    assert_eq!(pair.status("a").unwrap()["group"]["state"], "protected");
    // Alone with the backup it is still of another group.
    ends_with(&mut first, code::OK);
    let words = ["refused by the backup", "move its state directory away"];
    let status = wait_reason(&other, "a", &words);
    assert_eq!(status["group"]["state"], "standalone");
}

/// The old primary comes back after a promotion: its guest must not be taken for the current one.
#[test]
fn the_old_primary_is_refused_with_both_histories() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let load = Load::new(&pair, "load", "a.img", &["--writes", "200"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 0);
    // Beside a living link only with force.
    let out = pair.ctl("b", &["promote"]).unwrap();
    assert_eq!(out.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--force"));
    primary.kill();
    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    let promoted = pair.ctl_json("b", &["promote"]).unwrap();
    let theirs = promoted["lineage"].as_str().unwrap().to_owned();
    let _primary = pair.start_primary().unwrap();
    let words = [
        "refused by the backup",
        "promoted at epoch",
        theirs.as_str(),
    ];
    let status = wait_reason(&pair, "a", &words);
    let own = status["lineage"].as_array().unwrap().last().unwrap()["id"].as_str();
    let reason = status["group"]["reason"].as_str().unwrap();
    assert!(reason.contains(own.unwrap()), "{reason}");
    let events = pair.ctl("b", &["events"]).unwrap();
    assert!(String::from_utf8_lossy(&events.stdout).contains("was refused"));
    // The same after a restart of the promoted side, and its state is not for blockrep.
    ends_with(&mut backup, code::OK);
    let mut command = super::starting::primary();
    command.arg("-n");
    command.arg(format!("aio:{}", pair.path("b.img").display()));
    command.arg("--state").arg(pair.path("b.state"));
    command.arg("--control").arg(pair.path("other.sock"));
    let told = [
        "was promoted at epoch",
        "serves the disk as the primary again",
    ];
    refused(&mut command, code::STORE, &told);
    let _backup = pair.start_backup().unwrap();
    assert_eq!(pair.status("b").unwrap()["group"]["state"], "promoted");
    wait_reason(&pair, "a", &words);
}

/// Orders to the wrong side, and to nobody: one line and the documented exit code.
#[test]
fn orders_to_the_wrong_side_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    for (args, exit, word) in [
        (&["promote"][..], 4, "never held an epoch"),
        (&["cut"], 4, "at the primary"),
    ] {
        let out = pair.ctl("b", args).unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(exit), "{said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
    let out = Command::new(binary("blockrepctl").unwrap())
        .args(["--control", "/nowhere/x.sock", "status"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&out.stderr).lines().count(), 1);
}
