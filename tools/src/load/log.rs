//! The log of a run: one 64-byte header, then 64-byte records, little-endian, each with its own
//! crc32.
//!
//! A submission is in the file (the page cache is enough: `kill -9` of this process keeps it)
//! **before** its request is sent, so no unit on the disk can name a write the log does not know.
//! Completions may wait for the next submission: a lost completion only weakens what the oracle may
//! demand, it never makes a good image look bad. A partial or broken record is allowed at the very
//! end only.
//!
//! Stamps come from one counter for all events; they grow strictly through the file.
//!
//! Header: magic 0..8, version u32 8..12, unit size u32 12..16, run id 16..24, disk size in bytes
//! 24..32, span in bytes 32..40, seed 40..48, zero 48..60, crc32 60..64.
//!
//! Record: kind u8 0, operation u8 1, flags u8 2, zero 3, error u32 4..8, stamp 8..16, ns 16..24,
//! id 24..32, offset or epoch 32..40, length u32 40..44, connection u32 44..48, zero 48..60, crc32
//! 60..64.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::unit::{UNIT_SIZE, le_u32, le_u64};

const MAGIC: [u8; 8] = *b"brLdLog\n";
const VERSION: u32 = 1;
const RECORD_SIZE: usize = 64;
const CRC_AT: usize = RECORD_SIZE - 4;
const FLAG_FUA: u8 = 1;

/// Facts of the run that every record shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Random, in every unit of the run.
    pub run: u64,
    /// Size of the export in bytes.
    pub disk_bytes: u64,
    /// The run touched only bytes below this.
    pub span_bytes: u64,
    /// Seed of the workload.
    pub seed: u64,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writes stamped units.
    Write,
    /// Writes zeroes.
    Zero,
    /// Discards; the disks under test read discarded units as zeroes.
    Discard,
    /// Flushes; covers no units.
    Flush,
}

/// One event of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Place among all events of the run, from 1.
    pub stamp: u64,
    /// Monotonic nanoseconds since the start of the run.
    pub ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened. Request ids are dense from 1 in order of submission, cut ids likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A request is about to be sent.
    Submit {
        /// Request id; for writes also the write id in the units.
        id: u64,
        /// What it does.
        kind: Kind,
        /// Asks for the write itself to be durable at completion.
        fua: bool,
        /// First byte.
        offset: u64,
        /// Length in bytes, a multiple of the unit; 0 for a flush.
        len: u32,
        /// Connection it goes over, from 0.
        connection: u32,
    },
    /// Its reply was read.
    Complete {
        /// Request id.
        id: u64,
        /// NBD error number, 0 for success.
        error: u32,
    },
    /// A cut is about to be asked for.
    CutSent {
        /// Cut id.
        id: u64,
    },
    /// The reply to a cut was read.
    CutReply {
        /// Cut id.
        id: u64,
        /// The epoch that ended with this cut; `None` if the cut was refused.
        epoch: Option<u64>,
    },
}

/// Why a log cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("log {}: {source}", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `run` never overwrites a log.
    #[error("log {} exists already; name another file or remove it", path.display())]
    Exists {
        /// The log.
        path: PathBuf,
    },
    /// The first 64 bytes are not a log header of this version.
    #[error("{} is not a log of blockrep-load (or of another version)", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// A broken record that is not the last, or one that contradicts those before it.
    #[error("log {} is damaged at byte {at}: {what}", path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Where the record begins.
        at: u64,
        /// The broken rule.
        what: &'static str,
    },
}

/// Appends records. [`LogWriter::append`] only buffers; [`LogWriter::flush`] hands over to the
/// kernel.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    pending: Vec<u8>,
}

