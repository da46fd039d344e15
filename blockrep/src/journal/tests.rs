//! Journals laid out by hand, damaged by hand: what a scan says of them and what a start makes of it.

use super::recovery::Decision;
use super::ring::Geometry;
use super::scan::{End, Expect, ReadAt, Scan, scan};
use super::start::{Refusal, VolumeShape, VolumeStart, blank_group, blank_volume, recover_volume};
use crate::engine::backup::own_session;
use crate::io::{IoError, Target};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role, SLOT_BYTES, VolumeMeta};
use blkback_proto::record::{
    Descriptor, DescriptorKind, FLAG_CHAIN_START, HEADER_BYTES, Header, RecordKind, set_placement,
};
use blkback_proto::segment::{SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES, SegmentHeader};

const GEOMETRY: Geometry = Geometry {
    segment_bytes: SEGMENT_BYTES_MIN,
    segment_count: 4,
};
const SHAPE: VolumeShape = VolumeShape {
    size_bytes: 1 << 20,
    geometry: GEOMETRY,
};
const GROUP: GroupUuid = GroupUuid([1; 16]);
const VOLUME: VolumeUuid = VolumeUuid([2; 16]);
const FOLLOWED: LineageId = LineageId([3; 16]);
const OWN: LineageId = LineageId([4; 16]);
const SESSION: SessionId = SessionId(77);
const PAYLOAD_BYTES: usize = 4096;

/// Files of a volume in memory, and the end of the chain that is being written.
struct Store {
    segments: Vec<Vec<u8>>,
    volume_meta: Vec<u8>,
    session: SessionId,
    lineage: LineageId,
    next: Place,
    record_seq: u64,
    prev_crc: u32,
    sealed: Epoch,
    durable: Epoch,
}

impl ReadAt for Store {
    fn read_at(&self, target: Target, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        let file = match target {
            Target::Segment(index) => &self.segments[index as usize],
            Target::VolumeMeta => &self.volume_meta,
            other => panic!("{other} is not read by a start of a volume"),
        };
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&file[at..at + buf.len()]);
        Ok(())
    }
}

impl Store {
    /// A journal whose chain begins in segment 1.
    fn new() -> Self {
        let bytes = usize::try_from(GEOMETRY.segment_bytes).unwrap();
        let mut store = Self {
            segments: vec![vec![0; bytes]; GEOMETRY.segment_count as usize],
            volume_meta: vec![0; 2 * SLOT_BYTES],
            session: SESSION,
            lineage: FOLLOWED,
            next: Place::default(),
            record_seq: 0,
            prev_crc: 0,
            sealed: Epoch::NONE,
            durable: Epoch::NONE,
        };
        store.begin_chain(SESSION, FOLLOWED);
        store
    }

    fn expect(&self) -> Expect {
        Expect {
            group: GROUP,
            volume: VOLUME,
            session: self.session,
            lineage: self.lineage,
            place: self.next,
            record_seq: self.record_seq + 1,
            prev_crc: self.prev_crc,
        }
    }

    /// Another session: its records begin with the next segment.
    fn begin_chain(&mut self, session: SessionId, lineage: LineageId) {
        (self.session, self.lineage) = (session, lineage);
        (self.record_seq, self.prev_crc) = (0, 0);
        self.next_segment();
    }

    fn next_segment(&mut self) {
        let serial = self.next.serial + 1;
        let header = SegmentHeader {
            serial,
            segment_bytes: GEOMETRY.segment_bytes,
            segment_count: GEOMETRY.segment_count,
            group: GROUP,
            volume: VOLUME,
            lineage: self.lineage,
            first_record_seq: self.record_seq + 1,
            first_prev_crc: self.prev_crc,
        };
        let offset = SEGMENT_HEADER_BYTES as u64;
        self.next = Place { serial, offset };
        header.encode(&mut self.bytes(Place { serial, offset: 0 })[..SEGMENT_HEADER_BYTES]);
    }

    fn bytes(&mut self, place: Place) -> &mut [u8] {
        let file = GEOMETRY.file_of(place.serial) as usize;
        &mut self.segments[file][usize::try_from(place.offset).unwrap()..]
    }

