//! Messages and attributes of netlink as bytes: both directions, every length checked.
//!
//! ```text
//! message    length u32 │ type u16 │ flags u16 │ seq u32 │ port u32 │ body, padded to 4
//! attribute  length u16 │ type u16 │ value, padded to 4       (length counts its own 4 bytes)
//! ```

#![allow(
    clippy::host_endian_bytes,
    reason = "netlink speaks to the kernel of this host, in its byte order"
)]

pub const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
/// The two upper bits of an attribute's type are flags (nested, network byte order).
const TYPE_MASK: u16 = 0x3fff;

fn padded(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// A request while it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

/// Where an attribute that holds others began.
#[derive(Debug)]
#[must_use = "a nest that is not ended has no length"]
pub struct Nest(usize);

impl Message {
    /// The sequence number is set when it is sent.
    #[must_use]
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    /// Bytes of a kernel structure, whose length is a multiple of 4.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len())
            .expect("every value written here is far below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(padded(self.bytes.len()), 0);
        self
    }

    #[must_use]
    pub fn attribute_u32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// A string with its zero byte.
    #[must_use]
    pub fn attribute_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value)
    }

    pub fn begin(&mut self, kind: u16) -> Nest {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        Nest(at)
    }

    pub fn end(&mut self, nest: &Nest) {
        let length = u16::try_from(self.bytes.len() - nest.0)
            .expect("every nest written here is far below 64 KiB");
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The bytes to send.
    #[must_use]
    pub fn finish(mut self, seq: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a request is small");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.bytes
    }
}

/// Why bytes from a socket were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a message ends after {have} of {need} bytes")]
    ShortMessage { have: usize, need: usize },
    #[error("an attribute says {says} bytes where {have} are left")]
    BadAttribute { says: usize, have: usize },
    #[error("a structure of {need} bytes has {have}")]
    ShortBody { have: usize, need: usize },
}

/// A message of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub body: &'a [u8],
}

#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// The messages of one datagram.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    #[must_use]
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }

    fn take(&mut self) -> Result<Part<'a>, WireError> {
        let have = self.rest.len();
        let short = |need| WireError::ShortMessage { have, need };
        let field = short(HEADER_BYTES);
        let length = u32_at(self.rest, 0).ok_or(field)?;
        let length = usize::try_from(length).map_err(|_| short(usize::MAX))?;
        let part = Part {
            kind: u16_at(self.rest, 4).ok_or(field)?,
            flags: u16_at(self.rest, 6).ok_or(field)?,
            seq: u32_at(self.rest, 8).ok_or(field)?,
            body: self
                .rest
                .get(HEADER_BYTES..length)
                .ok_or(short(length.max(HEADER_BYTES)))?,
        };
        self.rest = self.rest.get(padded(length)..).unwrap_or(&[]);
        Ok(part)
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<Part<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let part = self.take();
        if part.is_err() {
            self.rest = &[];
        }
        Some(part)
    }
}

/// The attributes after a structure, or inside another attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What follows a structure of `need` bytes.
    pub fn after(body: &'a [u8], need: usize) -> Result<Self, WireError> {
        let have = body.len();
        let bytes = body.get(need..);
        let bytes = bytes.ok_or(WireError::ShortBody { have, need })?;
        Ok(Self { bytes })
    }

    /// The first attribute of a kind.
    pub fn find(&self, kind: u16) -> Result<Option<&'a [u8]>, WireError> {
        let mut rest = self.bytes;
        while !rest.is_empty() {
            let have = rest.len();
            let bad = |says| WireError::BadAttribute { says, have };
            let says = usize::from(u16_at(rest, 0).ok_or(bad(ATTRIBUTE_BYTES))?);
            let of = u16_at(rest, 2).ok_or(bad(says))? & TYPE_MASK;
            let value = rest.get(ATTRIBUTE_BYTES..says).ok_or(bad(says))?;
            if of == kind {
                return Ok(Some(value));
            }
            rest = rest.get(padded(says)..).unwrap_or(&[]);
        }
        Ok(None)
    }

    /// The attributes inside one of a kind; none if it is not there.
    pub fn nested(&self, kind: u16) -> Result<Self, WireError> {
        Ok(Self::new(self.find(kind)?.unwrap_or(&[])))
    }

    pub fn text(&self, kind: u16) -> Result<Option<String>, WireError> {
        Ok(self.find(kind)?.map(|value| {
            let text = value.split(|byte| *byte == 0).next().unwrap_or(&[]);
            String::from_utf8_lossy(text).into_owned()
        }))
    }
}
