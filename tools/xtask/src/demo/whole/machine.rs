//! The guest as QEMU has it: the same words at host A, at host B, and without protection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::stage::{GUEST, MAC, PORT, TAP};
use crate::checkout::tool;
use crate::demo::sparse_file;
use crate::guest::{self, Accelerator, BOOT_LIMIT};
use crate::kernel::GuestKernel;
use crate::process;
use crate::stop::minutes;

/// Room for the records of some minutes.
const DISK_BYTES: u64 = 256 << 20;

/// A guest that can be protected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a GuestKernel,
    pub(super) accelerator: Accelerator,
    pub(super) memory_mib: u32,
    /// For its program, on the kernel's command line.
    pub(super) words: &'a str,
    /// What its disk holds at first; without it nothing.
    pub(super) image: Option<&'a Path>,
    /// Until it says that it serves.
    pub(super) boot_limit: Duration,
    /// Until the standby has its disk and memory.
    pub(super) protected_limit: Duration,
}

impl<'a> Machine<'a> {
    /// The guest with the ledger.
    pub(super) fn teller(
        kernel: &'a GuestKernel,
        accelerator: Accelerator,
        words: &'a str,
    ) -> Self {
        Self {
            kernel,
            accelerator,
            memory_mib: guest::MEMORY_MIB,
            words,
            image: None,
            boot_limit: BOOT_LIMIT,
            protected_limit: protected_limit(guest::MEMORY_MIB),
        }
    }

    /// Its disk in the file `path`.
    pub(super) fn disk(&self, path: PathBuf) -> Result<PathBuf> {
        match self.image {
            Some(image) => copy(image, &path)?,
            None => sparse_file(&path, DISK_BYTES)?,
        }
        Ok(path)
    }
}

/// How long so much memory may take to the standby, on a busy machine.
pub(super) fn protected_limit(memory_mib: u32) -> Duration {
    Duration::from_secs(60 + u64::from(memory_mib) / 8)
}

/// Words for the guest's program.
pub(super) fn words(run: u64, pages_per_second: u64) -> String {
    format!(
        "role=teller run={run} address={GUEST} port={PORT} pages-per-second={pages_per_second} no_timer_check"
    )
}

/// Its network device: no option ROM, whose copy in memory nobody shares.
pub(super) fn network() -> [String; 4] {
    [
        "-netdev".to_owned(),
        format!("tap,id=n0,ifname={TAP},script=no,downscript=no,vhost=off"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=n0,mac={MAC},romfile="),
    ]
}

/// Its memory, in a file that others can map.
pub(super) fn memory(file: &Path, mib: u32) -> [String; 6] {
    [
        "-machine".to_owned(),
        "q35,memory-backend=ram".to_owned(),
        "-vga".to_owned(),
        "none".to_owned(),
        "-object".to_owned(),
        format!(
            "memory-backend-file,id=ram,size={mib}M,mem-path={},share=on",
            quoted(file)
        ),
    ]
}

/// All words for QEMU but those that the checkpointer gives: memory, QMP, and how it waits.
pub(super) fn protected(machine: &Machine<'_>, disk: &Path, serial: &Path) -> Vec<String> {
    let Machine {
        kernel,
        accelerator,
        words,
        ..
    } = machine;
    let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
        .map(str::to_owned)
        .to_vec();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-vga", "none", "-machine", "q35", "-smp", "1"]);
    add(&["-accel", accelerator.name()]);
    if *accelerator == Accelerator::Kvm {
        add(&["-cpu", "host"]);
    }
    add(&[
        "-chardev",
        &format!("file,id=serial,path={}", quoted(serial)),
    ]);
    add(&["-serial", "chardev:serial"]);
    add(&["-kernel", &kernel.image.display().to_string()]);
    add(&["-initrd", &kernel.initramfs.display().to_string()]);
    let line = "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off";
    add(&["-append", &format!("{line} {words}")]);
    arguments.extend(crate::guest::disk("d0", disk));
    arguments.extend(network());
    arguments
}

/// A copy with its holes, by the file system's own means where it has such.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = tool("cp");
    command.args(["--reflink=auto", "--sparse=always"]);
    command.arg(from).arg(to);
    let log = to.with_extension("log");
    process::run(&mut command, &log, minutes(5))?.success("cp")?;
    Ok(())
}

/// QEMU reads a comma as the end of a value unless it is doubled.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
