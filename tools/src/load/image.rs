//! Reads an image (a file or an NBD export) and says of every unit what it shows.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::history::History;
use super::log::Kind;
use super::nbd::{Address, NbdError, Reader};
use super::oracle::{BROKEN, Content, EARLIER, ZERO};
use super::unit::{self, Stamp, UNIT_SIZE, Unit};

/// Bytes read at once.
const CHUNK_BYTES: u32 = 1 << 20;

/// Why an image cannot be judged at all.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file system failed.
    #[error("image {}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The NBD side failed.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// The image is not the disk of the log.
    #[error("the image has {found} bytes, the disk of the log had {expected}")]
    WrongSize {
        /// Bytes found.
        found: u64,
        /// Bytes of the export the run wrote to.
        expected: u64,
    },
}

/// Something to read a disk from.
#[derive(Debug)]
pub enum Source {
    /// A file or block device.
    File {
        /// Its name.
        path: PathBuf,
        /// Open for reading.
        file: File,
        /// Its size.
        bytes: u64,
    },
    /// An NBD export.
    Nbd(Reader),
}

impl Source {
    /// Opens an image file or block device.
    pub fn open_file(path: &Path) -> Result<Source, ImageError> {
        let open = || {
            let mut file = File::open(path)?;
            let bytes = file.seek(SeekFrom::End(0))?;
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(|source| ImageError::Io {
            path: path.into(),
            source,
        })?;
        Ok(Source::File {
            path: path.into(),
            file,
            bytes,
        })
    }

    /// Connects to an NBD export.
    pub fn open_nbd(address: &Address, export: &str) -> Result<Source, ImageError> {
        Ok(Source::Nbd(Reader::open(address, export)?))
    }

    /// Size in bytes.
    fn bytes(&self) -> u64 {
        match self {
            Source::File { bytes, .. } => *bytes,
            Source::Nbd(reader) => reader.export().bytes,
        }
    }

    fn chunk_bytes(&self) -> u32 {
        let limit = match self {
            Source::File { .. } => CHUNK_BYTES,
            Source::Nbd(reader) => reader.export().payload_max.min(CHUNK_BYTES),
        };
        (limit - limit % UNIT_SIZE as u32).max(UNIT_SIZE as u32)
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), ImageError> {
        match self {
            Source::File { path, file, .. } => {
                file.read_exact_at(out, offset)
                    .map_err(|source| ImageError::Io {
                        path: path.clone(),
                        source,
                    })
            }
            Source::Nbd(reader) => Ok(reader.read(offset, out)?),
        }
    }
}

/// A unit that cannot be what any write of the run left there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Neither zero nor a stamp with a good checksum.
    Garbage,
    /// A good stamp that was meant for another place.
    Misdirected {
        /// The write it names.
        write: u64,
        /// The byte it was meant for.
        meant_for: u64,
    },
    /// A stamp of another run, and that was not announced.
    OtherRun {
        /// Its id.
        run: u64,
    },
    /// A stamp that contradicts the log: no such write, or another place or length.
    NotInLog {
        /// The write it names.
        write: u64,
    },
}

/// What an image shows.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// One entry per unit of the span, as [`super::oracle::judge`] takes it.
    pub units: Vec<Content>,
    /// The first faults in order of offset: (byte, fault).
    pub faults: Vec<(u64, Fault)>,
    /// How many there are.
    pub faults_total: u64,
    /// Units of the span that show zero.
    pub units_zero: u64,
    /// Units of the span that show a write of the run.
    pub units_written: u64,
}

/// Reads the whole source. With `earlier_runs` stamps of other runs at their right place are
/// initial content. At most `faults_max` faults are kept.
pub fn read(
    source: &mut Source,
    history: &History,
    earlier_runs: bool,
    faults_max: usize,
) -> Result<Contents, ImageError> {
    let (found, expected) = (source.bytes(), history.header.disk_bytes);
    if found != expected {
        return Err(ImageError::WrongSize { found, expected });
    }
    let span = history.header.span_bytes;
    let mut contents = Contents::default();
    let mut chunk = vec![0; source.chunk_bytes() as usize];
    // A tail shorter than a unit cannot be written by the run.
    let end = found - found % UNIT_SIZE as u64;
    let mut at = 0;
    while at < end {
        let len = (end - at).min(chunk.len() as u64) as usize;
        source.read(at, &mut chunk[..len])?;
        for (offset, bytes) in (at..)
            .step_by(UNIT_SIZE)
            .zip(chunk[..len].chunks(UNIT_SIZE))
        {
            let content = classify(bytes, offset, history, earlier_runs).unwrap_or_else(|fault| {
                contents.faults_total += 1;
                if contents.faults.len() < faults_max {
                    contents.faults.push((offset, fault));
                }
                BROKEN
            });
            if offset < span {
                contents.units_zero += u64::from(content == ZERO);
                let written = !matches!(content, ZERO | EARLIER | BROKEN);
                contents.units_written += u64::from(written);
                contents.units.push(content);
            }
        }
        at += len as u64;
    }
    Ok(contents)
}

