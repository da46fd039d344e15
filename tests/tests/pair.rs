//! Two real daemons on loopback: the whole way once.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use blockrep_tests::harness::{Pair, Process, binary};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

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

/// An operator asks how old the disk is that a promotion gave him; after a restart of the backup
/// the answer was that nobody knows.
#[test]
fn the_time_of_the_cut_survives_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new(dir.path(), 64 << 20).unwrap();
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let before_unix_ns = blockrep_host::clock::unix_ns();
    write(&pair, "a", 100);
    let after_unix_ns = blockrep_host::clock::unix_ns();
    primary.kill();
    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    // Killed, its journal is read again; stopped in order it is drained, and metadata is all there is.
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGTERM] {
        let end = Instant::now() + LIMIT;
        while pair.status("b").unwrap()["volumes"][0]["journal"]["extents"] != 0 {
            assert!(Instant::now() < end, "{}", pair.status("b").unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        backup.signal(signal).unwrap();
        backup.wait(LIMIT).unwrap();
        backup = pair.start_backup().unwrap();
    }
    // Asked before the promotion, the answer is the same.
    let status = pair.status("b").unwrap();
    let disk = status["disk"].clone();
    assert!(status["link"]["heard_unix_ms"].is_null(), "{status}");
    let text = pair.ctl("b", &["status"]).unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("; no link since this daemon started at"),
        "{text}"
    );
    let promoted = pair.ctl_json("b", &["promote"]).unwrap();
    assert_eq!(disk["cut_unix_ns"], promoted["cut_unix_ns"], "{disk}");
    assert_eq!(disk["epoch"], promoted["epoch"], "{disk}");
    assert!(pair.status("b").unwrap()["disk"].is_null());
    let cut_unix_ns = promoted["cut_unix_ns"].as_u64().unwrap();
    assert!(
        (before_unix_ns..=after_unix_ns + 1_000_000_000).contains(&cut_unix_ns),
        "{promoted}"
    );
}

/// Before a promotion an operator asks of when the disk is, and when the primary was lost: what it
/// answered since then is not here, and nobody had told him.
#[test]
fn a_backup_tells_of_when_its_disk_is_and_the_link_was() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new(dir.path(), 64 << 20).unwrap();
    let _backup = pair.start_backup().unwrap();
    let text_of = |words: &[&str]| {
        let said = pair.ctl("b", words).unwrap();
        assert!(said.status.success());
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let text = text_of(&["status"]);
    assert!(
        text.contains("  disk      of no moment: it never held"),
        "{text}"
    );
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    write(&pair, "a", 100);
    let status = pair.status("b").unwrap();
    let heard_unix_ms = status["link"]["heard_unix_ms"].as_u64().unwrap();
    assert!(status["link"]["lost_unix_ms"].is_null(), "{status}");
    let text = text_of(&["status"]);
    assert!(text.contains("); the link is up\n"), "{text}");
    primary.kill();
    let status = pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    let lost_unix_ms = status["link"]["lost_unix_ms"].as_u64().unwrap();
    assert!(lost_unix_ms >= heard_unix_ms, "{status}");
    let text = text_of(&["status"]);
    assert!(text.contains("); link lost at 20"), "{text}");
    let text = text_of(&["promote"]);
    let note = text
        .lines()
        .find(|line| line.starts_with("note: the link was lost at 20"));
    let note = note.unwrap_or_else(|| panic!("{text}"));
    assert!(
        note.contains("--on-backup-loss degrade (the default)"),
        "{note}"
    );
    assert!(note.ends_with("is not here"), "{note}");
}

/// Whoever stops a primary read that it keeps trying to reach its backup.
#[test]
fn a_side_that_stops_promises_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new(dir.path(), 64 << 20).unwrap();
    let _backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    primary.signal(libc::SIGTERM).unwrap();
    primary.wait(LIMIT).unwrap();
    let log = primary.text();
    let last = log.lines().rfind(|line| line.contains("group-state: "));
    let last = last.unwrap_or_else(|| panic!("no change of state: {log}"));
    assert!(last.ends_with("; next: this daemon ends"), "{last}");
    // A warning wakes somebody up: who stopped it knows.
    let warned = log.lines().filter(|line| line.contains(" WARN "));
    assert_eq!(warned.collect::<Vec<_>>(), Vec::<&str>::new(), "{log}");
    let status = pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    assert!(status["link"]["lost_unix_ms"].is_u64(), "{status}");
}

