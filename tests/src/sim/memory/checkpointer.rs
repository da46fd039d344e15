//! The process beside the guest: it feeds the real sequence with what happens, and has its orders carried out
//! (`carry`). What `checkpointer/src/protect/mod.rs` is in the daemon.

use super::authority::Question;
use super::carry::{Cutting, Staged};
use super::machine::{Pages, Set};
use super::{Acked, Step};
use crate::sim::host::Group;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep::group::State;
use checkpointer::sequence::{Attempt, Event as Told, Found, Order, Part, Sequence, Settings};
use std::collections::{BTreeMap, VecDeque};

/// How long the disks leave their epochs to a checkpointer after its last word.
const DRIVEN_NS: u64 = 30 * MS;
/// From the order to pause to the order to go on, at most.
pub(super) const PAUSE_NS_MAX: u64 = 40 * MS;
const RESUME_NS_MAX: u64 = 80 * MS;
const ANSWER_NS_MAX: u64 = 100 * MS;

/// The process.
#[derive(Default, Debug)]
pub struct Checkpointer {
    /// It runs.
    pub up: bool,
    pub(super) life: u32,
    pub(super) sequence: Option<Sequence>,
    /// Told, and not taken yet.
    events: VecDeque<Told>,
    is_stepping: bool,
    /// Its copy at the holder; 0 before there is one.
    pub(super) generation: u64,
    /// Of this copy.
    pub(super) first: Option<Epoch>,
    /// An epoch of this copy was committed, and the record names the backup.
    is_member: bool,
    /// The epoch for whose sake the authority is asked to take the backup in.
    pub(super) taking_in: Option<Epoch>,
    /// What the authority is asked, and whether it is to be asked for the guest next.
    pub(super) asking: Option<Question>,
    pub(super) degrades_next: bool,
    /// The guest is alone, for good as far as this process goes.
    pub(super) is_alone: bool,
    /// The memory link, as far as it knows.
    pub(super) session: Option<u64>,
    /// A first copy, of this moment.
    pub(super) copy: Option<(Attempt, Pages)>,
    pub(super) staged: Option<Staged>,
    /// Sent and not acknowledged.
    pub(super) unacknowledged: Vec<(Epoch, Set)>,
    pub(super) lineages: BTreeMap<Epoch, LineageId>,
    /// A cut of the disks that is not answered.
    pub(super) cutting: Option<Cutting>,
    /// Commits that are waited for, and since when.
    pub(super) commits: VecDeque<(Epoch, LineageId, u64)>,
    /// netbuf answers; else it is tried again at a time.
    pub(super) is_output_there: bool,
    pub(super) output_again: u64,
    /// A cut of the output that is not answered, and since when.
    pub(super) output_asked: Option<(Attempt, u64)>,
    is_disk_there: bool,
    /// It is killed when so many more orders were carried out.
    pub(super) dies_after: Option<u32>,
    /// Somebody looks after a protection that has ended.
    is_looked_after: bool,
}

impl World {
    pub(super) fn checkpointer_starts(&mut self) {
        let is_wanted = self.memory.machine.is_there && !self.memory.machine.is_off;
        if self.memory.checkpointer.up || !is_wanted || !self.claims() {
            return;
        }
        say!(self, "the checkpointer starts");
        let life = self.memory.checkpointer.life + 1;
        let plan = &self.plan;
        let settings = Settings {
            interval_ns: plan.checkpoint_ns.unwrap_or(5 * MS),
            pause_max_ns: PAUSE_NS_MAX,
            resume_max_ns: RESUME_NS_MAX,
            answer_max_ns: ANSWER_NS_MAX,
            in_flight_max: plan.in_flight_max,
            output_cuts_max: plan.output_cuts_max,
            on_loss: plan.on_loss,
        };
        let mut sequence = Sequence::new(settings, self.now);
        super::plants::plant(&mut sequence);
        let is_afresh = std::mem::take(&mut self.memory.machine.is_afresh);
        if self.is_backup_in() {
            let found = if is_afresh {
                Found::Afresh
            } else {
                Found::WentOn
            };
            sequence.found(self.now, found);
        }
        self.memory.checkpointer = Checkpointer {
            up: true,
            life,
            sequence: Some(sequence),
            ..Checkpointer::default()
        };
        self.after(0, Event::Memory(Step::Checkpointer { life }));
    }

