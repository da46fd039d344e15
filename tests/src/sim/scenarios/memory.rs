//! The guest's memory beside the disks of its backup.

use super::*;
use crate::sim::memory::Wish;
use blockrep::group::memory::MemoryStanding;

/// Protected, with checkpoints that let output go.
fn guarded(seed: u64, volumes: usize) -> World {
    let mut plan = Plan::calm(seed, volumes);
    plan.ack = blockrep::config::AckMode::Local;
    plan.loss = LossPolicy::Degrade;
    plan.checkpoint_ns = Some(3 * MS);
    let mut world = protected(plan);
    world.start_memory();
    checkpoints(&mut world, 2);
    world
}

/// Runs until that many more checkpoints have let output go.
fn checkpoints(world: &mut World, count: u64) {
    let enough = world.stats.checkpoints + count;
    run_until(world, 10_000, |w| w.stats.checkpoints >= enough);
    assert!(world.stats.checkpoints >= enough, "checkpoints are made");
}

/// A guest that stands still writes nothing.
fn write_running(world: &mut World, first: u64) {
    run_until(world, 100, |w| !w.guest.paused);
    write(world, 0, 0, first, 4);
}

fn standing(world: &World) -> Option<MemoryStanding> {
    match &world.hosts[1].group {
        Group::Backup(group) => group.memory(),
        _ => None,
    }
}

fn is_joined(world: &World) -> bool {
    standing(world).is_some_and(|memory| memory.joined)
}

fn promote_as(world: &mut World, wish: Wish) -> Result<Epoch, PromoteError> {
    world.memory.wish = Some(wish);
    // A kill in the middle of an epoch leaves traces of it that may be more.
    promote(world, true)
}

/// The backup's daemon was killed when it had committed an epoch and the holder of its memory had not heard so; the
/// primary had, and had let output go.
pub(super) fn backup_daemon_restarted_between_a_commit_and_the_holders_note() {
    for seed in 0..20 {
        let mut world = guarded(seed, 1 + seed as usize % 2);
        write_running(&mut world, seed);
        let is_behind = |w: &World| {
            let at = standing(w).and_then(|memory| memory.at);
            at.is_some_and(|at| at > w.memory.store.committed())
        };
        run_until(&mut world, 1000, is_behind);
        assert!(is_behind(&world), "the group commits first");
        let epoch = committed(&world);
        world.run(world.now + seed * MS / 20, |_| false);
        world.crash(1, false, None);
        world.crash(0, true, None);
        world.start(1);
        run_until(&mut world, 1000, is_joined);
        assert!(committed(&world) >= epoch, "it is committed again");
        let promoted = promote_as(&mut world, Wish::WithMemory).expect("memory is whole");
        assert!(promoted >= epoch);
    }
}

/// The disks' link breaks while a checkpoint is cut: its memory is whole, the disks never seal it.
fn memory_without_disks(world: &mut World) -> bool {
    write_running(world, 1);
    settle(world);
    run_until(world, 1000, |w| w.guest.paused);
    for volume in 0..world.plan.volumes {
        let conn = world.hosts[0].slots[volume].conn.expect("connected");
        world.sever(conn, true);
    }
    let waits = |w: &World| standing(w).is_some_and(|memory| memory.waiting > 0);
    run_until(world, 30, waits);
    // What waits must be above what the disks have.
    waits(world)
}

/// Nothing is committed while the disks seal epochs of a new session and no memory comes.
fn nothing_is_committed_without_memory(world: &mut World) {
    let before = committed(world);
    world.cut_memory_link(1_000_000 * MS);
    let is_up = |w: &World| match &w.hosts[1].group {
        Group::Backup(group) => {
            let state = group.standing().state;
            matches!(state, State::Following | State::Inconsistent)
                && matches!(&w.hosts[0].group, Group::Primary(p) if p.standing().state == State::Resyncing)
        }
        _ => false,
    };
    run_until(world, 10_000, is_up);
    for token in 0..4 {
        world.cut_epoch(token);
        run_for(world, 5);
    }
    assert_eq!(committed(world), before, "there is no memory of these");
    world.memory.down_until = 0;
    run_until(world, 20_000, is_protected);
    assert!(is_protected(world), "protected again");
    checkpoints(world, 2);
    world.crash(0, true, None);
    promote_as(world, Wish::WithMemory).expect("memory is whole");
}

