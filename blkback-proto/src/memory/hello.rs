//! Who the guest is, and what its copy at the backup is.

use super::{
    BLOCKS_MAX, MACHINE_BYTES_MAX, MemoryError, NAME_BYTES_MAX, PAGE_BYTES, RAM_BYTES_MAX,
    VERSION_MAX, VERSION_MIN,
};
use crate::ids::Epoch;
use crate::record::EPOCH_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Why a backup does not take a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefuseCode {
    /// No common version.
    Version = 1,
    /// Another guest, machine or RAM than the standby has.
    Shape = 2,
    /// Another primary is connected.
    Busy = 3,
    /// What the backup keeps the memory in failed.
    Store = 4,
    /// The peer broke the protocol.
    Protocol = 5,
    /// Shared memory has no room for it.
    Room = 6,
    /// The backup was promoted: who connects is its former primary.
    Promoted = 7,
    /// The daemon is stopping.
    Stopping = 8,
}

impl RefuseCode {
    /// The code from the wire.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Version,
            2 => Self::Shape,
            3 => Self::Busy,
            4 => Self::Store,
            5 => Self::Protocol,
            6 => Self::Room,
            7 => Self::Promoted,
            8 => Self::Stopping,
            _ => return None,
        })
    }

    /// True when trying again later cannot help.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Version | Self::Shape | Self::Promoted)
    }
}

/// How device state was taken, and so how it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum StateKind {
    /// QEMU's `xen-save-devices-state`.
    SaveDevices = 1,
    /// A migration that leaves shared memory out.
    Migrate = 2,
}

impl StateKind {
    /// The kind from the wire.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::SaveDevices,
            2 => Self::Migrate,
            _ => return None,
        })
    }
}

/// One RAM block of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The hypervisor's name of it.
    pub id: String,
    /// Whole pages, in bytes.
    pub size_bytes: u64,
}

/// What a primary says of its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version it speaks.
    pub version_min: u16,
    /// Highest version it speaks.
    pub version_max: u16,
    /// Random id of the checkpointer process: what it knows of dirty pages is lost with it. Not 0.
    pub incarnation: u64,
    /// Random id of the copy that it would go on from; 0 for none.
    pub generation: u64,
    /// Name of the guest.
    pub guest: String,
    /// QEMU's version and machine type; the standby's has to be equal.
    pub machine: String,
    /// How it takes device state.
    pub state_kind: StateKind,
    /// Page numbers run through them in this order.
    pub blocks: Vec<Block>,
}