    /// The process is killed; the guardian sees to it that the guest goes on, and its output stays as it is.
    pub fn checkpointer_dies(&mut self) {
        if !self.memory.checkpointer.up {
            return;
        }
        say!(self, "the checkpointer dies");
        self.memory.checkpointer.up = false;
        self.memory.checkpointer.sequence = None;
        self.memory.checkpointer.events.clear();
        self.memory.checkpointer.is_stepping = false;
        self.cut_memory_link(0);
        let guest = self.memory.machine.life;
        let delay = self.rng.u64(MS / 10..2 * MS);
        self.after(delay, Event::Memory(Step::Guardian { guest }));
    }

    /// Tells the sequence, and has its orders carried out.
    pub(super) fn tell_sequence(&mut self, event: Told) {
        let checkpointer = &mut self.memory.checkpointer;
        if !checkpointer.up {
            return;
        }
        checkpointer.events.push_back(event);
        if std::mem::replace(&mut checkpointer.is_stepping, true) {
            return;
        }
        let life = checkpointer.life;
        let mut orders = Vec::new();
        while let Some(event) = self.memory.checkpointer.events.pop_front() {
            let Some(sequence) = &mut self.memory.checkpointer.sequence else {
                break;
            };
            if event != Told::Tick && !matches!(event, Told::Back { .. }) {
                say!(self, "the sequence is told {event:?}");
            }
            sequence.step(self.now, event, &mut orders);
            for order in orders.drain(..) {
                say!(self, "the sequence orders {order:?}");
                self.obey(order);
                if !self.memory.checkpointer.up || self.memory.checkpointer.life != life {
                    return;
                }
            }
        }
        self.memory.checkpointer.is_stepping = false;
    }

    /// Tells it within this time.
    pub(super) fn tell_after(&mut self, most_ns: u64, event: Told) {
        let life = self.memory.checkpointer.life;
        let delay = self.rng.u64(most_ns / 100..most_ns);
        self.after(delay, Event::Memory(Step::Told { life, event }));
    }

    /// An answer to that process: it may be late, or lost.
    pub(super) fn answer(&mut self, life: u32, event: Told) {
        if self.is_unlucky(100) {
            return;
        }
        let most = if self.is_unlucky(24) {
            60 * MS
        } else {
            MS / 10
        };
        let delay = self.rng.u64(1000..most);
        self.after(delay, Event::Memory(Step::Told { life, event }));
    }

    pub(super) fn checkpointer_is_told(&mut self, life: u32, event: Told) {
        let checkpointer = &mut self.memory.checkpointer;
        if !checkpointer.up || checkpointer.life != life {
            return;
        }
        if matches!(event, Told::OutputCut(..)) {
            checkpointer.output_asked = None;
        }
        self.tell_sequence(event);
    }

    fn is_output_alone(&self) -> bool {
        let sequence = self.memory.checkpointer.sequence.as_ref();
        let is_planted = blockrep::mutants::is_planted("joined-while-degrading");
        sequence.is_some_and(|sequence| sequence.standing().state == "open") && !is_planted
    }

    /// The protection has ended.
    pub(super) fn is_over(&self) -> bool {
        let sequence = self.memory.checkpointer.sequence.as_ref();
        sequence.is_some_and(|sequence| matches!(sequence.standing().state, "over"))
    }

    pub(super) fn checkpointer_acts(&mut self, life: u32) {
        if !self.memory.checkpointer.up || self.memory.checkpointer.life != life {
            return;
        }
        let again = self.rng.u64(MS / 5..MS);
        self.after(again, Event::Memory(Step::Checkpointer { life }));
        self.look_at_link();
        self.look_at_disks();
        self.look_at_output();
        self.tell_sequence(Told::Tick);
        self.look_after_protection();
    }

