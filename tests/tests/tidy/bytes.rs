//! Offset tables of the documents against encoded bytes.

use crate::{JOURNAL, PROTOCOL, assert_none};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::link::{self, Frame, Hello, Welcome};
use blkback_proto::meta::{self, GroupMeta, LineageEntry, LineageWhy, Role, VolumeMeta};
use blkback_proto::record::{self, Descriptor, DescriptorKind, Header, RecordKind};
use blkback_proto::segment::{self, SegmentHeader};
use blockrep_tests::tidy::documents::{offsets, tables};

const GROUP: GroupUuid = GroupUuid([0x11; 16]);
const VOLUME: VolumeUuid = VolumeUuid([0x22; 16]);
const LINEAGE: LineageId = LineageId([0x33; 16]);

macro_rules! le {
    ($value:expr) => {
        $value.to_le_bytes().to_vec()
    };
}

/// The rows of the `n`th offset table of a document.
fn table(document: &'static str, n: usize) -> Vec<(usize, Vec<&'static str>)> {
    tables(document, "at").swap_remove(n)
}

/// A field of the document that stands one byte further in the code is another format.
#[test]
fn record_tables_are_what_is_written() {
    let header = Header {
        kind: RecordKind::Seal,
        flags: record::FLAG_CHAIN_START,
        prev_crc: 0,
        volume_index: 3,
        epoch: Epoch(0x51),
        record_seq: 1,
        session: SessionId(0x52),
        first_write_seq: 0x53,
        group: GROUP,
        volume: VOLUME,
        lineage: LINEAGE,
        durable: Epoch(0x54),
        committed: Epoch(0x49),
        released: Epoch(0x48),
        cut_unix_ns: 0x55,
        base_epoch: Epoch(0x47),
        epoch_writes: 0x56,
        epoch_bytes: 0x57,
        descriptors: vec![Descriptor {
            kind: DescriptorKind::Data,
            offset_bytes: 0x2000,
            length_bytes: 0x400,
            payload_crc: 0x58,
        }],
    };
    let mut bytes = vec![0; record::HEADER_BYTES];
    let crc = header.encode(&mut bytes);
    record::set_placement(
        &mut bytes,
        Place {
            serial: 0x59,
            offset: 0x5a,
        },
    );
    let mut placed = Vec::new();
    placed.extend(crc.to_le_bytes());
    placed.extend(0x59u64.to_le_bytes());
    placed.extend(0x5au64.to_le_bytes());
    let mut witness = Vec::new();
    witness.extend(0x59u64.to_le_bytes());
    witness.extend(0x5au64.to_le_bytes());
    witness.extend(0x52u64.to_le_bytes());
    witness.extend(0x51u64.to_le_bytes());
    witness.extend(1u64.to_le_bytes());
    witness.extend(2u16.to_le_bytes());
    let fields = [
        ("magic", record::RECORD_MAGIC.to_vec()),
        ("version", le!(record::FORMAT_VERSION)),
        ("kind", le!(2u16)),
        ("flags", le!(1u32)),
        ("total_bytes", le!(8192u32)),
        ("header_crc", le!(crc)),
        ("prev_crc", le!(0u32)),
        ("descriptor_count", le!(1u16)),
        ("volume_index", le!(3u16)),
        ("epoch", le!(0x51u64)),
        ("record_seq", le!(1u64)),
        ("session", le!(0x52u64)),
        ("first_write_seq", le!(0x53u64)),
        ("group", GROUP.0.to_vec()),
        ("volume", VOLUME.0.to_vec()),
        ("lineage", LINEAGE.0.to_vec()),
        ("durable", le!(0x54u64)),
        ("committed", le!(0x49u64)),
        ("released", le!(0x48u64)),
        ("cut_unix_ns", le!(0x55u64)),
        ("base_epoch", le!(0x47u64)),
        ("epoch_writes", le!(0x56u64)),
        ("epoch_bytes", le!(0x57u64)),
        ("descriptors", bytes[256..2304].to_vec()),
        ("placement_serial", le!(0x59u64)),
        ("placement_offset", le!(0x5au64)),
        ("placement_crc", le!(crc32(&placed))),
        ("witness_crc", le!(crc32(&witness))),
        ("witness_session", le!(0x52u64)),
        ("witness_epoch", le!(0x51u64)),
        ("witness_record_seq", le!(1u64)),
        ("witness_kind", le!(2u16)),
    ];
    assert_none(&offsets("JOURNAL.md", &table(JOURNAL, 1), &bytes, &fields));
    let fields = [
        ("offset_bytes", le!(0x2000u64)),
        ("length_bytes", le!(0x400u32)),
        ("payload_offset", le!(4096u32)),
        ("payload_crc", le!(0x58u32)),
        ("kind", le!(1u16)),
        ("flags", le!(0u16)),
    ];
    assert_none(&offsets(
        "JOURNAL.md",
        &table(JOURNAL, 2),
        &bytes[256..288],
        &fields,
    ));
}

