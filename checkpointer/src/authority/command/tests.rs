//! A fence command that failed, hung or said something new, and was taken for success: both hosts run the guest. Or
//! one that hangs and takes the failover with it.

use super::super::tests::{record, stamp};
use super::super::{Decision, Wish, decide};
use super::*;
use std::path::Path;

fn authority(dir: &Path, script: &str, run_max: Duration) -> CommandAuthority {
    let file = FileAuthority::new(dir.join("vm1.authority"), "vm1");
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    CommandAuthority::new(file, "b", command.into(), run_max)
}

/// With the record of a guest of a's, and b in sync.
fn with_record(script: &str, run_max: Duration) -> (tempfile::TempDir, CommandAuthority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path(), script, run_max);
    authority.adopt(&record(2, "a", &["a", "b"])).unwrap();
    (dir, authority)
}

fn ask(
    of: &CommandAuthority,
    host: &str,
    wish: Wish<'_>,
    by: By,
) -> Result<Record, AuthorityError> {
    match decide(of, "vm1", host, wish, &stamp(3), by)? {
        Decision::Done(record) => Ok(record),
        Decision::Refused(refusal) => panic!("{refusal}"),
    }
}

#[test]
fn only_a_fenced_host_loses_its_guest() {
    let long = COMMAND_RUN_MAX;
    for (code, promotes, degrades) in [
        (0, false, false),
        (1, false, false),
        (3, false, true),
        (4, true, true),
        (5, false, false),
        (6, false, false),
        (7, true, true),
        (127, false, false),
    ] {
        for (wish, host, expected) in [
            (Wish::Promote, "b", promotes),
            (Wish::Degrade, "a", degrades),
        ] {
            let (_dir, authority) = with_record(&format!("echo power; exit {code}"), long);
            let result = ask(&authority, host, wish, By::Daemon);
            assert_eq!(result.is_ok(), expected, "{code} {wish:?}: {result:?}");
            let after = authority.read().unwrap().unwrap();
            assert_eq!(after.is_alone(host), expected, "{code}");
            let Err(error) = result else { continue };
            assert_eq!(error.is_lost(), code == 6, "{error}");
            let text = error.to_string();
            assert!(text.contains("it said: power"), "{text}");
            assert_eq!(text.contains("--by-hand"), code != 6, "{text}");
            // The device is broken and the plug pulled: an operator's word is enough.
            assert!(
                ask(&authority, host, wish, By::Operator)
                    .unwrap()
                    .is_alone(host)
            );
        }
    }
    // What takes nothing from anybody asks nobody.
    let (_dir, authority) = with_record("exit 1", long);
    ask(&authority, "a", Wish::Protect { backup: "c" }, By::Daemon).unwrap_err();
    let (_dir, authority) = with_record("exit 1", long);
    ask(&authority, "a", Wish::Protect { backup: "b" }, By::Daemon).unwrap();
}

#[test]
fn it_is_told_whom_to_fence() {
    let script = "echo $BLOCKREP_GUEST $BLOCKREP_WISH $BLOCKREP_HOST $BLOCKREP_PEER $BLOCKREP_GENERATION \
                  $BLOCKREP_LINEAGE $PWD; echo; exit 1";
    let (_dir, authority) = with_record(script, COMMAND_RUN_MAX);
    let error = ask(&authority, "b", Wish::Promote, By::Daemon).unwrap_err();
    let said = format!("it said: vm1 promote b a 2 {} /;", "02".repeat(16));
    assert!(error.to_string().contains(&said), "{error}");
}

#[test]
fn one_that_hangs_is_killed_with_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "sleep 1000 & echo $$ $! > {}; echo begun; sleep 1000; exit 7",
        pids.display()
    );
    let (_dir, authority) = with_record(&script, Duration::from_secs(1));
    let error = ask(&authority, "b", Wish::Promote, By::Daemon).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("did not end in 1 s, and was killed; it said: begun"),
        "{text}"
    );
    assert!(!authority.read().unwrap().unwrap().is_alone("b"));
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.split_whitespace() {
        // Killed, and perhaps not yet taken away by whoever inherited it.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while !(state().is_empty() || state().contains(") Z ")) {
            std::thread::sleep(LOOK);
        }
    }
}

#[test]
fn one_that_floods_or_leaves_something_behind_ends_all_the_same() {
    let script = "yes | head -c 3000000; sleep 3 & echo last; exit 4";
    let (_dir, authority) = with_record(script, COMMAND_RUN_MAX);
    assert!(
        ask(&authority, "b", Wish::Promote, By::Daemon)
            .unwrap()
            .is_alone("b")
    );
    let (_dir, authority) = with_record("exec >/dev/null 2>&1; sleep 0.1; exit 7", COMMAND_RUN_MAX);
    assert!(
        ask(&authority, "b", Wish::Promote, By::Daemon)
            .unwrap()
            .is_alone("b")
    );
    let (_dir, authority) = with_record("kill -9 $$", COMMAND_RUN_MAX);
    let text = ask(&authority, "b", Wish::Promote, By::Daemon)
        .unwrap_err()
        .to_string();
    assert!(text.contains("killed by signal 9"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let file = FileAuthority::new(dir.path().join("r"), "vm1");
    let missing = CommandAuthority::new(file, "b", vec!["/no/such".into()], COMMAND_RUN_MAX);
    missing.adopt(&record(2, "a", &["a", "b"])).unwrap();
    let text = ask(&missing, "b", Wish::Promote, By::Daemon)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("/no/such did not fence a: it cannot be run"),
        "{text}"
    );
}
