//! A disk that loses what was not flushed: a file with what is durable, a cache with the rest, and a
//! server for one QEMU.
//!
//! What a cut takes is [`super::cache`]'s business, what QEMU says [`super::nbd`]'s. A cut happens
//! between two requests, and from then on nothing is answered.
//!
//! Threads: one serves, from the start to the drop. The state is behind a mutex that is held for one
//! request.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use super::cache::{Cache, Cut, Moved, SECTOR_BYTES};
use super::nbd;

/// More than this no cache holds: it destages all, as a drive may at any time.
const CACHE_BYTES_MAX: usize = 96 << 20;

/// What went through a disk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) writes: u64,
    pub(super) flushes: u64,
}

/// All of a disk but its thread.
#[derive(Debug)]
pub(super) struct State {
    durable: File,
    pub(super) bytes: u64,
    cache: Cache,
    counts: Counts,
    /// Number of the last write that was answered.
    answered: u64,
    /// Sectors that were last written with zeros; while `lies`, as they were when it began.
    zeroed: BTreeSet<u64>,
    /// Flushes are answered, and do not reach `zeroed`.
    lies: bool,
    /// The power is off.
    pub(super) off: bool,
    /// The medium failed: the lab's fault, not the product's.
    failed: Option<String>,
    pub(super) random: fastrand::Rng,
    pub(super) client: Option<UnixStream>,
}

/// A disk under power; dropped = switched off, and its thread has ended.
#[derive(Debug)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Serves `medium` on `socket` for one client. `seed` decides which answers are held back, and
    /// what a cut takes.
    pub(super) fn power_on(medium: &Path, socket: &Path, seed: u64) -> Result<Self> {
        let durable = File::options().read(true).write(true).open(medium);
        let durable = durable.with_context(|| format!("open {}", medium.display()))?;
        let bytes = durable.metadata()?.len();
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("listen on {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let state = Arc::new(Mutex::new(State {
            durable,
            bytes,
            cache: Cache::default(),
            counts: Counts::default(),
            answered: 0,
            zeroed: BTreeSet::new(),
            lies: false,
            off: false,
            failed: None,
            random: fastrand::Rng::with_seed(seed),
            client: None,
        }));
        let theirs = Arc::clone(&state);
        let server = std::thread::spawn(move || nbd::serve(&listener, &theirs));
        Ok(Self {
            state,
            socket: socket.to_owned(),
            server: Some(server),
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// From now on flushes are answered and do not reach what has been zeroed so far: the space that
    /// a journal lays out for itself before it is used. The file system around it is not lied to.
    pub(super) fn lie(&self) {
        lock(&self.state).lies = true;
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.state).counts
    }

    /// Takes the power away.
    pub(super) fn cut(&self) -> Result<Cut> {
        let mut state = lock(&self.state);
        if let Some(why) = &state.failed {
            bail!("the lab's disk failed: {why}");
        }
        state.off = true;
        let State { cache, random, .. } = &mut *state;
        let (cut, moved) = cache.cut(random);
        state.settle(&moved).context("the lab's disk failed")?;
        Ok(cut)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.state);
            state.off = true;
            if let Some(client) = &state.client {
                // A client that is gone already is what is wanted.
                let _ = client.shutdown(std::net::Shutdown::Both);
            }
        }
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

pub(super) fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .expect("the server's thread does not panic while it holds the lock")
}

impl State {
    /// Moves sectors to the durable medium.
    fn settle(&self, moved: &[Moved]) -> io::Result<()> {
        for (sector, bytes) in moved {
            self.durable
                .write_all_at(bytes, sector * SECTOR_BYTES as u64)?;
        }
        Ok(())
    }

    /// Reads whole sectors that are on the disk; an error number, 0 if there is none.
    pub(super) fn read(&mut self, offset: u64, into: &mut [u8]) -> u32 {
        let outcome = self.durable.read_exact_at(into, offset);
        let first = offset / SECTOR_BYTES as u64;
        for (sector, bytes) in (first..).zip(into.chunks_exact_mut(SECTOR_BYTES)) {
            if let Some(newest) = self.cache.newest(sector) {
                bytes.copy_from_slice(newest);
            }
        }
        self.number_of(outcome)
    }

    /// Takes whole sectors that are on the disk.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> u32 {
        self.counts.writes += 1;
        let number = self.counts.writes;
        let first = offset / SECTOR_BYTES as u64;
        self.cache.write(number, first, bytes);
        if !self.lies {
            self.note_zeros(first, bytes);
        }
        let mut outcome = Ok(());
        if self.cache.bytes() > CACHE_BYTES_MAX {
            let moved = self.cache.flush(number, |_| true);
            outcome = self.settle(&moved);
        }
        self.number_of(outcome)
    }

    fn note_zeros(&mut self, first: u64, bytes: &[u8]) {
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            if bytes.iter().all(|byte| *byte == 0) {
                self.zeroed.insert(sector);
            } else {
                self.zeroed.remove(&sector);
            }
        }
    }

    pub(super) fn flush(&mut self) -> u32 {
        self.counts.flushes += 1;
        let (lies, zeroed) = (self.lies, &self.zeroed);
        let reaches = |sector| !lies || !zeroed.contains(&sector);
        let moved = self.cache.flush(self.answered, reaches);
        let outcome = self.settle(&moved);
        self.number_of(outcome)
    }

    /// All writes so far have been answered, so that the next flush covers them.
    pub(super) fn all_answered(&mut self) {
        self.answered = self.counts.writes;
    }

    /// The error number of an outcome; a failure is kept for whoever ends the round.
    fn number_of(&mut self, outcome: io::Result<()>) -> u32 {
        match outcome {
            Ok(()) => 0,
            Err(error) => {
                self.failed = Some(error.to_string());
                nbd::EIO
            }
        }
    }
}
