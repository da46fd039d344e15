//! Journals built record by record, whole and with planted damage.

use std::fs;
use std::path::Path;

use blkback_proto::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::meta::{
    GroupMeta, LineageEntry, LineageWhy, Role, SLOT_BYTES, VolumeMeta, slot_offset,
};
use blkback_proto::record::{
    Descriptor, DescriptorKind, FLAG_CHAIN_START, HEADER_BYTES, Header, RecordKind, set_placement,
};
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_file_name};
use serde_json::Value;

use super::{DirArgs, JournalArgs, JournalCommand, JournalError, run};

const SEGMENT_BYTES: u64 = 4 << 20;
const SEGMENTS: u32 = 4;
const GROUP: GroupUuid = GroupUuid([1; 16]);
const VOLUME: VolumeUuid = VolumeUuid([2; 16]);
const LINEAGE: LineageId = LineageId([3; 16]);
const SESSION: SessionId = SessionId(0x77);

/// A journal being written, as a backup would.
struct Journal {
    files: Vec<Vec<u8>>,
    head: Place,
    open: bool,
    seq: u64,
    prev_crc: u32,
    sealed: u64,
    counted: (u64, u64),
    durable: u64,
    session: SessionId,
    lineage: LineageId,
    volume: VolumeUuid,
    places: Vec<(Place, u64)>,
}

impl Journal {
    fn new() -> Self {
        let size = usize::try_from(SEGMENT_BYTES).unwrap();
        Self {
            files: vec![vec![0; size]; SEGMENTS as usize],
            head: Place {
                serial: 1,
                offset: SEGMENT_HEADER_BYTES as u64,
            },
            open: false,
            seq: 0,
            prev_crc: 0,
            sealed: 0,
            counted: (0, 0),
            durable: 0,
            session: SESSION,
            lineage: LINEAGE,
            volume: VOLUME,
            places: Vec::new(),
        }
    }

    fn file(&mut self, serial: u64) -> &mut Vec<u8> {
        &mut self.files[usize::try_from(serial % u64::from(SEGMENTS)).unwrap()]
    }

    fn record(&mut self, kind: RecordKind, epoch: u64, payload: &[u8]) {
        let descriptors = if payload.is_empty() {
            Vec::new()
        } else {
            vec![Descriptor {
                kind: DescriptorKind::Data,
                offset_bytes: self.seq * 512,
                length_bytes: u32::try_from(payload.len()).unwrap(),
                payload_crc: crc32fast::hash(payload),
            }]
        };
        if kind != RecordKind::Commit {
            self.counted.0 += descriptors.len() as u64;
            self.counted.1 += payload.len() as u64;
        }
        let seal = kind == RecordKind::Seal;
        let header = Header {
            kind,
            flags: if self.seq == 0 { FLAG_CHAIN_START } else { 0 },
            prev_crc: self.prev_crc,
            volume_index: 0,
            epoch: Epoch(epoch),
            record_seq: self.seq + 1,
            session: self.session,
            first_write_seq: 0,
            group: GROUP,
            volume: self.volume,
            lineage: self.lineage,
            durable: Epoch(self.durable),
            committed: Epoch(self.durable),
            released: Epoch::NONE,
            cut_unix_ns: if seal { epoch * 1000 } else { 0 },
            base_epoch: Epoch(if seal { self.sealed } else { 0 }),
            epoch_writes: if seal { self.counted.0 } else { 0 },
            epoch_bytes: if seal { self.counted.1 } else { 0 },
            descriptors,
        };
        self.store(&header, payload);
        if seal {
            self.sealed = epoch;
            self.counted = (0, 0);
        }
    }

