//! Who holds memory, at the backup's host, and what it and the backup's daemon say to each other: the rules of
//! `checkpointer/src/standby/disks.rs`.

use super::{Acked, Frame, Step};
use crate::sim::host::Group;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep::group::memory::{MemoryError, MemoryFacts};
use std::collections::VecDeque;

/// An answer that did not come by then is not waited for.
const LIMIT_NS: u64 = 100 * MS;

/// A request to the backup's daemon.
#[derive(Clone, Debug)]
pub enum Ask {
    /// With what is kept when it is sent.
    Join(MemoryFacts),
    /// An epoch is whole.
    Whole(Epoch, LineageId),
    /// What is committed with memory?
    Wait,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// The last commit with memory.
    At(Option<Epoch>),
    /// The daemon does not take it.
    Refused,
    /// No connection, or no more.
    Lost,
}

/// The process. Its two threads have one request under way each.
#[derive(Default, Debug)]
pub struct Holder {
    /// It runs.
    pub up: bool,
    life: u32,
    /// Connected, and joined, as far as it knows.
    is_joined: bool,
    queue: VecDeque<(Epoch, LineageId)>,
    again: bool,
    /// The request that the teller and the waiter have an answer to come for.
    telling: Option<(u64, bool)>,
    waiting: Option<u64>,
    above: Epoch,
    /// The group's answers to joins: which request they are for.
    tokens: VecDeque<(u64, u32, u64)>,
}

impl World {
    pub(super) fn holder_starts(&mut self) {
        if self.memory.holder.up || !self.hosts[1].was_started() {
            return;
        }
        let life = self.memory.holder.life + 1;
        say!(self, "the holder of memory starts");
        self.memory.holder = Holder {
            up: true,
            life,
            tokens: std::mem::take(&mut self.memory.holder.tokens),
            ..Holder::default()
        };
        self.after(0, Event::Memory(Step::Holder { life }));
    }

    /// The process is killed; what it keeps is in shared memory.
    pub fn holder_dies(&mut self) {
        say!(self, "the holder of memory dies");
        self.memory.holder.up = false;
        self.cut_memory_link(0);
    }

    /// The backup's daemon is gone: both threads hear of it, if nothing else happens to them.
    pub(super) fn holder_lost_daemon(&mut self) {
        let ids = [
            self.memory.holder.telling.map(|(id, _)| id),
            self.memory.holder.waiting,
        ];
        for id in ids.into_iter().flatten() {
            self.answer_after(id, Answer::Lost);
        }
    }

    pub(super) fn holder_acts(&mut self, life: u32) {
        if !self.memory.holder.up || self.memory.holder.life != life {
            return;
        }
        let again = self.rng.u64(MS / 2..4 * MS);
        self.after(again, Event::Memory(Step::Holder { life }));
        if self.oracle.promoted.is_some() {
            return;
        }
        self.holder_tells();
        if self.memory.holder.waiting.is_none() {
            let id = self.ask_daemon(Ask::Wait);
            self.memory.holder.waiting = Some(id);
        }
    }

    fn holder_tells(&mut self) {
        let holder = &mut self.memory.holder;
        if !holder.up || holder.telling.is_some() {
            return;
        }
        if std::mem::take(&mut holder.again) {
            holder.is_joined = false;
            self.holder_joins();
        } else if !holder.is_joined {
            // What is whole is in the store, and told with the rest.
            holder.queue.pop_front();
            self.holder_joins();
        } else if let Some((epoch, lineage)) = holder.queue.pop_front() {
            let id = self.ask_daemon(Ask::Whole(epoch, lineage));
            self.memory.holder.telling = Some((id, false));
        }
    }

    fn holder_joins(&mut self) {
        let committed = self.memory.store.committed();
        let whole = self.memory.store.whole_of();
        let has_nothing = committed == Epoch::NONE && whole.is_empty();
        // With nothing in the store there is nothing to be a member with; a group that waits for it is told so.
        let waits = match &self.hosts[1].group {
            Group::Backup(group) => group.memory().is_some_and(|memory| !memory.joined),
            _ => false,
        };
        if has_nothing && !waits {
            return;
        }
        let committed = Some(committed).filter(|epoch| *epoch != Epoch::NONE);
        let id = self.ask_daemon(Ask::Join(MemoryFacts { committed, whole }));
        self.memory.holder.telling = Some((id, true));
    }

    fn ask_daemon(&mut self, ask: Ask) -> u64 {
        let id = self.memory.number();
        let (life, boot) = (self.memory.holder.life, self.hosts[1].boot);
        let delay = self.rng.u64(10_000..300_000);
        let step = Step::Ask {
            life,
            boot,
            id,
            ask,
        };
        self.after(delay, Event::Memory(step));
        let answer = Answer::Lost;
        let step = Step::Answer { life, id, answer };
        self.after(LIMIT_NS, Event::Memory(step));
        id
    }

    fn answer_after(&mut self, id: u64, answer: Answer) {
        let life = self.memory.holder.life;
        self.answer_to(life, id, answer);
    }

