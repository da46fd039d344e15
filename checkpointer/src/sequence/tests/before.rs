//! A guest that begins anew speaks while the backup may be promoted with the one before; or is held for ever though nobody
//! would go on from anything; or an output that was lost makes the next checkpoint wait for an answer that cannot come.

use super::*;
use crate::sequence::{Found, Word};
use blkback_proto::ids::LineageId;

const ANSWER_NS: u64 = 10_000;

struct Stepped {
    sequence: Sequence,
    now: u64,
}

impl Stepped {
    fn new(on_loss: OnLoss, found: Option<Found>) -> Self {
        let settings = Settings {
            interval_ns: 10,
            pause_max_ns: 1_000,
            resume_max_ns: 1_000,
            answer_max_ns: ANSWER_NS,
            in_flight_max: 2,
            output_cuts_max: 1,
            on_loss,
        };
        let mut sequence = Sequence::new(settings, 0);
        if let Some(found) = found {
            sequence.found(0, found);
        }
        Self { sequence, now: 0 }
    }

    fn step(&mut self, event: Event) -> Vec<Order> {
        self.now += 11;
        let mut orders = Vec::new();
        self.sequence.step(self.now, event, &mut orders);
        orders
    }

    fn back(&mut self, part: Part) -> Vec<Order> {
        let has_base = true;
        self.step(Event::Back { part, has_base })
    }

    fn copied(&mut self) {
        for part in [Part::Memory, Part::Disk, Part::Output] {
            self.back(part);
        }
        let attempt = self.sequence.attempt;
        self.step(Event::FirstCopied(attempt, Ok(())));
    }

    /// Up to the cut of the output; its attempt.
    fn cut(&mut self, epoch: u64) -> (Attempt, Vec<Order>) {
        self.step(Event::Tick);
        let attempt = self.sequence.attempt;
        self.step(Event::Paused(attempt, Ok(())));
        self.step(Event::DiskCut(attempt, Ok(Epoch(epoch))));
        (attempt, self.step(Event::Collected(attempt, Ok(()))))
    }

    fn state(&self) -> &'static str {
        self.sequence.standing().state
    }
}

fn asks(orders: &[Order]) -> bool {
    orders.contains(&Order::AskAuthority)
}

const ALONE: LineageId = LineageId([7; 16]);

#[test]
fn of_a_guest_that_begins_anew_the_authority_is_asked_at_once() {
    let mut guest = Stepped::new(OnLoss::Degrade, Some(Found::Afresh));
    assert!(asks(&guest.step(Event::Tick)));
    assert_eq!(guest.state(), "held");
    // Not reached: again, whatever is there meanwhile.
    let orders = guest.step(Event::Authority(Word::Unreachable("nobody".to_owned())));
    assert!(!asks(&orders));
    let standing = guest.sequence.standing();
    assert!(standing.reason.contains("nobody"), "{standing:?}");
    assert!(standing.next.contains("blockrepctl guest stop"));
    for part in [Part::Memory, Part::Disk, Part::Output] {
        guest.back(part);
    }
    assert_eq!(guest.state(), "copying");
    guest.now += ANSWER_NS;
    assert!(asks(&guest.step(Event::Tick)));
    // Out: it speaks until its first cut, and protection goes on.
    let orders = guest.step(Event::Authority(Word::Won(ALONE)));
    assert_eq!(orders, [Order::OpenOutput(ALONE)]);
    assert_eq!(guest.state(), "copying");
    assert!(!guest.sequence.has_ended());
    guest.copied();
    let (attempt, orders) = guest.cut(1);
    assert_eq!(orders, [Order::CutOutput(attempt, Epoch(1))]);
}

#[test]
fn what_was_cut_before_the_backup_is_out_stays_held() {
    let mut guest = Stepped::new(OnLoss::Degrade, Some(Found::Afresh));
    guest.step(Event::Tick);
    guest.copied();
    let (attempt, _) = guest.cut(1);
    guest.step(Event::OutputCut(attempt, Ok(())));
    let orders = guest.step(Event::Authority(Word::Won(ALONE)));
    assert_eq!(orders, []);
    guest.step(Event::Resumed(attempt, Ok(())));
    guest.step(Event::MemoryAcked(Epoch(1)));
    let orders = guest.step(Event::DiskCommitted(Epoch(1)));
    assert!(orders.contains(&Order::Release(Epoch(1))), "{orders:?}");
    // From then on it is a guest like any other.
    guest.step(Event::Authority(Word::Won(ALONE)));
    assert_eq!(guest.state(), "open");
}

