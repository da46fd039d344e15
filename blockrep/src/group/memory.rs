//! The guest's memory as a member of a backup's group: without it no epoch is committed.
//!
//! Who holds the memory (the standby's daemon) says which epochs it has whole; the group says which are committed.
//!
//! ```text
//!            join (durable: group.meta says memory)
//!   none ──────────────────────────────► expected ── whole n, every volume sealed n ──► commit n
//!    ▲                                      │
//!    └───────────── leave (durable) ────────┘
//! ```
//!
//! - From join on commits wait for memory, over restarts of either daemon. Nothing was committed with
//!   memory before the first whole epoch, so a promotion without it loses nothing that was held.
//! - An epoch of the disks without memory is never committed itself; a later one with memory covers it.
//! - Numbers alone do not name an epoch: a whole epoch is of one history of the disks, and one that was cut
//!   before a session of theirs began is none of it.
//! - After a start nothing is committed, and no primary taken in, before the memory has said what it has: the
//!   disks know which epochs they sealed, the memory which of them were let go.

use super::backup::BackupGroup;
use super::{GroupEffect, Now, PromoteError};
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::meta::Role;
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// Whole epochs that may wait for their disks; of more the oldest are forgotten.
pub const WHOLE_MAX: usize = 1024;

/// What the holder of the memory has when it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// The epoch that the memory is, as the group said it.
    pub committed: Option<Epoch>,
    /// Whole ones above it, with the history of the disks that each is of.
    pub whole: Vec<(Epoch, LineageId)>,
}

/// Why memory is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Not now.
    #[error("{0} is under way: try again in a moment")]
    Busy(&'static str),
    /// It has been promoted.
    #[error("this side is the primary: it takes no memory")]
    Primary,
    /// It did not join.
    #[error("memory is no member of this group: join first")]
    NotJoined,
    /// Of another history.
    #[error("epoch {epoch} of memory is of lineage {given}; the disks follow {own}")]
    Lineage {
        /// Which one.
        epoch: Epoch,
        /// Its lineage.
        given: LineageId,
        /// That of the disks.
        own: LineageId,
    },
    /// Metadata failed.
    #[error("the group's metadata cannot be written: {0}")]
    Failed(String),
}

/// What a group knows of its memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Said what it has, since the start of this daemon.
    joined: bool,
    /// Whole and not committed.
    whole: BTreeMap<Epoch, LineageId>,
    /// The last commit is of memory, too, and the holder has it.
    at: Option<Epoch>,
    /// Who waits until metadata says that memory is, or is not, a member; and what it had.
    changing: Option<(u64, MemoryFacts)>,
}

impl Memory {
    pub(super) fn is_changing(&self) -> bool {
        self.changing.is_some()
    }

    /// A session of the disks begins with this epoch: whatever has a number below is not of it, nor what
    /// another history gave the same number that the disks never sealed.
    pub(super) fn session(&mut self, first: Epoch, tip: LineageId) {
        if crate::mutant!("memory-over-session") {
            return;
        }
        self.whole
            .retain(|epoch, lineage| *epoch >= first && *lineage == tip);
    }

    /// The newest whole epoch that all disks sealed, and are one disk at.
    fn newest(&self, sealed: Epoch, from: Epoch) -> Option<Epoch> {
        let mut upto = self.whole.range(..=sealed);
        upto.next_back()
            .map(|(epoch, _)| *epoch)
            .filter(|epoch| *epoch >= from)
    }

    fn committed(&mut self, epoch: Epoch) {
        self.at = Some(epoch);
        self.whole = self.whole.split_off(&epoch.next());
    }
}

/// How memory stands, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStanding {
    /// Its holder has said what it has since the start of this daemon.
    pub joined: bool,
    /// The last commit with memory.
    pub at: Option<Epoch>,
    /// Whole epochs that wait for the disks.
    pub waiting: usize,
}

impl BackupGroup {
    /// How memory stands; nothing where it is no member.
    #[must_use]
    pub fn memory(&self) -> Option<MemoryStanding> {
        self.has_memory().then_some(MemoryStanding {
            joined: self.memory.joined,
            at: self.memory.at,
            waiting: self.memory.whole.len(),
        })
    }

