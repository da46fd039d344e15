//! Journals of stopped backups, for tests that damage them: finds records by the formats alone.

use anyhow::{Context, Result, ensure};
use blkback_proto::ids::Place;
use blkback_proto::record::{HEADER_BYTES, Header, RecordKind, placement};
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_file_name};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A record as it stands in a journal.
#[derive(Clone, Debug)]
pub struct Found {
    /// File it is in.
    pub file: PathBuf,
    /// Where.
    pub place: Place,
    /// What its header says.
    pub header: Header,
}

/// Every whole record of the newest session in a journal directory, in order.
///
/// # Errors
/// The files cannot be read.
pub fn records(dir: &Path) -> Result<Vec<Found>> {
    let mut all = Vec::new();
    for index in 0.. {
        let file = dir.join(segment_file_name(index));
        if !file.exists() {
            break;
        }
        let bytes = fs::read(&file)?;
        if let Ok(segment) = SegmentHeader::decode(&bytes) {
            all.extend(records_of(&file, &bytes, segment.serial));
        }
    }
    let newest = all
        .iter()
        .max_by_key(|r| (r.place.serial, r.place.offset))
        .map(|r| r.header.session);
    all.retain(|r| Some(r.header.session) == newest);
    all.sort_by_key(|r| r.header.record_seq);
    Ok(all)
}

fn records_of(file: &Path, bytes: &[u8], serial: u64) -> Vec<Found> {
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(bytes) = bytes.get(at..at + HEADER_BYTES) {
        let offset = at as u64;
        let place = Place { serial, offset };
        match Header::decode(bytes) {
            Ok((header, _)) if placement(bytes) == Ok(place) => {
                at += usize::try_from(header.total_bytes()).expect("records are small");
                let file = file.to_owned();
                found.push(Found {
                    file,
                    place,
                    header,
                });
            }
            _ => at += HEADER_BYTES,
        }
    }
    found
}

impl Found {
    fn open(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(&self.file);
        file.with_context(|| format!("opening {}", self.file.display()))
    }

    /// Turns one bit over, `at` bytes behind the beginning of the record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flip(&self, at: u64) -> Result<()> {
        ensure!(at < self.header.total_bytes(), "that is behind the record");
        let (file, mut byte) = (self.open()?, [0]);
        file.read_exact_at(&mut byte, self.place.offset + at)?;
        byte[0] ^= 0x10;
        file.write_all_at(&byte, self.place.offset + at)?;
        Ok(())
    }

    /// Makes it as if it had never been written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn erase(&self) -> Result<()> {
        let bytes = usize::try_from(self.header.total_bytes()).expect("records are small");
        let zeros = vec![0; bytes];
        self.open()?.write_all_at(&zeros, self.place.offset)?;
        Ok(())
    }

    /// True for a record with payload to damage.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        self.header.payload_bytes() > 0
    }

    /// True for the seal of an epoch.
    #[must_use]
    pub fn is_seal(&self) -> bool {
        self.header.kind == RecordKind::Seal
    }
}