/// `journal verify` said of every side, of a promoted one too, that it was not stopped in order.
#[test]
fn the_journal_reader_knows_who_was_stopped_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::new(dir.path(), 64 << 20).unwrap();
    let mut sides = [pair.start_primary().unwrap(), pair.start_backup().unwrap()];
    pair.wait_state("a", "protected", LIMIT).unwrap();
    write(&pair, "a", 100);
    let said = |host: &str| {
        let state = pair.path(&format!("{host}.state")).display().to_string();
        let verified = pair.ctl("b", &["journal", "verify", &state]).unwrap();
        let text = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(verified.status.success(), "{text}");
        text
    };
    let check = |sides: &mut [Process; 2], signal, word: &str| {
        for (side, host) in sides.iter_mut().zip(["a", "b"]) {
            side.signal(signal).unwrap();
            side.wait(LIMIT).unwrap();
            let text = said(host);
            let lines = text
                .lines()
                .filter(|line| line.contains("stopped in order: "));
            let all: Vec<&str> = lines.collect();
            assert_eq!(all.len(), 2, "the group and its volume: {text}");
            assert!(
                all[0].contains(&format!("stopped in order: {word}")),
                "{host}: {text}"
            );
            // A backup's volume in which nothing was under way is in order.
            let alone = host == "a" || word == "yes";
            assert!(!alone || all[1].ends_with(word), "{host}: {text}");
        }
    };
    let start = || [pair.start_primary().unwrap(), pair.start_backup().unwrap()];
    check(&mut sides, libc::SIGTERM, "yes");
    sides = start();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    check(&mut sides, libc::SIGKILL, "no");
    // Promoted: with its journal, and when the image alone is the disk.
    let mut backup = pair.start_backup().unwrap();
    pair.ctl_json("b", &["promote"]).unwrap();
    for _ in 0..2 {
        write(&pair, "b", 50);
        let end = Instant::now() + LIMIT;
        while pair.status("b").unwrap()["volumes"][0]["journal"].is_object() {
            assert!(Instant::now() < end, "{}", pair.status("b").unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        backup.signal(libc::SIGTERM).unwrap();
        backup.wait(LIMIT).unwrap();
        let text = said("b");
        assert_eq!(text.matches("stopped in order: yes").count(), 2, "{text}");
        backup = pair.start_backup().unwrap();
    }
    backup.kill();
    assert!(said("b").contains("stopped in order: no"), "{}", said("b"));
}

/// A promoted side that was started again answered reads and refused every write, for ever.
#[test]
fn a_promoted_side_takes_writes_after_every_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = Pair::new(dir.path(), 64 << 20).unwrap();
    pair.backup_flags = ["--throttle-apply", "256KiB/s"].map(String::from).to_vec();
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    write(&pair, "a", 1500);
    primary.kill();
    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();
    pair.ctl_json("b", &["promote"]).unwrap();
    write(&pair, "b", 50);

    // With its journal not applied, then drained, killed and stopped in order.
    for signal in [libc::SIGKILL, libc::SIGKILL, libc::SIGTERM] {
        backup.signal(signal).unwrap();
        backup.wait(LIMIT).unwrap();
        let state = pair.path("b.state").display().to_string();
        let verified = pair.ctl("b", &["journal", "verify", &state]).unwrap();
        let said = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(verified.status.success(), "a sound store: {said}");
        backup = pair.start_backup().unwrap();
        write(&pair, "b", 50);
        let refused = pair.ctl("b", &["journal", "verify", &state]).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("stop the daemon first"), "{said}");
        let end = Instant::now() + LIMIT;
        while pair.status("b").unwrap()["volumes"][0]["journal"].is_object() {
            assert!(Instant::now() < end, "{}", pair.status("b").unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        write(&pair, "b", 50);
    }
}

/// Writes of a guest, all answered.
fn write(pair: &Pair, host: &str, writes: u32) {
    let log = pair.path(&format!("{}.log", fastrand::u64(..)));
    let run = Command::new(binary("blockrep-load").unwrap())
        .args(["run", "--nbd", &pair.nbd(host), "--flush-every", "10"])
        .args(["--writes", &writes.to_string(), "--log"])
        .arg(&log)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
}
