//! Who group and volumes are when a daemon starts: their metadata is read, or made at the first
//! start, and held against what the command line gives; a backup's journals are recovered.
//!
//! Runs on the main thread before any other is started. A state directory of the other role, of
//! other volumes or with a part missing is refused; nothing of it is made anew then.

use super::StartError;
use super::damage::after_damage;
use super::fresh::Fresh;
use super::images::Images;
use super::in_order;
use super::making::make_journal;
use crate::cli::ExitCode;
use crate::daemon::files::{self, JournalReader, Layout, begin_anew, move_away, words};
use crate::daemon::image_mark::Claim;
use crate::daemon::owner;
use crate::daemon::thread::fresh_lineage;
use crate::daemon::unapplied;
use crate::engine::Identity;
use crate::journal::recovery::Decision;
use crate::journal::ring::Geometry;
use crate::journal::start::{
    CUT_OFF, Refusal, VolumeShape, VolumeStart, begin_primary, blank_group, blank_volume,
    recover_volume,
};
use crate::reactor::OpenedFile;
use blkback_proto::ids::{Epoch, GroupUuid, VolumeUuid};
use blkback_proto::meta::{GroupMeta, Role, VOLUMES_MAX, VolumeMeta};
use blkback_proto::units::exact_bytes;
use blockrep_host::{clock, ids};
use std::path::Path;

