//! Every order in which two hosts can ask, be answered, lose the answer, crash and come back; the rules of the
//! daemons around the record as `authority/mod.rs` names them, each of them planted away once.

use super::super::{Record, Ruling, degrade, promote, protect};
use super::{record, stamp};
use std::collections::HashSet;

const NAMES: [&str; 2] = ["a", "b"];
/// More changes and crashes find nothing new.
const GENERATION_MAX: u64 = 5;
const CRASHES_MAX: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Off,
    /// Runs the guest; speaks with the backup's acknowledgement only.
    Held,
    /// Believes that it may run the guest alone, and lets it speak.
    Alone,
    /// Has a whole checkpoint or not.
    Standby {
        has: bool,
    },
    /// Lost, and has stopped its guest.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Protect,
    Degrade,
    Promote,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    place: Place,
    /// A wish and the record that it goes out from.
    asks: Option<(Asked, Record)>,
    /// What came of it, on its way back.
    answer: Option<(Asked, bool)>,
    /// Everything that the guest has said is in the copy here.
    is_current: bool,
    /// Of a primary: the backup has acknowledged a whole checkpoint since the output is held.
    is_acknowledged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    record: Record,
    hosts: [Host; 2],
    crashes: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    None,
    /// The authority does not look at `expected`.
    IgnoreExpected,
    /// The output is held when the backup has joined, not before.
    LateHold,
    /// The standby acknowledges after it has asked for its promotion.
    KeepsAcking,
    /// No answer is taken for yes.
    SilenceIsYes,
    /// A backup joins with the copy that it has, however old.
    JoinsStale,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Boot,
    Crash,
    Speak,
    /// A checkpoint of the other's guest arrives whole and is acknowledged; what was said leaves.
    Acknowledge,
    /// The output is held, to be protected again.
    Hold,
    Ask(Asked),
    Swap,
    Learn,
    LoseAnswer,
    BecomeStandby,
}

const STEPS: [Step; 12] = [
    Step::Boot,
    Step::Crash,
    Step::Speak,
    Step::Acknowledge,
    Step::Hold,
    Step::Ask(Asked::Protect),
    Step::Ask(Asked::Degrade),
    Step::Ask(Asked::Promote),
    Step::Swap,
    Step::Learn,
    Step::LoseAnswer,
    Step::BecomeStandby,
];

fn begin() -> World {
    let host = |place| Host {
        place,
        asks: None,
        answer: None,
        is_current: false,
        is_acknowledged: false,
    };
    World {
        record: record(1, "a", &["a"]),
        hosts: [host(Place::Alone), host(Place::Standby { has: false })],
        crashes: 0,
    }
}

impl World {
    /// The world after a step of a host; `None` where it cannot be made.
    fn after(&self, at: usize, step: Step, plant: Plant) -> Option<Self> {
        let mut world = self.clone();
        let other = 1 - at;
        let is_asking = self.hosts[at].asks.is_some() || self.hosts[at].answer.is_some();
        match (step, self.hosts[at].place) {
            (Step::Boot, Place::Off) => world.boot(at),
            (Step::Crash, place) if place != Place::Off && self.crashes < CRASHES_MAX => {
                world.crashes += 1;
                world.hosts[at] = Host {
                    place: Place::Off,
                    asks: None,
                    answer: None,
                    is_current: self.hosts[at].is_current,
                    is_acknowledged: false,
                };
            }
            (Step::Speak, Place::Alone) => world.hosts[other].is_current = false,
            (Step::Acknowledge, Place::Standby { .. })
                if self.hosts[other].place == Place::Held
                    && (!is_asking || plant == Plant::KeepsAcking) =>
            {
                // Of one that asks already, what arrives now is not in what it goes on from.
                world.hosts[at].is_current = !is_asking;
                world.hosts[at].place = Place::Standby { has: true };
                world.hosts[other].is_acknowledged = true;
            }
            (Step::Hold, Place::Alone) if !is_asking && plant != Plant::LateHold => {
                world.hosts[at].place = Place::Held;
                world.hosts[at].is_acknowledged = plant == Plant::JoinsStale;
            }
            (Step::Ask(wish), _) if !is_asking && self.may_ask(at, wish, plant) => {
                world.hosts[at].asks = Some((wish, self.record.clone()));
                if plant == Plant::LateHold && wish == Asked::Protect {
                    world.hosts[other].place = Place::Standby { has: true };
                    world.hosts[other].is_current = true;
                }
            }
            (Step::Swap, _) => world.swap(at, plant)?,
            (Step::Learn, _) => {
                let (wish, won) = world.hosts[at].answer.take()?;
                world.learn(at, wish, won);
            }
            (Step::LoseAnswer, _) => {
                let (wish, _) = world.hosts[at].answer.take()?;
                if plant == Plant::SilenceIsYes {
                    world.learn(at, wish, true);
                }
            }
            (Step::BecomeStandby, Place::Stopped) => {
                world.hosts[at].place = Place::Standby { has: false };
            }
            _ => return None,
        }
        (world.record.generation <= GENERATION_MAX).then_some(world)
    }

