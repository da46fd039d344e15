//! A byte that is read at another place than it was written, or taken without a check, is a standby with
//! another memory than its guest had.

use super::hello::{RawBlock, RawHello};
use super::kept::{self, EpochHeader, IndexEntry, Kept, SLOT_ZERO, StateHeader};
use super::*;
use crate::ids::{Epoch, LineageId, SessionId};
use std::mem::offset_of;

const DOCUMENT: &str = include_str!("../../MEMORY.md");

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        incarnation: 0x1111,
        generation: 0x2222,
        guest: "vm7".to_owned(),
        machine: "7.2.0 pc-q35-7.2".to_owned(),
        state_kind: StateKind::SaveDevices,
        blocks: vec![
            Block {
                id: "m0".to_owned(),
                size_bytes: 1 << 28,
            },
            Block {
                id: "vga.vram".to_owned(),
                size_bytes: 8192,
            },
        ],
    }
}

fn with_all(mut each: impl FnMut(&str, Frame<'_>)) {
    let (epoch, lineage) = (Epoch(9), LineageId([7; 16]));
    let plain = vec![5; 2 * PAGE_BYTES];
    let blob = |codec, count, bytes| Blob {
        codec,
        count,
        bytes,
    };
    let entry = |page, encoding| Entry {
        page,
        crc: 0x0102_0304,
        encoding,
    };
    each("hello", Frame::Hello(Box::new(hello())));
    let welcome = Welcome {
        version: 1,
        whole: epoch,
        generation: 3,
        incarnation: 4,
    };
    each("welcome", Frame::Welcome(welcome));
    let text = || "no room".to_owned();
    let code = RefuseCode::Room;
    each("refuse", Frame::Refuse { code, text: text() });
    each("copy-start", Frame::CopyStart { generation: 6 });
    let (first, crc) = (8, 0x0a0b_0c0d);
    let raw = blob(Codec::Raw, 2, &plain[..]);
    each(
        "copy",
        Frame::Copy {
            first,
            crc,
            blob: raw,
        },
    );
    let zero = blob(Codec::Zero, 200, &[]);
    each(
        "copy-zero",
        Frame::Copy {
            first,
            crc,
            blob: zero,
        },
    );
    each(
        "begin",
        Frame::Begin(Begin {
            epoch,
            lineage,
            page_count: 500,
            state_bytes: 32768,
            state_kind: StateKind::Migrate,
        }),
    );
    let entries = vec![
        entry(1, Encoding::Zero),
        entry(2, Encoding::Same),
        entry(3, Encoding::Full),
        entry(4, Encoding::Delta),
    ];
    let packed = blob(Codec::Lz4, 2, &[1, 2, 3]);
    each(
        "pages",
        Frame::Pages {
            entries,
            blob: packed,
        },
    );
    let indexes = vec![3, 70];
    each(
        "state",
        Frame::State {
            indexes,
            blob: packed,
        },
    );
    let digest = [6; DIGEST_BYTES];
    each(
        "end",
        Frame::End {
            epoch,
            page_count: 500,
            digest,
        },
    );
    each("end-of-guest", Frame::EndOfGuest { epoch, lineage });
    each("whole", Frame::Whole(epoch));
    each("committed", Frame::Committed(epoch));
    each("ping", Frame::Ping(12));
    each("pong", Frame::Pong(13));
    each("bye", Frame::Bye { text: text() });
    each("hand-over", Frame::HandOver { text: text() });
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(SessionId(77), &mut bytes);
    bytes
}

/// Two builds of the same version must understand each other: these bytes are frozen.
#[test]
fn golden_bytes() {
    with_all(|name, frame| {
        let bytes = encoded(&frame);
        crate::golden::check(&format!("memory-v1-{name}.bin"), &bytes);
        assert_eq!(Frame::decode(&bytes), Ok((frame, SessionId(77))), "{name}");
    });
}

#[test]
fn cut_short_and_flipped_frames_are_found() {
    with_all(|name, frame| {
        let bytes = encoded(&frame);
        for length in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..length]).is_err(), "{name} {length}");
        }
        let step = if bytes.len() > 1000 { 97 } else { 1 };
        for bit in (0..bytes.len() * 8).step_by(step) {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bytes).is_err(), "{name}, bit {bit}");
        }
    });
}

