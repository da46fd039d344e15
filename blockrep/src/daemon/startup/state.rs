//! Who group and volumes are when a daemon starts: their metadata is read, or made at the first
//! start, and held against what the command line gives; a backup's journals are recovered.
//!
//! Runs on the main thread before any other is started. A state directory of the other role, of
//! other volumes or with a part missing is refused; nothing of it is made anew then.

use super::StartError;
use crate::cli::ExitCode;
use crate::config::{BackupConfig, PrimaryConfig};
use crate::daemon::files::{self, JournalReader, Layout, words};
use crate::daemon::owner;
use crate::daemon::thread::fresh_lineage;
use crate::engine::Identity;
use crate::journal::recovery::Decision;
use crate::journal::ring::Geometry;
use crate::journal::start::{
    Refusal, VolumeShape, VolumeStart, begin_primary, blank_group, blank_volume, recover_volume,
};
use crate::reactor::OpenedFile;
use blkback_proto::ids::{Epoch, GroupUuid, VolumeUuid};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role, VolumeMeta};
use blockrep_host::{clock, ids};
use std::path::Path;

pub(super) fn primary_group_meta(
    layout: &Layout,
    config: &PrimaryConfig,
) -> Result<GroupMeta, StartError> {
    let path = layout.group_meta();
    let count = u16::try_from(config.volumes.len()).expect("the configuration bounds volumes");
    let meta = match files::read_group(&path)? {
        Some(meta) => meta,
        None => {
            let mut meta = blank_group(count, Role::Primary);
            meta.group = GroupUuid(random_id()?);
            meta
        }
    };
    if meta.role == Role::Backup || meta.promoted != Epoch::NONE {
        let what = if meta.role == Role::Backup {
            "belongs to a backup"
        } else {
            "was promoted"
        };
        return Err(StartError::new(
            ExitCode::Store,
            format!(
                "the state in {} {what}: start blockrep-backup on it, and `blockrepctl promote` \
                 there if this host shall be the primary",
                layout.state.display()
            ),
        ));
    }
    if meta.volume_count != count {
        return Err(StartError::new(
            ExitCode::Store,
            format!(
                "the group in {} has {} volumes, {count} were given: give the same -n in the same \
                 order, or another --state",
                layout.state.display(),
                meta.volume_count
            ),
        ));
    }
    let mut meta = begin_primary(meta, fresh_lineage(), clock::unix_ms() / 1000);
    meta.name.clone_from(&config.common.group);
    meta.all_dirty = true;
    files::write_group(&path, &meta)?;
    Ok(meta)
}

pub(super) fn primary_volume_meta(
    layout: &Layout,
    index: usize,
    group: &GroupMeta,
    path: &Path,
    image: &OpenedFile,
) -> Result<Identity, StartError> {
    let file = layout.volume_meta(index);
    let meta = match files::read_volume(&file)? {
        Some(meta) => meta,
        None => {
            let geometry = Geometry {
                segment_bytes: 0,
                segment_count: 0,
            };
            let mut meta = blank_volume(VolumeShape {
                size_bytes: image.size_bytes,
                geometry,
            });
            meta.volume_index = u16::try_from(index).expect("the configuration bounds volumes");
            meta.group = group.group;
            meta.volume = VolumeUuid(random_id()?);
            files::write_volume(&file, &meta)?;
            meta
        }
    };
    check_size(&meta, path, image)?;
    Ok(Identity {
        group: group.group,
        volume: meta.volume,
        volume_index: meta.volume_index,
        volume_count: group.volume_count,
        size_bytes: meta.size_bytes,
    })
}

fn check_size(meta: &VolumeMeta, path: &Path, image: &OpenedFile) -> Result<(), StartError> {
    if meta.size_bytes == image.size_bytes {
        return Ok(());
    }
    Err(StartError::new(
        ExitCode::Store,
        format!(
            "image {} has {} bytes, the volume was made with {}: give the right image, or another \
             --state to begin anew",
            path.display(),
            image.size_bytes,
            meta.size_bytes
        ),
    ))
}