    pub(super) fn has_memory(&self) -> bool {
        self.meta.memory && self.meta.role == Role::Backup
    }

    /// Nothing may be dropped: what was let go is known to the memory only.
    pub(super) fn waits_for_memory(&self) -> bool {
        self.has_memory() && !self.memory.joined
    }

    /// The holder of the memory is there. The answer is a [`GroupEffect::MemoryReply`].
    pub fn memory_join(&mut self, token: u64, facts: MemoryFacts, fx: &mut Vec<GroupEffect>) {
        if let Err(error) = self.may_change_memory() {
            let result = Err(error);
            fx.push(GroupEffect::MemoryReply { token, result });
            return;
        }
        if self.meta.memory {
            self.joined(token, facts, fx);
        } else {
            self.change_memory(token, facts, true, fx);
        }
    }

    /// Protection has ended in order: the disks alone decide from now on.
    pub fn memory_leave(&mut self, token: u64, fx: &mut Vec<GroupEffect>) {
        if let Err(error) = self.may_change_memory() {
            let result = Err(error);
            fx.push(GroupEffect::MemoryReply { token, result });
            return;
        }
        if self.meta.memory {
            self.change_memory(token, MemoryFacts::default(), false, fx);
        } else {
            let result = Ok(self.committed);
            fx.push(GroupEffect::MemoryReply { token, result });
        }
    }

    fn may_change_memory(&self) -> Result<(), MemoryError> {
        if self.meta.role == Role::Primary {
            return Err(MemoryError::Primary);
        }
        if self.promoting.is_some() {
            return Err(MemoryError::Busy("a promotion"));
        }
        if self.adopting {
            return Err(MemoryError::Busy("the beginning of a session"));
        }
        if self.memory.is_changing() {
            return Err(MemoryError::Busy("another change of the memory"));
        }
        Ok(())
    }

    fn change_memory(
        &mut self,
        token: u64,
        facts: MemoryFacts,
        is_member: bool,
        fx: &mut Vec<GroupEffect>,
    ) {
        self.meta.memory = is_member;
        self.meta.generation += 1;
        self.memory.changing = Some((token, facts));
        fx.push(GroupEffect::WriteMeta(Box::new(self.meta.clone())));
    }

    /// Metadata is durable, or cannot be made so.
    pub(super) fn memory_changed(
        &mut self,
        at: &Now,
        result: Result<(), String>,
        fx: &mut Vec<GroupEffect>,
    ) {
        let Some((token, facts)) = self.memory.changing.take() else {
            return;
        };
        match result {
            Err(error) => {
                let result = Err(MemoryError::Failed(error));
                fx.push(GroupEffect::MemoryReply { token, result });
            }
            Ok(()) if self.meta.memory => self.joined(token, facts, fx),
            Ok(()) => {
                self.memory = Memory::default();
                self.advance_commit(fx);
                let result = Ok(self.committed);
                fx.push(GroupEffect::MemoryReply { token, result });
            }
        }
        self.rest(at, None, fx);
    }

    /// Takes what the memory has, and commits what both have.
    fn joined(&mut self, token: u64, facts: MemoryFacts, fx: &mut Vec<GroupEffect>) {
        let mut whole: Vec<(Epoch, LineageId)> = (facts.whole.into_iter())
            .filter(|(epoch, lineage)| self.is_of_disks(*epoch, *lineage))
            .collect();
        // The newest count: what they cover is of no use beside them.
        whole.sort_unstable_by_key(|(epoch, _)| *epoch);
        whole.drain(..whole.len().saturating_sub(WHOLE_MAX));
        let has = whole.iter().map(|(epoch, _)| *epoch).chain(facts.committed);
        if std::mem::replace(&mut self.memory.joined, true) {
            let committed = self.committed;
            self.memory.at = has.into_iter().find(|epoch| *epoch == committed);
        } else {
            // After a start the disks do not know what was committed last, nor what of it was let go.
            let (from, sealed) = (self.memory_from(), self.sealed_by_all());
            let newest = has.filter(|epoch| (from..=sealed).contains(epoch)).max();
            // Without memory the disks are what is left, and they go by themselves.
            let epoch = if crate::mutant!("join-commits-sealed") {
                sealed
            } else {
                newest.unwrap_or(sealed)
            };
            self.commit(epoch, fx);
            self.memory.at = newest;
        }
        let above = whole
            .into_iter()
            .filter(|(epoch, _)| *epoch > self.committed);
        self.memory.whole.extend(above);
        self.advance_commit(fx);
        let result = Ok(self.committed);
        fx.push(GroupEffect::MemoryReply { token, result });
    }