    fn answer_to(&mut self, life: u32, id: u64, answer: Answer) {
        // Now and then a connection breaks between a request that was done and its answer.
        let answer = match self.rng.u8(..64) {
            0 => Answer::Lost,
            _ => answer,
        };
        let most = if self.rng.u8(..16) == 0 {
            10 * MS
        } else {
            MS / 2
        };
        let delay = self.rng.u64(10_000..most);
        let step = Step::Answer { life, id, answer };
        self.after(delay, Event::Memory(step));
    }

    fn with_memory(&self) -> Option<Epoch> {
        match &self.hosts[1].group {
            Group::Backup(group) => group.memory().and_then(|memory| memory.at),
            _ => None,
        }
    }

    pub(super) fn daemon_is_asked(&mut self, life: u32, boot: u32, id: u64, ask: Ask) {
        if !self.runs(1, boot) || !matches!(self.hosts[1].group, Group::Backup(_)) {
            self.answer_to(life, id, Answer::Lost);
            return;
        }
        match ask {
            Ask::Wait => self.answer_to(life, id, Answer::At(self.with_memory())),
            Ask::Join(facts) => {
                say!(self, "the holder joins: {facts:?}");
                let token = self.memory.number();
                self.memory.holder.tokens.push_back((token, life, id));
                self.memory.joining = true;
                self.drive_group(1, |group, _, fx| {
                    if let Group::Backup(group) = group {
                        group.memory_join(token, facts, fx);
                    }
                });
                self.memory.joining = false;
            }
            Ask::Whole(epoch, lineage) => {
                let mut result = Ok(Epoch::NONE);
                self.drive_group(1, |group, _, fx| {
                    if let Group::Backup(group) = group {
                        result = group.memory_whole(epoch, lineage, fx);
                    }
                });
                say!(self, "the holder has {epoch}: {result:?}");
                let answer = match result {
                    Ok(_) => Answer::At(self.with_memory()),
                    Err(_) => Answer::Refused,
                };
                self.answer_to(life, id, answer);
            }
        }
    }

    /// The group's answer to a join.
    pub fn memory_reply(&mut self, token: u64, result: Result<Epoch, MemoryError>) {
        say!(self, "the join is answered: {result:?}");
        let tokens = &mut self.memory.holder.tokens;
        let Some(at) = tokens.iter().position(|(known, ..)| *known == token) else {
            return;
        };
        let (_, life, id) = tokens.remove(at).expect("just seen");
        let answer = match result {
            Ok(_) => Answer::At(self.with_memory()),
            Err(_) => Answer::Refused,
        };
        self.answer_to(life, id, answer);
    }

    pub(super) fn holder_is_answered(&mut self, life: u32, id: u64, answer: Answer) {
        let holder = &mut self.memory.holder;
        if !holder.up || holder.life != life {
            return;
        }
        if let Some((_, is_join)) = holder.telling.take_if(|(asked, _)| *asked == id) {
            match answer {
                Answer::At(at) => {
                    holder.is_joined |= is_join;
                    self.holder_commits(at);
                }
                Answer::Refused => {}
                Answer::Lost => holder.is_joined = false,
            }
            // Joining again waits for a moment.
            if self.memory.holder.is_joined {
                self.holder_tells();
            }
        } else if holder.waiting.take_if(|asked| *asked == id).is_some() {
            match answer {
                Answer::At(Some(at)) if at > holder.above => {
                    holder.above = at;
                    self.holder_commits(Some(at));
                }
                Answer::At(_) => {}
                Answer::Refused => holder.again = true,
                Answer::Lost => {
                    holder.above = Epoch::NONE;
                    holder.again = true;
                }
            }
        }
    }

    fn holder_commits(&mut self, at: Option<Epoch>) {
        let Some(epoch) = at.filter(|_| self.oracle.promoted.is_none()) else {
            return;
        };
        let committed = self.memory.store.commit(epoch);
        say!(self, "the holder hears {epoch}, and is epoch {committed}");
        self.holder_tells_committed();
    }

    pub(super) fn holder_tells_committed(&mut self) {
        let committed = self.memory.store.committed();
        if committed != Epoch::NONE {
            let acked = Acked::Committed(committed);
            self.send_memory(1, |link| Step::ToCheckpointer { link, acked });
        }
    }

    pub(super) fn holder_hears(&mut self, frame: Frame) {
        if self.oracle.promoted.is_some() {
            return self.cut_memory_link(0);
        }
        match frame {
            Frame::Copy(generation) => self.memory.store.begin_generation(generation),
            Frame::Pages(pages) => self.memory.store.put_pages(pages),
            Frame::Epoch(image) => {
                let (epoch, lineage) = (image.epoch, image.lineage);
                let Some(image) = self.memory.store.put(*image).cloned() else {
                    return self.cut_memory_link(0);
                };
                say!(self, "memory of {epoch}, {lineage}, is whole");
                self.check_pages(&image);
                self.memory.ever_whole.push(image);
                let acked = Acked::Whole(epoch);
                self.send_memory(1, |link| Step::ToCheckpointer { link, acked });
                self.memory.holder.queue.push_back((epoch, lineage));
                self.holder_tells();
            }
        }
    }
}
