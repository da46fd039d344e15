//! Sessions: how they begin, and what is left of the one before.

use super::*;

/// One volume was synced before the other's link came up; the first epoch that both carried was empty
/// and left no trace in the other's journal, so that the group was no epoch after a power cut.
pub(super) fn the_first_epoch_that_all_volumes_carry_was_an_empty_one() {
    for seed in 0..60 {
        let mut plan = Plan::calm(seed, 2);
        plan.identical = true;
        let mut world = World::new(plan, false);
        world.start(1);
        world.start(0);
        write(&mut world, 0, 1, 0, 8);
        run_until(&mut world, 10_000, is_protected);
        for volume in 0..2 {
            write(&mut world, 0, volume, 0, 64);
        }
        world.cut_epoch(1);
        for _ in 0..30 {
            world.run(world.now + MS / 50, |_| false);
            world.probe();
            good(&mut world);
        }
    }
}

/// The backup had sealed n+1, the primary never heard of it, started again and numbered other writes
/// n+1: two epochs of one number, and a backup that was a bit of both.
pub(super) fn ack_of_n_plus_1_lost_and_the_primary_reuses_n_plus_1() {
    let mut crashed = 0;
    for after_ops in 0..60 {
        let mut plan = Plan::calm(u64::from(after_ops), 2);
        plan.loss = LossPolicy::Degrade;
        let mut world = protected(plan);
        write(&mut world, 0, 0, 0, 4);
        settle(&mut world);
        commit(&mut world);
        for volume in 0..2 {
            write(&mut world, 0, volume, 0, 8);
        }
        settle(&mut world);
        let late = world.hosts[0].slots[0].conn.expect("connected");
        world.sever(late, true);
        world.cut_epoch(2);
        run_for(&mut world, 3);
        world.crash(0, true, None);
        world.start(0);
        for volume in 0..2 {
            write(&mut world, 0, volume, 0, 2);
        }
        // The backup dies at some moment of the new session, and comes back.
        world.crash_after = Some((1, after_ops, after_ops % 2 == 0, Some(MS)));
        run_until(&mut world, 1000, |w| w.stats.crashes >= 2);
        // The primary takes a moment to hear of it.
        run_for(&mut world, 20);
        run_until(&mut world, 30_000, is_protected);
        assert!(
            is_protected(&world),
            "operation {after_ops}: protected again"
        );
        // A session that came up with fewer operations: nothing is left to crash in.
        world.crash_after = None;
        crashed += u32::from(world.stats.crashes >= 2);
        commit(&mut world);
        world.probe();
        good(&mut world);
    }
    assert!(crashed >= 40, "{crashed} of 60");
}

/// A chunk was on its way into the image when the link broke. The next session compared, found it
/// equal to what the primary had by then, and the old copy landed on top.
pub(super) fn a_copy_of_a_lost_session_lands_after_the_comparison() {
    let mut copied = 0;
    for seed in 0..40 {
        let mut plan = Plan::calm(seed, 1);
        plan.loss = LossPolicy::Degrade;
        let mut world = World::new(plan, false);
        world.guest.silent = true;
        world.start(1);
        world.start(0);
        // Copies of the first sync take long.
        let has = |w: &World, what: fn(&Op<HeapMemory>) -> bool| {
            w.hosts[1].slots[0].ops.values().any(|o| what(&o.op))
        };
        let comparing = |w: &World| {
            has(w, |o| {
                matches!(
                    o,
                    Op::Read {
                        target: Target::Image,
                        ..
                    }
                )
            })
        };
        let copying = |w: &World| {
            has(w, |o| {
                matches!(
                    o,
                    Op::Write {
                        target: Target::Image,
                        ..
                    }
                )
            })
        };
        world.run(10_000 * MS, comparing);
        world.hosts[1].slow = 200;
        world.run(10_000 * MS, copying);
        if !copying(&world) {
            // The images were equal from the start.
            continue;
        }
        copied += 1;
        world.hosts[1].slow = 1;
        let conn = world.hosts[0].slots[0].conn.expect("connected");
        world.sever(conn, false);
        for place in 0..16 {
            write(&mut world, 0, 0, place * 128, 128);
        }
        run_until(&mut world, 30_000, is_protected);
        settle(&mut world);
        commit(&mut world);
        world.probe();
        good(&mut world);
    }
    assert!(copied > 10, "the sync copies");
}

/// Segments were written again before the metadata was durable that says so: after a power cut the
/// tail stood in the middle of another lap.
pub(super) fn the_ring_goes_round() {
    for seed in 0..3 {
        let mut plan = Plan::calm(seed, 1);
        plan.size_bytes = 512 * 8192;
        plan.reserve_bytes = 0;
        let mut world = protected(plan);
        let (mut asked, mut looked) = (0, 0);
        while asked < 1000 {
            // More than there is room for, so that what becomes free is taken at once.
            while world.guest.outstanding.len() < 48 {
                write(&mut world, 0, 0, asked % 64 * 128, 128);
                asked += 1;
            }
            world.run(world.now + MS / 50, |_| false);
            let writes_meta = |o: &InFlight| matches!(o.op, Op::Sync { target } | Op::Write { target, .. } if target == Target::VolumeMeta);
            if world.hosts[1].slots[0].ops.values().any(writes_meta) {
                world.probe();
                looked += 1;
            }
            good(&mut world);
        }
        settle(&mut world);
        commit(&mut world);
        assert!(looked > 10, "the tail moves");
    }
}

/// The flag that vouches for equal images stayed on the command line: the guest wrote without a
/// backup, the primary was started again, and the blank backup was taken for equal.
pub(super) fn the_word_for_equal_images_at_a_second_start() {
    let mut plan = Plan::calm(1, 1);
    plan.identical = true;
    plan.loss = LossPolicy::Degrade;
    let mut world = World::new(plan, false);
    world.guest.silent = true;
    world.start(0);
    run_for(&mut world, 50);
    write(&mut world, 0, 0, 0, 8);
    settle(&mut world);
    world.ask_at(0, 0, Ask::Flush, 0, 1);
    settle(&mut world);
    world.crash(0, false, None);
    world.start(1);
    world.start(0);
    run_until(&mut world, 10_000, is_protected);
    write(&mut world, 0, 0, 64, 8);
    settle(&mut world);
    commit(&mut world);
    world.probe();
    good(&mut world);
}
