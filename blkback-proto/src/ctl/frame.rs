//! Frames: the fixed header in front of every JSON body, and the range of versions spoken.
//!
//! The header and the handshake version are frozen: they are read before anything is agreed.

use thiserror::Error;

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"BRCT";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// Longest body of one frame.
pub const BODY_BYTES_MAX: usize = PACKET_BYTES_MAX - HEADER_BYTES;
/// Longest packet either side sends or reads.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;
/// Longest answer once its parts are put together.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Version written in the frames of the handshake, whatever is agreed later. Never changes.
pub const HANDSHAKE_VERSION: u16 = 0;
/// Oldest version this code speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest version this code speaks.
pub const VERSION_MAX: u16 = 1;

/// What a frame is, as it stands in the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// Client to server, id not 0.
    Request = 1,
    /// Server to client: the answer, or its last part.
    Response = 2,
    /// Server to client: an event of a stream, with the id of the request that opened it.
    Event = 3,
    /// Server to client: a part of an answer; more of the same id follows.
    ResponsePart = 4,
}

impl FrameKind {
    fn from_wire(kind: u16) -> Option<Self> {
        match kind {
            1 => Some(Self::Request),
            2 => Some(Self::Response),
            3 => Some(Self::Event),
            4 => Some(Self::ResponsePart),
            _ => None,
        }
    }
}

/// A decoded frame that borrows its body from the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// [`HANDSHAKE_VERSION`] or within [`VERSION_MIN`]`..=`[`VERSION_MAX`].
    pub version: u16,
    /// What the frame is.
    pub kind: FrameKind,
    /// Chosen by the client; 0 only in an error about a packet that carried no readable id.
    pub request_id: u32,
    /// JSON text, at most [`BODY_BYTES_MAX`] bytes, not yet parsed.
    pub body: &'a [u8],
}

/// Why a packet is no frame, or an answer cannot be sent as frames.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("packet of {have} bytes is shorter than the header of {HEADER_BYTES}")]
    Short { have: usize },
    /// More bytes than any frame may have.
    #[error("packet of {have} bytes is longer than the limit of {PACKET_BYTES_MAX}")]
    Long { have: usize },
    /// Somebody else's protocol.
    #[error("packet does not begin with the bytes of the control protocol (found {found:#010x})")]
    Magic { found: u32 },
    /// A version that this side does not speak.
    #[error(
        "frame of control protocol version {found}; this side speaks {VERSION_MIN} to {VERSION_MAX}"
    )]
    Version { found: u16 },
    /// A kind that no version has.
    #[error("frame kind {found} is unknown")]
    Kind { found: u16 },
    /// Header and packet disagree about the length.
    #[error("header states a body of {stated} bytes, the packet has {actual}")]
    BodyLength { stated: u32, actual: usize },
    /// A request without an id cannot be answered.
    #[error("request id 0 is reserved")]
    ZeroRequestId,
    /// A body or an answer over its limit.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        what: &'static str,
        bytes: usize,
        limit: usize,
    },
    /// A part of an answer that belongs to no request, or to another one.
    #[error("part of answer {found} came while reading answer {expected}")]
    PartOrder { expected: u32, found: u32 },
}

/// Reads one packet as a frame.
///
/// # Errors
/// Everything but the JSON is checked: lengths, magic, version, kind, reserved id.
pub fn decode(packet: &[u8]) -> Result<Frame<'_>, FrameError> {
    if packet.len() > PACKET_BYTES_MAX {
        return Err(FrameError::Long { have: packet.len() });
    }
    let Some((header, body)) = packet.split_first_chunk::<HEADER_BYTES>() else {
        return Err(FrameError::Short { have: packet.len() });
    };
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if header[..4] != MAGIC {
        return Err(FrameError::Magic { found: u32_at(0) });
    }
    let version = u16_at(4);
    if version != HANDSHAKE_VERSION && !(VERSION_MIN..=VERSION_MAX).contains(&version) {
        return Err(FrameError::Version { found: version });
    }
    let kind = FrameKind::from_wire(u16_at(6)).ok_or(FrameError::Kind { found: u16_at(6) })?;
    let request_id = u32_at(8);
    if kind == FrameKind::Request && request_id == 0 {
        return Err(FrameError::ZeroRequestId);
    }
    let stated = u32_at(12);
    if usize::try_from(stated) != Ok(body.len()) {
        return Err(FrameError::BodyLength {
            stated,
            actual: body.len(),
        });
    }
    Ok(Frame {
        version,
        kind,
        request_id,
        body,
    })
}

/// Writes one frame.
///
/// # Errors
/// [`FrameError::TooLarge`] when the body is over [`BODY_BYTES_MAX`].
pub fn encode(
    version: u16,
    kind: FrameKind,
    request_id: u32,
    body: &[u8],
) -> Result<Vec<u8>, FrameError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(FrameError::TooLarge {
            what: "frame body",
            bytes: body.len(),
            limit: BODY_BYTES_MAX,
        });
    }
    let body_len = u32::try_from(body.len()).expect("BODY_BYTES_MAX fits in u32");
    let mut packet = Vec::with_capacity(HEADER_BYTES + body.len());
    packet.extend_from_slice(&MAGIC);
    packet.extend_from_slice(&version.to_le_bytes());
    packet.extend_from_slice(&(kind as u16).to_le_bytes());
    packet.extend_from_slice(&request_id.to_le_bytes());
    packet.extend_from_slice(&body_len.to_le_bytes());
    packet.extend_from_slice(body);
    Ok(packet)
}

/// The newest version both sides speak, given the range of the client; `None` if there is none.
pub fn choose_version(client_min: u16, client_max: u16) -> Option<u16> {
    let newest = client_max.min(VERSION_MAX);
    (newest >= client_min.max(VERSION_MIN)).then_some(newest)
}
