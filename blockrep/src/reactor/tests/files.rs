//! File operations: ends, failures, short results, many at once, removal, drop.

use super::*;
use crate::reactor::{FileOp, ReturnedBuf, StoreError};

fn store_error(op: FileOp, offset: u64, errno: i32) -> StoreError {
    StoreError { op, offset, errno }
}

fn with_faults(faults: &str) -> (Bed, FileId, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut bed = Bed::new();
    let (_, opened) = image(dir.path(), 1 << 20);
    let options = FileOptions {
        faults: Some(faults.parse().unwrap()),
        ..opened.options
    };
    let file = bed.reactor.add_file(opened.fd, options);
    (bed, file, dir)
}

/// Data after the end of a truncated image must be an error and not silence or zeros.
#[test]
fn a_read_beyond_the_end_fails_and_poisons_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for block in [512, 4096] {
        let mut bed = Bed::new();
        let (_, opened) = image(dir.path(), 64 << 10);
        let options = FileOptions {
            logical_block: block,
            ..opened.options
        };
        let file = bed.reactor.add_file(opened.fd, options);
        for (offset, len) in [(60 << 10, 8192), (64 << 10, 512), ((64 << 10) - 512, 1024)] {
            let error = bed.read(file, offset, len).unwrap_err();
            assert_eq!(
                error,
                OpError::Store(store_error(FileOp::Read, offset, libc::ENODATA))
            );
        }
        assert_eq!(
            bed.read(file, (64 << 10) - 512, 512).unwrap(),
            vec![0xAA; 512]
        );
        assert_eq!(bed.reactor.poisoned(file), None);
        assert_eq!(bed.write(file, 0, &[1; 512]), Ok(512));
    }
}

/// After a failed sync the kernel forgets the dirty pages: a second sync that succeeds is a lie.
#[test]
fn a_failed_sync_is_final() {
    let (mut bed, file, _dir) = with_faults("sync:2=EIO");
    assert_eq!(bed.run(Op::Sync { file }).result, Ok(0));
    let cause = store_error(FileOp::Sync, 0, libc::EIO);
    assert_eq!(
        bed.run(Op::Sync { file }).result,
        Err(OpError::Store(cause))
    );
    assert_eq!(
        bed.run(Op::Sync { file }).result,
        Err(OpError::Poisoned(cause))
    );
    let refused = bed.write(file, 0, &[1; 512]);
    assert_eq!(refused, Err(OpError::Poisoned(cause)));
    let (offset, len) = (0, 4096);
    for op in [
        Op::Zero { file, offset, len },
        Op::Discard { file, offset, len },
    ] {
        assert_eq!(bed.run(op).result, Err(OpError::Poisoned(cause)));
    }
    assert_eq!(
        bed.read(file, 0, 512).unwrap(),
        vec![0xAA; 512],
        "reads go on, nothing was changed"
    );
    assert_eq!(bed.reactor.poisoned(file), Some(cause));
}

/// A write that failed must not be covered by a sync that was under way, nor followed by writes
/// that were waiting for it.
#[test]
fn a_failed_write_takes_waiting_changes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut bed = Bed::new();
    let (_, opened) = image(dir.path(), 1 << 20);
    let faults = "write:1=delay:30ms,write:3=ENOSPC".parse().unwrap();
    let options = FileOptions {
        logical_block: 4096,
        faults: Some(faults),
        ..opened.options
    };
    let file = bed.reactor.add_file(opened.fd, options);
    // The second shares a block with the delayed first, which holds no lock yet; the fourth with the
    // second.
    for (token, offset) in [(1, 0u64), (2, 512), (3, 8192), (4, 1024)] {
        let buf = bed.buf(&[token as u8; 512]);
        bed.reactor.submit(token, Op::Write { file, offset, buf });
    }
    let cause = store_error(FileOp::Write, 8192, libc::ENOSPC);
    for done in bed.wait(4) {
        match done.token {
            2 => assert_eq!(done.result, Ok(512), "the kernel had it already"),
            3 => assert_eq!(done.result, Err(OpError::Store(cause))),
            _ => assert_eq!(done.result, Err(OpError::Poisoned(cause)), "{}", done.token),
        }
        assert!(matches!(done.buf, ReturnedBuf::One(_)));
    }
    assert_eq!(bed.reactor.pool().stats().pages_used, 0);
}

