//! A guest, its disks, its output and a backup, all of which may be late, fail or be lost; and a judge that
//! knows what the backup could bring back, and nothing of how the sequence decides.

use super::early::CutsSeen;
use crate::sequence::plant::Plant;
use crate::sequence::{
    Attempt, Event, Found, Nanos, OnLoss, Order, Part, Sequence, Settings, Word,
};
use blkback_proto::ids::{Epoch, LineageId};
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) const PAGES: u64 = 6;
pub(super) const MS: Nanos = 1_000_000;

/// One moment of the guest: each of its steps writes one page, its disk, and says one frame.
pub(super) type Moment = u64;
pub(super) type Memory = BTreeMap<u64, Moment>;

/// Who carries out orders, each in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doer {
    Hypervisor,
    Disks,
    Output,
    Copier,
    Link,
    Authority,
}

#[derive(Debug)]
pub(super) struct Collected {
    pub(super) pages: Memory,
    pub(super) moment: Moment,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) sequence: Sequence,
    pub(super) rng: Rng,
    pub(super) now: Nanos,
    pub(super) settings: Settings,
    pub(super) orders: BTreeMap<Doer, VecDeque<Order>>,
    /// Answers on their way, and when they may come.
    pub(super) answers: Vec<(Nanos, Event)>,

    is_running: bool,
    pub(super) is_off: bool,
    /// The hypervisor's process has ended.
    pub(super) is_dead: bool,
    pub(super) handed_over: u64,
    moment: Moment,
    pub(super) memory: Memory,
    dirty: BTreeSet<u64>,
    /// When the guest was ordered to pause, and not to go on.
    pause_ordered: Option<Nanos>,
    /// What the judge of the cuts' moments knows.
    pub(super) cuts_seen: CutsSeen,
    pub(super) interval_min_ns: Nanos,
    /// Cuts before the interval was over.
    pub(super) early: u64,

    /// The open epoch of the disks, and at which moment each ended.
    pub(super) disk_epoch: u64,
    pub(super) disk_ended: BTreeMap<u64, Moment>,
    pub(super) disk_committed: u64,

    /// Frames held, and places of unreleased cuts.
    pub(super) held: VecDeque<Moment>,
    pub(super) cuts: VecDeque<(u64, usize)>,
    is_holding: bool,
    pub(super) said: u64,
    /// The record has the backup in, as far as it is not to be out by an answer on its way.
    is_backup_in: bool,
    /// What was sent before this epoch takes no backup in.
    opened_at: u64,

    staged: BTreeMap<Attempt, Collected>,
    /// Sent and not acknowledged.
    pub(super) unacknowledged: BTreeMap<u64, Collected>,
    /// What the backup has: its copy, and of which moment the checkpoints in it are.
    pub(super) copy: Option<Memory>,
    pub(super) checkpoints: BTreeMap<u64, Moment>,
    pub(super) ends: BTreeSet<u64>,
    pub(super) is_linked: bool,
    pub(super) is_calm: bool,
    pub(super) released: u64,
    pub(super) states: BTreeMap<&'static str, u64>,
}

