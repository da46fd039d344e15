//! The sequence's orders, carried out in simulated time. What `checkpointer/src/protect/carry.rs` is in the daemon.

use super::authority::Question;
use super::machine::{PAGES, Set};
use super::store::Image;
use super::{Frame, Step};
use crate::sim::host::Group;
use crate::sim::oracle::Position;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use blkback_proto::ids::{Epoch, LineageId};
use checkpointer::sequence::{Attempt, Event as Told, Order};

/// Cuts of a checkpointer have tokens from here on.
const TOKENS: u64 = 1 << 32;
/// How long a cut of the disks is waited for.
const CUT_NS_MAX: u64 = super::checkpointer::PAUSE_NS_MAX;

/// A cut of the disks that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Cutting {
    token: u64,
    attempt: Attempt,
    since: u64,
}

/// What was collected in a pause.
#[derive(Debug)]
pub struct Staged {
    attempt: Attempt,
    pages: Set,
    delta: [Option<u64>; PAGES],
    truth: super::machine::Pages,
    moment: Vec<Position>,
    guest: u32,
}

fn add(to: &mut Set, from: &Set) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to |= from);
}

impl World {
    pub(super) fn carry(&mut self, order: Order) {
        match order {
            Order::FirstCopy(attempt) => self.begin_copy(attempt),
            Order::Pause(_) | Order::Resume(_) | Order::StopGuest => self.order_machine(order),
            Order::CutDisk(attempt) => self.order_disks(attempt),
            Order::Collect(attempt) => self.collect(attempt),
            Order::Abandon(attempt) => {
                self.stats.abandoned += 1;
                let staged = self.memory.checkpointer.staged.take();
                if let Some(staged) = staged.filter(|staged| staged.attempt == attempt) {
                    add(&mut self.memory.machine.dirty, &staged.pages);
                }
            }
            Order::Send(attempt, epoch) => self.send_checkpoint(attempt, epoch),
            Order::SendEnd(epoch) => self.send_end(epoch),
            Order::TakeBack => {
                for (_, pages) in std::mem::take(&mut self.memory.checkpointer.unacknowledged) {
                    if !blockrep::mutants::is_planted("pages-not-taken-back") {
                        add(&mut self.memory.machine.dirty, &pages);
                    }
                }
                // The session ends, and the next one begins.
                if self.memory.link.is_some()
                    && self.memory.checkpointer.session == self.memory.link
                {
                    self.cut_memory_link(0);
                }
            }
            Order::CutOutput(..)
            | Order::Release(_)
            | Order::OpenOutput(_)
            | Order::HoldOutput(_)
            | Order::Finish(_) => {
                if matches!(order, Order::OpenOutput(_)) {
                    // What was sent before takes no backup in: it lacks what is said from now on.
                    self.memory.checkpointer.first = None;
                }
                self.stats.ended += u64::from(matches!(order, Order::Finish(_)));
                self.order_netbuf(order);
            }
            // Whoever promotes decides by himself, and when.
            Order::HandOver(why) => say!(self, "the guest is handed over: {why}"),
            Order::AskAuthority => self.ask_authority(Question::Degrade),
        }
    }

    fn order_disks(&mut self, attempt: Attempt) {
        if self.memory.checkpointer.cutting.is_some() {
            let why = "the cut before has not been answered".to_owned();
            return self.tell_sequence(Told::DiskCut(attempt, Err(why)));
        }
        let (token, since) = (TOKENS + self.memory.number(), self.now);
        self.memory.checkpointer.cutting = Some(Cutting {
            token,
            attempt,
            since,
        });
        // Carried out late, it may be after the attempt was given up.
        let most = if self.is_unlucky(24) { 60 * MS } else { MS / 5 };
        let delay = self.rng.u64(1000..most);
        self.after(delay, Event::Memory(Step::CutDisks { token }));
    }

    pub(super) fn disks_are_cut(&mut self, token: u64) {
        if self.hosts[0].up && matches!(self.hosts[0].group, Group::Primary(_)) {
            self.cut(token, true);
        }
    }