    /// Appends a record with one write; gives where it is.
    fn record(&mut self, kind: RecordKind, epoch: u64) -> Place {
        let seal = kind == RecordKind::Seal;
        let payload = [u8::try_from(epoch).unwrap(); PAYLOAD_BYTES];
        let header = Header {
            kind,
            flags: if self.record_seq == 0 {
                FLAG_CHAIN_START
            } else {
                0
            },
            prev_crc: self.prev_crc,
            volume_index: 0,
            epoch: Epoch(epoch),
            record_seq: self.record_seq + 1,
            session: self.session,
            first_write_seq: 1,
            group: GROUP,
            volume: VOLUME,
            lineage: self.lineage,
            durable: self.durable,
            committed: self.durable,
            released: self.durable,
            cut_unix_ns: u64::from(seal),
            base_epoch: self.sealed,
            epoch_writes: u64::from(seal),
            epoch_bytes: u64::from(seal) * PAYLOAD_BYTES as u64,
            descriptors: vec![Descriptor {
                kind: DescriptorKind::Data,
                offset_bytes: 0,
                length_bytes: u32::try_from(PAYLOAD_BYTES).unwrap(),
                payload_crc: crc32fast::hash(&payload),
            }],
        };
        let place = self.next;
        let page = self.bytes(place);
        let crc = header.encode(&mut page[..HEADER_BYTES]);
        set_placement(page, place);
        page[HEADER_BYTES..HEADER_BYTES + PAYLOAD_BYTES].copy_from_slice(&payload);
        self.next.offset += header.total_bytes();
        self.record_seq += 1;
        self.prev_crc = crc;
        if seal {
            self.sealed = Epoch(epoch);
        }
        place
    }

    fn scan(&self, from: Expect) -> Scan {
        scan(self, GEOMETRY, from).unwrap()
    }

    fn put_meta(&mut self, expect: Expect, change: impl FnOnce(&mut VolumeMeta)) {
        let mut meta = VolumeMeta {
            group: GROUP,
            volume: VOLUME,
            tail: expect.place,
            tail_record_seq: expect.record_seq,
            tail_prev_crc: expect.prev_crc,
            tail_session: expect.session,
            tail_lineage: expect.lineage,
            journal_empty: false,
            ..blank_volume(SHAPE)
        };
        change(&mut meta);
        meta.encode(&mut self.volume_meta[..SLOT_BYTES]);
    }

    fn start(&self, group: &GroupMeta) -> Result<VolumeStart, Refusal> {
        recover_volume(self, Some(group), SHAPE)
    }
}

fn group(role: Role, promoted: u64) -> GroupMeta {
    let mut meta = blank_group(1, role);
    meta.group = GROUP;
    meta.promoted = Epoch(promoted);
    let mut entry = |id, first, why| {
        meta.lineage.push(LineageEntry {
            id,
            first_epoch: Epoch(first),
            unix_s: 1,
            why,
        });
    };
    entry(FOLLOWED, 1, LineageWhy::Created);
    if role == Role::Primary {
        entry(OWN, promoted + 1, LineageWhy::Promoted);
    }
    meta
}

/// Writes of `epoch` and its seal; gives the place of the seal.
fn whole(store: &mut Store, epoch: u64) -> Place {
    store.record(RecordKind::Writes, epoch);
    store.record(RecordKind::Seal, epoch)
}

const FIRST_SECTOR: std::ops::Range<usize> = 0..512;
const LAST_SECTOR: std::ops::Range<usize> = 3584..4096;

/// The last record's first sector rotted, and an acknowledged epoch was gone as if it had never been.
#[test]
fn a_damaged_sector_of_the_last_header_leaves_a_trace() {
    for sector in [FIRST_SECTOR, LAST_SECTOR] {
        for kind in [RecordKind::Seal, RecordKind::Writes] {
            let mut store = Store::new();
            let from = store.expect();
            whole(&mut store, 1);
            let last = store.record(kind, 2);
            store.bytes(last)[sector.clone()].fill(0x5a);
            let found = store.scan(from);
            assert_eq!(found.end, End::Torn, "{kind:?} {sector:?}");
            let seal = if kind == RecordKind::Seal {
                Epoch(2)
            } else {
                Epoch::NONE
            };
            assert_eq!(found.seal_behind, seal, "{kind:?} {sector:?}");
            store.put_meta(from, |_| ());
            let start = store.start(&group(Role::Backup, 0)).unwrap();
            assert_eq!(start.facts.suspect, kind == RecordKind::Seal);
        }
    }
}

/// The witness of an older lap of the ring is not a trace of this one.
#[test]
fn an_old_lap_is_no_trace() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    let old = store.next;
    store.record(RecordKind::Seal, 2);
    // As if that had been written four segments ago.
    let page = store.bytes(old);
    let lap = Place {
        serial: old.serial + 4,
        ..old
    };
    set_placement(page, lap);
    page[FIRST_SECTOR].fill(0);
    assert_eq!(store.scan(from).end, End::Clean);
}