    fn look_at_link(&mut self) {
        let is_free = self.memory.link.is_none() && self.memory.checkpointer.session.is_none();
        let can = self.memory.holder.up && self.now >= self.memory.down_until;
        if is_free && can && self.oracle.promoted.is_none() && self.rng.u8(..4) == 0 {
            self.link_memory();
        }
    }

    /// State and wish for a cut, where a primary runs.
    fn disks_stand(&mut self) -> Option<(State, bool)> {
        let now = self.now;
        match &mut self.hosts[0].group {
            Group::Primary(group) => {
                group.drive(now + DRIVEN_NS);
                Some((group.standing().state, group.is_cut_wished(now)))
            }
            _ => None,
        }
    }

    fn look_at_disks(&mut self) {
        let stands = self.disks_stand();
        let (is_there, is_wished) = match stands {
            Some((State::Protected, is_wished)) => (true, is_wished),
            // What was compared waits for its first commit, which takes a checkpoint.
            Some((State::Resyncing, is_wished)) => (is_wished, is_wished),
            _ => (false, false),
        };
        let part = Part::Disk;
        let was_there = std::mem::replace(&mut self.memory.checkpointer.is_disk_there, is_there);
        if is_there {
            // Said each time: the sequence takes a part for lost that owes it an answer, too.
            let has_base = true;
            self.tell_sequence(Told::Back { part, has_base });
        } else if was_there {
            let why = format!("{stands:?}");
            self.tell_sequence(Told::Lost { part, why });
        }
        if is_wished {
            self.tell_sequence(Told::CutWanted);
        }
        self.look_at_cut();
        self.look_at_commits();
    }

    /// What the disks of the primary know to be committed.
    fn look_at_commits(&mut self) {
        let Group::Primary(group) = &self.hosts[0].group else {
            return;
        };
        let (committed, tip) = (group.epochs().1, self.tip(0));
        let now = self.now;
        let commits = &mut self.memory.checkpointer.commits;
        commits.retain(|(.., since)| now < since + ANSWER_NS_MAX);
        // A daemon that was started anew counts on: its commits say nothing of an epoch from before.
        let is_done = |one: &(Epoch, LineageId, u64)| Some(one.1) == tip && one.0 <= committed;
        if let Some(at) = commits.iter().rposition(is_done) {
            let (epoch, ..) = commits.drain(..=at).next_back().expect("just seen");
            self.tell_after(MS / 5, Told::DiskCommitted(epoch));
            if self.is_unlucky(16) {
                // Told twice, and late.
                self.tell_after(30 * MS, Told::DiskCommitted(epoch));
            }
        }
    }

    /// The holder has this copy, of whoever.
    pub(super) fn checkpointer_linked(&mut self, link: u64, base: u64) {
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer.session = Some(link);
        let has_base = checkpointer.generation != 0 && base == checkpointer.generation;
        let part = Part::Memory;
        self.tell_sequence(Told::Back { part, has_base });
    }

    pub(super) fn checkpointer_lost_link(&mut self, link: u64) {
        let checkpointer = &mut self.memory.checkpointer;
        if checkpointer.session != Some(link) {
            return;
        }
        checkpointer.session = None;
        checkpointer.copy = None;
        let part = Part::Memory;
        let why = "the link is down".to_owned();
        self.tell_sequence(Told::Lost { part, why });
    }

    pub(super) fn checkpointer_hears(&mut self, acked: Acked) {
        let checkpointer = &mut self.memory.checkpointer;
        match acked {
            // Until the backup has committed one with memory, its disks may have gone on without it.
            Acked::Whole(epoch) if checkpointer.is_member => self.memory_acked(epoch),
            Acked::Whole(_) => {}
            Acked::Committed(epoch) if checkpointer.is_member => self.memory_acked(epoch),
            Acked::Committed(epoch) => {
                // One of the copy before is none of this.
                let is_mine = checkpointer.first.is_some_and(|first| epoch >= first);
                let is_old = blockrep::mutants::is_planted("old-copy-taken-in");
                // One that speaks alone has no backup.
                let is_alone = self.is_output_alone();
                let checkpointer = &mut self.memory.checkpointer;
                let counts = (is_mine || is_old) && !is_alone && !checkpointer.is_alone;
                if counts && checkpointer.taking_in.replace(epoch).is_none() {
                    self.ask_authority(Question::Protect);
                }
            }
        }
    }

