//! An unmodified QEMU with a guest that writes here and there: at each stop the shadow is its memory.

use crate::child::{PATIENCE, ram, until};
use crate::has;
use crate::shadow::Shadow;
use checkpointer::memory::PAGE_BYTES;
use checkpointer::memory::tracker::Kind;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const QEMU: &str = "qemu-system-x86_64";
const RAM_BYTES: u64 = 64 << 20;
/// Writes words all over 32 MiB from the first on, one every few microseconds, for ever. Flat addresses in real mode:
///
/// ```text
///   cli; ds = ss = 0; sp = 0x7c00; lgdt; fs = 4 GiB from 0 (by a moment of protected mode)
///   ebx = 12345
/// next: ebx = ebx * 1664525 + 1013904223
///   fs:[0x100000 + (ebx >> 8 & 0x1ffffff)] = ebx
///   cx = 2000; wait: loop wait
///   jmp next
/// ```
const GUEST: [u8; 106] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x0f, 0x01, 0x16, 0x64, 0x7c, 0x0f,
    0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xbb, 0x08, 0x00, 0x8e, 0xe3, 0x24, 0xfe, 0x0f, 0x22,
    0xc0, 0x66, 0xbb, 0x39, 0x30, 0x00, 0x00, 0x66, 0x69, 0xdb, 0x0d, 0x66, 0x19, 0x00, 0x66, 0x81,
    0xc3, 0x5f, 0xf3, 0x6e, 0x3c, 0x66, 0x89, 0xd8, 0x66, 0xc1, 0xe8, 0x08, 0x66, 0x25, 0xff, 0xff,
    0xff, 0x01, 0x66, 0x05, 0x00, 0x00, 0x10, 0x00, 0x64, 0x67, 0x66, 0x89, 0x18, 0xb9, 0xd0, 0x07,
    0xe2, 0xfe, 0xeb, 0xd3, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00,
    0x00, 0x92, 0xcf, 0x00, 0x0f, 0x00, 0x54, 0x7c, 0x00, 0x00,
];

#[derive(Debug)]
struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    dir: tempfile::TempDir,
}

impl Qemu {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir_in("/dev/shm").expect("/dev/shm");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut disk = vec![0; 1 << 20];
        disk[..GUEST.len()].copy_from_slice(&GUEST);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(path("disk"), disk).expect("a disk");
        let memory = format!(
            "memory-backend-file,id=m0,size={RAM_BYTES},mem-path={},share=on",
            path("ram")
        );
        let mut command = Command::new(QEMU);
        command
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-S"])
            .args([
                "-machine",
                "pc,memory-backend=m0",
                "-m",
                "64M",
                "-object",
                &memory,
            ])
            .args([
                "-drive",
                &format!("file={},format=raw,if=ide", path("disk")),
            ])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))])
            .stdin(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                println!("skipped: no {QEMU}: {e}");
                return None;
            }
        };
        let mut stream = None;
        until("QEMU speaks", || {
            stream = UnixStream::connect(path("qmp")).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut it = Self {
            child,
            qmp: BufReader::new(stream),
            dir,
        };
        it.read();
        it.order("qmp_capabilities");
        Some(it)
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("it answers");
        line
    }

    fn order(&mut self, what: &str) {
        let order = format!("{{\"execute\": \"{what}\"}}\n");
        self.qmp
            .get_mut()
            .write_all(order.as_bytes())
            .expect("told");
        loop {
            let answer = self.read();
            assert!(
                !answer.is_empty() && !answer.contains("\"error\""),
                "{what}: {answer}"
            );
            if answer.contains("\"return\"") {
                return;
            }
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(kind: Kind, rounds: u64) {
    let Some(mut qemu) = Qemu::start() else {
        return;
    };
    let ram = ram(&qemu.dir.path().join("ram"), RAM_BYTES / PAGE_BYTES);
    let tried = Shadow::attach(qemu.child.id(), &ram, kind);
    if !has(kind, &tried) {
        return;
    }
    let mut shadow = tried.expect("attached");
    qemu.order("cont");
    shadow.first_copy();
    let mut random = fastrand::Rng::with_seed(9);
    let (mut told, mut wrote) = (0, 0);
    let mut round = 0;
    // The firmware takes its time; what counts are rounds in which the guest has written.
    while wrote < rounds {
        std::thread::sleep(Duration::from_millis(random.u64(1..15)));
        qemu.order("stop");
        let pages = shadow.follow();
        told += pages;
        wrote += u64::from(pages > 20);
        round += 1;
        let differing = shadow.differing();
        assert_eq!(
            differing, None,
            "page {differing:?} after {round} checkpoints"
        );
        qemu.order("cont");
        assert!(
            round < 100 * rounds,
            "the guest writes nothing: {told} pages"
        );
    }
    shadow.tracker.disarm().expect("disarmed");
    qemu.order("query-status");
    println!("QEMU, {}: {told} pages in {round} checkpoints", kind.word());
}

#[test]
fn a_guest_is_followed_by_userfaultfd() {
    follow(Kind::Userfaultfd, 200);
}

#[test]
fn a_guest_is_followed_by_comparing() {
    follow(Kind::Compare, 50);
}

#[test]
fn a_guest_is_followed_by_soft_dirty_bits() {
    follow(Kind::SoftDirty, 50);
}
