//! Files of a group: state directory, metadata, journals, images, locks. Start-up only, blocking.

use crate::cli::ExitCode;
use crate::io::{IoError, Target};
use crate::journal::ring::Geometry;
use crate::journal::scan::ReadAt;
use blkback_proto::meta::{GroupMeta, SLOT_BYTES, VolumeMeta, newest, slot_offset};
use blkback_proto::segment::segment_file_name;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes zeroed in one write when a journal is made.
const ZERO_BYTES: usize = 1 << 20;

/// Why files cannot be used: one line, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct FileError {
    pub(super) text: String,
    pub(super) code: ExitCode,
}

impl FileError {
    pub(super) fn store(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: ExitCode::Store,
        }
    }
}

impl FileError {
    /// With the flag that would have named another place.
    pub(super) fn or_give(self, flag: &str) -> Self {
        Self {
            text: format!("{}: put that right, or give another {flag}", self.text),
            code: self.code,
        }
    }
}

/// The kernel's words without its number.
pub(super) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn at(path: &Path, what: &str, error: &io::Error) -> FileError {
    FileError::store(format!(
        "cannot {what} {}: {}",
        path.display(),
        words(error)
    ))
}

/// Where everything of a group stands.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) state: PathBuf,
    pub(super) journal: PathBuf,
    pub(super) geometry: Geometry,
}

/// How to begin anew: nothing is removed that may be the only memory of a disk. Another --state would
/// not do, since the image belongs to the one that is there.
pub(super) fn begin_anew(state: &Path) -> String {
    let how = move_away(state);
    format!("move the state directory away ({how}) and start again")
}

/// The command that puts a state directory out of the way.
pub(super) fn move_away(state: &Path) -> String {
    let state = state.display();
    format!("mv {state} {state}.old")
}

impl Layout {
    pub(super) fn group_meta(&self) -> PathBuf {
        self.state.join("group.meta")
    }

    pub(super) fn volume_meta(&self, index: usize) -> PathBuf {
        self.state.join(format!("volume-{index}.meta"))
    }

    pub(super) fn inflight(&self, index: usize) -> PathBuf {
        self.state.join(format!("volume-{index}.inflight"))
    }

    /// Which image the volume has, see [`super::exchanged`].
    pub(super) fn volume_image(&self, index: usize) -> PathBuf {
        Self::image_in(&self.state, index)
    }

    /// The same in any state directory.
    pub(super) fn image_in(state: &Path, index: usize) -> PathBuf {
        state.join(format!("volume-{index}.image"))
    }

    /// What the image carries of this state directory, see [`super::image_mark`].
    pub(super) fn volume_mark(&self, index: usize) -> PathBuf {
        Self::mark_in(&self.state, index)
    }

    /// The same in any state directory.
    pub(super) fn mark_in(state: &Path, index: usize) -> PathBuf {
        state.join(format!("volume-{index}.mark"))
    }

    pub(super) fn journal_dir(&self, index: usize) -> PathBuf {
        self.journal.join(format!("journal-{index}"))
    }

    pub(super) fn segment(&self, index: usize, file: u32) -> PathBuf {
        self.journal_dir(index).join(segment_file_name(file))
    }
}

/// Makes a directory and its parents, for the owner only.
pub(super) fn make_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                FileError::store(format!(
                    "cannot make the directory {}: a file stands there, or in the place of one of the \
                     directories above it",
                    path.display()
                ))
            }
            _ => at(path, "make the directory", &error),
        })
}

/// Makes a directory that was given by a flag, in one that is there: a typo further up would make a
/// tree that nobody looks for.
pub(super) fn make_dir_in_place(path: &Path) -> Result<(), FileError> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.exists() => Err(FileError {
            text: format!(
                "cannot make the directory {}: there is no directory {} (mkdir -p makes it)",
                path.display(),
                parent.display()
            ),
            code: ExitCode::Usage,
        }),
        _ => make_dir(path),
    }
}

/// Makes what was written in a directory survive a power cut.
pub(super) fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| at(path, "sync the directory", &error))
}

/// Replaces a small text file, durably.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = |error: io::Error| at(path, "write", &error);
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// A small text file, at most so many bytes of it; `None` when there is none.
pub(super) fn read_text(path: &Path, bytes_max: usize) -> Result<Option<String>, FileError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(bytes_max as u64).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path, "read", &error)),
    }
}

/// Both slots of a metadata file; `None` when there is no file.
pub(super) fn read_slots(path: &Path) -> Result<Option<[Vec<u8>; 2]>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path, "open", &error)),
    };
    // What a killed daemon wrote may be in a cache only: it must not be believed before it is
    // durable.
    file.sync_all().map_err(|error| at(path, "sync", &error))?;
    let mut slots = [vec![0; SLOT_BYTES], vec![0; SLOT_BYTES]];
    for (index, slot) in slots.iter_mut().enumerate() {
        let offset = slot_offset(index as u64);
        file.read_exact_at(slot, offset)
            .map_err(|error| at(path, "read", &error))?;
    }
    Ok(Some(slots))
}

/// The group's metadata; `None` on a fresh state directory.
pub(super) fn read_group(path: &Path) -> Result<Option<GroupMeta>, FileError> {
    let Some(slots) = read_slots(path)? else {
        return Ok(None);
    };
    let decoded = [
        GroupMeta::decode(&slots[0]).ok(),
        GroupMeta::decode(&slots[1]).ok(),
    ];
    newest(decoded, |m| m.generation).map(Some).ok_or_else(|| {
        let why = GroupMeta::decode(&slots[0])
            .err()
            .map_or_else(String::new, |e| e.to_string());
        FileError::store(format!(
            "{} is damaged in both slots ({why}): restore it, or to begin anew {}",
            path.display(),
            begin_anew(path.parent().unwrap_or(path))
        ))
    })
}

