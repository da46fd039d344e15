//! What must hold of memory: it and the disks are of one moment, nothing that was let go is missing, and no epoch is
//! committed without it.

use super::Wish;
use super::store::Image;
use crate::sim::host::Group;
use crate::sim::oracle::Position;
use crate::sim::world::{World, say};
use blkback_proto::ids::Epoch;

impl World {
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

    /// Output up to this checkpoint leaves: whoever goes on has at least that.
    pub(super) fn promise_checkpoint(&mut self, image: &Image) {
        if self.oracle.serves(0) {
            self.memory.released = self.memory.released.max(image.serial);
        }
        let at: Vec<usize> = image.moment.iter().map(|(_, at)| *at).collect();
        self.promise(&at, "released with memory");
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
        } else if image.serial < self.memory.released && !self.oracle.rot {
            self.violated(format!(
                "promoted at checkpoint {}, and output up to {} has left",
                image.serial, self.memory.released
            ));
        }
    }
}
