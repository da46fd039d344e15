//! Frames of an epoch into pages. Pure but for the store that it asks for what a difference is to.
//!
//! Nothing of the peer is trusted: a page counts with the checksum of what it has to be, a difference only to
//! a page that came in this session, an epoch only with count and digest.

use super::PAGE;
use super::digest::Digest;
use super::pack::unpack;
use super::pages::xor_into;
use crate::memory::dirty::Pages;
use crate::memory::store::StoreError;
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::memory::{Begin, Blob, DIGEST_BYTES, Encoding, Entry, StateKind};

/// Why a frame is not taken.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Whoever sends broke a rule, or what came is not what was sent.
    #[error("{0}")]
    Peer(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn peer<T>(text: impl Into<String>) -> Result<T, DecodeError> {
    Err(DecodeError::Peer(text.into()))
}

/// Where the newest version of a page is: [`crate::memory::store::Store`], or a test's.
pub trait Newest {
    /// Fills `out` with the newest version of a page that came in.
    ///
    /// # Errors
    /// It cannot be read.
    fn newest(&self, page: u64, out: &mut [u8]) -> Result<(), StoreError>;
}

impl Newest for crate::memory::store::Store {
    fn newest(&self, page: u64, out: &mut [u8]) -> Result<(), StoreError> {
        Self::newest(self, page, out)
    }
}

#[derive(Debug)]
struct Open {
    begin: Begin,
    page_count: u64,
    digest: Digest,
}

/// An epoch that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole<'a> {
    pub epoch: Epoch,
    pub lineage: LineageId,
    pub digest: [u8; DIGEST_BYTES],
    pub kind: StateKind,
    pub state: &'a [u8],
}

/// One session's. See the module.
#[derive(Debug)]
pub struct Decoder {
    generation: u64,
    /// That came in this session, so that a difference to them is one to what the sender knows.
    came: Pages,
    state: Vec<u8>,
    open: Option<Open>,
    plain: Vec<u8>,
}

impl Decoder {
    /// For a session on a copy of a guest of so many pages.
    #[must_use]
    pub fn new(generation: u64, pages: u64) -> Self {
        Self {
            generation,
            came: Pages::none(pages),
            state: Vec::new(),
            open: None,
            plain: Vec::new(),
        }
    }

    /// # Errors
    /// In an epoch.
    pub fn copy_start(&mut self, generation: u64) -> Result<(), DecodeError> {
        self.check_closed()?;
        *self = Self::new(generation, self.came.of());
        Ok(())
    }

    /// Pages of no epoch.
    ///
    /// # Errors
    /// In an epoch; no such pages; they are not what was sent.
    pub fn copy(&mut self, first: u32, crc: u32, blob: &Blob<'_>) -> Result<&[u8], DecodeError> {
        self.check_closed()?;
        let end = u64::from(first) + blob.count as u64;
        if end > self.came.of() {
            return peer(format!("pages up to {end} of {}", self.came.of()));
        }
        unpack(blob, &mut self.plain).map_err(DecodeError::Peer)?;
        if crc32fast::hash(&self.plain) != crc {
            return peer(format!("pages from {first} on are not what was sent"));
        }
        self.came.insert_run(first.into(), blob.count as u64);
        Ok(&self.plain)
    }

    /// # Errors
    /// In an epoch; more pages than the guest has.
    pub fn begin(&mut self, begin: &Begin) -> Result<(), DecodeError> {
        self.check_closed()?;
        if begin.page_count > self.came.of() {
            let (count, of) = (begin.page_count, self.came.of());
            return peer(format!("an epoch of {count} pages of {of}"));
        }
        let state_bytes = usize::try_from(begin.state_bytes).expect("bounded when it was read");
        self.state.resize(state_bytes, 0);
        self.open = Some(Open {
            begin: *begin,
            page_count: 0,
            digest: Digest::begin(self.generation, begin.epoch, begin.lineage),
        });
        Ok(())
    }

