//! What a volume is when its daemon starts: metadata, journal and the table put together.
//!
//! Reads only. Three things are the driver's business, because they write:
//! - **Before**: sync every file of the volume and of the group. What a killed process wrote may
//!   still be in a cache only; recovery would see it, act on it, and a power cut could take it
//!   away again.
//! - **A blank volume or group**: write [`VolumeStart::format`] (or [`blank_group`]) to the slot of
//!   its generation and sync it. From then on a damaged slot beside an empty one is damage, never
//!   the torn first write of a fresh volume.
//! - **A promoted volume**: call [`BackupVolume::resume_serving`] with [`VolumeStart::resume`].
//!
//! [`BackupVolume::resume_serving`]: crate::engine::backup::BackupVolume::resume_serving

use super::recovery::{self, Decision, Known, Row, decide, last_record, last_sealed};
use super::ring::Geometry;
use super::scan::{Expect, ReadAt, Scan, ScannedEpoch, scan};
use crate::engine::backup::{Recovered, own_session};
use crate::group::backup::MemberFacts;
use crate::io::{IoError, Target};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, Place, SessionId, VolumeUuid};
use blkback_proto::meta::{
    GroupMeta, LineageEntry, LineageWhy, Role, SLOT_BYTES, VolumeMeta, newest,
};
use blkback_proto::record::RecordError;
use blkback_proto::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};

/// What the operator says of a volume, to be held against what its metadata says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeShape {
    /// Size of the image in bytes.
    pub size_bytes: u64,
    /// Segments of the journal.
    pub geometry: Geometry,
}

/// How a volume starts.
#[derive(Clone, Debug)]
pub struct VolumeStart {
    /// For the engine.
    pub recovered: Recovered,
    /// For the group.
    pub facts: MemberFacts,
    /// Of a promoted volume: the history of its own writes.
    pub resume: Option<LineageId>,
    /// The volume was never used: this has to be written before anything else.
    pub format: Option<VolumeMeta>,
    /// The rows of the table that the chains of the journal matched.
    pub rows: Vec<&'static Row>,
}

/// Of an image that is smaller than its volume. Nothing tells it from a whole one once it has its size
/// again.
pub const CUT_OFF: &str =
    " (this one was cut off; made larger again it is not the disk that it was)";

/// Why a volume or group must not be used as it is. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The storage did not let itself be read.
    #[error("cannot read the {target}: {error}")]
    Read {
        /// File.
        target: Target,
        /// Why.
        error: IoError,
    },
    /// Neither slot of the metadata can be read.
    #[error(
        "the {target} is damaged: {error}; nothing was changed, restore the file, or to begin \
         anew move the state directory away (mv STATE STATE.old) and start again"
    )]
    Metadata {
        /// File.
        target: Target,
        /// The rule the newer slot breaks.
        error: RecordError,
    },
    /// The image has another size than the volume.
    #[error(
        "the image has {image_bytes} bytes, the volume {volume_bytes}: give the right image{}; to \
         begin again with this one, move the state directory away",
        if image_bytes < volume_bytes { CUT_OFF } else { "" }
    )]
    Size {
        /// Of the image.
        image_bytes: u64,
        /// Of the volume.
        volume_bytes: u64,
    },
    /// The journal was made with other segments.
    #[error(
        "the journal has {there_count} segments of {there_bytes} bytes, the settings say \
         {wanted_count} of {wanted_bytes}: set them back until the journal is empty"
    )]
    Geometry {
        /// Of the journal.
        there_bytes: u64,
        /// Of the journal.
        there_count: u32,
        /// Of the settings.
        wanted_bytes: u64,
        /// Of the settings.
        wanted_count: u32,
    },
    /// The volume belongs to another group.
    #[error("the volume belongs to group {volume}, the state directory to group {group}")]
    Group {
        /// Of the volume.
        volume: GroupUuid,
        /// Of the group.
        group: GroupUuid,
    },
    /// The journal has records of a session that began after this metadata was written.
    #[error(
        "the volume's metadata is older than its journal: session {session} at {place} is not known \
         to it; nothing was changed, restore volume.meta, or to begin anew move the state directory away (mv \
         STATE STATE.old) and start again"
    )]
    Outdated {
        /// The session metadata does not know of.
        session: SessionId,
        /// Where its records begin.
        place: Place,
    },
    /// Acknowledged epochs are damaged.
    #[error(
        "the journal is damaged at {place} ({error}): epoch {acknowledged} was acknowledged and \
         only epoch {sealed} is whole; nothing was changed, keep the files"
    )]
    Damaged {
        /// Row of the table.
        row: &'static str,
        /// Where the chain of records breaks.
        place: Place,
        /// The rule the record there breaks.
        error: RecordError,
        /// Last epoch that is whole.
        sealed: Epoch,
        /// Highest epoch known to have been acknowledged.
        acknowledged: Epoch,
    },
    /// Writes of this side, since its promotion, are damaged, and the image may depend on them.
    #[error(
        "the journal is damaged at {place} ({error}): this side wrote records up to {synced} since its \
         promotion and only {whole} are whole; nothing was changed, keep the files"
    )]
    OwnDamaged {
        /// Row of the table.
        row: &'static str,
        /// Where the chain of records breaks.
        place: Place,
        /// The rule the record there breaks.
        error: RecordError,
        /// Last own record that is whole.
        whole: u64,
        /// Last own record known to have been on stable storage.
        synced: u64,
    },
}

