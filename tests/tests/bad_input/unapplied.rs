//! Images that are not the whole disk, or not the disk that they are said to be: started as one, or
//! called equal to one, they would be served as it without a word.

use super::exchanged::carries_mark;
use super::{LIMIT, code, ends_with, refused, small, wait_reason};
use blockrep_tests::harness::{Pair, Process, binary};
use blockrep_tests::programs::Load;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A primary on an image of its own choice, with a state directory that is not there yet.
fn primary_on(pair: &Pair, image: &Path, state: &str) -> Command {
    let spec = format!("remus:127.0.0.1:{}|aio:{}", pair.port, image.display());
    let mut command = Command::new(binary("blockrep").unwrap());
    command.args(["-n", &spec, "--group", "test"]);
    command.arg("--state").arg(pair.path(state));
    command.arg("--control").arg(pair.path("a.ctl"));
    command
}

/// Both were killed while the backup had much left to apply.
fn with_a_backlog(pair: &mut Pair) {
    let flags = pair.backup_flags.clone();
    let slow = ["--throttle-apply", "64KiB/s"].map(String::from);
    pair.backup_flags.extend(slow);
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let load = Load::plain(pair, "load", "a.img", &["--writes", "600"]);
    assert_eq!(load.run(LIMIT).unwrap().code, 0);
    let cut = pair.ctl_json("a", &["cut", "--wait"]).unwrap();
    assert_eq!(cut["committed"], true, "{cut}");
    primary.kill();
    backup.kill();
    pair.backup_flags = flags;
}

fn applies_all(pair: &Pair, backup: &mut Process) {
    let end = Instant::now() + LIMIT;
    while pair.status("b").unwrap()["unapplied_bytes"] != 0 {
        assert!(Instant::now() < end, "{}", pair.status("b").unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    ends_with(backup, code::OK);
}

/// 43 MiB of a promoted disk stood in a journal that had been moved away, and its image was served
/// without them; what had to be typed instead stood nowhere.
#[test]
fn a_primary_is_not_started_on_a_part_of_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = small(dir.path());
    with_a_backlog(&mut pair);
    let image = pair.path("b.img");
    if !carries_mark(&image) {
        return;
    }
    let (state, old) = (pair.path("b.state"), pair.path("b.state.old"));
    let said = String::from_utf8(
        Command::new(binary("blockrepctl").unwrap())
            .args(["journal", "verify"])
            .arg(&state)
            .output()
            .unwrap()
            .stdout,
    );
    let said = said.unwrap();
    assert!(
        said.contains("are not in the image: the image alone"),
        "{said}"
    );
    fs::rename(&state, &old).unwrap();
    let back = format!("(mv {} {})", old.display(), state.display());
    let words = [
        "is not the whole disk",
        "iB of the journal in",
        &back,
        "a copy",
    ];
    refused(
        &mut primary_on(&pair, &image, "new.state"),
        code::STORE,
        &words,
    );
    // What it says to type leads out.
    fs::rename(&old, &state).unwrap();
    applies_all(&pair, &mut pair.start_backup().unwrap());
    fs::rename(&state, &old).unwrap();
    let mut command = primary_on(&pair, &image, "new.state");
    ends_with(&mut pair.launch("a", &mut command).unwrap(), code::OK);
}

/// A copy with its attributes is that of the state directory by its mark and another file by its
/// number: three texts in turn told to give what the next one refused.
#[test]
fn a_copy_with_its_attributes_is_told_how_to_lose_them() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    ends_with(&mut pair.start_primary().unwrap(), code::OK);
    let (image, copy) = (pair.path("a.img"), pair.path("copy.img"));
    let copied = Command::new("cp").arg("-a").args([&image, &copy]).status();
    assert!(copied.unwrap().success());
    if !carries_mark(&copy) {
        return;
    }
    let off = format!("(setfattr -x user.blockrep.state {})", copy.display());
    let words = [
        "carries the mark of the state directory",
        &off,
        "cp --sparse",
    ];
    refused(
        &mut primary_on(&pair, &copy, "new.state"),
        code::STORE,
        &words,
    );
    let copied = Command::new("cp")
        .args([&image, &pair.path("plain.img")])
        .status();
    assert!(copied.unwrap().success());
    let mut command = primary_on(&pair, &pair.path("plain.img"), "new.state");
    ends_with(&mut pair.launch("a", &mut command).unwrap(), code::OK);
}

/// `--assume-identical`, left on the command line, made another image the "protected" copy after a
/// failover.
#[test]
fn images_are_equal_on_a_word_only_where_nothing_speaks_against_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = small(dir.path());
    pair.primary_flags.push("--assume-identical".to_owned());
    let mut backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    for (host, log) in [("a", &primary.log), ("b", &backup.log)] {
        let status = pair.status(host).unwrap();
        let reason = status["volumes"][0]["reason"].as_str().unwrap();
        assert!(reason.contains("were not compared, on "), "{reason}");
        let log = fs::read_to_string(log).unwrap();
        let warned = |line: &str| line.contains("WARN") && line.contains("were not compared, on ");
        assert!(log.lines().any(warned), "{log}");
    }
    ends_with(&mut primary, code::OK);
    ends_with(&mut backup, code::OK);
    if !carries_mark(&pair.path("b.img")) {
        return;
    }
    // Both begin anew, the backup on an image that it knows to be another's.
    for host in ["a", "b"] {
        let state = pair.path(&format!("{host}.state"));
        fs::rename(&state, pair.path(&format!("{host}.old"))).unwrap();
    }
    let _backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    let words = [
        "--assume-identical is not taken here",
        "start it again without",
    ];
    wait_reason(&pair, "a", &words);
    ends_with(&mut primary, code::OK);
    pair.primary_flags
        .retain(|flag| flag != "--assume-identical");
    let _primary = pair.start_primary().unwrap();
    let status = pair.wait_state("a", "protected", LIMIT).unwrap();
    let reason = status["volumes"][0]["reason"].as_str().unwrap();
    assert!(!reason.contains("not compared"), "{reason}");
}

/// Who mistyped a port protected his disk with somebody else's backup, and nobody was told.
#[test]
fn sides_of_different_names_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let backup = pair.start_backup().unwrap();
    let spec = format!(
        "remus:127.0.0.1:{}|aio:{}",
        pair.port,
        pair.path("a.img").display()
    );
    let mut command = Command::new(binary("blockrep").unwrap());
    command.args(["-n", &spec, "--group", "vm1"]);
    command.arg("--state").arg(pair.path("a.state"));
    command.arg("--control").arg(pair.path("a.ctl"));
    let primary = pair.launch("a", &mut command).unwrap();
    wait_reason(&pair, "b", &["a primary is connected", "is of group vm1"]);
    wait_reason(&pair, "a", &["the backup is of group test"]);
    let log = fs::read_to_string(&backup.log).unwrap();
    let taken = "primary of group vm1 at 127.0.0.1";
    let warned = |line: &str| line.contains("WARN") && line.contains(taken);
    assert!(log.lines().any(warned), "{log}");
    assert!(log.contains("is taken in by backup of group test"), "{log}");
    let log = fs::read_to_string(&primary.log).unwrap();
    let taken = "has taken in primary of group vm1";
    let warned = |line: &str| line.contains("WARN") && line.contains(taken);
    assert!(log.lines().any(warned), "{log}");
}
