//! Link between a primary and a backup, version 1 (PROTOCOL.md §1).
//!
//! One TCP connection per volume. What goes over it are records ([`crate::record`]) and control
//! frames. Both begin with an 8 byte magic and tell their whole length in the first
//! [`PREFIX_BYTES`], so a receiver reads 64 bytes, then the rest.
//!
//! ```text
//! primary                                   backup
//!   HELLO (versions, identity, lineage)  ->
//!                                        <-  WELCOME (identity, state, credit) or REFUSE (why)
//!   SYNC_START, SYNC_CHECK / records     ->      first sync, when the images may differ
//!                                        <-  SYNC_RESULT
//!   SYNC_END                             ->
//!   records, EMPTY_SEAL                  ->
//!                                        <-  ACK (durable, committed, applied, credit)
//!   PING                                <->  PONG
//!   BYE (why)                           <->
//! ```
//!
//! The bytes of HELLO up to its body, and of REFUSE, are the same in every version, so that any
//! two versions can at least refuse each other in words.

use crate::ids::{Epoch, GroupUuid, LineageId, SessionId, VolumeUuid};
use crate::meta::{LINEAGE_MAX, NAME_BYTES_MAX};
use crate::record::{EPOCH_MAX, PREFIX_BYTES};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every control frame.
pub const FRAME_MAGIC: [u8; 8] = *b"BRFRAME1";
/// Size of a control frame without its body, in bytes.
pub const FRAME_BYTES: usize = PREFIX_BYTES;
/// Largest body of a control frame, in bytes.
pub const BODY_BYTES_MAX: usize = 4096;
/// Lowest link version this program speaks.
pub const LINK_VERSION_MIN: u16 = 1;
/// Highest link version this program speaks.
pub const LINK_VERSION_MAX: u16 = 1;
/// Size of a chunk compared by a first sync, in bytes.
pub const SYNC_CHUNK_BYTES: u64 = 1 << 20;
/// Longest text in REFUSE and BYE, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Why a backup does not take a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefuseCode {
    /// No common version.
    Version = 1,
    /// Another group or volume.
    Identity = 2,
    /// Sizes differ.
    Size = 3,
    /// The histories do not continue one another.
    Lineage = 4,
    /// Another primary is connected.
    Busy = 5,
    /// The backup's store failed.
    Store = 6,
    /// The peer broke the protocol.
    Protocol = 7,
    /// The daemon is stopping.
    Stopping = 8,
    /// The backup was promoted: who connects is its former primary.
    Superseded = 9,
}

impl RefuseCode {
    /// The code from the wire.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Version,
            2 => Self::Identity,
            3 => Self::Size,
            4 => Self::Lineage,
            5 => Self::Busy,
            6 => Self::Store,
            7 => Self::Protocol,
            8 => Self::Stopping,
            9 => Self::Superseded,
            _ => return None,
        })
    }

    /// True when trying again later cannot help.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Busy | Self::Stopping)
    }
}

/// What a primary says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest version it speaks.
    pub version_min: u16,
    /// Highest version it speaks.
    pub version_max: u16,
    /// Random id of this connection.
    pub session: SessionId,
    /// Group.
    pub group: GroupUuid,
    /// Name of the group.
    pub name: String,
    /// Volume.
    pub volume: VolumeUuid,
    /// Which volume of the group, from 0.
    pub volume_index: u16,
    /// Number of volumes of the group.
    pub volume_count: u16,
    /// The operator vouches that the images are equal.
    pub assume_identical: bool,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The open epoch.
    pub epoch: Epoch,
    /// Histories, oldest first: id and first epoch.
    pub lineage: Vec<(LineageId, Epoch)>,
}