    fn store(&mut self, header: &Header, payload: &[u8]) {
        let total = header.total_bytes();
        if self.open && self.head.offset + total > SEGMENT_BYTES {
            self.next_segment();
        }
        let place = self.head;
        if !self.open {
            let segment = SegmentHeader {
                serial: place.serial,
                segment_bytes: SEGMENT_BYTES,
                segment_count: SEGMENTS,
                group: GROUP,
                volume: self.volume,
                lineage: self.lineage,
                first_record_seq: header.record_seq,
                first_prev_crc: header.prev_crc,
            };
            segment.encode(&mut self.file(place.serial)[..SEGMENT_HEADER_BYTES]);
            self.open = true;
        }
        let mut bytes = vec![0; usize::try_from(total).unwrap()];
        self.prev_crc = header.encode(&mut bytes[..HEADER_BYTES]);
        set_placement(&mut bytes, place);
        bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        let at = usize::try_from(place.offset).unwrap();
        self.file(place.serial)[at..at + bytes.len()].copy_from_slice(&bytes);
        self.places.push((place, total));
        self.seq = header.record_seq;
        self.head.offset += total;
    }

    fn next_segment(&mut self) {
        self.head = Place {
            serial: self.head.serial + 1,
            offset: SEGMENT_HEADER_BYTES as u64,
        };
        self.open = false;
    }

    /// One epoch: a record of writes and a seal with a write.
    fn epoch(&mut self, epoch: u64) {
        self.record(RecordKind::Writes, epoch, &[7; 1024]);
        self.record(RecordKind::Seal, epoch, &[8; 512]);
    }

    /// Three epochs, the first two acknowledged, as the third says.
    fn usual() -> Self {
        let mut journal = Self::new();
        journal.epoch(1);
        journal.record(RecordKind::Commit, 2, &[]);
        journal.epoch(3);
        journal.durable = 3;
        journal.epoch(4);
        journal
    }

    fn flip(&mut self, record: usize, at: u64) {
        let (place, _) = self.places[record];
        let at = usize::try_from(place.offset + at).unwrap();
        self.file(place.serial)[at] ^= 0x40;
    }

    fn save(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for (index, bytes) in (0..).zip(&self.files) {
            fs::write(dir.join(segment_file_name(index)), bytes).unwrap();
        }
    }

    fn verify(&self) -> (Result<(), JournalError>, Value) {
        let dir = tempfile::tempdir().unwrap();
        self.save(dir.path());
        verify(dir.path())
    }
}

fn verify(dir: &Path) -> (Result<(), JournalError>, Value) {
    let command = JournalCommand::Verify(DirArgs {
        dir: dir.to_owned(),
        json: true,
    });
    let mut out = Vec::new();
    let result = run(&JournalArgs { command }, &mut out);
    (result, serde_json::from_slice(&out).unwrap_or(Value::Null))
}

fn text(dir: &Path, verify: bool) -> String {
    let args = DirArgs {
        dir: dir.to_owned(),
        json: false,
    };
    let command = if verify {
        JournalCommand::Verify(args)
    } else {
        JournalCommand::Dump(args)
    };
    let mut out = Vec::new();
    // What verify found stands in its report.
    let _ = run(&JournalArgs { command }, &mut out);
    String::from_utf8(out).unwrap()
}

fn sealed(report: &Value) -> Vec<u64> {
    let chains = report["volumes"][0]["chains"].as_array().unwrap();
    let sealed = chains.iter().flat_map(|c| c["sealed"].as_array().unwrap());
    sealed.map(|e| e["epoch"].as_u64().unwrap()).collect()
}

#[track_caller]
fn assert_clean(journal: &Journal, epochs: &[u64]) -> Value {
    let (result, report) = journal.verify();
    assert!(result.is_ok(), "{:#}", report);
    assert_eq!(sealed(&report), epochs);
    report
}

#[track_caller]
fn assert_bad(journal: &Journal, epochs: &[u64], why: &str) {
    let (result, report) = journal.verify();
    let Err(JournalError::Damaged(text)) = result else {
        panic!("not found: {report:#}")
    };
    assert!(text.contains(why), "{text}");
    assert_eq!(sealed(&report), epochs);
}

