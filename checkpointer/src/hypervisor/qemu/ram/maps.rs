//! A process's mappings, and the file behind one.

use super::{Backend, Error};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Most mappings that are read.
const MAPS_MAX: usize = 1 << 20;
/// Most descriptors that are looked at.
const DESCRIPTORS_MAX: usize = 1 << 16;

/// A shared mapping of a file; neighbours that go on where it ends are part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vma {
    /// Address in the process.
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// As the kernel's file system numbers it; some show another number to `stat`.
    device: u64,
    pub(super) inode: u64,
    pub(super) name: String,
}

/// A file that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileAt {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// All shared mappings of files.
///
/// # Errors
/// No such process, or it may not be looked at.
pub(super) fn read(pid: u32) -> Result<Vec<Vma>, Error> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).map_err(Error::io(path))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Vma> {
    let mut all: Vec<Vma> = Vec::new();
    let found = text.lines().take(MAPS_MAX).filter_map(vma);
    for one in found {
        match all.last_mut() {
            // What was set for part of it alone (a tracker, a dump) cuts a mapping in two.
            Some(last)
                if last.start + last.bytes == one.start
                    && last.offset + last.bytes == one.offset
                    && (last.device, last.inode) == (one.device, one.inode) =>
            {
                last.bytes += one.bytes;
            }
            _ => all.push(one),
        }
    }
    all
}

/// `start-end perms offset major:minor inode name`; none where it is private or of no file.
fn vma(line: &str) -> Option<Vma> {
    let mut rest = line;
    let mut word = || {
        let (word, behind) = rest.split_once(' ')?;
        rest = behind.trim_start();
        Some(word)
    };
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = word()?.split_once('-')?;
    let is_shared = word()?.ends_with('s');
    let offset = number(word()?)?;
    let (major, minor) = word()?.split_once(':')?;
    let inode = word()?.parse().ok()?;
    let (start, end) = (number(start)?, number(end)?);
    let half = |text: &str| u32::from_str_radix(text, 16).ok();
    (is_shared && inode != 0).then_some(())?;
    Some(Vma {
        start,
        bytes: end.checked_sub(start)?,
        offset,
        device: rustix::fs::makedev(half(major)?, half(minor)?),
        inode,
        name: rest.to_owned(),
    })
}

/// The mapping of a memory object, and its file.
///
/// # Errors
/// None fits, or more than one; in words.
pub(super) fn backing(
    pid: u32,
    backend: &Backend,
    all: &[Backend],
    maps: &[Vma],
) -> Result<(Vma, FileAt), Error> {
    let own = own_file(pid, backend);
    let taken: Vec<FileAt> = all
        .iter()
        .filter_map(|other| own_file(pid, other))
        .collect();
    let fits = |vma: &&Vma| {
        let has_size = vma.offset == backend.offset && vma.bytes >= backend.size_bytes;
        has_size
            && match &own {
                Some(file) => is_of(vma, file),
                // A directory's nameless file or a memfd: by the names that QEMU gives those.
                None => {
                    let is_made = vma.name.contains("qemu_back_mem.") || is_memfd(vma);
                    let is_exact = vma.bytes == backend.size_bytes;
                    is_made && is_exact && !taken.iter().any(|file| is_of(vma, file))
                }
            }
    };
    let found: Vec<&Vma> = maps.iter().filter(fits).collect();
    let [vma] = found[..] else {
        let (id, count) = (&backend.id, found.len());
        return Err(Error::Unfit(format!(
            "memory {id}: {count} mappings of process {pid} could be it; give it a file of its own: -object \
             memory-backend-file,id={id},size={},mem-path=/dev/shm/FILE,share=on",
            backend.size_bytes
        )));
    };
    let file = match own {
        Some(file) => file,
        None => open_file(pid, vma)?,
    };
    Ok((vma.clone(), file))
}

fn is_memfd(vma: &Vma) -> bool {
    vma.name.starts_with("/memfd:memory-backend-memfd")
}

