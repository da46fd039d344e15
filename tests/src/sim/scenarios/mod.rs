//! Stories that must never happen twice, by name: each panics if it does.

mod cuts;
mod memory;
mod promotion;
mod sessions;

use super::guest::Ask;
use super::host::{Engine, Group, InFlight};
use super::plan::{MS, Plan};
use super::world::World;
use blkback_proto::ids::Epoch;
use blockrep::config::LossPolicy;
use blockrep::engine::ToVolume;
use blockrep::group::{PromoteError, State};
use blockrep::io::{HeapMemory, Op, Target};

/// A story and its name.
pub type Scenario = (&'static str, fn());

macro_rules! scenarios {
    ($($module:ident :: $name:ident,)*) => {
        /// All of them.
        pub const ALL: &[Scenario] = &[$((stringify!($name), $module::$name),)*];
    };
}

scenarios! {
    cuts::group_with_volume_a_sealed_at_n_plus_1_and_b_at_n,
    cuts::two_overlapping_writes_in_flight,
    cuts::cut_of_a_then_write_on_a_completes_then_dependent_write_on_b_then_cut_of_b,
    cuts::journal_full_while_the_hypervisor_drains,
    promotion::write_after_promotion_over_unapplied_journal_then_crash_then_read,
    promotion::bad_record_in_the_last_acknowledged_epoch,
    promotion::a_former_primary_is_refused,
    sessions::the_first_epoch_that_all_volumes_carry_was_an_empty_one,
    sessions::ack_of_n_plus_1_lost_and_the_primary_reuses_n_plus_1,
    promotion::killed_before_an_own_seal,
    promotion::rot_in_an_own_write_that_is_being_applied,
    promotion::writes_after_promotion_wait_for_no_throttle,
    sessions::a_copy_of_a_lost_session_lands_after_the_comparison,
    sessions::the_ring_goes_round,
    sessions::the_word_for_equal_images_at_a_second_start,
    memory::backup_daemon_restarted_between_a_commit_and_the_holders_note,
    memory::a_number_is_used_again_with_memory_of_the_old_one_whole,
    memory::memory_of_an_epoch_cut_before_the_session_of_the_disks,
    memory::the_backup_loses_power_and_the_disks_alone_are_promoted,
    memory::images_are_compared_with_old_memory_whole,
    memory::backup_daemon_restarted_while_the_holder_is_away,
}

/// Two hosts, a silent guest, protected.
pub(super) fn protected(plan: Plan) -> World {
    let mut world = World::new(plan, false);
    world.guest.silent = true;
    world.start(1);
    world.start(0);
    run_until(&mut world, 10_000, is_protected);
    assert!(is_protected(&world));
    world
}

pub(super) fn is_protected(world: &World) -> bool {
    match &world.hosts[0].group {
        Group::Primary(group) => group.standing().state == State::Protected,
        _ => false,
    }
}

pub(super) fn run_until(world: &mut World, ms: u64, done: impl Fn(&World) -> bool) {
    let until = world.now + ms * MS;
    world.run(until, done);
    good(world);
}

pub(super) fn run_for(world: &mut World, ms: u64) {
    run_until(world, ms, |_| false);
}

pub(super) fn good(world: &mut World) {
    if let Some(text) = world.take_violation() {
        panic!("{text}");
    }
}

pub(super) fn write(world: &mut World, host: usize, volume: usize, first: u64, count: u64) -> u64 {
    let id = world.guest.number();
    let ask = Ask::Write { id, fua: false };
    world
        .ask_at(host, volume, ask, first, count)
        .expect("there is memory");
    id
}

pub(super) fn answered(world: &World) -> bool {
    world.guest.outstanding.is_empty()
}

pub(super) fn settle(world: &mut World) {
    run_until(world, 10_000, answered);
    assert!(answered(world), "all requests are answered");
}

pub(super) fn committed(world: &World) -> Epoch {
    match &world.hosts[1].group {
        Group::Backup(group) => group.committed(),
        _ => Epoch::NONE,
    }
}

/// Cuts, and waits until the backup has the epoch.
pub(super) fn commit(world: &mut World) -> Epoch {
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

pub(super) fn promote(world: &mut World, accept_suspect: bool) -> Result<Epoch, PromoteError> {
    world.promote(true, accept_suspect);
    run_until(world, 10_000, |w| w.promote_reply.is_some());
    world
        .promote_reply
        .clone()
        .expect("answered")
        .map(|p| p.epoch)
}