fn volume_meta(durable: u64) -> VolumeMeta {
    VolumeMeta {
        generation: 5,
        group: GROUP,
        volume: VOLUME,
        volume_index: 0,
        size_bytes: 1 << 30,
        segment_bytes: SEGMENT_BYTES,
        segment_count: SEGMENTS,
        tail: Place {
            serial: 1,
            offset: SEGMENT_HEADER_BYTES as u64,
        },
        tail_record_seq: 1,
        tail_prev_crc: 0,
        tail_session: SESSION,
        tail_lineage: LINEAGE,
        applied: Epoch::NONE,
        committed: Epoch(durable),
        durable: Epoch(durable),
        inconsistent: false,
        journal_empty: false,
        clean: false,
        own_serial: 0,
        consistent_from: Epoch::NONE,
    }
}

fn save_state(dir: &Path, journal: &Journal, meta: &VolumeMeta) {
    journal.save(&dir.join("journal-0"));
    let mut file = vec![0; 2 * SLOT_BYTES];
    let at = usize::try_from(slot_offset(meta.generation)).unwrap();
    meta.encode(&mut file[at..at + SLOT_BYTES]);
    fs::write(dir.join("volume-0.meta"), &file).unwrap();
    let group = GroupMeta {
        generation: 2,
        group: GROUP,
        name: "vm1".to_owned(),
        volume_count: 1,
        role: Role::Backup,
        promoted: Epoch::NONE,
        clean: false,
        all_dirty: false,
        lineage: vec![LineageEntry {
            id: LINEAGE,
            first_epoch: Epoch(1),
            why: LineageWhy::Created,
            unix_s: 1_700_000_000,
        }],
    };
    let mut file = vec![0; 2 * SLOT_BYTES];
    group.encode(&mut file[..SLOT_BYTES]);
    fs::write(dir.join("group.meta"), &file).unwrap();
}

/// A checker that cries over a good journal is not believed when it matters.
#[test]
fn a_good_journal_is_clean() {
    assert_clean(&Journal::new(), &[]);
    assert_clean(&Journal::usual(), &[1, 3, 4]);
    let mut over_segments = Journal::new();
    for epoch in 1..=12 {
        over_segments.record(RecordKind::Writes, epoch, &vec![5; 600 << 10]);
        over_segments.epoch_seal(epoch);
    }
    assert_clean(&over_segments, &(1..=12).collect::<Vec<_>>());
}

impl Journal {
    fn epoch_seal(&mut self, epoch: u64) {
        self.record(RecordKind::Seal, epoch, &[]);
    }
}

/// Segments are used again: what is left of an earlier lap is no damage, nor is its missing head.
#[test]
fn an_earlier_lap_is_not_mistaken_for_damage() {
    let mut journal = Journal::new();
    for epoch in 1..=40 {
        journal.record(RecordKind::Writes, epoch, &vec![5; 900 << 10]);
        journal.durable = epoch - 1;
        journal.epoch_seal(epoch);
    }
    assert!(
        journal.head.serial > u64::from(SEGMENTS),
        "the ring went round"
    );
    let (result, report) = journal.verify();
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(sealed(&report).last(), Some(&40));
    // A new session in the segment after: the rest of the file is of the lap before.
    journal.next_segment();
    (journal.seq, journal.prev_crc, journal.session) = (0, 0, SessionId(9));
    journal.durable = 0;
    journal.epoch(50);
    let (result, report) = journal.verify();
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(sealed(&report).last(), Some(&50));
}

/// A torn tail after a crash is what recovery drops; calling it damage would stop a failover.
#[test]
fn a_torn_tail_without_a_seal_is_noted_only() {
    for at in [100, 16, HEADER_BYTES as u64 + 3] {
        let mut journal = Journal::usual();
        journal.record(RecordKind::Writes, 5, &[9; 2048]);
        journal.flip(journal.places.len() - 1, at);
        let report = assert_clean(&journal, &[1, 3, 4]);
        assert!(
            report["volumes"][0]["notes"][0]
                .as_str()
                .unwrap()
                .contains("torn"),
            "{at}"
        );
    }
}

