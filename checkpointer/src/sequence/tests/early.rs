//! What could go wrong with early cuts: they come so often that the guest stands still, they pile up on a backup that is slow,
//! or they are made where they let nothing go.

use super::world::World;
use crate::sequence::{Attempt, Event, Nanos, OnLoss, Order, Part, Sequence, Settings};
use blkback_proto::ids::Epoch;
use std::collections::VecDeque;

/// What the judge saw of orders and answers, without knowing how the sequence decides.
#[derive(Debug, Default)]
pub(super) struct CutsSeen {
    /// When the guest was ordered to go on last.
    resume_ordered: Nanos,
    is_cut_wanted: bool,
    under_way: VecDeque<u64>,
    memory_acked: u64,
    disk_committed: u64,
}

impl World {
    /// A cut comes when it may, and never with more under way than may be.
    pub(super) fn judge_cuts(&mut self, event: &Event, orders: &[Order]) {
        let seen = &mut self.cuts_seen;
        match event {
            Event::CutWanted => seen.is_cut_wanted = true,
            Event::MemoryAcked(epoch) => seen.memory_acked = seen.memory_acked.max(epoch.0),
            Event::DiskCommitted(epoch) => seen.disk_committed = seen.disk_committed.max(epoch.0),
            _ => {}
        }
        let whole = seen.memory_acked.min(seen.disk_committed);
        seen.under_way.retain(|epoch| *epoch > whole);
        let missing = &self.sequence.missing;
        // Of a part that is lost nothing is waited for any more.
        if [Part::Memory, Part::Disk]
            .iter()
            .any(|part| missing.contains_key(part))
        {
            seen.under_way.clear();
        }
        for order in orders {
            match order {
                Order::Resume(_) => seen.resume_ordered = self.now,
                Order::TakeBack => seen.under_way.clear(),
                Order::Send(_, epoch) => seen.under_way.push_back(epoch.0),
                Order::Pause(_) => {
                    let since = self.now - seen.resume_ordered;
                    let is_early = since < self.settings.interval_ns && !seen.is_cut_wanted;
                    if is_early {
                        assert_eq!(*event, Event::OutputWaits, "cut early for nothing");
                        assert!(self.interval_min_ns > 0, "cut early, though that is off");
                        assert!(since >= self.interval_min_ns, "cut again after {since} ns");
                        self.early += 1;
                    }
                    let under_way = seen.under_way.len();
                    assert!(
                        under_way < self.settings.in_flight_max,
                        "{under_way} checkpoints are under way, and one more begins"
                    );
                    seen.is_cut_wanted = false;
                }
                _ => {}
            }
        }
    }
}

/// Protected, at time 1000, with one checkpoint made and its output cut.
fn running(interval_min_ns: Nanos, output_cuts_max: usize) -> Sequence {
    let settings = Settings {
        interval_ns: 100,
        pause_max_ns: 10_000,
        resume_max_ns: 10_000,
        answer_max_ns: 100_000,
        in_flight_max: 2,
        output_cuts_max,
        on_loss: OnLoss::Hold,
    };
    let mut sequence = Sequence::new(settings, 0);
    sequence.set_interval_min(interval_min_ns);
    let mut orders = Vec::new();
    for part in [Part::Memory, Part::Disk, Part::Output] {
        let has_base = true;
        sequence.step(0, Event::Back { part, has_base }, &mut orders);
    }
    sequence.step(0, Event::FirstCopied(Attempt(1), Ok(())), &mut orders);
    let attempt = Attempt(2);
    for event in [
        Event::Tick,
        Event::Paused(attempt, Ok(())),
        Event::DiskCut(attempt, Ok(Epoch(1))),
        Event::Collected(attempt, Ok(())),
        Event::OutputCut(attempt, Ok(())),
        Event::Resumed(attempt, Ok(())),
    ] {
        sequence.step(1000, event, &mut orders);
    }
    assert_eq!(orders.last(), Some(&Order::Send(attempt, Epoch(1))));
    sequence
}

fn waits(sequence: &mut Sequence, now: Nanos) -> Vec<Order> {
    let mut orders = Vec::new();
    sequence.step(now, Event::OutputWaits, &mut orders);
    orders
}

#[test]
fn output_that_waits_is_cut_when_the_minimum_is_over_and_not_before() {
    let pause = [Order::Pause(Attempt(3))];
    let mut sequence = running(20, 4);
    assert_eq!(sequence.next_early_cut(1000), Some(20));
    assert_eq!(waits(&mut sequence, 1019), []);
    // The remark was about that moment.
    let mut orders = Vec::new();
    sequence.step(1030, Event::Tick, &mut orders);
    assert_eq!(orders, []);
    assert_eq!(sequence.next_early_cut(1030), Some(0));
    assert_eq!(waits(&mut sequence, 1030), pause);

    // A minimum above the interval makes nothing later.
    let mut sequence = running(200, 4);
    assert_eq!(waits(&mut sequence, 1099), []);
    assert_eq!(waits(&mut sequence, 1100), pause);

    let mut off = running(0, 4);
    assert_eq!(off.next_early_cut(1050), None);
    assert_eq!(waits(&mut off, 1050), []);
}

/// Told that a cut is due while there is no room for one, the owner of the sequence would not rest until an answer comes.
#[test]
fn a_cut_that_waits_for_an_answer_is_not_due_by_the_clock() {
    let mut sequence = running(20, 4);
    sequence.settings.in_flight_max = 1;
    assert_eq!(sequence.next_cut(1200), None);
    assert_eq!(sequence.next_early_cut(1200), None);
    let mut orders = Vec::new();
    sequence.step(1200, Event::MemoryAcked(Epoch(1)), &mut orders);
    sequence.settings.interval_ns = 300;
    sequence.step(1201, Event::DiskCommitted(Epoch(1)), &mut orders);
    assert_eq!(sequence.next_cut(1201), Some(99));
}

/// With a plug a second cut would only pause the guest: its output cannot be cut until the first is released.
#[test]
fn nothing_is_cut_early_where_the_output_has_no_room_for_it() {
    let mut sequence = running(20, 1);
    assert_eq!(sequence.next_early_cut(1050), None);
    assert_eq!(waits(&mut sequence, 1050), []);
    let mut orders = Vec::new();
    sequence.step(1051, Event::MemoryAcked(Epoch(1)), &mut orders);
    sequence.step(1051, Event::DiskCommitted(Epoch(1)), &mut orders);
    assert_eq!(orders, [Order::Release(Epoch(1))]);
    assert_eq!(waits(&mut sequence, 1052), [Order::Pause(Attempt(3))]);
}
