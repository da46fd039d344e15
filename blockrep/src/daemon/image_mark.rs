//! Which state directory an image was used with last, as far as the image can tell it.
//!
//! One image used with two state directories in turn is the same file each time, and the first of
//! them knows nothing of what came in under the second. So a file carries an extended attribute:
//! the random mark of its state directory (`volume-N.mark` there) and where that one was. Where the
//! file system has no such attributes, and for block devices, nothing is kept and nothing checked.
//! Start-up only, blocking.

use super::files::{FileError, Layout, read_text, words, write_text};
use super::image_owner::Owner;
use crate::cli::ExitCode;
use crate::reactor::OpenedFile;
use blkback_proto::ctl::one_line;
use blockrep_host::ids;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Name of the attribute.
const ATTRIBUTE: &CStr = c"user.blockrep.state";
/// Longest value kept, in bytes: file systems have no room for more than some 4 KiB.
const VALUE_BYTES_MAX: usize = 1024;

fn attribute(fd: &OwnedFd) -> Option<String> {
    let mut bytes = [0u8; VALUE_BYTES_MAX];
    // SAFETY: the name is a C string, the buffer our own and as long as is said.
    let count = unsafe {
        libc::fgetxattr(
            fd.as_raw_fd(),
            ATTRIBUTE.as_ptr(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
        )
    };
    let value = bytes.get(..usize::try_from(count).ok()?)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// What an image carries.
#[derive(Debug)]
pub(super) struct Mark {
    /// The random mark.
    pub(super) id: String,
    /// Where the state directory was that has it; empty where the path was too long.
    pub(super) state: PathBuf,
}

impl Mark {
    /// Of this image, if it carries one.
    pub(super) fn of(image: &OpenedFile) -> Option<Self> {
        if image.is_block_device {
            return None;
        }
        let found = attribute(&image.fd)?;
        let (id, state) = found.split_once(' ').unwrap_or((&found, ""));
        Some(Self {
            id: id.to_owned(),
            state: state.into(),
        })
    }
}

fn set_attribute(fd: &OwnedFd, value: &str) -> io::Result<()> {
    // SAFETY: the name is a C string, the value is read for as many bytes as it has.
    let code = unsafe {
        libc::fsetxattr(
            fd.as_raw_fd(),
            ATTRIBUTE.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    File::from(fd.try_clone()?).sync_all()
}

/// Refuses an image that another state directory was used with since; the operator's word that it
/// holds the same overrules. Gives whether that word was needed.
///
/// # Errors
/// Both state directories, and what to do.
pub(super) fn check(
    layout: &Layout,
    index: usize,
    path: &Path,
    image: &OpenedFile,
    same_image: bool,
) -> Result<bool, FileError> {
    let own = read_text(&layout.volume_mark(index), VALUE_BYTES_MAX)?;
    let Some(found) = Mark::of(image) else {
        return Ok(false);
    };
    let is_fresh = own.is_none();
    if own.is_some_and(|own| own == found.id) {
        return Ok(false);
    }
    let owner = if is_fresh {
        // A state directory that was moved away is out of the way: that is how to begin anew.
        Owner::in_state(&layout.state, &found.id)
            .or_else(|| Owner::in_state(&found.state, &found.id))
    } else {
        Owner::of_mark(layout, &found.id, &found.state)
    };
    if is_fresh && owner.is_none() {
        return Ok(false);
    }
    if let Some(owner) = owner.as_ref().filter(|owner| owner.is_of(layout)) {
        return Err(owner.refusal(layout, index, path));
    }
    let said = one_line(&found.state.display().to_string());
    if same_image {
        let path = path.display();
        tracing::warn!(
            "image {path} was used with another state directory ({said}): taken on the word \
             --same-image"
        );
        return Ok(true);
    }
    Err(match owner {
        Some(_) if is_fresh => FileError::store(format!(
            "the image {} belongs to the state directory {said}, which may know of epochs that are \
             not in it yet: give --state {said}; if the image is to begin anew as it is, move that \
             directory away first",
            path.display()
        )),
        Some(owner) => owner.refusal(layout, index, path),
        None => FileError::store(lost_owner_text(path, &layout.state, &found.state)),
    })
}

/// The image was used last with a state directory that is not to be found.
fn lost_owner_text(path: &Path, own: &Path, said: &Path) -> String {
    let (path, own_text) = (path.display(), own.display());
    let said_text = one_line(&said.display().to_string());
    let (place, remedy) = if own == said {
        (
            format!("one that stood at {own_text} before the one that is there now"),
            "put it back in the place of this one".to_owned(),
        )
    } else {
        (
            said_text.clone(),
            format!("put it back and give --state {said_text}"),
        )
    };
    format!(
        "the image {path} was used last with another state directory, {place}; that one is not to be \
         found, and {own_text} does not know what was written to the image under it: {remedy}; if it is \
         gone for good, and nothing was written to the image under it, type --same-image; to begin \
         anew remove {own_text}"
    )
}

/// Marks the image as that of this state directory, durably. An image that cannot carry the mark
/// goes without.
///
/// # Errors
/// The mark cannot be written in the state directory.
pub(super) fn record(layout: &Layout, index: usize, image: &OpenedFile) -> Result<(), FileError> {
    if image.is_block_device {
        return Ok(());
    }
    let file = layout.volume_mark(index);
    let own = match read_text(&file, VALUE_BYTES_MAX)? {
        Some(own) => own,
        None => {
            let id = ids::random_id16().map_err(|error| FileError {
                text: words(&error),
                code: ExitCode::Other,
            })?;
            let own: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            write_text(&file, &own)?;
            own
        }
    };
    let mut value = format!("{own} {}", layout.state.display());
    if value.len() > VALUE_BYTES_MAX {
        value.clone_from(&own);
    }
    if attribute(&image.fd).as_ref() == Some(&value) {
        return Ok(());
    }
    if let Err(error) = set_attribute(&image.fd, &value) {
        let why = words(&error);
        tracing::debug!("volume {index}: the image does not carry its mark: {why}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ring::Geometry;
    use crate::reactor::{Access, open_image};
    use std::fs;

    /// A state directory with nothing in it.
    fn made(state: PathBuf) -> Layout {
        fs::create_dir_all(&state).unwrap();
        Layout {
            journal: state.join("journal"),
            state,
            geometry: Geometry {
                segment_bytes: 4 << 20,
                segment_count: 4,
            },
        }
    }

    /// State A, then state B, then A again on one image: a promotion would have served the bytes of
    /// B as an epoch of A.
    #[test]
    fn an_image_goes_to_one_state_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(4096).unwrap();
        let image = open_image(&path, Access::ReadWrite).unwrap();
        let layout = |name: &str| made(dir.path().join(name));
        let (a, b) = (layout("a"), layout("b"));
        let try_with = |layout: &Layout, same| check(layout, 0, &path, &image, same);
        // State directories of before know no mark, nor does a fresh image.
        assert!(!try_with(&a, false).unwrap());
        record(&a, 0, &image).unwrap();
        if attribute(&image.fd).is_none() {
            // Without attributes nothing is checked, and nothing refused.
            record(&b, 0, &image).unwrap();
            assert!(!try_with(&a, false).unwrap());
            return;
        }
        assert!(!try_with(&a, false).unwrap());
        // A promoted disk must not become a fresh backup's by a forgotten --state.
        let error = try_with(&b, false).unwrap_err().text;
        let owner = a.state.display();
        assert!(error.contains(&format!("give --state {owner};")), "{error}");
        assert!(try_with(&b, true).unwrap());
        record(&b, 0, &image).unwrap();
        assert!(!try_with(&b, false).unwrap());
        // Whose it is is known: nobody is asked for his word.
        let error = try_with(&a, false).unwrap_err().text;
        let (state_a, state_b) = (a.state.display(), b.state.display());
        for word in [
            format!("belongs to volume 0 of the state directory {state_b}:"),
            format!("is not known to {state_a};"),
            format!("give --state {state_b} with this image"),
        ] {
            assert!(error.contains(&word), "{error}");
        }
        assert!(!error.contains("--same-image"), "{error}");
        assert!(try_with(&a, true).unwrap());
        record(&a, 0, &image).unwrap();
        assert!(!try_with(&a, false).unwrap());
        assert!(try_with(&b, false).is_err());

        // A state directory that was moved is the same one.
        fs::rename(&a.state, dir.path().join("moved")).unwrap();
        let moved = layout("moved");
        assert!(!try_with(&moved, false).unwrap());
        // Another one in its place has the same name.
        let again = layout("a");
        record(&again, 0, &image).unwrap();
        fs::rename(&again.state, dir.path().join("again")).unwrap();
        fs::rename(&moved.state, &again.state).unwrap();
        fs::write(dir.path().join("again/group.meta"), "").unwrap();
        let error = try_with(&a, false).unwrap_err().text;
        let again = dir.path().join("again");
        let word = format!("give --state {} with", again.display());
        assert!(error.contains(&word), "moved aside, it is found: {error}");
        assert!(!error.contains("--same-image"), "{error}");
        fs::remove_dir_all(again).unwrap();
        let error = try_with(&a, false).unwrap_err().text;
        for word in [
            format!("one that stood at {} before the one", a.state.display()),
            "put it back in the place of this one".to_owned(),
            "type --same-image".to_owned(),
        ] {
            assert!(error.contains(&word), "{error}");
        }
    }

    /// Two images in the wrong order are each other's: --same-image would have ruined both.
    #[test]
    fn the_image_of_another_volume_is_called_so() {
        let dir = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().set_len(4096).unwrap();
            (open_image(&path, Access::ReadWrite).unwrap(), path)
        };
        let images = [image("0.img"), image("1.img")];
        let layout = made(dir.path().join("state"));
        for (index, (image, path)) in images.iter().enumerate() {
            record(&layout, index, image).unwrap();
            super::super::exchanged::record(&layout, index, path, image).unwrap();
        }
        let marked = attribute(&images[0].0.fd).is_some();
        for same in [false, true] {
            let (image, path) = &images[1];
            let by_facts = super::super::exchanged::check(&layout, 0, path, image, same);
            let mut errors = vec![by_facts.unwrap_err().text];
            if marked {
                errors.push(check(&layout, 0, path, image, same).unwrap_err().text);
            }
            for error in errors {
                let word = "1.img is that of volume 1 of this group, and was given as volume 0";
                assert!(error.contains(word), "{error}");
                assert!(!error.contains("--same-image"), "{error}");
            }
        }
    }
}
