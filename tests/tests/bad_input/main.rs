//! Bad input and faults on real daemons: every mistake is one line that says what, where and what
//! to do, with its exit code; every fault is a state with its reason. Nothing hangs or panics, and
//! no committed epoch is lost.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod damaged;
mod exchanged;
mod failing;
mod lost;
mod starting;
mod strangers;
mod superseded;
mod twice;
mod unapplied;

use blockrep_tests::harness::{Pair, Process};
use blockrep_tests::programs::run;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(90);
/// Variable that plants faults into storage.
const FAULTS: &str = "BLOCKREP_FAULTS";

/// Exit codes of the daemons, as documented.
mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const USAGE: i32 = 2;
    pub(crate) const STORE: i32 = 3;
    pub(crate) const IN_USE: i32 = 4;
    pub(crate) const STORAGE_FAILED: i32 = 6;
}

/// A pair with small images and journals.
fn small(dir: &Path) -> Pair {
    let mut pair = Pair::new(dir, 8 << 20).unwrap();
    pair.backup_flags = ["--journal-size", "32MiB"].map(String::from).to_vec();
    pair.primary_flags = ["--epoch", "10ms"].map(String::from).to_vec();
    pair
}

/// No line for people has the marks of a program that fell over, or of a dumped structure.
fn is_for_people(text: &str) {
    let marks = [
        "panicked",
        "RUST_BACKTRACE",
        "Some(",
        "None)",
        "Err(",
        "Os {",
        "kind:",
        "os error",
        "errno ",
        "\\\"",
    ];
    for mark in marks {
        assert!(!text.contains(mark), "{mark} in: {text}");
    }
}

/// The program must end with `code` and one line on stderr that has all of `words`. Gives it.
fn refused(command: &mut Command, code: i32, words: &[&str]) -> String {
    let name = Path::new(command.get_program()).file_name().unwrap();
    let name = name.to_string_lossy().into_owned();
    let ended = run(command.args(["--log", "error"]), LIMIT).unwrap();
    let text = ended.text.trim_end();
    assert_eq!(ended.code, code, "{text}");
    // Only a drawing of a wrong spec may follow the line, indented.
    let more = text.lines().skip(1).filter(|line| !line.starts_with("  "));
    assert_eq!(more.count(), 0, "more than one line: {text}");
    assert!(text.starts_with(&format!("{name}: ")), "{text}");
    is_for_people(text);
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
    text.to_owned()
}

/// Waits until the reason of a host's state has all of `words`, whatever the state.
fn wait_reason(pair: &Pair, host: &str, words: &[&str]) -> Value {
    let end = Instant::now() + LIMIT;
    loop {
        let status = pair.status(host).unwrap();
        let reason = status["group"]["reason"].as_str().unwrap().to_owned();
        if words.iter().all(|word| reason.contains(word)) {
            is_for_people(&reason);
            return status;
        }
        assert!(Instant::now() < end, "{words:?} is not in: {reason}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon ends on SIGTERM with `code`, and whatever it said was for people.
fn ends_with(process: &mut Process, code: i32) {
    process.signal(libc::SIGTERM).unwrap();
    assert_eq!(process.wait(LIMIT).unwrap(), code, "{}", process.text());
    assert!(!process.text().contains("panicked"), "{}", process.text());
}