/// A real failure, not a planted one: writing to a file that was opened for reading.
#[test]
fn errors_of_the_kernel_arrive_with_place_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = image(dir.path(), 64 << 10);
    let opened = open_image(&path, crate::reactor::Access::ReadOnly).unwrap();
    for block in [512, 4096] {
        let mut bed = Bed::new();
        let options = FileOptions {
            logical_block: block,
            ..opened.options.clone()
        };
        let file = bed
            .reactor
            .add_file(opened.fd.try_clone().unwrap(), options);
        let cause = store_error(FileOp::Write, 1024, libc::EBADF);
        assert_eq!(bed.write(file, 1024, &[1; 512]), Err(OpError::Store(cause)));
        assert_eq!(
            bed.run(Op::Sync { file }).result,
            Err(OpError::Poisoned(cause))
        );
        assert_eq!(bed.read(file, 1024, 512).unwrap(), vec![0xAA; 512]);
    }
}

/// Nonsense from a front end must not reach the disk, and must not make the image unusable.
#[test]
fn invalid_requests_are_refused_without_poison() {
    let (mut bed, file, _dir) = with_faults("any:1000=EIO");
    let buf = bed.buf(&[0; 1024]);
    for (offset, buf) in [
        (1, buf.slice(..512)),
        (0, buf.slice(..511)),
        (0, buf.slice(..0)),
        (u64::MAX - 511, buf),
    ] {
        let done = bed.run(Op::Write { file, offset, buf });
        assert!(matches!(done.result, Err(OpError::Invalid(_))), "{offset}");
        assert!(matches!(done.buf, ReturnedBuf::One(_)));
    }
    for len in [0, 100, u64::MAX - 511] {
        let done = bed.run(Op::Zero {
            file,
            offset: 512,
            len,
        });
        assert!(matches!(done.result, Err(OpError::Invalid(_))), "{len}");
    }
    assert_eq!(bed.reactor.poisoned(file), None);
}

/// A short write taken for a whole one loses the rest; each byte must arrive once.
#[test]
fn short_results_are_continued() {
    let dir = tempfile::tempdir().unwrap();
    for block in [512, 4096] {
        let mut bed = Bed::new();
        let (path, opened) = image(dir.path(), 1 << 20);
        let faults = "any:1+=short:512".parse().unwrap();
        let options = FileOptions {
            logical_block: block,
            faults: Some(faults),
            ..opened.options
        };
        let file = bed.reactor.add_file(opened.fd, options);
        let bytes: Vec<u8> = (0..200 * 512u32).map(|n| (n / 512) as u8).collect();
        assert_eq!(bed.write(file, 512, &bytes), Ok(bytes.len() as u32));
        let bufs: Vec<Buf> = bytes.chunks(1536).map(|part| bed.buf(part)).collect();
        let count = bufs.len();
        let done = bed.run(Op::WriteV {
            file,
            offset: 300 * 512,
            bufs,
        });
        assert_eq!(done.result, Ok(bytes.len() as u32));
        assert_eq!(done.buf.into_many().unwrap().len(), count);
        assert!(bed.read(file, 512, bytes.len()).unwrap() == bytes);
        assert!(bed.read(file, 300 * 512, bytes.len()).unwrap() == bytes);
        assert!(bed.reactor.stats().continued >= 4, "the plant did not work");
        let disk = std::fs::read(&path).unwrap();
        assert!(disk[512..512 + bytes.len()] == bytes);
        assert_eq!((disk[511], disk[512 + bytes.len()]), (0xAA, 0xAA));
    }
}

