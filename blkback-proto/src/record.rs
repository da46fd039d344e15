//! Journal record and link frame, version 1 (JOURNAL.md §3).
//!
//! One record is a header of 4096 bytes and the payloads it describes. The same bytes go over the
//! link and onto the backup's journal; only the *placement* at the end of the header, which says
//! where the record was stored, is filled in by whoever stores it. So a checksum made by the
//! primary is checked again when a journal is recovered.
//!
//! A header read from anywhere is untrusted: [`Header::decode`] checks every rule of the format
//! and names the one that is broken.

use crate::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, UNIT_BYTES, VolumeUuid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every record.
pub const RECORD_MAGIC: [u8; 8] = *b"BRRECORD";
/// Version of record, segment and metadata formats.
pub const FORMAT_VERSION: u16 = 1;
/// Size of a record header, and the alignment of every record, in bytes.
pub const HEADER_BYTES: usize = 4096;
/// The part of a header a link receiver needs to know how much follows, in bytes.
pub const PREFIX_BYTES: usize = 64;
/// Largest number of descriptors in one record.
pub const DESCRIPTORS_MAX: usize = 64;
/// Largest sum of payloads of one record, in bytes.
pub const PAYLOAD_BYTES_MAX: u64 = 1 << 20;
/// Largest record: header and payload, in bytes.
pub const RECORD_BYTES_MAX: u64 = HEADER_BYTES as u64 + PAYLOAD_BYTES_MAX;
/// Largest zero or discard descriptor, in bytes.
pub const RANGE_BYTES_MAX: u64 = 1 << 30;
/// Journal space one descriptor is charged at least, in bytes: it bounds memory per descriptor.
pub const DESCRIPTOR_CHARGE_BYTES: u64 = 4096;

/// Highest epoch that is believed: numbers above it are nobody's.
pub const EPOCH_MAX: Epoch = Epoch(1 << 62);

/// Flag of a record: the first of a chain; `prev_crc` is zero and `record_seq` is 1.
pub const FLAG_CHAIN_START: u32 = 1;
/// Flag of a resync record: goes straight to the image, takes no part in the chain.
pub const FLAG_DIRECT: u32 = 2;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RecordKind {
    /// Writes of the open epoch.
    Writes = 1,
    /// The last record of an epoch; may carry the epoch's last writes.
    Seal = 2,
    /// Carries watermarks only, when there is nothing else to carry them.
    Commit = 3,
    /// Contents copied to make two images equal.
    Resync = 4,
}

impl RecordKind {
    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Writes,
            2 => Self::Seal,
            3 => Self::Commit,
            4 => Self::Resync,
            _ => return None,
        })
    }
}

/// What one descriptor does to its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum DescriptorKind {
    /// The range becomes the payload.
    Data = 1,
    /// The range reads as zeros and stays allocated.
    Zero = 2,
    /// The range reads as zeros and may be given back to the storage.
    Discard = 3,
}

impl DescriptorKind {
    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Data,
            2 => Self::Zero,
            3 => Self::Discard,
            _ => return None,
        })
    }
}

/// One write, zeroing or discard of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What happens to the range.
    pub kind: DescriptorKind,
    /// Where on the volume, in bytes.
    pub offset_bytes: u64,
    /// How much, in bytes.
    pub length_bytes: u32,
    /// crc32 of the payload; zero without one.
    pub payload_crc: u32,
}

impl Descriptor {
    /// Bytes of payload this descriptor has.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match self.kind {
            DescriptorKind::Data => u64::from(self.length_bytes),
            DescriptorKind::Zero | DescriptorKind::Discard => 0,
        }
    }
}

