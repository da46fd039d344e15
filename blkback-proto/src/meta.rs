//! Metadata of a volume and of a group, version 1 (JOURNAL.md §5).
//!
//! Each stands in a file of two slots of 4096 bytes. Generation `g` is written to slot `g % 2`, so
//! a torn write leaves the one before it. Nothing here is written per epoch.

use crate::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use crate::record::{FORMAT_VERSION, RecordError};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of one slot, in bytes.
pub const SLOT_BYTES: usize = 4096;
/// First bytes of a slot of a volume.
pub const VOLUME_MAGIC: [u8; 8] = *b"BRVOLUME";
/// First bytes of a slot of a group.
pub const GROUP_MAGIC: [u8; 8] = *b"BRGROUP1";
/// Lineage entries kept; the oldest are forgotten.
pub const LINEAGE_MAX: usize = 64;
/// Largest name of a group, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 64;
/// Largest number of volumes of a group.
pub const VOLUMES_MAX: u16 = 64;

/// Byte offset of the slot of a generation in its file.
#[must_use]
pub fn slot_offset(generation: u64) -> u64 {
    (generation % 2) * SLOT_BYTES as u64
}

/// What a volume knows for certain about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMeta {
    /// Counts up with every write of the metadata.
    pub generation: u64,
    /// Group; none on a blank backup.
    pub group: GroupUuid,
    /// Volume; none on a blank backup.
    pub volume: VolumeUuid,
    /// Which volume of the group, from 0.
    pub volume_index: u16,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Size of a journal segment in bytes; zero without a journal.
    pub segment_bytes: u64,
    /// Number of journal segments; zero without a journal.
    pub segment_count: u32,
    /// Where the first record not yet applied stands, or will stand.
    pub tail: Place,
    /// `record_seq` of that record.
    pub tail_record_seq: u64,
    /// `prev_crc` of that record.
    pub tail_prev_crc: u32,
    /// Session whose chain the tail belongs to.
    pub tail_session: SessionId,
    /// Lineage of the tail.
    pub tail_lineage: LineageId,
    /// Everything up to this epoch is in the image.
    pub applied: Epoch,
    /// At least this epoch is committed.
    pub committed: Epoch,
    /// At least this epoch was durable here.
    pub durable: Epoch,
    /// The image is being compared and copied: no epoch, not promotable.
    pub inconsistent: bool,
    /// The journal holds nothing: the image alone is the volume.
    pub journal_empty: bool,
    /// The volume was stopped in order.
    pub clean: bool,
    /// After a promotion: the journal goes on with this serial under the new lineage; 0 if not.
    pub own_serial: u64,
    /// Number of the last own record known to be on stable storage: the image may depend on it. 0 if
    /// none.
    pub own_synced: u64,
    /// First epoch this volume can be: earlier ones were mixed by a sync.
    pub consistent_from: Epoch,
    /// When the primary cut `committed`, in nanoseconds since 1970; 0 if it is not known.
    pub committed_cut_unix_ns: u64,
}

/// Why a lineage began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum LineageWhy {
    /// First start of a primary.
    Created = 1,
    /// A primary started again.
    Started = 2,
    /// The peer was lost; writes go on here alone.
    Degraded = 3,
    /// A backup became primary.
    Promoted = 4,
}

impl LineageWhy {
    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Created,
            2 => Self::Started,
            3 => Self::Degraded,
            4 => Self::Promoted,
            _ => return None,
        })
    }

    /// The word for status and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Degraded => "degraded",
            Self::Promoted => "promoted",
        }
    }
}

/// One stretch of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineageEntry {
    /// Random id.
    pub id: LineageId,
    /// First epoch of the stretch.
    pub first_epoch: Epoch,
    /// Why it began.
    pub why: LineageWhy,
    /// When it began, in seconds since 1970.
    pub unix_s: u64,
}

/// Role of a group on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Role {
    /// Serves a guest.
    Primary = 1,
    /// Holds what a primary commits.
    Backup = 2,
}

/// What a group knows for certain about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMeta {
    /// Counts up with every write of the metadata.
    pub generation: u64,
    /// Group; none on a blank backup.
    pub group: GroupUuid,
    /// Name the operator gave it.
    pub name: String,
    /// Number of volumes.
    pub volume_count: u16,
    /// Role on this host.
    pub role: Role,
    /// Epoch at which this side was promoted; none if it never was.
    pub promoted: Epoch,
    /// The group was stopped in order.
    pub clean: bool,
    /// On a primary: the peer may lack any write of this side, and nobody knows which.
    pub all_dirty: bool,
    /// On a backup: memory of the guest is a member, without which no epoch is committed.
    pub memory: bool,
    /// Histories, oldest first; the last is the current one.
    pub lineage: Vec<LineageEntry>,
}

