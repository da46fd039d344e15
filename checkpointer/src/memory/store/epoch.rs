//! An epoch's file: coming in, whole, and into the RAM file.

use super::StoreError;
use super::files::{Copy, Directory, create, epoch_name, failed};
use crate::memory::PAGE_BYTES;
use crate::memory::ram::Mapping;
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::memory::kept::{
    EPOCH_HEADER_BYTES, EpochHeader, INDEX_ENTRY_BYTES, IndexEntry, SLOT_ZERO, slot_offset,
};
use blkback_proto::memory::{DIGEST_BYTES, Encoding, Entry, StateKind};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Stretches of memory that one system call fills; the kernel takes 1024.
const STRETCHES_MAX: usize = 1024;

/// An epoch that is coming in.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    path: PathBuf,
    file: File,
    generation: u64,
    epoch: Epoch,
    lineage: LineageId,
    index: Vec<IndexEntry>,
    /// Every page that came, those that stay as they were too.
    seen: HashSet<u32>,
    slot_count: u64,
}

impl Part {
    pub(super) fn create(
        dir: &mut Directory,
        generation: u64,
        epoch: Epoch,
        lineage: LineageId,
    ) -> Result<Self, StoreError> {
        let name = format!("{}.part", epoch_name(generation, epoch));
        let path = dir.path().join(&name);
        dir.step("part");
        Ok(Self {
            file: create(&path)?,
            name,
            path,
            generation,
            epoch,
            lineage,
            index: Vec::new(),
            seen: HashSet::new(),
            slot_count: 0,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        slot_offset(self.slot_count) + (self.index.len() * INDEX_ENTRY_BYTES) as u64
    }

    /// `bytes` holds the pages of the entries that are in the blob, in their order.
    pub(super) fn put(
        &mut self,
        entries: &[Entry],
        bytes: &[u8],
        pages: u64,
    ) -> Result<(), StoreError> {
        let at = slot_offset(self.slot_count);
        for entry in entries {
            if u64::from(entry.page) >= pages {
                let text = format!("page {} of {pages}", entry.page);
                return Err(StoreError::peer(text));
            }
            if !self.seen.insert(entry.page) {
                let text = format!("page {} twice in epoch {}", entry.page, self.epoch);
                return Err(StoreError::peer(text));
            }
            let slot = match entry.encoding {
                // It is there already, in an earlier epoch or the RAM file.
                Encoding::Same => continue,
                Encoding::Zero => SLOT_ZERO,
                Encoding::Full | Encoding::Delta => {
                    let slot = u32::try_from(self.slot_count).expect("no page comes twice");
                    self.slot_count += 1;
                    slot
                }
            };
            self.index.push(IndexEntry {
                page: entry.page,
                slot,
                crc: entry.crc,
            });
        }
        let end = at + bytes.len() as u64;
        assert_eq!(end, slot_offset(self.slot_count), "a page for every entry");
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| failed("writing pages", &self.path, e))
    }

    /// `None` for the state of a guest that is off.
    pub(super) fn finish(
        self,
        dir: &mut Directory,
        digest: [u8; DIGEST_BYTES],
        state_kind: StateKind,
        state: Option<&[u8]>,
    ) -> Result<WholeEpoch, StoreError> {
        let index: Vec<u8> = self.index.iter().flat_map(IndexEntry::encode).collect();
        let bytes = state.unwrap_or_default();
        let header = EpochHeader {
            generation: self.generation,
            epoch: self.epoch,
            lineage: self.lineage,
            digest,
            is_off: state.is_none(),
            index_count: self.index.len() as u64,
            slot_count: self.slot_count,
            state_bytes: bytes.len() as u64,
            state_kind,
            index_crc: crc32fast::hash(&index),
            state_crc: crc32fast::hash(bytes),
        };
        let at = header.index_offset();
        dir.step("index");
        let done = self
            .file
            .write_all_at(&index, at)
            .and_then(|()| self.file.write_all_at(bytes, at + index.len() as u64))
            .and_then(|()| self.file.write_all_at(&header.encode(), 0));
        done.map_err(|e| failed("writing it", &self.path, e))?;
        let name = epoch_name(self.generation, self.epoch);
        dir.rename(&self.name, &name)?;
        Ok(WholeEpoch {
            path: dir.path().join(&name),
            name,
            file: self.file,
            header,
            slots: slots(&self.index),
            index: self.index,
        })
    }
}

fn slots(index: &[IndexEntry]) -> HashMap<u32, u32> {
    index.iter().map(|entry| (entry.page, entry.slot)).collect()
}

/// An epoch that is all there.
#[derive(Debug)]
pub(super) struct WholeEpoch {
    pub(super) header: EpochHeader,
    pub(super) name: String,
    path: PathBuf,
    file: File,
    /// In the order of their slots.
    index: Vec<IndexEntry>,
    slots: HashMap<u32, u32>,
}

impl WholeEpoch {
    /// Reads all of it: whatever is acknowledged has to be there.
    pub(super) fn open(dir: &Path, generation: u64, epoch: Epoch) -> Result<Self, StoreError> {
        let name = epoch_name(generation, epoch);
        let path = dir.join(&name);
        let io = |e| failed("reading it", &path, e);
        let damaged = |why: &str| StoreError::Damaged {
            path: path.clone(),
            why: why.to_owned(),
        };
        let file = File::open(&path).map_err(io)?;
        let mut bytes = vec![0; EPOCH_HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let header = EpochHeader::decode(&bytes).map_err(|e| damaged(&e.to_string()))?;
        if header.generation != generation || header.epoch != epoch {
            return Err(damaged("it is another epoch than its name says"));
        }
        // Before anything is allocated by what it says.
        if file.metadata().map_err(io)?.len() != header.file_bytes() {
            return Err(damaged("it is not as long as it says"));
        }
        let length = header.index_count * INDEX_ENTRY_BYTES as u64;
        let mut bytes = vec![0; usize::try_from(length).expect("it is in the file")];
        file.read_exact_at(&mut bytes, header.index_offset())
            .map_err(io)?;
        if crc32fast::hash(&bytes) != header.index_crc {
            return Err(damaged("the checksum of its index does not match"));
        }
        let entries = bytes.as_chunks::<INDEX_ENTRY_BYTES>().0;
        let index: Vec<_> = entries.iter().map(IndexEntry::decode).collect();
        let whole = Self {
            slots: slots(&index),
            header,
            name,
            path: path.clone(),
            file,
            index,
        };
        whole.check_pages()?;
        whole.read_state()?;
        Ok(whole)
    }

    fn damaged(&self, why: String) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            why,
        }
    }

