//! Tests of the reactor on real files and sockets.

mod bench;
mod files;
mod foreign;
mod model;
mod sockets;

use std::time::Duration;

use super::{
    Buf, Completion, FileId, FileOptions, Op, OpError, Reactor, ReactorConfig, open_image,
};

/// A hang must become a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reactor with its completions.
struct Bed {
    reactor: Reactor,
    done: Vec<Completion>,
}

impl Bed {
    fn new() -> Bed {
        Bed::sized(64, 16 << 20)
    }

    fn sized(entries: u32, pool_bytes: usize) -> Bed {
        let config = ReactorConfig {
            entries,
            file_slots: 8,
            pool_bytes,
            alloc_bytes_max: 1 << 20,
        };
        Bed {
            reactor: Reactor::new(&config).unwrap(),
            done: Vec::new(),
        }
    }

    fn buf(&self, bytes: &[u8]) -> Buf {
        let mut buf = self.reactor.pool().alloc(bytes.len()).unwrap();
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    /// Polls until `count` operations have completed, and takes their completions.
    fn wait(&mut self, count: usize) -> Vec<Completion> {
        while self.done.len() < count {
            let before = self.done.len();
            self.reactor.poll(Some(PATIENCE), &mut self.done).unwrap();
            assert!(
                self.done.len() > before,
                "no completion within {PATIENCE:?}"
            );
        }
        std::mem::take(&mut self.done)
    }

    /// Runs one operation alone.
    fn run(&mut self, op: Op) -> Completion {
        self.reactor.submit(77, op);
        let mut done = self.wait(1);
        assert_eq!((done.len(), done[0].token), (1, 77));
        done.remove(0)
    }

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> Result<u32, OpError> {
        let buf = self.buf(bytes);
        self.run(Op::Write { file, offset, buf }).result
    }

    fn read(&mut self, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, OpError> {
        let buf = self.reactor.pool().alloc(len).unwrap();
        let done = self.run(Op::Read { file, offset, buf });
        let buf = done.buf.into_mut().expect("a read gives its buffer back");
        done.result.map(|moved| {
            assert_eq!(moved as usize, len);
            buf.to_vec()
        })
    }
}

/// An image of `len` bytes 0xAA, and how it was opened.
fn image(dir: &std::path::Path, len: usize) -> (std::path::PathBuf, super::OpenedFile) {
    let path = dir.join("image");
    std::fs::write(&path, vec![0xAA; len]).unwrap();
    let opened = open_image(&path, super::Access::ReadWrite).unwrap();
    (path, opened)
}

/// The image again, through the page cache.
fn buffered(path: &std::path::Path) -> (std::os::fd::OwnedFd, FileOptions) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    (file.into(), FileOptions::buffered())
}
