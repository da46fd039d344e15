//! Reads into memory of somebody else.

use super::*;
use crate::reactor::{Foreign, PAGE_BYTES, Pool, ReturnedBuf};
use std::sync::Arc;

const PART_BYTES: usize = 8192;

/// Three stretches of a mapping, last first, with a gap in front of each.
fn stretches(whole: &mut [u8]) -> Vec<libc::iovec> {
    let base = whole.as_mut_ptr();
    [4, 2, 0]
        .map(|slot| libc::iovec {
            iov_base: base.wrapping_add(slot * PART_BYTES + PAGE_BYTES).cast(),
            iov_len: PART_BYTES,
        })
        .to_vec()
}

/// A guest gets the bytes where its segments say and nowhere else, also when the kernel gives them
/// bit by bit.
#[test]
fn a_read_fills_the_stretches_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..64usize << 10).map(|at| (at / 512) as u8).collect();
    for faults in ["", "read:2=short:512"] {
        let mut bed = Bed::new();
        let (path, opened) = image(dir.path(), content.len());
        std::fs::write(&path, &content).unwrap();
        let mut options = opened.options;
        options.faults = (!faults.is_empty()).then(|| faults.parse().unwrap());
        let file = bed.reactor.add_file(opened.fd, options);
        let pool = Pool::new(1 << 20, 1 << 20).unwrap();
        for _ in 0..2 {
            let mut whole = pool.alloc(6 * PART_BYTES).unwrap();
            whole.fill(0xEE);
            // SAFETY: the buffer lives until the read has completed.
            let memory = unsafe { Foreign::new(stretches(&mut whole), Arc::new(())) };
            let offset = 12 << 10;
            assert!(bed.reactor.reads_into(file, offset, &memory));
            let done = bed.run(Op::ReadInto {
                file,
                offset,
                memory,
            });
            assert_eq!(done.result, Ok(3 * PART_BYTES as u32), "{faults}");
            let ReturnedBuf::Foreign(memory) = done.buf else {
                panic!("it comes back");
            };
            assert!(memory.into_vec().is_empty());
            let mut expected = vec![0xEE; whole.len()];
            for (slot, from) in [4, 2, 0]
                .into_iter()
                .zip(content[offset as usize..].chunks(PART_BYTES))
            {
                let at = slot * PART_BYTES + PAGE_BYTES;
                expected[at..at + PART_BYTES].copy_from_slice(from);
            }
            assert!(whole[..] == expected[..], "{faults}");
        }
    }
}

/// What the file or the device cannot take as it is goes through a buffer of the pool instead.
#[test]
fn memory_that_does_not_suit_is_told_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut bed = Bed::new();
    let (_, opened) = image(dir.path(), 64 << 10);
    let options = FileOptions {
        direct: true,
        logical_block: 4096,
        mem_align: 512,
        faults: None,
    };
    let file = bed.reactor.add_file(opened.fd, options);
    let pool = Pool::new(1 << 20, 1 << 20).unwrap();
    let mut whole = pool.alloc(64 << 10).unwrap();
    let mut suits = |offset: u64, parts: &[(usize, usize)]| {
        let base = whole.as_mut_ptr();
        let parts = parts.iter().map(|(at, len)| libc::iovec {
            iov_base: base.wrapping_add(*at).cast(),
            iov_len: *len,
        });
        // SAFETY: nothing is read into it.
        let memory = unsafe { Foreign::new(parts.collect(), Arc::new(())) };
        bed.reactor.reads_into(file, offset, &memory)
    };
    assert!(suits(4096, &[(512, 4096), (8192, 8192)]));
    assert!(!suits(512, &[(0, 4096)]), "part of a block of the file");
    assert!(!suits(0, &[(0, 512)]), "part of a block of the file");
    assert!(!suits(0, &[(100, 4096)]), "memory the device cannot use");
    assert!(
        !suits(0, &[(0, 2048), (8192, 2048)]),
        "a block in two stretches"
    );
    assert!(!suits(0, &[]), "nothing");
}
