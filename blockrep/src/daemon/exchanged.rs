//! Which image a state directory belongs to.
//!
//! Image and journal are the volume only together. An image that was exchanged, or made anew,
//! between two starts would be served as the epoch that metadata names. So `volume-N.image` keeps
//! what tells one file from another: its inode number and, where the file system knows it, the
//! time it was made. Not its device number, which may be another after a boot. Of a block device
//! only the kind is kept: nothing else of it stays. Start-up only, blocking.

use super::files::{FileError, Layout, begin_anew, read_text, write_text};
use super::image_mark::Mark;
use super::image_owner::Owner;
use crate::reactor::OpenedFile;
use blkback_proto::meta::VOLUMES_MAX;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Longest file read, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// What tells an image from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Facts {
    File {
        inode: u64,
        /// Seconds and nanoseconds since 1970.
        born: Option<(i64, u32)>,
    },
    BlockDevice,
}

impl Facts {
    fn of(image: &OpenedFile) -> std::io::Result<Self> {
        if image.is_block_device {
            return Ok(Self::BlockDevice);
        }
        // SAFETY: statx is plain integers, for which zero is a value.
        let mut found: libc::statx = unsafe { std::mem::zeroed() };
        // SAFETY: the path is an empty C string, the output a live statx of our own.
        let code = unsafe {
            libc::statx(
                image.fd.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_INO | libc::STATX_BTIME,
                &mut found,
            )
        };
        if code != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let told = found.stx_mask & libc::STATX_BTIME != 0;
        Ok(Self::File {
            inode: found.stx_ino,
            born: told.then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec)),
        })
    }

    fn text(&self) -> String {
        match self {
            Self::BlockDevice => "kind block-device\n".to_owned(),
            Self::File { inode, born } => {
                let mut text = format!("kind file\ninode {inode}\n");
                if let Some((seconds, nanos)) = born {
                    text.push_str(&format!("born {seconds}.{nanos:09}\n"));
                }
                text
            }
        }
    }

    fn read(text: &str) -> Option<Self> {
        let mut words = text.lines().map(|line| line.split_once(' '));
        let mut value = |key: &str| {
            let (name, value) = words.next()??;
            (name == key).then_some(value)
        };
        match value("kind")? {
            "block-device" => Some(Self::BlockDevice),
            "file" => {
                let inode = value("inode")?.parse().ok()?;
                let born = match value("born") {
                    None => None,
                    Some(time) => {
                        let (seconds, nanos) = time.split_once('.')?;
                        Some((seconds.parse().ok()?, nanos.parse().ok()?))
                    }
                };
                Some(Self::File { inode, born })
            }
            _ => None,
        }
    }

    /// Why `now` is another image than `self`; none where it may be the same.
    fn other_than(&self, now: &Self) -> Option<String> {
        match (self, now) {
            (Self::BlockDevice, Self::BlockDevice) => None,
            (Self::BlockDevice, Self::File { .. }) => {
                Some("a block device then, a file now".to_owned())
            }
            (Self::File { .. }, Self::BlockDevice) => {
                Some("a file then, a block device now".to_owned())
            }
            (Self::File { inode, born }, Self::File { inode: i, born: b }) => {
                let reborn = matches!((born, b), (Some(then), Some(now)) if then != now);
                if inode != i {
                    Some(format!("inode {inode} then, {i} now"))
                } else if reborn {
                    Some(format!("inode {inode} was made anew since"))
                } else {
                    None
                }
            }
        }
    }
}

fn examine(path: &Path, image: &OpenedFile) -> Result<Facts, FileError> {
    Facts::of(image).map_err(|error| {
        let why = super::files::words(&error);
        FileError::store(format!("cannot examine {}: {why}", path.display()))
    })
}

/// Refuses an image that is not the one of this state directory; the operator's word that it holds
/// the same overrules. A state directory that does not know takes what it is given. Gives whether
/// that word was needed.
///
/// # Errors
/// What differs, and what to do.
pub(super) fn check(
    layout: &Layout,
    index: usize,
    path: &Path,
    image: &OpenedFile,
    same_image: bool,
) -> Result<bool, FileError> {
    let file = layout.volume_image(index);
    let Some(text) = read_text(&file, TEXT_BYTES_MAX)? else {
        return Ok(false);
    };
    let now = examine(path, image)?;
    let why = match Facts::read(&text) {
        Some(then) => then.other_than(&now),
        None => Some(format!("{} cannot be read", file.display())),
    };
    let Some(why) = why else {
        return Ok(false);
    };
    let owner = owner(layout, index, &now, image);
    if let Some(owner) = owner.as_ref().filter(|owner| owner.is_of(layout)) {
        return Err(owner.refusal(layout, index, path));
    }
    if let Some(owner) = owner.filter(|_| !same_image) {
        return Err(owner.refusal(layout, index, path));
    }
    let path = path.display();
    if same_image {
        tracing::warn!("image {path} is another file ({why}): taken on the word --same-image");
        return Ok(true);
    }
    Err(FileError::store(format!(
        "the image {path} is not the file this state directory was made with ({why}): put that one \
         back; if this one holds the same bytes (moved, restored at the same epoch) type \
         --same-image; to begin anew {}",
        begin_anew(&layout.state)
    )))
}

