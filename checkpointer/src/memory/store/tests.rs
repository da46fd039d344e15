//! A plan that removes an acknowledged epoch, or goes on from a torn RAM file, is found only after a crash.

use super::files::{Name, read_name};
use super::recovery::{Plan, Seen, plan};
use blkback_proto::ids::Epoch;
use blkback_proto::memory::kept::Kept;

fn seen(names: &[&str]) -> Seen {
    Seen {
        files: names.iter().map(|name| ((*name).to_owned(), 1)).collect(),
        has_state: true,
        bad_slots: 0,
    }
}

const COPY_A: [&str; 2] = ["ram-000000000000000a", "shape-000000000000000a"];
const COPY_B: [&str; 2] = ["ram-000000000000000b", "shape-000000000000000b"];
const A_8: &str = "epoch-000000000000000a-8";
const A_9: &str = "epoch-000000000000000a-9";
const A_10: &str = "epoch-000000000000000a-10";
const B_10: &str = "epoch-000000000000000b-10";

fn kept(next: u64, committed: u64, applied: u64) -> Kept {
    Kept {
        generation: 0xA,
        next,
        committed: Epoch(committed),
        applied: Epoch(applied),
        ..Kept::default()
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    assert_eq!(read_name(&super::files::ram_name(10)), Name::OfCopy(10));
    assert_eq!(read_name(&super::files::shape_name(10)), Name::OfCopy(10));
    let name = super::files::epoch_name(10, Epoch(9));
    assert_eq!(read_name(&name), Name::Epoch(10, Epoch(9)));
    assert_eq!(read_name(&format!("{name}.part")), Name::Part);
    assert_eq!(read_name("lock"), Name::Other);
    assert_eq!(read_name("epoch-x-9"), Name::Other);
}

#[test]
fn an_interrupted_apply_is_finished() {
    let files = [
        COPY_A[0],
        COPY_A[1],
        A_8,
        A_9,
        A_10,
        "epoch-000000000000000a-11.part",
    ];
    let plan = plan(&kept(0, 9, 7), &seen(&files)).expect("nothing contradicts itself");
    assert!(plan.finishes && !plan.is_fresh && !plan.drops_next);
    let epochs = [8, 9, 10].map(|epoch| (0xA, Epoch(epoch)));
    assert_eq!(
        plan.epochs, epochs,
        "in their order, the acknowledged one too"
    );
    assert_eq!(plan.removes, ["epoch-000000000000000a-11.part"]);
}

#[test]
fn what_is_applied_goes_and_what_is_acknowledged_stays() {
    let files = [
        COPY_A[0],
        COPY_A[1],
        A_8,
        A_9,
        A_10,
        COPY_B[0],
        COPY_B[1],
        B_10,
        "device-state",
    ];
    let with_b = plan(&kept(0xB, 9, 9), &seen(&files)).expect("good");
    assert_eq!(with_b.epochs, [(0xA, Epoch(10)), (0xB, Epoch(10))]);
    assert_eq!(with_b.removes, [A_8, A_9]);
    assert!(!with_b.finishes && !with_b.drops_next);
    // The same files where the state does not name the other copy.
    let without = plan(&kept(0, 9, 9), &seen(&files)).expect("good");
    assert_eq!(without.removes, [A_8, A_9, B_10, COPY_B[0], COPY_B[1]]);
    // A copy without an epoch goes: its session is over.
    let begun = plan(&kept(0xB, 9, 9), &seen(&[COPY_A, COPY_B].concat())).expect("good");
    assert!(begun.drops_next);
    assert_eq!(begun.removes, COPY_B);
}

#[test]
fn contradictions_are_refused() {
    let refused = |kept: &Kept, seen: &Seen| plan(kept, seen).expect_err("a contradiction");
    let good = seen(&COPY_A);
    assert!(refused(&kept(0, 9, 9), &seen(&COPY_A[..1])).contains("gone"));
    assert!(refused(&kept(0, 9, 8), &good).contains("epoch 9"));
    assert!(refused(&kept(0xB, 9, 9), &seen(&[COPY_A[0], COPY_A[1], B_10])).contains("gone"));
    let bad_slots = 1;
    assert!(
        refused(
            &kept(0, 9, 9),
            &Seen {
                bad_slots,
                ..good.clone()
            }
        )
        .contains("damaged")
    );
    let has_state = false;
    assert!(refused(&Kept::default(), &Seen { has_state, ..good }).contains("no state"));
    let empty = Seen::default();
    let fresh = Plan {
        is_fresh: true,
        ..Plan::default()
    };
    assert_eq!(plan(&Kept::default(), &empty), Ok(fresh));
}