impl LogWriter {
    /// Creates the file, which must not exist, and writes the header.
    pub fn create(path: &Path, header: &Header) -> Result<LogWriter, LogError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => LogError::Exists { path: path.into() },
                _ => LogError::Io {
                    path: path.into(),
                    source,
                },
            })?;
        let pending = encode_header(header).to_vec();
        let mut writer = LogWriter {
            path: path.into(),
            file,
            pending,
        };
        writer.flush()?;
        Ok(writer)
    }

    /// Buffers one record.
    pub fn append(&mut self, record: &Record) {
        self.pending.extend_from_slice(&encode_record(record));
    }

    /// Hands everything buffered to the kernel in one write.
    pub fn flush(&mut self) -> Result<(), LogError> {
        let done = self.file.write_all(&self.pending);
        self.pending.clear();
        done.map_err(|source| LogError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// Reads a log record by record and checks order and checksums on the way.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    header: Header,
    input: BufReader<File>,
    at: u64,
    last_stamp: u64,
}

impl LogReader {
    /// Opens a log and reads its header.
    pub fn open(path: &Path) -> Result<LogReader, LogError> {
        let io_error = |source| LogError::Io {
            path: path.into(),
            source,
        };
        let mut input = BufReader::with_capacity(1 << 20, File::open(path).map_err(io_error)?);
        let mut bytes = [0; RECORD_SIZE];
        let got = read_up_to(&mut input, &mut bytes).map_err(io_error)?;
        let header = Some(bytes)
            .filter(|_| got == RECORD_SIZE)
            .as_ref()
            .and_then(decode_header);
        let header = header.ok_or_else(|| LogError::NotALog { path: path.into() })?;
        Ok(LogReader {
            path: path.into(),
            header,
            input,
            at: RECORD_SIZE as u64,
            last_stamp: 0,
        })
    }

    /// Facts of the run.
    pub fn header(&self) -> Header {
        self.header
    }

    /// An error about the record read last.
    pub fn damaged(&self, what: &'static str) -> LogError {
        let at = self.at.saturating_sub(RECORD_SIZE as u64);
        LogError::Damaged {
            path: self.path.clone(),
            at,
            what,
        }
    }

    /// The next record; `None` at the end, which may be a record that was being written when the
    /// generator was killed.
    pub fn next_record(&mut self) -> Result<Option<Record>, LogError> {
        let mut bytes = [0; RECORD_SIZE];
        let io_error = |path: &Path, source| LogError::Io {
            path: path.into(),
            source,
        };
        let got = read_up_to(&mut self.input, &mut bytes)
            .map_err(|source| io_error(&self.path, source))?;
        if got < RECORD_SIZE {
            return Ok(None);
        }
        self.at += RECORD_SIZE as u64;
        let Some(record) = decode_record(&bytes) else {
            let mut more = [0];
            let rest = read_up_to(&mut self.input, &mut more)
                .map_err(|source| io_error(&self.path, source))?;
            return match rest {
                0 => Ok(None),
                _ => Err(self.damaged("a record with a bad checksum or unknown kind")),
            };
        };
        if record.stamp <= self.last_stamp {
            return Err(self.damaged("stamps do not grow"));
        }
        self.last_stamp = record.stamp;
        Ok(Some(record))
    }
}

fn read_up_to(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < bytes.len() {
        match input.read(&mut bytes[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn seal(mut bytes: [u8; RECORD_SIZE]) -> [u8; RECORD_SIZE] {
    let crc = crc32fast::hash(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn encode_header(header: &Header) -> [u8; RECORD_SIZE] {
    let mut bytes = [0; RECORD_SIZE];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(UNIT_SIZE as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&header.run.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.disk_bytes.to_le_bytes());
    bytes[32..40].copy_from_slice(&header.span_bytes.to_le_bytes());
    bytes[40..48].copy_from_slice(&header.seed.to_le_bytes());
    seal(bytes)
}

fn decode_header(bytes: &[u8; RECORD_SIZE]) -> Option<Header> {
    let good = bytes[0..8] == MAGIC
        && le_u32(bytes, 8) == VERSION
        && le_u32(bytes, 12) as usize == UNIT_SIZE
        && crc32fast::hash(&bytes[..CRC_AT]) == le_u32(bytes, CRC_AT);
    let header = Header {
        run: le_u64(bytes, 16),
        disk_bytes: le_u64(bytes, 24),
        span_bytes: le_u64(bytes, 32),
        seed: le_u64(bytes, 40),
    };
    good.then_some(header)
        .filter(|header| header.span_bytes <= header.disk_bytes)
}

fn encode_record(record: &Record) -> [u8; RECORD_SIZE] {
    let mut bytes = [0; RECORD_SIZE];
    bytes[8..16].copy_from_slice(&record.stamp.to_le_bytes());
    bytes[16..24].copy_from_slice(&record.ns.to_le_bytes());
    let id = match record.event {
        Event::Submit {
            id,
            kind,
            fua,
            offset,
            len,
            connection,
        } => {
            bytes[0] = 1;
            bytes[1] = kind_code(kind);
            bytes[2] = if fua { FLAG_FUA } else { 0 };
            bytes[32..40].copy_from_slice(&offset.to_le_bytes());
            bytes[40..44].copy_from_slice(&len.to_le_bytes());
            bytes[44..48].copy_from_slice(&connection.to_le_bytes());
            id
        }
        Event::Complete { id, error } => {
            bytes[0] = 2;
            bytes[4..8].copy_from_slice(&error.to_le_bytes());
            id
        }
        Event::CutSent { id } => {
            bytes[0] = 3;
            id
        }
        Event::CutReply { id, epoch } => {
            bytes[0] = 4;
            bytes[4..8].copy_from_slice(&u32::from(epoch.is_none()).to_le_bytes());
            bytes[32..40].copy_from_slice(&epoch.unwrap_or(0).to_le_bytes());
            id
        }
    };
    bytes[24..32].copy_from_slice(&id.to_le_bytes());
    seal(bytes)
}

fn decode_record(bytes: &[u8; RECORD_SIZE]) -> Option<Record> {
    if crc32fast::hash(&bytes[..CRC_AT]) != le_u32(bytes, CRC_AT) {
        return None;
    }
    let id = le_u64(bytes, 24);
    let error = le_u32(bytes, 4);
    let event = match bytes[0] {
        1 => Event::Submit {
            id,
            kind: kind_of_code(bytes[1])?,
            fua: bytes[2] & FLAG_FUA != 0,
            offset: le_u64(bytes, 32),
            len: le_u32(bytes, 40),
            connection: le_u32(bytes, 44),
        },
        2 => Event::Complete { id, error },
        3 => Event::CutSent { id },
        4 => Event::CutReply {
            id,
            epoch: (error == 0).then_some(le_u64(bytes, 32)),
        },
        _ => return None,
    };
    Some(Record {
        stamp: le_u64(bytes, 8),
        ns: le_u64(bytes, 16),
        event,
    })
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Write => 1,
        Kind::Zero => 2,
        Kind::Discard => 3,
        Kind::Flush => 4,
    }
}

fn kind_of_code(code: u8) -> Option<Kind> {
    match code {
        1 => Some(Kind::Write),
        2 => Some(Kind::Zero),
        3 => Some(Kind::Discard),
        4 => Some(Kind::Flush),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
