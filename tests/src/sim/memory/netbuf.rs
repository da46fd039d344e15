//! What holds the guest's output, and who sees what leaves.
//!
//! A cut stands between two frames; a release lets go what stands before one. A plug has one unreleased cut, a relay
//! many. A daemon that was killed holds what it finds, of epochs that it does not know any more. The witness is outside:
//! it notes every reply that reaches it, and is asked at a promotion.

use super::Step;
use super::authority::PRIMARY;
use super::machine::Transaction;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use blkback_proto::ids::Epoch;
use checkpointer::sequence::{Attempt, Event as Told, Order, Part};
use std::collections::VecDeque;

/// How long the checkpointer waits for an answer.
const LIMIT_NS: u64 = 25 * MS;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Holding,
    /// On somebody's word.
    Held,
    /// Found, of unknown epochs.
    Adopted,
}

/// How the output of a guest is as it begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Begins {
    /// Everything leaves.
    Open,
    /// On somebody's word.
    Held,
    /// It was cut before the guest ran: the backup is in.
    Cut,
}

/// The gate of the guest at the first host.
#[derive(Debug, Default)]
pub struct Netbuf {
    state: State,
    held: VecDeque<Transaction>,
    /// Unreleased, and how many frames stand before each.
    cuts: VecDeque<(Epoch, usize)>,
    /// Orders of an older connection are void.
    connection: u64,
    busy_until: u64,
    down_until: u64,
}

impl Netbuf {
    fn take(&mut self, count: usize) -> Vec<Transaction> {
        for (_, at) in &mut self.cuts {
            *at = at.saturating_sub(count);
        }
        self.held.drain(..count).collect()
    }
}

impl World {
    /// The guest replies to somebody outside.
    pub(super) fn guest_says(&mut self, transaction: Transaction) {
        if self.memory.netbuf.state == State::Open {
            self.witness_sees(transaction);
        } else {
            self.memory.netbuf.held.push_back(transaction);
        }
    }

    /// Whether what the guest says at the first host leaves at once.
    pub(super) fn is_output_open(&self) -> bool {
        self.memory.netbuf.state == State::Open
    }

    /// Whether somebody has to open it.
    pub(super) fn is_output_held(&self) -> bool {
        self.memory.netbuf.state == State::Held
    }

    /// The devices of a guest that begins: nothing is held yet, and nothing of the one before leaves.
    pub(super) fn netbuf_begins(&mut self, begins: Begins) {
        let connection = self.memory.netbuf.connection + 1;
        let (state, cuts) = match begins {
            Begins::Open => (State::Open, VecDeque::new()),
            Begins::Held => (State::Held, VecDeque::new()),
            Begins::Cut => (State::Holding, VecDeque::from([(Epoch(1), 0)])),
        };
        self.memory.netbuf = Netbuf {
            connection,
            state,
            cuts,
            ..Netbuf::default()
        };
    }

    /// The daemon is killed and comes back: what it held is held still, and it does not know of which epochs.
    pub(super) fn netbuf_dies(&mut self, back_ns: u64) {
        let until = self.now + back_ns;
        let netbuf = &mut self.memory.netbuf;
        netbuf.connection += 1;
        netbuf.cuts.clear();
        netbuf.state = State::Adopted;
        netbuf.down_until = until;
        if self.memory.checkpointer.output_asked.is_some() {
            self.output_lost();
        }
    }

    pub(super) fn order_netbuf(&mut self, order: Order) {
        let most = if self.is_unlucky(16) { 20 * MS } else { MS / 4 };
        let at = self.now + self.rng.u64(20_000..most);
        let netbuf = &mut self.memory.netbuf;
        netbuf.busy_until = netbuf.busy_until.max(at);
        let (at, connection) = (netbuf.busy_until, netbuf.connection);
        let life = self.memory.checkpointer.life;
        if let Order::CutOutput(attempt, _) = order {
            self.memory.checkpointer.output_asked = Some((attempt, self.now));
        }
        let step = Step::Netbuf {
            connection,
            life,
            order,
        };
        self.at(at, Event::Memory(step));
    }

