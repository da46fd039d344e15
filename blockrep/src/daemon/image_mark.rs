//! Which state directory an image was used with last, as far as the image can tell it.
//!
//! One image used with two state directories in turn is the same file each time, and the first of
//! them knows nothing of what came in under the second. So a file carries an extended attribute:
//! the random mark of its state directory (`volume-N.mark` there) and where that one was. Where the
//! file system has no such attributes, and for block devices, nothing is kept and nothing checked.
//! Start-up only, blocking.

use super::files::{FileError, Layout, read_text, words, write_text};
use crate::cli::ExitCode;
use crate::reactor::OpenedFile;
use blkback_proto::ctl::one_line;
use blockrep_host::ids;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

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
    if image.is_block_device {
        return Ok(false);
    }
    let own = read_text(&layout.volume_mark(index), VALUE_BYTES_MAX)?;
    let Some(found) = attribute(&image.fd) else {
        return Ok(false);
    };
    let (mark, other) = found.split_once(' ').unwrap_or((&found, "DIR"));
    let is_fresh = own.is_none();
    if own.is_some_and(|own| own == mark) || (is_fresh && !is_there(other, index, mark)) {
        return Ok(false);
    }
    let (path, state) = (path.display(), layout.state.display().to_string());
    let other = one_line(other);
    if same_image {
        tracing::warn!(
            "image {path} was used with another state directory ({other}): taken on the word \
             --same-image"
        );
        return Ok(true);
    }
    if is_fresh {
        return Err(FileError::store(format!(
            "the image {path} belongs to the state directory {other}, which may know of epochs that \
             are not in it yet: give --state {other}; if the image is to begin anew as it is, move \
             that directory away first"
        )));
    }
    let remedy = if other == state {
        // One was moved away, and another made or put in its place.
        "put that one back in its place".to_owned()
    } else {
        format!("give --state {other}")
    };
    Err(FileError::store(format!(
        "the image {path} was used with another state directory ({other}) after this one ({state}), \
         which does not know what it holds now: {remedy}; if nothing was written to it meanwhile \
         type --same-image; to begin anew remove {state}"
    )))
}

/// The state directory that left its mark on an image is where it was.
fn is_there(state: &str, index: usize, mark: &str) -> bool {
    let file = Layout::mark_in(Path::new(state), index);
    matches!(read_text(&file, VALUE_BYTES_MAX), Ok(Some(found)) if found == mark)
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

    /// State A, then state B, then A again on one image: a promotion would have served the bytes of
    /// B as an epoch of A.
    #[test]
    fn an_image_goes_to_one_state_directory_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(4096).unwrap();
        let image = open_image(&path, Access::ReadWrite).unwrap();
        let layout = |name: &str| {
            let state = dir.path().join(name);
            fs::create_dir_all(&state).unwrap();
            Layout {
                journal: state.join("journal"),
                state,
                geometry: Geometry {
                    segment_bytes: 4 << 20,
                    segment_count: 4,
                },
            }
        };
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
        let error = try_with(&a, false).unwrap_err().text;
        let (state_a, state_b) = (a.state.display(), b.state.display());
        for word in [
            format!("({state_b}) after this one ({state_a})"),
            format!("--state {state_b}"),
            "--same-image".to_owned(),
        ] {
            assert!(error.contains(&word), "{error}");
        }
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
        let error = try_with(&a, false).unwrap_err().text;
        assert!(error.contains("put that one back in its place"), "{error}");
    }
}
