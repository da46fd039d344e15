//! Epochs of a group that is protected.

use super::*;

/// One volume of a group was durable at n+1, the other at n: the guest's file system on the one
/// spoke of blocks that the other did not have.
pub(super) fn group_with_volume_a_sealed_at_n_plus_1_and_b_at_n() {
    for seed in 0..12 {
        let mut world = protected(Plan::calm(seed, 2));
        write(&mut world, 0, 0, 0, 4);
        write(&mut world, 0, 1, 0, 4);
        settle(&mut world);
        let epoch = commit(&mut world);
        write(&mut world, 0, 0, 0, 8);
        write(&mut world, 0, 1, 0, 8);
        settle(&mut world);
        let late = world.hosts[0].slots[1].conn.expect("connected");
        world.sever(late, true);
        world.cut_epoch(2);
        let sealed = |w: &World| match &w.hosts[1].slots[0].engine {
            Engine::Backup(engine) => engine.epochs().0 > epoch,
            _ => false,
        };
        run_until(&mut world, 100, sealed);
        assert!(sealed(&world), "volume 0 sealed the next epoch");
        world.crash(0, true, None);
        if seed % 2 == 0 {
            world.crash(1, true, None);
            world.start(1);
            good(&mut world);
        }
        assert_eq!(promote(&mut world, false), Ok(epoch));
        for volume in 0..2 {
            world.ask_at(1, volume, Ask::Read, 0, 8);
        }
        settle(&mut world);
    }
}

/// Two overlapping writes were in flight at once: the image kept the one, the journal the other.
pub(super) fn two_overlapping_writes_in_flight() {
    for seed in 0..40 {
        let mut world = protected(Plan::calm(seed, 1));
        for _ in 0..6 {
            write(&mut world, 0, 0, 10, 8);
            write(&mut world, 0, 0, 14, 8);
            world.ask_at(0, 0, Ask::Write { id: 0, fua: false }, 12, 4);
        }
        settle(&mut world);
        world.ask_at(0, 0, Ask::Read, 8, 16);
        settle(&mut world);
        commit(&mut world);
        world.oracle.promise[0] = world.oracle.volumes[0].position();
        world.probe();
        good(&mut world);
        world.crash(0, true, None);
        promote(&mut world, false).expect("promoted");
        world.ask_at(1, 0, Ask::Read, 8, 16);
        settle(&mut world);
    }
}

/// Volume A had cut, a write on it completed in the next epoch, the guest wrote on B because of that,
/// and B's write was in the epoch before: the effect without its cause.
pub(super) fn cut_of_a_then_write_on_a_completes_then_dependent_write_on_b_then_cut_of_b() {
    for seed in 0..40 {
        let mut world = protected(Plan::calm(seed, 2));
        world.cut_epoch(1);
        for turn in 0..30u64 {
            // Each asked for when the one before it on the other volume is answered.
            write(&mut world, 0, (turn % 2) as usize, turn, 1);
            if turn % 5 == 4 {
                world.cut_epoch(turn);
            }
            settle(&mut world);
        }
        commit(&mut world);
        world.probe();
        good(&mut world);
    }
}

/// The hypervisor stopped the guest and waited for its writes, the writes waited for room in the
/// journal, room for a commit, and the commit for the guest to be stopped.
pub(super) fn journal_full_while_the_hypervisor_drains() {
    for seed in 0..6 {
        let mut plan = Plan::calm(seed, 1);
        plan.apply_rate = Some(1);
        plan.size_bytes = 512 * 4096;
        plan.pressure_ns = 100_000 * MS;
        plan.reserve_bytes = 2 << 20;
        let mut world = protected(plan);
        // No commit makes room.
        world.hosts[1].slow = 1 << 30;
        let mut asked = 0;
        while answered(&world) {
            write(&mut world, 0, 0, asked % 32 * 128, 128);
            asked += 1;
            run_until(&mut world, 20, answered);
            assert!(asked < 2000, "the window fills");
        }
        for place in 0..8 {
            write(&mut world, 0, 0, place * 128, 128);
        }
        run_for(&mut world, 20);
        assert!(!answered(&world), "writes wait for room");
        world.tell(0, 0, ToVolume::Drain);
        run_until(&mut world, 200, answered);
        assert!(answered(&world), "admitted writes end without a commit");
    }
}