/// crc32 as documents mean it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
        }
    }
    !crc
}

/// The same for what stands at the head of a segment.
#[test]
fn segment_table_is_what_is_written() {
    let header = SegmentHeader {
        serial: 0x61,
        segment_bytes: 4 << 20,
        segment_count: 5,
        group: GROUP,
        volume: VOLUME,
        lineage: LINEAGE,
        first_record_seq: 0x62,
        first_prev_crc: 0x63,
    };
    let mut bytes = vec![0; segment::SEGMENT_HEADER_BYTES];
    header.encode(&mut bytes);
    let mut without = bytes.clone();
    without[12..16].fill(0);
    let fields = [
        ("magic", segment::SEGMENT_MAGIC.to_vec()),
        ("version", le!(1u16)),
        ("header_crc", le!(crc32(&without))),
        ("serial", le!(0x61u64)),
        ("segment_bytes", le!(4u64 << 20)),
        ("segment_count", le!(5u32)),
        ("first_prev_crc", le!(0x63u32)),
        ("group", GROUP.0.to_vec()),
        ("volume", VOLUME.0.to_vec()),
        ("lineage", LINEAGE.0.to_vec()),
        ("first_record_seq", le!(0x62u64)),
    ];
    assert_none(&offsets("JOURNAL.md", &table(JOURNAL, 0), &bytes, &fields));
}

fn slot_head(magic: [u8; 8], bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut without = bytes.to_vec();
    without[12..16].fill(0);
    vec![
        ("magic", magic.to_vec()),
        ("version", le!(1u16)),
        ("crc", le!(crc32(&without))),
        ("generation", le!(0x71u64)),
        ("group", GROUP.0.to_vec()),
    ]
}

/// The same for the metadata of a volume.
#[test]
fn volume_slot_tables_are_what_is_written() {
    let meta = VolumeMeta {
        generation: 0x71,
        group: GROUP,
        volume: VOLUME,
        volume_index: 0x72,
        size_bytes: 0x73,
        segment_bytes: 0x74,
        segment_count: 0x75,
        tail: Place {
            serial: 0x76,
            offset: 0x77,
        },
        tail_record_seq: 0x78,
        tail_prev_crc: 0x79,
        tail_session: SessionId(0x7a),
        tail_lineage: LINEAGE,
        applied: Epoch(0x7b),
        committed: Epoch(0x7c),
        durable: Epoch(0x7d),
        inconsistent: true,
        journal_empty: true,
        clean: true,
        own_serial: 0x7e,
        consistent_from: Epoch(0x7f),
        own_synced: 0x80,
        committed_cut_unix_ns: 0x86,
    };
    let mut bytes = vec![0; meta::SLOT_BYTES];
    meta.encode(&mut bytes);
    let head = slot_head(meta::VOLUME_MAGIC, &bytes);
    assert_none(&offsets(
        "JOURNAL.md",
        &table(JOURNAL, 3),
        &bytes[..40],
        &head,
    ));
    let fields = [
        ("volume", VOLUME.0.to_vec()),
        ("volume_index", le!(0x72u16)),
        ("flags", le!(13u16)),
        ("segment_count", le!(0x75u32)),
        ("size_bytes", le!(0x73u64)),
        ("segment_bytes", le!(0x74u64)),
        ("tail_serial", le!(0x76u64)),
        ("tail_offset", le!(0x77u64)),
        ("tail_record_seq", le!(0x78u64)),
        ("tail_prev_crc", le!(0x79u32)),
        ("tail_session", le!(0x7au64)),
        ("tail_lineage", LINEAGE.0.to_vec()),
        ("applied", le!(0x7bu64)),
        ("committed", le!(0x7cu64)),
        ("durable", le!(0x7du64)),
        ("own_serial", le!(0x7eu64)),
        ("consistent_from", le!(0x7fu64)),
        ("own_synced", le!(0x80u64)),
        ("committed_cut_unix_ns", le!(0x86u64)),
    ];
    assert_none(&offsets("JOURNAL.md", &table(JOURNAL, 4), &bytes, &fields));
}

