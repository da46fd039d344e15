//! The transitions: the table of the module.

use super::plant::Plant;
use super::{
    Attempt, Event, Found, InFlight, Nanos, OnLoss, Order, Part, Phase, Sequence, Settings, Word,
};
use std::collections::VecDeque;

impl Sequence {
    /// A guest that runs, unprotected; nothing is linked yet.
    #[must_use]
    pub fn new(settings: Settings, now: Nanos) -> Self {
        let missing = [Part::Memory, Part::Disk, Part::Output];
        Self {
            settings,
            phase: Phase::Waiting { copying: false },
            since: now,
            attempt: Attempt(0),
            missing: missing
                .map(|part| (part, "not there yet".to_owned()))
                .into(),
            in_flight: VecDeque::new(),
            output_cuts: VecDeque::new(),
            found_cut: None,
            unsure: None,
            memory_acked: None,
            disk_committed: None,
            committed: None,
            is_copied: false,
            is_held: false,
            found: None,
            is_cut_wanted: false,
            is_output_waiting: false,
            interval_min_ns: 0,
            asked: None,
            is_stopping: false,
            is_stuck: false,
            why: String::new(),
            #[cfg(any(test, feature = "plants"))]
            plant: None,
        }
    }

    /// Takes an event; orders are appended in the order in which they shall be carried out.
    pub fn step(&mut self, now: Nanos, event: Event, orders: &mut Vec<Order>) {
        self.is_output_waiting = event == Event::OutputWaits;
        match event {
            Event::HypervisorEnded(why) => {
                self.ended(now, why, orders);
                return;
            }
            // Told after its last orders failed: it did not die of them.
            Event::GuestOff if self.is_stuck => self.guest_off(now, orders),
            _ if self.phase == Phase::Over => return,
            Event::Tick | Event::OutputWaits => {}
            Event::Back { part, has_base } => self.back(part, has_base),
            Event::Lost { part, why } => self.lost(now, part, why, orders),
            Event::FirstCopied(attempt, result) => self.first_copied(now, attempt, result, orders),
            Event::CutWanted => self.is_cut_wanted = true,
            Event::GuestOff => self.guest_off(now, orders),
            // That is what becomes of a guest that is off.
            Event::HypervisorGone(_) if matches!(self.phase, Phase::Ending { .. }) => {}
            Event::HypervisorGone(why) => self.stuck(now, why, orders),
            Event::Stop => {
                self.is_stopping = true;
                // Whoever types it is not to wait for the question before to be due again.
                self.asked = None;
            }
            Event::Authority(word) => self.told(now, word, orders),
            Event::MemoryAcked(epoch) => {
                self.memory_acked = self.memory_acked.max(Some(epoch));
                self.found = None;
            }
            Event::DiskCommitted(epoch) => {
                self.disk_committed = self.disk_committed.max(Some(epoch));
            }
            Event::OutputCut(attempt, result)
                if self.unsure.is_some_and(|(unsure, ..)| unsure == attempt) =>
            {
                self.sure(result);
            }
            Event::Paused(attempt, _)
            | Event::DiskCut(attempt, _)
            | Event::Collected(attempt, _)
            | Event::OutputCut(attempt, _)
            | Event::Resumed(attempt, _)
                if attempt != self.attempt && !self.planted(Plant::LateAnswers) =>
            {
                // Of an attempt that was given up. The disks may have ended an epoch more; it has no memory.
                return;
            }
            Event::Paused(_, result) => self.paused(now, result, orders),
            Event::DiskCut(_, result) => self.disk_cut(now, result, orders),
            Event::Collected(_, result) => self.collected(now, result, orders),
            Event::OutputCut(_, result) => self.output_cut(now, result, orders),
            Event::Resumed(_, result) => self.resumed(now, result, orders),
        }
        self.release(orders);
        self.clock(now, orders);
    }

    pub(super) fn enter(&mut self, now: Nanos, phase: Phase) {
        self.phase = phase;
        self.since = now;
    }

    fn is_paused(&self) -> bool {
        matches!(
            self.phase,
            Phase::Pausing | Phase::Closing { .. } | Phase::Cutting { .. } | Phase::Resuming { .. }
        )
    }

    fn back(&mut self, part: Part, has_base: bool) {
        self.missing.remove(&part);
        if part == Part::Memory && !has_base {
            self.is_copied = false;
        }
    }

