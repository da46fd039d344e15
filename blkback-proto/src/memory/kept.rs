//! What stands in the backup's shared memory (MEMORY.md §3).

use super::{DIGEST_BYTES, MemoryError, STATE_BYTES_MAX, StateKind};
use crate::ids::{Epoch, LineageId};
use crate::record::EPOCH_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of an epoch's file.
pub const EPOCH_MAGIC: [u8; 8] = *b"BREPOCH1";
/// First bytes of a slot of the file `state`.
pub const KEPT_MAGIC: [u8; 8] = *b"BRMEMKEP";
/// First bytes of the file `device-state`.
pub const STATE_MAGIC: [u8; 8] = *b"BRDEVST1";
/// Version of all three.
pub const FORMAT_VERSION: u16 = 1;
/// Size of an epoch's header, in bytes; its pages follow.
pub const EPOCH_HEADER_BYTES: usize = 4096;
/// Size of an entry of an epoch's index, in bytes.
pub const INDEX_ENTRY_BYTES: usize = 12;
/// The slot of a page that is all zero and has none.
pub const SLOT_ZERO: u32 = u32::MAX;
/// Size of a slot of the file `state`, in bytes; it has two.
pub const KEPT_BYTES: usize = 4096;
/// Size of the header of the file `device-state`, in bytes.
pub const STATE_HEADER_BYTES: usize = 64;

/// The guest switched itself off in this epoch.
const FLAG_OFF: u16 = 1;
/// The backup was promoted.
const FLAG_PROMOTED: u16 = 2;

/// Header of a whole epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochHeader {
    /// The copy that it is an epoch of.
    pub generation: u64,
    pub epoch: Epoch,
    pub lineage: LineageId,
    /// As it came with END; zero for an end of the guest.
    pub digest: [u8; DIGEST_BYTES],
    /// The guest is off: no state, nothing to go on from.
    pub is_off: bool,
    /// Entries of the index.
    pub index_count: u64,
    /// Pages that stand behind the header.
    pub slot_count: u64,
    pub state_bytes: u64,
    pub state_kind: StateKind,
    pub index_crc: u32,
    pub state_crc: u32,
}

/// An entry of the index: where the page stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub page: u32,
    /// From 0; [`SLOT_ZERO`] for none.
    pub slot: u32,
    /// crc32 of the page.
    pub crc: u32,
}

/// What the backup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Kept {
    /// Counts up with every write.
    pub sequence: u64,
    /// The copy that counts; 0 for none yet.
    pub generation: u64,
    /// The copy that is being made beside it; 0 for none.
    pub next: u64,
    /// Epoch of `generation` that the guest would go on from.
    pub committed: Epoch,
    /// Epoch that its RAM file is; while it differs from `committed`, it is none.
    pub applied: Epoch,
    /// The disks' history of `committed`.
    pub lineage: LineageId,
    pub is_promoted: bool,
    /// The guest is off as of `committed`.
    pub is_off: bool,
}

/// Header of the device state that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHeader {
    pub generation: u64,
    pub epoch: Epoch,
    pub kind: StateKind,
    pub state_bytes: u64,
    /// crc32 of the state.
    pub state_crc: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawEpoch {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) flags: U16,
    pub(super) crc: U32,
    pub(super) generation: U64,
    pub(super) epoch: U64,
    pub(super) lineage: [u8; 16],
    pub(super) digest: [u8; DIGEST_BYTES],
    pub(super) index_count: U64,
    pub(super) slot_count: U64,
    pub(super) state_bytes: U64,
    pub(super) state_kind: U16,
    pub(super) reserved: U16,
    pub(super) index_crc: U32,
    pub(super) state_crc: U32,
    pub(super) reserved2: [u8; 3980],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawKept {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) flags: U16,
    pub(super) crc: U32,
    pub(super) sequence: U64,
    pub(super) generation: U64,
    pub(super) next: U64,
    pub(super) committed: U64,
    pub(super) applied: U64,
    pub(super) lineage: [u8; 16],
    pub(super) reserved: [u8; 4024],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawState {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) kind: U16,
    pub(super) crc: U32,
    pub(super) generation: U64,
    pub(super) epoch: U64,
    pub(super) state_bytes: U64,
    pub(super) state_crc: U32,
    pub(super) reserved: [u8; 20],
}

