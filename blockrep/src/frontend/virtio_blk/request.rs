//! A request as it stands in a chain of descriptors (virtio 1.2, section 5.2.6).
//!
//! ```text
//!  readable: type u32 | reserved u32 | sector u64 | data of a write, or ranges
//!  writable: data of a read, or an id | status u8
//! ```
//!
//! Nothing about how the driver cuts this into descriptors is taken for granted. Everything is from
//! the guest: lengths and ranges are checked here, addresses by whoever reaches into its memory.

use super::{RANGE_SECTORS_MAX, RANGES_MAX, SEGMENTS_MAX};
use blkback_proto::ids::UNIT_BYTES;

/// Descriptors of one request at most: data, and header and status wherever they are cut.
const DESCRIPTORS_MAX: usize = SEGMENTS_MAX as usize + 2;
const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
/// Length of the answer to GET_ID.
pub const ID_BYTES: u64 = 20;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
/// Flag of a range: it may be given back.
const RANGE_UNMAP: u32 = 1;

/// What the status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed.
    IoError = 1,
    /// Not understood.
    Unsupported = 2,
}

/// A descriptor of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// The device writes here.
    pub is_writable: bool,
    /// Another one follows.
    pub has_next: bool,
}

/// A stretch of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
}

/// A range of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Byte offset.
    pub offset: u64,
    /// Length in bytes, at most [`blkback_proto::record::RANGE_BYTES_MAX`].
    pub length: u64,
    /// It may be given back to the storage.
    pub discard: bool,
}

/// What is asked for. Ranges lie inside the volume and are multiples of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Fill the data segments from this byte offset on.
    Read {
        /// Byte offset.
        offset: u64,
        /// Length of all segments together.
        length: u64,
    },
    /// Write the data segments to this byte offset.
    Write {
        /// Byte offset.
        offset: u64,
        /// Length of all segments together.
        length: u64,
    },
    /// Answer when what was answered before would survive.
    Flush,
    /// Zero ranges.
    Zero(Vec<Range>),
    /// Name the disk.
    GetId,
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What is asked for.
    pub ask: Ask,
    /// Guest memory the data comes from or goes to.
    pub data: Vec<Segment>,
    /// Guest address of the status byte.
    pub status: u64,
}

/// A request that is answered without asking the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// There is no place for a status: the chain goes back as it came.
    #[error("a chain without a status byte")]
    NoStatus,
    /// The status byte says what is wrong.
    #[error("{what}")]
    Answer {
        /// Guest address of the status byte.
        status: u64,
        /// What it says.
        answer: Status,
        /// For the log.
        what: &'static str,
    },
}

/// Reads guest memory; false when the address is none of the guest's.
pub type ReadGuest<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> bool;

/// What may be asked of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Writes are refused.
    pub is_read_only: bool,
}

/// Vectors of requests that have ended, for those to come: one that is warm makes none.
#[derive(Debug, Default)]
pub struct Spare(Vec<Vec<Segment>>);

impl Spare {
    fn take(&mut self) -> Vec<Segment> {
        self.0.pop().unwrap_or_default()
    }

    /// Takes a vector back.
    pub fn give(&mut self, mut segments: Vec<Segment>) {
        segments.clear();
        self.0.push(segments);
    }
}

/// Reads the request that stands in a chain. The segments of the answer are best given back to
/// `spare` in the end.
///
/// # Errors
/// How it has to be answered at once.
pub fn parse(
    chain: impl Iterator<Item = Descriptor>,
    limits: Limits,
    spare: &mut Spare,
    read: ReadGuest<'_>,
) -> Result<Parsed, Mistake> {
    let mut sorted = Sorted {
        readable: spare.take(),
        writable: spare.take(),
        fault: None,
    };
    sort(chain, &mut sorted);
    let asked = interpret(&mut sorted, limits, read);
    let Sorted {
        readable, writable, ..
    } = sorted;
    let is_read = matches!(&asked, Ok((Ask::Read { .. } | Ask::GetId, _)));
    let (data, other) = if is_read {
        (writable, readable)
    } else {
        (readable, writable)
    };
    spare.give(other);
    match asked {
        Ok((ask, status)) => Ok(Parsed { ask, data, status }),
        Err(mistake) => {
            spare.give(data);
            Err(mistake)
        }
    }
}