/// Writes the checksum anew: whoever sends on purpose does too.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= FRAME_BYTES {
        let crc = crate::link::frame_crc(&bytes);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// Whatever comes with a good checksum: no panic, and what is taken is what would be sent.
#[test]
fn hostile_frames_are_refused_or_mean_what_they_say() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap() % below
    };
    let (mut taken, mut refused) = (0, 0);
    with_all(|name, frame| {
        let good = encoded(&frame);
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..=random(3) {
                // Mostly where numbers stand.
                let end = if random(4) == 0 {
                    bytes.len()
                } else {
                    bytes.len().min(200)
                };
                let at = random(end);
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, 16][random(6)];
            }
            if random(8) == 0 {
                let length = FRAME_BYTES + random(bytes.len() - FRAME_BYTES + 1);
                bytes.truncate(length);
                let body = u32::try_from(length - FRAME_BYTES).unwrap();
                bytes[12..16].copy_from_slice(&body.to_le_bytes());
            }
            let bytes = sealed(bytes);
            match Frame::decode(&bytes) {
                Ok((frame, session)) => {
                    let mut again = Vec::new();
                    frame.encode(session, &mut again);
                    // Texts alone are changed: control characters in them are read as spaces.
                    let is_text = matches!(
                        frame,
                        Frame::Bye { .. } | Frame::Refuse { .. } | Frame::HandOver { .. }
                    );
                    assert!(again == bytes || is_text, "{name}");
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
    });
    assert!(taken > 100 && refused > 100, "{taken} {refused}");
}

#[test]
fn a_hello_is_bounded() {
    let bad = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        hello.check().unwrap_err()
    };
    assert_eq!(bad(&|h| h.guest.clear()), MemoryError::Field("guest"));
    assert_eq!(bad(&|h| h.guest.push('\n')), MemoryError::Field("guest"));
    assert_eq!(
        bad(&|h| h.machine = "x".repeat(257)),
        MemoryError::Field("machine")
    );
    assert_eq!(
        bad(&|h| h.incarnation = 0),
        MemoryError::Field("incarnation")
    );
    assert_eq!(
        bad(&|h| h.blocks.clear()),
        MemoryError::Field("block_count")
    );
    let size = MemoryError::Field("block size");
    assert_eq!(bad(&|h| h.blocks[0].size_bytes = 100), size);
    assert_eq!(bad(&|h| h.blocks[0].size_bytes = 0), size);
    assert_eq!(bad(&|h| h.blocks[0].size_bytes = RAM_BYTES_MAX), size);
    let many = |h: &mut Hello| h.blocks = vec![h.blocks[1].clone(); 65];
    assert_eq!(bad(&many), MemoryError::Field("block_count"));
    let mut hello = hello();
    assert_eq!(hello.pages(), 65536 + 2);
    (hello.version_min, hello.version_max) = (2, 9);
    assert_eq!(hello.choose_version(), None);
    (hello.version_min, hello.version_max) = (0, 9);
    assert_eq!(hello.choose_version(), Some(1));
}

#[test]
fn a_base_is_of_this_process_and_this_copy() {
    let welcome = Welcome {
        version: 1,
        whole: Epoch(1),
        generation: 3,
        incarnation: 4,
    };
    assert!(welcome.has_base(4, 3));
    assert!(!welcome.has_base(4, 2));
    assert!(!welcome.has_base(5, 3));
    let none = Welcome {
        generation: 0,
        incarnation: 4,
        ..welcome
    };
    assert!(!none.has_base(4, 0));
}

