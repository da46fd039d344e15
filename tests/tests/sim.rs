//! The simulator in the ordinary test run: some seeds, and by name the stories that must never
//! happen twice.

use blockrep_tests::sim::scenarios::ALL;

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

/// One that no test names would not run.
#[test]
fn every_scenario_is_a_test() {
    let source = include_str!("sim.rs");
    for (name, _) in ALL {
        assert!(source.contains(&format!("scenario(\"{name}\")")), "{name}");
    }
}

fn scenario(name: &str) {
    let (_, run) = ALL.iter().find(|(known, _)| *known == name).expect("known");
    run();
}

#[test]
fn group_with_volume_a_sealed_at_n_plus_1_and_b_at_n() {
    scenario("group_with_volume_a_sealed_at_n_plus_1_and_b_at_n");
}

#[test]
fn two_overlapping_writes_in_flight() {
    scenario("two_overlapping_writes_in_flight");
}

#[test]
fn cut_of_a_then_write_on_a_completes_then_dependent_write_on_b_then_cut_of_b() {
    scenario("cut_of_a_then_write_on_a_completes_then_dependent_write_on_b_then_cut_of_b");
}

#[test]
fn journal_full_while_the_hypervisor_drains() {
    scenario("journal_full_while_the_hypervisor_drains");
}

#[test]
fn write_after_promotion_over_unapplied_journal_then_crash_then_read() {
    scenario("write_after_promotion_over_unapplied_journal_then_crash_then_read");
}

#[test]
fn bad_record_in_the_last_acknowledged_epoch() {
    scenario("bad_record_in_the_last_acknowledged_epoch");
}

#[test]
fn a_former_primary_is_refused() {
    scenario("a_former_primary_is_refused");
}

#[test]
fn the_first_epoch_that_all_volumes_carry_was_an_empty_one() {
    scenario("the_first_epoch_that_all_volumes_carry_was_an_empty_one");
}

#[test]
fn ack_of_n_plus_1_lost_and_the_primary_reuses_n_plus_1() {
    scenario("ack_of_n_plus_1_lost_and_the_primary_reuses_n_plus_1");
}

#[test]
fn killed_before_an_own_seal() {
    scenario("killed_before_an_own_seal");
}

#[test]
fn rot_in_an_own_write_that_is_being_applied() {
    scenario("rot_in_an_own_write_that_is_being_applied");
}

#[test]
fn a_copy_of_a_lost_session_lands_after_the_comparison() {
    scenario("a_copy_of_a_lost_session_lands_after_the_comparison");
}

#[test]
fn the_ring_goes_round() {
    scenario("the_ring_goes_round");
}

#[test]
fn writes_after_promotion_wait_for_no_throttle() {
    scenario("writes_after_promotion_wait_for_no_throttle");
}

#[test]
fn the_word_for_equal_images_at_a_second_start() {
    scenario("the_word_for_equal_images_at_a_second_start");
}

#[test]
fn backup_daemon_restarted_between_a_commit_and_the_holders_note() {
    scenario("backup_daemon_restarted_between_a_commit_and_the_holders_note");
}

#[test]
fn a_number_is_used_again_with_memory_of_the_old_one_whole() {
    scenario("a_number_is_used_again_with_memory_of_the_old_one_whole");
}

#[test]
fn memory_of_an_epoch_cut_before_the_session_of_the_disks() {
    scenario("memory_of_an_epoch_cut_before_the_session_of_the_disks");
}

#[test]
fn the_backup_loses_power_and_the_disks_alone_are_promoted() {
    scenario("the_backup_loses_power_and_the_disks_alone_are_promoted");
}

#[test]
fn images_are_compared_with_old_memory_whole() {
    scenario("images_are_compared_with_old_memory_whole");
}

#[test]
fn backup_daemon_restarted_while_the_holder_is_away() {
    scenario("backup_daemon_restarted_while_the_holder_is_away");
}
