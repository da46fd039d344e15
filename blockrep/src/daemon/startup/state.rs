//! Who group and volumes are when a daemon starts: their metadata is read, or made at the first
//! start, and held against what the command line gives; a backup's journals are recovered.
//!
//! Runs on the main thread before any other is started. A state directory of the other role, of
//! other volumes or with a part missing is refused; nothing of it is made anew then.

use super::StartError;
use super::fresh::Fresh;
use super::in_order;
use crate::cli::ExitCode;
use crate::daemon::exchanged;
use crate::daemon::files::{self, JournalReader, Layout, words};
use crate::daemon::image_mark;
use crate::daemon::owner;
use crate::daemon::thread::fresh_lineage;
use crate::engine::Identity;
use crate::journal::recovery::Decision;
use crate::journal::ring::Geometry;
use crate::journal::start::{
    Refusal, VolumeShape, VolumeStart, begin_primary, blank_group, blank_volume, is_first_start,
    recover_volume,
};
use crate::reactor::OpenedFile;
use blkback_proto::ids::{Epoch, GroupUuid, VolumeUuid};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role, VolumeMeta};
use blkback_proto::units::exact_bytes;
use blockrep_host::{clock, ids};
use std::path::Path;

/// The images of a group at its start, volume 0 first.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    paths: &'a [&'a Path],
    opened: &'a [OpenedFile],
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
    fn check(&self, layout: &Layout, index: usize, is_used: bool) -> Result<(), StartError> {
        let (path, image) = (self.paths[index], &self.opened[index]);
        let exchanged = is_used && exchanged::check(layout, index, path, image, self.same)?;
        let marked = image_mark::check(layout, index, path, image, self.same)?;
        if self.same && is_used && !exchanged && !marked {
            tracing::warn!("--same-image is not needed: left there, it would hide an exchange");
        }
        Ok(())
    }

    fn record(&self, layout: &Layout, fresh: &mut Fresh) -> Result<(), StartError> {
        for (index, (path, image)) in self.paths.iter().zip(self.opened).enumerate() {
            fresh.file(&layout.volume_image(index));
            exchanged::record(layout, index, path, image)?;
            fresh.file(&layout.volume_mark(index));
            image_mark::record(layout, index, image)?;
        }
        Ok(())
    }
}

/// Who the group of a primary and its volumes are. Everything is read before anything is written.
pub(super) fn primary_state(
    layout: &Layout,
    name: &str,
    images: Images<'_>,
    fresh: &mut Fresh,
) -> Result<(GroupMeta, Vec<Identity>), StartError> {
    let count = u16::try_from(images.paths.len()).expect("the configuration bounds volumes");
    let group = primary_group(layout, count)?;
    let mut known = Vec::new();
    for (index, (path, image)) in images.paths.iter().zip(images.opened).enumerate() {
        let meta = files::read_volume(&layout.volume_meta(index))?;
        images.check(layout, index, meta.is_some())?;
        if let Some(meta) = &meta {
            check_size(meta, path, image)?;
        }
        known.push(meta);
    }

    let mut group = begin_primary(group, fresh_lineage(), clock::unix_ms() / 1000);
    name.clone_into(&mut group.name);
    group.all_dirty = true;
    fresh.file(&layout.group_meta());
    files::write_group(&layout.group_meta(), &group)?;
    let mut identities = Vec::new();
    for (index, meta) in known.into_iter().enumerate() {
        let meta = match meta {
            Some(meta) => in_order::begin_volume(layout, index, meta)?,
            None => new_volume(layout, index, &group, &images.opened[index], fresh)?,
        };
        identities.push(Identity {
            group: group.group,
            volume: meta.volume,
            volume_index: meta.volume_index,
            volume_count: group.volume_count,
            size_bytes: meta.size_bytes,
        });
    }
    images.record(layout, fresh)?;
    Ok((group, identities))
}

fn primary_group(layout: &Layout, count: u16) -> Result<GroupMeta, StartError> {
    let refused = |text| Err(StartError::new(ExitCode::Store, text));
    let state = layout.state.display();
    let Some(meta) = files::read_group(&layout.group_meta())? else {
        let mut meta = blank_group(count, Role::Primary);
        meta.group = GroupUuid(random_id()?);
        return Ok(meta);
    };
    if meta.role == Role::Backup && meta.group.is_none() {
        return refused(format!(
            "the state in {state} belongs to a backup that never held an epoch: start \
             blockrep-backup on it, give another --state, or remove {state} if this host shall be \
             the primary"
        ));
    }
    if meta.role == Role::Backup || meta.promoted != Epoch::NONE {
        let what = if meta.role == Role::Backup {
            "belongs to a backup"
        } else {
            "was promoted"
        };
        return refused(format!(
            "the state in {state} {what}: start blockrep-backup on it, and `blockrepctl promote` \
             there if this host shall be the primary"
        ));
    }
    if meta.volume_count != count {
        return refused(format!(
            "the group in {state} has {} volumes, {count} were given: give the same -n in the same \
             order, or another --state",
            meta.volume_count
        ));
    }
    Ok(meta)
}