impl World {
    pub(super) fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let settings = Settings {
            interval_ns: 25 * MS,
            pause_max_ns: 100 * MS,
            resume_max_ns: 1000 * MS,
            answer_max_ns: 400 * MS,
            in_flight_max: rng.usize(1..4),
            output_cuts_max: if rng.bool() { 1 } else { 3 },
            on_loss: if rng.u8(..4) == 0 {
                OnLoss::Degrade
            } else {
                OnLoss::Hold
            },
        };
        let mut sequence = Sequence::new(settings, 0);
        if let Some(plant) = plant {
            sequence.plant(plant);
        }
        let found = match rng.u8(..6) {
            0 => Some(Found::Afresh),
            1 => Some(Found::WentOn),
            _ => None,
        };
        if let Some(found) = found {
            sequence.found(0, found);
        }
        let interval_min_ns = [0, 5 * MS, 10 * MS][rng.usize(..3)];
        sequence.set_interval_min(interval_min_ns);
        Self {
            sequence,
            rng,
            now: 0,
            settings,
            orders: BTreeMap::new(),
            answers: Vec::new(),
            is_running: true,
            is_off: false,
            is_dead: false,
            handed_over: 0,
            moment: 1,
            memory: (0..PAGES).map(|page| (page, 0)).collect(),
            dirty: BTreeSet::new(),
            pause_ordered: None,
            cuts_seen: CutsSeen::default(),
            interval_min_ns,
            early: 0,
            disk_epoch: 1,
            disk_ended: BTreeMap::new(),
            disk_committed: 0,
            held: VecDeque::new(),
            cuts: VecDeque::new(),
            is_holding: found.is_some(),
            said: 0,
            is_backup_in: found.is_some(),
            opened_at: 0,
            staged: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            copy: None,
            checkpoints: BTreeMap::new(),
            ends: BTreeSet::new(),
            is_linked: false,
            is_calm: false,
            released: 0,
            states: BTreeMap::new(),
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        let mut orders = Vec::new();
        self.sequence.step(self.now, event.clone(), &mut orders);
        self.judge_cuts(&event, &orders);
        if let Event::MemoryAcked(epoch) = event {
            // One question after the other.
            let is_out = |event: &Event| matches!(event, Event::Authority(Word::Won(_)));
            let is_asked = self.answers.iter().any(|(_, event)| is_out(event));
            let counts = !self.sequence.has_ended() && epoch.0 >= self.opened_at;
            self.is_backup_in |= counts && !is_asked;
        }
        let standing = self.sequence.standing();
        assert!(!standing.reason.is_empty() && !standing.reason.contains('\n'));
        *self.states.entry(standing.state).or_default() += 1;
        for order in orders {
            assert!(
                self.handed_over == 0 || !matches!(order, Order::Release(_) | Order::OpenOutput(_)),
                "{order:?} after the guest was handed over"
            );
            let doer = match order {
                Order::HandOver(_) => {
                    assert!(!self.is_off, "a guest that is off is handed over");
                    assert!(self.is_dead, "a guest that may run is handed over");
                    self.handed_over += 1;
                    continue;
                }
                Order::Pause(_) | Order::Resume(_) | Order::StopGuest => Doer::Hypervisor,
                Order::CutDisk(_) => Doer::Disks,
                Order::CutOutput(..)
                | Order::Release(_)
                | Order::OpenOutput(_)
                | Order::HoldOutput(_)
                | Order::Finish(_) => Doer::Output,
                Order::FirstCopy(_) | Order::Collect(_) => Doer::Copier,
                Order::SendEnd(_) => Doer::Link,
                Order::AskAuthority => Doer::Authority,
                Order::Abandon(attempt) => {
                    self.abandon(attempt);
                    continue;
                }
                Order::TakeBack => {
                    let all = std::mem::take(&mut self.unacknowledged);
                    self.dirty
                        .extend(all.values().flat_map(|one| one.pages.keys()));
                    continue;
                }
                Order::Send(attempt, epoch) => {
                    let collected = self
                        .staged
                        .remove(&attempt)
                        .expect("sent what was not collected");
                    self.unacknowledged.insert(epoch.0, collected);
                    continue;
                }
            };
            match order {
                Order::Pause(_) => self.pause_ordered = Some(self.now),
                Order::Resume(_) => self.pause_ordered = None,
                Order::OpenOutput(_) => self.opened_at = self.disk_epoch,
                _ => {}
            }
            self.orders.entry(doer).or_default().push_back(order);
        }
    }

    fn abandon(&mut self, attempt: Attempt) {
        if let Some(queue) = self.orders.get_mut(&Doer::Copier) {
            queue.retain(|order| *order != Order::Collect(attempt));
        }
        if let Some(collected) = self.staged.remove(&attempt) {
            self.dirty.extend(collected.pages.keys());
        }
    }

    /// Something happens.
    pub(super) fn turn(&mut self) {
        match self.rng.u8(..100) {
            0..30 => self.guest(),
            30..60 => self.carry_out(),
            60..78 => self.answer(),
            78..88 => self.transmit(),
            88..97 => self.time(),
            _ if self.is_calm => {
                for part in [Part::Memory, Part::Disk, Part::Output] {
                    self.comes_back(part);
                }
            }
            _ => self.upset(),
        }
        if let Some(ordered) = self.pause_ordered
            && !self.is_off
            && !self.is_dead
        {
            let since = self.now - ordered;
            assert!(
                since <= self.settings.pause_max_ns + 20 * MS,
                "paused for too long"
            );
        }
    }

    fn time(&mut self) {
        self.now += self.rng.u64(1..15) * MS;
        let waits = self.rng.u8(..3) == 0;
        self.tell(if waits {
            Event::OutputWaits
        } else {
            Event::Tick
        });
    }

    fn guest(&mut self) {
        if !self.is_running || self.is_off || self.is_dead {
            return;
        }
        self.moment += 1;
        let page = self.rng.u64(..PAGES);
        self.memory.insert(page, self.moment);
        self.dirty.insert(page);
        if self.is_holding {
            self.held.push_back(self.moment);
        } else {
            assert!(
                !self.is_backup_in,
                "it speaks, and the record has the backup in"
            );
        }
    }

