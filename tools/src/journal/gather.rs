//! Every record of a journal that stands where it says it was stored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blkback_proto::ids::{GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::record::{
    DescriptorKind, FLAG_CHAIN_START, HEADER_BYTES, Header, PLACEMENT_OFFSET, RECORD_MAGIC,
    RecordKind, placement, witness,
};
use blkback_proto::segment::{SEGMENT_BYTES_MAX, SegmentHeader};

use super::JournalError;
use super::layout::JournalFiles;

const PAGE: u64 = HEADER_BYTES as u64;

/// A record whose header can be read.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) file: u32,
    pub(super) place: Place,
    pub(super) kind: RecordKind,
    pub(super) total_bytes: u64,
    pub(super) seq: u64,
    pub(super) epoch: u64,
    pub(super) chain_start: bool,
    pub(super) writes: u64,
    pub(super) payload_bytes: u64,
    pub(super) discards: u64,
    pub(super) crc: u32,
    pub(super) prev_crc: u32,
    pub(super) session: SessionId,
    pub(super) group: GroupUuid,
    pub(super) volume: VolumeUuid,
    pub(super) lineage: LineageId,
    pub(super) durable: u64,
    pub(super) committed: u64,
    pub(super) released: u64,
    pub(super) cut_unix_ns: u64,
    pub(super) base_epoch: u64,
    pub(super) epoch_writes: u64,
    pub(super) epoch_bytes: u64,
    /// Why the payloads do not count, if they do not.
    pub(super) payload_error: Option<String>,
}

impl Record {
    /// Place behind the record.
    pub(super) fn end(&self) -> Place {
        Place {
            offset: self.place.offset + self.total_bytes,
            ..self.place
        }
    }

    /// Highest epoch this record says was acknowledged.
    pub(super) fn watermark(&self) -> u64 {
        self.durable.max(self.committed).max(self.released)
    }
}

/// A page that was meant to be a record header and cannot be read as one.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    pub(super) place: Place,
    /// Number and session as they stand there; only to be believed where nothing else is left.
    pub(super) seq: u64,
    pub(super) session: SessionId,
    /// The page says at its end that it was stored here.
    pub(super) placed: bool,
    /// The page may have been a seal.
    pub(super) maybe_seal: bool,
    pub(super) why: String,
}

/// A segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) index: u32,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// The header, or why there is none; `None` for a segment never used.
    pub(super) header: Option<Result<SegmentHeader, String>>,
    /// Records of an earlier use of the file.
    pub(super) stale: u64,
}

/// All of a journal.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) segments: Vec<Segment>,
    /// In the order of their places.
    pub(super) records: Vec<Record>,
    pub(super) traces: Vec<Trace>,
}

impl Gathered {
    /// Leaves out what stands in segments before this one: it is in the image, and the ring writes over
    /// such segments in any order, as sessions end in the middle of it.
    pub(super) fn forget_before(&mut self, serial: u64) {
        for record in &self.records {
            if record.place.serial < serial
                && let Some(segment) = self.segments.iter_mut().find(|s| s.index == record.file)
            {
                segment.stale += 1;
            }
        }
        self.records.retain(|r| r.place.serial >= serial);
        self.traces.retain(|t| t.place.serial >= serial);
    }
}

/// Reads a whole journal.
pub(super) fn gather(files: &JournalFiles) -> Result<Gathered, JournalError> {
    let mut gathered = Gathered::default();
    let count = u64::try_from(files.segments.len()).expect("bounded when they were listed");
    for (index, path) in &files.segments {
        let fail = |source: io::Error| JournalError::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(path).map_err(fail)?;
        let bytes = file.metadata().map_err(fail)?.len();
        if !(PAGE..=SEGMENT_BYTES_MAX).contains(&bytes) {
            return Err(JournalError::SegmentSize {
                path: path.clone(),
                bytes,
            });
        }
        let mut reader = Reader {
            file,
            index: *index,
            bytes,
            count,
            page: vec![0; HEADER_BYTES],
        };
        reader.segment(path, &mut gathered).map_err(fail)?;
    }
    gathered.records.sort_by_key(|r| r.place);
    gathered.traces.sort_by_key(|t| t.place);
    Ok(gathered)
}

struct Reader {
    file: File,
    index: u32,
    bytes: u64,
    count: u64,
    page: Vec<u8>,
}

