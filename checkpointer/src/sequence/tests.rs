//! What could go wrong: something is said that the backup does not know, memory and disk are of two moments, a
//! page is forgotten, the guest stays paused, or protection never comes back. A world in which everything may
//! be late, fail or be lost drives the sequence by seed.

mod before;
mod early;
mod judge;
mod parts;
mod world;

use super::plant::Plant;
use super::{Attempt, Event, OnLoss, Order, Part, Sequence, Settings};
use blkback_proto::ids::Epoch;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use world::World;

const TURNS: usize = 3_000;
const CALM_TURNS: usize = 3_000;

/// Upset, then calm: in the calm a guest that is not over is protected again, and goes on.
fn live(seed: u64, plant: Option<Plant>) -> World {
    let mut world = World::new(seed, plant);
    for _ in 0..TURNS {
        world.turn();
    }
    world.is_calm = true;
    for _ in 0..CALM_TURNS {
        world.turn();
    }
    let before = (world.committed(), world.released);
    for _ in 0..CALM_TURNS {
        world.turn();
    }
    if ["over", "open"].contains(&world.state()) {
        return world;
    }
    let after = (world.committed(), world.released);
    let lives = before.0 < after.0 && before.1 < after.1;
    assert!(lives, "{before:?}, then {after:?}: {:?}", world.sequence);
    let goes_on = (0..200).any(|_| {
        world.turn();
        world.guest_runs()
    });
    assert!(goes_on, "the guest stays paused: {:?}", world.sequence);
    world
}

#[test]
fn whatever_happens_nothing_is_said_that_the_backup_does_not_know() {
    let mut states = BTreeMap::<&str, u64>::new();
    let (mut said, mut committed, mut handed_over, mut early) = (0, 0, 0, 0);
    for seed in 0..400 {
        let world = catch_unwind(|| live(seed, None)).unwrap_or_else(|panic| {
            eprintln!("seed {seed}");
            resume_unwind(panic);
        });
        said += world.said;
        committed += world.committed();
        handed_over += world.handed_over;
        early += world.early;
        for (state, turns) in &world.states {
            *states.entry(state).or_default() += turns;
        }
    }
    println!(
        "{committed} checkpoints, {early} cut early, {said} frames released, {handed_over} handed over; {states:?}"
    );
    let all = [
        "copying",
        "ending",
        "held",
        "open",
        "over",
        "protected",
        "waiting",
    ];
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), all);
    assert!(committed > 400 && said > 4_000 && early > 400 && handed_over > 10);
}

/// A world that finds no planted bug proves nothing.
#[test]
fn every_planted_bug_is_found() {
    let all = [
        Plant::NoAck,
        Plant::NoDisk,
        Plant::LateAnswers,
        Plant::NoTakeBack,
        Plant::Spoiled,
        Plant::CutTwice,
        Plant::Unsure,
        Plant::NoAbandon,
        Plant::NoLimit,
        Plant::Resurrects,
        Plant::EarlyFlood,
        Plant::EarlyAtOnce,
    ];
    for plant in all {
        let finds =
            |seed: &u64| catch_unwind(AssertUnwindSafe(|| live(*seed, Some(plant)))).is_err();
        let found = (0..400).find(finds);
        println!("{plant:?}: seed {found:?}");
        assert!(found.is_some(), "{plant:?} was not found in 400 seeds");
    }
}

/// Output comes back with a cut that nobody here knows of: a plug refuses another, and the guest would be held for ever.
#[test]
fn a_cut_that_was_found_is_let_go_by_a_later_checkpoint() {
    for output_cuts_max in [1, 4] {
        a_found_cut_is_let_go(output_cuts_max);
    }
}

/// With a relay there may be more of them, up to all that there is room for.
fn a_found_cut_is_let_go(output_cuts_max: usize) {
    let settings = Settings {
        interval_ns: 10,
        pause_max_ns: 1_000,
        resume_max_ns: 1_000,
        answer_max_ns: 10_000,
        in_flight_max: 2,
        output_cuts_max,
        on_loss: OnLoss::Hold,
    };
    let mut sequence = Sequence::new(settings, 0);
    sequence.found_output_cut(Epoch(5));
    let mut now = 0;
    let mut step = |event| {
        now += 11;
        let mut orders = Vec::new();
        sequence.step(now, event, &mut orders);
        orders
    };
    for part in [Part::Memory, Part::Disk, Part::Output] {
        step(Event::Back {
            part,
            has_base: true,
        });
    }
    step(Event::FirstCopied(Attempt(1), Ok(())));
    let attempt = Attempt(2);
    assert_eq!(step(Event::Tick), [Order::Pause(attempt)]);
    step(Event::Paused(attempt, Ok(())));
    step(Event::DiskCut(attempt, Ok(Epoch(6))));
    let orders = step(Event::Collected(attempt, Ok(())));
    assert_eq!(orders, [Order::Resume(attempt)], "no cut of the output");
    assert_eq!(
        step(Event::Resumed(attempt, Ok(()))),
        [Order::Send(attempt, Epoch(6))]
    );
    step(Event::MemoryAcked(Epoch(6)));
    let orders = step(Event::DiskCommitted(Epoch(6)));
    assert!(orders.contains(&Order::Release(Epoch(5))), "{orders:?}");
}
