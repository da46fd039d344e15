//! Constants, codes and the recovery table of the documents against those of the code.

use crate::{JOURNAL, MEMORY, PROTOCOL, assert_none};
use blkback_proto::ids::{self, Epoch, SessionId};
use blkback_proto::link::{self, Frame};
use blkback_proto::memory::{self, kept};
use blkback_proto::{meta, record, segment};
use blockrep::journal::recovery::{Decision, Facts, TABLE, decide};
use blockrep_tests::tidy::documents::{constants, tables};

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn record_constants() -> Vec<(&'static str, String)> {
    vec![
        ("UNIT_BYTES", ids::UNIT_BYTES.to_string()),
        ("RECORD_MAGIC", text_of(&record::RECORD_MAGIC)),
        ("SEGMENT_MAGIC", text_of(&segment::SEGMENT_MAGIC)),
        ("VOLUME_MAGIC", text_of(&meta::VOLUME_MAGIC)),
        ("GROUP_MAGIC", text_of(&meta::GROUP_MAGIC)),
        ("FORMAT_VERSION", record::FORMAT_VERSION.to_string()),
        ("HEADER_BYTES", record::HEADER_BYTES.to_string()),
        ("PREFIX_BYTES", record::PREFIX_BYTES.to_string()),
        ("PLACEMENT_OFFSET", record::PLACEMENT_OFFSET.to_string()),
        ("HEADER_CRC_OFFSET", record::HEADER_CRC_OFFSET.to_string()),
        ("DESCRIPTORS_MAX", record::DESCRIPTORS_MAX.to_string()),
        ("PAYLOAD_BYTES_MAX", record::PAYLOAD_BYTES_MAX.to_string()),
        ("RECORD_BYTES_MAX", record::RECORD_BYTES_MAX.to_string()),
        ("RANGE_BYTES_MAX", record::RANGE_BYTES_MAX.to_string()),
        (
            "DESCRIPTOR_CHARGE_BYTES",
            record::DESCRIPTOR_CHARGE_BYTES.to_string(),
        ),
        ("FLAG_CHAIN_START", record::FLAG_CHAIN_START.to_string()),
        ("FLAG_DIRECT", record::FLAG_DIRECT.to_string()),
        (
            "SEGMENT_HEADER_BYTES",
            segment::SEGMENT_HEADER_BYTES.to_string(),
        ),
        ("SEGMENT_BYTES_MIN", segment::SEGMENT_BYTES_MIN.to_string()),
        ("SEGMENT_BYTES_MAX", segment::SEGMENT_BYTES_MAX.to_string()),
        ("SEGMENT_COUNT_MIN", segment::SEGMENT_COUNT_MIN.to_string()),
        ("SEGMENT_COUNT_MAX", segment::SEGMENT_COUNT_MAX.to_string()),
        ("SLOT_BYTES", meta::SLOT_BYTES.to_string()),
        ("LINEAGE_MAX", meta::LINEAGE_MAX.to_string()),
        ("NAME_BYTES_MAX", meta::NAME_BYTES_MAX.to_string()),
        ("VOLUMES_MAX", meta::VOLUMES_MAX.to_string()),
    ]
}

fn memory_constants() -> Vec<(&'static str, String)> {
    vec![
        ("FRAME_BYTES", memory::FRAME_BYTES.to_string()),
        ("BODY_BYTES_MAX", memory::BODY_BYTES_MAX.to_string()),
        ("VERSION_MIN", memory::VERSION_MIN.to_string()),
        ("VERSION_MAX", memory::VERSION_MAX.to_string()),
        ("PAGE_BYTES", memory::PAGE_BYTES.to_string()),
        ("BATCH_PAGES_MAX", memory::BATCH_PAGES_MAX.to_string()),
        ("ENTRY_BYTES", memory::ENTRY_BYTES.to_string()),
        ("BLOCKS_MAX", memory::BLOCKS_MAX.to_string()),
        ("RAM_BYTES_MAX", memory::RAM_BYTES_MAX.to_string()),
        ("STATE_BYTES_MAX", memory::STATE_BYTES_MAX.to_string()),
        ("NAME_BYTES_MAX", memory::NAME_BYTES_MAX.to_string()),
        ("MACHINE_BYTES_MAX", memory::MACHINE_BYTES_MAX.to_string()),
        ("DIGEST_BYTES", memory::DIGEST_BYTES.to_string()),
        ("FORMAT_VERSION", kept::FORMAT_VERSION.to_string()),
        ("EPOCH_HEADER_BYTES", kept::EPOCH_HEADER_BYTES.to_string()),
        ("INDEX_ENTRY_BYTES", kept::INDEX_ENTRY_BYTES.to_string()),
        ("SLOT_ZERO", kept::SLOT_ZERO.to_string()),
        ("KEPT_BYTES", kept::KEPT_BYTES.to_string()),
        ("STATE_HEADER_BYTES", kept::STATE_HEADER_BYTES.to_string()),
        ("FRAME_MAGIC", text_of(&memory::FRAME_MAGIC)),
        ("TEXT_BYTES_MAX", link::TEXT_BYTES_MAX.to_string()),
        ("EPOCH_MAGIC", text_of(&kept::EPOCH_MAGIC)),
        ("KEPT_MAGIC", text_of(&kept::KEPT_MAGIC)),
        ("STATE_MAGIC", text_of(&kept::STATE_MAGIC)),
    ]
}

