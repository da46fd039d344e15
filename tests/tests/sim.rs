//! The simulator in the ordinary test run: some seeds, and by name the stories that must never
//! happen twice.

use blkback_proto::ids::Epoch;
use blockrep::engine::ToVolume;
use blockrep::group::{PromoteError, State};
use blockrep_tests::sim::guest::Ask;
use blockrep_tests::sim::host::{Engine, Group};
use blockrep_tests::sim::plan::{MS, Plan};
use blockrep_tests::sim::world::World;

/// Whatever hosts, links and disks do, nothing that anybody knew of may be lost.
#[test]
fn some_seeds() {
    for seed in 1..=150 {
        let run = std::panic::catch_unwind(|| blockrep_tests::sim::run(seed, false));
        let (_, result) = run.unwrap_or_else(|_| panic!("seed {seed} panicked"));
        if let Err(text) = result {
            panic!("seed {seed}: {text}");
        }
    }
}

/// A failing seed is worth nothing if it does not fail again.
#[test]
fn a_seed_is_the_same_every_time() {
    for seed in [3, 77, 1234] {
        let (first, _) = blockrep_tests::sim::run(seed, false);
        let (second, _) = blockrep_tests::sim::run(seed, false);
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }
}

/// Two hosts, a silent guest, protected.
fn protected(plan: Plan) -> World {
    let mut world = World::new(plan, false);
    world.guest.silent = true;
    world.start(1);
    world.start(0);
    run_until(&mut world, 10_000, is_protected);
    assert!(is_protected(&world));
    world
}

fn is_protected(world: &World) -> bool {
    match &world.hosts[0].group {
        Group::Primary(group) => group.standing().state == State::Protected,
        _ => false,
    }
}

fn run_until(world: &mut World, ms: u64, done: impl Fn(&World) -> bool) {
    let until = world.now + ms * MS;
    world.run(until, done);
    good(world);
}

fn run_for(world: &mut World, ms: u64) {
    run_until(world, ms, |_| false);
}

fn good(world: &mut World) {
    if let Some(text) = world.take_violation() {
        panic!("{text}");
    }
}

fn write(world: &mut World, host: usize, volume: usize, first: u64, count: u64) -> u64 {
    let id = world.guest.number();
    let ask = Ask::Write { id, fua: false };
    world
        .ask_at(host, volume, ask, first, count)
        .expect("there is memory");
    id
}

fn answered(world: &World) -> bool {
    world.guest.outstanding.is_empty()
}

fn settle(world: &mut World) {
    run_until(world, 10_000, answered);
    assert!(answered(world), "all requests are answered");
}

fn committed(world: &World) -> Epoch {
    match &world.hosts[1].group {
        Group::Backup(group) => group.committed(),
        _ => Epoch::NONE,
    }
}

/// Cuts, and waits until the backup has the epoch.
fn commit(world: &mut World) -> Epoch {
    world.cut_replies.clear();
    world.cut_epoch(1);
    run_until(world, 1000, |w| !w.cut_replies.is_empty());
    let epoch = world.cut_replies[0].1;
    run_until(world, 1000, |w| committed(w) >= epoch);
    assert!(committed(world) >= epoch, "epoch {epoch} is committed");
    // The primary hears of it.
    run_for(world, 2);
    epoch
}

fn promote(world: &mut World, accept_suspect: bool) -> Result<Epoch, PromoteError> {
    world.promote(true, accept_suspect);
    run_until(world, 10_000, |w| w.promote_reply.is_some());
    world
        .promote_reply
        .clone()
        .expect("answered")
        .map(|p| p.epoch)
}

/// The overlay of a promoted backup held an older write of the sector than the image got directly:
/// apply then put the older one over the newer one.
#[test]
fn write_after_promotion_over_unapplied_journal_then_crash_then_read() {
    for (seed, power) in (0..12).map(|seed| (seed, seed % 2 == 0)) {
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

/// One volume of a group was durable at n+1, the other at n: the guest's file system on the one
/// spoke of blocks that the other did not have.
#[test]
fn group_with_volume_a_sealed_at_n_plus_1_and_b_at_n() {
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

/// One volume was synced before the other's link came up; the first epoch that both carried was empty
/// and left no trace in the other's journal, so that the group was no epoch after a power cut.
#[test]
fn the_first_epoch_that_all_volumes_carry_was_an_empty_one() {
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
#[test]
fn ack_of_n_plus_1_lost_and_the_primary_reuses_n_plus_1() {
    for after_ops in 0..60 {
        let mut plan = Plan::calm(u64::from(after_ops), 2);
        plan.loss = blockrep::config::LossPolicy::Degrade;
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
        run_until(&mut world, 30_000, |w| {
            w.stats.crashes >= 2 && is_protected(w)
        });
        assert!(
            is_protected(&world),
            "operation {after_ops}: protected again"
        );
        commit(&mut world);
        world.probe();
        good(&mut world);
    }
}

/// Two overlapping writes were in flight at once: the image kept the one, the journal the other.
#[test]
fn two_overlapping_writes_in_flight() {
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
#[test]
fn cut_of_a_then_write_on_a_completes_then_dependent_write_on_b_then_cut_of_b() {
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
#[test]
fn journal_full_while_the_hypervisor_drains() {
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

/// A record of the last acknowledged epoch had rotted; the backup was promoted without it as if the
/// epoch had never been.
#[test]
fn bad_record_in_the_last_acknowledged_epoch() {
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
#[test]
fn a_former_primary_is_refused() {
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
    assert_ne!(group.standing().state, State::Protected);
    if matches!(world.hosts[1].group, Group::Backup(_)) {
        assert_eq!(
            promote(&mut world, false),
            Ok(epoch),
            "a second request changes nothing"
        );
    }
}