    /// Decodes pages; gives those that are in the blob, in the order of their entries.
    ///
    /// # Errors
    /// Outside of an epoch; more pages than it said; no such page; a difference to what did not come; not
    /// what was sent. The epoch is good for nothing then.
    pub fn pages(
        &mut self,
        entries: &[Entry],
        blob: &Blob<'_>,
        newest: &impl Newest,
    ) -> Result<&[u8], DecodeError> {
        let Some(open) = &mut self.open else {
            return peer("pages outside of an epoch");
        };
        open.page_count += entries.len() as u64;
        if open.page_count > open.begin.page_count {
            return peer("more pages than the epoch said");
        }
        unpack(blob, &mut self.plain).map_err(DecodeError::Peer)?;
        let mut plain = self.plain.chunks_exact_mut(PAGE);
        let mut base = [0; PAGE];
        for entry in entries {
            let page = u64::from(entry.page);
            if page >= self.came.of() {
                return peer(format!("page {page} of {}", self.came.of()));
            }
            if matches!(entry.encoding, Encoding::Same | Encoding::Delta) {
                if !self.came.contains(page) {
                    return peer(format!("a difference to page {page}, which did not come"));
                }
                newest.newest(page, &mut base)?;
            }
            let crc = match entry.encoding {
                Encoding::Zero => {
                    base.fill(0);
                    crc32fast::hash(&base)
                }
                Encoding::Same => crc32fast::hash(&base),
                Encoding::Full | Encoding::Delta => {
                    let plain = plain.next().expect("counted when it was read");
                    if entry.encoding == Encoding::Delta {
                        xor_into(plain, &base);
                    }
                    crc32fast::hash(plain)
                }
            };
            if crc != entry.crc {
                return peer(format!("page {page} is not what was sent"));
            }
            self.came.insert_run(page, 1);
            open.digest.page(entry.page, crc);
        }
        Ok(&self.plain)
    }

    /// # Errors
    /// Outside of an epoch; no such piece; bytes behind the end.
    pub fn state(&mut self, indexes: &[u32], blob: &Blob<'_>) -> Result<(), DecodeError> {
        if self.open.is_none() {
            return peer("device state outside of an epoch");
        }
        unpack(blob, &mut self.plain).map_err(DecodeError::Peer)?;
        for (index, piece) in indexes.iter().zip(self.plain.chunks_exact(PAGE)) {
            let at = usize::try_from(*index).expect("32 bits") * PAGE;
            if at >= self.state.len() {
                return peer(format!("piece {index} of device state"));
            }
            let end = (at + PAGE).min(self.state.len());
            let (piece, behind) = piece.split_at(end - at);
            if behind.iter().any(|byte| *byte != 0) {
                return peer("bytes behind the end of device state");
            }
            self.state[at..end].copy_from_slice(piece);
        }
        Ok(())
    }

    /// # Errors
    /// Outside of an epoch; another epoch, count or digest.
    pub fn end(
        &mut self,
        epoch: Epoch,
        page_count: u64,
        digest: [u8; DIGEST_BYTES],
    ) -> Result<Whole<'_>, DecodeError> {
        let Some(open) = self.open.take() else {
            return peer("an end outside of an epoch");
        };
        let begin = open.begin;
        if epoch != begin.epoch {
            return peer(format!("the end of {epoch} in epoch {}", begin.epoch));
        }
        if page_count != begin.page_count || page_count != open.page_count {
            let (said, came) = (begin.page_count, open.page_count);
            return peer(format!("epoch {epoch} has {came} pages of {said}"));
        }
        if open.digest.end(begin.state_kind, &self.state) != digest {
            return peer(format!("epoch {epoch} is not what was sent"));
        }
        Ok(Whole {
            epoch,
            lineage: begin.lineage,
            digest,
            kind: begin.state_kind,
            state: &self.state,
        })
    }

    /// # Errors
    /// In an epoch.
    pub fn check_closed(&self) -> Result<(), DecodeError> {
        match &self.open {
            Some(open) => peer(format!("in the middle of epoch {}", open.begin.epoch)),
            None => Ok(()),
        }
    }
}