/// More in flight than ring, bounce buffers or vector limits hold: slower, never lost or failed.
#[test]
fn a_full_ring_and_exhausted_bounce_buffers_only_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut bed = Bed::sized(8, 16 << 20);
    let (path, opened) = image(dir.path(), 16 << 20);
    let options = FileOptions {
        logical_block: 4096,
        ..opened.options
    };
    let file = bed.reactor.add_file(opened.fd, options);
    // 60 unaligned requests of 200 KiB want 12 MiB of bounce buffers; there are 2.
    let big = bed.buf(&[7; 200 << 10]);
    for n in 0..60 {
        let offset = n * (256 << 10) + 512;
        bed.reactor.submit(
            n,
            Op::Write {
                file,
                offset,
                buf: big.clone(),
            },
        );
    }
    assert!(bed.wait(60).iter().all(|done| done.result == Ok(200 << 10)));
    let disk = std::fs::read(&path).unwrap();
    for n in 0..60 {
        let at = n * (256 << 10) + 512;
        assert!(disk[at..at + (200 << 10)].iter().all(|&b| b == 7));
        assert_eq!((disk[at - 1], disk[at + (200 << 10)]), (0xAA, 0xAA));
    }
    let small = bed.buf(&[9; 4096]);
    for n in 0..3000 {
        bed.reactor.submit(
            n,
            Op::Write {
                file,
                offset: n * 4096,
                buf: small.clone(),
            },
        );
    }
    assert!(bed.wait(3000).iter().all(|done| done.result == Ok(4096)));
    assert!(bed.reactor.stats().backlog_max > 8);
    // 2000 pieces of one sector each, none adjacent in memory: two calls of the kernel at least.
    let bufs: Vec<Buf> = (0..2000)
        .map(|n| big.slice(n % 300 * 512..(n % 300 + 1) * 512))
        .rev()
        .collect();
    assert_eq!(
        bed.run(Op::WriteV {
            file,
            offset: 1024,
            bufs
        })
        .result,
        Ok(2000 * 512)
    );
}

/// A late answer under a reused id would complete the wrong request.
#[test]
fn removed_files_finish_what_they_had_and_refuse_the_rest() {
    let (mut bed, file, dir) = with_faults("write:2=delay:50ms");
    for token in 0..2 {
        let buf = bed.buf(&[5; 4096]);
        bed.reactor.submit(
            token,
            Op::Write {
                file,
                offset: token * 4096,
                buf,
            },
        );
    }
    assert!(bed.reactor.remove_file(file));
    assert!(!bed.reactor.remove_file(file));
    assert!(bed.reactor.file_fd(file).is_none());
    bed.reactor.submit(2, Op::Sync { file });
    for done in bed.wait(3) {
        let refused = done.token == 2;
        assert_eq!(
            done.result,
            if refused {
                Err(OpError::Removed)
            } else {
                Ok(4096)
            }
        );
    }
    let (_, opened) = image(dir.path(), 4096);
    let next = bed.reactor.add_file(opened.fd, opened.options);
    assert_ne!(next, file);
    let old = bed.read(file, 0, 512);
    assert_eq!(old, Err(OpError::Removed));
    assert_eq!(bed.read(next, 0, 512).unwrap(), vec![0xAA; 512]);
}

