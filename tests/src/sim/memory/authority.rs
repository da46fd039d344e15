//! Who may run the guest: one record that both hosts reach, or not. The rules are those of the checkpointer.

use super::Step;
use super::netbuf::Begins;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use blkback_proto::ids::LineageId;
use checkpointer::authority::{
    Authority, AuthorityError, By, Decision, Record, Stamp, Swapped, Wish, decide,
};
use checkpointer::sequence::{Event as Told, Sequence, Word};
use std::sync::{Mutex, PoisonError};

/// Name of the first host.
pub const PRIMARY: &str = "a";
/// Name of the other.
pub const BACKUP: &str = "b";
const GUEST: &str = "guest";

/// The record.
#[derive(Debug, Default)]
pub struct OneRecord(Mutex<Option<Record>>);

impl OneRecord {
    fn now(&self) -> Option<Record> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn put(&self, record: Record) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    }
}

impl Authority for OneRecord {
    fn read(&self) -> Result<Option<Record>, AuthorityError> {
        Ok(self.now())
    }

    fn swap(&self, expected: Option<u64>, new: &Record, _: By) -> Result<Swapped, AuthorityError> {
        let present = self.now();
        if present.as_ref().map(|record| record.generation) != expected {
            return Ok(Swapped::Changed(present.expect("it was changed")));
        }
        self.put(new.clone());
        Ok(Swapped::Swapped)
    }

    fn words(&self) -> String {
        "one record".to_owned()
    }
}

/// What the checkpointer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The backup has a checkpoint.
    Protect,
    /// The guest is to go on alone.
    Degrade,
}

impl World {
    /// A wish of a host; `None` where nobody can be reached.
    fn decide(&mut self, host: &str, wish: Wish<'_>) -> Option<Decision> {
        if self.now < self.memory.authority_down_until {
            return None;
        }
        let stamp = Stamp {
            lineage: LineageId(std::array::from_fn(|_| self.rng.u8(1..))),
            note: "simulated".to_owned(),
            unix_ms: self.now / MS,
        };
        let record = &self.memory.record;
        let decision = decide(record, GUEST, host, wish, &stamp, By::Daemon).ok();
        say!(self, "the authority, to {host}, {wish:?}: {decision:?}");
        decision
    }

    pub(super) fn is_alone(&self, host: &str) -> bool {
        let record = self.memory.record.now();
        record.is_some_and(|record| record.is_alone(host))
    }

    /// The guest could go on at the backup.
    pub(super) fn is_backup_in(&self) -> bool {
        let record = self.memory.record.now();
        record.is_some_and(|record| record.in_sync.iter().any(|host| host == BACKUP))
    }

    /// The first host may run the guest.
    pub(super) fn claims(&mut self) -> bool {
        matches!(self.decide(PRIMARY, Wish::Claim), Some(Decision::Done(_)))
    }

    /// A guest is started from its disks: what the backup has is of another one. Before it runs its output is held where the
    /// record has the backup in. Nobody starts it while the record cannot be read.
    pub(super) fn guest_begins(&mut self) {
        let down = std::mem::take(&mut self.memory.authority_down_until);
        let is_claimed = self.claims();
        self.memory.authority_down_until = down;
        let speaks = self.is_alone(PRIMARY) || blockrep::mutants::is_planted("speaks-afresh");
        let begins = match (is_claimed, speaks) {
            (false, _) => Begins::Held,
            (true, false) => Begins::Cut,
            (true, true) => Begins::Open,
        };
        self.netbuf_begins(begins);
    }

    /// The backup wants the guest.
    pub(super) fn decide_for_backup(&mut self) -> bool {
        let before = self.memory.record.now();
        let decision = self.decide(BACKUP, Wish::Promote);
        let is_given = matches!(decision, Some(Decision::Done(_)));
        let is_news = before
            .as_ref()
            .is_some_and(|before| !before.is_alone(BACKUP));
        // Asked again after one that failed, it has no record of before.
        if is_given && is_news {
            self.memory.taken_from = before;
        }
        is_given
    }