    /// One order of one doer; its answer may be late, wrong or never come.
    fn carry_out(&mut self) {
        let busy: Vec<Doer> = self
            .orders
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(doer, _)| *doer)
            .collect();
        let Some(&doer) = busy.get(self.rng.usize(..busy.len().max(1))) else {
            return;
        };
        let order = self.orders.get_mut(&doer).unwrap().pop_front().unwrap();
        let luck = if self.is_calm { 50 } else { self.rng.u8(..100) };
        let is_refused = luck < 4;
        let answer = self.do_it(&order, is_refused);
        // Its own answers a checkpointer does not lose.
        let is_rare = matches!(order, Order::Resume(_)) && self.rng.u8(..30) > 0;
        let is_heard = luck < 94 || doer == Doer::Copier || is_rare;
        if let Some(answer) = answer.filter(|_| is_heard) {
            let is_late = !self.is_calm && self.rng.u8(..12) == 0;
            let late = if is_late { self.rng.u64(..250) * MS } else { 0 };
            self.answers.push((self.now + late, answer));
        }
    }

    fn do_it(&mut self, order: &Order, is_refused: bool) -> Option<Event> {
        let refused = || Err("no".to_owned());
        // A hypervisor that has ended refuses all of it.
        let is_stuck = is_refused || self.is_dead;
        Some(match *order {
            Order::Resume(attempt) if self.is_dead => Event::Resumed(attempt, refused()),
            Order::Pause(attempt) if is_stuck => Event::Paused(attempt, refused()),
            Order::Pause(attempt) => {
                self.is_running = false;
                Event::Paused(attempt, Ok(()))
            }
            Order::Resume(attempt) => {
                self.is_running = true;
                Event::Resumed(attempt, Ok(()))
            }
            Order::StopGuest => {
                self.is_running = false;
                return None;
            }
            Order::CutDisk(attempt) if is_refused => Event::DiskCut(attempt, Err("no".to_owned())),
            Order::CutDisk(attempt) => {
                let epoch = self.disk_epoch;
                self.disk_ended.insert(epoch, self.moment);
                self.disk_epoch += 1;
                Event::DiskCut(attempt, Ok(Epoch(epoch)))
            }
            Order::Collect(attempt) if is_stuck => Event::Collected(attempt, refused()),
            Order::Collect(attempt) => {
                assert!(!self.is_running, "collected from a guest that runs");
                let dirty = std::mem::take(&mut self.dirty);
                let pages = dirty
                    .into_iter()
                    .map(|page| (page, self.memory[&page]))
                    .collect();
                let moment = self.moment;
                self.staged.insert(attempt, Collected { pages, moment });
                Event::Collected(attempt, Ok(()))
            }
            Order::FirstCopy(attempt) => {
                if !self.is_linked || is_stuck {
                    self.is_linked = false;
                    return Some(Event::FirstCopied(attempt, Err("no".to_owned())));
                }
                self.copy = Some(self.memory.clone());
                self.dirty.clear();
                // What the guest writes meanwhile.
                self.dirty.insert(self.rng.u64(..PAGES));
                Event::FirstCopied(attempt, Ok(()))
            }
            Order::SendEnd(epoch) => {
                if self.is_linked && !self.unacknowledged.is_empty() {
                    // It goes after what was sent before.
                    self.orders
                        .entry(Doer::Link)
                        .or_default()
                        .push_front(order.clone());
                    return None;
                }
                if self.is_linked {
                    self.ends.insert(epoch.0);
                    return Some(Event::MemoryAcked(epoch));
                }
                return None;
            }
            Order::AskAuthority => match self.rng.u8(..3) {
                0 => Event::Authority(Word::Unreachable("no quorum".to_owned())),
                1 => self.is_out(),
                _ => return None,
            },
            _ => return self.do_output(order, is_refused),
        })
    }

    /// The authority takes the backup out.
    fn is_out(&mut self) -> Event {
        self.is_backup_in = false;
        self.opened_at = self.disk_epoch;
        Event::Authority(Word::Won(LineageId([7; 16])))
    }

    fn do_output(&mut self, order: &Order, is_refused: bool) -> Option<Event> {
        Some(match *order {
            Order::CutOutput(attempt, _) if is_refused => {
                Event::OutputCut(attempt, Err("no".to_owned()))
            }
            Order::CutOutput(attempt, epoch) => {
                assert!(
                    self.cuts.len() < self.settings.output_cuts_max,
                    "a plug forgets its count"
                );
                assert!(self.cuts.back().is_none_or(|(last, _)| *last < epoch.0));
                self.is_holding = true;
                self.cuts.push_back((epoch.0, self.held.len()));
                Event::OutputCut(attempt, Ok(()))
            }
            Order::Release(epoch) => {
                self.release(epoch.0);
                return None;
            }
            Order::OpenOutput(_) => {
                self.is_holding = false;
                self.held.clear();
                self.cuts.clear();
                return None;
            }
            Order::HoldOutput(_) | Order::Finish(_) => return None,
            ref order => unreachable!("{order:?} is done at once"),
        })
    }

    fn answer(&mut self) {
        let due: Vec<usize> = (0..self.answers.len())
            .filter(|at| self.answers[*at].0 <= self.now)
            .collect();
        if let Some(&at) = self.rng.choice(&due) {
            let (_, event) = self.answers.swap_remove(at);
            self.tell(event);
        }
    }

    pub(super) fn committed(&self) -> u64 {
        self.checkpoints
            .keys()
            .filter(|epoch| **epoch <= self.disk_committed)
            .count() as u64
    }

    pub(super) fn state(&self) -> &'static str {
        self.sequence.standing().state
    }

    pub(super) fn guest_runs(&self) -> bool {
        self.is_running
    }
}
