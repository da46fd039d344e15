//! Where a guest's memory lies: in which files, where QEMU has them mapped, and what lies in none.
//!
//! QEMU names its memory objects; `/proc` shows which file each is and at which addresses it is mapped. Both have
//! to agree, or the guest is refused: a page that is looked for at the wrong place is a page that is lost.

use super::{Error, Qemu};
use crate::memory::PAGE_BYTES;
use crate::memory::dirty::Pages;
use crate::memory::ram::{Block, Ram};
use blkback_proto::ctl::PageRegion;
use maps::{Vma, backing};
use serde_json::Value;

mod blocks;
mod maps;

pub use blocks::{Outside, RamBlock};

/// A block as QEMU has it mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Address in QEMU's process.
    pub start: u64,
    /// Length.
    pub bytes: u64,
    /// Number of its first page in [`Layout::ram`].
    pub first_page: u64,
}

/// A memory object of QEMU's that a guest's memory can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its id.
    pub id: String,
    /// Length.
    pub size_bytes: u64,
    /// Others may map it.
    pub is_shared: bool,
    /// QEMU's type of it, such as `memory-backend-file`; empty where it does not say.
    pub kind: String,
    /// File or directory, of a `memory-backend-file`.
    pub path: Option<String>,
    /// Where in the file it begins.
    pub offset: u64,
}

/// All that is known of a guest's memory.
#[derive(Debug)]
pub struct Layout {
    /// The blocks in files, which are copied.
    pub ram: Ram,
    /// Where QEMU has them, in the same order.
    pub mapped: Vec<Mapped>,
    /// Memory of devices that lies in no shared file.
    pub outside: Vec<Outside>,
    /// Device and inode of each block's file.
    files: Vec<(u64, u64)>,
}

