//! The guest's RAM as the checkpointer sees it: blocks of shared files, one behind the other.

use super::PAGE_BYTES;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Most blocks a guest may have.
pub const BLOCKS_MAX: usize = 64;
/// Most memory a guest may have: 16 TiB.
pub const RAM_BYTES_MAX: u64 = 1 << 44;

/// One RAM block of the hypervisor: a stretch of a shared file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The hypervisor's name of it; the same at both hosts.
    pub id: String,
    /// Where it can be opened on this host.
    pub file: PathBuf,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// A multiple of the page.
    pub size_bytes: u64,
}

/// All blocks; page numbers run on from one block to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ram {
    blocks: Vec<Block>,
}

impl Ram {
    /// # Errors
    /// The rule that is broken, in words.
    pub fn new(blocks: Vec<Block>) -> Result<Self, String> {
        if blocks.is_empty() || blocks.len() > BLOCKS_MAX {
            return Err(format!(
                "{} RAM blocks; 1 to {BLOCKS_MAX} can be protected",
                blocks.len()
            ));
        }
        let mut bytes = 0u64;
        for block in &blocks {
            let (id, size) = (&block.id, block.size_bytes);
            if size == 0 || size % PAGE_BYTES != 0 || block.file_offset % PAGE_BYTES != 0 {
                return Err(format!(
                    "RAM block {id} of {size} bytes is not made of whole pages"
                ));
            }
            bytes = bytes.saturating_add(size);
        }
        if bytes > RAM_BYTES_MAX {
            return Err(format!(
                "{bytes} bytes of RAM; at most {RAM_BYTES_MAX} can be protected"
            ));
        }
        Ok(Self { blocks })
    }

    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Of all blocks.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.blocks
            .iter()
            .map(|block| block.size_bytes / PAGE_BYTES)
            .sum()
    }

    /// The blocks with the page numbers each has.
    pub fn ranges(&self) -> impl Iterator<Item = (&Block, Range<u64>)> {
        let mut next = 0;
        self.blocks.iter().map(move |block| {
            let first = next;
            next += block.size_bytes / PAGE_BYTES;
            (block, first..next)
        })
    }
}

/// The files of all blocks, mapped shared. What it points at is changed by the guest at any time, so it is
/// read and written through raw pointers only.
#[derive(Debug)]
pub struct Mapping {
    /// First page of the block, and its bytes.
    parts: Vec<(u64, MmapRaw)>,
    pages: u64,
}

impl Mapping {
    /// # Errors
    /// Of opening and mapping, with the file's name; a file shorter than its block is refused.
    pub fn open(ram: &Ram) -> io::Result<Self> {
        let mut parts = Vec::new();
        for (block, pages) in ram.ranges() {
            let told =
                |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", block.file.display()));
            let file = File::options()
                .read(true)
                .write(true)
                .open(&block.file)
                .map_err(told)?;
            let end = block.file_offset.saturating_add(block.size_bytes);
            if file.metadata().map_err(told)?.len() < end {
                return Err(told(io::Error::other("shorter than the guest's memory")));
            }
            let bytes = usize::try_from(block.size_bytes).map_err(io::Error::other)?;
            let map = MmapOptions::new()
                .offset(block.file_offset)
                .len(bytes)
                .map_raw(&file);
            parts.push((pages.start, map.map_err(told)?));
        }
        Ok(Self {
            parts,
            pages: ram.pages(),
        })
    }

    /// Of all blocks.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Where a page begins, and how many pages from there on lie behind one another.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn at(&self, page: u64) -> (*mut u8, u64) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let part = self.parts.partition_point(|(first, _)| *first <= page) - 1;
        let (first, map) = &self.parts[part];
        let offset = usize::try_from((page - first) * PAGE_BYTES).expect("it was mapped");
        let left = (map.len() - offset) as u64 / PAGE_BYTES;
        (map.as_mut_ptr().wrapping_add(offset), left)
    }
}

#[cfg(test)]
mod tests {
    //! Page numbers that run into the next block's bytes would copy one page over another.
    use super::*;

    #[test]
    fn pages_run_through_the_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        let block = |name: &str, size_bytes, file_offset| {
            let file = dir.path().join(name);
            std::fs::write(&file, vec![0; 4 * 4096]).expect("a file");
            Block {
                id: name.to_owned(),
                file,
                file_offset,
                size_bytes,
            }
        };
        let ram =
            Ram::new(vec![block("a", 8192, 4096), block("b", 16384, 0)]).expect("good blocks");
        assert_eq!(ram.pages(), 6);
        let mapping = Mapping::open(&ram).expect("mapped");
        for page in 0..6 {
            // SAFETY: `at` points at a page of a mapping that is alive; nobody else has it.
            unsafe {
                mapping
                    .at(page)
                    .0
                    .write(u8::try_from(page).expect("small") + 1)
            };
        }
        assert_eq!(mapping.at(1).1, 1);
        assert_eq!(mapping.at(2).1, 4);
        let a = std::fs::read(dir.path().join("a")).expect("a");
        let b = std::fs::read(dir.path().join("b")).expect("b");
        assert_eq!([a[0], a[4096], a[8192], a[12288]], [0, 1, 2, 0]);
        assert_eq!([b[0], b[4096], b[8192], b[12288]], [3, 4, 5, 6]);
        let long = Ram::new(vec![block("c", 5 * 4096, 0)]).expect("a block");
        assert!(
            Mapping::open(&long)
                .expect_err("too short")
                .to_string()
                .contains("shorter")
        );
        assert!(Ram::new(vec![block("d", 100, 0)]).is_err());
        assert!(Ram::new(vec![]).is_err());
    }
}
