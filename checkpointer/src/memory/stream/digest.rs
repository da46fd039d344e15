//! What END has to say: everything of an epoch in one number.

use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::memory::{DIGEST_BYTES, StateKind};

/// BLAKE3 over which epoch it is, every page's number and checksum in the order they come, and the state.
#[derive(Debug, Clone)]
pub(super) struct Digest(blake3::Hasher);

impl Digest {
    pub(super) fn begin(generation: u64, epoch: Epoch, lineage: LineageId) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"blockrep memory epoch 1\n");
        hasher.update(&generation.to_le_bytes());
        hasher.update(&epoch.0.to_le_bytes());
        hasher.update(&lineage.0);
        Self(hasher)
    }

    pub(super) fn page(&mut self, page: u32, crc: u32) {
        self.0.update(&page.to_le_bytes());
        self.0.update(&crc.to_le_bytes());
    }

    pub(super) fn end(mut self, kind: StateKind, state: &[u8]) -> [u8; DIGEST_BYTES] {
        self.0.update(&(kind as u16).to_le_bytes());
        self.0.update(&(state.len() as u64).to_le_bytes());
        self.0.update(state);
        self.0.finalize().into()
    }
}