/// A decoded record header. `total_bytes` and payload offsets follow from the descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record is.
    pub kind: RecordKind,
    /// [`FLAG_CHAIN_START`], [`FLAG_DIRECT`].
    pub flags: u32,
    /// `header_crc` of the record before it in the chain; zero at the start of one.
    pub prev_crc: u32,
    /// Which volume of the group, from 0.
    pub volume_index: u16,
    /// Epoch the writes belong to, or that is sealed.
    pub epoch: Epoch,
    /// Number of the record in its chain, from 1; zero for direct records.
    pub record_seq: u64,
    /// Connection over which it was sent.
    pub session: SessionId,
    /// Number of the first descriptor, over the life of the primary process.
    pub first_write_seq: u64,
    /// Group.
    pub group: GroupUuid,
    /// Volume.
    pub volume: VolumeUuid,
    /// History the record belongs to.
    pub lineage: LineageId,
    /// Highest epoch the sender knows to be durable for this volume.
    pub durable: Epoch,
    /// Highest epoch the sender knows to be committed for the group.
    pub committed: Epoch,
    /// Highest epoch the sender has released.
    pub released: Epoch,
    /// When the epoch was cut, in nanoseconds since 1970; zero unless a seal.
    pub cut_unix_ns: u64,
    /// Of a seal: epoch of the seal before it in the group's journals. Of any other record: the
    /// last one sealed in its chain, so that a lost seal is missed by whatever stands behind it.
    /// Zero if there is none, and in direct records.
    pub base_epoch: Epoch,
    /// Descriptors of the whole epoch; zero unless a seal.
    pub epoch_writes: u64,
    /// Payload bytes of the whole epoch; zero unless a seal.
    pub epoch_bytes: u64,
    /// The writes, in stamp order.
    pub descriptors: Vec<Descriptor>,
}

/// A rule of the format that bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Fewer bytes than a header.
    #[error("record is shorter than its header")]
    Short,
    /// Not a record.
    #[error("no record magic")]
    Magic,
    /// Made by another version.
    #[error("record version {0}, this program reads version {FORMAT_VERSION}")]
    Version(u16),
    /// The header is not what was written.
    #[error("header checksum does not match")]
    HeaderCrc,
    /// Stored somewhere else than it says.
    #[error("placement checksum does not match")]
    Placement,
    /// Kind, flag or reserved field.
    #[error("field {0} has a value this version does not know")]
    Field(&'static str),
    /// Length, alignment or count out of bounds.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
    /// A payload is not what was written.
    #[error("payload {index} checksum does not match")]
    PayloadCrc {
        /// Index of the descriptor.
        index: usize,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDescriptor {
    offset_bytes: U64,
    length_bytes: U32,
    payload_offset: U32,
    payload_crc: U32,
    kind: U16,
    flags: U16,
    reserved: [u8; 8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U16,
    kind: U16,
    flags: U32,
    total_bytes: U32,
    header_crc: U32,
    prev_crc: U32,
    descriptor_count: U16,
    volume_index: U16,
    epoch: U64,
    record_seq: U64,
    session: U64,
    first_write_seq: U64,
    // end of the prefix
    group: [u8; 16],
    volume: [u8; 16],
    lineage: [u8; 16],
    durable: U64,
    committed: U64,
    released: U64,
    cut_unix_ns: U64,
    base_epoch: U64,
    epoch_writes: U64,
    epoch_bytes: U64,
    reserved: [u8; 88],
    descriptors: [RawDescriptor; DESCRIPTORS_MAX],
    reserved2: [u8; PLACEMENT_OFFSET - 256 - 32 * DESCRIPTORS_MAX],
    placement_serial: U64,
    placement_offset: U64,
    placement_crc: U32,
    witness_crc: U32,
    witness_session: U64,
    witness_epoch: U64,
    witness_record_seq: U64,
    witness_kind: U16,
    reserved3: [u8; 14],
}

/// Where the placement begins: the header checksum covers what stands before it.
pub const PLACEMENT_OFFSET: usize = 4032;
/// Where the header checksum stands.
pub const HEADER_CRC_OFFSET: usize = 20;

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(size_of::<RawDescriptor>() == 32);
const _: () = assert!(std::mem::offset_of!(RawHeader, group) == PREFIX_BYTES);
const _: () = assert!(std::mem::offset_of!(RawHeader, header_crc) == HEADER_CRC_OFFSET);
const _: () = assert!(std::mem::offset_of!(RawHeader, descriptors) == 256);
const _: () = assert!(std::mem::offset_of!(RawHeader, placement_serial) == PLACEMENT_OFFSET);
const _: () = assert!(RECORD_BYTES_MAX.is_multiple_of(HEADER_BYTES as u64));

/// Size of a whole record with that much payload, in bytes.
#[must_use]
pub fn total_bytes(payload_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + payload_bytes.next_multiple_of(HEADER_BYTES as u64)
}

fn header_crc(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..HEADER_CRC_OFFSET]);
    hasher.update(&[0; 4]);
    hasher.update(&header[HEADER_CRC_OFFSET + 4..PLACEMENT_OFFSET]);
    hasher.finalize()
}

fn placement_crc(header_crc: u32, place: Place) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header_crc.to_le_bytes());
    hasher.update(&place.serial.to_le_bytes());
    hasher.update(&place.offset.to_le_bytes());
    hasher.finalize()
}

