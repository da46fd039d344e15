//! The images at start: opened, of a possible size, and what NBD clients see of them.

use super::StartError;
use super::fresh::Fresh;
use crate::cli::ExitCode;
use crate::daemon::exchanged;
use crate::daemon::files::{Layout, words};
use crate::daemon::image_mark::{self, Claim};
use crate::frontend::nbd::{ExportInfo, Features};
use crate::reactor::{Access, OpenError, OpenedFile, open_image};
use blkback_proto::ids::UNIT_BYTES;
use std::io;
use std::path::Path;

/// The images of a group at its start, volume 0 first.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub(super) paths: &'a [&'a Path],
    pub(super) opened: &'a [OpenedFile],
    same: bool,
}

impl<'a> Images<'a> {
    /// `same` is the operator's word that they are those of this state directory.
    pub(super) fn new(paths: &'a [&'a Path], opened: &'a [OpenedFile], same: bool) -> Self {
        Self {
            paths,
            opened,
            same,
        }
    }

    /// Refuses an image that is not that of the volume, or that another state directory has.
    pub(super) fn check(
        &self,
        layout: &Layout,
        index: usize,
        is_used: bool,
    ) -> Result<(), StartError> {
        let (path, image) = (self.paths[index], &self.opened[index]);
        let exchanged = is_used && exchanged::check(layout, index, path, image, self.same)?;
        let marked = image_mark::check(layout, index, path, image, is_used, self.same)?;
        if self.same && is_used && !exchanged && !marked {
            tracing::warn!("--same-image is not needed: left there, it would hide an exchange");
        }
        Ok(())
    }

    /// Remembers the image; what is to be written on it is given back.
    pub(super) fn record(
        &self,
        layout: &Layout,
        index: usize,
        fresh: &mut Fresh,
    ) -> Result<Option<Claim>, StartError> {
        let (path, image) = (self.paths[index], &self.opened[index]);
        fresh.file(&layout.volume_image(index));
        exchanged::record(layout, index, path, image)?;
        fresh.file(&layout.volume_mark(index));
        Ok(image_mark::claim(layout, index, path, image)?)
    }
}

pub(super) fn open_images(images: &[&Path]) -> Result<Vec<OpenedFile>, StartError> {
    let mut opened = Vec::new();
    for path in images {
        let image = open_image(path, Access::ReadWrite).map_err(|error| {
            let (refused, hint) = (not_opened(&error), image_hint(path, kernel_error(&error)));
            StartError::new(refused.code, format!("{}: {hint}", refused.text))
        })?;
        if image.size_bytes == 0 || image.size_bytes % UNIT_BYTES != 0 {
            return Err(StartError::new(
                ExitCode::Store,
                format!(
                    "image {} has {} bytes: a volume needs a multiple of 512, and more than none; \
                     put the image back, or for a disk that never was, truncate -s SIZE makes one",
                    path.display(),
                    image.size_bytes
                ),
            ));
        }
        opened.push(image);
    }
    Ok(opened)
}

/// Said when nothing can keep the daemon from starting any more: an error stands alone.
pub(super) fn tell_buffered(what: &str, path: &Path, file: &OpenedFile) {
    if let Some(reason) = &file.buffered_reason {
        let path = path.display();
        tracing::warn!("{what} {path}: through the page cache: {reason}");
    }
}

pub(super) fn open_store(path: &Path) -> Result<OpenedFile, StartError> {
    open_image(path, Access::ReadWrite).map_err(|error| not_opened(&error))
}

fn kernel_error(error: &OpenError) -> Option<&io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

fn not_opened(error: &OpenError) -> StartError {
    let why = kernel_error(error).map_or_else(String::new, |why| format!(": {}", words(why)));
    StartError::new(ExitCode::Store, format!("{error}{why}"))
}

/// What to do about an image that cannot be opened, by what the kernel says.
fn image_hint(path: &Path, error: Option<&io::Error>) -> String {
    match error.and_then(io::Error::raw_os_error) {
        None if path.is_dir() => "it is a directory: name the image file in it".to_owned(),
        Some(libc::ENOENT) => {
            "put the image of the disk there, or for a disk that never was, truncate -s SIZE PATH \
             makes one"
                .to_owned()
        }
        Some(libc::EROFS) => {
            "mount the file system for writing (mount -o remount,rw), or give an image on another one"
                .to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            // SAFETY: geteuid takes nothing and always succeeds.
            let user = unsafe { libc::geteuid() };
            format!(
                "this daemon runs as user {user}, who has to read and write it and reach its \
                 directory: chown or chmod it, or run the daemon as its owner"
            )
        }
        Some(libc::ENOTDIR) => "a part of the path is a file: name the image itself".to_owned(),
        _ => "name the image file or block device of the disk".to_owned(),
    }
}

/// Metadata goes through the page cache: it is small, rare, and synced after every write.
pub(super) fn open_meta(path: &Path) -> Result<OpenedFile, StartError> {
    open_store(path)
}

pub(super) fn exports(
    images: &[&Path],
    opened: &[OpenedFile],
) -> Result<Vec<ExportInfo>, StartError> {
    let mut exports: Vec<ExportInfo> = Vec::new();
    for (index, (path, image)) in images.iter().zip(opened).enumerate() {
        let file = path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let taken = exports.iter().any(|e| e.name() == file);
        let name = if taken || file.is_empty() {
            format!("volume-{index}")
        } else {
            file
        };
        let mut export = ExportInfo::new(name, image.size_bytes)
            .map_err(|error| StartError::new(ExitCode::Store, error.to_string()))?;
        // A backup offers the same, so that a client may stay connected through a promotion;
        // until then it answers writes with EPERM.
        export.features = Features {
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            multi_conn: true,
            ..Features::default()
        };
        exports.push(export);
    }
    Ok(exports)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system that is mounted read-only was answered with how to make an image.
    #[test]
    fn the_hint_fits_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        for (errno, word) in [
            (libc::ENOENT, "truncate -s SIZE"),
            (libc::EROFS, "remount,rw"),
            (libc::EACCES, "chown"),
            (libc::ENOTDIR, "is a file"),
            (libc::EIO, "name the image file"),
        ] {
            let hint = image_hint(dir.path(), Some(&io::Error::from_raw_os_error(errno)));
            assert!(hint.contains(word), "{errno}: {hint}");
            assert_eq!(hint.contains("truncate"), errno == libc::ENOENT, "{hint}");
        }
        let [Err(error)] = [open_images(&[dir.path()])] else {
            panic!("a directory was taken for an image");
        };
        assert!(error.text.contains("it is a directory: name"), "{error}");
    }
}