/// What a backup answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version both will speak.
    pub version: u16,
    /// The same as in the hello.
    pub session: SessionId,
    /// Volume the backup holds now.
    pub volume: VolumeUuid,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Epoch of its image and journal; none if blank or inconsistent.
    pub committed: Epoch,
    /// The images must be compared before anything is protected.
    pub sync_needed: bool,
    /// Charge of records the primary may send in this session so far, in bytes.
    pub credit_bytes: u64,
    /// Journal capacity in bytes of charge.
    pub journal_bytes: u64,
    /// Name of the group as the backup was given it; the identity decides, not the name.
    pub name: String,
}

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Primary: who I am.
    Hello(Box<Hello>),
    /// Backup: come in.
    Welcome(Welcome),
    /// Backup: not you, and why.
    Refuse {
        /// Why, for programs.
        code: RefuseCode,
        /// Why, for people.
        text: String,
    },
    /// Backup: how far it is. Watermarks of the group where not said otherwise.
    Ack {
        /// Highest epoch durable for this volume.
        durable: Epoch,
        /// Highest epoch committed.
        committed: Epoch,
        /// Highest epoch of this volume in the image.
        applied: Epoch,
        /// Charge of records the primary may send in this session so far, in bytes.
        credit_bytes: u64,
    },
    /// Are you there? The number comes back.
    Ping(u64),
    /// I am.
    Pong(u64),
    /// Primary: a sync begins; the image is no epoch until it ends.
    SyncStart,
    /// Primary: is chunk `index` the same at your end?
    SyncCheck {
        /// Number of the chunk of [`SYNC_CHUNK_BYTES`].
        index: u64,
        /// BLAKE3 of the primary's chunk.
        hash: [u8; 32],
    },
    /// Backup: the answer.
    SyncResult {
        /// Number of the chunk.
        index: u64,
        /// It differs.
        differs: bool,
    },
    /// Primary: everything that differed was sent; consistent again at the commit of the epoch.
    SyncEnd {
        /// Epoch open at that moment.
        epoch: Epoch,
    },
    /// Primary: an epoch in which no volume of the group was written.
    EmptySeal {
        /// The epoch.
        epoch: Epoch,
        /// Highest epoch the primary knows to be committed.
        committed: Epoch,
        /// Highest epoch it released.
        released: Epoch,
        /// When it was cut, in nanoseconds since 1970.
        cut_unix_ns: u64,
    },
    /// The sender ends the session in order.
    Bye {
        /// Why, for people.
        text: String,
    },
}

/// A rule of the protocol that bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Neither a frame nor a record.
    #[error("neither a frame nor a record of blockrep")]
    Magic,
    /// Fewer bytes than the frame says.
    #[error("frame is cut short")]
    Short,
    /// Longer than any frame may be.
    #[error("frame body of {0} bytes, {BODY_BYTES_MAX} are allowed")]
    Long(u32),
    /// Damaged.
    #[error("frame checksum does not match")]
    Crc,
    /// Unknown kind.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// A field has no meaning.
    #[error("frame field {0} is out of bounds")]
    Field(&'static str),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawFrame {
    pub(crate) magic: [u8; 8],
    pub(crate) kind: U16,
    pub(crate) reserved: U16,
    pub(crate) body_bytes: U32,
    pub(crate) crc: U32,
    pub(crate) reserved2: U32,
    pub(crate) session: U64,
    pub(crate) words: [U64; 4],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    group: [u8; 16],
    volume: [u8; 16],
    volume_index: U16,
    volume_count: U16,
    flags: U32,
    size_bytes: U64,
    epoch: U64,
    name_bytes: U16,
    lineage_count: U16,
    reserved: U32,
    name: [u8; NAME_BYTES_MAX],
    lineage: [RawLineage; LINEAGE_MAX],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawLineage {
    id: [u8; 16],
    first_epoch: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWelcome {
    volume: [u8; 16],
    size_bytes: U64,
    committed: U64,
    journal_bytes: U64,
    flags: U32,
    name_bytes: U16,
    reserved: U16,
    name: [u8; NAME_BYTES_MAX],
}

const _: () = assert!(size_of::<RawFrame>() == FRAME_BYTES);
const _: () = assert!(size_of::<RawHello>() <= BODY_BYTES_MAX);

/// Codes of the frames on the wire.
mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const WELCOME: u16 = 2;
    pub(super) const REFUSE: u16 = 3;
    pub(super) const ACK: u16 = 4;
    pub(super) const PING: u16 = 5;
    pub(super) const PONG: u16 = 6;
    pub(super) const SYNC_START: u16 = 7;
    pub(super) const SYNC_CHECK: u16 = 8;
    pub(super) const SYNC_RESULT: u16 = 9;
    pub(super) const SYNC_END: u16 = 10;
    pub(super) const EMPTY_SEAL: u16 = 11;
    pub(super) const BYE: u16 = 12;
}

/// Size of the body that follows, in bytes, from the first [`FRAME_BYTES`] alone.
///
/// # Errors
/// [`LinkError::Magic`] or [`LinkError::Long`].
pub fn peek_body_bytes(prefix: &[u8]) -> Result<usize, LinkError> {
    let prefix = prefix.get(..FRAME_BYTES).ok_or(LinkError::Short)?;
    if prefix[..8] != FRAME_MAGIC {
        return Err(LinkError::Magic);
    }
    let bytes = u32::from_le_bytes([prefix[12], prefix[13], prefix[14], prefix[15]]);
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= BODY_BYTES_MAX)
        .ok_or(LinkError::Long(bytes))
}

