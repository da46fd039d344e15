//! Where a process has the guest's memory, and whether it still has it there.
//!
//! A scan of addresses where nothing is mapped finds nothing written: silence. So after each scan the mappings are
//! looked at. The file stays that of the memory it was opened for: a process that has ended or runs another
//! program has none any more, whoever has its number now.

use super::kernel::{self, MapQuery};
use super::{TrackerError, Watched};
use crate::memory::PAGE_BYTES;
use crate::memory::dirty::Pages;
use crate::memory::ram::Ram;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Longest list of mappings that is read: some hundred thousand.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vma {
    pub(super) start: u64,
    pub(super) end: u64,
    is_shared: bool,
    is_writable: bool,
    pub(super) is_executable: bool,
    offset: u64,
    /// Major and minor.
    device: (u32, u32),
    inode: u64,
    pub(super) name: String,
}

/// Where the process `pid` has the pages of `ram`: every shared mapping of its files that can be written.
///
/// # Errors
/// Pages that it has nowhere; a file or process that cannot be looked at.
pub fn find(pid: u32, ram: &Ram) -> Result<Vec<Watched>, TrackerError> {
    let vmas = all_of(&open(pid)?).map_err(|e| TrackerError::opening(pid, &e))?;
    let mut found: Vec<Watched> = Vec::new();
    let mut covered = Pages::none(ram.pages());
    for (block, pages) in ram.ranges() {
        let file = std::fs::metadata(&block.file).map_err(|e| {
            TrackerError::Refused(format!(
                "{} of block {}: {e}",
                block.file.display(),
                block.id
            ))
        })?;
        let device = (libc::major(file.dev()), libc::minor(file.dev()));
        for vma in vmas.iter().filter(|vma| {
            vma.is_shared && vma.is_writable && vma.inode == file.ino() && vma.device == device
        }) {
            let from = vma.offset.max(block.file_offset);
            let to = (vma.offset + (vma.end - vma.start)).min(block.file_offset + block.size_bytes);
            if from >= to {
                continue;
            }
            let first_page = pages.start + (from - block.file_offset) / PAGE_BYTES;
            let count = (to - from) / PAGE_BYTES;
            let address = vma.start + (from - vma.offset);
            covered.insert_run(first_page, count);
            match found.last_mut() {
                // Only within a block: the next one is another run of the file.
                Some(last)
                    if last.first_page >= pages.start
                        && last.address + last.pages * PAGE_BYTES == address
                        && last.first_page + last.pages == first_page =>
                {
                    last.pages += count;
                }
                _ => found.push(Watched {
                    first_page,
                    pages: count,
                    address,
                }),
            }
        }
    }
    let missing = ram.pages() - covered.count();
    if missing > 0 {
        return Err(TrackerError::Refused(format!(
            "process {pid} has {missing} of {} pages of the guest's memory not mapped as shared and writable; \
             its memory has to be in the files that were named, with share=on",
            ram.pages()
        )));
    }
    Ok(found)
}

/// The mappings of a process.
pub(super) fn of(pid: u32) -> Result<Vec<Vma>, TrackerError> {
    all_of(&open(pid)?).map_err(|e| TrackerError::opening(pid, &e))
}

fn open(pid: u32) -> Result<File, TrackerError> {
    File::open(format!("/proc/{pid}/maps")).map_err(|e| TrackerError::opening(pid, &e))
}

fn all_of(file: &File) -> io::Result<Vec<Vma>> {
    let mut text = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let read = file.read_at(&mut chunk, text.len() as u64)?;
        if read == 0 {
            break;
        }
        text.extend_from_slice(&chunk[..read]);
        if text.len() > TEXT_BYTES_MAX {
            return Err(io::Error::other("more mappings than can be read"));
        }
    }
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .map(|line| parse(line).ok_or_else(|| io::Error::other(format!("a mapping: {line}"))))
        .collect()
}

/// `7f00-7f20 rw-s 00000000 00:1b 1234   /dev/shm/ram`
fn parse(line: &str) -> Option<Vma> {
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let flags = words.next()?.as_bytes();
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let small = |word| u32::try_from(hex(word)?).ok();
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        is_writable: *flags.get(1)? == b'w',
        is_executable: *flags.get(2)? == b'x',
        is_shared: *flags.get(3)? == b's',
        offset,
        device: (small(major)?, small(minor)?),
        inode: words.next()?.parse().ok()?,
        name: words.next().unwrap_or_default().to_owned(),
    })
}

/// A run of addresses, and what is mapped there: a mapping's file from an offset on.
#[derive(Debug)]
struct Part {
    start: u64,
    end: u64,
    offset: u64,
    device: (u32, u32),
    inode: u64,
}

/// What a process had mapped where the guest's memory is.
#[derive(Debug)]
pub(super) struct Maps {
    pid: u32,
    file: File,
    parts: Vec<Part>,
    /// The kernel answers for one address (Linux 6.11); else the whole list is read.
    is_asked: bool,
}

