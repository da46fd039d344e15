//! A guest, its plugs, and a judge that knows what was allowed and nothing of how the gate decides.

use super::keeper::Keeper;
use super::{LIMIT_BYTES, OTHERS, OURS};
use crate::gate::{Directed, Epoch, Event, Gate, Interface, Quiet, Refusal, State};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Frame(u32),
    Run(u32, usize),
    Cut(i64),
    Release(i64),
    Hold,
    Open(bool),
    Add(u32),
    Leave(u32, bool),
    Resync(bool, bool),
    Restart,
    Fail(u32),
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let interface = 0..3u32;
    prop_oneof![
        120 => interface.clone().prop_map(Op::Frame),
        60 => (interface.clone(), 1..30usize).prop_map(|(i, n)| Op::Run(i, n)),
        40 => prop_oneof![8 => Just(1i64), 1 => -2..4i64].prop_map(Op::Cut),
        40 => prop_oneof![8 => Just(0i64), 3 => -2..0i64, 1 => -2..3i64].prop_map(Op::Release),
        1 => Just(Op::Hold),
        8 => prop::bool::weighted(0.8).prop_map(Op::Open),
        2 => interface.clone().prop_map(Op::Add),
        2 => (interface.clone(), any::<bool>()).prop_map(|(i, gone)| Op::Leave(i, gone)),
        12 => (prop::bool::weighted(0.8), prop::bool::weighted(0.8)).prop_map(|(a, b)| Op::Resync(a, b)),
        1 => Just(Op::Restart),
        1 => interface.prop_map(Op::Fail),
    ]
}

/// Per interface: every frame said, and how many of the first of them may be on the wire.
#[derive(Debug, Default)]
struct Port {
    said: Vec<u64>,
    allowed: usize,
    /// How many were said at each unreleased cut of the guest.
    cuts: Vec<(u64, usize)>,
    plug: Option<Keeper>,
}

/// What the judge believes of the guest, from the answers it got.
#[derive(Debug, PartialEq)]
enum Belief {
    Open,
    Holding,
    /// Unreleased cuts, ascending.
    Cut(Vec<u64>),
    Stuck,
}

pub(super) struct World {
    pub(super) gate: Gate,
    ports: BTreeMap<Interface, Port>,
    belief: Belief,
    /// The last cut the gate can know of; and the guest's own number, which a restart does not forget.
    last: Option<u64>,
    at: u64,
    frames: u64,
    pub(super) released: u64,
    /// Releases while a later epoch was cut.
    pub(super) overlapped: u64,
    capacity: usize,
}

impl World {
    pub(super) fn new(capacity: usize) -> Self {
        let mut world = Self {
            gate: Gate::with_capacity(LIMIT_BYTES, capacity, 0),
            overlapped: 0,
            capacity,
            ports: BTreeMap::new(),
            belief: Belief::Open,
            last: None,
            at: 5,
            frames: 0,
            released: 0,
        };
        world.tell(Event::Authority(OURS)).unwrap();
        world.apply(&Op::Add(0));
        world
    }

    fn tell(&mut self, event: Event) -> Result<(), Refusal> {
        let before = self.gate.state().clone();
        let mut orders = Vec::new();
        let answer = self.gate.step(event, self.frames, &mut orders);
        if let Err(refusal) = &answer {
            assert!(orders.is_empty(), "ordered and refused");
            assert_eq!(&before, self.gate.state());
            assert!(!refusal.to_string().contains('\n'));
        }
        for Directed { to, order } in orders {
            let port = self.ports.get_mut(&to).unwrap();
            port.plug.as_mut().unwrap().order(order);
        }
        answer
    }

    fn live(&mut self) -> impl Iterator<Item = &mut Port> {
        self.ports.values_mut().filter(|port| port.plug.is_some())
    }