/// Rot anywhere in sealed epochs has to be found, wherever in the record it sits.
#[test]
fn rot_in_a_sealed_epoch_is_found() {
    // Head, middle, and the seal itself of the last epoch: header, placement, payload.
    let epochs_before: [&[u64]; 7] = [&[], &[], &[1], &[1], &[1], &[1, 3], &[1, 3]];
    for (record, before) in epochs_before.iter().enumerate() {
        for at in [2, 9, 41, 50, 300, 4040, HEADER_BYTES as u64 + 1] {
            let mut journal = Journal::usual();
            if record == 2 && at >= HEADER_BYTES as u64 {
                continue; // a commit has no payload
            }
            journal.flip(record, at);
            let (result, report) = journal.verify();
            assert!(result.is_err(), "record {record} byte {at}: {report:#}");
            assert_eq!(
                sealed(&report)[..before.len()],
                **before,
                "record {record} byte {at}"
            );
        }
    }
}

/// An epoch that is one record, the only one of its session: nothing else shows that it was there.
#[test]
fn rot_in_the_only_record_is_found() {
    for at in [2, 9, 41, 50, 300] {
        let mut journal = Journal::new();
        journal.record(RecordKind::Seal, 1, &[1; 512]);
        journal.flip(0, at);
        let (result, report) = journal.verify();
        assert!(result.is_err(), "byte {at}: {report:#}");
    }
}

/// The header of a segment hides everything in it from a reader that trusts it.
#[test]
fn rot_in_a_segment_header_is_found() {
    let mut journal = Journal::usual();
    journal.file(1)[40] ^= 1;
    assert_bad(&journal, &[1, 3, 4], "segment header");
}

/// A record that was written, acknowledged and lost by the device leaves a hole.
#[test]
fn a_lost_record_is_found() {
    let mut journal = Journal::usual();
    let (place, total) = journal.places[4];
    let at = usize::try_from(place.offset).unwrap();
    journal.file(1)[at..at + usize::try_from(total).unwrap()].fill(0);
    assert_bad(&journal, &[1], "record 5 is missing");
}

/// The end of the journal was lost; only the watermark tells that it was acknowledged.
#[test]
fn an_acknowledged_epoch_that_is_gone_is_found() {
    let mut journal = Journal::usual();
    journal.durable = 4;
    journal.record(RecordKind::Writes, 5, &[1; 512]);
    for record in [5, 6] {
        let (place, total) = journal.places[record];
        let at = usize::try_from(place.offset).unwrap();
        journal.file(1)[at..at + usize::try_from(total).unwrap()].fill(0);
    }
    assert_bad(&journal, &[1, 3], "is missing");
}

/// A write that landed elsewhere must not count there.
#[test]
fn a_misdirected_record_does_not_count() {
    let mut journal = Journal::usual();
    let (from, total) = journal.places[6];
    let (start, length) = (
        usize::try_from(from.offset).unwrap(),
        usize::try_from(total).unwrap(),
    );
    let bytes = journal.file(1)[start..start + length].to_vec();
    journal.file(2)[SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + length].copy_from_slice(&bytes);
    assert_clean(&journal, &[1, 3, 4]);
    journal.file(1)[start..start + length].fill(0);
    let (_, report) = journal.verify();
    assert_eq!(sealed(&report), [1, 3]);
}

/// An epoch whose seal counts other writes than there are is not that epoch.
#[test]
fn a_seal_that_does_not_fit_its_epoch_is_found() {
    let mut journal = Journal::usual();
    journal.record(RecordKind::Writes, 5, &[1; 512]);
    journal.counted.0 += 1;
    journal.epoch_seal(5);
    assert_bad(&journal, &[1, 3, 4], "its seal says");
    let mut journal = Journal::usual();
    journal.sealed = 3;
    journal.epoch(5);
    assert_bad(&journal, &[1, 3, 4], "not of 4");
}