impl Maps {
    pub(super) fn of(pid: u32, watched: &[Watched]) -> Result<Self, TrackerError> {
        let file = open(pid)?;
        let vmas = all_of(&file).map_err(|e| TrackerError::opening(pid, &e))?;
        let mut parts = Vec::new();
        for part in watched {
            let bytes = part.pages.checked_mul(PAGE_BYTES);
            let end = bytes.and_then(|bytes| part.address.checked_add(bytes));
            let vma = vmas
                .iter()
                .find(|vma| vma.start <= part.address && part.address < vma.end);
            let (Some(vma), Some(end)) = (vma, end) else {
                return Err(moved(pid, part.address));
            };
            parts.push(Part {
                start: part.address,
                end,
                offset: vma.offset + (part.address - vma.start),
                device: vma.device,
                inode: vma.inode,
            });
        }
        let mut maps = Self {
            pid,
            file,
            parts,
            is_asked: true,
        };
        maps.check()?;
        Ok(maps)
    }

    /// # Errors
    /// It is not mapped as it was.
    pub(super) fn check(&mut self) -> Result<(), TrackerError> {
        if self.is_asked {
            match self.check_by(|at| self.ask(at)) {
                Err(TrackerError::Kernel { source, .. })
                    if source.raw_os_error() == Some(libc::ENOTTY) =>
                {
                    self.is_asked = false;
                }
                told => return told,
            }
        }
        let vmas = all_of(&self.file).map_err(TrackerError::of("reading the mappings"))?;
        if vmas.is_empty() {
            return Err(TrackerError::ended(self.pid));
        }
        self.check_by(|at| {
            let vma = vmas.iter().find(|vma| vma.start <= at && at < vma.end);
            Ok(vma.cloned())
        })
    }

    fn check_by(
        &self,
        covering: impl Fn(u64) -> Result<Option<Vma>, TrackerError>,
    ) -> Result<(), TrackerError> {
        for part in &self.parts {
            let mut at = part.start;
            while at < part.end {
                let vma = covering(at)?.ok_or_else(|| moved(self.pid, at))?;
                let offset = part.offset + (at - part.start);
                if !vma.is_shared
                    || (vma.device, vma.inode) != (part.device, part.inode)
                    || vma.offset + (at - vma.start) != offset
                {
                    return Err(moved(self.pid, at));
                }
                at = vma.end;
            }
        }
        Ok(())
    }

    fn ask(&self, at: u64) -> Result<Option<Vma>, TrackerError> {
        let mut query = MapQuery {
            size: size_of::<MapQuery>() as u64,
            query_addr: at,
            ..MapQuery::default()
        };
        // SAFETY: number and structure belong together; no buffers are named in it.
        let told = unsafe { kernel::ioctl(self.file.as_fd(), kernel::PROCMAP_QUERY, &mut query) };
        match told {
            Ok(_) => Ok(Some(Vma {
                start: query.vma_start,
                end: query.vma_end,
                is_shared: query.vma_flags & kernel::MAP_SHARED != 0,
                is_writable: query.vma_flags & kernel::MAP_WRITABLE != 0,
                is_executable: false,
                offset: query.vma_offset,
                device: (query.dev_major, query.dev_minor),
                inode: query.inode,
                name: String::new(),
            })),
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOENT) => Ok(None),
                Some(libc::ESRCH) => Err(TrackerError::ended(self.pid)),
                _ => Err(TrackerError::of("asking for a mapping")(e)),
            },
        }
    }
}

fn moved(pid: u32, address: u64) -> TrackerError {
    TrackerError::Gone(format!(
        "process {pid} does not have the guest's memory at {address:#x} any more"
    ))
}

#[cfg(test)]
mod tests {
    //! Watching the wrong addresses tells nothing, and nothing looks wrong.
    use super::*;
    use crate::memory::ram::{Block, Mapping};

    fn ram(file: &std::path::Path, runs: &[(u64, u64)]) -> Ram {
        let block = |(n, (at, pages)): (usize, &(u64, u64))| Block {
            id: format!("m{n}"),
            file: file.to_owned(),
            file_offset: at * PAGE_BYTES,
            size_bytes: pages * PAGE_BYTES,
        };
        Ram::new(runs.iter().enumerate().map(block).collect()).expect("blocks")
    }

    #[test]
    fn memory_is_found_where_it_is() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(64 * PAGE_BYTES).expect("set");
        let ram = ram(file.path(), &[(32, 16), (0, 8)]);
        let me = std::process::id();
        assert!(
            find(me, &ram)
                .expect_err("not mapped")
                .to_string()
                .contains("24 of 24")
        );
        let mapping = Mapping::open(&ram).expect("mapped");
        let found = find(me, &ram).expect("found");
        let mut all = Pages::none(24);
        for part in &found {
            all.insert_run(part.first_page, part.pages);
            assert_eq!(part.address, mapping.at(part.first_page).0 as u64);
        }
        assert_eq!(all.count(), 24);
        let mut maps = Maps::of(me, &found).expect("as they are");
        for is_asked in [true, false] {
            maps.is_asked = is_asked;
            maps.check().expect("as they were");
        }
        drop(mapping);
        for is_asked in [true, false] {
            maps.is_asked = is_asked;
            assert!(matches!(maps.check(), Err(TrackerError::Gone(_))));
        }
    }

    #[test]
    fn a_process_that_has_ended_has_nothing() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let vmas = of(child.id()).expect("it lives");
        let watched = [Watched {
            first_page: 0,
            pages: 1,
            address: vmas[0].start,
        }];
        // Its memory is private: not a guest's, and it is told.
        assert!(matches!(
            Maps::of(child.id(), &watched),
            Err(TrackerError::Gone(_))
        ));
        child.kill().expect("killed");
        child.wait().expect("waited");
        assert!(matches!(of(child.id()), Err(TrackerError::Gone(_))));
    }
}
