//! The driver's side: requests put into a ring, and what has to be read there.

use super::super::request::{Ask, ID_BYTES, Range, Segment, Status};
use super::super::{RANGE_SECTORS_MAX, RANGES_MAX};
use super::{AVAIL, Choices, ENTRIES, FREE, MEMORY_BYTES, SIZE_BYTES, TABLE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
const SECTORS: u64 = SIZE_BYTES / 512;
/// Data lies where nothing is read: the parser only names it.
const DATA: u64 = 1 << 40;

/// What has to become of a request.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    Request {
        ask: Ask,
        data: Vec<Segment>,
        status: u64,
    },
    Refused {
        /// Where, if that can be said.
        status: Option<u64>,
        answer: Status,
    },
    NoStatus,
}

/// A stretch of a request before it is cut into descriptors.
#[derive(Clone, Copy, Debug)]
struct Piece {
    address: u64,
    length: u32,
    is_writable: bool,
}

/// What is asked, before it has a place for its status.
struct Draft {
    kind: u32,
    sector: u64,
    /// Behind the header, in order.
    middle: Vec<Piece>,
    /// `Ok` names what is to be read; the data is `middle` then, where it is data.
    outcome: Result<Ask, Status>,
}

/// Fills a ring.
pub(super) struct Driver<'a> {
    memory: &'a GuestMemoryMmap<()>,
    /// Of the memory that is read.
    free: u64,
    /// Of the memory that is not.
    free_data: u64,
    /// Descriptors that are used up.
    used: u16,
    placed: u16,
}

impl<'a> Driver<'a> {
    pub(super) fn new(memory: &'a GuestMemoryMmap<()>) -> Self {
        Self {
            memory,
            free: FREE,
            free_data: DATA,
            used: 0,
            placed: 0,
        }
    }