    pub(super) fn lost(&mut self, now: Nanos, part: Part, why: String, orders: &mut Vec<Order>) {
        // What is told last is nearest to what an operator can change.
        self.missing.insert(part, why);
        match part {
            // Of what is under way there may be no commit any more; a later checkpoint's counts for it.
            Part::Disk => self.in_flight.clear(),
            // What was held is of unknown epochs, or gone.
            Part::Output => {
                // A cut that is not answered is not carried out any more: it is not waited for.
                if matches!(self.phase, Phase::Cutting { .. }) {
                    self.give_up(now, "the output was lost".to_owned(), orders);
                }
                self.forget_cuts();
            }
            Part::Memory => {
                // Whatever the backup has of them, it has not said so: a later checkpoint carries it all.
                self.in_flight.clear();
                if !self.planted(Plant::NoTakeBack) {
                    orders.push(Order::TakeBack);
                }
                if !self.planted(Plant::Spoiled) {
                    self.spoil(now, orders);
                }
            }
        }
    }

    /// What is being collected lacks what was just taken back.
    fn spoil(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        match &mut self.phase {
            Phase::Waiting { copying } => *copying = false,
            Phase::Pausing | Phase::Closing { .. } | Phase::Cutting { .. } => {
                self.give_up(now, "the memory link was lost".to_owned(), orders);
            }
            Phase::Resuming { whole } if whole.is_some() => {
                *whole = None;
                self.abandon(orders);
            }
            _ => {}
        }
    }

    fn first_copied(
        &mut self,
        now: Nanos,
        attempt: Attempt,
        result: Result<(), String>,
        orders: &mut Vec<Order>,
    ) {
        if self.phase != (Phase::Waiting { copying: true }) || attempt != self.attempt {
            return;
        }
        if let Err(why) = result {
            self.lost(now, Part::Memory, why, orders);
            return;
        }
        self.is_copied = true;
        self.is_held = true;
        self.enter(now, Phase::Running);
    }

    fn guest_off(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        match self.phase {
            Phase::Open => {
                orders.push(Order::Finish(None));
                self.why = "the guest is off".to_owned();
                self.enter(now, Phase::Over);
            }
            Phase::Ending { .. } => {}
            _ => {
                if self.is_paused() {
                    self.abandon(orders);
                }
                self.is_stuck = false;
                // An attempt of its own, so that no late answer is taken for its.
                self.attempt.0 += 1;
                orders.push(Order::CutDisk(self.attempt));
                self.enter(now, Phase::Ending { epoch: None });
            }
        }
    }

    /// What the backup has whole lets go what was said before.
    fn release(&mut self, orders: &mut Vec<Order>) {
        while let Some(one) = self.in_flight.front()
            && (self.memory_acked >= Some(one.epoch) || self.planted(Plant::NoAck))
            && (self.disk_committed >= Some(one.epoch)
                || self.planted(Plant::NoDisk)
                || self.planted(Plant::NoAck))
        {
            self.committed = Some(one.epoch);
            self.in_flight.pop_front();
        }
        let Some(committed) = self.committed else {
            return;
        };
        let mut last = None;
        while let Some(&cut) = self.output_cuts.front()
            && cut <= committed
        {
            last = Some(cut);
            self.output_cuts.pop_front();
        }
        self.found_cut = self.found_cut.filter(|found| last < Some(*found));
        orders.extend(last.map(Order::Release));
    }

    fn told(&mut self, now: Nanos, word: Word, orders: &mut Vec<Order>) {
        if matches!(self.phase, Phase::Open | Phase::Ending { .. }) && word != Word::Lost {
            return;
        }
        match word {
            Word::Won(lineage) if self.is_out(lineage, orders) => {}
            // Even if it came late: the authority's record says now that the backup is out.
            Word::Won(lineage) => {
                if self.is_paused() {
                    self.abandon(orders);
                    orders.push(Order::Resume(self.attempt));
                }
                self.attempt.0 += 1;
                self.in_flight.clear();
                self.forget_cuts();
                orders.push(Order::OpenOutput(lineage));
                self.enter(now, Phase::Open);
            }
            Word::Lost => {
                orders.push(Order::StopGuest);
                self.over(now, "another host has the guest".to_owned(), orders);
            }
            Word::Unreachable(why) => self.why = format!("the authority does not answer: {why}"),
        }
    }

    pub(super) fn over(&mut self, now: Nanos, why: String, orders: &mut Vec<Order>) {
        orders.push(Order::HoldOutput(why.clone()));
        self.why = why;
        self.enter(now, Phase::Over);
    }

