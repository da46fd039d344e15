//! What could go wrong: a frame leaves before its epoch is safe, or never, or out of order. The gate
//! drives a model of the kernel's plug; a judge that knows nothing of the gate watches the wire.

mod keeper;
mod places;
mod plug;
mod world;

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use world::{World, op};

const LIMIT_BYTES: u32 = 2_000;
const FRAME_BYTES: u32 = 100;
const OURS: Lineage = Lineage([7; 16]);
const OTHERS: Lineage = Lineage([9; 16]);

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random lives of a guest: early, late, lost count or order would each be seen on the wire.
    #[test]
    fn nothing_leaves_early_and_released_epochs_leave_whole(
        capacity in prop_oneof![Just(1usize), 2..5usize],
        ops in prop::collection::vec(op(), 1..250),
    ) {
        let mut world = World::new(capacity);
        for op in &ops {
            world.apply(op);
        }
    }
}

/// A generator that mostly gets refusals proves nothing.
#[test]
fn the_generator_reaches_every_state_and_releases() {
    reaches_every_state_and_releases(1);
    reaches_every_state_and_releases(3);
}

fn reaches_every_state_and_releases(capacity: usize) {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut states = BTreeMap::<&str, usize>::new();
    let (mut released, mut overlapped) = (0, 0);
    for _ in 0..200 {
        let ops = prop::collection::vec(op(), 250);
        let ops = ops.new_tree(&mut runner).unwrap().current();
        let mut world = World::new(capacity);
        for op in &ops {
            world.apply(op);
            *states.entry(world.gate.state().name()).or_default() += 1;
        }
        released += world.released;
        overlapped += world.overlapped;
    }
    println!("{released} epochs released, {overlapped} of them beside later cuts; {states:?}");
    assert_eq!(capacity > 1, overlapped > 100, "{overlapped}");
    assert_eq!(states.len(), 6);
    assert!(released > 1_000, "{released}");
}

/// What people read when output stands still.
#[test]
fn every_state_says_why_since_when_and_what_next() {
    let mut gate = Gate::new(LIMIT_BYTES, 5);
    let mut orders = Vec::new();
    gate.step(Event::Added(Interface(3)), 6, &mut orders)
        .unwrap();
    let cut = |n| Event::Cut {
        epoch: Epoch(n),
        drained: true,
    };
    gate.step(cut(4), 10, &mut orders).unwrap();
    let standing = gate.standing();
    assert_eq!((standing.state, standing.since_ms), ("cut", 10));
    assert_eq!(standing.reason, "epoch 4 is cut and waits for its commit");
    let refusal = gate.step(cut(5), 11, &mut orders).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "CUT 5: epoch 4 is cut and not released; RELEASE 4 first"
    );
    let refusal = gate.step(Event::Open(OURS), 12, &mut orders).unwrap_err();
    assert!(refusal.to_string().contains("ask it who writes this guest"));
    assert_eq!(gate.standing().since_ms, 10, "a refusal changes nothing");
    gate.step(Event::Release(Epoch(4)), 13, &mut orders)
        .unwrap();
    let refusal = gate.step(Event::Release(Epoch(4)), 14, &mut orders);
    let last = Epoch(4);
    assert_eq!(
        refusal,
        Err(Refusal::AlreadyOut {
            asked: Epoch(4),
            last
        })
    );
}

/// Two interfaces broke; the guest is not well when one of them has left.
#[test]
fn a_failure_lasts_until_every_broken_interface_left() {
    let mut gate = Gate::new(LIMIT_BYTES, 0);
    let mut orders = Vec::new();
    let mut tell = |event| {
        gate.step(event, 1, &mut orders)
            .map(|()| gate.state().name())
    };
    let fail = |i| Event::OrderFailed {
        of: Interface(i),
        what: "no such device".into(),
    };
    tell(Event::Added(Interface(1))).unwrap();
    tell(Event::Added(Interface(2))).unwrap();
    assert_eq!(tell(fail(1)), Ok("failed"));
    assert_eq!(tell(fail(2)), Ok("failed"));
    assert_eq!(tell(Event::Detached(Interface(1))), Ok("failed"));
    assert_eq!(tell(Event::Gone(Interface(2))), Ok("held"));
    assert_eq!(
        tell(fail(2)),
        Ok("held"),
        "it went while the order was on its way"
    );
}

/// A limit below one frame silences the guest; one that reaches only today's plugs is forgotten.
#[test]
fn a_limit_reaches_every_plug_also_those_to_come() {
    let mut gate = Gate::new(LIMIT_BYTES, 0);
    let mut orders = Vec::new();
    let mut tell = |event| {
        orders.clear();
        let answer = gate.step(event, 1, &mut orders);
        answer.map(|()| orders.iter().map(|o| (o.to.0, o.order)).collect::<Vec<_>>())
    };
    let limit = |bytes| Order::Limit { bytes };
    let added = tell(Event::Added(Interface(1)));
    assert_eq!(
        added,
        Ok(vec![(1, limit(LIMIT_BYTES)), (1, Order::OpenAll)])
    );
    assert_eq!(tell(Event::Limit { bytes: 0 }), Err(Refusal::NoLimit));
    assert_eq!(
        tell(Event::Limit { bytes: 9_000 }),
        Ok(vec![(1, limit(9_000))])
    );
    tell(Event::Hold { why: "test".into() }).unwrap();
    let added = tell(Event::Added(Interface(2)));
    assert_eq!(
        added,
        Ok(vec![(2, limit(9_000))]),
        "held, so nothing opens it"
    );
    assert_eq!(
        tell(Event::Detached(Interface(2))),
        Ok(vec![(2, Order::Shut)])
    );
    assert_eq!(tell(Event::Restarted(vec![])), Err(Refusal::InUse));
}