/// Metadata of a group that was never used, in slot 0.
#[must_use]
pub fn blank_group(volume_count: u16, role: Role) -> GroupMeta {
    GroupMeta {
        generation: 0,
        group: GroupUuid::NONE,
        name: String::new(),
        volume_count,
        role,
        promoted: Epoch::NONE,
        clean: false,
        all_dirty: false,
        memory: false,
        lineage: Vec::new(),
    }
}

/// Metadata of a volume that was never used, in slot 0.
#[must_use]
pub fn blank_volume(shape: VolumeShape) -> VolumeMeta {
    VolumeMeta {
        generation: 0,
        group: GroupUuid::NONE,
        volume: VolumeUuid::NONE,
        volume_index: 0,
        size_bytes: shape.size_bytes,
        segment_bytes: shape.geometry.segment_bytes,
        segment_count: shape.geometry.segment_count,
        tail: Place::default(),
        tail_record_seq: 1,
        tail_prev_crc: 0,
        tail_session: SessionId(0),
        tail_lineage: LineageId::NONE,
        applied: Epoch::NONE,
        committed: Epoch::NONE,
        durable: Epoch::NONE,
        inconsistent: false,
        journal_empty: true,
        clean: false,
        own_serial: 0,
        own_synced: 0,
        consistent_from: Epoch::NONE,
        committed_cut_unix_ns: 0,
    }
}

/// A start of a primary: the metadata of its group with the history that begins now. It has to be
/// durable before a volume is served.
#[must_use]
pub fn begin_primary(mut meta: GroupMeta, id: LineageId, unix_s: u64) -> GroupMeta {
    let (first_epoch, why) = match meta.tip() {
        None => (Epoch(1), LineageWhy::Created),
        Some(tip) => (tip.first_epoch.next(), LineageWhy::Started),
    };
    meta.role = Role::Primary;
    meta.clean = false;
    meta.begin(LineageEntry {
        id,
        first_epoch,
        why,
        unix_s,
    });
    meta.generation += 1;
    meta
}

/// Whether the operator's word that the images are equal can still be true: at the first start of a
/// primary, before a guest could write. A flag that stays on a command line says nothing later.
#[must_use]
pub fn is_first_start(meta: &GroupMeta) -> bool {
    meta.lineage.len() == 1
}

/// The metadata of the group; `None` when it was never written.
///
/// # Errors
/// It cannot be read, or it is damaged.
pub fn read_group(disk: &dyn ReadAt) -> Result<Option<GroupMeta>, Refusal> {
    read_slots(disk, Target::GroupMeta, GroupMeta::decode, |meta| {
        meta.generation
    })
}