fn epoch_header() -> EpochHeader {
    EpochHeader {
        generation: 0x2222,
        epoch: Epoch(9),
        lineage: LineageId([7; 16]),
        digest: [6; DIGEST_BYTES],
        is_off: true,
        index_count: 12,
        slot_count: 11,
        state_bytes: 100,
        state_kind: StateKind::Migrate,
        index_crc: 0x0102_0304,
        state_crc: 0x0506_0708,
    }
}

fn kept_state() -> Kept {
    Kept {
        sequence: 5,
        generation: 0x2222,
        next: 0x3333,
        committed: Epoch(9),
        applied: Epoch(8),
        lineage: LineageId([7; 16]),
        is_promoted: true,
        is_off: false,
    }
}

fn state_header() -> StateHeader {
    StateHeader {
        generation: 0x2222,
        epoch: Epoch(9),
        kind: StateKind::SaveDevices,
        state_bytes: 100,
        state_crc: 0x0506_0708,
    }
}

/// A later build finds what an earlier one kept.
#[test]
fn golden_bytes_of_what_is_kept() {
    let (epoch, kept, state) = (epoch_header(), kept_state(), state_header());
    crate::golden::check("memory-kept-epoch-v1.bin", &epoch.encode());
    crate::golden::check("memory-kept-state-v1.bin", &kept.encode());
    crate::golden::check("memory-kept-device-state-v1.bin", &state.encode());
    assert_eq!(EpochHeader::decode(&epoch.encode()), Ok(epoch));
    assert_eq!(Kept::decode(&kept.encode()), Ok(kept));
    assert_eq!(StateHeader::decode(&state.encode()), Ok(state));
    assert_eq!(epoch.file_bytes(), 4096 + 11 * 4096 + 12 * 12 + 100);
    let entry = IndexEntry {
        page: 1,
        slot: SLOT_ZERO,
        crc: 3,
    };
    assert_eq!(IndexEntry::decode(&entry.encode()), entry);
}

#[test]
fn damage_of_what_is_kept_is_found() {
    let all = [
        epoch_header().encode(),
        kept_state().encode(),
        state_header().encode(),
    ];
    let is_read = |which: usize, bytes: &[u8]| match which {
        0 => EpochHeader::decode(bytes).is_ok(),
        1 => Kept::decode(bytes).is_ok(),
        _ => StateHeader::decode(bytes).is_ok(),
    };
    for (which, good) in all.iter().enumerate() {
        assert!(is_read(which, good));
        for length in (0..good.len()).step_by(7) {
            assert!(!is_read(which, &good[..length]));
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_read(which, &bytes), "{which}, bit {bit}");
        }
    }
}

fn cells(line: &str) -> Option<Vec<&str>> {
    let inside = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(
        inside
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect(),
    )
}

/// Rows of the tables whose first header cell is `first`.
fn tables(first: &str) -> Vec<Vec<Vec<&'static str>>> {
    let mut tables = Vec::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        if cells(line).is_some_and(|cells| cells[0] == first) {
            tables.push(lines.by_ref().skip(1).map_while(cells).collect());
        }
    }
    tables
}