pub(crate) fn frame_crc(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..16]);
    hasher.update(&[0; 4]);
    hasher.update(&frame[20..]);
    hasher.finalize()
}

pub(crate) fn clip(text: &str) -> &[u8] {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

impl Frame {
    /// Appends the bytes of the frame to `out`; `session` is zero only before it is known.
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) {
        let (kind, words, body) = self.parts();
        let start = out.len();
        let raw = RawFrame {
            magic: FRAME_MAGIC,
            kind: kind.into(),
            reserved: 0.into(),
            body_bytes: u32::try_from(body.len()).expect("bodies are small").into(),
            crc: 0.into(),
            reserved2: 0.into(),
            session: session.0.into(),
            words: words.map(U64::from),
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&body);
        let crc = frame_crc(&out[start..]);
        out[start + 16..start + 20].copy_from_slice(&crc.to_le_bytes());
    }

    fn parts(&self) -> (u16, [u64; 4], Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                let versions = [hello.version_min.into(), hello.version_max.into(), 0, 0];
                (kind::HELLO, versions, hello.body())
            }
            Self::Welcome(welcome) => (
                kind::WELCOME,
                [welcome.version.into(), welcome.credit_bytes, 0, 0],
                welcome.body(),
            ),
            Self::Refuse { code, text } => (
                kind::REFUSE,
                [u64::from(*code as u16), 0, 0, 0],
                clip(text).to_vec(),
            ),
            Self::Ack {
                durable,
                committed,
                applied,
                credit_bytes,
            } => (
                kind::ACK,
                [durable.0, committed.0, applied.0, *credit_bytes],
                Vec::new(),
            ),
            Self::Ping(token) => (kind::PING, [*token, 0, 0, 0], Vec::new()),
            Self::Pong(token) => (kind::PONG, [*token, 0, 0, 0], Vec::new()),
            Self::SyncStart => (kind::SYNC_START, [SYNC_CHUNK_BYTES, 0, 0, 0], Vec::new()),
            Self::SyncCheck { index, hash } => (kind::SYNC_CHECK, [*index, 0, 0, 0], hash.to_vec()),
            Self::SyncResult { index, differs } => (
                kind::SYNC_RESULT,
                [*index, u64::from(*differs), 0, 0],
                Vec::new(),
            ),
            Self::SyncEnd { epoch } => (kind::SYNC_END, [epoch.0, 0, 0, 0], Vec::new()),
            Self::EmptySeal {
                epoch,
                committed,
                released,
                cut_unix_ns,
            } => (
                kind::EMPTY_SEAL,
                [epoch.0, committed.0, released.0, *cut_unix_ns],
                Vec::new(),
            ),
            Self::Bye { text } => (kind::BYE, [0; 4], clip(text).to_vec()),
        }
    }

    /// Reads a whole frame; gives the session it belongs to.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<(Self, SessionId), LinkError> {
        let body_bytes = peek_body_bytes(bytes)?;
        let frame = bytes
            .get(..FRAME_BYTES + body_bytes)
            .ok_or(LinkError::Short)?;
        let (raw, body) = RawFrame::ref_from_prefix(frame).map_err(|_| LinkError::Short)?;
        if raw.crc.get() != frame_crc(frame) {
            return Err(LinkError::Crc);
        }
        if raw.reserved.get() != 0 || raw.reserved2.get() != 0 {
            return Err(LinkError::Field("reserved"));
        }
        let session = SessionId(raw.session.get());
        let words = raw.words.map(U64::get);
        let frame = Self::from_parts(raw.kind.get(), session, words, body)?;
        frame.check_epochs()?;
        Ok((frame, session))
    }

    /// Epoch numbers are counted on from: absurd ones are refused.
    fn check_epochs(&self) -> Result<(), LinkError> {
        let highest = match self {
            Self::Hello(hello) => hello
                .lineage
                .iter()
                .map(|(_, first)| *first)
                .chain([hello.epoch])
                .max(),
            Self::Welcome(welcome) => Some(welcome.committed),
            Self::Ack { durable, .. } => Some(*durable),
            Self::SyncEnd { epoch } | Self::EmptySeal { epoch, .. } => Some(*epoch),
            _ => None,
        };
        match highest {
            Some(epoch) if epoch > EPOCH_MAX => Err(LinkError::Field("epoch")),
            _ => Ok(()),
        }
    }

    fn from_parts(
        code: u16,
        session: SessionId,
        words: [u64; 4],
        body: &[u8],
    ) -> Result<Self, LinkError> {
        let [a, b, c, d] = words;
        let with_body = matches!(
            code,
            kind::HELLO | kind::WELCOME | kind::REFUSE | kind::SYNC_CHECK | kind::BYE
        );
        if !with_body && !body.is_empty() {
            return Err(LinkError::Field("body"));
        }
        Ok(match code {
            kind::HELLO => Self::Hello(Box::new(Hello::from_parts(session, a, b, body)?)),
            kind::WELCOME => Self::Welcome(Welcome::from_parts(session, a, b, body)?),
            kind::REFUSE => Self::Refuse {
                code: RefuseCode::from_code(a).ok_or(LinkError::Field("refuse code"))?,
                text: text(body)?,
            },
            kind::ACK => Self::Ack {
                durable: Epoch(a),
                committed: Epoch(b),
                applied: Epoch(c),
                credit_bytes: d,
            },
            kind::PING => Self::Ping(a),
            kind::PONG => Self::Pong(a),
            kind::SYNC_START if a == SYNC_CHUNK_BYTES => Self::SyncStart,
            kind::SYNC_START => return Err(LinkError::Field("chunk size")),
            kind::SYNC_CHECK => Self::SyncCheck {
                index: a,
                hash: body.try_into().map_err(|_| LinkError::Field("hash"))?,
            },
            kind::SYNC_RESULT if b <= 1 => Self::SyncResult {
                index: a,
                differs: b == 1,
            },
            kind::SYNC_RESULT => return Err(LinkError::Field("result")),
            kind::SYNC_END => Self::SyncEnd { epoch: Epoch(a) },
            kind::EMPTY_SEAL => Self::EmptySeal {
                epoch: Epoch(a),
                committed: Epoch(b),
                released: Epoch(c),
                cut_unix_ns: d,
            },
            kind::BYE => Self::Bye { text: text(body)? },
            other => return Err(LinkError::Kind(other)),
        })
    }
}