/// Memory unmapped under a running read lets the kernel write into whatever comes next.
#[test]
fn dropping_a_busy_reactor_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let mut bed = Bed::new();
        let (_, opened) = image(dir.path(), 8 << 20);
        let options = FileOptions {
            logical_block: if round % 2 == 0 { 512 } else { 4096 },
            ..opened.options
        };
        let file = bed.reactor.add_file(opened.fd, options);
        let pool = bed.reactor.pool().clone();
        let kept = bed.buf(&[3; 64 << 10]);
        for n in 0..100u64 {
            let offset = n * 70 * 512;
            if n % 2 == 0 {
                let buf = bed.reactor.pool().alloc(64 << 10).unwrap();
                bed.reactor.submit(n, Op::Read { file, offset, buf });
            } else {
                bed.reactor.submit(
                    n,
                    Op::Write {
                        file,
                        offset,
                        buf: kept.clone(),
                    },
                );
            }
        }
        bed.reactor.submit(100, Op::Sync { file });
        if round % 4 > 1 {
            bed.reactor
                .poll(Some(Duration::ZERO), &mut bed.done)
                .unwrap();
        }
        drop(bed);
        assert_eq!(pool.stats().pages_used, 16, "only the kept buffer");
        assert!(kept.iter().all(|&b| b == 3));
    }
}

/// What the kernel would not register must work all the same: more files than the table has slots,
/// buffers of a pool it does not know.
#[test]
fn unregistered_files_and_buffers_work() {
    let dir = tempfile::tempdir().unwrap();
    let mut bed = Bed::new();
    let (path, opened) = image(dir.path(), 1 << 20);
    let files: Vec<FileId> = (0..12)
        .map(|_| {
            bed.reactor
                .add_file(opened.fd.try_clone().unwrap(), opened.options.clone())
        })
        .collect();
    let foreign = crate::reactor::Pool::new(1 << 16, 1 << 16).unwrap();
    for (n, &file) in files.iter().enumerate() {
        let offset = n as u64 * 4096;
        let mut buf = foreign.alloc(4096).unwrap();
        buf.fill(n as u8);
        assert_eq!(
            bed.run(Op::Write {
                file,
                offset,
                buf: buf.freeze()
            })
            .result,
            Ok(4096)
        );
        assert_eq!(bed.run(Op::Sync { file }).result, Ok(0));
        let buf = foreign.alloc(4096).unwrap();
        let done = bed.run(Op::Read { file, offset, buf });
        assert!(done.buf.into_mut().unwrap().iter().all(|&b| b == n as u8));
        assert!(bed.reactor.remove_file(file));
    }
    assert_eq!(foreign.stats().pages_used, 0);
    assert!(
        std::fs::read(&path).unwrap()[12 * 4096..]
            .iter()
            .all(|&b| b == 0xAA)
    );
}

/// An owner with nothing in flight must not be put to sleep for ever.
#[test]
fn an_idle_reactor_returns_at_once() {
    let mut bed = Bed::new();
    bed.reactor.poll(None, &mut bed.done).unwrap();
    bed.reactor
        .poll(Some(Duration::from_millis(1)), &mut bed.done)
        .unwrap();
    assert!(bed.done.is_empty());
}

/// An image given out as discarded or zeroed must read as zeros wherever the file system helps.
#[test]
fn a_long_zero_crosses_all_ways_of_zeroing() {
    for dir in [
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")),
        tempfile::tempdir_in("/dev/shm"),
    ] {
        let dir = dir.unwrap();
        for (block, punch) in [(512, false), (4096, false), (512, true), (4096, true)] {
            let mut bed = Bed::new();
            let (path, opened) = image(dir.path(), 8 << 20);
            let options = FileOptions {
                logical_block: block,
                ..opened.options
            };
            let file = bed.reactor.add_file(opened.fd, options);
            let (offset, len) = (1536, (7 << 20) + 512);
            let op = if punch {
                Op::Discard { file, offset, len }
            } else {
                Op::Zero { file, offset, len }
            };
            assert_eq!(bed.run(op).result, Ok(0));
            let disk = std::fs::read(&path).unwrap();
            assert_eq!(disk.len(), 8 << 20);
            let (begin, end) = (offset as usize, (offset + len) as usize);
            assert!(disk[begin..end].iter().all(|&b| b == 0));
            assert!(disk[..begin].iter().chain(&disk[end..]).all(|&b| b == 0xAA));
        }
    }
}