/// The same for the metadata of a group.
#[test]
fn group_slot_tables_are_what_is_written() {
    let meta = GroupMeta {
        generation: 0x71,
        group: GROUP,
        name: "vm".to_owned(),
        volume_count: 0x81,
        role: Role::Backup,
        promoted: Epoch(0x82),
        clean: true,
        all_dirty: true,
        memory: false,
        lineage: vec![LineageEntry {
            id: LINEAGE,
            first_epoch: Epoch(0x83),
            why: LineageWhy::Promoted,
            unix_s: 0x84,
        }],
    };
    let mut bytes = vec![0; meta::SLOT_BYTES];
    meta.encode(&mut bytes);
    let head = slot_head(meta::GROUP_MAGIC, &bytes);
    assert_none(&offsets(
        "JOURNAL.md",
        &table(JOURNAL, 3),
        &bytes[..40],
        &head,
    ));
    let mut name = b"vm".to_vec();
    name.resize(64, 0);
    let fields = [
        ("volume_count", le!(0x81u16)),
        ("role", le!(2u16)),
        ("flags", le!(10u16)),
        ("name_bytes", le!(2u16)),
        ("promoted", le!(0x82u64)),
        ("lineage_count", le!(1u16)),
        ("name", name),
        ("lineage", bytes[128..2688].to_vec()),
    ];
    assert_none(&offsets("JOURNAL.md", &table(JOURNAL, 5), &bytes, &fields));
    let fields = [
        ("id", LINEAGE.0.to_vec()),
        ("first_epoch", le!(0x83u64)),
        ("unix_s", le!(0x84u64)),
        ("why", le!(4u16)),
    ];
    assert_none(&offsets(
        "JOURNAL.md",
        &table(JOURNAL, 6),
        &bytes[128..168],
        &fields,
    ));
}

/// Two programs of different releases meet on the link first.
#[test]
fn link_tables_are_what_is_sent() {
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        session: SessionId(0x91),
        group: GROUP,
        name: "vm".to_owned(),
        volume: VOLUME,
        volume_index: 1,
        volume_count: 2,
        assume_identical: true,
        size_bytes: 0x92,
        epoch: Epoch(0x93),
        lineage: vec![(LINEAGE, Epoch(0x94))],
    };
    let mut bytes = Vec::new();
    Frame::Hello(Box::new(hello)).encode(SessionId(0x91), &mut bytes);
    let mut without = bytes.clone();
    without[16..20].fill(0);
    let words: Vec<u8> = [1u64, 2, 0, 0]
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let fields = [
        ("magic", link::FRAME_MAGIC.to_vec()),
        ("kind", le!(1u16)),
        ("body_bytes", le!(1664u32)),
        ("crc", le!(crc32(&without))),
        ("session", le!(0x91u64)),
        ("words", words),
    ];
    let mut frame = table(PROTOCOL, 0);
    assert_eq!(frame.pop().unwrap().1[..3], ["64", "", "body"]);
    assert_none(&offsets("PROTOCOL.md", &frame, &bytes[..64], &fields));
    let mut name = b"vm".to_vec();
    name.resize(64, 0);
    let fields = [
        ("group", GROUP.0.to_vec()),
        ("volume", VOLUME.0.to_vec()),
        ("volume_index", le!(1u16)),
        ("volume_count", le!(2u16)),
        ("flags", le!(1u32)),
        ("size_bytes", le!(0x92u64)),
        ("epoch", le!(0x93u64)),
        ("name_bytes", le!(2u16)),
        ("lineage_count", le!(1u16)),
        ("name", name),
        ("lineage", bytes[64 + 128..].to_vec()),
    ];
    assert_none(&offsets(
        "PROTOCOL.md",
        &table(PROTOCOL, 1),
        &bytes[64..],
        &fields,
    ));
    let mut entry = LINEAGE.0.to_vec();
    entry.extend(0x94u64.to_le_bytes());
    assert_eq!(bytes[64 + 128..64 + 128 + 24], entry);
    let mut bytes = Vec::new();
    let welcome = Welcome {
        version: 1,
        session: SessionId(0x91),
        volume: VOLUME,
        size_bytes: 0x95,
        committed: Epoch(0x96),
        sync_needed: true,
        credit_bytes: 0x97,
        journal_bytes: 0x98,
        name: "b".to_owned(),
    };
    let mut name = b"b".to_vec();
    name.resize(64, 0);
    Frame::Welcome(welcome).encode(SessionId(0x91), &mut bytes);
    let fields = [
        ("volume", VOLUME.0.to_vec()),
        ("size_bytes", le!(0x95u64)),
        ("committed", le!(0x96u64)),
        ("journal_bytes", le!(0x98u64)),
        ("flags", le!(1u32)),
        ("name_bytes", le!(1u16)),
        ("name", name),
    ];
    assert_none(&offsets(
        "PROTOCOL.md",
        &table(PROTOCOL, 2),
        &bytes[64..],
        &fields,
    ));
}
