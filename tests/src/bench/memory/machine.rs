//! The guests: one of a boot sector, whose written pages are counted, and Linux, which sleeps.
//!
//! Both have the machine of the demo without its network: q35, one disk that is served over NBD.

use super::Kernel;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Its turns, where it counts them in its memory.
const COUNTER: u64 = 0x600;
/// Where the sector has the end of memory and the pages to write in each turn; both 32 bits.
const END: usize = 0x1f0;
const PAGES: usize = 0x1f4;
/// Where the firmware puts the sector.
const LOADED: u64 = 0x7c00;
/// Longest time to boot.
const BOOT_MAX: Duration = Duration::from_secs(120);

/// Real mode to protected mode, a clock of 25 ms, and then for ever: write so many pages, one word in three places of each, and
/// wait for the clock. At first every page from 2 MiB to [`END`] is written once. Pages are 2,015 apart, round and round.
///
/// ```text
///  cli; ds = ss = 0; [0x600] = 0; gate A20; lgdt; protected mode; esp = 0x7c00
///  idt[8] = tick; only the clock's interrupt; clock at 29830 / 1193182 s
///  for (edi = 2M; edi < [END]; edi += 4K) [edi] = [edi + 0x800] = edi
///  for (edi = 2M;;) { ++[0x600];
///      for (ecx = [PAGES]; ecx; --ecx) { [edi] = [edi + 0x7f0] = [0x600]; [edi + 4] += edi; edi = next }
///      sti; hlt; cli }
///  tick: end of interrupt; iret
/// ```
const CODE: [u8; 248] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x66, 0xc7, 0x06, 0x00, 0x06, 0x00,
    0x00, 0x00, 0x00, 0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92, 0x66, 0x0f, 0x01, 0x16, 0xec, 0x7c, 0x0f,
    0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xea, 0x2c, 0x7c, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00,
    0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x00, 0x00, 0xbf, 0x40, 0x08, 0x00, 0x00,
    0x66, 0xc7, 0x07, 0xcc, 0x7c, 0x66, 0xc7, 0x47, 0x02, 0x08, 0x00, 0xc7, 0x47, 0x04, 0x00, 0x8e,
    0x00, 0x00, 0x0f, 0x01, 0x1d, 0xf2, 0x7c, 0x00, 0x00, 0xb0, 0xfe, 0xe6, 0x21, 0xb0, 0xff, 0xe6,
    0xa1, 0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x86, 0xe6, 0x40, 0xb0, 0x74, 0xe6, 0x40, 0xbf, 0x00, 0x00,
    0x20, 0x00, 0x89, 0x3f, 0x89, 0xbf, 0x00, 0x08, 0x00, 0x00, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,
    0x3b, 0x3d, 0xf0, 0x7d, 0x00, 0x00, 0x72, 0xea, 0xbf, 0x00, 0x00, 0x20, 0x00, 0xff, 0x05, 0x00,
    0x06, 0x00, 0x00, 0x8b, 0x0d, 0xf4, 0x7d, 0x00, 0x00, 0xe3, 0x2c, 0xa1, 0x00, 0x06, 0x00, 0x00,
    0x89, 0x07, 0x01, 0x7f, 0x04, 0x89, 0x87, 0xf0, 0x07, 0x00, 0x00, 0x81, 0xc7, 0x00, 0xf0, 0x7d,
    0x00, 0x3b, 0x3d, 0xf0, 0x7d, 0x00, 0x00, 0x72, 0x0c, 0x2b, 0x3d, 0xf0, 0x7d, 0x00, 0x00, 0x81,
    0xc7, 0x00, 0x00, 0x20, 0x00, 0xe2, 0xd4, 0xfb, 0xf4, 0xfa, 0xeb, 0xc1, 0x50, 0xb0, 0x20, 0xe6,
    0x20, 0x58, 0xcf, 0x90, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00,
    0x00, 0x9a, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0x17, 0x00, 0xd4, 0x7c,
    0x00, 0x00, 0xff, 0x07, 0x00, 0x08, 0x00, 0x00,
];