fn is_of(vma: &Vma, file: &FileAt) -> bool {
    vma.inode == file.inode
        && (vma.device == file.device || file.path.to_str().is_some_and(|path| path == vma.name))
}

/// The file that a path names, seen from QEMU or else from here; none for a directory.
fn own_file(pid: u32, backend: &Backend) -> Option<FileAt> {
    let path = backend.path.as_ref()?;
    let seen = [format!("/proc/{pid}/root{path}"), path.clone()];
    let (path, meta) = seen
        .iter()
        .find_map(|path| Some((path, fs::metadata(path).ok()?)))?;
    meta.is_file().then(|| FileAt {
        path: match fs::metadata(&seen[1]) {
            Ok(here) if (here.dev(), here.ino()) == (meta.dev(), meta.ino()) => {
                PathBuf::from(&seen[1])
            }
            _ => PathBuf::from(path),
        },
        device: meta.dev(),
        inode: meta.ino(),
    })
}

/// Through a descriptor that QEMU has open.
fn open_file(pid: u32, vma: &Vma) -> Result<FileAt, Error> {
    let dir = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&dir).map_err(Error::io(dir))?;
    for entry in entries.take(DESCRIPTORS_MAX).flatten() {
        let path = entry.path();
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        let named = || fs::read_link(&path).is_ok_and(|to| to.to_str() == Some(&vma.name));
        if meta.ino() == vma.inode && (meta.dev() == vma.device || named()) {
            return Ok(FileAt {
                path,
                device: meta.dev(),
                inode: meta.ino(),
            });
        }
    }
    Err(Error::Unfit(format!(
        "process {pid} has no descriptor of its memory {}",
        vma.name
    )))
}

#[cfg(test)]
mod tests {
    //! The wrong file, or half of a mapping, is a guest whose copy is of something else.
    use super::*;

    #[test]
    fn mappings_are_put_together() {
        let text = "\
7f0000000000-7f0000100000 rw-s 00000000 00:1b 42                         /dev/shm/a b
7f0000100000-7f0000200000 rw-s 00100000 00:1b 42                         /dev/shm/a b
7f0000200000-7f0000300000 rw-s 00300000 00:1b 42                         /dev/shm/a b
7f0000300000-7f0000400000 rw-p 00000000 00:1b 43                         /dev/shm/private
7f0000400000-7f0000401000 rw-s 00000000 00:01 1077                       /memfd:memory-backend-memfd (deleted)
7f0000500000-7f0000501000 rw-p 00000000 00:00 0 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";
        let maps = parse(text);
        let short: Vec<_> = maps
            .iter()
            .map(|vma| (vma.start, vma.bytes, vma.offset, vma.inode))
            .collect();
        assert_eq!(
            short,
            [
                (0x7f00_0000_0000, 0x20_0000, 0, 42),
                (0x7f00_0020_0000, 0x10_0000, 0x30_0000, 42),
                (0x7f00_0040_0000, 0x1000, 0, 1077),
            ]
        );
        assert_eq!(maps[0].name, "/dev/shm/a b");
        assert!(is_memfd(&maps[2]));
    }

    #[test]
    fn two_memfds_of_one_size_are_not_guessed() {
        let line = |start: u64, inode: u64| {
            format!(
                "{start:x}-{:x} rw-s 00000000 00:01 {inode}  /memfd:memory-backend-memfd (deleted)",
                start + 4096
            )
        };
        let backend = |id: &str| Backend {
            id: id.to_owned(),
            size_bytes: 4096,
            is_shared: true,
            kind: "memory-backend-memfd".to_owned(),
            path: None,
            offset: 0,
        };
        let all = [backend("a"), backend("b")];
        let maps = parse(&[line(0x1000, 7), line(0x8000, 8)].join("\n"));
        let told = backing(std::process::id(), &all[0], &all, &maps).expect_err("two fit");
        assert!(told.to_string().contains("2 mappings"), "{told}");
    }
}
