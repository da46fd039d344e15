//! Whether a side was stopped in order, for whoever reads its state directory afterwards.
//!
//! Recovery never asks for it. Engines say it of volumes that follow or are being drained; of the
//! group, and of a volume that is its image alone, nobody writes metadata while they run: then it is
//! said here, by the main thread, before the first I/O thread runs and after the last one has ended.

use crate::daemon::files::{self, FileError, Layout};
use blkback_proto::meta::{GroupMeta, VolumeMeta};

/// From here on an end that is not said to be in order is none.
pub(super) fn begin_group(layout: &Layout, meta: &mut GroupMeta) -> Result<(), FileError> {
    if meta.clean {
        meta.clean = false;
        meta.generation += 1;
        files::write_group(&layout.group_meta(), meta)?;
    }
    Ok(())
}

/// The same of a volume.
pub(super) fn begin_volume(
    layout: &Layout,
    index: usize,
    mut meta: VolumeMeta,
) -> Result<VolumeMeta, FileError> {
    if meta.clean {
        meta.clean = false;
        meta.generation += 1;
        files::write_volume(&layout.volume_meta(index), &meta)?;
    }
    Ok(meta)
}

/// Every thread has ended as it was told to, and nothing was given up.
pub(super) fn end(layout: &Layout, volumes: usize) -> Result<(), FileError> {
    for index in 0..volumes {
        let path = layout.volume_meta(index);
        if let Some(mut meta) = files::read_volume(&path)?.filter(|meta| !meta.clean) {
            meta.clean = true;
            meta.generation += 1;
            files::write_volume(&path, &meta)?;
        }
    }
    let path = layout.group_meta();
    if let Some(mut meta) = files::read_group(&path)?.filter(|meta| !meta.clean) {
        meta.clean = true;
        meta.generation += 1;
        files::write_group(&path, &meta)?;
    }
    Ok(())
}