/// What the last sector of a record's header says by itself, when the first one is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// Where the record was stored.
    pub place: Place,
    /// Its chain.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number in the chain.
    pub record_seq: u64,
    /// What it is; none if of a kind this version does not know.
    pub kind: Option<RecordKind>,
}

impl RawHeader {
    fn place(&self) -> Place {
        Place {
            serial: self.placement_serial.get(),
            offset: self.placement_offset.get(),
        }
    }

    /// Checksum over the words of the last sector: placement and witness.
    fn witness_crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.placement_serial.as_bytes());
        hasher.update(self.placement_offset.as_bytes());
        hasher.update(self.witness_session.as_bytes());
        hasher.update(self.witness_epoch.as_bytes());
        hasher.update(self.witness_record_seq.as_bytes());
        hasher.update(self.witness_kind.as_bytes());
        hasher.finalize()
    }
}

/// Says where an encoded record is about to be stored, and repeats beside it what the record is.
///
/// # Panics
/// If `header` is shorter than a header.
pub fn set_placement(header: &mut [u8], place: Place) {
    let (raw, _) = RawHeader::mut_from_prefix(header).expect("a header is 4096 bytes");
    raw.placement_serial = place.serial.into();
    raw.placement_offset = place.offset.into();
    raw.placement_crc = placement_crc(raw.header_crc.get(), place).into();
    raw.witness_session = raw.session;
    raw.witness_epoch = raw.epoch;
    raw.witness_record_seq = raw.record_seq;
    raw.witness_kind = raw.kind;
    raw.witness_crc = raw.witness_crc().into();
}

/// Where the record says it was stored.
///
/// # Errors
/// [`RecordError::Placement`] if the record was never stored, or this is a copy from elsewhere
/// with a damaged placement.
pub fn placement(header: &[u8]) -> Result<Place, RecordError> {
    let (raw, _) = RawHeader::ref_from_prefix(header).map_err(|_| RecordError::Short)?;
    let place = raw.place();
    if raw.placement_crc.get() != placement_crc(raw.header_crc.get(), place)
        || raw.witness_crc.get() != raw.witness_crc()
        || raw.reserved3.iter().any(|b| *b != 0)
    {
        return Err(RecordError::Placement);
    }
    Ok(place)
}

/// What the last sector of a stored header says of the record, whatever became of the other
/// sectors; `None` if it is damaged itself.
#[must_use]
pub fn witness(header: &[u8]) -> Option<Witness> {
    let (raw, _) = RawHeader::ref_from_prefix(header).ok()?;
    let whole = raw.witness_crc.get() == raw.witness_crc() && raw.witness_record_seq.get() != 0;
    whole.then(|| Witness {
        place: raw.place(),
        session: SessionId(raw.witness_session.get()),
        epoch: Epoch(raw.witness_epoch.get()),
        record_seq: raw.witness_record_seq.get(),
        kind: RecordKind::from_code(raw.witness_kind.get()),
    })
}

