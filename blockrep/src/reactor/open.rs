//! Opening an image or journal file for a reactor, with direct I/O where it is to be had.
//!
//! Direct I/O is preferred: no second copy in the page cache, and a completed write needs only the
//! device's own flush. Where the file system refuses it the file is opened buffered; the reason is
//! kept for log and status.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::fault::FaultPlan;
use super::pool::PAGE_BYTES;

/// Smallest unit of every request.
pub const SECTOR_BYTES: u32 = 512;
/// Largest block a device may insist on.
pub const BLOCK_BYTES_MAX: u32 = 64 * 1024;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
    /// Makes a new, empty file with mode 0600; it must not exist.
    CreateNew,
}

/// A file ready for [`super::Reactor::add_file`].
#[derive(Debug)]
pub struct OpenedFile {
    pub fd: OwnedFd,
    /// Exact, also for block devices; not necessarily a multiple of 512.
    pub size_bytes: u64,
    pub options: FileOptions,
    /// Why direct I/O is not used, in words for status; `None` when it is used.
    pub buffered_reason: Option<String>,
    pub is_block_device: bool,
}

/// How a reactor is to treat a file. Tests may force any value; otherwise take it from
/// [`open_image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// Whether the descriptor has `O_DIRECT`.
    pub direct: bool,
    /// Requests that are not whole blocks of this size are read, modified and written by the
    /// reactor. A power of two from 512 to 65536. With buffered I/O, 512.
    pub logical_block: u32,
    /// Alignment of memory that direct I/O asks for; a power of two, at most 4096.
    pub mem_align: u32,
    /// Faults to plant.
    pub faults: Option<FaultPlan>,
}

impl FileOptions {
    /// For a descriptor without `O_DIRECT`: any sector goes straight to the page cache.
    pub fn buffered() -> FileOptions {
        FileOptions {
            direct: false,
            logical_block: SECTOR_BYTES,
            mem_align: 1,
            faults: None,
        }
    }

    /// For a descriptor with `O_DIRECT`.
    pub fn direct(logical_block: u32) -> FileOptions {
        let mem_align = logical_block.min(PAGE_BYTES as u32);
        FileOptions {
            direct: true,
            logical_block,
            mem_align,
            faults: None,
        }
    }

