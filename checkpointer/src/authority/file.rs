//! The record in a file: for a single host, where both daemons see it, and as the place where others keep theirs.
//!
//! Changed under flock(2) of `FILE.lock`, written to `FILE.new`, synced, renamed, and the directory synced: a reader
//! sees the old record or the new one, and a crash at any moment leaves one of them. The file has to lie on a local
//! file system. A file that makes no sense is refused and left as it is.

use super::{Authority, AuthorityError, By, Record, Swapped};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A swap takes milliseconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Between two attempts at the lock.
const LOCK_RETRY: Duration = Duration::from_micros(500);
/// A record has some hundred bytes, and a note of a thousand.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// The record of one guest in a file.
#[derive(Debug)]
pub struct FileAuthority {
    path: PathBuf,
    guest: String,
    lock_wait_max: Duration,
}

impl FileAuthority {
    /// The file need not be there; its directory has to.
    #[must_use]
    pub fn new(path: PathBuf, guest: &str) -> Self {
        Self {
            path,
            guest: guest.to_owned(),
            lock_wait_max: LOCK_WAIT_MAX,
        }
    }

    #[cfg(test)]
    pub(super) fn with_lock_wait_max(mut self, wait: Duration) -> Self {
        self.lock_wait_max = wait;
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts what the primary told in the place of what is known here.
    ///
    /// # Errors
    /// As of a swap; [`AuthorityError::Split`].
    pub(super) fn take_in(&self, told: &Record) -> Result<(), AuthorityError> {
        told.check(&self.guest).map_err(|what| {
            self.damaged(format!("the primary told a record that is wrong: {what}"))
        })?;
        let _lock = self.lock()?;
        let Some(own) = self.read()? else {
            return self.write(told);
        };
        if own == *told {
            return Ok(());
        }
        let is_same_history = own.lineage == told.lineage || own.primary == told.primary;
        if own.is_alone(&own.primary) && !is_same_history {
            let Record { guest, primary, .. } = &own;
            return Err(AuthorityError::Split(format!(
                "{guest} has run alone at {primary} and at {}: decide which of the two is to be kept; to give up the \
                 one of {primary}, remove {}",
                told.primary,
                self.path.display()
            )));
        }
        if own.generation >= told.generation {
            return Err(AuthorityError::Split(format!(
                "{} told a record of generation {}, and here is generation {} already ({}): see blockrepctl guest \
                 status {} at both hosts",
                told.primary, told.generation, own.generation, own.note, own.guest
            )));
        }
        self.write(told)
    }

    fn lock(&self) -> Result<File, AuthorityError> {
        let path = beside(&self.path, "lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| self.io("open its lock file", source))?;
        let since = Instant::now();
        loop {
            // SAFETY: takes a descriptor, which `file` keeps open, and no memory. The standard library has this
            // only from 1.89 on.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(file);
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock if since.elapsed() < self.lock_wait_max => {
                    thread::sleep(LOCK_RETRY);
                }
                io::ErrorKind::WouldBlock => {
                    let waited_ms = self.lock_wait_max.as_millis();
                    return Err(AuthorityError::Busy {
                        path: self.path.clone(),
                        waited_ms: u64::try_from(waited_ms).expect("seconds"),
                    });
                }
                _ => return Err(self.io("lock its lock file", error)),
            }
        }
    }

    /// Under the lock.
    fn write(&self, new: &Record) -> Result<(), AuthorityError> {
        let mut text = serde_json::to_vec_pretty(new).expect("a record is plain data");
        text.push(b'\n');
        let temporary = beside(&self.path, "new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|source| self.io("open a new one beside it", source))?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        written.map_err(|source| self.io("write a new one beside it", source))?;
        fs::rename(&temporary, &self.path)
            .map_err(|source| self.io("put the new one there", source))?;
        let dir = match self.path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| AuthorityError::Unclear {
            path: self.path.clone(),
            source,
        })
    }

    fn io(&self, doing: &'static str, source: io::Error) -> AuthorityError {
        AuthorityError::Io {
            path: self.path.clone(),
            doing,
            source,
        }
    }

    fn damaged(&self, what: impl Into<String>) -> AuthorityError {
        AuthorityError::Damaged {
            path: self.path.clone(),
            guest: self.guest.clone(),
            what: what.into(),
        }
    }
}

impl Authority for FileAuthority {
    fn read(&self) -> Result<Option<Record>, AuthorityError> {
        let opened = OpenOptions::new()
            .read(true)
            // A pipe in its place must not be waited for.
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("open it", error)),
        };
        let is_file = file.metadata().map(|meta| meta.is_file());
        if !is_file.map_err(|error| self.io("look at it", error))? {
            return Err(self.damaged("it is no regular file"));
        }
        let mut text = Vec::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| self.io("read it", error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(self.damaged(format!("it is longer than {FILE_BYTES_MAX} bytes")));
        }
        let record: Record =
            serde_json::from_slice(&text).map_err(|error| self.damaged(error.to_string()))?;
        record
            .check(&self.guest)
            .map_err(|what| self.damaged(what))?;
        Ok(Some(record))
    }

    fn swap(
        &self,
        expected: Option<u64>,
        new: &Record,
        _by: By,
    ) -> Result<Swapped, AuthorityError> {
        assert_eq!(new.generation, expected.unwrap_or(0) + 1, "a swap counts");
        if let Err(what) = new.check(&self.guest) {
            panic!("the rules made a record that is wrong: {what}");
        }
        let _lock = self.lock()?;
        match self.read()? {
            Some(present) if Some(present.generation) != expected => {
                return Ok(Swapped::Changed(present));
            }
            None if expected.is_some() => {
                return Err(self.damaged("it was removed while it was used"));
            }
            _ => {}
        }
        self.write(new)?;
        Ok(Swapped::Swapped)
    }

    fn words(&self) -> String {
        format!("the file {}", self.path.display())
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
