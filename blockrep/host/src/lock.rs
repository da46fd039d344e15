//! Exclusive use of an image, a state directory or a socket by one daemon: flock(2).
//!
//! The kernel lets go of the lock when the last descriptor of it is closed, so nothing has to be
//! cleaned up after a crash. Nothing is written into the locked file.
//!
//! A holder that does I/O by an io_uring puts [`FileLock::descriptor`] into the ring's table: after
//! a SIGKILL the kernel still finishes what it holds, when the process is gone already, and a
//! successor that read or wrote the same files meanwhile would be overtaken. So a lock whose holder
//! is dead is waited for; one whose holder lives is refused at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, major, minor};
use thiserror::Error;

/// The longest a dead holder is waited for: a slow disk has finished its queue by then.
const DEAD_HOLDER_WAIT_MAX: Duration = Duration::from_secs(60);
/// The same where the kernel does not tell who holds it: another container, or a file system
/// without a device of its own.
const UNKNOWN_HOLDER_WAIT_MAX: Duration = Duration::from_secs(3);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(10);

/// Held until dropped.
#[derive(Debug)]
pub struct FileLock {
    file: File,
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
    /// Locks an image, block device or directory that exists. Waits only for I/O that a killed
    /// process left behind.
    ///
    /// # Errors
    /// [`LockError::Held`] with the process id of the holder where the kernel tells it.
    pub fn exclusive(path: &Path) -> Result<Self, LockError> {
        Self::lock(path, OpenOptions::new().read(true))
    }

    /// Locks a lock file, which is made (empty, mode 0600) if it does not exist.
    ///
    /// Who holds the lock may remove the file: whoever waited for it looks whether the file still
    /// has its name, and takes the new one if not.
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

    /// One more descriptor of the lock: it is held until all are closed.
    ///
    /// # Errors
    /// Too many files are open.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    fn lock(path: &Path, options: &mut OpenOptions) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = options.open(path).map_err(io_error)?;
        let begun = Instant::now();
        let mut waited = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_named(&file, path) => break,
                // Its holder removed or replaced it meanwhile: a lock on a file that has lost its
                // name keeps nobody out.
                Ok(()) => {
                    file = options.open(path).map_err(io_error)?;
                    continue;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let holder = holder_of(&file);
                    let wait_max = match holder {
                        Some(pid) if is_alive(pid) => Duration::ZERO,
                        Some(_) => DEAD_HOLDER_WAIT_MAX,
                        None => UNKNOWN_HOLDER_WAIT_MAX,
                    };
                    if begun.elapsed() >= wait_max {
                        let path = path.to_owned();
                        return Err(LockError::Held { path, holder });
                    }
                }
                Err(errno) => return Err(io_error(errno.into())),
            }
            if !waited {
                let path = path.display();
                tracing::info!("{path} is still in use: waiting for I/O of a process that ended");
            }
            waited = true;
            std::thread::sleep(RETRY);
        }
        if waited {
            tracing::info!("waited {} ms for it", begun.elapsed().as_millis());
        }
        let path = path.to_owned();
        Ok(Self { file, path })
    }
}

/// Whether the open file is the one that stands at `path` now.
fn is_named(file: &File, path: &Path) -> bool {
    let identity = |known: fs::Metadata| (known.dev(), known.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

/// False if a process is gone, or is only waiting to be reaped.
fn is_alive(pid: u32) -> bool {
    // The state is the first field after the name, which may hold anything but ends with the last
    // closing bracket (proc_pid_stat(5)).
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(')').next().map_or("", str::trim_start);
    !state.starts_with(['Z', 'X'])
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

    /// A daemon killed with I/O in flight: its successor must neither be refused because of a dead
    /// process, nor begin while the kernel still writes for it.
    #[test]
    fn a_dead_holder_is_waited_for() {
        use std::os::unix::process::CommandExt;
        use std::process::Command;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        let held = file.try_clone().unwrap();
        let mut child = Command::new("true");
        // SAFETY: only flock(2) is called between fork and exec.
        unsafe {
            child.pre_exec(move || Ok(flock(&held, FlockOperation::NonBlockingLockExclusive)?));
        }
        assert!(child.status().unwrap().success());
        // Here `file` is what the kernel's io_uring holds after a kill.
        let (sender, taken) = std::sync::mpsc::channel();
        let successor = std::thread::spawn({
            let path = path.clone();
            move || {
                let lock = FileLock::exclusive(&path);
                sender.send(()).unwrap();
                lock.map(|lock| lock.path().to_owned())
            }
        });
        let early = taken.recv_timeout(Duration::from_millis(100));
        assert!(early.is_err(), "taken while it was held, or refused");
        drop((file, child));
        assert_eq!(successor.join().unwrap().unwrap(), path);
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

    /// A holder removes its lock file when it ends: who waited for it, and who comes after, must
    /// not both believe that they are alone.
    #[test]
    fn a_lock_file_without_its_name_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let file = File::create(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        // Opened before the removal, locked after it, by somebody who does not look again.
        let blind = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        drop(file);
        flock(&blind, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(!is_named(&blind, &path));
        let lock = FileLock::lock_file(&path).unwrap();
        assert!(is_named(&lock.file, &path));
        assert!(!is_named(&blind, &path));
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
