//! A few rounds of the crash runner; `cargo xtask crash` runs many.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

use blockrep_tests::crash::{Phase, Plan, last_words, run_round};

/// Daemons that lose what they promised when they are killed are of no use: the phases that take
/// the least time, once each.
#[test]
fn a_round_of_each_quick_phase() {
    let phases = [
        Phase::KillPrimary,
        Phase::KillBackup,
        Phase::KillBoth,
        Phase::KillDrain,
        Phase::KillPromotion,
        Phase::Terminate,
    ];
    for (seed, phase) in (1..).zip(phases) {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::draw(seed, Some(phase));
        eprintln!("{phase}, seed {seed}");
        if let Err(error) = run_round(&plan, &dir.path().join("round")) {
            let kept = dir.keep().join("round");
            panic!(
                "{phase}, seed {seed}: {error:#}{}\nall of it: {}\nagain: crash --rounds 1 \
                 --seed {seed} --phase {phase}",
                last_words(&kept),
                kept.display()
            );
        }
    }
}