/// The metadata of the volume; `None` when it was never written.
///
/// # Errors
/// It cannot be read, or it is damaged.
pub fn read_volume(disk: &dyn ReadAt) -> Result<Option<VolumeMeta>, Refusal> {
    read_slots(disk, Target::VolumeMeta, VolumeMeta::decode, |meta| {
        meta.generation
    })
}

fn read_slots<T>(
    disk: &dyn ReadAt,
    target: Target,
    decode: fn(&[u8]) -> Result<T, RecordError>,
    generation: fn(&T) -> u64,
) -> Result<Option<T>, Refusal> {
    let mut bytes = vec![0; 2 * SLOT_BYTES];
    disk.read_at(target, 0, &mut bytes)
        .map_err(|error| Refusal::Read { target, error })?;
    let (first, second) = bytes.split_at(SLOT_BYTES);
    let slots = [decode(first), decode(second)];
    let error = match &slots {
        [Err(_), Err(error)] if second.iter().any(|b| *b != 0) => Some(*error),
        _ => None,
    };
    if let Some(error) = error {
        return Err(Refusal::Metadata { target, error });
    }
    // An empty second slot: the first is the only one ever written, or its writing was torn.
    Ok(newest(slots.map(Result::ok), generation))
}

/// Finds out what a volume is. `group` is the metadata of the group on this host, if there is any.
///
/// # Errors
/// Why the volume must be left as it is.
pub fn recover_volume(
    disk: &dyn ReadAt,
    group: Option<&GroupMeta>,
    shape: VolumeShape,
) -> Result<VolumeStart, Refusal> {
    let geometry = shape.geometry;
    let next_serial = highest_serial(disk, geometry)? + 1;
    // A volume that never held an epoch may have been given an image of another size meanwhile.
    let used = |meta: &VolumeMeta| !meta.volume.is_none() || meta.size_bytes == shape.size_bytes;
    let Some(meta) = read_volume(disk)?.filter(used) else {
        let meta = blank_volume(shape);
        return Ok(VolumeStart {
            format: Some(meta.clone()),
            ..empty(meta, next_serial, None)
        });
    };
    check_shape(&meta, group, shape)?;
    let promoted = group.filter(|g| g.role == Role::Primary && !meta.volume.is_none());
    let own = promoted.and_then(|g| {
        let entry = g
            .lineage
            .iter()
            .rev()
            .find(|e| e.why == LineageWhy::Promoted)?;
        Some((entry.id, g.promoted))
    });
    let resume = own.map(|(lineage, _)| lineage);
    if meta.journal_empty {
        return Ok(empty(meta, next_serial, resume));
    }
    let mut start = empty(meta.clone(), next_serial, resume);
    let tail_is_own = own.is_some_and(|(lineage, _)| lineage == meta.tail_lineage);
    if !tail_is_own {
        let found = read_chain(disk, geometry, tail_of(&meta))?;
        refuse_newer(&found, own.map(|(lineage, _)| own_session(lineage)))?;
        take_followed(&mut start, found, own.map(|(_, epoch)| epoch))?;
    }
    if let Some((lineage, promoted)) = own
        && (tail_is_own || meta.own_serial != 0)
    {
        let from = if tail_is_own {
            tail_of(&meta)
        } else {
            own_chain(&meta, lineage)
        };
        let found = read_chain(disk, geometry, from)?;
        refuse_newer(&found, None)?;
        take_own(&mut start, found, promoted)?;
    }
    let recovered = &start.recovered;
    let last = recovered.epochs.last().map_or(Epoch::NONE, |e| e.epoch);
    start.facts.sealed = last.max(recovered.meta.applied);
    Ok(start)
}

