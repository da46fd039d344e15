//! The images at start: opened, of a possible size, and what NBD clients see of them.

use super::StartError;
use crate::cli::ExitCode;
use crate::daemon::files::words;
use crate::frontend::nbd::{ExportInfo, Features};
use crate::reactor::{Access, OpenedFile, open_image};
use blkback_proto::ids::UNIT_BYTES;
use std::path::Path;

pub(super) fn open_images(images: &[&Path]) -> Result<Vec<OpenedFile>, StartError> {
    let mut opened = Vec::new();
    for path in images {
        let image = open_store(path).map_err(with_image_hint)?;
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
    open_image(path, Access::ReadWrite).map_err(|error| {
        let source = std::error::Error::source(&error);
        let why = source
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .map_or_else(String::new, |source| format!(": {}", words(source)));
        StartError::new(ExitCode::Store, format!("{error}{why}"))
    })
}

fn with_image_hint(error: StartError) -> StartError {
    let text = format!(
        "{}: put the image of the disk there, or for a disk that never was, truncate -s SIZE PATH \
         makes one",
        error.text
    );
    StartError::new(error.code, text)
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