impl GroupMeta {
    /// The history now being written or followed.
    #[must_use]
    pub fn tip(&self) -> Option<&LineageEntry> {
        self.lineage.last()
    }

    /// Begins a new history, forgetting the oldest entry when there are too many.
    pub fn begin(&mut self, entry: LineageEntry) {
        if self.lineage.len() == LINEAGE_MAX {
            self.lineage.remove(0);
        }
        self.lineage.push(entry);
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SlotHead {
    magic: [u8; 8],
    version: U16,
    reserved: U16,
    crc: U32,
    generation: U64,
    group: [u8; 16],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawVolume {
    head: SlotHead,
    volume: [u8; 16],
    volume_index: U16,
    flags: U16,
    segment_count: U32,
    size_bytes: U64,
    segment_bytes: U64,
    tail_serial: U64,
    tail_offset: U64,
    tail_record_seq: U64,
    tail_prev_crc: U32,
    reserved: U32,
    tail_session: U64,
    tail_lineage: [u8; 16],
    applied: U64,
    committed: U64,
    durable: U64,
    own_serial: U64,
    consistent_from: U64,
    own_synced: U64,
    committed_cut_unix_ns: U64,
    reserved2: [u8; SLOT_BYTES - 192],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLineage {
    id: [u8; 16],
    first_epoch: U64,
    unix_s: U64,
    why: U16,
    reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawGroup {
    head: SlotHead,
    volume_count: U16,
    role: U16,
    flags: U16,
    name_bytes: U16,
    promoted: U64,
    lineage_count: U16,
    reserved: [u8; 6],
    name: [u8; NAME_BYTES_MAX],
    lineage: [RawLineage; LINEAGE_MAX],
    reserved2: [u8; SLOT_BYTES - 128 - 40 * LINEAGE_MAX],
}

const _: () = assert!(size_of::<RawVolume>() == SLOT_BYTES);
const _: () = assert!(size_of::<RawGroup>() == SLOT_BYTES);

const FLAG_INCONSISTENT: u16 = 1;
const FLAG_ALL_DIRTY: u16 = 2;
const FLAG_JOURNAL_EMPTY: u16 = 4;
const FLAG_CLEAN: u16 = 8;
const FLAG_MEMORY: u16 = 16;

fn seal_slot(out: &mut [u8]) {
    out[12..16].fill(0);
    let crc = crc32fast::hash(out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn check_head(bytes: &[u8], magic: &[u8; 8]) -> Result<(), RecordError> {
    let head = bytes.get(..16).ok_or(RecordError::Short)?;
    if head[..8] != *magic {
        return Err(RecordError::Magic);
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if version != FORMAT_VERSION {
        return Err(RecordError::Version(version));
    }
    let stored = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..12]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[16..]);
    if hasher.finalize() != stored {
        return Err(RecordError::HeaderCrc);
    }
    Ok(())
}

impl VolumeMeta {
    /// The bytes of a slot.
    ///
    /// # Panics
    /// If `out` is not [`SLOT_BYTES`] long.
    pub fn encode(&self, out: &mut [u8]) {
        out.fill(0);
        let raw = RawVolume::mut_from_bytes(out).expect("the caller gives a slot");
        raw.head.magic = VOLUME_MAGIC;
        raw.head.version = FORMAT_VERSION.into();
        raw.head.generation = self.generation.into();
        raw.head.group = self.group.0;
        raw.volume = self.volume.0;
        raw.volume_index = self.volume_index.into();
        let flag = |on: bool, bit: u16| if on { bit } else { 0 };
        raw.flags = (flag(self.inconsistent, FLAG_INCONSISTENT)
            | flag(self.journal_empty, FLAG_JOURNAL_EMPTY)
            | flag(self.clean, FLAG_CLEAN))
        .into();
        raw.segment_count = self.segment_count.into();
        raw.size_bytes = self.size_bytes.into();
        raw.segment_bytes = self.segment_bytes.into();
        raw.tail_serial = self.tail.serial.into();
        raw.tail_offset = self.tail.offset.into();
        raw.tail_record_seq = self.tail_record_seq.into();
        raw.tail_prev_crc = self.tail_prev_crc.into();
        raw.tail_session = self.tail_session.0.into();
        raw.tail_lineage = self.tail_lineage.0;
        raw.applied = self.applied.0.into();
        raw.committed = self.committed.0.into();
        raw.durable = self.durable.0.into();
        raw.own_serial = self.own_serial.into();
        raw.consistent_from = self.consistent_from.0.into();
        raw.own_synced = self.own_synced.into();
        raw.committed_cut_unix_ns = self.committed_cut_unix_ns.into();
        seal_slot(out);
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes = bytes.get(..SLOT_BYTES).ok_or(RecordError::Short)?;
        check_head(bytes, &VOLUME_MAGIC)?;
        let raw = RawVolume::ref_from_bytes(bytes).map_err(|_| RecordError::Short)?;
        let flags = raw.flags.get();
        let known = FLAG_INCONSISTENT | FLAG_JOURNAL_EMPTY | FLAG_CLEAN;
        if flags & !known != 0 || raw.reserved.get() != 0 || raw.reserved2.iter().any(|b| *b != 0) {
            return Err(RecordError::Field("reserved"));
        }
        Ok(Self {
            generation: raw.head.generation.get(),
            group: GroupUuid(raw.head.group),
            volume: VolumeUuid(raw.volume),
            volume_index: raw.volume_index.get(),
            size_bytes: raw.size_bytes.get(),
            segment_bytes: raw.segment_bytes.get(),
            segment_count: raw.segment_count.get(),
            tail: Place {
                serial: raw.tail_serial.get(),
                offset: raw.tail_offset.get(),
            },
            tail_record_seq: raw.tail_record_seq.get(),
            tail_prev_crc: raw.tail_prev_crc.get(),
            tail_session: SessionId(raw.tail_session.get()),
            tail_lineage: LineageId(raw.tail_lineage),
            applied: Epoch(raw.applied.get()),
            committed: Epoch(raw.committed.get()),
            durable: Epoch(raw.durable.get()),
            inconsistent: flags & FLAG_INCONSISTENT != 0,
            journal_empty: flags & FLAG_JOURNAL_EMPTY != 0,
            clean: flags & FLAG_CLEAN != 0,
            own_serial: raw.own_serial.get(),
            own_synced: raw.own_synced.get(),
            consistent_from: Epoch(raw.consistent_from.get()),
            committed_cut_unix_ns: raw.committed_cut_unix_ns.get(),
        })
    }
}

impl GroupMeta {
    /// The bytes of a slot.
    ///
    /// # Panics
    /// If `out` is not [`SLOT_BYTES`] long, or name or lineage are too long.
    pub fn encode(&self, out: &mut [u8]) {
        out.fill(0);
        let raw = RawGroup::mut_from_bytes(out).expect("the caller gives a slot");
        raw.head.magic = GROUP_MAGIC;
        raw.head.version = FORMAT_VERSION.into();
        raw.head.generation = self.generation.into();
        raw.head.group = self.group.0;
        raw.volume_count = self.volume_count.into();
        raw.role = (self.role as u16).into();
        let flag = |on: bool, bit: u16| if on { bit } else { 0 };
        raw.flags = (flag(self.clean, FLAG_CLEAN)
            | flag(self.all_dirty, FLAG_ALL_DIRTY)
            | flag(self.memory, FLAG_MEMORY))
        .into();
        raw.name_bytes = u16::try_from(self.name.len()).expect("at most 64").into();
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        raw.promoted = self.promoted.0.into();
        raw.lineage_count = u16::try_from(self.lineage.len())
            .expect("at most 64")
            .into();
        assert!(self.lineage.len() <= LINEAGE_MAX);
        for (raw, entry) in raw.lineage.iter_mut().zip(&self.lineage) {
            raw.id = entry.id.0;
            raw.first_epoch = entry.first_epoch.0.into();
            raw.unix_s = entry.unix_s.into();
            raw.why = (entry.why as u16).into();
        }
        seal_slot(out);
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes = bytes.get(..SLOT_BYTES).ok_or(RecordError::Short)?;
        check_head(bytes, &GROUP_MAGIC)?;
        let raw = RawGroup::ref_from_bytes(bytes).map_err(|_| RecordError::Short)?;
        let flags = raw.flags.get();
        if flags & !(FLAG_CLEAN | FLAG_ALL_DIRTY | FLAG_MEMORY) != 0
            || raw.reserved != [0; 6]
            || raw.reserved2.iter().any(|b| *b != 0)
        {
            return Err(RecordError::Field("reserved"));
        }
        let role = match raw.role.get() {
            1 => Role::Primary,
            2 => Role::Backup,
            _ => return Err(RecordError::Field("role")),
        };
        let name = raw
            .name
            .get(..usize::from(raw.name_bytes.get()))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or(RecordError::Bounds("name"))?;
        let used = raw
            .lineage
            .get(..usize::from(raw.lineage_count.get()))
            .ok_or(RecordError::Bounds("lineage"))?;
        let mut lineage = Vec::with_capacity(used.len());
        for raw in used {
            lineage.push(LineageEntry {
                id: LineageId(raw.id),
                first_epoch: Epoch(raw.first_epoch.get()),
                why: LineageWhy::from_code(raw.why.get()).ok_or(RecordError::Field("why"))?,
                unix_s: raw.unix_s.get(),
            });
        }
        Ok(Self {
            generation: raw.head.generation.get(),
            group: GroupUuid(raw.head.group),
            name: name.to_owned(),
            volume_count: raw.volume_count.get(),
            role,
            promoted: Epoch(raw.promoted.get()),
            clean: flags & FLAG_CLEAN != 0,
            all_dirty: flags & FLAG_ALL_DIRTY != 0,
            memory: flags & FLAG_MEMORY != 0,
            lineage,
        })
    }
}

/// Picks the newer of two slots; `None` when neither can be read.
///
/// A slot that cannot be read beside one that can is what a crash during a write leaves.
#[must_use]
pub fn newest<T>(slots: [Option<T>; 2], generation: impl Fn(&T) -> u64) -> Option<T> {
    match slots {
        [Some(a), Some(b)] => Some(if generation(&a) >= generation(&b) {
            a
        } else {
            b
        }),
        [Some(one), None] | [None, Some(one)] => Some(one),
        [None, None] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> VolumeMeta {
        VolumeMeta {
            generation: 3,
            group: GroupUuid([1; 16]),
            volume: VolumeUuid([2; 16]),
            volume_index: 1,
            size_bytes: 1 << 30,
            segment_bytes: 64 << 20,
            segment_count: 16,
            tail: Place {
                serial: 4,
                offset: 8192,
            },
            tail_record_seq: 77,
            tail_prev_crc: 0xfeed_f00d,
            tail_session: SessionId(5),
            tail_lineage: LineageId([6; 16]),
            applied: Epoch(10),
            committed: Epoch(11),
            durable: Epoch(12),
            inconsistent: true,
            journal_empty: true,
            clean: true,
            own_serial: 5,
            own_synced: 13,
            consistent_from: Epoch(4),
            committed_cut_unix_ns: 1_700_000_000_123_456_789,
        }
    }

    fn group() -> GroupMeta {
        let entry = |n: u8, why| LineageEntry {
            id: LineageId([n; 16]),
            first_epoch: Epoch(u64::from(n)),
            why,
            unix_s: 1_700_000_000,
        };
        GroupMeta {
            generation: 8,
            group: GroupUuid([1; 16]),
            name: "vm-é".to_owned(),
            volume_count: 2,
            role: Role::Backup,
            promoted: Epoch(9),
            clean: false,
            all_dirty: true,
            memory: false,
            lineage: vec![
                entry(1, LineageWhy::Created),
                entry(9, LineageWhy::Promoted),
            ],
        }
    }

    /// Frozen bytes: metadata of an older build must stay readable.
    #[test]
    fn golden_bytes() {
        let mut bytes = vec![0; SLOT_BYTES];
        volume().encode(&mut bytes);
        crate::golden::check("meta-volume-v1.bin", &bytes);
        assert_eq!(VolumeMeta::decode(&bytes), Ok(volume()));
        group().encode(&mut bytes);
        crate::golden::check("meta-group-v1.bin", &bytes);
        assert_eq!(GroupMeta::decode(&bytes), Ok(group()));
    }

    /// A torn slot must never be half believed.
    #[test]
    fn flips_and_truncations_are_refused() {
        let mut bytes = vec![0; SLOT_BYTES];
        for is_group in [false, true] {
            if is_group {
                group().encode(&mut bytes)
            } else {
                volume().encode(&mut bytes)
            }
            let bad = |b: &[u8]| {
                if is_group {
                    GroupMeta::decode(b).is_err()
                } else {
                    VolumeMeta::decode(b).is_err()
                }
            };
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(bad(&bytes), "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for length in 0..bytes.len() {
                assert!(bad(&bytes[..length]));
            }
        }
    }

    /// After many promotions the list must stay inside its slot.
    #[test]
    fn lineage_is_bounded() {
        let mut meta = group();
        for n in 0..200u8 {
            let entry = LineageEntry {
                id: LineageId([n; 16]),
                ..meta.lineage[0]
            };
            meta.begin(entry);
        }
        assert_eq!(meta.lineage.len(), LINEAGE_MAX);
        assert_eq!(meta.tip().unwrap().id, LineageId([199; 16]));
        let mut bytes = vec![0; SLOT_BYTES];
        meta.encode(&mut bytes);
        assert_eq!(GroupMeta::decode(&bytes), Ok(meta));
    }
}
