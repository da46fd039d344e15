//! Which state directory an image was written to under last, as far as the image can tell it.
//!
//! One image used with two state directories in turn is the same file each time, and the first of
//! them knows nothing of what came in under the second. So a file carries an extended attribute:
//! the random mark of its state directory (`volume-N.mark` there) and where that one was. Where the
//! file system has no such attributes, and for block devices, nothing is kept and nothing checked.
//!
//! A backup that never held anything marks its image only when it takes its first primary in: one that
//! was started by mistake leaves the image to the state directory that knows it, and says of whom it
//! would take it. Blocking: at the start, and once before the first write of such a backup.

use super::exchanged::is_another_file;
use super::files::{FileError, Layout, begin_anew, read_text, words, write_text};
use super::image_owner::{Owner, holds};
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
/// holds the same overrules. One that was never used takes an image whose state directory was moved
/// away. Gives whether that word was needed.
///
/// # Errors
/// Both state directories, and what to do.
pub(super) fn check(
    layout: &Layout,
    index: usize,
    path: &Path,
    image: &OpenedFile,
    is_used: bool,
    same_image: bool,
) -> Result<bool, FileError> {
    let own = read_text(&layout.volume_mark(index), VALUE_BYTES_MAX)?;
    let Some(found) = Mark::of(image) else {
        return Ok(false);
    };
    let is_fresh = own.is_none() || !is_used;
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
        Some(owner) if is_fresh && owner.volume != index => FileError::store(format!(
            "the image {} is that of volume {} of the state directory {said}, and was given as volume \
             {index}: give the images in the order in which that was made, and --state {said}; if they \
             are to begin anew as they are, move that directory away first",
            path.display(),
            owner.volume
        )),
        Some(owner) if is_fresh && is_another_file(&owner, image) => {
            FileError::store(copy_text(path, &owner, &said))
        }
        Some(owner) if is_fresh => FileError::store(format!(
            "the image {} belongs to the state directory {said} ({}), which may know of epochs that \
             are not in it yet: give --state {said}; if the image is to begin anew as it is, move that \
             directory away first",
            path.display(),
            holds(&owner.state)
        )),
        Some(owner) => owner.refusal(layout, index, path),
        None => FileError::store(lost_owner_text(path, &layout.state, &found.state)),
    })
}

/// A copy that carries the mark of the image that it was made of (`cp -a`).
fn copy_text(path: &Path, owner: &Owner, said: &str) -> String {
    let path = path.display();
    format!(
        "the image {path} carries the mark of the state directory {said} ({}) and is not its image, but a \
         copy of that with its attributes: take the mark off (setfattr -x {} {path}), or copy without \
         attributes (cp --sparse=always)",
        holds(&owner.state),
        ATTRIBUTE.to_string_lossy()
    )
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
         found, and {own_text} ({}) does not know what was written to the image under it: {remedy}; if \
         it is gone for good, and nothing was written to the image under it, type --same-image; to \
         begin anew {}",
        holds(own),
        begin_anew(own)
    )
}

/// The mark of a state directory, to be put on an image.
#[derive(Debug)]
pub(super) struct Claim {
    image: OwnedFd,
    value: String,
    index: usize,
    /// Of whom the image is taken: what to tell, and what to do.
    former: Option<String>,
}

impl Claim {
    /// Kept until something is to be written: who has the image until then is told.
    pub(super) fn wait(mut self) -> Self {
        if let Some(former) = &mut self.former {
            *former += "; the first primary that is taken in overwrites the image";
            tracing::warn!("volume {}: {former}", self.index);
        }
        self
    }

    /// A primary takes the image as it is: what another journal still has is not in it.
    pub(super) fn tell_primary(self) -> Self {
        if let Some(former) = &self.former {
            let index = self.index;
            tracing::warn!(
                "volume {index}: {former}; what a journal there has is not in this disk"
            );
        }
        self
    }

    /// Of whom the image is taken.
    pub(super) fn former(&self) -> Option<&str> {
        self.former.as_deref()
    }

    /// Marks the image, durably. One that cannot carry the mark goes without.
    pub(super) fn mark(self) {
        if attribute(&self.image).as_ref() == Some(&self.value) {
            return;
        }
        if let Err(error) = set_attribute(&self.image, &self.value) {
            let (index, why) = (self.index, words(&error));
            tracing::debug!("volume {index}: the image does not carry its mark: {why}");
        }
    }
}

/// The mark of this state directory for its image; none for a block device.
///
/// # Errors
/// The mark cannot be written in the state directory.
pub(super) fn claim(
    layout: &Layout,
    index: usize,
    path: &Path,
    image: &OpenedFile,
) -> Result<Option<Claim>, FileError> {
    if image.is_block_device {
        return Ok(None);
    }
    let file = layout.volume_mark(index);
    let own = match read_text(&file, VALUE_BYTES_MAX)? {
        Some(own) => own,
        None => {
            let id = ids::random_id16().map_err(other)?;
            let own: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            write_text(&file, &own)?;
            own
        }
    };
    let mut value = format!("{own} {}", layout.state.display());
    if value.len() > VALUE_BYTES_MAX {
        value.clone_from(&own);
    }
    let former = Mark::of(image).filter(|found| found.id != own);
    Ok(Some(Claim {
        image: image.fd.try_clone().map_err(other)?,
        value,
        index,
        former: former.map(|found| former_text(layout, path, &found)),
    }))
}

fn other(error: io::Error) -> FileError {
    FileError {
        text: words(&error),
        code: ExitCode::Other,
    }
}

/// Of whom a state directory that was never used takes its image.
fn former_text(layout: &Layout, path: &Path, found: &Mark) -> String {
    let said = one_line(&found.state.display().to_string());
    let (path, there) = (
        path.display(),
        Owner::of_mark(layout, &found.id, &found.state),
    );
    let place = match there {
        Some(owner) => format!(
            "now {} ({})",
            one_line(&owner.state.display().to_string()),
            holds(&owner.state)
        ),
        None if found.state == layout.state => "not the one that is there now".to_owned(),
        None => "not found".to_owned(),
    };
    format!(
        "the image {path} was last used with the state directory {said} ({place}): if that has the \
         disk, stop this daemon, put it back and start again"
    )
}

#[cfg(test)]
mod tests;