pub(super) fn backup_group_meta(
    layout: &Layout,
    config: &BackupConfig,
) -> Result<GroupMeta, StartError> {
    let path = layout.group_meta();
    let count = u16::try_from(config.volumes.len()).expect("the configuration bounds volumes");
    if let Some(meta) = files::read_group(&path)? {
        if meta.role == Role::Primary && meta.promoted == Epoch::NONE {
            return Err(StartError::new(
                ExitCode::Store,
                format!(
                    "the state in {} belongs to a primary: start blockrep on it, or give another \
                     --state",
                    layout.state.display()
                ),
            ));
        }
        if meta.volume_count != count {
            return Err(StartError::new(
                ExitCode::Store,
                format!(
                    "the group in {} has {} volumes, {count} were given: give the same images in \
                     the same order, or another --state",
                    layout.state.display(),
                    meta.volume_count
                ),
            ));
        }
        return Ok(meta);
    }
    let mut meta = blank_group(count, Role::Backup);
    meta.name.clone_from(&config.common.group);
    files::write_group(&path, &meta)?;
    Ok(meta)
}

pub(super) fn recover(
    layout: &Layout,
    index: usize,
    group: &GroupMeta,
    path: &Path,
    image: &OpenedFile,
) -> Result<VolumeStart, StartError> {
    let file = layout.volume_meta(index);
    let shape = VolumeShape {
        size_bytes: image.size_bytes,
        geometry: layout.geometry,
    };
    if !file.exists() && !group.group.is_none() {
        return Err(StartError::new(
            ExitCode::Store,
            format!(
                "{} is missing beside {}: restore it, or begin anew with an empty --state",
                file.display(),
                layout.group_meta().display()
            ),
        ));
    }
    if !file.exists() {
        make_journal(layout, index)?;
        owner::mark(layout, index, random_id()?)?;
        let mut meta = blank_volume(shape);
        meta.volume_index = u16::try_from(index).expect("the configuration bounds volumes");
        files::write_volume(&file, &meta)?;
    }
    owner::check(layout, index)?;
    let refused = |refusal: Refusal| {
        let text = format!(
            "volume {index}, image {}, journal {}: {refusal}",
            path.display(),
            layout.journal_dir(index).display()
        );
        StartError::new(ExitCode::Store, text)
    };
    let reader = JournalReader::open(layout, index)?;
    let start = recover_volume(&reader, Some(group), shape).map_err(refused)?;
    tracing::info!(
        "volume {index}: {} epochs in the journal, {}",
        start.recovered.epochs.len(),
        decision_words(start.recovered.decision)
    );
    if let Some(row) = start.rows.iter().find(|row| row.loses_perhaps()) {
        tracing::warn!("volume {index}: {} ({})", row.why, row.name);
    }
    Ok(start)
}

fn decision_words(decision: Decision) -> &'static str {
    match decision {
        Decision::Whole => "whole",
        Decision::DropTail => "whole but for a tail that nobody was told of",
        Decision::Suspect => "suspect: a sealed epoch is damaged",
        Decision::Inconsistent => "inconsistent: has to be compared with the primary",
        Decision::Refuse => "refused",
        Decision::KeepPrefix => "own writes after a promotion are kept",
    }
}

fn make_journal(layout: &Layout, index: usize) -> Result<(), StartError> {
    let bar = indicatif::ProgressBar::new(0);
    let mut told = false;
    files::make_journal(layout, index, |done, total| {
        if !told {
            told = true;
            tracing::info!("volume {index}: making a journal of {total} bytes");
        }
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(())
}

fn random_id() -> Result<[u8; 16], StartError> {
    ids::random_id16().map_err(|error| StartError::new(ExitCode::Other, words(&error)))
}

/// A group as a thread other than the first knows it.
pub(in crate::daemon) fn lone_group(volume: &VolumeMeta) -> GroupMeta {
    GroupMeta {
        generation: 0,
        group: volume.group,
        name: String::new(),
        volume_count: volume.volume_index + 1,
        role: Role::Primary,
        promoted: volume.committed,
        clean: false,
        all_dirty: true,
        lineage: vec![LineageEntry {
            id: volume.tail_lineage,
            first_epoch: volume.committed.next(),
            why: LineageWhy::Promoted,
            unix_s: 0,
        }],
    }
}