/// Two volumes in one journal: one of the two has lost everything.
#[test]
fn records_of_another_volume_are_found() {
    let mut journal = Journal::usual();
    journal.next_segment();
    journal.volume = VolumeUuid([9; 16]);
    (journal.seq, journal.prev_crc, journal.session) = (0, 0, SessionId(9));
    (journal.sealed, journal.durable) = (0, 0);
    journal.epoch(1);
    let (result, _) = journal.verify();
    assert!(result.unwrap_err().to_string().contains("several volumes"));
}

/// After a promotion two chains stand side by side: both have to be read.
#[test]
fn own_writes_after_a_promotion_are_a_chain() {
    let mut journal = Journal::usual();
    journal.next_segment();
    journal.lineage = LineageId([0xab; 16]);
    journal.session = SessionId(u64::from_le_bytes([0xab; 8]));
    (journal.seq, journal.prev_crc, journal.durable) = (0, 0, 0);
    journal.epoch(5);
    let report = assert_clean(&journal, &[1, 3, 4, 5]);
    assert_eq!(report["volumes"][0]["chains"][1]["own"], true);
}

/// Metadata knows of epochs the journal has lost without a trace.
#[test]
fn metadata_and_journal_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    save_state(dir.path(), &Journal::usual(), &volume_meta(4));
    let (result, report) = verify(dir.path());
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(report["group"]["meta"]["name"], "vm1");
    assert_eq!(report["volumes"][0]["meta"]["durable"], 4);
    save_state(dir.path(), &Journal::usual(), &volume_meta(6));
    let (result, _) = verify(dir.path());
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("epoch 6 was acknowledged, the last whole one is 4"),
        "{text}"
    );
    let other = VolumeMeta {
        volume: VolumeUuid([8; 16]),
        ..volume_meta(0)
    };
    save_state(dir.path(), &Journal::usual(), &other);
    assert!(
        verify(dir.path())
            .0
            .unwrap_err()
            .to_string()
            .contains("holds records of volume")
    );
}

/// One torn slot is what the other is there for; two are the end of the volume.
#[test]
fn slots_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    save_state(dir.path(), &Journal::usual(), &volume_meta(4));
    let path = dir.path().join("volume-0.meta");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (result, report) = verify(dir.path());
    assert!(result.is_ok(), "{report:#}");
    assert_eq!(report["volumes"][0]["slots"][0]["state"], "damaged");
    bytes[SLOT_BYTES + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(
        verify(dir.path())
            .0
            .unwrap_err()
            .to_string()
            .contains("neither slot")
    );
}

/// What people read has to name place and reason.
#[test]
fn text_names_what_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::usual();
    save_state(dir.path(), &journal, &volume_meta(4));
    let dump = text(dir.path(), false);
    assert!(
        dump.contains("record 7 seal epoch 4 writes 1 bytes 512"),
        "{dump}"
    );
    assert!(dump.contains("lineage 03030303-0303-0303-0303-030303030303 from epoch 1, created"));
    let good = text(dir.path(), true);
    assert!(
        good.contains("sealed epochs: 1, 3-4") && good.ends_with("clean\n"),
        "{good}"
    );
    journal.flip(4, HEADER_BYTES as u64);
    save_state(dir.path(), &journal, &volume_meta(4));
    let bad = text(dir.path(), true);
    let (place, _) = journal.places[4];
    let expected = format!("segment-0001.brj at {}: session", place.offset);
    assert!(
        bad.contains(&expected) && bad.contains("payload 0"),
        "{bad}"
    );
}

/// A mistyped directory is a mistake of whoever typed it, not damage.
#[test]
fn a_wrong_directory_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let (result, _) = verify(dir.path());
    assert!(result.unwrap_err().is_usage());
    let (result, _) = verify(&dir.path().join("nowhere"));
    assert!(result.unwrap_err().is_usage());
    fs::write(dir.path().join(segment_file_name(0)), b"short").unwrap();
    assert!(matches!(
        verify(dir.path()).0,
        Err(JournalError::SegmentSize { .. })
    ));
}
