//! The directory of a store: its names, its lock, the file `state`, and the files of a copy.

use super::StoreError;
use super::recovery::Seen;
use crate::memory::PAGE_BYTES;
use crate::memory::ram::Ram;
use blkback_proto::ids::{Epoch, SessionId};
use blkback_proto::memory::kept::{EpochHeader, KEPT_BYTES, Kept, STATE_HEADER_BYTES, StateHeader};
use blkback_proto::memory::{BATCH_PAGES_MAX, Frame, Hello};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const STATE: &str = "state";
const LOCK: &str = "lock";
const DEVICE_STATE: &str = "device-state";
const PART: &str = ".part";
/// What zero pages are written from.
static ZEROS: [u8; BATCH_PAGES_MAX * 4096] = [0; BATCH_PAGES_MAX * 4096];

pub(super) fn ram_name(generation: u64) -> String {
    format!("ram-{generation:016x}")
}

pub(super) fn shape_name(generation: u64) -> String {
    format!("shape-{generation:016x}")
}

pub(super) fn epoch_name(generation: u64, epoch: Epoch) -> String {
    format!("epoch-{generation:016x}-{epoch}")
}

/// What a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// RAM or shape of a copy.
    OfCopy(u64),
    Epoch(u64, Epoch),
    Part,
    DeviceState,
    Other,
}

pub(super) fn read_name(name: &str) -> Name {
    let generation = |text: &str| u64::from_str_radix(text, 16).ok();
    if name.ends_with(PART) {
        return Name::Part;
    }
    if name == DEVICE_STATE {
        return Name::DeviceState;
    }
    let of_copy = name
        .strip_prefix("ram-")
        .or_else(|| name.strip_prefix("shape-"));
    if let Some(generation) = of_copy.and_then(generation) {
        return Name::OfCopy(generation);
    }
    name.strip_prefix("epoch-")
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(of, epoch)| Some(Name::Epoch(generation(of)?, Epoch(epoch.parse().ok()?))))
        .unwrap_or(Name::Other)
}

type Probe = Box<dyn FnMut(&'static str) + Send>;

/// Locked as long as it lives.
pub(super) struct Directory {
    path: PathBuf,
    state: File,
    _lock: File,
    probe: Option<Probe>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Directory({})", self.path.display())
    }
}

pub(super) fn failed(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn create(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| failed("making it", path, e))
}