/// Whoever writes a second reader believes the numbers of the document.
#[test]
fn constants_of_the_documents_are_those_of_the_code() {
    assert_none(&constants("JOURNAL.md", JOURNAL, &record_constants()));
    let of_link = [
        ("FRAME_MAGIC", text_of(&link::FRAME_MAGIC)),
        ("RECORD_MAGIC", text_of(&record::RECORD_MAGIC)),
        ("PREFIX_BYTES", record::PREFIX_BYTES.to_string()),
        ("FRAME_BYTES", link::FRAME_BYTES.to_string()),
        ("BODY_BYTES_MAX", link::BODY_BYTES_MAX.to_string()),
        ("TEXT_BYTES_MAX", link::TEXT_BYTES_MAX.to_string()),
        ("RECORD_BYTES_MAX", record::RECORD_BYTES_MAX.to_string()),
        ("LINK_VERSION_MIN", link::LINK_VERSION_MIN.to_string()),
        ("LINK_VERSION_MAX", link::LINK_VERSION_MAX.to_string()),
        ("SYNC_CHUNK_BYTES", link::SYNC_CHUNK_BYTES.to_string()),
        (
            "DESCRIPTOR_CHARGE_BYTES",
            record::DESCRIPTOR_CHARGE_BYTES.to_string(),
        ),
    ];
    assert_none(&constants("PROTOCOL.md", PROTOCOL, &of_link));
    assert_none(&constants("MEMORY.md", MEMORY, &memory_constants()));
}

/// Recovery is decided by the table people read, for every combination of facts.
#[test]
fn the_recovery_table_of_the_document_is_that_of_the_code() {
    let rows = &tables(JOURNAL, "row")[0];
    assert_eq!(rows.len(), TABLE.len());
    for bits in 0..32u32 {
        let bit = |n: u32| bits & (1 << n) != 0;
        let facts = Facts {
            inconsistent: bit(0),
            below_watermark: bit(1),
            torn: bit(2),
            seal_behind: bit(3),
            own: bit(4),
        };
        let matches = |row: &&(usize, Vec<&str>)| {
            (0..5usize).all(|n| match row.1[n + 1] {
                "yes" => bit(u32::try_from(n).unwrap()),
                "no" => !bit(u32::try_from(n).unwrap()),
                other => other == "any",
            })
        };
        let found: Vec<_> = rows.iter().filter(matches).collect();
        let row = decide(facts);
        let words: Vec<(&str, String)> = found
            .iter()
            .map(|(_, cells)| (cells[0], cells[6].to_owned()))
            .collect();
        assert_eq!(
            words,
            [(row.name, format!("{:?}", row.decision))],
            "{facts:?}"
        );
    }
    let decisions = &tables(JOURNAL, "decision")[0];
    for decision in [
        Decision::Whole,
        Decision::DropTail,
        Decision::Suspect,
        Decision::Inconsistent,
        Decision::Refuse,
        Decision::KeepPrefix,
    ] {
        assert!(
            decisions
                .iter()
                .any(|(_, cells)| cells[0] == format!("{decision:?}"))
        );
    }
}

/// Codes of frames and refusals, by name.
#[test]
fn codes_of_the_document_are_those_of_the_code() {
    let refusals = &tables(PROTOCOL, "code")[0];
    for code in 1..=10u64 {
        let row = refusals
            .iter()
            .find(|(_, cells)| cells[0] == code.to_string());
        let known = link::RefuseCode::from_code(code);
        let words = row.map(|(_, cells)| (cells[1].to_owned(), cells[3] == "yes"));
        assert_eq!(
            words,
            known.map(|k| (format!("{k:?}"), k.is_final())),
            "code {code}"
        );
    }
    let kinds = &tables(PROTOCOL, "kind")[0];
    let frames = [
        ("WELCOME", None),
        (
            "ACK",
            Some(Frame::Ack {
                durable: Epoch(1),
                committed: Epoch(2),
                applied: Epoch(3),
                credit_bytes: 4,
            }),
        ),
        ("PING", Some(Frame::Ping(1))),
        ("PONG", Some(Frame::Pong(1))),
        ("SYNC_START", Some(Frame::SyncStart)),
        (
            "SYNC_CHECK",
            Some(Frame::SyncCheck {
                index: 1,
                hash: [1; 32],
            }),
        ),
        (
            "SYNC_RESULT",
            Some(Frame::SyncResult {
                index: 1,
                differs: true,
            }),
        ),
        ("SYNC_END", Some(Frame::SyncEnd { epoch: Epoch(1) })),
        (
            "EMPTY_SEAL",
            Some(Frame::EmptySeal {
                epoch: Epoch(1),
                committed: Epoch(2),
                released: Epoch(3),
                cut_unix_ns: 4,
            }),
        ),
        (
            "BYE",
            Some(Frame::Bye {
                text: "x".to_owned(),
            }),
        ),
        (
            "REFUSE",
            Some(Frame::Refuse {
                code: link::RefuseCode::Busy,
                text: "x".to_owned(),
            }),
        ),
    ];
    for (name, frame) in frames {
        let (_, cells) = kinds
            .iter()
            .find(|(_, cells)| cells[1] == name)
            .expect(name);
        let Some(frame) = frame else { continue };
        let mut bytes = Vec::new();
        frame.encode(SessionId(1), &mut bytes);
        assert_eq!(
            cells[0],
            u16::from_le_bytes([bytes[8], bytes[9]]).to_string(),
            "{name}"
        );
    }
}
