//! A primary in this process, whose allocations are counted, and its backup in a process of its own.

use blockrep::cli::{self, Start};
use blockrep::daemon;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use tempfile::TempDir;

pub(crate) const BLOCK_BYTES: usize = 4096;
/// Blocks of the disk.
pub(crate) const BLOCKS: u64 = 4096;
pub(crate) const WARM_UP: u64 = 3000;
pub(crate) const MEASURED: u64 = 20_000;
pub(crate) const DEPTH: u64 = 32;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_CLIENT.try_with(Cell::get).unwrap_or(true) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as asked.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as asked.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this process meanwhile, but for those of client threads.
pub(crate) fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Block of the disk for a request.
pub(crate) fn block_of(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Primary and backup.
pub(crate) struct Pair {
    dir: TempDir,
    /// Ends with the pair, also when a test fails.
    _backup: Ended,
    primary: JoinHandle<Result<(), daemon::StartError>>,
}

impl Pair {
    /// The front end is a flag and where the socket `a.front` is. What this thread allocates is not
    /// counted from now on.
    pub(crate) fn start(front: &str) -> Self {
        IS_CLIENT.set(true);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a.img", "b.img"] {
            let image = std::fs::File::create(at(name)).unwrap();
            image.set_len(BLOCKS * BLOCK_BYTES as u64).unwrap();
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        let backup = Command::new(env!("CARGO_BIN_EXE_blockrep-backup"))
            .args(["--listen", &address.to_string(), "--journal-size", "256MiB"])
            .arg("--image")
            .arg(at("b.img"))
            .arg("--control")
            .arg(at("b.ctl"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let spec = format!("remus:{address}|aio:{}", at("a.img").display());
        let socket = format!("unix:{}", at("a.front").display());
        let control = at("a.ctl").display().to_string();
        let args = [
            "blockrep",
            "-n",
            &spec,
            front,
            &socket,
            "--control",
            &control,
        ]
        .into_iter()
        .chain(["--ack", "local", "--on-backup-loss", "pause"])
        .chain(["--assume-identical"]);
        let Ok(Start::Run(config)) = cli::primary(args.map(Into::into)) else {
            panic!("these flags are right");
        };
        let primary = std::thread::spawn(move || daemon::run_primary(&config));
        Self {
            dir,
            _backup: Ended(backup),
            primary,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("a.front")
    }

    pub(crate) fn stop(self) {
        // SAFETY: a signal to this process, which has a handler for it.
        unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
        self.primary.join().unwrap().unwrap();
    }
}