/// Total size of a record in bytes, from its first [`PREFIX_BYTES`] alone.
///
/// Nothing but the bounds is known to be right yet: the checksum needs the whole header.
///
/// # Errors
/// The rule that is broken.
pub fn peek_total_bytes(prefix: &[u8]) -> Result<u64, RecordError> {
    let prefix = prefix.get(..PREFIX_BYTES).ok_or(RecordError::Short)?;
    if prefix[..8] != RECORD_MAGIC {
        return Err(RecordError::Magic);
    }
    let version = u16::from_le_bytes([prefix[8], prefix[9]]);
    if version != FORMAT_VERSION {
        return Err(RecordError::Version(version));
    }
    let total = u64::from(u32::from_le_bytes([
        prefix[16], prefix[17], prefix[18], prefix[19],
    ]));
    if !(HEADER_BYTES as u64..=RECORD_BYTES_MAX).contains(&total)
        || total % HEADER_BYTES as u64 != 0
    {
        return Err(RecordError::Bounds("total_bytes"));
    }
    Ok(total)
}

impl Header {
    /// Sum of the payloads in bytes.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.descriptors.iter().map(Descriptor::payload_bytes).sum()
    }

    /// Size of the whole record in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        total_bytes(self.payload_bytes())
    }

    /// Journal space the record is charged, in bytes.
    ///
    /// Never less than the record takes; small and payload-less descriptors are charged
    /// [`DESCRIPTOR_CHARGE_BYTES`], which bounds the number of extents a journal can hold.
    #[must_use]
    pub fn charge_bytes(&self) -> u64 {
        let descriptors: u64 = self
            .descriptors
            .iter()
            .map(|d| d.payload_bytes().max(DESCRIPTOR_CHARGE_BYTES))
            .sum();
        self.total_bytes().max(HEADER_BYTES as u64 + descriptors)
    }

    /// Byte offset of each payload inside the record, in descriptor order.
    pub fn payload_offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.descriptors
            .iter()
            .scan(HEADER_BYTES as u64, |next, descriptor| {
                let offset = *next;
                *next += descriptor.payload_bytes();
                Some(offset)
            })
    }

    /// Writes the header into `out` without a placement; returns its checksum.
    ///
    /// # Panics
    /// If `out` is not [`HEADER_BYTES`] long or the header breaks a rule of its own format.
    pub fn encode(&self, out: &mut [u8]) -> u32 {
        assert_eq!(out.len(), HEADER_BYTES);
        assert!(self.descriptors.len() <= DESCRIPTORS_MAX);
        assert!(self.payload_bytes() <= PAYLOAD_BYTES_MAX);
        out.fill(0);
        let raw = RawHeader::mut_from_bytes(out).expect("the length was just checked");
        raw.magic = RECORD_MAGIC;
        raw.version = FORMAT_VERSION.into();
        raw.kind = (self.kind as u16).into();
        raw.flags = self.flags.into();
        raw.total_bytes = u32::try_from(self.total_bytes())
            .expect("bounded above")
            .into();
        raw.prev_crc = self.prev_crc.into();
        raw.descriptor_count = u16::try_from(self.descriptors.len())
            .expect("bounded")
            .into();
        raw.volume_index = self.volume_index.into();
        raw.epoch = self.epoch.0.into();
        raw.record_seq = self.record_seq.into();
        raw.session = self.session.0.into();
        raw.first_write_seq = self.first_write_seq.into();
        raw.group = self.group.0;
        raw.volume = self.volume.0;
        raw.lineage = self.lineage.0;
        raw.durable = self.durable.0.into();
        raw.committed = self.committed.0.into();
        raw.released = self.released.0.into();
        raw.cut_unix_ns = self.cut_unix_ns.into();
        raw.base_epoch = self.base_epoch.0.into();
        raw.epoch_writes = self.epoch_writes.into();
        raw.epoch_bytes = self.epoch_bytes.into();
        let mut payload_offset = HEADER_BYTES as u64;
        for (raw, descriptor) in raw.descriptors.iter_mut().zip(&self.descriptors) {
            raw.offset_bytes = descriptor.offset_bytes.into();
            raw.length_bytes = descriptor.length_bytes.into();
            raw.kind = (descriptor.kind as u16).into();
            if descriptor.kind == DescriptorKind::Data {
                raw.payload_offset = u32::try_from(payload_offset).expect("bounded").into();
                raw.payload_crc = descriptor.payload_crc.into();
            }
            payload_offset += descriptor.payload_bytes();
        }
        let crc = header_crc(out);
        out[HEADER_CRC_OFFSET..HEADER_CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads a header; returns it with its checksum. The placement is not looked at.
    ///
    /// # Errors
    /// The rule of the format that is broken.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), RecordError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(RecordError::Short)?;
        let total = peek_total_bytes(header)?;
        let crc = header_crc(header);
        let raw = RawHeader::ref_from_bytes(header).map_err(|_| RecordError::Short)?;
        if raw.header_crc.get() != crc {
            return Err(RecordError::HeaderCrc);
        }
        let decoded = Self::from_raw(raw)?;
        if decoded.total_bytes() != total {
            return Err(RecordError::Bounds("total_bytes"));
        }
        Ok((decoded, crc))
    }

    fn from_raw(raw: &RawHeader) -> Result<Self, RecordError> {
        let kind = RecordKind::from_code(raw.kind.get()).ok_or(RecordError::Field("kind"))?;
        let flags = raw.flags.get();
        let allowed = if kind == RecordKind::Resync {
            FLAG_CHAIN_START | FLAG_DIRECT
        } else {
            FLAG_CHAIN_START
        };
        if flags & !allowed != 0 {
            return Err(RecordError::Field("flags"));
        }
        if raw.reserved.iter().chain(&raw.reserved2).any(|b| *b != 0) {
            return Err(RecordError::Field("reserved"));
        }
        let count = usize::from(raw.descriptor_count.get());
        let (used, unused) = raw
            .descriptors
            .split_at_checked(count)
            .ok_or(RecordError::Bounds("descriptors"))?;
        if unused.as_bytes().iter().any(|b| *b != 0) {
            return Err(RecordError::Field("unused descriptor"));
        }
        let descriptors = decode_descriptors(used)?;
        let header = Self {
            kind,
            flags,
            prev_crc: raw.prev_crc.get(),
            volume_index: raw.volume_index.get(),
            epoch: Epoch(raw.epoch.get()),
            record_seq: raw.record_seq.get(),
            session: SessionId(raw.session.get()),
            first_write_seq: raw.first_write_seq.get(),
            group: GroupUuid(raw.group),
            volume: VolumeUuid(raw.volume),
            lineage: LineageId(raw.lineage),
            durable: Epoch(raw.durable.get()),
            committed: Epoch(raw.committed.get()),
            released: Epoch(raw.released.get()),
            cut_unix_ns: raw.cut_unix_ns.get(),
            base_epoch: Epoch(raw.base_epoch.get()),
            epoch_writes: raw.epoch_writes.get(),
            epoch_bytes: raw.epoch_bytes.get(),
            descriptors,
        };
        header.check()?;
        Ok(header)
    }

    /// Rules that relate fields to one another.
    fn check(&self) -> Result<(), RecordError> {
        let seal = self.kind == RecordKind::Seal;
        if !seal && (self.cut_unix_ns != 0 || self.epoch_writes != 0 || self.epoch_bytes != 0) {
            return Err(RecordError::Field("seal fields of another kind"));
        }
        if self.kind == RecordKind::Commit && !self.descriptors.is_empty() {
            return Err(RecordError::Field("descriptors of a commit"));
        }
        let start = self.flags & FLAG_CHAIN_START != 0;
        let direct = self.flags & FLAG_DIRECT != 0;
        if direct {
            if start || self.record_seq != 0 || self.prev_crc != 0 || self.base_epoch.0 != 0 {
                return Err(RecordError::Field("chain of a direct record"));
            }
        } else if (self.record_seq == 0)
            || (start != (self.record_seq == 1))
            || (start && self.prev_crc != 0)
        {
            return Err(RecordError::Field("chain"));
        }
        if self.epoch == Epoch::NONE {
            return Err(RecordError::Field("epoch"));
        }
        if self.base_epoch >= self.epoch {
            return Err(RecordError::Bounds("base_epoch"));
        }
        if self.epoch > EPOCH_MAX
            || self.released > self.committed
            || self.committed > self.epoch
            || self.durable > self.epoch
        {
            return Err(RecordError::Bounds("watermarks"));
        }
        Ok(())
    }

    /// Checks every payload of a whole record against its checksum.
    ///
    /// # Errors
    /// [`RecordError::Short`] if the record is not whole, else the first payload that differs.
    pub fn check_payloads(&self, record: &[u8]) -> Result<(), RecordError> {
        for (index, (descriptor, offset)) in self
            .descriptors
            .iter()
            .zip(self.payload_offsets())
            .enumerate()
        {
            if descriptor.kind != DescriptorKind::Data {
                continue;
            }
            let start = usize::try_from(offset).map_err(|_| RecordError::Short)?;
            let payload = record
                .get(start..)
                .and_then(|rest| rest.get(..descriptor.length_bytes as usize))
                .ok_or(RecordError::Short)?;
            if crc32fast::hash(payload) != descriptor.payload_crc {
                return Err(RecordError::PayloadCrc { index });
            }
        }
        Ok(())
    }

    /// Checks that every range lies inside a volume of that size.
    ///
    /// # Errors
    /// [`RecordError::Bounds`].
    pub fn check_ranges(&self, size_bytes: u64) -> Result<(), RecordError> {
        let inside = self.descriptors.iter().all(|d| {
            d.offset_bytes
                .checked_add(u64::from(d.length_bytes))
                .is_some_and(|end| end <= size_bytes)
        });
        if inside {
            Ok(())
        } else {
            Err(RecordError::Bounds("range past the end of the volume"))
        }
    }
}

