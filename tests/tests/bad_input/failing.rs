//! Storage that fails under running daemons.

use super::{FAULTS, LIMIT, code, ends_with, is_for_people, small, wait_reason};
use blockrep_tests::harness::{Pair, binary};
use blockrep_tests::programs::Load;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// A command that runs what is added to it with `name` in the pair's directory on a disk of `size`
/// that only it sees. `None`, said on stderr, without the right to mount.
pub(crate) fn on_small_disk(pair: &Pair, name: &str, size: &str) -> Option<Command> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: mounting a small disk takes root");
        return None;
    }
    let path = pair.path(name);
    fs::create_dir_all(&path).unwrap();
    let script = "mount -t tmpfs -o size=$1 none \"$2\" && shift 2 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script, "sh", size])
        .arg(path);
    Some(command)
}

/// The primary's own image fails: it must not go on in silence, and what it promised is at the
/// backup.
#[test]
fn a_failing_image_stops_the_primary() {
    for plan in [
        "image=write:300=EIO",
        "image=sync:9=EIO",
        "image=write:200+=ENOSPC",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let pair = small(dir.path());
        let _backup = pair.start_backup().unwrap();
        let mut command = pair.primary_command().unwrap();
        command.args(["--ack", "flush"]).env(FAULTS, plan);
        let mut primary = pair.launch("a", &mut command).unwrap();
        pair.wait_state("a", "protected", LIMIT).unwrap();
        let load = Load::new(&pair, "load", "a.img", &["--writes", "3000"]);
        let ended = load.run(LIMIT).unwrap();
        assert_eq!(ended.code, 1, "{plan}: {}", ended.text);
        let why = if plan.contains("EIO") {
            "Input/output"
        } else {
            "No space"
        };
        let status = pair.wait_state("a", "failed", LIMIT).unwrap();
        let reason = status["group"]["reason"].as_str().unwrap();
        assert!(reason.contains(why), "{plan}: {reason}");
        is_for_people(reason);
        assert_eq!(status["volumes"][0]["state"], "failed", "{status}");
        // The link is dropped and stays down; reads of what is there still work.
        pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
        let promoted = pair.ctl_json("b", &["promote"]).unwrap();
        let epoch = promoted["epoch"].as_u64().unwrap();
        load.check(&pair, "b.img", "flush", epoch).unwrap();
        ends_with(&mut primary, code::STORAGE_FAILED);
    }
}

/// The disk under a sparse image fills up.
#[test]
fn a_full_disk_stops_the_primary() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let Some(mut command) = on_small_disk(&pair, "small", "3m") else {
        return;
    };
    let script = "truncate -s 8M \"$1\" && shift && exec \"$@\"";
    let image = pair.path("small").join("a.img");
    command.args(["sh", "-c", script, "sh"]).arg(&image);
    command.arg(binary("blockrep").unwrap());
    command.args([
        "-n",
        &format!("remus:127.0.0.1:{}|aio:{}", pair.port, image.display()),
    ]);
    command.args(["--epoch", "10ms", "--nbd", &pair.nbd("a"), "--state"]);
    command
        .arg(pair.path("a.state"))
        .arg("--control")
        .arg(pair.path("a.ctl"));
    let _backup = pair.start_backup().unwrap();
    let mut primary = pair.launch("a", &mut command).unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let load = Load::new(
        &pair,
        "load",
        "",
        &["--writes", "3000", "--block-sizes", "16k"],
    );
    assert_eq!(load.run(LIMIT).unwrap().code, 1);
    let status = pair.wait_state("a", "failed", LIMIT).unwrap();
    let reason = status["group"]["reason"].as_str().unwrap();
    assert!(reason.contains("No space left"), "{reason}");
    is_for_people(reason);
    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    let promoted = pair.ctl_json("b", &["promote"]).unwrap();
    let epoch = promoted["epoch"].as_u64().unwrap();
    load.check(&pair, "b.img", "flush", epoch).unwrap();
    ends_with(&mut primary, code::STORAGE_FAILED);
}

/// The backup's storage fails: the guest goes on, and the loss of protection is told on both sides.
#[test]
fn a_failing_backup_is_left_and_told() {
    let plans = [
        "journal=write:9=ENOSPC",
        "journal=sync:4=EIO",
        "image=write:5=EIO",
        "image=sync:2=EIO",
    ];
    for plan in plans {
        let dir = tempfile::tempdir().unwrap();
        let pair = small(dir.path());
        let mut command = pair.backup_command().unwrap();
        let mut backup = pair.launch("b", command.env(FAULTS, plan)).unwrap();
        let _primary = pair.start_primary().unwrap();
        let load = Load::new(&pair, "load", "a.img", &["--writes", "2500"]);
        let ended = load.run(LIMIT).unwrap();
        assert_eq!(ended.code, 0, "{plan}: {}", ended.text);
        let status = pair.wait_state("b", "failed", LIMIT).unwrap();
        let reason = status["group"]["reason"].as_str().unwrap();
        let why = if plan.contains("EIO") {
            "Input/output"
        } else {
            "No space"
        };
        assert!(reason.contains(why), "{plan}: {reason}");
        is_for_people(reason);
        wait_reason(&pair, "a", &["backup", "store failed"]);
        let state = pair.status("a").unwrap()["group"]["state"].clone();
        assert!(
            state == "degraded" || state == "standalone",
            "{plan}: {state}"
        );
        let out = pair.ctl("b", &["promote"]).unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("failed"), "{said}");
        is_for_people(&said);
        ends_with(&mut backup, code::STORAGE_FAILED);
        // Repaired, it follows again.
        let _backup = pair
            .start_backup()
            .unwrap_or_else(|error| panic!("{plan}: {error}"));
        pair.wait_state("a", "protected", LIMIT).unwrap();
    }
}

/// Metadata that cannot be written: no loss of protection that is not durable, and no promotion.
#[test]
fn failing_metadata_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut command = pair.primary_command().unwrap();
    let mut primary = pair
        .launch("a", command.env(FAULTS, "meta=write:1+=EIO"))
        .unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    backup.kill();
    let status = pair.wait_state("a", "failed", LIMIT).unwrap();
    let reason = status["group"]["reason"].as_str().unwrap();
    assert!(reason.contains("metadata"), "{reason}");
    is_for_people(reason);
    // Nothing is written without protection, and nobody waits for ever.
    let load = Load::plain(&pair, "load", "a.img", &["--writes", "1"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 1);
    ends_with(&mut primary, code::STORAGE_FAILED);
}

/// Somebody removes the image of a disk in use: it works on, and would be gone after a restart.
#[test]
fn a_removed_image_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let _primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    for (host, image) in [("a", "a.img"), ("b", "b.img")] {
        fs::remove_file(pair.path(image)).unwrap();
        let end = Instant::now() + LIMIT;
        loop {
            let status = pair.status(host).unwrap();
            let reason = status["volumes"][0]["reason"].as_str().unwrap().to_owned();
            if reason.contains("was removed") {
                assert!(reason.contains(image), "{reason}");
                break;
            }
            assert!(Instant::now() < end, "{reason}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let events = pair.ctl(host, &["events"]).unwrap();
        assert!(String::from_utf8_lossy(&events.stdout).contains("was removed"));
    }
    let load = Load::new(&pair, "load", "a.img", &["--writes", "100"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 0);
}