const _: () = assert!(size_of::<RawEpoch>() == EPOCH_HEADER_BYTES);
const _: () = assert!(size_of::<RawKept>() == KEPT_BYTES);
const _: () = assert!(size_of::<RawState>() == STATE_HEADER_BYTES);

/// Of the bytes with the field of the checksum zero; it stands at 12 in all of them.
fn crc_of(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[16..]);
    hasher.finalize()
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc_of(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Magic, checksum and version, in this order: damage is told from a later version.
fn check(bytes: &[u8], size: usize, magic: [u8; 8]) -> Result<&[u8], MemoryError> {
    let bytes = bytes.get(..size).ok_or(MemoryError::Short)?;
    if bytes[..8] != magic {
        return Err(MemoryError::Magic);
    }
    if bytes[12..16] != crc_of(bytes).to_le_bytes() {
        return Err(MemoryError::Crc);
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != FORMAT_VERSION {
        return Err(MemoryError::Version(version));
    }
    Ok(bytes)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn state_kind(code: U16) -> Result<StateKind, MemoryError> {
    StateKind::from_code(code.get().into()).ok_or(MemoryError::Field("state_kind"))
}

impl EpochHeader {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawEpoch {
            magic: EPOCH_MAGIC,
            version: FORMAT_VERSION.into(),
            flags: (if self.is_off { FLAG_OFF } else { 0 }).into(),
            crc: 0.into(),
            generation: self.generation.into(),
            epoch: self.epoch.0.into(),
            lineage: self.lineage.0,
            digest: self.digest,
            index_count: self.index_count.into(),
            slot_count: self.slot_count.into(),
            state_bytes: self.state_bytes.into(),
            state_kind: (self.state_kind as u16).into(),
            reserved: 0.into(),
            index_crc: self.index_crc.into(),
            state_crc: self.state_crc.into(),
            reserved2: [0; 3980],
        };
        seal(raw.as_bytes().to_vec())
    }

    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, MemoryError> {
        let bytes = check(bytes, EPOCH_HEADER_BYTES, EPOCH_MAGIC)?;
        let raw = RawEpoch::ref_from_bytes(bytes).map_err(|_| MemoryError::Short)?;
        if raw.reserved.get() != 0 || !is_zero(&raw.reserved2) {
            return Err(MemoryError::Field("reserved"));
        }
        if raw.flags.get() & !FLAG_OFF != 0 {
            return Err(MemoryError::Field("flags"));
        }
        let header = Self {
            generation: raw.generation.get(),
            epoch: Epoch(raw.epoch.get()),
            lineage: LineageId(raw.lineage),
            digest: raw.digest,
            is_off: raw.flags.get() == FLAG_OFF,
            index_count: raw.index_count.get(),
            slot_count: raw.slot_count.get(),
            state_bytes: raw.state_bytes.get(),
            state_kind: state_kind(raw.state_kind)?,
            index_crc: raw.index_crc.get(),
            state_crc: raw.state_crc.get(),
        };
        if header.epoch == Epoch::NONE || header.epoch > EPOCH_MAX {
            return Err(MemoryError::Field("epoch"));
        }
        if header.slot_count > header.index_count || header.index_count > 1 << 32 {
            return Err(MemoryError::Field("index_count"));
        }
        if header.state_bytes > STATE_BYTES_MAX {
            return Err(MemoryError::Field("state_bytes"));
        }
        Ok(header)
    }

    /// Length of the whole file, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.index_offset() + self.index_count * INDEX_ENTRY_BYTES as u64 + self.state_bytes
    }

    /// Where the index begins; the state stands behind it.
    #[must_use]
    pub fn index_offset(&self) -> u64 {
        slot_offset(self.slot_count)
    }
}

/// Where a page stands in an epoch's file.
#[must_use]
pub fn slot_offset(slot: u64) -> u64 {
    EPOCH_HEADER_BYTES as u64 + slot * super::PAGE_BYTES as u64
}

impl IndexEntry {
    #[must_use]
    pub fn encode(&self) -> [u8; INDEX_ENTRY_BYTES] {
        let mut bytes = [0; INDEX_ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.page.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.slot.to_le_bytes());
        bytes[8..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    #[must_use]
    pub fn decode(bytes: &[u8; INDEX_ENTRY_BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            page: word(0),
            slot: word(4),
            crc: word(8),
        }
    }
}

impl Kept {
    /// Which of the two slots it goes to.
    #[must_use]
    pub fn slot(&self) -> u64 {
        self.sequence % 2
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let off = if self.is_off { FLAG_OFF } else { 0 };
        let promoted = if self.is_promoted { FLAG_PROMOTED } else { 0 };
        let raw = RawKept {
            magic: KEPT_MAGIC,
            version: FORMAT_VERSION.into(),
            flags: (off | promoted).into(),
            crc: 0.into(),
            sequence: self.sequence.into(),
            generation: self.generation.into(),
            next: self.next.into(),
            committed: self.committed.0.into(),
            applied: self.applied.0.into(),
            lineage: self.lineage.0,
            reserved: [0; 4024],
        };
        seal(raw.as_bytes().to_vec())
    }

    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, MemoryError> {
        let bytes = check(bytes, KEPT_BYTES, KEPT_MAGIC)?;
        let raw = RawKept::ref_from_bytes(bytes).map_err(|_| MemoryError::Short)?;
        let flags = raw.flags.get();
        if !is_zero(&raw.reserved) || flags & !(FLAG_OFF | FLAG_PROMOTED) != 0 {
            return Err(MemoryError::Field("reserved"));
        }
        let kept = Self {
            sequence: raw.sequence.get(),
            generation: raw.generation.get(),
            next: raw.next.get(),
            committed: Epoch(raw.committed.get()),
            applied: Epoch(raw.applied.get()),
            lineage: LineageId(raw.lineage),
            is_promoted: flags & FLAG_PROMOTED != 0,
            is_off: flags & FLAG_OFF != 0,
        };
        if kept.applied > kept.committed || kept.committed > EPOCH_MAX {
            return Err(MemoryError::Field("applied"));
        }
        if (kept.generation == 0) != (kept.committed == Epoch::NONE) {
            return Err(MemoryError::Field("generation"));
        }
        Ok(kept)
    }
}

impl StateHeader {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let raw = RawState {
            magic: STATE_MAGIC,
            version: FORMAT_VERSION.into(),
            kind: (self.kind as u16).into(),
            crc: 0.into(),
            generation: self.generation.into(),
            epoch: self.epoch.0.into(),
            state_bytes: self.state_bytes.into(),
            state_crc: self.state_crc.into(),
            reserved: [0; 20],
        };
        seal(raw.as_bytes().to_vec())
    }

    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, MemoryError> {
        let bytes = check(bytes, STATE_HEADER_BYTES, STATE_MAGIC)?;
        let raw = RawState::ref_from_bytes(bytes).map_err(|_| MemoryError::Short)?;
        if !is_zero(&raw.reserved) {
            return Err(MemoryError::Field("reserved"));
        }
        if raw.state_bytes.get() > STATE_BYTES_MAX {
            return Err(MemoryError::Field("state_bytes"));
        }
        Ok(Self {
            generation: raw.generation.get(),
            epoch: Epoch(raw.epoch.get()),
            kind: state_kind(raw.kind)?,
            state_bytes: raw.state_bytes.get(),
            state_crc: raw.state_crc.get(),
        })
    }
}
