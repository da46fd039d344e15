//! `/init` of a guest whose disk holds a Debian system: it goes there and runs one of its programs.
//!
//! The kernel's command line: `run=/PATH user=N address=A` mounts /dev/vda, gives eth0 the address and runs the program as
//! that user, with nothing but the disk's own files. The program says `LEDGER-READY` itself. Where it ends,
//! `LEDGER-FAIL why` is said, and the machine powers off. `role=probe` prints `PROBE ok`.

mod network;
#[allow(dead_code)] // Shared with the ledger, which uses the rest.
mod system;

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use system::{CommandLine, Outcome, attach};

const DISK: &str = "/dev/vda";
const ROOT: &str = "/mnt";

fn main() {
    if let Err(why) = run() {
        println!("LEDGER-FAIL {}", why.replace('\n', " "));
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
    system::load_modules()?;
    system::wait_for_disk(Path::new(DISK))?;
    let address = line.word("address=").ok_or("address= is missing")?;
    let address: Ipv4Addr = address.parse().map_err(|e| format!("{address}: {e}"))?;
    network::bring_up("lo", Ipv4Addr::LOCALHOST)?;
    network::bring_up("eth0", address)?;
    attach(DISK, ROOT, "ext4", "")?;
    for (kind, below) in [("devtmpfs", "dev"), ("proc", "proc"), ("sysfs", "sys")] {
        attach(kind, &format!("{ROOT}/{below}"), kind, "")?;
    }
    attach("tmpfs", &format!("{ROOT}/dev/shm"), "tmpfs", "mode=1777")?;
    // From here on everything is the disk's.
    std::os::unix::fs::chroot(ROOT).map_err(|e| format!("chroot {ROOT}: {e}"))?;
    std::env::set_current_dir("/").map_err(|e| format!("/: {e}"))?;
    let program = line.word("run=").ok_or("run= is missing")?;
    let user = u32::try_from(line.number("user=")?).map_err(|e| format!("user=: {e}"))?;
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin");
    let status = command.uid(user).gid(user).status();
    let status = status.map_err(|e| format!("{program}: {e}"))?;
    Err(format!("{program} ended with {status}"))
}
