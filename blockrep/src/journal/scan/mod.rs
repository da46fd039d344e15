//! Reads a journal back, from the tail on, as far as the chain of records holds.
//!
//! Nothing is decided here: a scan gives facts, [`super::recovery`] decides. What stands behind
//! the first record that does not fit is looked through as well, for proof that more than a torn
//! tail is missing.

mod behind;

use super::ring::Geometry;
use crate::io::{IoError, Target};
use crate::overlay::{Extent, Source};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::record::{
    DescriptorKind, FLAG_CHAIN_START, HEADER_BYTES, Header, RecordError, RecordKind, placement,
};
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};

/// Reads files of a volume, for recovery.
pub trait ReadAt {
    /// Fills `buf` from the byte offset.
    ///
    /// # Errors
    /// The errno of the storage.
    fn read_at(&self, target: Target, offset: u64, buf: &mut [u8]) -> Result<(), IoError>;
}

/// Where a chain is expected to go on, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// Group.
    pub group: GroupUuid,
    /// Volume.
    pub volume: VolumeUuid,
    /// Session of the chain.
    pub session: SessionId,
    /// Lineage of the chain.
    pub lineage: LineageId,
    /// Place of the next record, unless it did not fit into that segment.
    pub place: Place,
    /// Its number.
    pub record_seq: u64,
    /// Checksum of the record before it.
    pub prev_crc: u32,
}

/// One epoch as it stands in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScannedEpoch {
    /// Which one.
    pub epoch: Epoch,
    /// Its seal is there.
    pub sealed: bool,
    /// What it wrote, in stamp order.
    pub extents: Vec<Extent>,
    /// When it was cut; zero unless sealed.
    pub cut_unix_ns: u64,
    /// What is expected behind its last record.
    pub end: Option<Expect>,
}

/// Why a scan ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The next record was never begun.
    Clean,
    /// The next record is there but damaged, or only traces of it are.
    Torn,
}

/// Facts of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Epochs in order; only the last may lack its seal.
    pub epochs: Vec<ScannedEpoch>,
    /// Why the scan ended.
    pub end: End,
    /// Where it ended, and why the record there does not count.
    pub end_place: Place,
    /// The rule the record at `end_place` breaks.
    pub end_error: RecordError,
    /// What is expected at the end.
    pub expect: Expect,
    /// Records of the same chain were found behind the end.
    pub found_behind: u64,
    /// Highest seal of the chain found at or behind the end, or named by a record behind it.
    pub seal_behind: Epoch,
    /// Sessions of this volume, other than the chain's, whose records stand in segments that were
    /// begun after the chain ended: newer than the chain.
    pub newer: Vec<(SessionId, Place)>,
    /// Highest epoch any header of the chain says was durable, committed or released.
    pub watermark: Epoch,
    /// Highest epoch any header of the chain before the end says was committed.
    pub committed: Epoch,
    /// Highest segment serial in use, whoever's.
    pub serial_max: u64,
    /// Records before the end.
    pub records: u64,
}

/// Reads the chain.
///
/// # Errors
/// The storage does not let itself be read: that is no statement about the journal.
pub fn scan(disk: &dyn ReadAt, geometry: Geometry, from: Expect) -> Result<Scan, IoError> {
    let mut scanner = Scanner {
        disk,
        geometry,
        expect: from,
        scan: Scan {
            epochs: Vec::new(),
            end: End::Clean,
            end_place: from.place,
            end_error: RecordError::Magic,
            expect: from,
            found_behind: 0,
            seal_behind: Epoch::NONE,
            newer: Vec::new(),
            watermark: Epoch::NONE,
            committed: Epoch::NONE,
            serial_max: 0,
            records: 0,
        },
        record: vec![0; HEADER_BYTES],
    };
    scanner.follow()?;
    scanner.look_behind()?;
    Ok(scanner.scan)
}

struct Scanner<'a> {
    disk: &'a dyn ReadAt,
    geometry: Geometry,
    expect: Expect,
    scan: Scan,
    record: Vec<u8>,
}

