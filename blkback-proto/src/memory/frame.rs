//! Frames of the memory link.

use super::{
    BATCH_PAGES_MAX, BODY_BYTES_MAX, DIGEST_BYTES, FRAME_BYTES, FRAME_MAGIC, Hello, MemoryError,
    PAGE_BYTES, RefuseCode, STATE_BYTES_MAX, StateKind, Welcome,
};
use crate::ids::{Epoch, LineageId, SessionId};
use crate::link::{RawFrame, clip, frame_crc, text};
use crate::record::EPOCH_MAX;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How a page of an epoch stands in PAGES.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Encoding {
    /// All zero; nothing in the blob.
    Zero = 1,
    /// As the newest version of it in this session; nothing in the blob.
    Same = 2,
    /// In the blob as it is.
    Full = 3,
    /// In the blob, xor the newest version of it in this session.
    Delta = 4,
}

impl Encoding {
    fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Zero,
            2 => Self::Same,
            3 => Self::Full,
            4 => Self::Delta,
            _ => return None,
        })
    }

    /// Whether the page has its place in the blob.
    #[must_use]
    pub fn is_in_blob(self) -> bool {
        matches!(self, Self::Full | Self::Delta)
    }
}

/// How a blob is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Codec {
    /// As it is.
    Raw = 1,
    /// One LZ4 block, shorter than what is in it.
    Lz4 = 2,
    /// Nothing: all of it is zero. In COPY only.
    Zero = 3,
}

/// Pages or pieces behind one another, packed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob<'a> {
    pub codec: Codec,
    /// Pages in it.
    pub count: usize,
    pub bytes: &'a [u8],
}

/// A page of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub page: u32,
    /// crc32 of the page as it has to come out.
    pub crc: u32,
    pub encoding: Encoding,
}

/// What an epoch will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    pub epoch: Epoch,
    /// The disks' history at that moment.
    pub lineage: LineageId,
    /// Entries of all its PAGES.
    pub page_count: u64,
    /// Length of the device state.
    pub state_bytes: u64,
    pub state_kind: StateKind,
}

/// A frame; what is long stays where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Primary: who I am.
    Hello(Box<Hello>),
    /// Backup: come in.
    Welcome(Welcome),
    /// Backup: no, and why.
    Refuse {
        code: RefuseCode,
        text: String,
    },
    /// Primary: all of memory comes anew, under this id.
    CopyStart {
        generation: u64,
    },
    /// Primary: pages behind one another, of no epoch.
    Copy {
        first: u32,
        /// crc32 of the pages.
        crc: u32,
        blob: Blob<'a>,
    },
    /// Primary: an epoch begins.
    Begin(Begin),
    /// Primary: pages of the epoch, none twice in it.
    Pages {
        entries: Vec<Entry>,
        blob: Blob<'a>,
    },
    /// Primary: pieces of the device state that differ from the last one in this session.
    State {
        indexes: Vec<u32>,
        blob: Blob<'a>,
    },
    /// Primary: that was all of it.
    End {
        epoch: Epoch,
        page_count: u64,
        digest: [u8; DIGEST_BYTES],
    },
    /// Primary: the guest is off; that is its memory of this epoch.
    EndOfGuest {
        epoch: Epoch,
        lineage: LineageId,
    },
    /// Backup: I have all of it.
    Whole(Epoch),
    /// Backup: it is what the guest would go on from.
    Committed(Epoch),
    Ping(u64),
    Pong(u64),
    /// The sender ends the session in order.
    Bye {
        text: String,
    },
    /// Primary: the guest cannot go on here, and why; it is off the host for good.
    HandOver {
        text: String,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RawEntry {
    pub(super) page: U32,
    pub(super) crc: U32,
    pub(super) encoding: U16,
    pub(super) reserved: U16,
}

/// Codes of the frames on the wire.
mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const WELCOME: u16 = 2;
    pub(super) const REFUSE: u16 = 3;
    pub(super) const COPY_START: u16 = 4;
    pub(super) const COPY: u16 = 5;
    pub(super) const BEGIN: u16 = 6;
    pub(super) const PAGES: u16 = 7;
    pub(super) const STATE: u16 = 8;
    pub(super) const END: u16 = 9;
    pub(super) const END_OF_GUEST: u16 = 10;
    pub(super) const WHOLE: u16 = 11;
    pub(super) const COMMITTED: u16 = 12;
    pub(super) const PING: u16 = 13;
    pub(super) const PONG: u16 = 14;
    pub(super) const BYE: u16 = 15;
    pub(super) const HAND_OVER: u16 = 16;
}