/// What a backup answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version both will speak.
    pub version: u16,
    /// Highest whole epoch it has of that copy; none without one.
    pub whole: Epoch,
    /// The newest copy that it has an epoch of; 0 for none.
    pub generation: u64,
    /// The process that made it; 0 for none.
    pub incarnation: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHello {
    pub(super) incarnation: U64,
    pub(super) generation: U64,
    pub(super) guest_bytes: U16,
    pub(super) machine_bytes: U16,
    pub(super) state_kind: U16,
    pub(super) block_count: U16,
    pub(super) guest: [u8; NAME_BYTES_MAX],
    pub(super) machine: [u8; MACHINE_BYTES_MAX],
    pub(super) blocks: [RawBlock; BLOCKS_MAX],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RawBlock {
    pub(super) size_bytes: U64,
    pub(super) id_bytes: U16,
    pub(super) reserved: U16,
    pub(super) reserved2: U32,
    pub(super) id: [u8; NAME_BYTES_MAX],
}

fn field<const N: usize>(text: &str) -> ([u8; N], U16) {
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    let length = u16::try_from(text.len()).expect("fields are short");
    (bytes, length.into())
}

/// A text of a fixed field: printable, and zero behind its end.
fn text(bytes: &[u8], length: U16, name: &'static str) -> Result<String, MemoryError> {
    let bad = MemoryError::Field(name);
    let (text, rest) = bytes.split_at_checked(length.get().into()).ok_or(bad)?;
    let text = std::str::from_utf8(text).map_err(|_| bad)?;
    if text.chars().any(char::is_control) || rest.iter().any(|byte| *byte != 0) {
        return Err(bad);
    }
    Ok(text.to_owned())
}

impl Hello {
    /// The version to speak with this primary; `None` without a common one.
    #[must_use]
    pub fn choose_version(&self) -> Option<u16> {
        let highest = self.version_max.min(VERSION_MAX);
        let lowest = self.version_min.max(VERSION_MIN);
        (lowest <= highest).then_some(highest)
    }

    /// Of all blocks.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ram_bytes() / PAGE_BYTES as u64
    }

    /// Of all blocks, in bytes.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.size_bytes).sum()
    }

    /// What can be sent at all; everything that was received has passed.
    ///
    /// # Errors
    /// The field that is out of bounds.
    pub fn check(&self) -> Result<(), MemoryError> {
        let is_text = |text: &str, most| text.len() <= most && !text.chars().any(char::is_control);
        if self.guest.is_empty() || !is_text(&self.guest, NAME_BYTES_MAX) {
            return Err(MemoryError::Field("guest"));
        }
        if !is_text(&self.machine, MACHINE_BYTES_MAX) {
            return Err(MemoryError::Field("machine"));
        }
        if self.incarnation == 0 {
            return Err(MemoryError::Field("incarnation"));
        }
        if self.blocks.is_empty() || self.blocks.len() > BLOCKS_MAX {
            return Err(MemoryError::Field("block_count"));
        }
        let mut left = RAM_BYTES_MAX;
        for block in &self.blocks {
            if !is_text(&block.id, NAME_BYTES_MAX) {
                return Err(MemoryError::Field("block id"));
            }
            let is_whole = block.size_bytes > 0 && block.size_bytes % PAGE_BYTES as u64 == 0;
            left = left
                .checked_sub(block.size_bytes)
                .filter(|_| is_whole)
                .ok_or(MemoryError::Field("block size"))?;
        }
        Ok(())
    }

    /// # Panics
    /// Where [`Hello::check`] does not hold.
    pub(super) fn body(&self) -> Vec<u8> {
        self.check().expect("checked where it was made");
        let (guest, guest_bytes) = field(&self.guest);
        let (machine, machine_bytes) = field(&self.machine);
        let mut raw = RawHello {
            incarnation: self.incarnation.into(),
            generation: self.generation.into(),
            guest_bytes,
            machine_bytes,
            state_kind: (self.state_kind as u16).into(),
            block_count: u16::try_from(self.blocks.len()).expect("checked").into(),
            guest,
            machine,
            blocks: [RawBlock::new_zeroed(); BLOCKS_MAX],
        };
        for (raw, block) in raw.blocks.iter_mut().zip(&self.blocks) {
            (raw.id, raw.id_bytes) = field(&block.id);
            raw.size_bytes = block.size_bytes.into();
        }
        raw.as_bytes().to_vec()
    }

    pub(super) fn from_parts(words: [u64; 4], body: &[u8]) -> Result<Self, MemoryError> {
        let version = |word| u16::try_from(word).map_err(|_| MemoryError::Field("version"));
        let raw = RawHello::ref_from_bytes(body).map_err(|_| MemoryError::Field("hello body"))?;
        let (used, unused) = raw
            .blocks
            .split_at_checked(raw.block_count.get().into())
            .ok_or(MemoryError::Field("block_count"))?;
        if unused.as_bytes().iter().any(|byte| *byte != 0) {
            return Err(MemoryError::Field("blocks"));
        }
        let block = |raw: &RawBlock| {
            if raw.reserved.get() != 0 || raw.reserved2.get() != 0 {
                return Err(MemoryError::Field("reserved"));
            }
            Ok(Block {
                id: text(&raw.id, raw.id_bytes, "block id")?,
                size_bytes: raw.size_bytes.get(),
            })
        };
        let hello = Self {
            version_min: version(words[0])?,
            version_max: version(words[1])?,
            incarnation: raw.incarnation.get(),
            generation: raw.generation.get(),
            guest: text(&raw.guest, raw.guest_bytes, "guest")?,
            machine: text(&raw.machine, raw.machine_bytes, "machine")?,
            state_kind: StateKind::from_code(raw.state_kind.get().into())
                .ok_or(MemoryError::Field("state_kind"))?,
            blocks: used.iter().map(block).collect::<Result<_, _>>()?,
        };
        hello.check()?;
        Ok(hello)
    }
}

impl Welcome {
    /// Whether a primary can go on from the copy that the backup has.
    #[must_use]
    pub fn has_base(&self, incarnation: u64, generation: u64) -> bool {
        generation != 0 && self.generation == generation && self.incarnation == incarnation
    }

    pub(super) fn words(&self) -> [u64; 4] {
        [
            self.version.into(),
            self.whole.0,
            self.generation,
            self.incarnation,
        ]
    }

    pub(super) fn from_words(words: [u64; 4]) -> Result<Self, MemoryError> {
        if Epoch(words[1]) > EPOCH_MAX {
            return Err(MemoryError::Field("epoch"));
        }
        Ok(Self {
            version: u16::try_from(words[0]).map_err(|_| MemoryError::Field("version"))?,
            whole: Epoch(words[1]),
            generation: words[2],
            incarnation: words[3],
        })
    }
}