/// A seal between two epochs was lost, and only writes of the next one stood behind it: the
/// acknowledged epoch counted as a torn tail.
#[test]
fn a_lost_seal_is_named_by_what_stands_behind_it() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    let seal = whole(&mut store, 2);
    store.record(RecordKind::Writes, 3);
    store.bytes(seal)[..HEADER_BYTES].fill(0);
    let found = store.scan(from);
    assert_eq!((found.end, found.seal_behind), (End::Torn, Epoch(2)));
    store.put_meta(from, |_| ());
    let start = store.start(&group(Role::Backup, 0)).unwrap();
    assert_eq!(start.recovered.decision, Decision::Suspect);
    assert_eq!(start.facts.sealed, Epoch(1));
}

/// A segment whose header was zeroed looked like one that was never used.
#[test]
fn a_zeroed_segment_header_hides_nothing() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    store.next_segment();
    let serial = store.next.serial;
    whole(&mut store, 2);
    store.bytes(Place { serial, offset: 0 })[..SEGMENT_HEADER_BYTES].fill(0);
    let found = store.scan(from);
    assert_eq!((found.end, found.seal_behind), (End::Torn, Epoch(2)));
    assert_eq!(found.found_behind, 2);
}

/// Metadata from before the last session: the records of that session were overwritten as if free.
#[test]
fn metadata_older_than_the_journal_is_refused() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    store.put_meta(from, |_| ());
    assert!(store.start(&group(Role::Backup, 0)).is_ok());
    store.begin_chain(SessionId(78), FOLLOWED);
    let place = store.record(RecordKind::Writes, 2);
    let refused = store.start(&group(Role::Backup, 0)).unwrap_err();
    let session = SessionId(78);
    assert_eq!(refused, Refusal::Outdated { session, place });
}

/// The own chain behind the followed one is expected after a promotion, and refused before one.
#[test]
fn own_segments_are_newer_unless_the_group_is_promoted() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    store.begin_chain(own_session(OWN), OWN);
    let own_serial = store.next.serial;
    whole(&mut store, 2);
    store.put_meta(from, |meta| meta.own_serial = own_serial);
    let start = store.start(&group(Role::Primary, 1)).unwrap();
    assert_eq!(start.facts.sealed, Epoch(2));
    assert!(store.start(&group(Role::Backup, 0)).is_err());
}

/// The image depends on own writes, sealed or not, that rotted afterwards: a shorter prefix is no
/// state this side was ever in.
#[test]
fn a_damaged_own_record_that_metadata_names_is_refused() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    store.begin_chain(own_session(OWN), OWN);
    let own_serial = store.next.serial;
    store.record(RecordKind::Writes, 2);
    let damaged = store.record(RecordKind::Writes, 2);
    store.put_meta(from, |meta| {
        meta.own_serial = own_serial;
        meta.own_synced = 2;
    });
    let start = store.start(&group(Role::Primary, 1)).unwrap();
    assert_eq!(start.recovered.meta.own_synced, 2);
    store.bytes(damaged)[HEADER_BYTES] ^= 1;
    let refused = store.start(&group(Role::Primary, 1)).unwrap_err();
    let Refusal::OwnDamaged {
        row, whole, synced, ..
    } = refused
    else {
        panic!("{refused}")
    };
    assert_eq!((row, whole, synced), ("R6-own-damaged", 1, 2));
    // Not named: a torn end like any other.
    store.put_meta(from, |meta| {
        meta.own_serial = own_serial;
        meta.own_synced = 1;
    });
    let start = store.start(&group(Role::Primary, 1)).unwrap();
    assert_eq!(start.recovered.meta.own_synced, 1);
}

/// A flush was answered on an own epoch that rotted afterwards: nobody was told.
#[test]
fn a_damaged_own_epoch_with_its_seal_is_told() {
    let mut store = Store::new();
    let from = store.expect();
    whole(&mut store, 1);
    store.begin_chain(own_session(OWN), OWN);
    let own_serial = store.next.serial;
    whole(&mut store, 3);
    let damaged = store.record(RecordKind::Writes, 4);
    store.put_meta(from, |meta| meta.own_serial = own_serial);
    // Epoch 2, at which it was promoted, was empty: the first own record names it all the same.
    let rows = |store: &Store| {
        let start = store.start(&group(Role::Primary, 2)).unwrap();
        start.rows.iter().map(|row| row.name).collect::<Vec<_>>()
    };
    store.bytes(damaged)[HEADER_BYTES] ^= 1;
    assert_eq!(rows(&store), ["R3-clean", "R7-own"]);
    store.record(RecordKind::Seal, 4);
    assert_eq!(rows(&store), ["R3-clean", "R9-own-sealed-but-damaged"]);
    // A later record says that the flush was answered.
    store.durable = Epoch(4);
    store.record(RecordKind::Writes, 5);
    let refused = store.start(&group(Role::Primary, 2)).unwrap_err();
    assert!(matches!(refused, Refusal::Damaged { .. }), "{refused}");
}
