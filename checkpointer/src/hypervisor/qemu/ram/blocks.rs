//! QEMU's list of memory, as its human monitor prints it: the only place that names all of it.

/// Most that are read.
const BLOCKS_READ_MAX: usize = 4096;

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// QEMU's name, such as `pc.bios` or the id of a memory object.
    pub name: String,
    /// Bytes it may have.
    pub size_bytes: u64,
}

impl RamBlock {
    /// Whether it is the memory of an object; old machine types name it by its path.
    #[must_use]
    pub fn is_of(&self, id: &str) -> bool {
        self.name == id || self.name.strip_prefix("/objects/") == Some(id)
    }
}

/// Memory of a device, or of firmware, that lies in no shared file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// QEMU's name.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// Neither guest nor device changes it: firmware, and tables that QEMU makes.
    pub is_constant: bool,
}

impl Outside {
    pub(super) fn of(block: &RamBlock) -> Self {
        Self {
            is_constant: is_constant(&block.name),
            name: block.name.clone(),
            size_bytes: block.size_bytes,
        }
    }
}

/// Known by name to be written by nobody once the machine is built. What is not known counts as written.
///
/// - `pc.bios`, `pc.rom`, `isa-bios`: firmware, mapped read-only; the guest's shadow copy is in its own memory.
/// - `/rom@…`: tables that QEMU hands to the firmware, and makes anew when that asks.
/// - `….rom`: option ROMs of PCI devices.
fn is_constant(name: &str) -> bool {
    let firmware = ["pc.bios", "pc.rom", "isa-bios", "microvm.bios"];
    firmware.contains(&name) || name.starts_with("/rom@") || name.ends_with(".rom")
}

/// # Errors
/// What is no such list.
pub(super) fn parse(text: &str) -> Result<Vec<RamBlock>, String> {
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    if !head.contains("Block Name") || !head.contains("Total") {
        return Err(format!("{head:?} heads no list of memory"));
    }
    let mut blocks = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        if blocks.len() >= BLOCKS_READ_MAX {
            return Err(format!("more than {BLOCKS_READ_MAX} blocks"));
        }
        blocks.push(block(line).ok_or_else(|| format!("{line:?} is no block"))?);
    }
    Ok(blocks)
}

/// `name  4 KiB  offset  used  total`; newer ones have more behind that.
fn block(line: &str) -> Option<RamBlock> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let first = words.iter().position(|word| word.starts_with("0x"))?;
    // Before it: a name, which may have blanks, a number and its unit.
    let name = words.get(..first.checked_sub(2)?)?;
    let total = words.get(first + 2)?.strip_prefix("0x")?;
    let name = name.join(" ");
    (!name.is_empty()).then_some(())?;
    Some(RamBlock {
        name,
        size_bytes: u64::from_str_radix(total, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    //! A writable block that is taken for a constant one is missing in every copy.
    use super::*;

    const OLD: &str = "\
              Block Name    PSize              Offset               Used              Total
            blockrep-ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000
    /rom@etc/acpi/tables    4 KiB  0x0000000010080000 0x0000000000020000 0x0000000000200000
  0000:00:01.0/vga.vram    4 KiB  0x0000000010280000 0x0000000001000000 0x0000000001000000
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x0000000011280000 0x0000000000040000 0x0000000000040000
           system.flash1    4 KiB  0x0000000011300000 0x0000000000084000 0x0000000000084000
";
    const NEW: &str = "\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                    ram0    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f1234000000  rw
                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000 0x00007f1230000000  ro
";

    #[test]
    fn both_shapes_of_the_list_are_read() {
        let blocks = parse(OLD).expect("a list");
        assert_eq!(blocks.len(), 6);
        assert_eq!(blocks[2].size_bytes, 0x20_0000);
        assert!(blocks[0].is_of("blockrep-ram") && !blocks[0].is_of("ram"));
        let mutable: Vec<_> = blocks[1..]
            .iter()
            .map(Outside::of)
            .filter(|block| !block.is_constant)
            .map(|block| block.name)
            .collect();
        assert_eq!(mutable, ["0000:00:01.0/vga.vram", "system.flash1"]);
        let blocks = parse(NEW).expect("a list");
        assert_eq!(
            (blocks[0].name.as_str(), blocks[0].size_bytes),
            ("ram0", 0x1000_0000)
        );
        let by_path = RamBlock {
            name: "/objects/m0".to_owned(),
            size_bytes: 1,
        };
        assert!(by_path.is_of("m0"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(parse("unknown command: 'info ramblock'").is_err());
        assert!(parse(&OLD.replace("KiB  0x0", "KiB  zz")).is_err());
    }
}
