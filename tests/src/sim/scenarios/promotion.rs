//! Promotion, and what the new primary writes.

use super::*;

/// A backup was promoted with much to apply, slowly, and has answered writes of its own since.
fn promoted_with_a_backlog(seed: u64) -> World {
    let mut plan = Plan::calm(seed, 1);
    plan.apply_rate = Some(1 << 17);
    let mut world = protected(plan);
    for place in 0..600 {
        write(&mut world, 0, 0, place * 3, 1);
        run_until(&mut world, 1000, |w| w.guest.outstanding.len() < 32);
    }
    settle(&mut world);
    commit(&mut world);
    world.crash(0, true, None);
    promote(&mut world, false).expect("promoted");
    for place in 0..40 {
        write(&mut world, 1, 0, place * 3, 2);
    }
    settle(&mut world);
    world
}

/// The overlay of a promoted backup held an older write of the sector than the image got directly:
/// apply then put the older one over the newer one.
pub(super) fn write_after_promotion_over_unapplied_journal_then_crash_then_read() {
    for (seed, power) in (0..12).map(|seed| (seed, seed % 2 == 0)) {
        let mut world = promoted_with_a_backlog(seed);
        world.ask_at(1, 0, Ask::Flush, 0, 1);
        settle(&mut world);
        let applying = matches!(world.hosts[1].slots[0].engine, Engine::Backup(_));
        assert!(applying, "there is something left to apply");
        world.crash(1, power, None);
        world.start(1);
        good(&mut world);
        assert!(
            world.stats.rows.contains_key("R7-own"),
            "its own writes were in the journal"
        );
        for place in 0..40 {
            world.ask_at(1, 0, Ask::Read, place * 3, 3);
        }
        settle(&mut world);
        let plain = |w: &World| matches!(w.hosts[1].slots[0].engine, Engine::Primary(_));
        run_until(&mut world, 60_000, plain);
        world.ask_at(1, 0, Ask::Read, 0, 2048);
        settle(&mut world);
    }
}

/// A record of the last acknowledged epoch had rotted; the backup was promoted without it as if the
/// epoch had never been.
pub(super) fn bad_record_in_the_last_acknowledged_epoch() {
    let mut doubts = 0;
    for seed in 0..30 {
        let mut world = protected(Plan::calm(seed, 1));
        for _ in 0..3 {
            for place in 0..4 {
                write(&mut world, 0, 0, place * 8, 5);
            }
            settle(&mut world);
            commit(&mut world);
        }
        world.crash(0, true, None);
        world.crash(1, true, None);
        world.rot();
        world.start(1);
        good(&mut world);
        if world.hosts[1].refused {
            continue;
        }
        // The simulator holds every promotion against what was acknowledged.
        if let Err(PromoteError::Suspect { .. }) = promote(&mut world, false) {
            doubts += 1;
            promote(&mut world, true).expect("the operator's word");
        }
    }
    assert!(doubts > 0, "the last epoch was hit");
}

/// A backup that had been promoted took its former primary in again and lost what it wrote since.
pub(super) fn a_former_primary_is_refused() {
    let mut world = protected(Plan::calm(1, 2));
    write(&mut world, 0, 0, 0, 4);
    settle(&mut world);
    commit(&mut world);
    world.crash(0, false, None);
    let epoch = promote(&mut world, false).expect("promoted");
    write(&mut world, 1, 0, 0, 4);
    settle(&mut world);
    world.start(0);
    run_for(&mut world, 500);
    let Group::Primary(group) = &world.hosts[0].group else {
        panic!("the old primary runs")
    };
    assert_eq!(group.standing().state, State::Superseded);
    if matches!(world.hosts[1].group, Group::Backup(_)) {
        assert_eq!(
            promote(&mut world, false),
            Ok(epoch),
            "a second request changes nothing"
        );
    }
}

/// A promoted side was killed before it had sealed what it had answered: the answered writes stood in
/// its journal and did not count.
pub(super) fn killed_before_an_own_seal() {
    for seed in 0..12 {
        let mut world = promoted_with_a_backlog(seed);
        world.crash(1, false, None);
        world.start(1);
        good(&mut world);
        for place in 0..40 {
            world.ask_at(1, 0, Ask::Read, place * 3, 3);
        }
        settle(&mut world);
    }
}

/// A promoted side was killed, started again, and killed while it brought its own writes into the
/// image; one of them had rotted meanwhile, and the shorter prefix of what it wrote passed for the whole.
pub(super) fn rot_in_an_own_write_that_is_being_applied() {
    let mut refused = 0;
    for seed in 0..12 {
        let mut world = promoted_with_a_backlog(seed);
        world.crash(1, false, None);
        world.start(1);
        good(&mut world);
        let applied = |w: &World| match &w.hosts[1].slots[0].engine {
            Engine::Backup(engine) => engine.applied_bytes() > 20 * 512,
            _ => true,
        };
        run_until(&mut world, 10_000, applied);
        run_for(&mut world, 1 + seed % 4);
        if !matches!(world.hosts[1].slots[0].engine, Engine::Backup(_)) {
            continue;
        }
        world.crash(1, false, None);
        world.rot_at_the_end(0);
        world.start(1);
        good(&mut world);
        refused += u32::from(world.hosts[1].refused);
    }
    assert!(refused > 0, "own writes were being applied");
}

/// Little was left to apply at a promotion, so writes waited for it: as long as the throttle took that
/// the backup had been given for quieter times.
pub(super) fn writes_after_promotion_wait_for_no_throttle() {
    let mut plan = Plan::calm(1, 1);
    plan.apply_rate = Some(1);
    let mut world = protected(plan);
    for place in 0..100 {
        write(&mut world, 0, 0, place * 3, 1);
        run_until(&mut world, 1000, |w| w.guest.outstanding.len() < 32);
    }
    settle(&mut world);
    commit(&mut world);
    world.crash(0, true, None);
    promote(&mut world, false).expect("promoted");
    write(&mut world, 1, 0, 0, 2);
    run_until(&mut world, 1000, answered);
    assert!(answered(&world), "a write after the promotion is answered");
}