    fn check_pages(&self) -> Result<(), StoreError> {
        let mut page = vec![0; 4096];
        let mut next = 0;
        for entry in self.index.iter().filter(|entry| entry.slot != SLOT_ZERO) {
            let slot = u64::from(entry.slot);
            if slot != next {
                return Err(self.damaged(format!("slot {slot} where {next} comes")));
            }
            next += 1;
            self.file
                .read_exact_at(&mut page, slot_offset(slot))
                .map_err(|e| failed("reading pages", &self.path, e))?;
            if crc32fast::hash(&page) != entry.crc {
                let why = format!("the checksum of page {} does not match", entry.page);
                return Err(self.damaged(why));
            }
        }
        if next != self.header.slot_count {
            return Err(self.damaged("it has pages without an entry".to_owned()));
        }
        Ok(())
    }

    pub(super) fn read_state(&self) -> Result<Vec<u8>, StoreError> {
        let length = usize::try_from(self.header.state_bytes).expect("bounded");
        let mut state = vec![0; length];
        let at = self.header.file_bytes() - self.header.state_bytes;
        self.file
            .read_exact_at(&mut state, at)
            .map_err(|e| failed("reading device state", &self.path, e))?;
        if crc32fast::hash(&state) != self.header.state_crc {
            return Err(self.damaged("the checksum of its device state does not match".to_owned()));
        }
        Ok(state)
    }

    /// The page as it is in this epoch; false where it is not in it.
    pub(super) fn read(&self, page: u64, out: &mut [u8]) -> Result<bool, StoreError> {
        let page = u32::try_from(page).expect("page numbers are 32 bits");
        match self.slots.get(&page) {
            None => return Ok(false),
            Some(&SLOT_ZERO) => out.fill(0),
            Some(slot) => self
                .file
                .read_exact_at(out, slot_offset(u64::from(*slot)))
                .map_err(|e| failed("reading a page", &self.path, e))?,
        }
        Ok(true)
    }

    /// Every page of it into the RAM file; right however often, and wherever it stopped before.
    pub(super) fn apply(&self, copy: &Copy, mapping: &Mapping) -> Result<(), StoreError> {
        let mut stretches: Vec<libc::iovec> = Vec::with_capacity(STRETCHES_MAX);
        let (mut from, mut next) = (0, 0);
        for entry in &self.index {
            let page = u64::from(entry.page);
            if page >= mapping.pages() {
                return Err(self.damaged(format!("page {page} of {}", mapping.pages())));
            }
            if entry.slot == SLOT_ZERO {
                copy.zero(page, 1)?;
                continue;
            }
            let (at, _) = mapping.at(page);
            let follows = stretches
                .last_mut()
                .filter(|last| last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == at);
            match follows {
                Some(last) => last.iov_len += 4096,
                None => {
                    if stretches.len() == STRETCHES_MAX {
                        self.fill(&mut stretches, from, copy)?;
                        from = next;
                    }
                    stretches.push(libc::iovec {
                        iov_base: at.cast(),
                        iov_len: 4096,
                    });
                }
            }
            next += 1;
        }
        self.fill(&mut stretches, from, copy)
    }

    /// Reads the slots from `from` on into the stretches, by as few system calls as it takes: no page of
    /// the RAM file is touched by ours, where full shared memory would kill the process.
    fn fill(
        &self,
        stretches: &mut Vec<libc::iovec>,
        from: u64,
        copy: &Copy,
    ) -> Result<(), StoreError> {
        let mut at = slot_offset(from);
        let mut left = stretches.as_mut_slice();
        while !left.is_empty() {
            let count = i32::try_from(left.len()).expect("at most 1024");
            let offset = i64::try_from(at).expect("a file's offset");
            // SAFETY: every stretch is whole pages of a mapping that `copy`'s caller keeps alive (`Mapping::at`
            // gave them), and only the kernel writes there. Safe code cannot name memory that a guest shares.
            let got = unsafe { libc::preadv(self.file.as_raw_fd(), left.as_ptr(), count, offset) };
            let mut got = match usize::try_from(got) {
                Ok(0) => return Err(self.damaged("it ends before its pages do".to_owned())),
                Ok(got) => got,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(copy.failed("applying pages (is shared memory full?)", error));
                }
            };
            at += got as u64;
            while let Some(first) = left.first_mut() {
                if got < first.iov_len {
                    first.iov_base = first.iov_base.cast::<u8>().wrapping_add(got).cast();
                    first.iov_len -= got;
                    break;
                }
                got -= first.iov_len;
                left = &mut left[1..];
            }
        }
        stretches.clear();
        Ok(())
    }
}

/// A page in bytes is what the stretches count in.
const _: () = assert!(PAGE_BYTES == 4096);