    /// The disks' cut is answered.
    pub fn checkpoint_is_cut(&mut self, token: u64, epoch: Epoch) {
        let Some(lineage) = self.tip(0) else {
            return;
        };
        let checkpointer = &mut self.memory.checkpointer;
        let Some(cutting) = checkpointer.cutting.take_if(|asked| asked.token == token) else {
            return;
        };
        checkpointer.lineages.insert(epoch, lineage);
        let life = checkpointer.life;
        say!(self, "the disks are cut: {epoch} of {lineage}");
        self.answer(life, Told::DiskCut(cutting.attempt, Ok(epoch)));
    }

    /// An answer that did not come in time is not taken any more.
    pub(super) fn look_at_cut(&mut self) {
        let now = self.now;
        let cutting = &mut self.memory.checkpointer.cutting;
        if let Some(late) = cutting.take_if(|asked| now > asked.since + CUT_NS_MAX) {
            let why = "no answer".to_owned();
            self.tell_sequence(Told::DiskCut(late.attempt, Err(why)));
        }
    }

    fn collect(&mut self, attempt: Attempt) {
        if !self.stands_still() && self.oracle.promoted.is_none() && self.memory.machine.is_there {
            say!(self, "collected from a guest that runs");
        }
        let moment = self.moment();
        let machine = &mut self.memory.machine;
        let pages = std::mem::take(&mut machine.dirty);
        let staged = Staged {
            attempt,
            pages,
            delta: std::array::from_fn(|page| pages[page].then_some(machine.pages[page])),
            truth: machine.pages,
            moment,
            guest: machine.life,
        };
        self.memory.checkpointer.staged = Some(staged);
        let result = if self.is_unlucky(100) {
            Err("the state is larger than its buffer".to_owned())
        } else {
            Ok(())
        };
        let most = if self.is_unlucky(24) { 20 * MS } else { MS / 2 };
        self.tell_after(most, Told::Collected(attempt, result));
    }

    fn named(&mut self, epoch: Epoch) -> LineageId {
        let lineages = &mut self.memory.checkpointer.lineages;
        let lineage = lineages.remove(&epoch);
        *lineages = lineages.split_off(&epoch);
        lineage.unwrap_or(LineageId([0; 16]))
    }

    fn send_checkpoint(&mut self, attempt: Attempt, epoch: Epoch) {
        let staged = self.memory.checkpointer.staged.take();
        let Some(staged) = staged.filter(|staged| staged.attempt == attempt) else {
            self.violated("what was not collected is to be sent".to_owned());
            return;
        };
        if self.oracle.serves(0) {
            self.check_moment(epoch, &staged.moment);
        }
        let lineage = self.named(epoch);
        let serial = self.memory.number();
        self.stats.sent += 1;
        let now = self.now;
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer.commits.push_back((epoch, lineage, now));
        checkpointer.unacknowledged.push((epoch, staged.pages));
        checkpointer.first.get_or_insert(epoch);
        let generation = checkpointer.generation;
        say!(self, "checkpoint {serial} is {epoch} of {lineage}");
        self.send_frame(Frame::Epoch(Box::new(Image {
            epoch,
            lineage,
            generation,
            serial,
            moment: staged.moment,
            delta: staged.delta,
            truth: staged.truth,
            pages: staged.truth,
            guest: staged.guest,
            is_end: false,
        })));
    }

    fn send_end(&mut self, epoch: Epoch) {
        let lineage = self.named(epoch);
        let serial = self.memory.number();
        let moment = self.moment();
        let machine = &self.memory.machine;
        let (truth, guest) = (machine.pages, machine.life);
        let now = self.now;
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer.commits.push_back((epoch, lineage, now));
        let generation = checkpointer.generation;
        self.send_frame(Frame::Epoch(Box::new(Image {
            epoch,
            lineage,
            generation,
            serial,
            moment,
            delta: [None; PAGES],
            truth,
            pages: truth,
            guest,
            is_end: true,
        })));
    }

    pub(super) fn send_frame(&mut self, frame: Frame) {
        // Over a link that has ended, and it does not know yet, nothing arrives.
        if self.memory.checkpointer.session.is_some()
            && self.memory.checkpointer.session == self.memory.link
        {
            self.send_memory(0, |link| Step::ToHolder { link, frame });
        }
    }
}