/// What runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside<'a> {
    /// The boot sector.
    Sector,
    /// A kernel with one program that sleeps.
    Linux(&'a Kernel),
}

/// A guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine<'a> {
    pub(super) inside: Inside<'a>,
    pub(super) memory_mib: u64,
    /// It has a screen, whose memory nobody shares: its device state has to be saved by a migration.
    pub(super) has_screen: bool,
}

impl Machine<'_> {
    /// QEMU's words for it, but for memory and monitor.
    pub(super) fn args(&self, disk: &Path, serial: &Path) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-display", "none"]);
        add(&["-vga", if self.has_screen { "std" } else { "none" }]);
        add(&["-machine", "q35", "-smp", "1", "-accel", "tcg"]);
        let serial = format!("file,id=serial,path={}", serial.display());
        add(&["-chardev", &serial, "-serial", "chardev:serial"]);
        if let Inside::Linux(kernel) = self.inside {
            add(&["-kernel", &kernel.image.display().to_string()]);
            add(&["-initrd", &kernel.initramfs.display().to_string()]);
            add(&["-append", &kernel.append]);
        }
        let node = format!(
            "driver=nbd,node-name=d0,server.type=unix,server.path={},cache.direct=on",
            disk.display()
        );
        add(&["-blockdev", &node]);
        add(&["-device", "virtio-blk-pci,drive=d0,write-cache=on"]);
        args
    }

    /// An image for its disk, which it may boot from.
    pub(super) fn make_image(&self, path: &Path) -> Result<()> {
        let mut sector = [0; 512];
        sector[..CODE.len()].copy_from_slice(&CODE);
        let end = u32::try_from(self.memory_mib << 20)?;
        sector[END..END + 4].copy_from_slice(&end.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        let file = File::create(path).with_context(|| path.display().to_string())?;
        file.set_len(64 << 20)?;
        file.write_all_at(&sector, 0)?;
        Ok(())
    }
}

/// The guest's memory from outside.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path);
        Ok(Self(file.with_context(|| path.display().to_string())?))
    }

    /// Turns that the guest has made.
    pub(super) fn turns(&self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, COUNTER)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Lets it write that many pages in each turn.
    pub(super) fn write_pages(&self, count: u32) -> Result<()> {
        let at = LOADED + PAGES as u64;
        self.0.write_all_at(&count.to_le_bytes(), at)?;
        Ok(())
    }

    /// Waits until the guest of a boot sector turns, or Linux says that it is ready.
    pub(super) fn wait_booted(&self, inside: Inside<'_>, serial: &Path) -> Result<()> {
        let until = Instant::now() + BOOT_MAX;
        loop {
            let is_up = match inside {
                Inside::Sector => {
                    let before = self.turns()?;
                    std::thread::sleep(Duration::from_millis(60));
                    let after = self.turns()?;
                    before > 0 && after > before && after - before < 100
                }
                Inside::Linux(_) => {
                    let said = std::fs::read(serial).unwrap_or_default();
                    String::from_utf8_lossy(&said).contains("LEDGER-READY")
                }
            };
            if is_up {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the guest did not boot");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sector whose numbers lie in its code boots into nothing.
    #[test]
    fn the_sector_has_code_numbers_and_the_firmwares_mark() {
        const { assert!(CODE.len() <= END && PAGES + 4 <= 510) };
        let file = tempfile::NamedTempFile::new().expect("a file");
        let machine = Machine {
            inside: Inside::Sector,
            memory_mib: 1024,
            has_screen: false,
        };
        machine.make_image(file.path()).expect("made");
        let bytes = std::fs::read(file.path()).expect("read");
        assert_eq!(bytes[..CODE.len()], CODE);
        assert_eq!(bytes[END..PAGES], [0, 0, 0, 0x40]);
        assert_eq!(bytes[510..512], [0x55, 0xaa]);
    }
}