/// Size of the body that follows, in bytes, from the first [`FRAME_BYTES`] alone.
///
/// # Errors
/// [`MemoryError::Magic`], [`MemoryError::Short`] or [`MemoryError::Long`].
pub fn peek_body_bytes(prefix: &[u8]) -> Result<usize, MemoryError> {
    let prefix = prefix.get(..FRAME_BYTES).ok_or(MemoryError::Short)?;
    if prefix[..8] != FRAME_MAGIC {
        return Err(MemoryError::Magic);
    }
    let bytes = u32::from_le_bytes([prefix[12], prefix[13], prefix[14], prefix[15]]);
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= BODY_BYTES_MAX)
        .ok_or(MemoryError::Long(bytes))
}

impl Blob<'_> {
    fn is_good(&self) -> bool {
        let whole = self.count * PAGE_BYTES;
        match self.codec {
            Codec::Raw => self.bytes.len() == whole,
            Codec::Lz4 => !self.bytes.is_empty() && self.bytes.len() < whole,
            Codec::Zero => self.bytes.is_empty(),
        }
    }

    fn from_parts(codec: u64, count: usize, bytes: &[u8]) -> Result<Blob<'_>, MemoryError> {
        let codec = match codec {
            1 => Codec::Raw,
            2 => Codec::Lz4,
            3 => Codec::Zero,
            _ => return Err(MemoryError::Field("codec")),
        };
        Some(Blob {
            codec,
            count,
            bytes,
        })
        .filter(Blob::is_good)
        .ok_or(MemoryError::Field("blob"))
    }
}