/// A volume's metadata; `None` on a fresh state directory.
pub(super) fn read_volume(path: &Path) -> Result<Option<VolumeMeta>, FileError> {
    let Some(slots) = read_slots(path)? else {
        return Ok(None);
    };
    let decoded = [
        VolumeMeta::decode(&slots[0]).ok(),
        VolumeMeta::decode(&slots[1]).ok(),
    ];
    newest(decoded, |m| m.generation).map(Some).ok_or_else(|| {
        let why = VolumeMeta::decode(&slots[0])
            .err()
            .map_or_else(String::new, |e| e.to_string());
        FileError::store(format!(
            "{} is damaged in both slots ({why}): restore it, or to begin anew {}",
            path.display(),
            begin_anew(path.parent().unwrap_or(path))
        ))
    })
}

fn write_slot(path: &Path, generation: u64, slot: &[u8]) -> Result<(), FileError> {
    let fresh = !path.exists();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| at(path, "open", &error))?;
    if fresh {
        file.set_len(2 * SLOT_BYTES as u64)
            .map_err(|error| at(path, "make", &error))?;
    }
    file.write_all_at(slot, slot_offset(generation))
        .and_then(|()| file.sync_all())
        .map_err(|error| at(path, "write", &error))?;
    if fresh {
        sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    }
    Ok(())
}

/// Writes the group's metadata durably.
pub(super) fn write_group(path: &Path, meta: &GroupMeta) -> Result<(), FileError> {
    let mut slot = vec![0; SLOT_BYTES];
    meta.encode(&mut slot);
    write_slot(path, meta.generation, &slot)
}

/// Writes a volume's metadata durably.
pub(super) fn write_volume(path: &Path, meta: &VolumeMeta) -> Result<(), FileError> {
    let mut slot = vec![0; SLOT_BYTES];
    meta.encode(&mut slot);
    write_slot(path, meta.generation, &slot)
}

/// Makes the segment files of a journal, written with zeros once; tells how far it is.
pub(super) fn make_journal(
    layout: &Layout,
    index: usize,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), FileError> {
    let dir = layout.journal_dir(index);
    make_dir(&dir)?;
    let geometry = layout.geometry;
    let total = geometry.segment_bytes * u64::from(geometry.segment_count);
    let zeros = vec![0; ZERO_BYTES];
    let mut done = 0;
    for file in 0..geometry.segment_count {
        let path = layout.segment(index, file);
        let fail = |error: io::Error| {
            FileError::store(format!(
                "cannot make the journal file {} of {} bytes: {}: free some space, or give a \
                 smaller --journal-size",
                path.display(),
                geometry.segment_bytes,
                words(&error)
            ))
        };
        let have = fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
        if have == geometry.segment_bytes {
            done += have;
            continue;
        }
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        let mut left = geometry.segment_bytes;
        while left > 0 {
            let part = left.min(ZERO_BYTES as u64);
            let bytes = usize::try_from(part).expect("at most a megabyte");
            out.write_all(&zeros[..bytes]).map_err(fail)?;
            left -= part;
            done += part;
            progress(done, total);
        }
        out.sync_all().map_err(fail)?;
    }
    sync_dir(&dir)
}

/// Reads a journal for recovery.
#[derive(Debug)]
pub(super) struct JournalReader {
    files: Vec<File>,
    volume_meta: File,
}

impl JournalReader {
    pub(super) fn open(layout: &Layout, index: usize) -> Result<Self, FileError> {
        let mut files = Vec::new();
        for file in 0..layout.geometry.segment_count {
            let path = layout.segment(index, file);
            let open = File::open(&path).map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    return missing_segment(layout, index, &path);
                }
                at(&path, "open", &error)
            })?;
            let length = open
                .metadata()
                .map_err(|error| at(&path, "examine", &error))?
                .len();
            if length != layout.geometry.segment_bytes {
                return Err(FileError::store(format!(
                    "{} has {length} bytes where {} are expected: give the --journal-size it was \
                     made with",
                    path.display(),
                    layout.geometry.segment_bytes
                )));
            }
            // What a killed daemon wrote may be in a cache only; recovery must not act on what a
            // power cut could still take away.
            open.sync_data()
                .map_err(|error| at(&path, "sync", &error))?;
            files.push(open);
        }
        let path = layout.volume_meta(index);
        let volume_meta = File::open(&path).map_err(|error| at(&path, "open", &error))?;
        Ok(Self { files, volume_meta })
    }
}

fn missing_segment(layout: &Layout, index: usize, path: &Path) -> FileError {
    FileError::store(format!(
        "{} is missing, a part of the journal of volume {index}: put it back; without it what the \
         journal holds cannot be told, and to begin anew {}",
        path.display(),
        begin_anew(&layout.state)
    ))
}

impl ReadAt for JournalReader {
    fn read_at(&self, target: Target, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        let file = match target {
            Target::Segment(index) => self.files.get(index as usize),
            Target::VolumeMeta => Some(&self.volume_meta),
            Target::Image | Target::GroupMeta => None,
        };
        let file = file.ok_or(IoError {
            errno: libc::EINVAL,
        })?;
        file.read_exact_at(buf, offset).map_err(|error| IoError {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })
    }
}
