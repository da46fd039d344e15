//! What the guest of the whole demo (`teller.rs`) and its client say to each other, and what a record on the
//! guest's disk is: shared by both, so that the client checks the very bytes.
//!
//! All numbers little-endian. A frame is a head and a payload; the crc is of both, without itself.
//!
//! ```text
//! request  magic u32 | kind u32 | number u64 | nonce u64 | length u32 | crc u32 | payload
//! answer   magic u32 | kind u32 | number u64 | nonce u64 | position u64 | chain u64 | chain_disk u64
//!          | monotonic_ns u64 | real_ns u64 | flags u32 | length u32 | 0 u32 | crc u32 | payload
//! record   magic u64 | run u64 | position u64 | number u64 | nonce u64 | chain u64 | length u32 | crc u32 | payload,
//!          then zeros up to RECORD_LEN
//! ```
//!
//! Record n stands at (n − 1) · RECORD_LEN. Its chain is made of the chain of record n − 1 and of itself, so the
//! last chain stands for all of them and their order.

/// Bytes of a payload, at most.
pub(crate) const PAYLOAD_MAX: usize = 1024;
/// Bytes of a record: three sectors.
pub(crate) const RECORD_LEN: usize = 1536;
/// Records that one answer carries, at most.
pub(crate) const RECORDS_MAX: usize = 64;
pub(crate) const REQUEST_HEAD: usize = 32;
pub(crate) const ANSWER_HEAD: usize = 80;
const RECORD_HEAD: usize = 56;
const REQUEST_MAGIC: u32 = 0x5154_5242;
const ANSWER_MAGIC: u32 = 0x4154_5242;
const RECORD_MAGIC: u64 = 0x3152_454c_4c45_5442;

/// Append the payload; answered when it is on the disk.
pub(crate) const APPEND: u32 = 1;
/// Read `nonce` records from position `number`; the answer's position is the highest there is.
pub(crate) const READ: u32 = 2;
/// Compare memory and disk from end to end; the payload says what differs.
pub(crate) const AUDIT: u32 = 3;

/// The last record on the disk is not the one that memory knows.
pub(crate) const DIFFERS: u32 = 1;
/// The disk has a record that memory does not know.
pub(crate) const AHEAD: u32 = 2;
/// A page of memory is not as it was written.
pub(crate) const SPOILT: u32 = 4;

/// What the client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: u32,
    pub(crate) number: u64,
    pub(crate) nonce: u64,
    pub(crate) payload: Vec<u8>,
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) kind: u32,
    pub(crate) number: u64,
    pub(crate) nonce: u64,
    /// Of the appended record, or the highest there is.
    pub(crate) position: u64,
    /// The chain up to `position`, as memory has it.
    pub(crate) chain: u64,
    /// The chain up to the record before, read from the disk a moment before the append; of an audit the last one.
    pub(crate) chain_disk: u64,
    pub(crate) monotonic_ns: u64,
    pub(crate) real_ns: u64,
    pub(crate) flags: u32,
    pub(crate) payload: Vec<u8>,
}

/// A record as it stands on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) run: u64,
    pub(crate) position: u64,
    pub(crate) number: u64,
    pub(crate) nonce: u64,
    pub(crate) chain: u64,
    pub(crate) payload: Vec<u8>,
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Writer::default();
        bytes.u32(REQUEST_MAGIC).u32(self.kind);
        bytes
            .u64(self.number)
            .u64(self.nonce)
            .u32(length(&self.payload));
        bytes.sealed(&self.payload)
    }

    /// How many bytes the frame has, from its head.
    pub(crate) fn frame_len(head: &[u8; REQUEST_HEAD]) -> Result<usize, String> {
        frame_len(head, REQUEST_MAGIC, 24, PAYLOAD_MAX)
    }

    /// A whole frame.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, String> {
        let payload = opened(frame, REQUEST_HEAD)?;
        Ok(Self {
            kind: u32_at(frame, 4),
            number: u64_at(frame, 8),
            nonce: u64_at(frame, 16),
            payload: payload.to_vec(),
        })
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Writer::default();
        bytes.u32(ANSWER_MAGIC).u32(self.kind);
        for number in [
            self.number,
            self.nonce,
            self.position,
            self.chain,
            self.chain_disk,
            self.monotonic_ns,
            self.real_ns,
        ] {
            bytes.u64(number);
        }
        bytes.u32(self.flags).u32(length(&self.payload)).u32(0);
        bytes.sealed(&self.payload)
    }

    pub(crate) fn frame_len(head: &[u8; ANSWER_HEAD]) -> Result<usize, String> {
        frame_len(head, ANSWER_MAGIC, 68, RECORDS_MAX * RECORD_LEN)
    }

    pub(crate) fn decode(frame: &[u8]) -> Result<Self, String> {
        let payload = opened(frame, ANSWER_HEAD)?;
        Ok(Self {
            kind: u32_at(frame, 4),
            number: u64_at(frame, 8),
            nonce: u64_at(frame, 16),
            position: u64_at(frame, 24),
            chain: u64_at(frame, 32),
            chain_disk: u64_at(frame, 40),
            monotonic_ns: u64_at(frame, 48),
            real_ns: u64_at(frame, 56),
            flags: u32_at(frame, 64),
            payload: payload.to_vec(),
        })
    }
}