/// A volume whose image is all there is.
fn empty(meta: VolumeMeta, next_serial: u64, resume: Option<LineageId>) -> VolumeStart {
    let facts = MemberFacts {
        size_bytes: meta.size_bytes,
        sealed: meta.applied,
        inconsistent: meta.inconsistent || meta.applied < meta.consistent_from,
        suspect: false,
        damaged: Epoch::NONE,
        blank: meta.volume.is_none(),
        consistent_from: meta.consistent_from,
        committed: meta.committed.max(meta.applied),
    };
    let decision = if facts.inconsistent {
        Decision::Inconsistent
    } else {
        Decision::Whole
    };
    let recovered = Recovered {
        meta,
        decision,
        epochs: Vec::new(),
        next_serial,
    };
    VolumeStart {
        recovered,
        facts,
        resume,
        format: None,
        rows: Vec::new(),
    }
}

fn check_shape(
    meta: &VolumeMeta,
    group: Option<&GroupMeta>,
    shape: VolumeShape,
) -> Result<(), Refusal> {
    if meta.size_bytes != shape.size_bytes {
        let (image_bytes, volume_bytes) = (shape.size_bytes, meta.size_bytes);
        return Err(Refusal::Size {
            image_bytes,
            volume_bytes,
        });
    }
    let there = Geometry {
        segment_bytes: meta.segment_bytes,
        segment_count: meta.segment_count,
    };
    if there != shape.geometry {
        return Err(Refusal::Geometry {
            there_bytes: there.segment_bytes,
            there_count: there.segment_count,
            wanted_bytes: shape.geometry.segment_bytes,
            wanted_count: shape.geometry.segment_count,
        });
    }
    let of_group = group.map_or(GroupUuid::NONE, |g| g.group);
    if !meta.group.is_none() && meta.group != of_group {
        return Err(Refusal::Group {
            volume: meta.group,
            group: of_group,
        });
    }
    Ok(())
}

fn tail_of(meta: &VolumeMeta) -> Expect {
    Expect {
        group: meta.group,
        volume: meta.volume,
        session: meta.tail_session,
        lineage: meta.tail_lineage,
        place: meta.tail,
        record_seq: meta.tail_record_seq,
        prev_crc: meta.tail_prev_crc,
    }
}

/// Where the own writes of a promoted volume begin.
fn own_chain(meta: &VolumeMeta, lineage: LineageId) -> Expect {
    Expect {
        session: own_session(lineage),
        lineage,
        place: Place {
            serial: meta.own_serial,
            offset: SEGMENT_HEADER_BYTES as u64,
        },
        record_seq: 1,
        prev_crc: 0,
        ..tail_of(meta)
    }
}

fn read_chain(disk: &dyn ReadAt, geometry: Geometry, from: Expect) -> Result<Scan, Refusal> {
    let target = Target::Segment(geometry.file_of(from.place.serial));
    scan(disk, geometry, from).map_err(|error| Refusal::Read { target, error })
}

/// Highest serial of a segment in use, whoever's; 0 without one.
fn highest_serial(disk: &dyn ReadAt, geometry: Geometry) -> Result<u64, Refusal> {
    let mut highest = 0;
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
    for index in 0..geometry.segment_count {
        let target = Target::Segment(index);
        disk.read_at(target, 0, &mut bytes)
            .map_err(|error| Refusal::Read { target, error })?;
        if let Ok(header) = SegmentHeader::decode(&bytes) {
            highest = highest.max(header.serial);
        }
    }
    Ok(highest)
}

/// Metadata that a newer session was durable in is gone, if the journal has records of one.
fn refuse_newer(found: &Scan, own: Option<SessionId>) -> Result<(), Refusal> {
    let newer = found
        .newer
        .iter()
        .find(|(session, _)| Some(*session) != own);
    match newer {
        Some((session, place)) => Err(Refusal::Outdated {
            session: *session,
            place: *place,
        }),
        None => Ok(()),
    }
}