    /// The promotion came to nothing: the record is given back by hand, and a guest that was stopped is started.
    pub fn give_back(&mut self) {
        let Some(before) = self.memory.taken_from.take() else {
            return;
        };
        let now = self.memory.record.now();
        let generation = now.map_or(0, |record| record.generation) + 1;
        self.memory.record.put(Record {
            generation,
            ..before
        });
        if self.guest.lives_on == Some(0) && (self.is_over() || self.is_output_held()) {
            self.machine_stops();
            self.after(5 * MS, Event::Memory(Step::MachineStarts));
        }
        self.after(MS, Event::Memory(Step::CheckpointerStarts));
    }

    /// The backup's side is the guest from now on. Without the authority that is an operator's word, and what runs at
    /// the first host is ended by him.
    pub fn memory_has_gone_on(&mut self) {
        self.guest.paused = false;
        if !self.memory.on || self.is_alone(BACKUP) {
            return;
        }
        let now = self.memory.record.now();
        let lineage = LineageId(std::array::from_fn(|_| self.rng.u8(1..)));
        self.memory.record.put(Record {
            guest: GUEST.to_owned(),
            generation: now.map_or(0, |record| record.generation) + 1,
            lineage,
            primary: BACKUP.to_owned(),
            in_sync: vec![BACKUP.to_owned()],
            note: "by hand".to_owned(),
            unix_ms: self.now / MS,
        });
        self.memory.machine.is_there = false;
        self.checkpointer_dies();
        self.netbuf_begins(Begins::Held);
    }

    /// One question after the other, and none for the backup once the guest is on its way to be alone: an answer to the
    /// second that comes first would take the backup in again, and output would be open.
    pub(super) fn ask_authority(&mut self, question: Question) {
        let is_planted = blockrep::mutants::is_planted("joined-while-degrading");
        let checkpointer = &mut self.memory.checkpointer;
        match (checkpointer.asking, question) {
            _ if is_planted => {}
            (Some(_), Question::Degrade) => return checkpointer.degrades_next = true,
            (Some(_), Question::Protect) => return checkpointer.taking_in = None,
            (None, _) => {}
        }
        checkpointer.asking = Some(question);
        let life = checkpointer.life;
        let delay = self.rng.u64(MS / 10..3 * MS);
        self.after(delay, Event::Memory(Step::Authority { life, question }));
    }

    pub(super) fn authority_is_asked(&mut self, life: u32, question: Question) {
        let checkpointer = &self.memory.checkpointer;
        if !checkpointer.up || checkpointer.life != life {
            return;
        }
        let backup = BACKUP;
        let wish = match question {
            Question::Protect => Wish::Protect { backup },
            Question::Degrade => Wish::Degrade,
        };
        let decision = if self.is_unlucky(8) {
            None
        } else {
            self.decide(PRIMARY, wish)
        };
        // It may have decided, and its answer is lost.
        let decision = decision.filter(|_| !self.is_unlucky(16));
        let delay = self.rng.u64(MS / 10..3 * MS);
        let step = Step::Decided {
            life,
            question,
            decision,
        };
        self.after(delay, Event::Memory(step));
    }

    /// The answer.
    pub(super) fn authority_answers(
        &mut self,
        life: u32,
        question: Question,
        decision: Option<Decision>,
    ) {
        let checkpointer = &mut self.memory.checkpointer;
        if !checkpointer.up || checkpointer.life != life {
            return;
        }
        checkpointer.asking = None;
        match question {
            Question::Protect => {
                let is_done = matches!(decision, Some(Decision::Done(_)));
                self.backup_is_taken_in(is_done);
            }
            Question::Degrade => {
                let is_done = matches!(decision, Some(Decision::Done(_)));
                let word = match decision {
                    Some(Decision::Done(record)) => Word::Won(record.lineage),
                    Some(Decision::Refused(refusal)) if refusal.is_lost() => Word::Lost,
                    Some(Decision::Refused(refusal)) => Word::Unreachable(refusal.to_string()),
                    None => Word::Unreachable("no quorum".to_owned()),
                };
                self.tell_sequence(Told::Authority(word));
                let checkpointer = &mut self.memory.checkpointer;
                let sequence = checkpointer.sequence.as_ref();
                // Taken out for the sake of a guest that began, it is taken in again.
                let has_ended = sequence.is_none_or(Sequence::has_ended);
                checkpointer.is_alone |= is_done && has_ended;
            }
        }
        let checkpointer = &mut self.memory.checkpointer;
        if std::mem::take(&mut checkpointer.degrades_next) {
            self.ask_authority(Question::Degrade);
        }
    }
}