    /// Puts one request into the ring; its head and what has to become of it. `None` when it is full.
    pub(super) fn place(&mut self, choices: &mut Choices<'_>) -> Option<(u16, Expected)> {
        let draft = self.draft(choices);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&draft.kind.to_le_bytes());
        header[8..].copy_from_slice(&draft.sector.to_le_bytes());
        let mut pieces = vec![self.stored(&header)];
        pieces.extend(&draft.middle);
        let has_status = !choices.is_one_in(32);
        let status = self.status(choices, &mut pieces, has_status);
        let mut expected = match draft.outcome {
            _ if !has_status && !pieces.iter().any(|p| p.is_writable) => Expected::NoStatus,
            // Its last byte of data is taken for the status: too short by one, or not whole.
            _ if !has_status => return None,
            Err(answer) => Expected::Refused {
                status: Some(status),
                answer,
            },
            Ok(ask) => {
                let data = match ask {
                    Ask::Flush | Ask::Zero(_) => Vec::new(),
                    _ => draft.middle.iter().map(segment).collect(),
                };
                Expected::Request { ask, data, status }
            }
        };
        let cut = cut(choices, &pieces);
        let is_looped = has_status && choices.is_one_in(32);
        let head = self.write(choices, &cut, is_looped)?;
        if is_looped {
            expected = Expected::Refused {
                status: None,
                answer: Status::IoError,
            };
        }
        Some((head, expected))
    }

    /// A request that is right, or wrong in one way.
    fn draft(&mut self, choices: &mut Choices<'_>) -> Draft {
        let mut draft = match choices.below(8) {
            0..=2 => self.transfer(choices, TYPE_IN),
            3..=5 => self.transfer(choices, TYPE_OUT),
            6 => self.ranges(choices),
            _ => self.other(choices),
        };
        if choices.is_one_in(32) {
            draft.kind = [2, 3, 5, 99, u32::MAX][choices.below(5) as usize];
            draft.outcome = Err(Status::Unsupported);
        }
        draft
    }

    fn transfer(&mut self, choices: &mut Choices<'_>, kind: u32) -> Draft {
        let sectors = choices.below(40) + 1;
        let mut sector = choices.below(SECTORS - sectors + 1);
        let mut length = sectors * 512;
        let mut is_right = true;
        match choices.below(64) {
            61 => (sector, is_right) = (SECTORS - sectors + 1 + choices.below(9), false),
            62 => (sector, is_right) = (u64::MAX - choices.below(9), false),
            63 => (length, is_right) = (length - 1 - choices.below(511), false),
            _ => {}
        }
        let is_turned = choices.is_one_in(64);
        let is_writable = (kind == TYPE_IN) != is_turned;
        let address = self.data(length);
        let length = u32::try_from(length).expect("short");
        let middle = vec![Piece {
            address,
            length,
            is_writable,
        }];
        let (offset, length) = (sector.wrapping_mul(512), u64::from(length));
        let outcome = match kind {
            _ if is_turned || !is_right => Err(Status::IoError),
            TYPE_IN => Ok(Ask::Read { offset, length }),
            _ => Ok(Ask::Write { offset, length }),
        };
        Draft {
            kind,
            sector,
            middle,
            outcome,
        }
    }

    fn ranges(&mut self, choices: &mut Choices<'_>) -> Draft {
        let is_discard = choices.is_one_in(2);
        let is_too_many = choices.is_one_in(16);
        let count = match is_too_many {
            true => u64::from(RANGES_MAX) + 1,
            false => choices.below(u64::from(RANGES_MAX)) + 1,
        };
        let mut bytes = Vec::new();
        let mut wanted = Ok(Vec::new());
        for _ in 0..count {
            let mut sectors = choices.below(20) as u32 + 1;
            let sector = choices.below(SECTORS - u64::from(sectors) + 1);
            let mut flags = u32::from(!is_discard && choices.is_one_in(2));
            let mut fault = None;
            match choices.below(128) {
                125 => (sectors, fault) = (RANGE_SECTORS_MAX + 1, Some(Status::IoError)),
                126 => (sectors, fault) = (0, Some(Status::IoError)),
                127 => (flags, fault) = (2 + flags, Some(Status::Unsupported)),
                _ => {}
            }
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            // The first fault counts.
            match (&mut wanted, fault) {
                (Ok(_), Some(answer)) => wanted = Err(answer),
                (Ok(ranges), None) => ranges.push(Range {
                    offset: sector * 512,
                    length: u64::from(sectors) * 512,
                    discard: is_discard || flags & 1 != 0,
                }),
                (Err(_), _) => {}
            }
        }
        let outcome = match is_too_many {
            true => Err(Status::IoError),
            false => wanted.map(Ask::Zero),
        };
        Draft {
            kind: if is_discard {
                TYPE_DISCARD
            } else {
                TYPE_WRITE_ZEROES
            },
            sector: 0,
            middle: vec![self.stored(&bytes)],
            outcome,
        }
    }

    fn other(&mut self, choices: &mut Choices<'_>) -> Draft {
        if choices.is_one_in(2) {
            return Draft {
                kind: TYPE_FLUSH,
                sector: 0,
                middle: Vec::new(),
                outcome: Ok(Ask::Flush),
            };
        }
        let is_short = choices.is_one_in(8);
        let length = u32::try_from(ID_BYTES).expect("twenty") - u32::from(is_short);
        let address = self.data(length.into());
        let middle = vec![Piece {
            address,
            length,
            is_writable: true,
        }];
        Draft {
            kind: TYPE_GET_ID,
            sector: 0,
            middle,
            outcome: if is_short {
                Err(Status::IoError)
            } else {
                Ok(Ask::GetId)
            },
        }
    }

    /// Gives the request its status byte, in a descriptor of its own or behind its data.
    fn status(
        &mut self,
        choices: &mut Choices<'_>,
        pieces: &mut Vec<Piece>,
        is_there: bool,
    ) -> u64 {
        let at_end = pieces.last_mut().filter(|last| last.is_writable);
        match at_end {
            Some(last) if is_there && choices.is_one_in(4) => {
                // The memory behind data is kept free for it.
                let status = last.address + u64::from(last.length);
                last.length += 1;
                status
            }
            _ => {
                let address = self.data(1);
                if is_there {
                    pieces.push(Piece {
                        address,
                        length: 1,
                        is_writable: true,
                    });
                }
                address
            }
        }
    }

    /// Puts bytes where the parser finds them.
    fn stored(&mut self, bytes: &[u8]) -> Piece {
        let address = self.take(bytes.len());
        self.put(address, bytes);
        Piece {
            address,
            length: u32::try_from(bytes.len()).expect("short"),
            is_writable: false,
        }
    }

    /// Memory that is only named, and one byte behind it.
    fn data(&mut self, length: u64) -> u64 {
        let address = self.free_data;
        self.free_data += length + 4096;
        address
    }

    fn take(&mut self, length: usize) -> u64 {
        let address = self.free;
        self.free += (length as u64).next_multiple_of(16);
        assert!(self.free <= MEMORY_BYTES, "few and small requests fit");
        address
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let put = self.memory.write_slice(bytes, GuestAddress(address));
        put.expect("inside of the memory");
    }

    /// Writes the descriptors, in the ring or in a table of their own, and announces the head.
    fn write(&mut self, choices: &mut Choices<'_>, cut: &[Piece], is_looped: bool) -> Option<u16> {
        let is_indirect = choices.is_one_in(2);
        let count = u16::try_from(cut.len()).expect("few");
        let (table, first) = match is_indirect {
            true => (self.take(cut.len() * 16), 0),
            false => (TABLE, self.used),
        };
        let needed = if is_indirect { 1 } else { count };
        if self.used + needed > ENTRIES {
            return None;
        }
        for (index, piece) in (first..).zip(cut) {
            let is_last = index + 1 == first + count;
            let next = if is_last { first } else { index + 1 };
            let mut flags = if piece.is_writable { FLAG_WRITE } else { 0 };
            flags |= if !is_last || is_looped { FLAG_NEXT } else { 0 };
            self.descriptor(table, index, (piece.address, piece.length), flags, next);
        }
        let head = self.used;
        if is_indirect {
            let length = u32::from(count) * 16;
            self.descriptor(TABLE, head, (table, length), FLAG_INDIRECT, 0);
        }
        self.used += needed;
        let slot = AVAIL + 4 + u64::from(self.placed) * 2;
        self.put(slot, &head.to_le_bytes());
        self.placed += 1;
        self.put(AVAIL + 2, &self.placed.to_le_bytes());
        Some(head)
    }

    fn descriptor(&self, table: u64, index: u16, memory: (u64, u32), flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&memory.0.to_le_bytes());
        raw[8..12].copy_from_slice(&memory.1.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &raw);
    }

    /// Flips a bit of what is in use: descriptors, the ring of heads, headers, ranges or tables.
    pub(super) fn flip(&self, choices: &mut Choices<'_>) {
        let (from, length) = match choices.below(4) {
            0 | 1 => (TABLE, u64::from(self.used) * 16),
            2 => (FREE, self.free - FREE),
            _ => (AVAIL, 4 + u64::from(self.placed) * 2),
        };
        let at = from + choices.below(length.max(1));
        let mut byte = [0];
        let read = self.memory.read_slice(&mut byte, GuestAddress(at));
        read.expect("inside of the memory");
        self.put(at, &[byte[0] ^ 1 << choices.below(8)]);
    }
}

fn segment(piece: &Piece) -> Segment {
    Segment {
        address: piece.address,
        length: piece.length,
    }
}

/// Cuts pieces into descriptors as a driver may: anywhere, and some of them empty.
fn cut(choices: &mut Choices<'_>, pieces: &[Piece]) -> Vec<Piece> {
    let mut cut = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while rest.length > 1 && cut.len() < usize::from(ENTRIES) / 4 && choices.is_one_in(3) {
            let length = choices.below(u64::from(rest.length)) as u32;
            cut.push(Piece { length, ..rest });
            rest.address += u64::from(length);
            rest.length -= length;
        }
        cut.push(rest);
    }
    cut
}
