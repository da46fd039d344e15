//! Journals built record by record, whole and with planted damage.

mod damage;
mod state;

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
            base_epoch: Epoch(self.sealed),
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
        journal: None,
        json: true,
    });
    let mut out = Vec::new();
    let result = run(&JournalArgs { command }, &mut out);
    (result, serde_json::from_slice(&out).unwrap_or(Value::Null))
}

fn text(dir: &Path, verify: bool) -> String {
    let args = DirArgs {
        dir: dir.to_owned(),
        journal: None,
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
        own_synced: 0,
        consistent_from: Epoch::NONE,
        committed_cut_unix_ns: 1_700_000_000_123_000_000,
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
        memory: false,
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

impl Journal {
    fn epoch_seal(&mut self, epoch: u64) {
        self.record(RecordKind::Seal, epoch, &[]);
    }
}