/// Memory was whole of an epoch that the disks never sealed; the primary's daemon was started anew and gave its number
/// to another one, of which there was no memory.
pub(super) fn a_number_is_used_again_with_memory_of_the_old_one_whole() {
    let mut waited = 0;
    for seed in 0..12 {
        let mut world = guarded(seed, 1);
        waited += u32::from(memory_without_disks(&mut world));
        world.crash(0, false, None);
        world.start(0);
        nothing_is_committed_without_memory(&mut world);
    }
    assert!(waited > 6, "memory waited for its disks");
}

/// The same with a primary that goes on: what was cut before the session began is none of its disks.
pub(super) fn memory_of_an_epoch_cut_before_the_session_of_the_disks() {
    let mut waited = 0;
    for seed in 0..12 {
        let mut world = guarded(seed, 1 + seed as usize % 2);
        waited += u32::from(memory_without_disks(&mut world));
        nothing_is_committed_without_memory(&mut world);
    }
    assert!(waited > 6, "memory waited for its disks");
}

/// The backup's host lost its power: memory is gone, and the disks are what is left.
pub(super) fn the_backup_loses_power_and_the_disks_alone_are_promoted() {
    for seed in 0..12 {
        let mut world = guarded(seed, 1 + seed as usize % 2);
        write_running(&mut world, seed);
        checkpoints(&mut world, 1);
        let epoch = committed(&world);
        world.crash(0, true, None);
        world.crash(1, true, None);
        world.start(1);
        if seed % 2 == 0 {
            run_until(&mut world, 1000, is_joined);
            assert!(committed(&world) >= epoch, "the disks went on alone");
        }
        let refused = promote_as(&mut world, Wish::Plain);
        assert!(matches!(refused, Err(PromoteError::Memory(_))));
        let promoted = promote_as(&mut world, Wish::DiskOnly).expect("the disks are whole");
        assert!(promoted >= epoch);
    }
}

/// Images were being compared, so that they were no epoch, while memory of an epoch before was whole.
pub(super) fn images_are_compared_with_old_memory_whole() {
    for seed in 0..12 {
        let mut world = guarded(seed, 1);
        let conn = world.hosts[0].slots[0].conn.expect("connected");
        world.sever(conn, false);
        run_until(&mut world, 1000, |w| !is_protected(w));
        for place in 0..20 {
            write_running(&mut world, place * 40);
        }
        let is_mixed = |w: &World| match &w.hosts[1].group {
            Group::Backup(group) => group.standing().state == State::Inconsistent,
            _ => false,
        };
        run_until(&mut world, 10_000, is_mixed);
        assert!(is_mixed(&world), "it is compared");
        world.crash(0, true, None);
        if seed % 2 == 0 {
            world.crash(1, false, None);
            world.start(1);
            run_until(&mut world, 1000, is_joined);
        }
        let refused = promote_as(&mut world, Wish::WithMemory);
        if seed % 2 == 0 && refused.is_ok() {
            // Killed before anything was changed: it is the epoch from before, and its memory is looked at.
            continue;
        }
        assert!(
            matches!(refused, Err(PromoteError::Inconsistent { .. })),
            "{refused:?}"
        );
        world.start(0);
        run_until(&mut world, 20_000, is_protected);
        assert!(is_protected(&world), "protected again");
        checkpoints(&mut world, 2);
    }
}

/// The backup's daemon was started anew while the holder was away: a primary that was taken in then would have had
/// everything dropped that the memory knows to be let go.
pub(super) fn backup_daemon_restarted_while_the_holder_is_away() {
    for seed in 0..12 {
        let mut world = guarded(seed, 1 + seed as usize % 2);
        write_running(&mut world, seed);
        checkpoints(&mut world, 1);
        let epoch = committed(&world);
        world.holder_dies();
        world.crash(1, false, None);
        world.start(1);
        run_for(&mut world, 400);
        assert_eq!(
            committed(&world),
            Epoch::NONE,
            "nobody has said what counts"
        );
        let has_session = |slot: &crate::sim::host::Slot| match &slot.engine {
            Engine::Backup(engine) => engine.has_session(),
            _ => false,
        };
        assert!(!world.hosts[1].slots.iter().any(has_session));
        world.crash(0, true, None);
        world.memory_in_peace();
        run_until(&mut world, 1000, is_joined);
        let promoted = promote_as(&mut world, Wish::WithMemory).expect("memory is whole");
        assert!(promoted >= epoch);
    }
}