/// Text of a peer: bounded, printable, one line.
pub(crate) fn text(body: &[u8]) -> Result<String, LinkError> {
    if body.len() > TEXT_BYTES_MAX {
        return Err(LinkError::Field("text"));
    }
    let text = std::str::from_utf8(body).map_err(|_| LinkError::Field("text"))?;
    Ok(text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect())
}

fn version(word: u64) -> Result<u16, LinkError> {
    u16::try_from(word).map_err(|_| LinkError::Field("version"))
}

impl Hello {
    /// The version to speak with this primary; `None` without a common one.
    #[must_use]
    pub fn choose_version(&self) -> Option<u16> {
        let highest = self.version_max.min(LINK_VERSION_MAX);
        let lowest = self.version_min.max(LINK_VERSION_MIN);
        (lowest <= highest).then_some(highest)
    }

    fn body(&self) -> Vec<u8> {
        let mut raw = RawHello {
            group: self.group.0,
            volume: self.volume.0,
            volume_index: self.volume_index.into(),
            volume_count: self.volume_count.into(),
            flags: u32::from(self.assume_identical).into(),
            size_bytes: self.size_bytes.into(),
            epoch: self.epoch.0.into(),
            name_bytes: u16::try_from(self.name.len())
                .expect("names are bounded")
                .into(),
            lineage_count: u16::try_from(self.lineage.len()).expect("bounded").into(),
            reserved: 0.into(),
            name: [0; NAME_BYTES_MAX],
            lineage: [RawLineage {
                id: [0; 16],
                first_epoch: 0.into(),
            }; LINEAGE_MAX],
        };
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        for (raw, (id, first_epoch)) in raw.lineage.iter_mut().zip(&self.lineage) {
            *raw = RawLineage {
                id: id.0,
                first_epoch: first_epoch.0.into(),
            };
        }
        raw.as_bytes().to_vec()
    }