/// What the unit at `offset` shows.
fn classify(bytes: &[u8], offset: u64, history: &History, earlier: bool) -> Result<Content, Fault> {
    let stamp = match unit::decode(bytes) {
        Unit::Zero => return Ok(ZERO),
        Unit::Garbage => return Err(Fault::Garbage),
        Unit::Stamped(stamp) => stamp,
    };
    if stamp.run != history.header.run && !earlier {
        return Err(Fault::OtherRun { run: stamp.run });
    }
    if stamp.offset != offset {
        return Err(Fault::Misdirected {
            write: stamp.write,
            meant_for: stamp.offset,
        });
    }
    if stamp.run != history.header.run {
        return Ok(EARLIER);
    }
    let known = history.request(stamp.write).is_some_and(|request| {
        let units = request.units();
        let place = Stamp {
            run: stamp.run,
            write: stamp.write,
            offset: (units.start + u64::from(stamp.index)) * UNIT_SIZE as u64,
            index: stamp.index,
            count: (units.end - units.start) as u32,
        };
        request.kind == Kind::Write && stamp.index < stamp.count && place == stamp
    });
    match Content::try_from(stamp.write) {
        Ok(content) if known => Ok(content),
        _ => Err(Fault::NotInLog { write: stamp.write }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::history::{NEVER, Request};
    use crate::load::log::Header;

    const RUN: u64 = 77;

    fn history() -> History {
        let request = |submitted, kind, offset, len| {
            let (completed, fua, failed) = (NEVER, false, false);
            Request {
                submitted,
                completed,
                offset,
                len,
                kind,
                fua,
                failed,
            }
        };
        let header = Header {
            run: RUN,
            disk_bytes: 8192,
            span_bytes: 4096,
            seed: 0,
        };
        let requests = vec![
            request(1, Kind::Write, 1024, 1024),
            request(2, Kind::Zero, 1024, 1024),
        ];
        History {
            header,
            requests,
            cuts: Vec::new(),
        }
    }

    fn image(stamps: &[(u64, Stamp)]) -> Vec<u8> {
        let mut image = vec![0; 8192];
        for (at, stamp) in stamps {
            unit::encode(stamp, &mut image[*at as usize..*at as usize + UNIT_SIZE]);
        }
        image
    }

    fn read_image(bytes: &[u8], earlier: bool) -> Result<Contents, ImageError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(
            &mut Source::open_file(file.path()).unwrap(),
            &history(),
            earlier,
            2,
        )
    }

    fn stamp(write: u64, offset: u64, index: u32, count: u32) -> Stamp {
        Stamp {
            run: RUN,
            write,
            offset,
            index,
            count,
        }
    }

    /// Production: each way a unit can be wrong must be told apart; a stamp is no proof that it
    /// belongs here.
    #[test]
    fn a_unit_that_no_write_put_there_is_a_fault() {
        let good = stamp(1, 1024, 0, 2);
        assert_eq!(
            read_image(&image(&[(1024, good)]), false).unwrap().units[2],
            1
        );
        let other = Stamp { run: 5, ..good };
        let cases = [
            (
                512,
                good,
                Fault::Misdirected {
                    write: 1,
                    meant_for: 1024,
                },
            ),
            (
                6144,
                good,
                Fault::Misdirected {
                    write: 1,
                    meant_for: 1024,
                },
            ),
            (1024, other, Fault::OtherRun { run: 5 }),
            (1024, stamp(3, 1024, 0, 2), Fault::NotInLog { write: 3 }),
            (1024, stamp(0, 1024, 0, 2), Fault::NotInLog { write: 0 }),
            (1024, stamp(2, 1024, 0, 2), Fault::NotInLog { write: 2 }),
            (1024, stamp(1, 1024, 1, 2), Fault::NotInLog { write: 1 }),
            (2048, stamp(1, 2048, 2, 2), Fault::NotInLog { write: 1 }),
            (1024, stamp(1, 1024, 0, 3), Fault::NotInLog { write: 1 }),
        ];
        for (at, stamp, fault) in cases {
            let contents = read_image(&image(&[(at, stamp)]), false).unwrap();
            assert_eq!(contents.faults, [(at, fault)]);
        }
        assert_eq!(
            read_image(&image(&[(1024, other)]), true).unwrap().units[2],
            EARLIER
        );
    }

    /// Production: a ruined image of a terabyte must not fill memory with its faults.
    #[test]
    fn faults_are_counted_but_kept_up_to_a_limit() {
        let contents = read_image(&[9; 8192], false).unwrap();
        assert_eq!((contents.faults.len(), contents.faults_total), (2, 16));
        assert_eq!(contents.units, [BROKEN; 8]);
    }

    /// Production: the image of another disk, or one cut short, is no image of this run.
    #[test]
    fn an_image_of_another_size_is_refused() {
        assert!(matches!(
            read_image(&[0; 4096], false),
            Err(ImageError::WrongSize { .. })
        ));
    }
}
