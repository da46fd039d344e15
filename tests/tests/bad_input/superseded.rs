//! Primaries that are not taken in: both hosts say why, and what to do.

use super::{LIMIT, is_for_people, small};
use blockrep_tests::harness::{Pair, Process};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

fn has(value: &Value, words: &[&str]) {
    let text = value.as_str().unwrap();
    is_for_people(text);
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
}

/// The status of a host once its link is refused.
fn wait_refused(pair: &Pair) -> Value {
    let end = Instant::now() + LIMIT;
    loop {
        let status = pair.status("a").unwrap();
        if status["link"]["state"] == "refused" {
            return status;
        }
        assert!(Instant::now() < end, "not refused: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Promotes right after the kill, as an operator does whose fencing has just reported success.
fn fail_over(pair: &Pair, primary: &mut Process) {
    primary.kill();
    pair.ctl_json("b", &["promote"]).unwrap();
}

/// A former primary was told to stop its guest and, in the next line, that all would be well; and a
/// new group's good primary was told to stop its guest, too.
#[test]
fn a_former_primary_and_a_new_group_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    fail_over(&pair, &mut primary);

    let mut primary = pair.start_primary().unwrap();
    let status = pair.wait_state("a", "superseded", LIMIT).unwrap();
    let group = &status["group"];
    has(
        &group["reason"],
        &["promoted at epoch", "must not run", "nobody's history"],
    );
    has(&group["next"], &["stop this daemon and its guest"]);
    has(&status["volumes"][0]["next"], &["stop this daemon"]);
    has(
        &status["output"]["possible_loss"],
        &["no backup will take it"],
    );
    assert_eq!(status["ack_in_force"], false, "{status}");
    assert_eq!(status["link"]["state"], "refused", "{status}");
    let log = primary.text();
    assert!(
        log.contains("ERROR test: group-state: standalone -> superseded"),
        "{log}"
    );
    primary.kill();

    backup.kill();
    let backup = pair.start_backup().unwrap();
    let status = pair.wait_state("b", "promoted", LIMIT).unwrap();
    has(&status["group"]["next"], &["start `blockrep` on a copy"]);
    let end = Instant::now() + LIMIT;
    while !backup.text().contains("WARN test: role-changed: comes up") {
        assert!(Instant::now() < end, "{}", backup.text());
        std::thread::sleep(Duration::from_millis(20));
    }

    fs::remove_dir_all(pair.path("a.state")).unwrap();
    let _primary = pair.start_primary().unwrap();
    let status = wait_refused(&pair);
    let reason = status["group"]["reason"].as_str().unwrap();
    assert!(!reason.contains("must not run"), "{reason}");
    has(
        &status["group"]["reason"],
        &[
            "another group, test (",
            "of the same name",
            "remove nothing",
        ],
    );
}

/// A backup that had sent its primary away said that none had come.
#[test]
fn a_refused_primary_is_shown_on_both_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    fs::File::options()
        .write(true)
        .open(pair.path("a.img"))
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    let _backup = pair.start_backup().unwrap();
    let _primary = pair.start_primary().unwrap();
    let status = wait_refused(&pair);
    assert_eq!(status["group"]["state"], "standalone", "{status}");
    has(&status["group"]["next"], &["start it again"]);
    let status = pair.status("b").unwrap();
    let refused = &status["link"]["refused"];
    has(&refused["reason"], &["4194304", "8388608"]);
    has(&refused["peer"], &["127.0.0.1:"]);
    has(
        &status["group"]["reason"],
        &["was refused: the primary's image"],
    );
    has(&status["group"]["next"], &["not promotable"]);
    let text = pair.ctl("b", &["status"]).unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("  refused   127.0.0.1:"), "{text}");
}

/// A backup that refuses a primary of which it could be the last copy offered a promotion as if that
/// one were dead.
#[test]
fn a_promotion_beside_a_refused_primary_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    primary.kill();
    // Another one by its identity, with the same disk.
    fs::remove_dir_all(pair.path("a.state")).unwrap();
    let mut primary = pair.start_primary().unwrap();
    wait_refused(&pair);
    let status = pair.status("b").unwrap();
    has(
        &status["group"]["next"],
        &[
            "before a promotion stop the primary at 127.0.0.1:",
            "was alive",
            "blockrepctl promote",
        ],
    );
    let promoted = pair.ctl("b", &["promote"]).unwrap();
    let text = String::from_utf8_lossy(&promoted.stdout).into_owned();
    assert!(promoted.status.success(), "{text}");
    for words in [
        "promoted: serving epoch",
        "\nwarning: the primary at 127.0.0.1:",
        "its guest must not run on",
    ] {
        assert!(text.contains(words), "{text}");
    }
    // What it was refused for while this side was a backup is no news of the promoted one.
    let status = pair.status("b").unwrap();
    let refused = status["link"]["refused"]["reason"].as_str();
    assert!(
        refused.is_none_or(|why| why.contains("it was promoted at")),
        "{status}"
    );
    // A side that ends says so, and promises nothing.
    primary.signal(libc::SIGTERM).unwrap();
    primary.wait(LIMIT).unwrap();
}

/// Beside a primary that lives, a promotion waits for the link to end and is refused after that.
#[test]
fn a_promotion_waits_for_the_link_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let _primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let began = Instant::now();
    let refused = pair.ctl("b", &["promote"]).unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{text}");
    for words in [
        "the primary at 127.0.0.1:",
        "is still connected",
        "stop it and promote again",
        "--force promotes beside it: it is cut off, not stopped",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert!(began.elapsed() >= Duration::from_secs(2), "it did not wait");
    pair.wait_state("a", "protected", LIMIT).unwrap();
    // Forced, it is just what the refusal said: nobody has stopped the primary.
    let forced = pair.ctl("b", &["promote", "--force"]).unwrap();
    let text = String::from_utf8_lossy(&forced.stdout).into_owned();
    let warning = "\nwarning: the primary at 127.0.0.1:";
    assert!(
        text.contains(warning) && text.contains("cut off, not stopped"),
        "{text}"
    );
    assert!(!text.contains("the link was lost"), "{text}");
    pair.wait_state("a", "superseded", LIMIT).unwrap();
}