    fn boot(&mut self, at: usize) {
        let name = NAMES[at];
        self.hosts[at].place = if self.record.is_alone(name) {
            Place::Alone
        } else if self.record.primary == name {
            Place::Held
        } else {
            // What was in its memory is gone.
            Place::Standby { has: false }
        };
    }

    fn may_ask(&self, at: usize, wish: Asked, plant: Plant) -> bool {
        let (host, other) = (&self.hosts[at], &self.hosts[1 - at]);
        match wish {
            Asked::Protect if plant == Plant::LateHold => {
                host.place == Place::Alone && matches!(other.place, Place::Standby { .. })
            }
            Asked::Protect => {
                host.place == Place::Held
                    && host.is_acknowledged
                    && other.place == Place::Standby { has: true }
            }
            Asked::Degrade => host.place == Place::Held,
            Asked::Promote => host.place == Place::Standby { has: true },
        }
    }

    fn swap(&mut self, at: usize, plant: Plant) -> Option<()> {
        let (wish, from) = self.hosts[at].asks.take()?;
        let (name, other) = (NAMES[at], NAMES[1 - at]);
        let fresh = stamp(u8::try_from(self.record.generation).unwrap() + 100 * at as u8 + 10);
        let ruling = match wish {
            Asked::Protect => protect(&from, name, other, &fresh),
            Asked::Degrade => degrade(&from, name, &fresh),
            Asked::Promote => promote(&from, name, &fresh),
        };
        let won = match ruling {
            Ok(Ruling::Swap(new)) => {
                if self.record.generation != from.generation && plant != Plant::IgnoreExpected {
                    // Told what it is now; the rules are asked again.
                    self.hosts[at].asks = Some((wish, self.record.clone()));
                    return Some(());
                }
                self.record = new;
                true
            }
            Ok(Ruling::Already) => true,
            Err(refusal) => {
                assert!(refusal.is_lost(), "{refusal}");
                false
            }
        };
        self.hosts[at].answer = Some((wish, won));
        Some(())
    }

    fn learn(&mut self, at: usize, wish: Asked, won: bool) {
        let host = &mut self.hosts[at];
        host.place = match (wish, won) {
            (Asked::Degrade | Asked::Promote, true) => Place::Alone,
            (Asked::Protect, true) => Place::Held,
            (Asked::Degrade | Asked::Protect, false) => Place::Stopped,
            (Asked::Promote, false) => Place::Standby { has: false },
        };
    }

    fn violation(&self, before: &Self) -> Option<&'static str> {
        if self.hosts.iter().all(|host| host.place == Place::Alone) {
            return Some("two hosts run the guest alone");
        }
        for (host, name) in self.hosts.iter().zip(NAMES) {
            if host.place == Place::Alone && !self.record.is_alone(name) {
                return Some("alone against the record");
            }
            let promoted = self.record.primary == name && before.record.primary != name;
            if promoted && !host.is_current {
                return Some("promoted without what the guest has said");
            }
        }
        None
    }
}

/// Every world that can be reached, and the first that must not be.
fn explore(plant: Plant) -> (HashSet<World>, Option<&'static str>) {
    let mut known = HashSet::from([begin()]);
    let mut open = vec![begin()];
    while let Some(world) = open.pop() {
        for (at, step) in (0..2).flat_map(|at| STEPS.map(|step| (at, step))) {
            let Some(next) = world.after(at, step, plant) else {
                continue;
            };
            if let Some(what) = next.violation(&world) {
                return (known, Some(what));
            }
            if known.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    (known, None)
}

#[test]
fn never_two_and_never_older_than_what_was_said() {
    let (known, violation) = explore(Plant::None);
    assert_eq!(violation, None);
    println!("{} worlds", known.len());
    // What would make it true of nothing.
    let reached = |what: &str, is: &dyn Fn(&World) -> bool| {
        assert!(known.iter().any(is), "never reached: {what}");
    };
    reached("b has it alone, a has stopped", &|world| {
        world.hosts[1].place == Place::Alone && world.hosts[0].place == Place::Stopped
    });
    reached("a has it back from b", &|world| {
        world.hosts[0].place == Place::Alone && world.hosts[1].place == Place::Stopped
    });
    reached("both ask at once", &|world| {
        let asked = |at: usize| world.hosts[at].asks.as_ref().map(|(wish, _)| *wish);
        asked(0) == Some(Asked::Degrade) && asked(1) == Some(Asked::Promote)
    });
    reached("swapped, and crashed before it knew", &|world| {
        world.hosts[1].place == Place::Off && world.record.is_alone("b") && world.crashes == 1
    });
}

#[test]
fn every_planted_fault_is_found() {
    for (plant, expected) in [
        (
            Plant::IgnoreExpected,
            &["two hosts", "alone against", "promoted without"][..],
        ),
        (Plant::LateHold, &["alone against", "promoted without"]),
        (Plant::KeepsAcking, &["promoted without"]),
        (Plant::SilenceIsYes, &["two hosts", "alone against"]),
        (Plant::JoinsStale, &["promoted without"]),
    ] {
        let (_, violation) = explore(plant);
        let what = violation.unwrap_or_else(|| panic!("{plant:?} was not found"));
        assert!(
            expected.iter().any(|start| what.starts_with(start)),
            "{plant:?}: {what}"
        );
    }
}
