//! Planted bugs, to see that the simulator finds them.
//!
//! Without the feature `mutants` every [`crate::mutant`] is the constant `false` and costs nothing.
//! With it, one bug can be planted per process by name.

use std::sync::OnceLock;

static PLANTED: OnceLock<&'static str> = OnceLock::new();

/// Every bug there is, and what it does.
pub const ALL: &[(&str, &str)] = &[
    ("start-without-sync", "recovery acts on what a kill left in caches"),
];

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