impl Frame<'_> {
    /// Appends the bytes of the frame to `out`.
    ///
    /// # Panics
    /// Where a field is out of its bounds.
    pub fn encode(&self, session: SessionId, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + FRAME_BYTES, 0);
        let (kind, words) = self.put_body(out);
        let body_bytes = out.len() - start - FRAME_BYTES;
        assert!(body_bytes <= BODY_BYTES_MAX, "a body of {body_bytes} bytes");
        let raw = RawFrame {
            magic: FRAME_MAGIC,
            kind: kind.into(),
            reserved: 0.into(),
            body_bytes: u32::try_from(body_bytes).expect("bounded").into(),
            crc: 0.into(),
            reserved2: 0.into(),
            session: session.0.into(),
            words: words.map(Into::into),
        };
        out[start..start + FRAME_BYTES].copy_from_slice(raw.as_bytes());
        let crc = frame_crc(&out[start..]);
        out[start + 16..start + 20].copy_from_slice(&crc.to_le_bytes());
    }

    fn put_body(&self, out: &mut Vec<u8>) -> (u16, [u64; 4]) {
        match self {
            Self::Hello(hello) => {
                out.extend(hello.body());
                let range = [hello.version_min.into(), hello.version_max.into(), 0, 0];
                (kind::HELLO, range)
            }
            Self::Welcome(welcome) => (kind::WELCOME, welcome.words()),
            Self::Refuse { code, text } => {
                out.extend(clip(text));
                (kind::REFUSE, [u64::from(*code as u16), 0, 0, 0])
            }
            Self::CopyStart { generation } => (kind::COPY_START, [*generation, 0, 0, 0]),
            Self::Copy { first, crc, blob } => {
                let words = [
                    (*first).into(),
                    blob.count as u64,
                    blob.word(),
                    (*crc).into(),
                ];
                out.extend_from_slice(blob.bytes);
                (kind::COPY, words)
            }
            Self::Begin(begin) => {
                out.extend(begin.lineage.0);
                let kind_word = u64::from(begin.state_kind as u16);
                let words = [
                    begin.epoch.0,
                    begin.page_count,
                    begin.state_bytes,
                    kind_word,
                ];
                (kind::BEGIN, words)
            }
            Self::Pages { entries, blob } => {
                for entry in entries {
                    out.extend_from_slice(entry.raw().as_bytes());
                }
                out.extend_from_slice(blob.bytes);
                (kind::PAGES, [entries.len() as u64, blob.word(), 0, 0])
            }
            Self::State { indexes, blob } => {
                for index in indexes {
                    out.extend(index.to_le_bytes());
                }
                out.extend_from_slice(blob.bytes);
                (kind::STATE, [indexes.len() as u64, blob.word(), 0, 0])
            }
            Self::End {
                epoch,
                page_count,
                digest,
            } => {
                out.extend(digest);
                (kind::END, [epoch.0, *page_count, 0, 0])
            }
            Self::EndOfGuest { epoch, lineage } => {
                out.extend(lineage.0);
                (kind::END_OF_GUEST, [epoch.0, 0, 0, 0])
            }
            Self::Whole(epoch) => (kind::WHOLE, [epoch.0, 0, 0, 0]),
            Self::Committed(epoch) => (kind::COMMITTED, [epoch.0, 0, 0, 0]),
            Self::Ping(token) => (kind::PING, [*token, 0, 0, 0]),
            Self::Pong(token) => (kind::PONG, [*token, 0, 0, 0]),
            Self::Bye { text } => {
                out.extend(clip(text));
                (kind::BYE, [0; 4])
            }
            Self::HandOver { text } => {
                out.extend(clip(text));
                (kind::HAND_OVER, [0; 4])
            }
        }
    }

    /// Reads a whole frame; gives the session it belongs to.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn decode(bytes: &[u8]) -> Result<(Frame<'_>, SessionId), MemoryError> {
        let body_bytes = peek_body_bytes(bytes)?;
        let frame = bytes
            .get(..FRAME_BYTES + body_bytes)
            .ok_or(MemoryError::Short)?;
        let (raw, body) = RawFrame::ref_from_prefix(frame).map_err(|_| MemoryError::Short)?;
        if raw.crc.get() != frame_crc(frame) {
            return Err(MemoryError::Crc);
        }
        if raw.reserved.get() != 0 || raw.reserved2.get() != 0 {
            return Err(MemoryError::Field("reserved"));
        }
        let (kind, words) = (raw.kind.get(), raw.words.map(|word| word.get()));
        let (words_used, has_body) = shape(kind)?;
        if words[words_used..].iter().any(|word| *word != 0) {
            return Err(MemoryError::Field("words"));
        }
        if !has_body && !body.is_empty() {
            return Err(MemoryError::Field("body"));
        }
        let frame = Frame::from_parts(kind, words, body)?;
        Ok((frame, SessionId(raw.session.get())))
    }
}

/// Words that a kind of frame uses, and whether it has a body.
fn shape(code: u16) -> Result<(usize, bool), MemoryError> {
    Ok(match code {
        kind::HELLO | kind::PAGES | kind::STATE | kind::END => (2, true),
        kind::REFUSE | kind::END_OF_GUEST => (1, true),
        kind::COPY | kind::BEGIN => (4, true),
        kind::BYE | kind::HAND_OVER => (0, true),
        kind::WELCOME => (4, false),
        kind::COPY_START | kind::WHOLE | kind::COMMITTED | kind::PING | kind::PONG => (1, false),
        other => return Err(MemoryError::Kind(other)),
    })
}

fn epoch_of(word: u64) -> Result<Epoch, MemoryError> {
    Some(Epoch(word))
        .filter(|epoch| *epoch > Epoch::NONE && *epoch <= EPOCH_MAX)
        .ok_or(MemoryError::Field("epoch"))
}

/// How many are in a frame.
fn count_of(word: u64) -> Result<usize, MemoryError> {
    usize::try_from(word)
        .ok()
        .filter(|count| (1..=BATCH_PAGES_MAX).contains(count))
        .ok_or(MemoryError::Field("count"))
}

fn text_of(body: &[u8]) -> Result<String, MemoryError> {
    text(body).map_err(|_| MemoryError::Field("text"))
}