/// What is asked for and where the status goes. Leaves data in the segments of its direction, and
/// nothing else.
fn interpret(
    sorted: &mut Sorted,
    limits: Limits,
    read: ReadGuest<'_>,
) -> Result<(Ask, u64), Mistake> {
    let Sorted {
        readable,
        writable,
        fault,
    } = sorted;
    let status = take_status(writable).ok_or(Mistake::NoStatus)?;
    let wrong = |answer, what| Mistake::Answer {
        status,
        answer,
        what,
    };
    let broken = |what| wrong(Status::IoError, what);
    if let Some(what) = *fault {
        return Err(broken(what));
    }
    let mut header = [0; HEADER_BYTES as usize];
    if !take_bytes(readable, &mut header, read) {
        return Err(broken("a request without a whole header"));
    }
    let (kind, sector) = split_header(&header);
    let ask = match kind {
        TYPE_IN | TYPE_OUT => {
            let (data, other) = if kind == TYPE_IN {
                (&*writable, &*readable)
            } else {
                (&*readable, &*writable)
            };
            if total(other) > 0 {
                return Err(broken("data in the wrong direction"));
            }
            let length = total(data);
            let offset = range(sector, length, limits.size_bytes)
                .ok_or_else(|| broken("a range that is not on the disk"))?;
            if kind == TYPE_IN {
                Ask::Read { offset, length }
            } else {
                Ask::Write { offset, length }
            }
        }
        TYPE_FLUSH => Ask::Flush,
        TYPE_GET_ID if total(writable) >= ID_BYTES => Ask::GetId,
        TYPE_GET_ID => return Err(broken("too little room for an id")),
        TYPE_DISCARD | TYPE_WRITE_ZEROES => {
            let is_discard = kind == TYPE_DISCARD;
            let ranges = ranges(readable, is_discard, limits.size_bytes, read);
            Ask::Zero(ranges.map_err(|(answer, what)| wrong(answer, what))?)
        }
        _ => return Err(wrong(Status::Unsupported, "a request of an unknown type")),
    };
    if limits.is_read_only && matches!(ask, Ask::Write { .. } | Ask::Zero(_)) {
        return Err(broken("a write to a read-only disk"));
    }
    if matches!(ask, Ask::Flush | Ask::Zero(_)) {
        readable.clear();
    }
    Ok((ask, status))
}

/// The segments of a chain by direction, and what is wrong with it.
struct Sorted {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    fault: Option<&'static str>,
}

fn sort(chain: impl Iterator<Item = Descriptor>, sorted: &mut Sorted) {
    let mut is_open = false;
    for (count, descriptor) in chain.enumerate() {
        if count == DESCRIPTORS_MAX {
            sorted.fault = Some("a chain of too many descriptors");
            return;
        }
        let segment = Segment {
            address: descriptor.address,
            length: descriptor.length,
        };
        if descriptor.is_writable {
            sorted.writable.push(segment);
        } else {
            if !sorted.writable.is_empty() {
                sorted.fault = Some("a descriptor in the wrong order");
            }
            sorted.readable.push(segment);
        }
        is_open = descriptor.has_next;
    }
    if is_open {
        sorted.fault = Some("a broken chain of descriptors");
    }
}

fn split_header(header: &[u8; HEADER_BYTES as usize]) -> (u32, u64) {
    let word = |at: usize| header[at..at + 4].try_into().expect("four bytes");
    let sector = header[8..16].try_into().expect("eight bytes");
    (u32::from_le_bytes(word(0)), u64::from_le_bytes(sector))
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.length)).sum()
}

/// Takes the last writable byte away: the status stands there.
fn take_status(writable: &mut Vec<Segment>) -> Option<u64> {
    while writable.last().is_some_and(|s| s.length == 0) {
        writable.pop();
    }
    let last = writable.last_mut()?;
    last.length -= 1;
    let status = last.address.checked_add(u64::from(last.length))?;
    if last.length == 0 {
        writable.pop();
    }
    Some(status)
}

/// Reads bytes from the front of the segments and takes them away; false where there are too few.
fn take_bytes(segments: &mut Vec<Segment>, out: &mut [u8], read: ReadGuest<'_>) -> bool {
    let mut filled = 0;
    while filled < out.len() {
        let Some(first) = segments.first_mut() else {
            return false;
        };
        let take = (out.len() - filled).min(first.length as usize);
        if !read(first.address, &mut out[filled..filled + take]) {
            return false;
        }
        filled += take;
        first.length -= take as u32;
        let Some(address) = first.address.checked_add(take as u64) else {
            return false;
        };
        first.address = address;
        if first.length == 0 {
            segments.remove(0);
        }
    }
    true
}

/// The byte offset of a range that lies inside the volume and is not empty.
fn range(sector: u64, length: u64, size_bytes: u64) -> Option<u64> {
    let offset = sector.checked_mul(UNIT_BYTES)?;
    let end = offset.checked_add(length)?;
    let fits = length > 0 && length.is_multiple_of(UNIT_BYTES) && end <= size_bytes;
    fits.then_some(offset)
}

fn ranges(
    readable: &mut Vec<Segment>,
    is_discard: bool,
    size_bytes: u64,
    read: ReadGuest<'_>,
) -> Result<Vec<Range>, (Status, &'static str)> {
    let bytes = total(readable);
    let count = bytes / RANGE_BYTES;
    if bytes == 0 || !bytes.is_multiple_of(RANGE_BYTES) || count > u64::from(RANGES_MAX) {
        return Err((Status::IoError, "a list of ranges of a wrong length"));
    }
    let mut ranges = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let mut raw = [0; RANGE_BYTES as usize];
        if !take_bytes(readable, &mut raw, read) {
            return Err((Status::IoError, "ranges that cannot be read"));
        }
        let sector = u64::from_le_bytes(raw[..8].try_into().expect("eight bytes"));
        let sectors = u32::from_le_bytes(raw[8..12].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(raw[12..].try_into().expect("four bytes"));
        if flags & !RANGE_UNMAP != 0 || (is_discard && flags != 0) {
            return Err((Status::Unsupported, "flags of a range that are not known"));
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err((Status::IoError, "a range that is too long"));
        }
        let length = u64::from(sectors) * UNIT_BYTES;
        let Some(offset) = range(sector, length, size_bytes) else {
            return Err((Status::IoError, "a range that is not on the disk"));
        };
        ranges.push(Range {
            offset,
            length,
            discard: is_discard || flags & RANGE_UNMAP != 0,
        });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests;