impl Layout {
    /// Of a running QEMU, whose process is on this host.
    ///
    /// # Errors
    /// Of the monitor; or the guest's memory is not all in shared files, in words.
    pub fn find(qemu: &mut Qemu) -> Result<Self, Error> {
        let blocks = ram_blocks(qemu)?;
        let backends = backends(qemu)?;
        let pid = qemu.pid();
        let maps = maps::read(pid)?;
        let (mut found, mut mapped, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let mut page = 0;
        for backend in &backends {
            // An object that no machine uses is no memory of the guest.
            if !blocks.iter().any(|block| block.is_of(&backend.id)) {
                continue;
            }
            if !backend.is_shared {
                return Err(Error::Unfit(format!(
                    "memory {} is private to QEMU: give it share=on",
                    backend.id
                )));
            }
            let (vma, file): (Vma, _) = backing(pid, backend, &backends, &maps)?;
            mapped.push(Mapped {
                start: vma.start,
                bytes: backend.size_bytes,
                first_page: page,
            });
            files.push((file.device, file.inode));
            found.push(Block {
                id: backend.id.clone(),
                file: file.path,
                file_offset: vma.offset,
                size_bytes: backend.size_bytes,
            });
            page += backend.size_bytes / PAGE_BYTES;
        }
        let is_inside = |block: &RamBlock| backends.iter().any(|backend| block.is_of(&backend.id));
        let outside = blocks.iter().filter(|block| !is_inside(block));
        Ok(Self {
            outside: outside.map(Outside::of).collect(),
            ram: Ram::new(found).map_err(Error::Unfit)?,
            mapped,
            files,
        })
    }

    /// Memory that the guest or a device writes and that lies in no file of ours: it has to travel with every
    /// device state.
    pub fn mutable_outside(&self) -> impl Iterator<Item = &Outside> {
        self.outside.iter().filter(|block| !block.is_constant)
    }

    /// Adds pages that a vhost-user back end reports to a set.
    ///
    /// `regions` are the guest's memory as the back end sees it; `runs` first page and count by guest physical
    /// address.
    ///
    /// # Errors
    /// A page that lies in no region, or in no file that is known: the set is short of it, in words.
    pub fn insert_guest_runs(
        &self,
        regions: &[PageRegion],
        runs: &[(u64, u64)],
        pages: &mut Pages,
    ) -> Result<(), String> {
        for (first, count) in runs {
            let end = first
                .checked_add(*count)
                .ok_or("a run of pages that wraps")?;
            let mut at = *first;
            while at < end {
                at = self.insert_part(regions, at, end, pages)?;
            }
        }
        Ok(())
    }

    /// Adds as much of a run as one region has; the page that comes next.
    fn insert_part(
        &self,
        regions: &[PageRegion],
        first: u64,
        end: u64,
        pages: &mut Pages,
    ) -> Result<u64, String> {
        // A region may begin or end within a page: a page belongs to the first region that has a byte of it, and
        // to all others that do.
        let mut next = None;
        for region in regions {
            let begin = region.guest_address / PAGE_BYTES;
            let region_end = region.guest_address.saturating_add(region.size_bytes);
            let last = region_end.div_ceil(PAGE_BYTES);
            if !(begin..last).contains(&first) {
                continue;
            }
            let stop = end.min(last);
            let from = (first * PAGE_BYTES).max(region.guest_address);
            let bytes = stop.saturating_mul(PAGE_BYTES).min(region_end) - from;
            let offset = region
                .file_offset
                .saturating_add(from - region.guest_address);
            self.insert_file_bytes(region, offset, bytes, pages)?;
            next = Some(next.map_or(stop, |other: u64| other.min(stop)));
        }
        next.ok_or_else(|| format!("page {first:#x} of the guest is in no region of its memory"))
    }

    fn insert_file_bytes(
        &self,
        region: &PageRegion,
        offset: u64,
        bytes: u64,
        pages: &mut Pages,
    ) -> Result<(), String> {
        let end = offset.saturating_add(bytes);
        let mut covered = 0;
        for ((block, numbers), file) in self.ram.ranges().zip(&self.files) {
            if *file != (region.file_device, region.file_inode) {
                continue;
            }
            let from = offset.max(block.file_offset);
            let to = end.min(block.file_offset + block.size_bytes);
            if from < to {
                let first = (from - block.file_offset) / PAGE_BYTES;
                let last = (to - block.file_offset).div_ceil(PAGE_BYTES);
                pages.insert_run(numbers.start + first, last - first);
                covered += to - from;
            }
        }
        if covered == bytes {
            return Ok(());
        }
        Err(format!(
            "guest address {:#x}: the file behind it (device {}, inode {}, offset {offset}) is no memory that is \
             copied",
            region.guest_address, region.file_device, region.file_inode
        ))
    }
}

/// QEMU's own list of all memory it has, in files or not.
///
/// # Errors
/// Of the monitor, or a list that cannot be read.
pub fn ram_blocks(qemu: &mut Qemu) -> Result<Vec<RamBlock>, Error> {
    let text = qemu.told("info ramblock")?;
    blocks::parse(&text).map_err(|why| Error::Unfit(format!("QEMU's list of memory: {why}")))
}

/// Memory objects, in QEMU's order.
///
/// # Errors
/// Of the monitor.
pub fn backends(qemu: &mut Qemu) -> Result<Vec<Backend>, Error> {
    let kinds = qemu.ask("qom-list", Some(serde_json::json!({"path": "/objects"})))?;
    let kind_of = |id: &str| {
        let all = kinds.as_array().into_iter().flatten();
        let mut named = all.filter(|object| object["name"] == *id);
        let kind = named.next().and_then(|object| object["type"].as_str());
        let inner = kind.and_then(|kind| kind.strip_prefix("child<")?.strip_suffix('>'));
        inner.unwrap_or_default().to_owned()
    };
    let list = qemu.ask("query-memdev", None)?;
    let mut backends = Vec::new();
    for one in list.as_array().into_iter().flatten() {
        let id = one["id"].as_str().unwrap_or_default().to_owned();
        let at = format!("/objects/{id}");
        let is_shared = match one["share"].as_bool() {
            Some(shared) => shared,
            None => qemu.property(&at, "share")? == Some(Value::Bool(true)),
        };
        let path = qemu.property(&at, "mem-path")?;
        let offset = match path {
            Some(_) => qemu.property(&at, "offset")?,
            None => None,
        };
        backends.push(Backend {
            kind: kind_of(&id),
            size_bytes: one["size"].as_u64().unwrap_or(0),
            is_shared,
            path: path.and_then(|path| path.as_str().map(str::to_owned)),
            offset: offset.and_then(|offset| offset.as_u64()).unwrap_or(0),
            id,
        });
    }
    // The monitor lists the last one first.
    backends.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(backends)
}

#[cfg(test)]
mod tests;