/// Whoever writes a second reader believes the numbers of the document.
#[test]
fn constants_of_the_document_are_those_of_the_code() {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = [
        ("FRAME_MAGIC", text(&FRAME_MAGIC)),
        ("FRAME_BYTES", FRAME_BYTES.to_string()),
        ("BODY_BYTES_MAX", BODY_BYTES_MAX.to_string()),
        ("TEXT_BYTES_MAX", crate::link::TEXT_BYTES_MAX.to_string()),
        ("VERSION_MIN", VERSION_MIN.to_string()),
        ("VERSION_MAX", VERSION_MAX.to_string()),
        ("PAGE_BYTES", PAGE_BYTES.to_string()),
        ("BATCH_PAGES_MAX", BATCH_PAGES_MAX.to_string()),
        ("ENTRY_BYTES", ENTRY_BYTES.to_string()),
        ("BLOCKS_MAX", BLOCKS_MAX.to_string()),
        ("RAM_BYTES_MAX", RAM_BYTES_MAX.to_string()),
        ("STATE_BYTES_MAX", STATE_BYTES_MAX.to_string()),
        ("NAME_BYTES_MAX", NAME_BYTES_MAX.to_string()),
        ("MACHINE_BYTES_MAX", MACHINE_BYTES_MAX.to_string()),
        ("DIGEST_BYTES", DIGEST_BYTES.to_string()),
        ("EPOCH_MAGIC", text(&kept::EPOCH_MAGIC)),
        ("KEPT_MAGIC", text(&kept::KEPT_MAGIC)),
        ("STATE_MAGIC", text(&kept::STATE_MAGIC)),
        ("FORMAT_VERSION", kept::FORMAT_VERSION.to_string()),
        ("EPOCH_HEADER_BYTES", kept::EPOCH_HEADER_BYTES.to_string()),
        ("INDEX_ENTRY_BYTES", kept::INDEX_ENTRY_BYTES.to_string()),
        ("SLOT_ZERO", SLOT_ZERO.to_string()),
        ("KEPT_BYTES", kept::KEPT_BYTES.to_string()),
        ("STATE_HEADER_BYTES", kept::STATE_HEADER_BYTES.to_string()),
    ];
    let rows: Vec<_> = tables("constant").into_iter().flatten().collect();
    assert_eq!(rows.len(), code.len());
    for (name, value) in &code {
        let row = rows.iter().find(|row| row[0] == *name);
        let row = row.unwrap_or_else(|| panic!("{name} is not in the document"));
        assert_eq!(row[1].trim_matches('"'), value, "{name}");
    }
}

macro_rules! fields {
    ($raw:ty: $($field:ident)*) => {
        vec![$((stringify!($field), offset_of!($raw, $field))),*]
    };
}

/// The tables have no gap, end at the size, and every field of the code stands where they say.
#[test]
fn offsets_of_the_document_are_those_of_the_code() {
    use super::frame::RawEntry;
    use super::kept::{RawEpoch, RawKept, RawState};
    use crate::link::RawFrame;
    let code = [
        (
            FRAME_BYTES,
            fields!(RawFrame: magic kind reserved body_bytes crc session words),
        ),
        (
            size_of::<RawHello>(),
            fields!(RawHello: incarnation generation guest_bytes machine_bytes state_kind
                block_count guest machine blocks),
        ),
        (
            size_of::<RawBlock>(),
            fields!(RawBlock: size_bytes id_bytes id),
        ),
        (ENTRY_BYTES, fields!(RawEntry: page crc encoding)),
        (
            kept::EPOCH_HEADER_BYTES,
            fields!(RawEpoch: magic version flags crc generation epoch lineage digest index_count
                slot_count state_bytes state_kind index_crc state_crc),
        ),
        (
            kept::INDEX_ENTRY_BYTES,
            vec![("page", 0), ("slot", 4), ("crc", 8)],
        ),
        (
            kept::KEPT_BYTES,
            fields!(RawKept: magic version flags crc sequence generation next committed applied
                lineage),
        ),
        (
            kept::STATE_HEADER_BYTES,
            fields!(RawState: magic version kind crc generation epoch state_bytes state_crc),
        ),
    ];
    let tables = tables("at");
    assert_eq!(tables.len(), code.len());
    for (table, (size, fields)) in tables.iter().zip(code) {
        let mut next = 0;
        for row in table.iter().filter(|row| !row[1].is_empty()) {
            let (at, bytes): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
            assert_eq!(at, next, "{row:?}");
            next = at + bytes;
        }
        assert_eq!(next, size, "{:?}", table[0]);
        for (name, offset) in fields {
            let row = table.iter().find(|row| row[2] == name);
            let row = row.unwrap_or_else(|| panic!("{name} is not in the document"));
            assert_eq!(row[0], offset.to_string(), "{name}");
        }
    }
}
