//! What the backup has of a guest: memory and device state of whole epochs, in shared memory
//! (MEMORY.md §3), where it survives the process that received it.
//!
//! ```text
//!  COPY ─────────────► ram-G ◄─────────────────────────────┐ apply, in order
//!  BEGIN, PAGES ─► epoch-G-N.part ─ END ─► epoch-G-N ─ commit N: state says N, ┘ then applied N, then it goes
//! ```
//!
//! Invariants:
//! - What the guest would go on from is exactly one epoch, at every instant and after a kill at any point:
//!   the RAM file of `generation` is epoch `applied`, and where `committed` is above it, the files of all
//!   epochs up to it are still there and applying them again is right wherever it stopped.
//! - No byte of the RAM file changes before `state` says so.
//! - A new copy goes beside the old one, which counts until the first epoch of the new one is committed.
//! - An epoch that was acknowledged is never dropped but by [`Store::drop_above`] or a newer copy's commit.
//! - Pending epochs never take more than [`Limits::pending_bytes_max`]; it is asked for room before a copy begins.
//! - One process has the directory at a time.
//!
//! Nothing here is synced: shared memory is gone with the host anyway, and outlives every process.

mod epoch;
mod error;
mod files;
mod recovery;
#[cfg(test)]
mod tests;

pub use error::StoreError;

use super::PAGE_BYTES;
use super::ram::{Block, Mapping, Ram};
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::memory::kept::Kept;
use blkback_proto::memory::{DIGEST_BYTES, Entry, Hello, StateKind};
use epoch::{Part, WholeEpoch};
use files::{Copy, Directory};
use std::path::{Path, PathBuf};

/// What the store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of all epochs that are not applied, in bytes.
    pub pending_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_bytes_max: 512 << 20,
        }
    }
}

/// Device state, as it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    pub epoch: Epoch,
    pub kind: StateKind,
    pub bytes: Vec<u8>,
}

/// What a guest goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Of the disks, at that epoch.
    pub lineage: LineageId,
    pub ram: Ram,
    pub state: DeviceState,
}

/// A copy of a guest's memory in shared memory. See the module.
#[derive(Debug)]
pub struct Store {
    dir: Directory,
    limits: Limits,
    kept: Kept,
    /// The copy that counts.
    current: Option<Copy>,
    /// The one that is being made beside it.
    next: Option<Copy>,
    /// Of either, ascending in each.
    whole: Vec<WholeEpoch>,
    part: Option<Part>,
    /// Of the RAM file of `current`.
    mapping: Option<Mapping>,
}

