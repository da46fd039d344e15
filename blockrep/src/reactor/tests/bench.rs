//! How fast the reactor is on this machine. Run it alone, in a release build:
//! `cargo test --release -p blockrep reactor_bench -- --ignored --nocapture`.

use std::time::Instant;

use super::*;
use crate::reactor::{Access, OpenedFile};

const FILE_BYTES: u64 = 1 << 30;
const SECONDS: u64 = 3;

fn prepared() -> (tempfile::TempDir, OpenedFile) {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("bench");
    let mut bed = Bed::new();
    let opened = open_image(&path, Access::CreateNew).unwrap();
    let file = bed.reactor.add_file(opened.fd, opened.options);
    let buf = bed.buf(&vec![0; 1 << 20]);
    for n in 0..FILE_BYTES >> 20 {
        bed.reactor.submit(
            n,
            Op::Write {
                file,
                offset: n << 20,
                buf: buf.clone(),
            },
        );
        if n % 16 == 15 {
            bed.wait(16);
        }
    }
    assert_eq!(bed.run(Op::Sync { file }).result, Ok(0));
    (dir, open_image(&path, Access::ReadWrite).unwrap())
}

/// Random writes or reads of `len` bytes with `depth` in flight; operations a second, and how many
/// of them one system call carried.
fn rate(opened: &OpenedFile, depth: u64, len: usize, reads: bool) -> (f64, f64) {
    let mut bed = Bed::sized(256, 64 << 20);
    let file = bed
        .reactor
        .add_file(opened.fd.try_clone().unwrap(), opened.options.clone());
    let mut rng = fastrand::Rng::with_seed(1);
    let mut place = move || rng.u64(0..FILE_BYTES / len as u64) * len as u64;
    for _ in 0..depth {
        let buf = bed.reactor.pool().alloc(len).unwrap();
        let offset = place();
        bed.reactor.submit(
            0,
            if reads {
                Op::Read { file, offset, buf }
            } else {
                Op::Write {
                    file,
                    offset,
                    buf: buf.freeze(),
                }
            },
        );
    }
    let (begin, mut count) = (Instant::now(), 0u64);
    let mut done = Vec::new();
    while begin.elapsed().as_secs() < SECONDS {
        bed.reactor.poll(None, &mut done).unwrap();
        count += done.len() as u64;
        for completion in done.drain(..) {
            assert_eq!(completion.result, Ok(len as u32));
            let offset = place();
            let op = match completion.buf {
                crate::reactor::ReturnedBuf::Mut(buf) => Op::Read { file, offset, buf },
                crate::reactor::ReturnedBuf::One(buf) => Op::Write { file, offset, buf },
                _ => unreachable!("only reads and writes were submitted"),
            };
            bed.reactor.submit(0, op);
        }
    }
    let batch = count as f64 / bed.reactor.stats().enters as f64;
    (count as f64 / begin.elapsed().as_secs_f64(), batch)
}

#[test]
#[ignore = "measures for half a minute; its figures mean something on an idle machine only"]
fn reactor_bench() {
    let (_dir, opened) = prepared();
    println!(
        "direct: {}, block: {}",
        opened.options.direct, opened.options.logical_block
    );
    for (name, depth, len, reads) in [
        ("4K write QD1", 1, 4096, false),
        ("4K write QD32", 32, 4096, false),
        ("4K read QD32", 32, 4096, true),
        ("1M write QD4", 4, 1 << 20, false),
        ("512 B write QD32", 32, 512, false),
    ] {
        let (rate, batch) = rate(&opened, depth, len, reads);
        let mb = rate * len as f64 / 1e6;
        println!("{name:>18}: {rate:>9.0} /s {mb:>7.1} MB/s {batch:>5.2} per system call");
    }
}