fn decode_descriptors(used: &[RawDescriptor]) -> Result<Vec<Descriptor>, RecordError> {
    let mut next_payload = HEADER_BYTES as u64;
    let mut descriptors = Vec::with_capacity(used.len());
    for raw in used {
        let kind = DescriptorKind::from_code(raw.kind.get())
            .ok_or(RecordError::Field("descriptor kind"))?;
        let length = u64::from(raw.length_bytes.get());
        let length_max = if kind == DescriptorKind::Data {
            PAYLOAD_BYTES_MAX
        } else {
            RANGE_BYTES_MAX
        };
        if length == 0 || length > length_max || length % UNIT_BYTES != 0 {
            return Err(RecordError::Bounds("descriptor length"));
        }
        let offset = raw.offset_bytes.get();
        if offset % UNIT_BYTES != 0 || offset.checked_add(length).is_none() {
            return Err(RecordError::Bounds("descriptor offset"));
        }
        if raw.flags.get() != 0 || raw.reserved != [0; 8] {
            return Err(RecordError::Field("descriptor reserved"));
        }
        let payload_offset = u64::from(raw.payload_offset.get());
        if kind == DescriptorKind::Data {
            if payload_offset != next_payload {
                return Err(RecordError::Bounds("payload offset"));
            }
            next_payload += length;
            if next_payload > RECORD_BYTES_MAX {
                return Err(RecordError::Bounds("payload"));
            }
        } else if payload_offset != 0 || raw.payload_crc.get() != 0 {
            return Err(RecordError::Field("payload of a range without one"));
        }
        descriptors.push(Descriptor {
            kind,
            offset_bytes: offset,
            length_bytes: raw.length_bytes.get(),
            payload_crc: raw.payload_crc.get(),
        });
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests;