impl Store {
    /// Opens what is in a directory, or begins anew in an empty one. Finishes what a killed process began.
    ///
    /// # Errors
    /// In use by another process; damaged; I/O.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
        Self::open_probed(path, limits, None)
    }

    /// The same, with a closure that is called between any two steps that change something.
    ///
    /// # Errors
    /// As [`Store::open`].
    #[doc(hidden)]
    pub fn open_probed(
        path: &Path,
        limits: Limits,
        probe: Option<Box<dyn FnMut(&'static str) + Send>>,
    ) -> Result<Self, StoreError> {
        let dir = Directory::lock(path, probe)?;
        let (kept, seen) = dir.look()?;
        let plan = recovery::plan(&kept, &seen).map_err(|why| dir.damaged(why))?;
        let whole = plan
            .epochs
            .iter()
            .map(|(generation, epoch)| WholeEpoch::open(dir.path(), *generation, *epoch))
            .collect::<Result<Vec<_>, _>>()?;
        let current = dir.copy(kept.generation)?;
        let next = if plan.drops_next {
            None
        } else {
            dir.copy(kept.next)?
        };
        let mut store = Self {
            dir,
            limits,
            kept,
            current,
            next,
            whole,
            part: None,
            mapping: None,
        };
        if plan.is_fresh {
            store.write_kept()?;
        }
        if plan.drops_next {
            store.kept.next = 0;
            store.write_kept()?;
        }
        if plan.finishes {
            store.finish_apply()?;
        } else if store.kept.generation != 0 && !store.kept.is_off {
            store.device_state()?;
        }
        for name in &plan.removes {
            store.dir.remove(name)?;
        }
        Ok(store)
    }

    /// A session begins: what the one before left unfinished goes, and a copy without an epoch with it.
    ///
    /// # Errors
    /// I/O; the backup was promoted.
    pub fn begin_session(&mut self) -> Result<(), StoreError> {
        self.check_not_promoted()?;
        self.drop_part()?;
        match self.next.as_ref().map(|copy| copy.generation) {
            Some(generation) if !self.has_epoch_of(generation) => self.drop_next(),
            _ => Ok(()),
        }
    }

    /// The newest copy that there is an epoch of, with who made it and its highest whole epoch.
    #[must_use]
    pub fn base(&self) -> Option<(&Hello, Epoch)> {
        let next = self.next.as_ref();
        let copy = next.filter(|copy| self.has_epoch_of(copy.generation));
        let copy = copy.or(self.current.as_ref())?;
        Some((&copy.hello, self.highest_of(copy.generation)))
    }

    /// Begins a copy beside the one that counts.
    ///
    /// # Errors
    /// [`StoreError::Room`] before anything is changed; the id was used before; I/O.
    pub fn begin_generation(&mut self, hello: &Hello, generation: u64) -> Result<(), StoreError> {
        self.check_not_promoted()?;
        if generation == 0 || generation == self.kept.generation || generation == self.kept.next {
            return Err(StoreError::peer("a copy under an id that was used before"));
        }
        self.drop_part()?;
        let hello = Hello {
            generation,
            ..hello.clone()
        };
        if self.next.is_some() {
            self.drop_next()?;
        }
        let pending_left = self
            .limits
            .pending_bytes_max
            .saturating_sub(self.pending_bytes());
        self.dir
            .check_room(hello.ram_bytes().saturating_add(pending_left))?;
        self.next = Some(self.dir.create_copy(hello)?);
        self.kept.next = generation;
        self.write_kept()
    }

    /// Pages of the copy that is being made, straight into its RAM file.
    ///
    /// # Errors
    /// No copy is being made, or it has an epoch already; there are no such pages; I/O.
    pub fn write_copy(&mut self, first: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let copy = self.copying()?;
        copy.check_run(first, bytes.len() as u64 / PAGE_BYTES)?;
        copy.write(first, bytes)
    }

    /// The same for pages that are zero; a new file is.
    ///
    /// # Errors
    /// As [`Store::write_copy`].
    pub fn zero_copy(&mut self, first: u64, count: u64) -> Result<(), StoreError> {
        let copy = self.copying()?;
        copy.check_run(first, count)?;
        copy.zero(first, count)
    }

    fn copying(&self) -> Result<&Copy, StoreError> {
        match &self.next {
            Some(copy) if self.part.is_none() && !self.has_epoch_of(copy.generation) => Ok(copy),
            _ => Err(StoreError::peer("a copy that was not begun, or is over")),
        }
    }

    /// An epoch begins to come in; one that was left in the middle is dropped.
    ///
    /// # Errors
    /// No copy that it could belong to; not above the one before; I/O.
    pub fn begin_epoch(&mut self, epoch: Epoch, lineage: LineageId) -> Result<(), StoreError> {
        self.check_not_promoted()?;
        self.drop_part()?;
        let generation = self.target()?.generation;
        let highest = self.highest_of(generation);
        if epoch <= highest {
            let text = format!("epoch {epoch} after epoch {highest}");
            return Err(StoreError::peer(text));
        }
        if self.kept.is_off && generation == self.kept.generation {
            return Err(StoreError::peer("an epoch of a guest that is off"));
        }
        self.part = Some(Part::create(&mut self.dir, generation, epoch, lineage)?);
        Ok(())
    }

    /// Pages of the open epoch; `bytes` holds those that are in the blob, decoded.
    ///
    /// # Errors
    /// A page twice or behind the last; no room left; I/O. The epoch stays open and is good for nothing.
    pub fn put_pages(&mut self, entries: &[Entry], bytes: &[u8]) -> Result<(), StoreError> {
        let pages = self.target()?.hello.pages();
        let pending = self.pending_bytes();
        let part = self.part.as_mut().ok_or_else(no_epoch)?;
        let after = pending.saturating_add(bytes.len() as u64);
        if after > self.limits.pending_bytes_max {
            return Err(StoreError::Pending {
                bytes: after,
                limit: self.limits.pending_bytes_max,
            });
        }
        part.put(entries, bytes, pages)
    }

    /// The open epoch is whole: it can be committed, and is there after a crash.
    ///
    /// # Errors
    /// I/O.
    pub fn finish_epoch(
        &mut self,
        digest: [u8; DIGEST_BYTES],
        kind: StateKind,
        state: &[u8],
    ) -> Result<Epoch, StoreError> {
        self.finish(digest, kind, Some(state))
    }

    /// The guest is off as of an epoch, which is whole at once.
    ///
    /// # Errors
    /// As [`Store::begin_epoch`].
    pub fn end_of_guest(&mut self, epoch: Epoch, lineage: LineageId) -> Result<(), StoreError> {
        self.begin_epoch(epoch, lineage)?;
        self.finish([0; DIGEST_BYTES], StateKind::SaveDevices, None)?;
        Ok(())
    }

    fn finish(
        &mut self,
        digest: [u8; DIGEST_BYTES],
        kind: StateKind,
        state: Option<&[u8]>,
    ) -> Result<Epoch, StoreError> {
        let part = self.part.take().ok_or_else(no_epoch)?;
        let whole = part.finish(&mut self.dir, digest, kind, state)?;
        let epoch = whole.header.epoch;
        self.whole.push(whole);
        Ok(epoch)
    }

    /// Epochs that are whole and not committed, of the copy that comes in, ascending.
    #[must_use]
    pub fn whole(&self) -> Vec<Epoch> {
        let of_next = |next: &&Copy| self.has_epoch_of(next.generation);
        let copy = self.next.as_ref().filter(of_next).or(self.current.as_ref());
        let Some(generation) = copy.map(|copy| copy.generation) else {
            return Vec::new();
        };
        let mine = self.whole.iter().map(|whole| &whole.header);
        mine.filter(|header| header.generation == generation)
            .map(|header| header.epoch)
            .collect()
    }

    /// Those of either copy, ascending, with the history of the disks that each is of. Until an epoch of the new copy is
    /// committed, the disks may have committed one of the old.
    #[must_use]
    pub fn whole_of(&self) -> Vec<(Epoch, LineageId)> {
        let mine = self.whole.iter().map(|whole| &whole.header);
        let mut mine: Vec<_> = mine
            .filter(|header| {
                header.generation != self.kept.generation || header.epoch > self.kept.committed
            })
            .map(|header| (header.epoch, header.lineage))
            .collect();
        mine.sort_unstable_by_key(|(epoch, _)| *epoch);
        mine
    }

    /// What the guest would go on from; none before the first commit.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.kept.committed
    }

    /// The copy that counts: it changes with the first commit of a new one, and the RAM file with it. 0 for none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.kept.generation
    }

    /// The guest switched itself off; there is nothing to go on from.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.kept.is_off
    }

    #[must_use]
    pub fn is_promoted(&self) -> bool {
        self.kept.is_promoted
    }

    /// Every whole epoch up to this one counts: RAM file and device state become the highest of them. Gives its
    /// number; what was committed already stays.
    ///
    /// # Errors
    /// I/O: what it was doing is finished by the next [`Store::open`].
    pub fn commit(&mut self, epoch: Epoch) -> Result<Epoch, StoreError> {
        let last_of = |generation| {
            let mut mine = self.whole.iter().map(|whole| &whole.header);
            mine.rfind(|header| header.generation == generation && header.epoch <= epoch)
                .copied()
        };
        let of_next = self.next.as_ref().and_then(|copy| last_of(copy.generation));
        let Some(last) = of_next.or_else(|| last_of(self.kept.generation)) else {
            return Ok(self.kept.committed);
        };
        if of_next.is_some() {
            self.current = self.next.take();
            self.mapping = None;
            self.kept.generation = last.generation;
            self.kept.next = 0;
            self.kept.applied = Epoch::NONE;
        }
        self.kept.committed = last.epoch;
        self.kept.lineage = last.lineage;
        self.kept.is_off = last.is_off;
        self.write_kept()?;
        self.finish_apply()?;
        Ok(self.kept.committed)
    }

    /// From `committed` said to `committed` done; every step of it may be done again.
    fn finish_apply(&mut self) -> Result<(), StoreError> {
        let (generation, committed) = (self.kept.generation, self.kept.committed);
        let copy = self.current.as_ref().expect("it was committed");
        if self.mapping.is_none() {
            let mapping = Mapping::open(&copy.ram()?).map_err(|e| copy.failed("mapping", e))?;
            self.mapping = Some(mapping);
        }
        let mapping = self.mapping.as_ref().expect("it was just made");
        let mut last = None;
        for whole in &self.whole {
            let header = &whole.header;
            if header.generation == generation && header.epoch <= committed {
                self.dir.step("apply");
                whole.apply(copy, mapping)?;
                last = Some(whole);
            }
        }
        let last = last.expect("committed epochs that are not applied are there");
        if !last.header.is_off {
            let state = last.read_state()?;
            self.dir.write_device_state(&last.header, &state)?;
        }
        self.kept.applied = committed;
        self.write_kept()?;
        let next = self.kept.next;
        let is_over = |header: &blkback_proto::memory::kept::EpochHeader| {
            let of_old = header.generation != generation && header.generation != next;
            of_old || (header.generation == generation && header.epoch <= committed)
        };
        self.remove_whole(is_over)?;
        self.dir.remove_copies_but(&[generation, next])
    }

    /// Drops every epoch above this one: it was decided that the guest goes on from it.
    ///
    /// # Errors
    /// I/O.
    pub fn drop_above(&mut self, epoch: Epoch) -> Result<(), StoreError> {
        self.drop_part()?;
        self.remove_whole(|header| header.epoch > epoch)?;
        match self.next.as_ref().map(|copy| copy.generation) {
            Some(generation) if !self.has_epoch_of(generation) => self.drop_next(),
            _ => Ok(()),
        }
    }

    /// Makes exactly this epoch what the guest goes on from, and says where it is.
    ///
    /// # Errors
    /// It is not here, in words; the guest is off; I/O.
    pub fn ready(&mut self, epoch: Epoch) -> Result<Ready, StoreError> {
        self.drop_part()?;
        let committed = self.commit(epoch)?;
        if committed != epoch || epoch == Epoch::NONE {
            return Err(StoreError::NotHere { epoch, committed });
        }
        if self.kept.is_off {
            return Err(StoreError::Off { epoch });
        }
        Ok(Ready {
            lineage: self.kept.lineage,
            ram: self.ram().expect("it has an epoch")?,
            state: self.device_state()?,
        })
    }

    /// Nothing is received any more.
    ///
    /// # Errors
    /// I/O.
    pub fn set_promoted(&mut self) -> Result<(), StoreError> {
        self.kept.is_promoted = true;
        self.write_kept()
    }

    /// Device state of the committed epoch.
    ///
    /// # Errors
    /// There is none; damaged; I/O.
    pub fn device_state(&self) -> Result<DeviceState, StoreError> {
        let (generation, epoch) = (self.kept.generation, self.kept.committed);
        self.dir.read_device_state(generation, epoch)
    }

    /// The RAM file of the copy that counts, as the standby maps it.
    #[must_use]
    pub fn ram(&self) -> Option<Result<Ram, StoreError>> {
        self.current.as_ref().map(Copy::ram)
    }

    /// The newest version of a page that came in, committed or not.
    ///
    /// # Errors
    /// No copy; I/O.
    ///
    /// # Panics
    /// Where there is no such page.
    pub fn newest(&self, page: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let copy = self.target()?;
        assert!(page < copy.hello.pages(), "page {page}");
        let mine = self.whole.iter().rev();
        for whole in mine.filter(|whole| whole.header.generation == copy.generation) {
            if whole.read(page, out)? {
                return Ok(());
            }
        }
        copy.read(page, out)
    }

    /// Bytes of all epochs that are not applied.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        let whole = self.whole.iter().map(|whole| whole.header.file_bytes());
        whole.sum::<u64>() + self.part.as_ref().map_or(0, Part::bytes)
    }

    /// The copy that epochs come in for.
    fn target(&self) -> Result<&Copy, StoreError> {
        let copy = self.next.as_ref().or(self.current.as_ref());
        copy.ok_or_else(|| StoreError::peer("an epoch without a copy that it could belong to"))
    }

    fn has_epoch_of(&self, generation: u64) -> bool {
        let mut of = self.whole.iter().map(|whole| whole.header.generation);
        of.any(|of| of == generation)
    }

    fn highest_of(&self, generation: u64) -> Epoch {
        let mine = self.whole.iter().map(|whole| &whole.header);
        let highest = mine
            .filter(|header| header.generation == generation)
            .map(|header| header.epoch)
            .max();
        let committed = (generation == self.kept.generation).then_some(self.kept.committed);
        highest.max(committed).unwrap_or_default()
    }

    fn check_not_promoted(&self) -> Result<(), StoreError> {
        if self.kept.is_promoted {
            return Err(StoreError::Promoted);
        }
        Ok(())
    }

    fn drop_part(&mut self) -> Result<(), StoreError> {
        match self.part.take() {
            Some(part) => self.dir.remove(&part.name),
            None => Ok(()),
        }
    }

    fn drop_next(&mut self) -> Result<(), StoreError> {
        let generation = self.kept.next;
        self.next = None;
        self.kept.next = 0;
        self.write_kept()?;
        self.remove_whole(|header| header.generation == generation)?;
        self.dir.remove_copies_but(&[self.kept.generation])
    }

    fn remove_whole(
        &mut self,
        is_over: impl Fn(&blkback_proto::memory::kept::EpochHeader) -> bool,
    ) -> Result<(), StoreError> {
        let (over, left) = std::mem::take(&mut self.whole)
            .into_iter()
            .partition(|whole| is_over(&whole.header));
        self.whole = left;
        let over: Vec<WholeEpoch> = over;
        for whole in over {
            self.dir.remove(&whole.name)?;
        }
        Ok(())
    }

    fn write_kept(&mut self) -> Result<(), StoreError> {
        self.kept.sequence += 1;
        self.dir.write_kept(&self.kept)
    }
}

fn no_epoch() -> StoreError {
    StoreError::peer("pages or an end outside of an epoch")
}

/// Blocks of a copy in its one file.
fn blocks_in(hello: &Hello, file: &Path) -> Vec<Block> {
    let mut file_offset = 0;
    let block = |block: &blkback_proto::memory::Block| {
        let at = file_offset;
        file_offset += block.size_bytes;
        Block {
            id: block.id.clone(),
            file: PathBuf::from(file),
            file_offset: at,
            size_bytes: block.size_bytes,
        }
    };
    hello.blocks.iter().map(block).collect()
}