/// The image is not the file that its owner knows: a copy that carries the owner's mark. Nobody can
/// tell where the owner does not know its image.
pub(super) fn is_another_file(owner: &Owner, image: &OpenedFile) -> bool {
    let file = Layout::image_in(&owner.state, owner.volume);
    let known = read_text(&file, TEXT_BYTES_MAX).ok().flatten();
    let known = known.and_then(|text| Facts::read(&text));
    let now = Facts::of(image).ok();
    known
        .zip(now)
        .is_some_and(|(known, now)| known.other_than(&now).is_some())
}

/// Who else has the image, if that is known: another volume here, by what tells files from one
/// another, or whoever's mark it carries.
fn owner(layout: &Layout, index: usize, now: &Facts, image: &OpenedFile) -> Option<Owner> {
    if matches!(now, Facts::BlockDevice) {
        return None;
    }
    let is_of = |volume: &usize| {
        let known = read_text(&layout.volume_image(*volume), TEXT_BYTES_MAX);
        let known = known.ok().flatten().and_then(|text| Facts::read(&text));
        *volume != index && known.is_some_and(|known| known.other_than(now).is_none())
    };
    let volume = (0..usize::from(VOLUMES_MAX)).find(is_of);
    let here = volume.map(|volume| Owner {
        state: layout.state.clone(),
        volume,
    });
    here.or_else(|| {
        let mark = Mark::of(image)?;
        let owner = Owner::of_mark(layout, &mark.id, &mark.state)?;
        // A copy with its attributes is still this volume's.
        (!owner.is_of(layout) || owner.volume != index).then_some(owner)
    })
}

/// Remembers the image, durably.
///
/// # Errors
/// It cannot be written.
pub(super) fn record(
    layout: &Layout,
    index: usize,
    path: &Path,
    image: &OpenedFile,
) -> Result<(), FileError> {
    let file = layout.volume_image(index);
    let text = examine(path, image)?.text();
    if read_text(&file, TEXT_BYTES_MAX)?.as_ref() == Some(&text) {
        return Ok(());
    }
    write_text(&file, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ring::Geometry;
    use crate::reactor::{Access, open_image};
    use std::fs;

    fn layout(state: &Path) -> Layout {
        Layout {
            journal: state.join("journal"),
            state: state.to_owned(),
            geometry: Geometry {
                segment_bytes: 4 << 20,
                segment_count: 4,
            },
        }
    }

    /// `rm b.img; truncate b.img` between two starts: a promotion would serve zeros as an epoch.
    #[test]
    fn an_exchanged_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let path = dir.path().join("disk.img");
        let open = || {
            fs::File::create(&path).unwrap().set_len(4096).unwrap();
            open_image(&path, Access::ReadWrite).unwrap()
        };
        let first = open();
        // A state directory of before: it learns.
        check(&layout, 0, &path, &first, false).unwrap();
        record(&layout, 0, &path, &first).unwrap();
        check(&layout, 0, &path, &first, false).unwrap();
        // Written in place it is the same file.
        check(&layout, 0, &path, &open(), false).unwrap();

        fs::rename(&path, dir.path().join("kept.img")).unwrap();
        let other = open();
        let error = check(&layout, 0, &path, &other, false).unwrap_err().text;
        for word in [
            "disk.img",
            "inode",
            "put that one back",
            "--same-image",
            ".old) and start again",
        ] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(error.lines().count(), 1);
        check(&layout, 0, &path, &other, true).unwrap();
        record(&layout, 0, &path, &other).unwrap();
        check(&layout, 0, &path, &other, false).unwrap();

        fs::write(layout.volume_image(0), "kind").unwrap();
        let error = check(&layout, 0, &path, &other, false).unwrap_err().text;
        assert!(error.contains("cannot be read"), "{error}");
    }

    /// A number that is reused must not hide the exchange, nor a file system that tells less
    /// after an update of the kernel invent one.
    #[test]
    fn facts_are_compared_as_far_as_they_are_known() {
        let file = |inode, born| Facts::File { inode, born };
        let known = file(7, Some((1_700_000_000, 5)));
        for (now, differs) in [
            (known, false),
            (file(7, None), false),
            (file(7, Some((1_700_000_000, 6))), true),
            (file(8, Some((1_700_000_000, 5))), true),
            (Facts::BlockDevice, true),
        ] {
            assert_eq!(known.other_than(&now).is_some(), differs);
            assert_eq!(Facts::read(&now.text()), Some(now));
        }
        assert_eq!(Facts::BlockDevice.other_than(&Facts::BlockDevice), None);
        for broken in ["", "kind tape\n", "kind file\n", "kind file\ninode x\n"] {
            assert_eq!(Facts::read(broken), None);
        }
    }
}
