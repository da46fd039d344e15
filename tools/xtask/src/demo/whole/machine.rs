//! The guest as QEMU has it: the same words at host A, at host B, and without protection.

use std::path::Path;

use super::stage::{GUEST, MAC, PORT, TAP};
use crate::guest::Accelerator;
use crate::kernel::GuestKernel;

pub(super) const MEMORY_MIB: u32 = 256;
/// Room for the records of some minutes.
pub(super) const DISK_BYTES: u64 = 256 << 20;

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
pub(super) fn memory(file: &Path) -> [String; 6] {
    [
        "-machine".to_owned(),
        "q35,memory-backend=ram".to_owned(),
        "-vga".to_owned(),
        "none".to_owned(),
        "-object".to_owned(),
        format!(
            "memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={},share=on",
            quoted(file)
        ),
    ]
}

/// All words for QEMU but those that the checkpointer gives: memory, QMP, and how it waits.
pub(super) fn protected(
    kernel: &GuestKernel,
    accelerator: Accelerator,
    append: &str,
    disk: &Path,
    serial: &Path,
) -> Vec<String> {
    let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
        .map(str::to_owned)
        .to_vec();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-vga", "none", "-machine", "q35", "-smp", "1"]);
    add(&["-accel", accelerator.name()]);
    if accelerator == Accelerator::Kvm {
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
    add(&["-append", &format!("{line} {append}")]);
    arguments.extend(crate::guest::disk("d0", disk));
    arguments.extend(network());
    arguments
}

/// QEMU reads a comma as the end of a value unless it is doubled.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