/// A backup that was promoted meanwhile has the guest; an operator's end is one.
#[test]
fn a_guest_that_begins_anew_is_stopped_or_ended() {
    let mut guest = Stepped::new(OnLoss::Degrade, Some(Found::Afresh));
    guest.step(Event::Tick);
    let orders = guest.step(Event::Authority(Word::Lost));
    assert!(orders.contains(&Order::StopGuest), "{orders:?}");
    assert_eq!(guest.state(), "over");

    let mut guest = Stepped::new(OnLoss::Hold, Some(Found::Afresh));
    assert!(!asks(&guest.step(Event::Tick)), "its policy is to be held");
    assert!(asks(&guest.step(Event::Stop)));
    let orders = guest.step(Event::Authority(Word::Won(ALONE)));
    assert_eq!(orders, [Order::OpenOutput(ALONE)]);
    assert_eq!(guest.state(), "open");
}

/// What the backup has is of this guest: it is given time to come, and then it is lost like any other.
#[test]
fn a_guest_that_went_on_waits_for_its_backup() {
    let mut guest = Stepped::new(OnLoss::Degrade, Some(Found::WentOn));
    assert!(!asks(&guest.step(Event::Tick)));
    assert_eq!(guest.state(), "held");
    guest.now += ANSWER_NS;
    assert!(asks(&guest.step(Event::Tick)));
    let mut guest = Stepped::new(OnLoss::Degrade, Some(Found::WentOn));
    guest.copied();
    guest.now += ANSWER_NS;
    assert!(!asks(&guest.step(Event::Tick)), "it came");
    // Never protected: nothing is held, and nothing is asked.
    let mut guest = Stepped::new(OnLoss::Degrade, None);
    guest.now += ANSWER_NS;
    assert!(!asks(&guest.step(Event::Tick)));
    assert_eq!(guest.state(), "waiting");
}

/// A backup that came back without its copy and is lost again: what the guest says is held still.
#[test]
fn a_copy_that_is_lost_twice_is_a_loss() {
    let mut guest = Stepped::new(OnLoss::Degrade, None);
    guest.copied();
    let (part, has_base) = (Part::Memory, false);
    guest.step(Event::Back { part, has_base });
    let why = "gone".to_owned();
    let orders = guest.step(Event::Lost { part, why });
    assert!(asks(&orders), "{orders:?}");
    assert_eq!(guest.state(), "held");
}

/// Of an output that is there again nothing is carried out any more: the next checkpoint does not wait for it.
#[test]
fn a_cut_of_an_output_that_was_lost_is_not_waited_for() {
    let mut guest = Stepped::new(OnLoss::Hold, None);
    guest.copied();
    let (attempt, orders) = guest.cut(1);
    assert_eq!(orders, [Order::CutOutput(attempt, Epoch(1))]);
    let (part, why) = (Part::Output, "netbuf is gone".to_owned());
    let orders = guest.step(Event::Lost { part, why });
    let given_up = [Order::Abandon(attempt), Order::Resume(attempt)];
    assert_eq!(orders, given_up);
    guest.step(Event::Resumed(attempt, Ok(())));
    guest.back(part);
    let (next, orders) = guest.cut(2);
    assert_eq!(orders, [Order::CutOutput(next, Epoch(2))]);
}

/// Its last words are of the epoch that its end is known as.
#[test]
fn the_end_of_a_guest_names_its_epoch() {
    let mut guest = Stepped::new(OnLoss::Hold, None);
    guest.copied();
    guest.step(Event::GuestOff);
    let attempt = guest.sequence.attempt;
    guest.step(Event::DiskCut(attempt, Ok(Epoch(9))));
    guest.step(Event::MemoryAcked(Epoch(9)));
    let orders = guest.step(Event::DiskCommitted(Epoch(9)));
    assert_eq!(orders, [Order::Finish(Some(Epoch(9)))]);
}
