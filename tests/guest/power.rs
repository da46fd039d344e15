//! `/init` of the power-cut guest: the backup daemon on a disk that loses what was not flushed.
//!
//! Built by `xtask` with `rustc` as one static program. The daemon and blockrepctl stand beside it in
//! the initramfs with their libraries. `/dev/vda` is an ext4 file system with the daemon's state; the
//! image is a file on it, or `/dev/vdb`. The kernel's command line says what to do:
//! - `role=probe`: print `PROBE ok` and power off;
//! - `role=backup image=PATH`: start the daemon, print `POWER started` when it listens, and keep
//!   running until the machine is killed;
//! - `role=promote image=PATH`: the same, then promote and print `POWER promoted JSON`, or
//!   `POWER suspect WHY` before it where promotion needed the operator's word for a suspect epoch;
//!   keep serving the promoted disk until the machine is killed.
//!
//! `POWER refused WHY` is a refused promotion. `POWER failed WHY` is everything else unexpected; the
//! machine powers off then.

#[allow(dead_code)] // Shared with the ledger, which uses the rest.
mod system;

use std::ffi::{c_char, c_int, c_short, c_ulong};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use system::{CommandLine, Outcome, attach, load_modules, wait_for_disk};

const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const MASK: [u8; 4] = [255, 255, 255, 0];
const CONTROL: &str = "/run/backup.ctl";
/// blockrepctl: the daemon refuses.
const REFUSED: i32 = 4;
/// Looks at the daemon, 50 ms apart: two minutes, an emulated machine is slow.
const LOOKS_MAX: u32 = 2_400;

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *const Request) -> c_int;
}

fn main() {
    if let Err(why) = run() {
        println!("POWER failed {}", why.replace('\n', " "));
    }
    system::power_off();
}

fn run() -> Outcome<()> {
    system::attach_kernel_trees()?;
    let line = CommandLine::read()?;
    if line.word("role=") == Some("probe") {
        println!("PROBE ok");
        return Ok(());
    }
    let image = line
        .word("image=")
        .ok_or("image= is missing on the command line")?;
    load_modules()?;
    for disk in ["/dev/vda", image]
        .iter()
        .filter(|path| path.starts_with("/dev"))
    {
        wait_for_disk(Path::new(disk))?;
    }
    attach("/dev/vda", "/mnt", "ext4", "data=ordered")?;
    bring_up("eth0")?;
    let mut daemon = Command::new("/bin/blockrep-backup")
        .args([
            "--group",
            "power",
            "--listen",
            "10.0.2.15:9000",
            "--image",
            image,
        ])
        .args([
            "--state",
            "/mnt/state",
            "--journal-size",
            "32MiB",
            "--log",
            "info",
        ])
        .args([
            "--nbd",
            "tcp:10.0.2.15:10809",
            "--control",
            CONTROL,
            "--insecure-plaintext",
        ])
        // No terminal: it would draw its progress there.
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("start /bin/blockrep-backup: {e}"))?;
    let log = daemon.stderr.take().ok_or("the daemon has no stderr")?;
    let printer = std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            println!("{line}");
        }
    });
    if let Err(error) = wait_until_it_answers(&mut daemon) {
        // What it said comes before what is said of it. It may have ended already, and a printer that
        // failed has nothing to add.
        let _ = daemon.kill();
        let _ = printer.join();
        return Err(error);
    }
    println!("POWER started");
    if line.word("role=") == Some("promote") {
        promote()?;
    }
    let status = daemon
        .wait()
        .map_err(|e| format!("wait for the daemon: {e}"))?;
    Err(format!("the daemon has ended: {status}"))
}

fn wait_until_it_answers(daemon: &mut Child) -> Outcome<()> {
    for _ in 0..LOOKS_MAX {
        if let Some(status) = daemon
            .try_wait()
            .map_err(|e| format!("look at the daemon: {e}"))?
        {
            return Err(format!("the daemon does not start: {status}"));
        }
        if Path::new(CONTROL).exists() && control(&["status", "--json"])?.code == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("the daemon does not answer for two minutes".to_owned())
}

fn promote() -> Outcome<()> {
    let mut answer = control(&["promote", "--json"])?;
    // So the daemon answers where an epoch that may have been acknowledged is damaged.
    if answer.code == REFUSED && answer.errors.contains("--accept-suspect") {
        println!("POWER suspect {}", answer.errors);
        answer = control(&["promote", "--json", "--accept-suspect"])?;
    }
    match answer.code {
        0 => println!("POWER promoted {}", answer.text),
        REFUSED => println!("POWER refused {}", answer.errors),
        code => return Err(format!("blockrepctl ends with {code}: {}", answer.errors)),
    }
    Ok(())
}

/// What blockrepctl said, as one line each.
struct Answer {
    code: i32,
    text: String,
    errors: String,
}

fn control(arguments: &[&str]) -> Outcome<Answer> {
    let output = Command::new("/bin/blockrepctl")
        .args(["--control", CONTROL])
        .args(arguments)
        .output()
        .map_err(|e| format!("start /bin/blockrepctl: {e}"))?;
    let line = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    Ok(Answer {
        code: output.status.code().unwrap_or(-1),
        text: line(&output.stdout),
        errors: line(&output.stderr),
    })
}

/// ifreq of netdevice(7): a name, then an address or flags; 40 bytes on x86-64.
#[repr(C)]
struct Request {
    name: [c_char; 16],
    value: Value,
}

#[repr(C)]
union Value {
    flags: c_short,
    address: SocketAddress,
    room: [u64; 3],
}

/// sockaddr_in of ip(7).
#[repr(C)]
#[derive(Clone, Copy)]
struct SocketAddress {
    family: u16,
    port: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

const AF_INET: c_int = 2;
const SOCK_DGRAM: c_int = 2;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const SIOCSIFADDR: c_ulong = 0x8916;
const SIOCSIFNETMASK: c_ulong = 0x891c;
const IFF_UP: c_short = 1;

/// Gives the interface the address that QEMU's own network has for its guest.
fn bring_up(name: &str) -> Outcome<()> {
    // SAFETY: no memory involved.
    let fd = unsafe { socket(AF_INET, SOCK_DGRAM, 0) };
    if fd < 0 {
        return Err(format!("socket: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: just opened, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = |bytes| Value {
        address: SocketAddress {
            family: 2,
            port: 0,
            address: bytes,
            zero: [0; 8],
        },
    };
    for (what, request, mut value) in [
        ("address", SIOCSIFADDR, address(ADDRESS)),
        ("mask", SIOCSIFNETMASK, address(MASK)),
        ("flags", SIOCSIFFLAGS, Value { room: [0; 3] }),
    ] {
        if request == SIOCSIFFLAGS {
            value.flags = IFF_UP;
        }
        let mut asked = Request {
            name: [0; 16],
            value,
        };
        // The last place stays NUL.
        for (place, byte) in asked.name[..15].iter_mut().zip(name.bytes()) {
            *place = byte.cast_signed();
        }
        // SAFETY: the fd is open, and the kernel reads one ifreq, which is `asked`.
        if unsafe { ioctl(fd.as_raw_fd(), request, &asked) } != 0 {
            return Err(format!(
                "{what} of {name}: {}",
                std::io::Error::last_os_error()
            ));
        }
    }
    Ok(())
}