impl Scanner<'_> {
    fn read(&mut self, place: Place, length: usize) -> Result<(), IoError> {
        self.record.resize(length, 0);
        let target = Target::Segment(self.geometry.file_of(place.serial));
        self.disk.read_at(target, place.offset, &mut self.record)
    }

    /// Takes records as long as each is the next of the chain.
    fn follow(&mut self) -> Result<(), IoError> {
        loop {
            let here = self.expect.place;
            let error = match self.take_record(here)? {
                Ok(()) => continue,
                Err(error) => error,
            };
            // It may not have fitted: then the chain goes on in the next segment.
            let next = Place {
                serial: here.serial + 1,
                offset: SEGMENT_HEADER_BYTES as u64,
            };
            let continues = self.segment_header(next.serial)?.is_some_and(|header| {
                header.first_record_seq == self.expect.record_seq
                    && header.first_prev_crc == self.expect.prev_crc
                    && header.lineage == self.expect.lineage
            });
            if continues && here.offset > SEGMENT_HEADER_BYTES as u64 {
                self.expect.place = next;
                match self.take_record(next)? {
                    Ok(()) => continue,
                    Err(error) => self.end_at(next, error),
                }
            } else {
                self.end_at(here, error);
            }
            return Ok(());
        }
    }

    fn end_at(&mut self, place: Place, error: RecordError) {
        self.scan.end_place = place;
        self.scan.end_error = error;
        self.scan.expect = Expect {
            place,
            ..self.expect
        };
    }

    /// The header of the segment that has this serial now, if it has it.
    fn segment_header(&mut self, serial: u64) -> Result<Option<SegmentHeader>, IoError> {
        self.read(Place { serial, offset: 0 }, SEGMENT_HEADER_BYTES)?;
        Ok(SegmentHeader::decode(&self.record).ok().filter(|header| {
            header.serial == serial
                && header.volume == self.expect.volume
                && header.group == self.expect.group
                && header.segment_bytes == self.geometry.segment_bytes
                && header.segment_count == self.geometry.segment_count
        }))
    }

    /// Whether a header that decodes stands where it belongs and is of our chain.
    fn is_ours(&self, header: &Header, place: Place) -> bool {
        if crate::mutant!("stale-segment-accepted") {
            return header.volume == self.expect.volume;
        }
        placement(&self.record) == Ok(place)
            && header.group == self.expect.group
            && header.volume == self.expect.volume
            && header.session == self.expect.session
            && header.lineage == self.expect.lineage
    }

    fn take_record(&mut self, place: Place) -> Result<Result<(), RecordError>, IoError> {
        if place.offset + HEADER_BYTES as u64 > self.geometry.segment_bytes {
            return Ok(Err(RecordError::Short));
        }
        self.read(place, HEADER_BYTES)?;
        let (header, crc) = match Header::decode(&self.record) {
            Ok(decoded) => decoded,
            Err(error) => return Ok(Err(error)),
        };
        if !self.is_ours(&header, place)
            || (header.record_seq != self.expect.record_seq
                || header.prev_crc != self.expect.prev_crc)
                && !crate::mutant!("stale-segment-accepted")
        {
            return Ok(Err(RecordError::Placement));
        }
        let total = header.total_bytes();
        if place.offset + total > self.geometry.segment_bytes {
            return Ok(Err(RecordError::Bounds("total_bytes")));
        }
        self.read(place, usize::try_from(total).expect("records are small"))?;
        if let Err(error) = header.check_payloads(&self.record) {
            return Ok(Err(error));
        }
        if header.flags & !FLAG_CHAIN_START != 0 || header.kind == RecordKind::Resync {
            return Ok(Err(RecordError::Field("kind")));
        }
        self.expect.place = Place {
            offset: place.offset + total,
            ..place
        };
        self.expect.record_seq += 1;
        self.expect.prev_crc = crc;
        self.scan.records += 1;
        self.scan.committed = self.scan.committed.max(header.committed);
        self.note_watermarks(&header);
        self.add_to_epoch(&header, place);
        Ok(Ok(()))
    }

    fn note_watermarks(&mut self, header: &Header) {
        let highest = header.durable.max(header.committed).max(header.released);
        self.scan.watermark = self.scan.watermark.max(highest);
    }

    fn add_to_epoch(&mut self, header: &Header, place: Place) {
        if header.kind == RecordKind::Commit {
            // Facts only; what comes next begins behind it.
            if let Some(last) = self.scan.epochs.last_mut().filter(|e| e.sealed) {
                last.end = Some(self.expect);
            }
            return;
        }
        let open = self
            .scan
            .epochs
            .last()
            .is_some_and(|e| !e.sealed && e.epoch == header.epoch);
        if !open {
            self.scan.epochs.push(ScannedEpoch {
                epoch: header.epoch,
                ..Default::default()
            });
        }
        let epoch = self.scan.epochs.last_mut().expect("there is one now");
        extents_of(header, place, &mut epoch.extents);
        epoch.end = Some(self.expect);
        if header.kind == RecordKind::Seal {
            epoch.sealed = true;
            epoch.cut_unix_ns = header.cut_unix_ns;
        }
    }
}

/// What the writes of a record put where, in stamp order.
pub fn extents_of(header: &Header, place: Place, extents: &mut Vec<Extent>) {
    for (descriptor, offset) in header.descriptors.iter().zip(header.payload_offsets()) {
        let source = match descriptor.kind {
            DescriptorKind::Data => Source::Journal(Place {
                offset: place.offset + offset,
                ..place
            }),
            DescriptorKind::Zero => Source::Zero { discard: false },
            DescriptorKind::Discard => Source::Zero { discard: true },
        };
        extents.push(Extent {
            offset: descriptor.offset_bytes,
            length: u64::from(descriptor.length_bytes),
            source,
            epoch: header.epoch,
        });
    }
}