impl Record {
    /// The record at `position` with its chain.
    pub(crate) fn after(before: u64, run: u64, position: u64, request: &Request) -> Self {
        let mut record = Self {
            run,
            position,
            number: request.number,
            nonce: request.nonce,
            chain: 0,
            payload: request.payload.clone(),
        };
        record.chain = record.chained(before);
        record
    }

    /// The chain with this record behind `before`.
    pub(crate) fn chained(&self, before: u64) -> u64 {
        let mut chain = mix(before ^ self.run);
        for number in [
            self.position,
            self.number,
            self.nonce,
            u64::from(length(&self.payload)),
        ] {
            chain = mix(chain ^ number);
        }
        for part in self.payload.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            chain = mix(chain ^ u64::from_le_bytes(word));
        }
        chain
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Writer::default();
        for number in [
            RECORD_MAGIC,
            self.run,
            self.position,
            self.number,
            self.nonce,
            self.chain,
        ] {
            bytes.u64(number);
        }
        bytes.u32(length(&self.payload));
        let mut bytes = bytes.sealed(&self.payload);
        bytes.resize(RECORD_LEN, 0);
        bytes
    }

    /// What stands in a record's place, if it is whole.
    pub(crate) fn decode(place: &[u8]) -> Result<Self, String> {
        if place.len() != RECORD_LEN || u64_at(place, 0) != RECORD_MAGIC {
            return Err("no record".to_owned());
        }
        let length = u32_at(place, 48) as usize;
        if length > PAYLOAD_MAX {
            return Err(format!("a record of {length} bytes"));
        }
        let payload = opened(&place[..RECORD_HEAD + length], RECORD_HEAD)?;
        Ok(Self {
            run: u64_at(place, 8),
            position: u64_at(place, 16),
            number: u64_at(place, 24),
            nonce: u64_at(place, 32),
            chain: u64_at(place, 40),
            payload: payload.to_vec(),
        })
    }
}

/// The chain before the first record of `run`.
pub(crate) fn beginning(run: u64) -> u64 {
    mix(run)
}

/// splitmix64.
pub(crate) fn mix(number: u64) -> u64 {
    let state = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// With the crc and the payload behind it.
    fn sealed(mut self, payload: &[u8]) -> Vec<u8> {
        let crc = crc32(&[&self.0, payload]);
        self.u32(crc);
        self.0.extend_from_slice(payload);
        self.0
    }
}

fn length(payload: &[u8]) -> u32 {
    u32::try_from(payload.len()).expect("payloads are made by this program, of some KiB")
}

fn frame_len(head: &[u8], magic: u32, at: usize, most: usize) -> Result<usize, String> {
    if u32_at(head, 0) != magic {
        return Err("not a frame of the teller".to_owned());
    }
    let length = u32_at(head, at) as usize;
    if length > most {
        return Err(format!("a frame of {length} bytes, {most} are the most"));
    }
    Ok(head.len() + length)
}

/// The payload of a frame whose crc, the last number of its head, is right.
fn opened(frame: &[u8], head: usize) -> Result<&[u8], String> {
    let (before, payload) = frame
        .split_at_checked(head)
        .ok_or("a frame without a head")?;
    if u32_at(before, head - 4) != crc32(&[&before[..head - 4], payload]) {
        return Err("the crc is wrong".to_owned());
    }
    Ok(payload)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// CRC-32 of IEEE 802.3 over parts that follow each other.
fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        crc = TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    }
    !crc
}

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                0xedb8_8320 ^ (crc >> 1)
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
