//! What must hold of memory: it and the disks are of one moment, nothing that was let go is missing, and no epoch is
//! committed without it.

use super::Wish;
use super::machine::{PAGES, Transaction};
use super::store::Image;
use crate::sim::host::Group;
use crate::sim::oracle::Position;
use crate::sim::world::{World, say};
use blkback_proto::ids::Epoch;

/// Who sees what leaves, outside of both hosts.
#[derive(Debug, Default)]
pub struct Witness {
    seen: Vec<Transaction>,
    /// Where the guest has gone on: memory, and what the disks have.
    gone_on: Option<(Image, Vec<Position>)>,
}

impl World {
    /// A reply reaches the witness.
    pub(super) fn witness_sees(&mut self, transaction: Transaction) {
        self.stats.seen += 1;
        self.memory.witness.seen.push(transaction);
        if let Some((image, at)) = self.memory.witness.gone_on.take() {
            self.check_reply(transaction, &image, &at);
            self.memory.witness.gone_on = Some((image, at));
        } else if self.is_backup_in() && self.oracle.promoted.is_none() {
            // Whoever goes on at the backup has to know of it.
            let mut at = vec![0; self.plan.volumes];
            at[transaction.volume] = transaction.position;
            self.promise(&at, "a witness was told of");
        }
    }

