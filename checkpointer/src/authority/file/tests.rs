//! Two daemons that both believe their swap: two guests with one disk. Or a record that a crash, an editor or a full
//! disk has spoilt, and that is taken for none: the next claim gives the guest away a second time.

use super::super::tests::{record, stamp};
use super::super::{Decision, Wish, decide};
use super::*;
use std::process::{Child, Command, Stdio};

/// Each of two processes.
const SWAPS: u64 = 5_000;
const RACE: &str = "BLOCKREP_TEST_RECORD";

fn next(present: &Record) -> Record {
    Record {
        generation: present.generation + 1,
        ..present.clone()
    }
}

fn racer(path: &Path) -> Child {
    let this = std::env::current_exe().unwrap();
    Command::new(this)
        .args(["--ignored", "--exact", "--nocapture"])
        .arg("authority::file::tests::swaps_of_one_process")
        .env(RACE, path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// One of the two below; alone it has nothing to race with.
#[test]
#[ignore = "started by two_processes_lose_no_swap"]
fn swaps_of_one_process() {
    let Some(path) = std::env::var_os(RACE) else {
        println!("skipped: only two_processes_lose_no_swap starts it");
        return;
    };
    let file = FileAuthority::new(path.into(), "vm1").with_lock_wait_max(Duration::from_secs(60));
    let mut present = file.read().unwrap().unwrap();
    let mut swapped = 0;
    while swapped < SWAPS {
        let new = next(&present);
        match file
            .swap(Some(present.generation), &new, By::Daemon)
            .unwrap()
        {
            Swapped::Swapped => {
                swapped += 1;
                present = new;
            }
            Swapped::Changed(theirs) => {
                assert!(theirs.generation > present.generation);
                present = theirs;
            }
        }
    }
}

#[test]
fn two_processes_lose_no_swap() {
    // Where syncing costs nothing: what is tested is the race.
    let memory = Path::new("/dev/shm");
    let dir = match tempfile::tempdir_in(memory) {
        Ok(dir) => dir,
        Err(_) => tempfile::tempdir().unwrap(),
    };
    let path = dir.path().join("vm1.authority");
    let file = FileAuthority::new(path.clone(), "vm1");
    file.swap(None, &record(1, "a", &["a"]), By::Daemon)
        .unwrap();
    let racers = [racer(&path), racer(&path)];
    for mut racer in racers {
        assert!(racer.wait().unwrap().success());
    }
    assert_eq!(file.read().unwrap().unwrap().generation, 1 + 2 * SWAPS);
}

#[test]
fn a_record_survives_and_a_late_swap_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm1.authority");
    let file = FileAuthority::new(path.clone(), "vm1");
    assert_eq!(file.read().unwrap(), None);
    // What a crash before the rename left behind.
    fs::write(dir.path().join("vm1.authority.new"), "{\"gue").unwrap();
    let first = record(1, "a", &["a"]);
    assert_eq!(
        file.swap(None, &first, By::Daemon).unwrap(),
        Swapped::Swapped
    );
    let again = FileAuthority::new(path, "vm1");
    assert_eq!(again.read().unwrap(), Some(first.clone()));
    // A second claim.
    let theirs = again
        .swap(None, &record(1, "b", &["b"]), By::Daemon)
        .unwrap();
    assert_eq!(theirs, Swapped::Changed(first.clone()));
    file.swap(Some(1), &record(2, "a", &["a", "b"]), By::Daemon)
        .unwrap();
    let late = again
        .swap(Some(1), &record(2, "b", &["b"]), By::Daemon)
        .unwrap();
    assert_eq!(late, Swapped::Changed(record(2, "a", &["a", "b"])));
    let wish = Wish::Promote;
    let done = decide(&again, "vm1", "b", wish, &stamp(3), By::Daemon).unwrap();
    assert!(matches!(done, Decision::Done(record) if record.is_alone("b")));
}

#[test]
fn what_is_no_record_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm1.authority");
    let file = FileAuthority::new(path.clone(), "vm1");
    let good = serde_json::to_string(&record(2, "a", &["a", "b"])).unwrap();
    let cases = [
        (String::new(), "EOF"),
        (good[..good.len() - 9].to_owned(), "EOF"),
        ("\0".repeat(200), "expected value"),
        (good.replace("\"vm1\"", "\"vm2\""), "guest \"vm2\""),
        (
            good.replace("\"generation\":2", "\"generation\":0"),
            "generation is 0",
        ),
        (good.replace("02020202", ""), "hexadecimal"),
        (
            good.replace("[\"a\",\"b\"]", "[\"b\"]"),
            "primary a is not in in_sync",
        ),
        (good.replace("[\"a\",\"b\"]", "[\"b\",\"a\"]"), "by name"),
        (
            good.replace("[\"a\",\"b\"]", "[\"a\",\"b\",\"c\"]"),
            "one or two",
        ),
        (
            good.replace("[\"a\",\"b\"]", "[\"a\",\"/\"]"),
            "\"/\" is no name",
        ),
        (good.replace("\"note\"", "\"lease\""), "unknown field"),
        (good + &" ".repeat(20_000), "longer than 16384"),
    ];
    for (text, what) in cases {
        fs::write(&path, &text).unwrap();
        let new = record(1, "b", &["b"]);
        let errors = [
            file.read().unwrap_err(),
            file.swap(None, &new, By::Operator).unwrap_err(),
            file.take_in(&new).unwrap_err(),
        ];
        for error in errors {
            let line = error.to_string();
            assert!(matches!(error, AuthorityError::Damaged { .. }), "{line}");
            assert!(line.contains(what), "{line} instead of {what}");
            assert!(line.contains("remove it") && !line.contains('\n'), "{line}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    fs::remove_file(&path).unwrap();
    let error = file
        .swap(Some(1), &record(2, "a", &["a"]), By::Daemon)
        .unwrap_err();
    assert!(
        error.to_string().contains("removed while it was used"),
        "{error}"
    );
    fs::create_dir(&path).unwrap();
    assert!(
        file.read()
            .unwrap_err()
            .to_string()
            .contains("no regular file")
    );
}

#[test]
fn a_lock_that_is_held_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm1.authority");
    let file =
        FileAuthority::new(path.clone(), "vm1").with_lock_wait_max(Duration::from_millis(20));
    let holder = FileAuthority::new(path, "vm1");
    let held = holder.lock().unwrap();
    let new = record(1, "a", &["a"]);
    let error = file.swap(None, &new, By::Daemon).unwrap_err();
    assert!(error.to_string().contains("more than 20 ms"), "{error}");
    // Reading needs no lock.
    assert_eq!(file.read().unwrap(), None);
    drop(held);
    assert_eq!(file.swap(None, &new, By::Daemon).unwrap(), Swapped::Swapped);
}