/// What came from a primary. After a promotion nothing above its epoch counts, whole or damaged.
fn take_followed(
    start: &mut VolumeStart,
    mut found: Scan,
    promoted: Option<Epoch>,
) -> Result<(), Refusal> {
    let meta = &start.recovered.meta;
    let durable = meta.durable;
    if let Some(limit) = promoted {
        // Metadata at a promotion names the last epoch of this chain that counts.
        if found.watermark > limit {
            found.watermark = Epoch::NONE;
        }
        if found.seal_behind > limit || last_sealed(&found) > limit {
            found.seal_behind = Epoch::NONE;
        }
        found.epochs.retain(|e| e.epoch <= limit);
    }
    let known = Known {
        own_synced: None,
        inconsistent: meta.inconsistent,
        applied: meta.applied,
        consistent_from: meta.consistent_from,
        durable,
    };
    let facts = recovery::facts(&found, known);
    let row = decide(facts);
    start.rows.push(row);
    start.recovered.decision = row.decision;
    // What is applied may be short of the end of a sync that the journal reaches.
    start.facts.inconsistent = row.decision == Decision::Inconsistent;
    match row.decision {
        Decision::Refuse => return Err(damaged(row, &found, meta, durable)),
        Decision::Suspect => {
            start.facts.suspect = true;
            start.facts.damaged = found.seal_behind;
        }
        Decision::Inconsistent | Decision::Whole | Decision::DropTail | Decision::KeepPrefix => {}
    }
    if row.decision != Decision::Inconsistent {
        start
            .recovered
            .epochs
            .extend(whole(found.epochs, meta.applied));
    }
    start.facts.committed = start.facts.committed.max(found.committed);
    note_serial(start, found.serial_max);
    Ok(())
}

/// What a promoted side wrote itself.
fn take_own(start: &mut VolumeStart, found: Scan, promoted: Epoch) -> Result<(), Refusal> {
    let meta = &start.recovered.meta;
    let durable = meta.durable;
    // Until the tail is in this chain, metadata names epochs of the other one.
    let other = start
        .recovered
        .epochs
        .last()
        .map_or(Epoch::NONE, |e| e.epoch);
    // Own epochs are above the promotion, and the first records name that as their base.
    let known = Known {
        own_synced: Some(meta.own_synced),
        inconsistent: false,
        applied: meta.applied.max(other).max(promoted),
        consistent_from: Epoch::NONE,
        durable,
    };
    let facts = recovery::facts(&found, known);
    let row = decide(facts);
    start.rows.push(row);
    start.recovered.decision = row.decision;
    if row.decision == Decision::Refuse {
        let whole = last_record(&found);
        return Err(if whole < meta.own_synced {
            Refusal::OwnDamaged {
                row: row.name,
                place: found.end_place,
                error: found.end_error,
                whole,
                synced: meta.own_synced,
            }
        } else {
            damaged(row, &found, meta, durable)
        });
    }
    // All of it was synced before it was read, and all of it goes into the image.
    if !crate::mutant!("own-synced-unnamed") {
        start.recovered.meta.own_synced = last_record(&found);
    }
    let cut = crate::mutant!("own-prefix-dropped");
    start
        .recovered
        .epochs
        .extend(found.epochs.into_iter().filter(|e| e.sealed || !cut));
    note_serial(start, found.serial_max);
    Ok(())
}

fn note_serial(start: &mut VolumeStart, serial_max: u64) {
    start.recovered.next_serial = start.recovered.next_serial.max(serial_max + 1);
}

/// Epochs that are sealed and not in the image.
fn whole(epochs: Vec<ScannedEpoch>, applied: Epoch) -> impl Iterator<Item = ScannedEpoch> {
    let unsealed = crate::mutant!("skip-seal-check");
    epochs
        .into_iter()
        .filter(move |e| (e.sealed || unsealed) && e.epoch > applied)
}

fn damaged(row: &Row, found: &Scan, meta: &VolumeMeta, durable: Epoch) -> Refusal {
    Refusal::Damaged {
        row: row.name,
        place: found.end_place,
        error: found.end_error,
        sealed: last_sealed(found).max(meta.applied),
        acknowledged: found.watermark.max(durable),
    }
}