    pub(super) fn check(&self) {
        let block = self.logical_block;
        assert!(
            block.is_power_of_two() && (SECTOR_BYTES..=BLOCK_BYTES_MAX).contains(&block),
            "logical block must be a power of two from 512 to 65536"
        );
        assert!(
            self.mem_align.is_power_of_two() && self.mem_align as usize <= PAGE_BYTES,
            "memory alignment must be a power of two up to 4096"
        );
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("Cannot open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("Cannot examine {}", path.display())]
    Examine {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is neither a regular file nor a block device", path.display())]
    Kind { path: PathBuf },
}

/// Opens `path` and finds out its size and what direct I/O asks for. Blocks for a moment: call it
/// when a volume starts, not among requests.
///
/// # Errors
/// [`OpenError`], with the path and the system's reason.
pub fn open_image(path: &Path, access: Access) -> Result<OpenedFile, OpenError> {
    let examine = |source| OpenError::Examine {
        path: path.to_owned(),
        source,
    };
    if access != Access::CreateNew {
        // Asked before opening: opening a pipe would wait for its other end.
        let kind = path
            .metadata()
            .map_err(|e| open_failed(path, e))?
            .file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(OpenError::Kind {
                path: path.to_owned(),
            });
        }
    }
    let (mut file, mut buffered_reason) = match open(path, access, libc::O_DIRECT) {
        Ok(file) => (file, None),
        Err(refusal)
            if matches!(
                refusal.raw_os_error(),
                Some(libc::EINVAL | libc::EOPNOTSUPP)
            ) =>
        {
            // A creation that failed over O_DIRECT may have left the empty file behind.
            let access = match access {
                Access::CreateNew if path.exists() => Access::ReadWrite,
                other => other,
            };
            let reason = "The file system refuses direct I/O".to_owned();
            (
                open(path, access, 0).map_err(|e| open_failed(path, e))?,
                Some(reason),
            )
        }
        Err(refusal) => return Err(open_failed(path, refusal)),
    };
    let kind = file.metadata().map_err(examine)?.file_type();
    let is_block_device = kind.is_block_device();
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(examine)?;
    let mut options = FileOptions::buffered();
    if buffered_reason.is_none() {
        match direct_limits(&file, is_block_device, size_bytes) {
            Ok(direct) => options = direct,
            Err(reason) => {
                clear_direct(&file).map_err(examine)?;
                buffered_reason = Some(reason);
            }
        }
    }
    if options.direct && access == Access::ReadWrite {
        // What a copy of the image left in the page cache and not on disk: see `leave_page_cache`.
        file.sync_data().map_err(examine)?;
    }
    Ok(OpenedFile {
        fd: file.into(),
        size_bytes,
        options,
        buffered_reason,
        is_block_device,
    })
}

/// Drops what the page cache holds of a file that is used with direct I/O from now on. The kernel
/// would have to throw it out page by page, and hands such a write to a thread of its own.
pub(super) fn leave_page_cache(fd: &OwnedFd) {
    // SAFETY: advice on an open descriptor. Where it is refused, writes are merely slower.
    let refused = unsafe { libc::posix_fadvise(fd.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if refused != 0 {
        tracing::debug!(
            "The page cache keeps a file: {}",
            io::Error::from_raw_os_error(refused)
        );
    }
}

fn open_failed(path: &Path, source: io::Error) -> OpenError {
    OpenError::Open {
        path: path.to_owned(),
        source,
    }
}

fn open(path: &Path, access: Access, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(access != Access::ReadOnly)
        .create_new(access == Access::CreateNew)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
}

/// What direct I/O on this file asks for, or why it cannot be used.
fn direct_limits(file: &File, is_device: bool, size_bytes: u64) -> Result<FileOptions, String> {
    let (block, mem_align) = match dio_align(file) {
        Some((0, _) | (_, 0)) => return Err("The file system refuses direct I/O".to_owned()),
        Some((mem_align, block)) => (block, mem_align),
        None if is_device => {
            let block = device_block(file)
                .map_err(|e| format!("The device does not tell its block size: {e}"))?;
            (block, block)
        }
        None => {
            let block = probe_block(file)?;
            (block, block)
        }
    };
    let block = block.max(SECTOR_BYTES);
    if !block.is_power_of_two() || block > BLOCK_BYTES_MAX {
        return Err(format!("Direct I/O would need blocks of {block} bytes"));
    }
    if !size_bytes.is_multiple_of(u64::from(block)) {
        // Writing the last block whole would make the image longer.
        return Err(format!(
            "The size is not a multiple of the {block}-byte direct I/O block"
        ));
    }
    if !mem_align.is_power_of_two() || mem_align as usize > PAGE_BYTES {
        return Err(format!(
            "Direct I/O would need memory aligned to {mem_align} bytes"
        ));
    }
    Ok(FileOptions {
        direct: true,
        logical_block: block,
        mem_align,
        faults: None,
    })
}

/// Memory and offset alignment by `statx` (Linux 6.1); `None` where the kernel or the file system
/// does not say.
fn dio_align(file: &File) -> Option<(u32, u32)> {
    // SAFETY: statx is plain integers, for which zero is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, the output a live statx of our own.
    let code = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &mut found,
        )
    };
    let told = code == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0;
    told.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}

fn device_block(file: &File) -> io::Result<u32> {
    let mut block: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &mut block) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(block).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The smallest block that can be read directly. An empty file accepts every read, so it cannot
/// tell: 4096 is right everywhere.
fn probe_block(file: &File) -> Result<u32, String> {
    #[repr(align(4096))]
    struct Aligned([u8; 8192]);
    let mut memory = Box::new(Aligned([0; 8192]));
    let mut last = String::new();
    for block in [SECTOR_BYTES, 4096] {
        let at = if block == SECTOR_BYTES {
            SECTOR_BYTES as usize
        } else {
            0
        };
        let target = &mut memory.0[at..at + block as usize];
        // SAFETY: the target is live memory of that length.
        let got = unsafe {
            libc::pread(
                file.as_raw_fd(),
                target.as_mut_ptr().cast(),
                target.len(),
                0,
            )
        };
        match got {
            0 => return Ok(4096),
            got if got > 0 => return Ok(block),
            _ => {
                last = super::op::errno_text(io::Error::last_os_error().raw_os_error().unwrap_or(0))
            }
        }
    }
    Err(format!("A direct read fails: {last}"))
}

fn clear_direct(file: &File) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor we own.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let wanted = flags & !libc::O_DIRECT;
    // SAFETY: as above.
    let code = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, wanted) };
    if flags < 0 || code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn flags(fd: &OwnedFd) -> i32 {
        // SAFETY: fcntl on a descriptor we own.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }
    }

    /// A silent fall back to the page cache halves the speed and nobody knows why.
    #[test]
    fn direct_is_used_where_it_works_and_its_absence_explained() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 64 << 10]).unwrap();
        let opened = open_image(&path, Access::ReadWrite).unwrap();
        assert_eq!(opened.size_bytes, 64 << 10);
        assert_eq!(opened.options.direct, opened.buffered_reason.is_none());
        assert_eq!(
            opened.options.direct,
            flags(&opened.fd) & libc::O_DIRECT != 0
        );
        assert!(!opened.is_block_device);
    }

    /// Read-modify-write of a partial last block would grow the image.
    #[test]
    fn a_size_that_is_no_whole_block_means_buffered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 1000]).unwrap();
        let opened = open_image(&path, Access::ReadWrite).unwrap();
        assert!(opened.buffered_reason.is_some());
        assert_eq!(
            flags(&opened.fd) & libc::O_DIRECT,
            0,
            "or every write fails with EINVAL"
        );
        assert_eq!(opened.options, FileOptions::buffered());
    }

    /// A segment created over an existing one loses a journal; a socket or a missing path as image
    /// needs a clear word.
    #[test]
    fn creation_and_refusals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        assert_eq!(open_image(&path, Access::CreateNew).unwrap().size_bytes, 0);
        let again = open_image(&path, Access::CreateNew).unwrap_err();
        assert!(matches!(again, OpenError::Open { .. }));
        let missing = open_image(&dir.path().join("none"), Access::ReadOnly).unwrap_err();
        assert!(
            missing.to_string().starts_with("Cannot open /"),
            "{missing}"
        );
        let _listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        assert!(open_image(&dir.path().join("sock"), Access::ReadWrite).is_err());
        let null = open_image(Path::new("/dev/null"), Access::ReadWrite).unwrap_err();
        assert!(
            null.to_string().contains("neither a regular file"),
            "{null}"
        );
    }
}