    fn backlog(&self) -> u64 {
        let plugs = self.ports.values().filter_map(|port| port.plug.as_ref());
        plugs.map(Keeper::backlog).sum()
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Frame(i) => self.frame(Interface(i)),
            Op::Run(i, count) => {
                if let Some(plug) = self.plug(Interface(i)) {
                    plug.run(count);
                }
            }
            Op::Cut(step) => self.cut(self.at.saturating_add_signed(step)),
            Op::Release(step) => self.release(self.at.saturating_add_signed(step)),
            Op::Hold => {
                self.tell(Event::Hold { why: "test".into() }).unwrap();
                self.belief = Belief::Stuck;
            }
            Op::Open(ours) => self.open(ours),
            Op::Add(i) => self.add(Interface(i)),
            Op::Leave(i, gone) => self.leave(Interface(i), gone),
            Op::Resync(paused, committed) => self.resync(paused, committed),
            Op::Restart => self.restart(),
            Op::Fail(i) => {
                let (of, what) = (Interface(i), "refused".to_owned());
                if self.plug(of).is_some() {
                    self.tell(Event::OrderFailed { of, what }).unwrap();
                    self.belief = Belief::Stuck;
                }
            }
        }
        self.judge();
    }

    fn plug(&mut self, interface: Interface) -> Option<&mut Keeper> {
        self.ports.get_mut(&interface)?.plug.as_mut()
    }

    fn frame(&mut self, interface: Interface) {
        let (frame, open) = (self.frames, self.belief == Belief::Open);
        let Some(port) = self.ports.get_mut(&interface) else {
            return;
        };
        let Some(plug) = &mut port.plug else { return };
        self.frames += 1;
        port.said.push(frame);
        plug.enqueue(frame);
        if open {
            port.allowed = port.said.len();
        }
    }

    fn cut(&mut self, epoch: u64) {
        let drained = self.backlog() == 0;
        let right = match &self.belief {
            Belief::Open => Some(epoch) > self.last && drained,
            Belief::Holding => Some(epoch) > self.last,
            Belief::Cut(waiting) => Some(epoch) > self.last && waiting.len() < self.capacity,
            Belief::Stuck => false,
        };
        let answer = self.tell(Event::Cut {
            epoch: Epoch(epoch),
            drained,
        });
        assert_eq!(answer.is_ok(), right, "CUT {epoch}: {answer:?}");
        if right {
            (self.last, self.at) = (Some(epoch), epoch);
            match &mut self.belief {
                Belief::Cut(waiting) => waiting.push(epoch),
                _ => {
                    self.belief = Belief::Cut(vec![epoch]);
                    self.live().for_each(|port| port.cuts.clear());
                }
            }
            self.live()
                .for_each(|port| port.cuts.push((epoch, port.said.len())));
        }
    }

    fn release(&mut self, epoch: u64) {
        let at = match &self.belief {
            Belief::Cut(waiting) => waiting.iter().position(|cut| *cut == epoch),
            _ => None,
        };
        let answer = self.tell(Event::Release(Epoch(epoch)));
        assert_eq!(answer.is_ok(), at.is_some(), "RELEASE {epoch}: {answer:?}");
        if let (Some(at), Belief::Cut(waiting)) = (at, &mut self.belief) {
            waiting.drain(..=at);
            if waiting.is_empty() {
                self.belief = Belief::Holding;
            } else {
                self.overlapped += 1;
            }
            self.released += 1;
            for port in self.live() {
                let place = port.cuts.iter().find(|(cut, _)| *cut == epoch);
                // An interface that came after the cut has said nothing in it.
                port.allowed = place.map_or(port.allowed, |(_, said)| *said);
            }
            self.complete();
        }
    }

    fn open(&mut self, ours: bool) {
        let answer = self.tell(Event::Open(if ours { OURS } else { OTHERS }));
        let failed = matches!(self.gate.state(), State::Failed { .. });
        assert_eq!(answer.is_ok(), ours && !failed);
        if answer.is_ok() {
            self.belief = Belief::Open;
            for port in self.live() {
                port.allowed = port.said.len();
            }
        }
    }

    fn add(&mut self, interface: Interface) {
        let known = self.plug(interface).is_some();
        if !known {
            self.ports.entry(interface).or_default().plug = Some(Keeper::new(self.capacity));
            // What an earlier plug of this interface dropped or sent is history.
            let port = self.ports.get_mut(&interface).unwrap();
            port.said.clear();
            port.allowed = 0;
            port.cuts.clear();
        }
        assert_eq!(self.tell(Event::Added(interface)).is_err(), known);
    }

    fn leave(&mut self, interface: Interface, gone: bool) {
        let known = self.plug(interface).is_some();
        let answer = self.tell(if gone {
            Event::Gone(interface)
        } else {
            Event::Detached(interface)
        });
        assert_eq!(answer.is_ok(), known);
        if let Some(plug) = self.plug(interface) {
            plug.run(1_000);
        }
        self.judge();
        if let Some(port) = self.ports.get_mut(&interface) {
            port.plug = None;
        }
    }

    fn resync(&mut self, paused: bool, committed: bool) {
        let epoch = Epoch(self.at);
        let quiet = Quiet {
            paused,
            committed: committed.then_some(epoch),
            backlog_frames: Some(self.backlog()),
        };
        let failed = matches!(self.gate.state(), State::Failed { .. });
        let stuck = self.belief == Belief::Stuck && !failed;
        let right = stuck && paused && committed && self.backlog() == 0;
        let answer = self.tell(Event::Resync { epoch, quiet });
        assert_eq!(answer.is_ok(), right, "{answer:?}");
        if right {
            self.belief = Belief::Holding;
            self.last = Some(self.at);
        }
    }

    fn restart(&mut self) {
        let live = self.ports.iter().filter(|(_, port)| port.plug.is_some());
        let found: Vec<Interface> = live.map(|(interface, _)| *interface).collect();
        self.gate = Gate::with_capacity(LIMIT_BYTES, self.capacity, self.frames);
        self.last = None;
        self.tell(Event::Restarted(found)).unwrap();
        self.tell(Event::Authority(OURS)).unwrap();
        self.belief = Belief::Stuck;
    }

    /// Everything that may leave has left, and in order; nothing else has.
    fn complete(&mut self) {
        for port in self.live() {
            let plug = port.plug.as_mut().unwrap();
            plug.run(1_000);
            let may = port.said[..port.allowed].iter().copied();
            let should: Vec<u64> = may.filter(|f| !plug.dropped().contains(f)).collect();
            assert_eq!(plug.wire(), should, "not exactly what was released");
        }
    }

    fn judge(&self) {
        for port in self.ports.values() {
            let Some(plug) = &port.plug else { continue };
            let allowed = &port.said[..port.allowed];
            assert!(plug.wire().is_sorted(), "order");
            for frame in plug.wire() {
                assert!(allowed.contains(frame), "frame {frame} left early");
            }
        }
    }
}