impl Reader {
    fn segment(&mut self, path: &Path, gathered: &mut Gathered) -> io::Result<()> {
        self.file.read_exact_at(&mut self.page, 0)?;
        let used = self.page.iter().any(|b| *b != 0);
        let header =
            used.then(|| SegmentHeader::decode(&self.page).map_err(|error| error.to_string()));
        let serial = match &header {
            Some(Ok(header)) => Some(header.serial),
            _ => None,
        };
        let (records, traces) = self.pages()?;
        // Without a readable header the newest records tell which use of the file this is.
        let newest = records.iter().map(|r| r.place.serial).max();
        let current = serial.max(newest);
        let before = records.len();
        let records: Vec<Record> = records
            .into_iter()
            .filter(|r| Some(r.place.serial) == current)
            .collect();
        gathered.segments.push(Segment {
            index: self.index,
            path: path.to_owned(),
            bytes: self.bytes,
            header,
            stale: (before - records.len()) as u64,
        });
        gathered.records.extend(records);
        for mut trace in traces {
            if !trace.placed {
                trace.place.serial = current.unwrap_or(0);
            }
            if Some(trace.place.serial) == current {
                gathered.traces.push(trace);
            }
        }
        Ok(())
    }

    /// Records and damaged pages of every use of the file.
    fn pages(&mut self) -> io::Result<(Vec<Record>, Vec<Trace>)> {
        let (mut records, mut traces) = (Vec::new(), Vec::new());
        let mut offset = PAGE;
        while offset + PAGE <= self.bytes {
            self.file.read_exact_at(&mut self.page, offset)?;
            let mut step = PAGE;
            match Header::decode(&self.page) {
                Ok((header, crc)) if self.is_here(offset) => {
                    let record = self.record(&header, crc, offset)?;
                    // Behind damaged payloads nothing is known about where the next record is.
                    if record.payload_error.is_none() {
                        step = record.total_bytes;
                    }
                    records.push(record);
                }
                Ok(_) => {
                    // A whole placement that names another place: an earlier use, or misdirected.
                    let error = placement(&self.page).err();
                    traces.extend(error.and_then(|why| self.trace(offset, why.to_string())));
                }
                Err(error) => traces.extend(self.trace(offset, error.to_string())),
            }
            offset += step;
        }
        Ok((records, traces))
    }

    /// What is left of a record in a page that is not one any more.
    fn trace(&self, offset: u64, why: String) -> Option<Trace> {
        let said = self.said_place();
        let placed = said.offset == offset && self.lives_here(said.serial);
        let magic = self.page[..8] == RECORD_MAGIC;
        (placed || magic).then(|| Trace {
            place: if placed {
                said
            } else {
                Place { serial: 0, offset }
            },
            seq: self.word(40),
            session: SessionId(self.word(48)),
            placed,
            maybe_seal: match witness(&self.page) {
                Some(witness) => witness.kind == Some(RecordKind::Seal),
                None => !magic || self.page[10] == RecordKind::Seal as u8,
            },
            why,
        })
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(
            self.page[at..at + 8]
                .try_into()
                .expect("eight bytes of a page"),
        )
    }

    /// The placement as it stands in the page, checked or not.
    fn said_place(&self) -> Place {
        Place {
            serial: self.word(PLACEMENT_OFFSET),
            offset: self.word(PLACEMENT_OFFSET + 8),
        }
    }

    fn lives_here(&self, serial: u64) -> bool {
        serial != 0 && serial % self.count == u64::from(self.index)
    }

    /// The page says, with a checksum, that it was stored here.
    fn is_here(&self, offset: u64) -> bool {
        placement(&self.page)
            .is_ok_and(|place| place.offset == offset && self.lives_here(place.serial))
    }

    fn record(&mut self, header: &Header, crc: u32, offset: u64) -> io::Result<Record> {
        let place = Place {
            offset,
            ..self.said_place()
        };
        let total_bytes = header.total_bytes();
        let payload_error = if offset + total_bytes > self.bytes {
            Some("the record does not end inside its segment".to_owned())
        } else {
            let length = usize::try_from(total_bytes).expect("records are bounded");
            let mut whole = vec![0; length];
            self.file.read_exact_at(&mut whole, offset)?;
            header
                .check_payloads(&whole)
                .err()
                .map(|error| error.to_string())
        };
        let discards = header
            .descriptors
            .iter()
            .filter(|d| d.kind != DescriptorKind::Data);
        Ok(Record {
            file: self.index,
            place,
            kind: header.kind,
            total_bytes,
            seq: header.record_seq,
            epoch: header.epoch.0,
            chain_start: header.flags & FLAG_CHAIN_START != 0,
            writes: header.descriptors.len() as u64,
            payload_bytes: header.payload_bytes(),
            discards: discards.count() as u64,
            crc,
            prev_crc: header.prev_crc,
            session: header.session,
            group: header.group,
            volume: header.volume,
            lineage: header.lineage,
            durable: header.durable.0,
            committed: header.committed.0,
            released: header.released.0,
            cut_unix_ns: header.cut_unix_ns,
            base_epoch: header.base_epoch.0,
            epoch_writes: header.epoch_writes,
            epoch_bytes: header.epoch_bytes,
            payload_error,
        })
    }
}