    /// The guest may stand still or run: nobody knows, and nothing it says leaves.
    pub(super) fn stuck(&mut self, now: Nanos, why: String, orders: &mut Vec<Order>) {
        self.is_stuck = true;
        self.over(now, why, orders);
    }

    /// The hypervisor's process is no more, and the guest with it.
    fn ended(&mut self, now: Nanos, why: String, orders: &mut Vec<Order>) {
        match self.phase {
            // That is what becomes of a guest that is off; the backup is being told.
            Phase::Ending { .. } if !self.planted(Plant::Resurrects) => {}
            Phase::Over if !self.is_stuck => {}
            // The backup is out, by the authority's word.
            Phase::Open => self.over(now, why, orders),
            _ => {
                self.is_stuck = false;
                orders.push(Order::HandOver(why.clone()));
                self.over(now, why, orders);
            }
        }
    }

    /// What is due.
    fn clock(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        let for_ns = now.saturating_sub(self.since);
        let settings = self.settings;
        self.ask(now, orders);
        match self.phase {
            Phase::Waiting { copying: false } if self.missing.is_empty() => {
                self.attempt.0 += 1;
                orders.push(Order::FirstCopy(self.attempt));
                self.enter(now, Phase::Waiting { copying: true });
            }
            Phase::Running => self.running(now, orders),
            Phase::Pausing | Phase::Closing { .. } | Phase::Cutting { .. }
                if for_ns >= settings.pause_max_ns && !self.planted(Plant::NoLimit) =>
            {
                let what = match self.phase {
                    Phase::Pausing => "the guest was not paused in time",
                    Phase::Closing { disk: None, .. } => "the disks were not cut in time",
                    Phase::Closing { .. } => "memory was not copied in time",
                    _ => "the output was not cut in time",
                };
                self.give_up(now, what.to_owned(), orders);
            }
            Phase::Resuming { .. } if for_ns >= settings.resume_max_ns => {
                let why = "the hypervisor does not let the guest go on".to_owned();
                self.stuck(now, why, orders);
            }
            Phase::Ending { epoch } => {
                if epoch.is_some() && epoch <= self.committed {
                    self.why = "the guest is off".to_owned();
                    orders.push(Order::Finish(epoch));
                    self.enter(now, Phase::Over);
                } else if for_ns >= settings.answer_max_ns {
                    let why = "the guest is off, and the backup does not have its end".to_owned();
                    self.over(now, why, orders);
                }
            }
            _ => {}
        }
    }

    /// A guest that cannot be protected, or shall not be, is the authority's matter.
    fn ask(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        // Before the first copy nothing is held, where the record does not have the backup in from before.
        let is_lost = self.is_held && !self.missing.is_empty();
        let is_past = self.found == Some(Found::Afresh);
        let degrades = (is_lost || is_past) && self.settings.on_loss == OnLoss::Degrade;
        let is_on = !self.has_ended();
        let is_due = self
            .asked
            .is_none_or(|asked| now.saturating_sub(asked) >= self.settings.answer_max_ns);
        if is_on && is_due && (degrades || self.is_stopping) {
            self.asked = Some(now);
            orders.push(Order::AskAuthority);
        }
    }

    /// Which part has not answered for a checkpoint.
    pub(super) fn waits_for(&self, one: &InFlight) -> Part {
        if self.memory_acked >= Some(one.epoch) {
            Part::Disk
        } else {
            Part::Memory
        }
    }

    fn running(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        let settings = self.settings;
        if !self.is_copied {
            self.enter(now, Phase::Waiting { copying: false });
            return;
        }
        if let Some(oldest) = self.in_flight.front()
            && now.saturating_sub(oldest.since) >= settings.answer_max_ns
        {
            let part = self.waits_for(oldest);
            let why = format!("it has not answered for epoch {}", oldest.epoch);
            if !self.missing.contains_key(&part) {
                self.lost(now, part, why, orders);
            }
        }
        if let Some((_, epoch, since)) = self.unsure
            && now.saturating_sub(since) >= settings.answer_max_ns
        {
            let why = format!("it has not answered to the cut of epoch {epoch}");
            self.lost(now, Part::Output, why, orders);
        }
        let is_due = now.saturating_sub(self.since) >= settings.interval_ns || self.is_cut_wanted;
        if (is_due && self.has_room()) || self.is_early(now) {
            self.is_cut_wanted = false;
            self.attempt.0 += 1;
            orders.push(Order::Pause(self.attempt));
            self.enter(now, Phase::Pausing);
        }
    }
}
