//! The repository against its own rules (`tests/src/tidy/`).

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

mod bytes;
mod exceptions;
mod words;

use blockrep_tests::tidy::documents::{missing_paths, unknown_options};
use blockrep_tests::tidy::packages::{directions, duplicates, outside};
use blockrep_tests::tidy::sizes::{FILE_LINES_HARD, large_files, large_functions};
use blockrep_tests::tidy::source::{impurities, leftovers, machine_paths};
use blockrep_tests::tidy::{Finding, TextFile, listed, root, tracked_files};
use exceptions::{LARGE_FILES, LARGE_FUNCTIONS, OVER_THE_HARD_LIMIT, TWICE};
use std::process::Command;

const JOURNAL: &str = include_str!("../../../blkback-proto/JOURNAL.md");
const MEMORY: &str = include_str!("../../../blkback-proto/MEMORY.md");
const PROTOCOL: &str = include_str!("../../../blkback-proto/PROTOCOL.md");

/// Folders and files without I/O, clock, threads or randomness.
const PURE: &[&str] = &[
    "blkback-proto/src/",
    "blockrep/src/config/",
    "blockrep/src/engine/",
    "blockrep/src/group/",
    "blockrep/src/io.rs",
    "blockrep/src/journal/",
    "blockrep/src/overlay/",
    "checkpointer/src/authority/decide.rs",
    "checkpointer/src/authority/rules.rs",
    "checkpointer/src/config/check.rs",
    "checkpointer/src/config/raw.rs",
    "checkpointer/src/memory/store/recovery.rs",
    "checkpointer/src/memory/stream/decoder.rs",
    "checkpointer/src/memory/stream/digest.rs",
    "checkpointer/src/memory/stream/encoder.rs",
    "checkpointer/src/memory/stream/gain.rs",
    "checkpointer/src/memory/stream/pack.rs",
    "checkpointer/src/memory/stream/pages.rs",
    "checkpointer/src/sequence/",
    "netbuf/src/announce.rs",
    "netbuf/src/gate/",
    "netbuf/src/netlink/answer.rs",
    "netbuf/src/netlink/request.rs",
    "netbuf/src/netlink/wire.rs",
    "netbuf/src/script/request.rs",
];

/// Files that only tests include.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.ends_with("/golden.rs")
}

fn sources() -> Vec<TextFile> {
    let mut files = tracked_files().unwrap();
    files.retain(|file| file.path.ends_with(".rs"));
    assert!(files.len() > 100, "the repository is not this one");
    files
}

#[track_caller]
fn assert_none(findings: &[Finding]) {
    assert!(findings.is_empty(), "\n{}", listed(findings));
}

/// A daemon that drags another one in, or a format crate that does I/O, cannot be taken apart again.
#[test]
fn packages_depend_downwards_only() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata = serde_json::from_slice(&output.stdout).unwrap();
    assert_none(&directions(&metadata));
    assert_none(&outside(&metadata));
}

/// Without a lock file every build is another program; two versions of a crate are two sets of bugs.
#[test]
fn crates_are_locked_once() {
    let files = tracked_files().unwrap();
    let lock = files
        .iter()
        .find(|file| file.path == "Cargo.lock")
        .expect("Cargo.lock is committed");
    assert_none(&duplicates(&lock.text, TWICE));
}

/// The simulator proves nothing about code that asks the real world behind its back.
#[test]
fn pure_modules_are_pure() {
    let mut seen = vec![false; PURE.len()];
    let mut findings = Vec::new();
    for file in sources().iter().filter(|file| !is_test(&file.path)) {
        for (at, pure) in PURE.iter().enumerate() {
            if file.path.starts_with(pure) {
                seen[at] = true;
                findings.extend(impurities(&file.path, &file.text));
            }
        }
    }
    assert_none(&findings);
    assert!(seen.iter().all(|s| *s), "a pure module has moved: {PURE:?}");
}

/// The offline reader of journals is worth having because it shares only the formats.
#[test]
fn the_journal_reader_stands_alone() {
    let mut findings = Vec::new();
    for file in sources()
        .iter()
        .filter(|file| file.path.starts_with("tools/src/journal/"))
    {
        for (number, line) in (1..).zip(file.text.lines()) {
            if line.contains("blockrep_host") || line.contains("blockrep::") {
                findings.push(Finding::new(
                    &file.path,
                    number,
                    "shares more than blkback-proto",
                ));
            }
        }
    }
    assert_none(&findings);
}

/// What nobody can read in one go, nobody checks.
#[test]
fn files_and_functions_are_small() {
    let files = sources();
    assert_none(&large_files(&files, LARGE_FILES));
    assert_none(&large_functions(&files, LARGE_FUNCTIONS));
    for exception in LARGE_FILES.iter().chain(LARGE_FUNCTIONS) {
        assert!(exception.why.len() > 10, "{}: no reason", exception.of);
    }
    let over: Vec<&str> = LARGE_FILES
        .iter()
        .filter(|e| e.lines_max > FILE_LINES_HARD)
        .map(|e| e.of)
        .collect();
    assert_eq!(over, OVER_THE_HARD_LIMIT, "files above 800 lines are split");
}

/// What was left for later, and paths that exist on one machine only.
#[test]
fn nothing_is_left_over() {
    let mut findings = Vec::new();
    for file in tracked_files()
        .unwrap()
        .iter()
        .filter(|file| file.path != "LICENSE")
    {
        findings.extend(leftovers(&file.path, &file.text));
        findings.extend(machine_paths(&file.path, &file.text));
    }
    assert_none(&findings);
}

/// A guide to things that are not there.
#[test]
fn documents_name_what_exists() {
    let files = tracked_files().unwrap();
    let (documents, others): (Vec<TextFile>, Vec<TextFile>) = files
        .into_iter()
        .partition(|file| file.path.ends_with(".md"));
    assert!(documents.len() >= 4, "the documents have moved");
    let root = root();
    let mut findings = Vec::new();
    for document in &documents {
        findings.extend(missing_paths(document, |path| root.join(path).exists()));
    }
    let readme: Vec<&TextFile> = documents.iter().filter(|d| d.path == "README.md").collect();
    // Of cargo itself.
    let foreign = ["release", "workspace"];
    findings.extend(unknown_options(readme[0], &others, &foreign));
    assert_none(&findings);
}