impl Directory {
    pub(super) fn lock(path: &Path, probe: Option<Probe>) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| failed("making the directory", path, e))?;
        let open = |name: &str| {
            let path = path.join(name);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(|e| failed("opening it", &path, e))
        };
        let lock = open(LOCK)?;
        // SAFETY: flock takes a descriptor, which `lock` keeps open, and no memory.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                return Err(StoreError::InUse {
                    dir: path.to_owned(),
                });
            }
            return Err(failed("locking it", path, error));
        }
        Ok(Self {
            state: open(STATE)?,
            path: path.to_owned(),
            _lock: lock,
            probe,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Something is about to be changed.
    pub(super) fn step(&mut self, what: &'static str) {
        if let Some(probe) = &mut self.probe {
            probe(what);
        }
    }

    pub(super) fn damaged(&self, why: String) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            why,
        }
    }

    /// What `state` says, and what is there.
    pub(super) fn look(&self) -> Result<(Kept, Seen), StoreError> {
        let io = |e| failed("reading it", &self.path, e);
        let mut seen = Seen::default();
        for entry in fs::read_dir(&self.path).map_err(io)? {
            let entry = entry.map_err(io)?;
            let bytes = entry.metadata().map_err(io)?.len();
            if let Ok(name) = entry.file_name().into_string() {
                seen.files.insert(name, bytes);
            }
        }
        let mut newest: Option<Kept> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; KEPT_BYTES];
            match self
                .state
                .read_exact_at(&mut bytes, slot * KEPT_BYTES as u64)
            {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
                other => other.map_err(io)?,
            }
            match Kept::decode(&bytes) {
                Ok(kept) if kept.slot() != slot => seen.bad_slots += 1,
                Ok(kept) if newest.is_none_or(|newest| newest.sequence < kept.sequence) => {
                    newest = Some(kept);
                }
                Ok(_) => {}
                Err(_) if bytes.iter().all(|byte| *byte == 0) => {}
                Err(_) => seen.bad_slots += 1,
            }
        }
        seen.has_state = newest.is_some();
        Ok((newest.unwrap_or_default(), seen))
    }

    pub(super) fn write_kept(&mut self, kept: &Kept) -> Result<(), StoreError> {
        self.step("state");
        let at = kept.slot() * KEPT_BYTES as u64;
        self.state
            .write_all_at(&kept.encode(), at)
            .map_err(|e| failed("writing its state", &self.path, e))
    }

    pub(super) fn write_device_state(
        &mut self,
        of: &EpochHeader,
        state: &[u8],
    ) -> Result<(), StoreError> {
        let header = StateHeader {
            generation: of.generation,
            epoch: of.epoch,
            kind: of.state_kind,
            state_bytes: state.len() as u64,
            state_crc: of.state_crc,
        };
        let part = format!("{DEVICE_STATE}{PART}");
        let path = self.path.join(&part);
        self.step("device state");
        let file = create(&path)?;
        let done = file
            .write_all_at(state, STATE_HEADER_BYTES as u64)
            .and_then(|()| file.write_all_at(&header.encode(), 0));
        done.map_err(|e| failed("writing it", &path, e))?;
        self.rename(&part, DEVICE_STATE)
    }

    pub(super) fn read_device_state(
        &self,
        generation: u64,
        epoch: Epoch,
    ) -> Result<super::DeviceState, StoreError> {
        let path = self.path.join(DEVICE_STATE);
        let bytes = fs::read(&path).map_err(|e| failed("reading it", &path, e))?;
        let damaged = |why: String| StoreError::Damaged {
            path: path.clone(),
            why,
        };
        let header = StateHeader::decode(&bytes).map_err(|e| damaged(e.to_string()))?;
        if header.generation != generation || header.epoch != epoch {
            return Err(damaged(format!(
                "it is of epoch {}, the memory of epoch {epoch}",
                header.epoch
            )));
        }
        let state = &bytes[STATE_HEADER_BYTES..];
        if state.len() as u64 != header.state_bytes || crc32fast::hash(state) != header.state_crc {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        Ok(super::DeviceState {
            epoch,
            kind: header.kind,
            bytes: state.to_vec(),
        })
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), StoreError> {
        self.step("rename");
        let from = self.path.join(from);
        fs::rename(&from, self.path.join(to)).map_err(|e| failed("renaming it", &from, e))
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        self.step("remove");
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing it", &path, e)),
            _ => Ok(()),
        }
    }

    /// RAM and shape of every copy that is not one of these.
    pub(super) fn remove_copies_but(&mut self, kept: &[u64]) -> Result<(), StoreError> {
        let (_, seen) = self.look()?;
        for name in seen.files.keys() {
            match read_name(name) {
                Name::OfCopy(generation) if !kept.contains(&generation) => self.remove(name)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether shared memory has that much left.
    pub(super) fn check_room(&self, needed_bytes: u64) -> Result<(), StoreError> {
        let name = CString::new(self.path.as_os_str().as_bytes()).expect("it was opened");
        let mut stat = MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the name ends with a zero and `stat` is as large as the kernel's answer; both outlive the call.
        if unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) } != 0 {
            let error = io::Error::last_os_error();
            return Err(failed("asking for its room", &self.path, error));
        }
        // SAFETY: the call succeeded, so it was filled in.
        let stat = unsafe { stat.assume_init() };
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        // A tmpfs without a limit says zero of zero.
        if stat.f_blocks == 0 || free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(StoreError::Room {
            dir: self.path.clone(),
            needed_bytes,
            free_bytes,
            missing_bytes: needed_bytes - free_bytes,
        })
    }

    pub(super) fn create_copy(&mut self, hello: Hello) -> Result<Copy, StoreError> {
        let mut shape = Vec::new();
        Frame::Hello(Box::new(hello.clone())).encode(SessionId(0), &mut shape);
        let path = self.path.join(shape_name(hello.generation));
        self.step("shape");
        create(&path)?
            .write_all_at(&shape, 0)
            .map_err(|e| failed("writing it", &path, e))?;
        let path = self.path.join(ram_name(hello.generation));
        self.step("ram");
        let file = create(&path)?;
        file.set_len(hello.ram_bytes())
            .map_err(|e| failed("making it as large as the guest", &path, e))?;
        Ok(Copy {
            generation: hello.generation,
            hello,
            file,
            path,
        })
    }

    /// The copy of that id; 0 for none.
    pub(super) fn copy(&self, generation: u64) -> Result<Option<Copy>, StoreError> {
        if generation == 0 {
            return Ok(None);
        }
        let shape = self.path.join(shape_name(generation));
        let bytes = fs::read(&shape).map_err(|e| failed("reading it", &shape, e))?;
        let damaged = |path: &Path, why: &str| StoreError::Damaged {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let hello = match Frame::decode(&bytes) {
            Ok((Frame::Hello(hello), _)) if hello.generation == generation => *hello,
            Ok(_) => return Err(damaged(&shape, "it is of another copy")),
            Err(e) => return Err(damaged(&shape, &e.to_string())),
        };
        let path = self.path.join(ram_name(generation));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| failed("opening it", &path, e))?;
        let bytes = file.metadata().map_err(|e| failed("its size", &path, e))?;
        if bytes.len() != hello.ram_bytes() {
            return Err(damaged(&path, "it is not as large as the guest's memory"));
        }
        Ok(Some(Copy {
            generation,
            hello,
            file,
            path,
        }))
    }
}

/// All blocks of a guest's RAM, one behind the other in one file.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) generation: u64,
    pub(super) hello: Hello,
    file: File,
    path: PathBuf,
}

impl Copy {
    pub(super) fn failed(&self, what: &'static str, source: io::Error) -> StoreError {
        failed(what, &self.path, source)
    }

    pub(super) fn ram(&self) -> Result<Ram, StoreError> {
        Ram::new(super::blocks_in(&self.hello, &self.path)).map_err(|why| StoreError::Damaged {
            path: self.path.clone(),
            why,
        })
    }

    pub(super) fn check_run(&self, first: u64, count: u64) -> Result<(), StoreError> {
        let pages = self.hello.pages();
        match first.checked_add(count) {
            Some(end) if end <= pages => Ok(()),
            _ => Err(StoreError::peer(format!(
                "{count} pages from page {first} on, of {pages}"
            ))),
        }
    }

    pub(super) fn write(&self, first: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all_at(bytes, first * PAGE_BYTES)
            .map_err(|e| self.failed("writing pages", e))
    }

    pub(super) fn zero(&self, first: u64, count: u64) -> Result<(), StoreError> {
        let (mut first, end) = (first, first + count);
        while first < end {
            let here = (end - first).min(BATCH_PAGES_MAX as u64);
            let bytes = usize::try_from(here * PAGE_BYTES).expect("a batch");
            self.write(first, &ZEROS[..bytes])?;
            first += here;
        }
        Ok(())
    }

    pub(super) fn read(&self, page: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(out, page * PAGE_BYTES)
            .map_err(|e| self.failed("reading a page", e))
    }
}
