//! Planted bugs, to see that the simulator finds them, or the guests of the lab.
//!
//! Without the feature `mutants` every [`crate::mutant`] is the constant `false` and costs nothing.
//! With it, one bug can be planted per process by name; in a daemon by the variable `BLOCKREP_MUTANT`.

use std::sync::OnceLock;

static PLANTED: OnceLock<&'static str> = OnceLock::new();

/// Name of the variable that plants one of [`OF_DAEMONS`].
const VARIABLE: &str = "BLOCKREP_MUTANT";

/// Every bug that the simulator finds, and what it does.
pub const ALL: &[(&str, &str)] = &[
    (
        "start-without-sync",
        "recovery acts on what a kill left in caches",
    ),
    (
        "ack-before-sync",
        "an epoch is reported as sealed when it is written, not when it is synced",
    ),
    (
        "skip-seal-check",
        "an epoch without its seal counts after a crash",
    ),
    (
        "apply-past-commit",
        "apply takes epochs whose commit is not durable",
    ),
    (
        "merge-epochs",
        "records after a seal go into the epoch that was sealed",
    ),
    (
        "stale-segment-accepted",
        "recovery does not look at session and placement of records",
    ),
    (
        "retry-failed-sync",
        "a sync of the journal that failed counts as if it had not",
    ),
    (
        "overlay-lost",
        "recovered epochs are committed without their contents",
    ),
    (
        "tail-before-image-sync",
        "the tail moves when apply has written, not when it has synced",
    ),
    (
        "reuse-before-metadata",
        "segments are free before the metadata that says so is durable",
    ),
    (
        "write-around-journal",
        "after a promotion writes go straight to the image",
    ),
    ("no-range-locks", "overlapping writes are in flight at once"),
    (
        "completions-not-held",
        "completions leave between PREPARE and seal",
    ),
    (
        "degrade-before-durable",
        "writes go on alone before the new history is durable",
    ),
    (
        "unsent-forgotten",
        "what a broken link did not carry is forgotten at the reconnect",
    ),
    (
        "chunk-not-locked",
        "a chunk is read for a sync beside writes to it",
    ),
    (
        "consistent-before-sync",
        "the end of a sync is durable before the image is",
    ),
    (
        "released-above-committed",
        "output is let go at the sealed epoch of one volume",
    ),
    ("flush-local-only", "a flush waits for the local disk only"),
    (
        "watermark-ignored",
        "recovery does not hold watermarks against what is whole",
    ),
    (
        "own-prefix-dropped",
        "own writes behind the last own seal are dropped after a crash",
    ),
    (
        "own-synced-unnamed",
        "metadata does not say how much of the own writes the image depends on",
    ),
    (
        "commit-by-any",
        "an epoch is committed when one volume has sealed it",
    ),
    (
        "old-copy-in-new-session",
        "a new session does not wait for copies of the one before",
    ),
    (
        "vouched-at-every-start",
        "a comparison is skipped on the operator's word after the guest has written",
    ),
    (
        "commit-without-memory",
        "an epoch is committed without the guest's memory of it",
    ),
    (
        "join-commits-sealed",
        "after a start what the disks sealed is committed, whatever the memory has",
    ),
    (
        "memory-over-session",
        "memory that waits for its disks waits on in their next session",
    ),
    (
        "promote-sealed",
        "a promotion with memory takes the epoch that the disks sealed",
    ),
    (
        "hello-before-join",
        "a primary is taken in before the memory has said what was let go",
    ),
];

/// Bugs in what only a daemon does: a living guest finds them (`cargo xtask restarts`, `migrate`).
pub const OF_DAEMONS: &[(&str, &str)] = &[
    (
        "used-index",
        "a ring goes on at its used index, whatever the in-flight table says",
    ),
    (
        "no-log",
        "what is read into the guest's memory is not in the log of a migration",
    ),
];

/// Plants what the environment names, in a build in which bugs can be planted.
///
/// # Errors
/// There is no bug of that name; in one line.
pub fn plant_from_env() -> Result<(), String> {
    if !ENABLED {
        return Ok(());
    }
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let Some((name, _)) = OF_DAEMONS.iter().find(|(name, _)| text == **name) else {
        return Err(format!("{VARIABLE}: there is no bug {}", text.display()));
    };
    eprintln!("the bug {name} is planted by {VARIABLE}");
    plant(name);
    Ok(())
}

/// Plants a bug for the rest of the process.
///
/// # Panics
/// If one is planted already.
pub fn plant(name: &'static str) {
    PLANTED.set(name).expect("one bug a process");
}

/// Whether this bug is planted.
#[must_use]
pub fn is_planted(name: &str) -> bool {
    PLANTED.get().is_some_and(|planted| *planted == name)
}

/// True when the bug of that name is planted; constant `false` without the feature `mutants`.
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutants::ENABLED && $crate::mutants::is_planted($name)
    };
}

/// Bugs can be planted in this build.
pub const ENABLED: bool = cfg!(feature = "mutants");