    /// An epoch of this number is of this history: each begins above whatever was sealed here before it.
    fn is_of_disks(&self, epoch: Epoch, lineage: LineageId) -> bool {
        let mut newest_first = self.meta.lineage.iter().rev();
        let of = newest_first.find(|entry| entry.first_epoch <= epoch);
        of.is_some_and(|entry| entry.id == lineage)
    }

    /// The first epoch that the disks can be together, and that is not below what they committed.
    fn memory_from(&self) -> Epoch {
        let first = |m: &super::backup::Member| m.facts.consistent_from.max(m.facts.committed);
        let first = self.members.iter().map(first).max();
        first.unwrap_or(Epoch::NONE).max(Epoch(1))
    }

    /// The memory of an epoch of this history is whole at its holder. Answers what is committed.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn memory_whole(
        &mut self,
        epoch: Epoch,
        lineage: LineageId,
        fx: &mut Vec<GroupEffect>,
    ) -> Result<Epoch, MemoryError> {
        self.may_change_memory()?;
        if !self.meta.memory || !self.memory.joined {
            return Err(MemoryError::NotJoined);
        }
        let own = self.meta.tip().map(|tip| tip.id).unwrap_or_default();
        if own != lineage {
            return Err(MemoryError::Lineage {
                epoch,
                given: lineage,
                own,
            });
        }
        if epoch > self.committed {
            if self.memory.whole.len() >= WHOLE_MAX {
                self.memory.whole.pop_first();
            }
            self.memory.whole.insert(epoch, lineage);
            self.advance_commit(fx);
        } else if epoch == self.committed {
            // The disks had gone that far by themselves before memory was a member.
            self.memory.at = Some(epoch);
        }
        Ok(self.committed)
    }

    /// What is whole everywhere, memory included where it is a member.
    pub(super) fn whole(&self) -> Epoch {
        let sealed = self.sealed_by_all();
        if !self.has_memory() || crate::mutant!("commit-without-memory") {
            return sealed;
        }
        if self.members.iter().any(|m| m.facts.inconsistent) {
            return self.committed;
        }
        let newest = self.memory.newest(sealed, self.memory_from());
        newest.unwrap_or(self.committed).max(self.committed)
    }

    /// The memory that is committed is no older than a commit of the disks.
    pub(super) fn note_commit(&mut self, epoch: Epoch) {
        if self.has_memory() {
            self.memory.committed(epoch);
        }
    }

    /// What of a promotion depends on the memory: the epoch that it would be.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn promotable(
        &self,
        with_memory: bool,
        disk_only: bool,
    ) -> Result<Epoch, PromoteError> {
        let sealed = self.sealed_by_all();
        if disk_only || !(self.has_memory() || with_memory) {
            return Ok(sealed);
        }
        let told = |text: String| Err(PromoteError::Memory(text));
        let boot = "--disk-only promotes the disks alone: the guest then boots from them as after a power cut";
        if !with_memory {
            return told(format!(
                "the guest's memory is kept beside these disks, and the two are promoted together: type \
                 `blockrepctl guest promote`; {boot}"
            ));
        }
        if !self.has_memory() {
            // The disks may have gone past whatever it has, and nobody could take their promotion back.
            return told(format!(
                "the guest's memory is no member of this group yet, so no epoch of it is one of the disks; {boot}"
            ));
        }
        if !self.memory.joined {
            return told(format!(
                "the holder of the guest's memory has not said what it has; {boot}"
            ));
        }
        if crate::mutant!("promote-sealed") {
            return Ok(sealed);
        }
        let epoch = self.whole();
        let is_whole = self.memory.at == Some(epoch) || self.memory.whole.contains_key(&epoch);
        if !is_whole || epoch < self.memory_from() {
            return told(format!(
                "the disks are at epoch {sealed}, and there is no memory of any epoch that they can be; {boot}"
            ));
        }
        Ok(epoch)
    }
}