    pub(super) fn backup_is_taken_in(&mut self, is_done: bool) {
        let checkpointer = &mut self.memory.checkpointer;
        // Refused or not reached, it is asked again with the next commit.
        let epoch = checkpointer.taking_in.take();
        if let Some(epoch) = epoch.filter(|_| is_done) {
            checkpointer.is_member = true;
            self.memory_acked(epoch);
        }
    }

    fn memory_acked(&mut self, epoch: Epoch) {
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer
            .unacknowledged
            .retain(|(sent, _)| *sent > epoch);
        self.tell_sequence(Told::MemoryAcked(epoch));
        if self.is_unlucky(24) {
            self.tell_after(40 * MS, Told::MemoryAcked(epoch));
        }
    }

    pub(super) fn begin_copy(&mut self, attempt: Attempt) {
        let generation = self.memory.number();
        let checkpointer = &mut self.memory.checkpointer;
        if checkpointer.session.is_none() {
            let why = "no link".to_owned();
            return self.tell_sequence(Told::FirstCopied(attempt, Err(why)));
        }
        checkpointer.generation = generation;
        (checkpointer.first, checkpointer.is_member) = (None, false);
        checkpointer.taking_in = None;
        checkpointer.staged = None;
        checkpointer.unacknowledged.clear();
        checkpointer.copy = Some((attempt, self.memory.machine.pages));
        self.memory.machine.dirty = Set::default();
        self.send_frame(super::Frame::Copy(generation));
        let delay = self.rng.u64(MS..10 * MS);
        let life = self.memory.checkpointer.life;
        self.after(delay, Event::Memory(Step::Copied { life, attempt }));
    }

    pub(super) fn copy_ends(&mut self, life: u32, attempt: Attempt) {
        let checkpointer = &mut self.memory.checkpointer;
        if !checkpointer.up || checkpointer.life != life {
            return;
        }
        if let Some((_, pages)) = checkpointer.copy.take_if(|(of, _)| *of == attempt) {
            self.send_frame(super::Frame::Pages(pages));
            self.tell_sequence(Told::FirstCopied(attempt, Ok(())));
        }
    }

    /// A protection that has ended is somebody's matter: one that runs alone is protected anew, a guest that was left
    /// standing is started anew.
    fn look_after_protection(&mut self) {
        let Some(sequence) = &self.memory.checkpointer.sequence else {
            return;
        };
        let state = sequence.standing().state;
        if !matches!(state, "open" | "over") || self.memory.checkpointer.is_looked_after {
            return;
        }
        self.memory.checkpointer.is_looked_after = true;
        let life = self.memory.checkpointer.life;
        let delay = self.rng.u64(10 * MS..60 * MS);
        let is_over = state == "over";
        self.after(delay, Event::Memory(Step::LookAfter { life, is_over }));
    }

    pub(super) fn operator_looks_after(&mut self, life: u32, is_over: bool) {
        if self.memory.checkpointer.life != life || self.oracle.promoted.is_some() {
            return;
        }
        self.checkpointer_dies();
        if is_over {
            self.machine_stops();
            self.after(MS, Event::Memory(Step::MachineStarts));
        } else {
            self.after(MS, Event::Memory(Step::CheckpointerStarts));
        }
    }

    /// An order is to be carried out; the process may be killed then.
    pub(super) fn obey(&mut self, order: Order) {
        if let Some(left) = &mut self.memory.checkpointer.dies_after {
            if *left == 0 {
                self.memory.checkpointer.dies_after = None;
                let is_done = self.rng.bool();
                if is_done {
                    self.carry(order);
                }
                self.checkpointer_dies();
                let back = self.rng.u64(MS..30 * MS);
                self.after(back, Event::Memory(Step::CheckpointerStarts));
                return;
            }
            *left -= 1;
        }
        self.carry(order);
    }
}