    fn from_parts(session: SessionId, min: u64, max: u64, body: &[u8]) -> Result<Self, LinkError> {
        let (version_min, version_max) = (version(min)?, version(max)?);
        let raw = RawHello::ref_from_bytes(body).map_err(|_| LinkError::Field("hello body"))?;
        let name = group_name(&raw.name, raw.name_bytes)?;
        let lineage = raw
            .lineage
            .get(..usize::from(raw.lineage_count.get()))
            .ok_or(LinkError::Field("lineage"))?
            .iter()
            .map(|raw| (LineageId(raw.id), Epoch(raw.first_epoch.get())))
            .collect();
        if raw.flags.get() > 1 || raw.reserved.get() != 0 {
            return Err(LinkError::Field("flags"));
        }
        if raw.volume_index.get() >= raw.volume_count.get() {
            return Err(LinkError::Field("volume index"));
        }
        Ok(Self {
            version_min,
            version_max,
            session,
            group: GroupUuid(raw.group),
            name,
            volume: VolumeUuid(raw.volume),
            volume_index: raw.volume_index.get(),
            volume_count: raw.volume_count.get(),
            assume_identical: raw.flags.get() == 1,
            size_bytes: raw.size_bytes.get(),
            epoch: Epoch(raw.epoch.get()),
            lineage,
        })
    }
}

impl Welcome {
    fn body(&self) -> Vec<u8> {
        let mut raw = RawWelcome {
            volume: self.volume.0,
            size_bytes: self.size_bytes.into(),
            committed: self.committed.0.into(),
            journal_bytes: self.journal_bytes.into(),
            flags: u32::from(self.sync_needed).into(),
            name_bytes: u16::try_from(self.name.len())
                .expect("names are bounded")
                .into(),
            reserved: 0.into(),
            name: [0; NAME_BYTES_MAX],
        };
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        raw.as_bytes().to_vec()
    }

    fn from_parts(session: SessionId, a: u64, b: u64, body: &[u8]) -> Result<Self, LinkError> {
        let raw = RawWelcome::ref_from_bytes(body).map_err(|_| LinkError::Field("welcome body"))?;
        if raw.flags.get() > 1 || raw.reserved.get() != 0 {
            return Err(LinkError::Field("flags"));
        }
        Ok(Self {
            version: version(a)?,
            session,
            volume: VolumeUuid(raw.volume),
            size_bytes: raw.size_bytes.get(),
            committed: Epoch(raw.committed.get()),
            sync_needed: raw.flags.get() == 1,
            credit_bytes: b,
            journal_bytes: raw.journal_bytes.get(),
            name: group_name(&raw.name, raw.name_bytes)?,
        })
    }
}

/// Name of a group as it stands in a body.
fn group_name(field: &[u8; NAME_BYTES_MAX], name_bytes: U16) -> Result<String, LinkError> {
    field
        .get(..usize::from(name_bytes.get()))
        .and_then(|name| std::str::from_utf8(name).ok())
        .filter(|name| !name.chars().any(char::is_control))
        .map(str::to_owned)
        .ok_or(LinkError::Field("name"))
}

#[cfg(test)]
mod tests;