/// Who the group of a primary and its volumes are. Everything is read before anything is written.
pub(super) fn primary_state(
    layout: &Layout,
    name: &str,
    images: Images<'_>,
    fresh: &mut Fresh,
) -> Result<(GroupMeta, Vec<Identity>), StartError> {
    let count = u16::try_from(images.paths.len()).expect("the configuration bounds volumes");
    check_group_is_there(layout)?;
    let group = primary_group(layout, count)?;
    let mut known = Vec::new();
    for (index, (path, image)) in images.paths.iter().zip(images.opened).enumerate() {
        let meta = files::read_volume(&layout.volume_meta(index))?;
        images.check(layout, index, meta.is_some())?;
        if meta.is_none() {
            unapplied::check(layout, path, image)?;
        }
        if let Some(meta) = &meta {
            check_size(layout, meta, path, image)?;
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
    for index in 0..identities.len() {
        if let Some(claim) = images.record(layout, index, fresh)? {
            claim.tell_primary().mark();
        }
    }
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
             blockrep-backup on it, or, if this host shall be the primary, {}",
            begin_anew(&layout.state)
        ));
    }
    if meta.role == Role::Backup {
        return refused(format!(
            "the state in {state} belongs to a backup: start blockrep-backup on it, and \
             `blockrepctl promote` there if this host shall be the primary"
        ));
    }
    if meta.promoted != Epoch::NONE {
        return refused(format!(
            "the state in {state} was promoted at epoch {}: start blockrep-backup on it, which \
             serves the disk as the primary again; to give it a backup, start blockrep on a copy of \
             the image once that says that everything is applied",
            meta.promoted
        ));
    }
    if meta.volume_count != count {
        return refused(format!(
            "the group in {state} has {} volumes, {count} were given: give the same -n in the same \
             order; to begin anew with these {}",
            meta.volume_count,
            begin_anew(&layout.state)
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

fn check_size(
    layout: &Layout,
    meta: &VolumeMeta,
    path: &Path,
    image: &OpenedFile,
) -> Result<(), StartError> {
    if meta.size_bytes == image.size_bytes {
        return Ok(());
    }
    Err(StartError::new(
        ExitCode::Store,
        format!(
            "image {} has {} bytes, the volume was made with {}: give the right image{}; to begin \
             anew with this one {}",
            path.display(),
            image.size_bytes,
            meta.size_bytes,
            if image.size_bytes < meta.size_bytes {
                CUT_OFF
            } else {
                ""
            },
            begin_anew(&layout.state)
        ),
    ))
}

/// A volume of a backup, and the mark that its image gets with the first primary.
pub(super) type Start = (VolumeStart, Option<Claim>);

/// Who the group of a backup and its volumes are. Nothing is written before what is there was
/// found to fit the command line.
pub(super) fn backup_state(
    layout: &Layout,
    name: &str,
    images: Images<'_>,
    fresh: &mut Fresh,
) -> Result<(GroupMeta, Vec<Start>), StartError> {
    let count = u16::try_from(images.paths.len()).expect("the configuration bounds volumes");
    check_group_is_there(layout)?;
    let known = files::read_group(&layout.group_meta())?;
    if let Some(meta) = &known {
        check_backup_group(layout, meta, count)?;
    }
    for index in 0..images.paths.len() {
        let meta = files::read_volume(&layout.volume_meta(index))?;
        if let Some(meta) = &meta {
            check_journal_size(layout, index, meta)?;
            if !meta.volume.is_none() {
                check_size(layout, meta, images.paths[index], &images.opened[index])?;
            }
        }
        // A backup that never held anything takes the image that it finds, if nobody else has it.
        images.check(
            layout,
            index,
            meta.is_some_and(|meta| !meta.volume.is_none()),
        )?;
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
    let mut claims = Vec::new();
    for (index, start) in starts.iter().enumerate() {
        let claim = images.record(layout, index, fresh)?;
        claims.push(match claim {
            Some(claim) if start.facts.blank => Some(claim.wait()),
            Some(claim) => {
                claim.mark();
                None
            }
            None => None,
        });
    }
    in_order::begin_group(layout, &mut meta)?;
    Ok((meta, starts.into_iter().zip(claims).collect()))
}

/// Made before the first volume, and never removed: a used volume without it has lost it.
fn check_group_is_there(layout: &Layout) -> Result<(), StartError> {
    let path = layout.group_meta();
    if path.exists() {
        return Ok(());
    }
    for index in 0..usize::from(VOLUMES_MAX) {
        let file = layout.volume_meta(index);
        if files::read_volume(&file)?.is_some_and(|meta| !meta.volume.is_none()) {
            return Err(StartError::new(
                ExitCode::Store,
                format!(
                    "{} is missing beside {}: it says whose these volumes are and which epochs count; \
                     restore it, or to begin anew {}",
                    path.display(),
                    file.display(),
                    begin_anew(&layout.state)
                ),
            ));
        }
    }
    Ok(())
}

fn check_backup_group(layout: &Layout, meta: &GroupMeta, count: u16) -> Result<(), StartError> {
    let refused = |text| Err(StartError::new(ExitCode::Store, text));
    let state = layout.state.display();
    if meta.role == Role::Primary && meta.promoted == Epoch::NONE {
        return refused(format!(
            "the state in {state} belongs to a primary: to make this host the backup of the disk that \
             is served elsewhere, {}, which overwrites the image here; or start blockrep on it",
            begin_anew(&layout.state)
        ));
    }
    if meta.volume_count != count {
        return refused(format!(
            "the group in {state} has {} volumes, {count} were given: give the same images in the \
             same order; to begin anew with these {}",
            meta.volume_count,
            begin_anew(&layout.state)
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
                "{} is missing beside {}: restore it, or to begin anew {}",
                file.display(),
                layout.group_meta().display(),
                begin_anew(&layout.state)
            ),
        ));
    }
    owner::check_free(layout, index)?;
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
        let what = refusal.to_string();
        // The journal knows no paths.
        let what = what.replace("mv STATE STATE.old", &move_away(&layout.state));
        let text = format!(
            "volume {index}, image {}, journal {}: {what}{}",
            path.display(),
            layout.journal_dir(index).display(),
            after_damage(layout, &refusal)
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

fn random_id() -> Result<[u8; 16], StartError> {
    ids::random_id16().map_err(|error| StartError::new(ExitCode::Other, words(&error)))
}
