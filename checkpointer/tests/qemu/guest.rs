//! A guest of one boot sector: it counts in its memory, dirties pages, and does what a byte there tells it.

use checkpointer::hypervisor::qemu::spec::{Child, Place, Role, Spec};
use checkpointer::hypervisor::qemu::{Limits, Qemu};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Patience with what takes as long as it takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const COUNTER: u64 = 0x600;
const ORDER: u64 = 0x608;

/// What the guest can be told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    Off = 1,
    Reset = 2,
    /// Counts with the clock's 18 interrupts a second.
    Idle = 3,
}

/// Real mode, loaded at 0x7c00.
const CODE: [u8; 0x5c] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, // cli; ds = ss = 0; sp
    0x66, 0xc7, 0x06, 0x00, 0x06, 0, 0, 0, 0, // [0x600] = 0
    0x66, 0xff, 0x06, 0x00, 0x06, // 13: ++[0x600]
    0xa1, 0x00, 0x06, 0x83, 0xe0, 0x3f, 0xc1, 0xe0, 0x08, // ax = ([0x600] & 63) << 8
    0x05, 0x00, 0x10, 0x8e, 0xc0, // es = 0x1000 + ax: one of 64 pages
    0x66, 0xa1, 0x00, 0x06, 0x26, 0x66, 0xa3, 0x00, 0x00, // es:[0] = [0x600]
    0xa0, 0x08, 0x06, // al = [0x608]
    0x3c, 0x01, 0x74, 0x0d, 0x3c, 0x02, 0x74, 0x17, // 1: off, 2: reset
    0x3c, 0x03, 0x75, 0xd5, 0xfb, 0xf4, 0xfa, 0xeb, 0xd0, // 3: wait for an interrupt
    0xc6, 0x06, 0x08, 0x06, 0x00, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xeb, 0xfe, // off
    0xc6, 0x06, 0x08, 0x06, 0x00, 0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe, // reset
];

/// QEMU, or a word that it is not here.
pub(crate) fn program(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("qemu-system-x86_64"))
        .find(|program| program.is_file());
    if found.is_none() {
        println!("{test}: skipped, no qemu-system-x86_64 on the PATH");
    }
    found
}

pub(crate) fn limits() -> Limits {
    Limits {
        ask: LIMIT,
        pause: LIMIT,
    }
}

/// A directory in memory.
pub(crate) fn dir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in memory")
}

/// The boot disk, in a directory.
pub(crate) fn boot_disk(dir: &Path) -> PathBuf {
    // The firmware reads no disk that is as short as this sector.
    let mut sector = vec![0; 1 << 20];
    sector[..CODE.len()].copy_from_slice(&CODE);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let path = dir.join("boot");
    fs::write(&path, sector).expect("a boot sector");
    path
}

pub(crate) fn plain_args(boot: &Path) -> Vec<String> {
    let node = format!(
        "driver=file,filename={},read-only=on,node-name=boot",
        boot.display()
    );
    let words = [
        "-machine",
        "q35,accel=tcg",
        "-nodefaults",
        "-display",
        "none",
    ];
    let mut args: Vec<String> = words.map(str::to_owned).into();
    args.extend(["-blockdev".to_owned(), node]);
    args.extend(["-device", "virtio-blk-pci,drive=boot"].map(str::to_owned));
    args
}

/// A description with further arguments.
pub(crate) fn spec(program: &Path, boot: &Path, more: &[&str]) -> Spec {
    let mut args = plain_args(boot);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    let text = format!(
        "guest = \"g\"\n[qemu]\nprogram = {:?}\nmemory_mib = 32\nargs = {args:?}\n",
        program.display().to_string()
    );
    Spec::parse(&text).expect("a description")
}

/// A running guest of a description.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) qemu: Qemu,
    pub(crate) child: Child,
    pub(crate) spec: Spec,
    pub(crate) place: Place,
    pub(crate) memory: Memory,
    pub(crate) dir: TempDir,
}

impl Guest {
    /// Started, and counting.
    pub(crate) fn start(program: &Path, more: &[&str]) -> Self {
        let dir = dir();
        let spec = spec(program, &boot_disk(dir.path()), more);
        let place = spec.place(dir.path());
        let mut child = spec.start(Role::Primary, &place).expect("started");
        let qemu = child.attach(limits()).expect("attached");
        let memory = Memory::open(&place.memory);
        memory.wait_counting(0);
        Self {
            qemu,
            child,
            spec,
            place,
            memory,
            dir,
        }
    }

    /// Another place with memory for it.
    pub(crate) fn standby_place(&self) -> Place {
        let dir = self.dir.path().join("standby");
        fs::create_dir_all(&dir).expect("a directory");
        let place = self.spec.place(&dir);
        let file = File::create(&place.memory).expect("a file");
        file.set_len(self.spec.memory_bytes()).expect("its length");
        place
    }
}

impl Guest {
    /// Into the file that is there: a standby has it mapped.
    pub(crate) fn copy_memory(&self, place: &Place) {
        let pages = fs::read(&self.place.memory).expect("memory");
        fs::write(&place.memory, pages).expect("copied");
    }
}

/// The guest's memory from outside.
#[derive(Debug)]
pub(crate) struct Memory(File);

impl Memory {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path);
        Self(file.expect("the guest's memory"))
    }

    pub(crate) fn counter(&self) -> u32 {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, COUNTER).expect("read");
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn order(&self, order: Order) {
        self.0.write_all_at(&[order as u8], ORDER).expect("write");
    }

    /// Until it counts from below `limit` or, with 0, from anywhere.
    pub(crate) fn wait_counting(&self, below: u32) {
        wait_for("a guest that counts", || {
            let first = self.counter();
            std::thread::sleep(Duration::from_millis(5));
            let second = self.counter();
            0 < first && first < second && (below == 0 || first < below)
        });
    }

    /// Until it is beyond a value.
    pub(crate) fn wait_beyond(&self, value: u32) {
        wait_for("a guest that goes on", || self.counter() > value);
    }
}

pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is_there() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