impl<'a> Frame<'a> {
    fn from_parts(code: u16, words: [u64; 4], body: &'a [u8]) -> Result<Self, MemoryError> {
        let [a, b, c, d] = words;
        let id = |name| body.try_into().map_err(|_| MemoryError::Field(name));
        Ok(match code {
            kind::HELLO => Self::Hello(Box::new(Hello::from_parts(words, body)?)),
            kind::WELCOME => Self::Welcome(Welcome::from_words(words)?),
            kind::REFUSE => Self::Refuse {
                code: RefuseCode::from_code(a).ok_or(MemoryError::Field("refuse code"))?,
                text: text_of(body)?,
            },
            kind::COPY_START if a != 0 => Self::CopyStart { generation: a },
            kind::COPY_START => return Err(MemoryError::Field("generation")),
            kind::COPY => Self::Copy {
                first: u32::try_from(a).map_err(|_| MemoryError::Field("page"))?,
                crc: u32::try_from(d).map_err(|_| MemoryError::Field("crc"))?,
                blob: Blob::from_parts(c, count_of(b)?, body)?,
            },
            kind::BEGIN => Self::Begin(Begin {
                epoch: epoch_of(a)?,
                lineage: LineageId(id("lineage")?),
                page_count: b,
                state_bytes: Some(c)
                    .filter(|bytes| *bytes <= STATE_BYTES_MAX)
                    .ok_or(MemoryError::Field("state_bytes"))?,
                state_kind: StateKind::from_code(d).ok_or(MemoryError::Field("state_kind"))?,
            }),
            kind::PAGES => Self::pages(count_of(a)?, b, body)?,
            kind::STATE => {
                let count = count_of(a)?;
                let (indexes, blob) = <[U32]>::ref_from_prefix_with_elems(body, count)
                    .map_err(|_| MemoryError::Field("pieces"))?;
                let blob = Blob::from_parts(b, count, blob)?;
                if blob.codec == Codec::Zero {
                    return Err(MemoryError::Field("codec"));
                }
                Self::State {
                    indexes: indexes.iter().map(|index| index.get()).collect(),
                    blob,
                }
            }
            kind::END => Self::End {
                epoch: epoch_of(a)?,
                page_count: b,
                digest: body.try_into().map_err(|_| MemoryError::Field("digest"))?,
            },
            kind::END_OF_GUEST => Self::EndOfGuest {
                epoch: epoch_of(a)?,
                lineage: LineageId(id("lineage")?),
            },
            kind::WHOLE => Self::Whole(epoch_of(a)?),
            kind::COMMITTED => Self::Committed(epoch_of(a)?),
            kind::PING => Self::Ping(a),
            kind::PONG => Self::Pong(a),
            kind::BYE => Self::Bye {
                text: text_of(body)?,
            },
            kind::HAND_OVER => Self::HandOver {
                text: text_of(body)?,
            },
            other => return Err(MemoryError::Kind(other)),
        })
    }

    fn pages(count: usize, codec: u64, body: &'a [u8]) -> Result<Self, MemoryError> {
        let (raw, blob) = <[RawEntry]>::ref_from_prefix_with_elems(body, count)
            .map_err(|_| MemoryError::Field("entries"))?;
        let entries = raw
            .iter()
            .map(Entry::from_raw)
            .collect::<Result<Vec<_>, _>>()?;
        let in_blob = entries.iter().filter(|entry| entry.encoding.is_in_blob());
        let blob = Blob::from_parts(codec, in_blob.count(), blob)?;
        if blob.codec == Codec::Zero {
            return Err(MemoryError::Field("codec"));
        }
        Ok(Self::Pages { entries, blob })
    }
}

impl Blob<'_> {
    fn word(&self) -> u64 {
        assert!(self.is_good(), "a blob that is not what it says");
        u64::from(self.codec as u16)
    }
}

impl Entry {
    fn raw(&self) -> RawEntry {
        RawEntry {
            page: self.page.into(),
            crc: self.crc.into(),
            encoding: (self.encoding as u16).into(),
            reserved: 0.into(),
        }
    }

    fn from_raw(raw: &RawEntry) -> Result<Self, MemoryError> {
        if raw.reserved.get() != 0 {
            return Err(MemoryError::Field("reserved"));
        }
        Ok(Self {
            page: raw.page.get(),
            crc: raw.crc.get(),
            encoding: Encoding::from_code(raw.encoding.get())
                .ok_or(MemoryError::Field("encoding"))?,
        })
    }
}
