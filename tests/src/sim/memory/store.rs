//! What a holder keeps: the rules of `checkpointer/src/memory/store/mod.rs` without the bytes.

use super::machine::{PAGES, Pages};
use crate::sim::oracle::Position;
use blkback_proto::ids::{Epoch, LineageId};
use std::collections::BTreeMap;

/// Memory of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Which one, as the disks' cut was answered.
    pub epoch: Epoch,
    /// Of the disks.
    pub lineage: LineageId,
    /// The copy that it is of.
    pub generation: u64,
    /// Counts checkpoints of the world.
    pub serial: u64,
    /// What the guest knew to be written, by volume.
    pub moment: Vec<Position>,
    /// Pages that changed since the one before.
    pub delta: [Option<u64>; PAGES],
    /// All of them as they were, for the judge.
    pub truth: Pages,
    /// All of them as they are kept.
    pub pages: Pages,
    /// Life of the guest.
    pub guest: u32,
    /// The guest is off since.
    pub is_end: bool,
}

/// Whole epochs, the one that counts first.
#[derive(Default, Debug)]
pub struct Store {
    committed: Option<Image>,
    /// The copy that counts, and the one beside it that has no commit; 0 for none.
    generation: u64,
    next: u64,
    whole: Vec<Image>,
    /// What the next epoch of each copy changes.
    newest: BTreeMap<u64, Pages>,
}

impl Store {
    fn has_epoch_of(&self, generation: u64) -> bool {
        let mut all = self.whole.iter().chain(&self.committed);
        all.any(|image| image.generation == generation)
    }

    fn highest_of(&self, generation: u64) -> Epoch {
        let all = self.whole.iter().chain(&self.committed);
        let mine = all.filter(|image| image.generation == generation);
        mine.map(|image| image.epoch).max().unwrap_or(Epoch::NONE)
    }

    fn newest_copy(&self) -> u64 {
        if self.next != 0 && self.has_epoch_of(self.next) {
            self.next
        } else {
            self.generation
        }
    }

    /// A session begins: a copy without an epoch goes.
    pub fn begin_session(&mut self) {
        if !self.has_epoch_of(self.next) {
            self.next = 0;
        }
    }

    /// The newest copy that there is an epoch of; 0 for none.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.newest_copy()
    }

    /// A new copy begins beside the one that counts.
    pub fn begin_generation(&mut self, generation: u64) {
        let old = std::mem::replace(&mut self.next, generation);
        self.whole.retain(|image| image.generation != old);
        self.newest.remove(&old);
    }

    /// All pages of the copy that comes in.
    pub fn put_pages(&mut self, pages: Pages) {
        if self.next != 0 {
            self.newest.insert(self.next, pages);
        }
    }

    /// The guest of the epoch that counts is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.committed.as_ref().is_some_and(|image| image.is_end)
    }

    /// An epoch is whole, and so it is kept; nothing where it does not fit what is there.
    pub fn put(&mut self, mut image: Image) -> Option<&Image> {
        let target = if self.next == 0 {
            self.generation
        } else {
            self.next
        };
        if image.generation != target || image.epoch <= self.highest_of(target) {
            return None;
        }
        let pages = self.newest.get_mut(&target)?;
        for (page, changed) in pages.iter_mut().zip(image.delta) {
            *page = changed.unwrap_or(*page);
        }
        image.pages = *pages;
        self.whole.push(image);
        self.whole.last()
    }

    /// The epoch that the guest would go on from.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        let committed = self.committed.as_ref();
        committed.map_or(Epoch::NONE, |image| image.epoch)
    }

    /// Whole ones that are not committed, of the copy that comes in.
    #[must_use]
    pub fn whole_of(&self) -> Vec<(Epoch, LineageId)> {
        let newest = self.newest_copy();
        let mine = self.whole.iter().filter(|i| i.generation == newest);
        mine.map(|image| (image.epoch, image.lineage)).collect()
    }

    /// Every whole epoch up to this one counts.
    pub fn commit(&mut self, epoch: Epoch) -> Epoch {
        let last_of = |generation: u64| {
            let mine = self.whole.iter();
            let mine = mine.filter(|i| i.generation == generation && i.epoch <= epoch);
            mine.max_by_key(|image| image.epoch).cloned()
        };
        let of_next = (self.next != 0).then(|| last_of(self.next)).flatten();
        if of_next.is_some() {
            self.generation = std::mem::take(&mut self.next);
        }
        if let Some(last) = of_next.or_else(|| last_of(self.generation)) {
            let (generation, next) = (self.generation, self.next);
            self.whole.retain(|image| {
                let is_old = image.generation != generation && image.generation != next;
                !is_old && (image.generation != generation || image.epoch > last.epoch)
            });
            self.committed = Some(last);
        }
        self.committed()
    }

    /// Makes exactly this epoch what the guest goes on from.
    pub fn ready(&mut self, epoch: Epoch) -> Option<Image> {
        if blockrep::mutants::is_planted("older-memory-promoted") {
            return self.committed.clone();
        }
        self.commit(epoch);
        self.committed
            .clone()
            .filter(|image| image.epoch == epoch && epoch != Epoch::NONE)
    }

    /// All that is kept.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.whole.iter().chain(&self.committed)
    }
}
