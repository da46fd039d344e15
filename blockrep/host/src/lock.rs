//! Exclusive use of an image, a state directory or a socket by one daemon: flock(2).
//!
//! The kernel lets go of the lock when the holder ends, however it ends, so nothing has to be
//! cleaned up after a crash. Nothing is written into the locked file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, major, minor};
use thiserror::Error;

/// Held until dropped.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
    path: PathBuf,
}

/// Why a lock was not taken. One line each, for the user.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("{} is in use by {}: stop it first, or name another", path.display(), holder_text(*holder))]
    Held { path: PathBuf, holder: Option<u32> },
    /// It cannot be opened or locked at all.
    #[error("cannot lock {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

impl FileLock {
    /// Locks an image, block device or directory that exists, without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] with the process id of the holder where the kernel tells it.
    pub fn exclusive(path: &Path) -> Result<Self, LockError> {
        Self::lock(path, OpenOptions::new().read(true))
    }

    /// Locks a lock file, which is made (empty, mode 0600) if it does not exist and stays.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn lock_file(path: &Path) -> Result<Self, LockError> {
        Self::lock(
            path,
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600),
        )
    }

    /// What is locked.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(path: &Path, options: &mut OpenOptions) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let file = options.open(path).map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                _file: file,
                path: path.to_owned(),
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held {
                path: path.to_owned(),
                holder: holder_of(&file),
            }),
            Err(errno) => Err(io_error(errno.into())),
        }
    }
}

fn holder_of(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
    holder_in(
        &locks,
        &format!("{major:02x}:{minor:02x}:{}", metadata.ino()),
    )
}

/// Finds the holder of a flock in the text of /proc/locks (proc(5)); waiters carry an arrow.
/// A holder in a container of its own shows as 0 or -1 and is not named.
fn holder_in(locks: &str, device_and_inode: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_flock = fields.next()? == "FLOCK";
        let pid = fields.nth(2)?.parse().ok().filter(|pid| *pid != 0);
        (is_flock && fields.next()? == device_and_inode)
            .then_some(pid)
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two daemons that write one image destroy it; the second must say who is there.
    #[test]
    fn second_holder_is_refused_and_the_first_named() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("image")] {
            if path != dir.path() {
                fs::write(&path, b"data").unwrap();
            }
            let first = FileLock::exclusive(&path).unwrap();
            assert_eq!(first.path(), path);
            let error = FileLock::exclusive(&path).unwrap_err();
            let LockError::Held { holder, .. } = &error else {
                panic!("{error}")
            };
            // On file systems with anonymous devices the kernel's list cannot be matched.
            if let Some(pid) = holder {
                assert_eq!(*pid, std::process::id());
            }
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
            assert!(!error.to_string().contains('\n'));
            drop(first);
            FileLock::exclusive(&path).expect("free again");
        }
    }

    /// A lock file must not destroy what a mistyped path points at.
    #[test]
    fn lock_file_is_made_private_and_keeps_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        drop(FileLock::lock_file(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, b"kept").unwrap();
        drop(FileLock::lock_file(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }

    /// A missing image is a user's mistake, not a reason to create one.
    #[test]
    fn missing_image_is_named_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent");
        let error = FileLock::exclusive(&path).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }), "{error}");
        assert!(!path.exists());
    }

    /// Naming the wrong process makes an operator kill the wrong process.
    #[test]
    fn holder_is_read_from_the_right_line() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fd:01:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 fd:01:98 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 fd:01:99 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 44 fd:01:99 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 fd:01:97 0 EOF\n\
                     broken line\n";
        assert_eq!(holder_in(locks, "fd:01:99"), Some(44));
        assert_eq!(holder_in(locks, "fd:01:97"), None);
        assert_eq!(holder_in(locks, "fd:01:96"), None);
    }
}