fn new_volume(
    layout: &Layout,
    index: usize,
    group: &GroupMeta,
    image: &OpenedFile,
    fresh: &mut Fresh,
) -> Result<VolumeMeta, StartError> {
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
    let file = layout.volume_meta(index);
    fresh.file(&file);
    files::write_volume(&file, &meta)?;
    Ok(meta)
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

/// Who the group of a backup and its volumes are. Nothing is written before what is there was
/// found to fit the command line.
pub(super) fn backup_state(
    layout: &Layout,
    name: &str,
    images: Images<'_>,
    fresh: &mut Fresh,
) -> Result<(GroupMeta, Vec<VolumeStart>), StartError> {
    let count = u16::try_from(images.paths.len()).expect("the configuration bounds volumes");
    let known = files::read_group(&layout.group_meta())?;
    if let Some(meta) = &known {
        check_backup_group(layout, meta, count)?;
    }
    for index in 0..images.paths.len() {
        let Some(meta) = files::read_volume(&layout.volume_meta(index))? else {
            images.check(layout, index, false)?;
            continue;
        };
        check_journal_size(layout, index, &meta)?;
        // A backup that never held anything takes the image that it finds.
        if !meta.volume.is_none() {
            images.check(layout, index, true)?;
        }
    }

    let mut meta = match known {
        Some(meta) => meta,
        None => {
            let mut meta = blank_group(count, Role::Backup);
            name.clone_into(&mut meta.name);
            fresh.file(&layout.group_meta());
            files::write_group(&layout.group_meta(), &meta)?;
            meta
        }
    };
    let mut starts = Vec::new();
    for (index, (path, image)) in images.paths.iter().zip(images.opened).enumerate() {
        make_volume(layout, index, &meta, image, fresh)?;
        starts.push(recover(layout, index, &meta, path, image)?);
    }
    images.record(layout, fresh)?;
    in_order::begin_group(layout, &mut meta)?;
    Ok((meta, starts))
}

fn check_backup_group(layout: &Layout, meta: &GroupMeta, count: u16) -> Result<(), StartError> {
    let refused = |text| Err(StartError::new(ExitCode::Store, text));
    let state = layout.state.display();
    if meta.role == Role::Primary && meta.promoted == Epoch::NONE {
        // Of a primary only its first start is known, not whether a guest was there.
        let remedy = if is_first_start(meta) {
            format!(
                ", or remove {state} if that primary was started by mistake and no guest has \
                 written to it"
            )
        } else {
            String::new()
        };
        return refused(format!(
            "the state in {state} belongs to a primary: start blockrep on it, give another \
             --state{remedy}"
        ));
    }
    if meta.volume_count != count {
        return refused(format!(
            "the group in {state} has {} volumes, {count} were given: give the same images in the \
             same order, or another --state",
            meta.volume_count
        ));
    }
    Ok(())
}

fn check_journal_size(layout: &Layout, index: usize, meta: &VolumeMeta) -> Result<(), StartError> {
    let made = meta.segment_bytes * u64::from(meta.segment_count);
    let given = layout.geometry.segment_bytes * u64::from(layout.geometry.segment_count);
    if made == 0 || made == given {
        return Ok(());
    }
    Err(StartError::new(
        ExitCode::Store,
        format!(
            "the journal of volume {index} in {} was made with {}, and --journal-size is {}: give \
             --journal-size {}",
            layout.state.display(),
            exact_bytes(made),
            exact_bytes(given),
            exact_bytes(made)
        ),
    ))
}

/// Makes journal and metadata of a volume that has none yet.
fn make_volume(
    layout: &Layout,
    index: usize,
    group: &GroupMeta,
    image: &OpenedFile,
    fresh: &mut Fresh,
) -> Result<(), StartError> {
    let file = layout.volume_meta(index);
    if file.exists() {
        return Ok(());
    }
    if !group.group.is_none() {
        return Err(StartError::new(
            ExitCode::Store,
            format!(
                "{} is missing beside {}: restore it, or begin anew with an empty --state",
                file.display(),
                layout.group_meta().display()
            ),
        ));
    }
    for segment in 0..layout.geometry.segment_count {
        fresh.file(&layout.segment(index, segment));
    }
    make_journal(layout, index)?;
    fresh.file(&owner::mark_in_journal(layout, index));
    fresh.file(&owner::mark_in_state(layout, index));
    owner::mark(layout, index, random_id()?)?;
    let mut meta = blank_volume(VolumeShape {
        size_bytes: image.size_bytes,
        geometry: layout.geometry,
    });
    meta.volume_index = u16::try_from(index).expect("the configuration bounds volumes");
    fresh.file(&file);
    Ok(files::write_volume(&file, &meta)?)
}

fn recover(
    layout: &Layout,
    index: usize,
    group: &GroupMeta,
    path: &Path,
    image: &OpenedFile,
) -> Result<VolumeStart, StartError> {
    let shape = VolumeShape {
        size_bytes: image.size_bytes,
        geometry: layout.geometry,
    };
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