    /// The guest goes on from this memory and these disks: they know of what was replied.
    fn check_reply(&mut self, seen: Transaction, image: &Image, at: &[Position]) {
        let Transaction {
            number,
            life,
            volume,
            position,
        } = seen;
        let page = usize::try_from(number).expect("few") % PAGES;
        let is_in_memory = match life.cmp(&image.guest) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => image.pages[page] >= number,
            std::cmp::Ordering::Greater => false,
        };
        if !is_in_memory {
            self.violated(format!(
                "a witness saw the reply of transaction {number} of guest {life}, and the memory that goes on is {:?} of \
                 guest {}",
                image.pages, image.guest
            ));
        } else if position > at[volume].1 {
            self.violated(format!(
                "a witness saw the reply of transaction {number}, and the disks that go on lack its write {position}: \
                 {at:?}"
            ));
        }
    }

    /// What was put together of the changes is what the guest's memory was.
    pub(super) fn check_pages(&mut self, image: &Image) {
        if !image.is_end && image.pages != image.truth {
            self.violated(format!(
                "memory of epoch {} is {:?}, and it was {:?}",
                image.epoch, image.pages, image.truth
            ));
        }
    }

    /// The disks' cut is of the moment that the guest stood still at.
    pub(super) fn check_moment(&mut self, epoch: Epoch, moment: &[Position]) {
        let cut = self.oracle.cuts.find(self.hosts[0].boot, epoch);
        let at = cut.map(|cut| cut.at.iter().map(|p| p.expect("whole")).collect::<Vec<_>>());
        if at.as_deref() != Some(moment) {
            self.violated(format!(
                "memory of epoch {epoch} is of the moment {moment:?}, the disks' cut of {at:?}"
            ));
        }
    }

    fn is_of(&self, image: &Image, at: &[Position]) -> bool {
        let both = self.oracle.volumes.iter().zip(image.moment.iter().zip(at));
        let mut same = both.map(|(volume, (memory, disk))| {
            memory == disk
                || volume.at_in_era(memory.0, memory.1) == volume.at_in_era(disk.0, disk.1)
        });
        same.all(|same| same)
    }

    /// The group of the backup did something: an epoch that it commits has memory, where that is a member.
    pub fn memory_sees_group(&mut self) {
        let Group::Backup(group) = &self.hosts[1].group else {
            return;
        };
        let (committed, boot) = (group.committed(), self.hosts[1].boot);
        let standing = group.memory();
        let (seen, had_joined) = self.memory.seen;
        let (before, had_joined) = if seen == boot {
            (self.memory.committed, had_joined)
        } else {
            (Epoch::NONE, false)
        };
        let is_joined = standing.is_some_and(|memory| memory.joined);
        (self.memory.committed, self.memory.seen) = (committed, (boot, is_joined));
        // Of the first join since a start the answer may have waited for metadata.
        let is_joining = self.memory.joining || !had_joined;
        let Some(standing) = standing.filter(|_| committed > before) else {
            return;
        };
        if !standing.joined {
            self.violated(format!(
                "epoch {committed} is committed before the memory has said what it has"
            ));
            return;
        }
        if is_joining && standing.at != Some(committed) {
            // Nothing that the disks can be was whole: they are what is left.
            say!(self, "the disks alone are at {committed}");
            self.check_nothing_is_left(committed);
            return;
        }
        let cut = self.oracle.cuts.find(self.hosts[0].boot, committed);
        let at: Option<Vec<Position>> =
            cut.map(|cut| cut.at.iter().map(|p| p.expect("whole")).collect());
        // After a start, the cut may be of a primary that is no more: a promotion is looked at more closely.
        let is_of = |image: &Image| {
            image.epoch == committed && at.as_ref().is_none_or(|at| self.is_of(image, at))
        };
        let any = |image: &Image| image.epoch == committed;
        let is_known = if is_joining {
            self.memory.ever_whole.iter().any(any)
        } else {
            self.memory.ever_whole.iter().any(is_of)
        };
        if !is_known {
            self.violated(format!(
                "epoch {committed} is committed, and no memory of it is whole"
            ));
        }
    }

    /// The disks go on alone after a start: then the holder has nothing that they can be.
    fn check_nothing_is_left(&mut self, committed: Epoch) {
        let (from, sealed) = self.memory.disks_can_be;
        let told = self.memory.store.whole_of();
        let has = told.iter().map(|(epoch, _)| *epoch);
        let has = has.chain([self.memory.store.committed()]);
        let can_be = |epoch: &Epoch| (from..=sealed).contains(epoch);
        let is_one = |epoch: &Epoch| {
            let mut images = self.memory.store.images();
            let image = images.find(|image| image.epoch == *epoch);
            let cut = self.oracle.cuts.numbered(*epoch).next();
            let (Some(image), Some(cut)) = (image, cut) else {
                return false;
            };
            let at: Vec<Position> = cut.at.iter().map(|p| p.expect("whole")).collect();
            self.is_of(image, &at)
        };
        if let Some(epoch) = has.filter(can_be).find(is_one) {
            self.violated(format!(
                "the disks went on to epoch {committed}, and the memory is whole at epoch {epoch}"
            ));
        }
    }

    /// A promotion with memory is refused because of the memory.
    pub fn check_memory_refused(&mut self) {
        say!(self, "no promotion with memory");
    }

    /// The backup goes on from this epoch, whose disks are at these positions.
    pub fn check_memory(&mut self, epoch: Epoch, at: &[Position]) {
        if !self.memory.on || self.memory.asked != Wish::WithMemory {
            return;
        }
        let Some(image) = self.memory.store.ready(epoch) else {
            self.violated(format!(
                "promoted with memory at epoch {epoch}, which the holder does not have"
            ));
            return;
        };
        self.stats.with_memory += 1;
        if !self.is_of(&image, at) {
            self.violated(format!(
                "memory of epoch {epoch} is of the moment {:?}, the disks are of {at:?}",
                image.moment
            ));
            return;
        }
        self.check_pages(&image);
        if self.is_output_open() {
            self.violated(
                "the guest goes on, and what it says at the other host is open".to_owned(),
            );
        }
        if self.oracle.rot {
            return;
        }
        let seen = self.memory.witness.seen.clone();
        self.stats.judged += u64::from(!seen.is_empty());
        self.stats.judged_replies += seen.len() as u64;
        for transaction in seen {
            self.check_reply(transaction, &image, at);
        }
        self.memory.witness.gone_on = Some((image, at.to_vec()));
    }
}