    /// The daemon carries it out.
    pub(super) fn netbuf_obeys(&mut self, connection: u64, life: u32, order: &Order) {
        let netbuf = &self.memory.netbuf;
        if netbuf.connection != connection || netbuf.down_until > self.now {
            return;
        }
        match order {
            Order::CutOutput(attempt, epoch) => {
                let result = if self.is_unlucky(100) {
                    Err("no".to_owned())
                } else {
                    self.cut_output(*epoch)
                };
                say!(self, "output is cut at {epoch}: {result:?}");
                match result {
                    Ok(()) => self.answer(life, Told::OutputCut(*attempt, Ok(()))),
                    Err(_) if self.memory.checkpointer.life == life => self.output_lost(),
                    Err(_) => {}
                }
            }
            Order::Release(epoch) => self.release_output(life, *epoch),
            Order::OpenOutput(_) => self.open_output(),
            Order::HoldOutput(_) => self.memory.netbuf.state = State::Held,
            // Cut and let go as of the guest's end.
            Order::Finish(Some(_)) if self.memory.netbuf.state == State::Holding => {
                say!(self, "the last words of the guest leave");
                self.let_go(self.memory.netbuf.held.len());
                self.memory.netbuf.cuts.clear();
            }
            Order::Finish(_) => {}
            _ => unreachable!("no order for the output"),
        }
    }

    fn cut_output(&mut self, epoch: Epoch) -> Result<(), String> {
        let cuts_max = self.plan.output_cuts_max;
        let netbuf = &mut self.memory.netbuf;
        match netbuf.state {
            State::Held => return Err("held on somebody's word".to_owned()),
            State::Adopted => {
                // The interfaces are taken anew.
                netbuf.held.clear();
                netbuf.cuts.clear();
            }
            State::Open | State::Holding => {}
        }
        if netbuf.cuts.len() >= cuts_max {
            return Err("no room for a cut".to_owned());
        }
        if netbuf.cuts.back().is_some_and(|(last, _)| *last >= epoch) {
            return Err("numbers only grow".to_owned());
        }
        netbuf.state = State::Holding;
        netbuf.cuts.push_back((epoch, netbuf.held.len()));
        Ok(())
    }

    fn release_output(&mut self, life: u32, epoch: Epoch) {
        let netbuf = &mut self.memory.netbuf;
        let cut = netbuf.cuts.iter().position(|(cut, _)| *cut == epoch);
        let (State::Holding, Some(at)) = (netbuf.state, cut) else {
            if self.memory.checkpointer.life == life {
                self.output_lost();
            }
            return;
        };
        let count = netbuf.cuts[at].1;
        netbuf.cuts.drain(..=at);
        say!(self, "output up to {epoch} leaves: {count} replies");
        self.stats.checkpoints += 1;
        self.let_go(count);
    }

    fn open_output(&mut self) {
        say!(self, "output is open");
        if !self.is_alone(PRIMARY) || self.oracle.promoted.is_some() {
            self.violated("output is open where the guest is not alone".to_owned());
        }
        self.memory.netbuf.state = State::Open;
        self.memory.netbuf.cuts.clear();
        self.let_go(self.memory.netbuf.held.len());
    }

    fn let_go(&mut self, count: usize) {
        for transaction in self.memory.netbuf.take(count) {
            self.witness_sees(transaction);
        }
    }

    /// The connection is lost: what was ordered over it and is not done is void.
    pub(super) fn output_lost(&mut self) {
        self.memory.netbuf.connection += 1;
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer.is_output_there = false;
        checkpointer.output_again = self.now + 4 * MS;
        // Not answered, and not carried out any more.
        if let Some((attempt, _)) = checkpointer.output_asked.take() {
            let why = "no answer".to_owned();
            self.tell_sequence(Told::OutputCut(attempt, Err(why)));
        }
        let part = Part::Output;
        let why = "netbuf does not answer".to_owned();
        self.tell_sequence(Told::Lost { part, why });
    }

    /// The checkpointer looks for its output where it has none.
    pub(super) fn look_at_output(&mut self) {
        let (now, checkpointer) = (self.now, &self.memory.checkpointer);
        let is_late = |(_, since): (Attempt, u64)| now > since + LIMIT_NS;
        if checkpointer.output_asked.is_some_and(is_late) {
            return self.output_lost();
        }
        let netbuf = &self.memory.netbuf;
        if checkpointer.is_output_there || now < checkpointer.output_again {
            return;
        }
        if netbuf.down_until > now || netbuf.state == State::Held {
            return;
        }
        let cut = netbuf.cuts.back().map(|(epoch, _)| *epoch);
        let cuts_max = self.plan.output_cuts_max;
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer.is_output_there = true;
        if let Some(sequence) = &mut checkpointer.sequence {
            if let Some(cut) = cut {
                sequence.found_output_cut(cut);
            }
            sequence.set_output_cuts_max(cuts_max);
        }
        let (part, has_base) = (Part::Output, true);
        self.tell_sequence(Told::Back { part, has_base });
    }
}
