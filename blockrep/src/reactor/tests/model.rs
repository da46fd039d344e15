//! Random requests on a real file against a plain vector of bytes.

use std::ops::Range;
use std::path::Path;

use super::*;
use crate::reactor::{FaultPlan, ReturnedBuf};

const SECTORS: u64 = 1024;

/// Ways in which the file is opened or declared to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Buffered,
    BufferedBlock4096,
    AsFound,
    DirectBlock4096,
    /// As found, with fallocate modes switched off by the file system or not, and short results.
    Short,
}

fn add(bed: &mut Bed, path: &Path, opened: crate::reactor::OpenedFile, mode: Mode) -> FileId {
    let found = opened.options.clone();
    let (fd, options) = match mode {
        Mode::Buffered => buffered(path),
        Mode::BufferedBlock4096 => {
            let (fd, options) = buffered(path);
            (
                fd,
                FileOptions {
                    logical_block: 4096,
                    ..options
                },
            )
        }
        Mode::AsFound => (opened.fd, found),
        Mode::DirectBlock4096 => (
            opened.fd,
            FileOptions {
                logical_block: 4096,
                mem_align: 4096,
                ..found
            },
        ),
        Mode::Short => {
            let faults: FaultPlan = "any:2+=short:1024".parse().unwrap();
            (
                opened.fd,
                FileOptions {
                    faults: Some(faults),
                    ..found
                },
            )
        }
    };
    bed.reactor.add_file(fd, options)
}

/// A range of up to 40 sectors that meets none of `taken`.
fn free_range(rng: &mut fastrand::Rng, taken: &[Range<u64>]) -> Option<Range<u64>> {
    let start = rng.u64(0..SECTORS);
    let len = if rng.bool() {
        rng.u64(1..6)
    } else {
        rng.u64(1..400)
    };
    let range = start..(start + len).min(SECTORS);
    taken
        .iter()
        .all(|t| t.end <= range.start || range.end <= t.start)
        .then_some(range)
}

/// Cuts `bytes` into buffers at places no device likes.
fn scattered(bed: &Bed, rng: &mut fastrand::Rng, bytes: &[u8]) -> Vec<Buf> {
    let mut bufs = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let unit = if rng.u8(0..4) == 0 { 1 } else { 512 };
        let len = (rng.usize(1..9) * unit).min(rest.len());
        let lead = rng.usize(0..3) * unit;
        let mut padded = vec![0x55; lead];
        padded.extend_from_slice(&rest[..len]);
        bufs.push(bed.buf(&padded).slice(lead..));
        rest = &rest[len..];
    }
    bufs
}

fn submit_change(
    bed: &mut Bed,
    rng: &mut fastrand::Rng,
    file: FileId,
    at: Range<u64>,
    disk: &mut [u8],
) {
    let (offset, len) = (at.start * 512, (at.end - at.start) * 512);
    let place = &mut disk[offset as usize..(offset + len) as usize];
    let op = match rng.u8(0..6) {
        0 => {
            place.fill(0);
            Op::Zero { file, offset, len }
        }
        1 => {
            place.fill(0);
            Op::Discard { file, offset, len }
        }
        kind => {
            rng.fill(place);
            if kind == 2 {
                Op::WriteV {
                    file,
                    offset,
                    bufs: scattered(bed, rng, place),
                }
            } else {
                let lead = 512 * rng.usize(0..3);
                let mut padded = vec![0x66; lead];
                padded.extend_from_slice(place);
                Op::Write {
                    file,
                    offset,
                    buf: bed.buf(&padded).slice(lead..),
                }
            }
        }
    };
    bed.reactor.submit(offset, op);
}

/// One run: rounds of concurrent requests that share blocks but no sector.
fn run(dir: &Path, mode: Mode, seed: u64) {
    let context = format!("{} {mode:?} seed {seed}", dir.display());
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bed = Bed::new();
    let (path, opened) = image(dir, SECTORS as usize * 512);
    let mut disk = vec![0xAA; SECTORS as usize * 512];
    let file = add(&mut bed, &path, opened, mode);
    for _ in 0..60 {
        let mut taken: Vec<Range<u64>> = Vec::new();
        for _ in 0..rng.usize(1..12) {
            let Some(at) = free_range(&mut rng, &taken) else {
                continue;
            };
            taken.push(at.clone());
            if rng.u8(0..3) == 0 {
                let (offset, len) = (at.start * 512, (at.end - at.start) as usize * 512);
                let buf = bed.reactor.pool().alloc(len).unwrap();
                bed.reactor.submit(offset, Op::Read { file, offset, buf });
            } else {
                submit_change(&mut bed, &mut rng, file, at, &mut disk);
            }
        }
        if rng.bool() {
            bed.reactor.submit(u64::MAX, Op::Sync { file });
            taken.push(0..0);
        }
        for done in bed.wait(taken.len()) {
            done.result
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            if let ReturnedBuf::Mut(buf) = done.buf {
                let at = done.token as usize;
                assert!(
                    buf[..] == disk[at..at + buf.len()],
                    "{context}: wrong read at {at}"
                );
            }
        }
        assert_eq!(
            bed.reactor.pool().stats().pages_used,
            0,
            "{context}: a buffer is lost"
        );
    }
    for at in (0..disk.len()).step_by(1 << 16) {
        assert!(
            bed.read(file, at as u64, 1 << 16).unwrap() == disk[at..at + (1 << 16)],
            "{context}"
        );
    }
    assert_eq!(bed.reactor.stats().in_flight, 0);
    drop(bed);
    assert!(
        std::fs::read(&path).unwrap() == disk,
        "{context}: the file differs at the end"
    );
}

fn run_all(dir: &Path) {
    for mode in [
        Mode::Buffered,
        Mode::BufferedBlock4096,
        Mode::AsFound,
        Mode::DirectBlock4096,
        Mode::Short,
    ] {
        for seed in 0..4 {
            run(dir, mode, seed);
        }
    }
}

/// Lost sectors, stale sectors, or a neighbour's sectors undone by a read-modify-write.
#[test]
fn requests_in_any_mode_equal_a_vector_on_a_disk_file_system() {
    // Not TMPDIR, which may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    run_all(dir.path());
}

/// The same where fallocate cannot zero a range, so that the fall-back writes.
#[test]
fn requests_in_any_mode_equal_a_vector_in_memory() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    run_all(dir.path());
}
