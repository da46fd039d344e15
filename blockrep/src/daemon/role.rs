//! The engine and the group of a volume, in whichever role they are now.

use super::memory::PoolMemory;
use crate::engine::backup::{BackupVolume, Mode};
use crate::engine::primary::{PrimarySettings, PrimaryVolume};
use crate::engine::{Effect, Identity, Nanos, ToGroup, ToVolume};
use crate::group::backup::BackupGroup;
use crate::group::primary::PrimaryGroup;
use crate::group::{GroupEffect, Now, Standing};
use crate::io::{Done, Request, RequestId};
use blkback_proto::meta::GroupMeta;

type Fx = Vec<Effect<PoolMemory>>;

/// The engine of a volume.
pub(super) enum Engine {
    Primary(Box<PrimaryVolume<PoolMemory>>),
    Backup(Box<BackupVolume<PoolMemory>>),
}

impl Engine {
    pub(super) fn request(
        &mut self,
        now: Nanos,
        mem: &mut PoolMemory,
        id: RequestId,
        request: Request<PoolMemory>,
        fx: &mut Fx,
    ) {
        match self {
            Self::Primary(engine) => engine.request(now, mem, id, request, fx),
            Self::Backup(engine) => engine.request(now, mem, id, request, fx),
        }
    }

    pub(super) fn io_done(
        &mut self,
        now: Nanos,
        mem: &mut PoolMemory,
        done: Done<PoolMemory>,
        fx: &mut Fx,
    ) {
        match self {
            Self::Primary(engine) => engine.io_done(now, mem, done, fx),
            Self::Backup(engine) => engine.io_done(now, mem, done, fx),
        }
    }

    pub(super) fn group(
        &mut self,
        now: Nanos,
        mem: &mut PoolMemory,
        message: ToVolume,
        fx: &mut Fx,
    ) {
        match self {
            Self::Primary(engine) => engine.group(now, mem, message, fx),
            Self::Backup(engine) => engine.group(now, mem, message, fx),
        }
    }

    pub(super) fn tick(&mut self, now: Nanos, mem: &mut PoolMemory, fx: &mut Fx) {
        match self {
            Self::Primary(engine) => engine.tick(now, mem, fx),
            Self::Backup(engine) => engine.tick(now, mem, fx),
        }
    }

    pub(super) fn next_tick(&self) -> Option<Nanos> {
        match self {
            Self::Primary(engine) => engine.next_tick(),
            Self::Backup(engine) => engine.next_tick(),
        }
    }

    pub(super) fn link_lost(&mut self, reason: String, fx: &mut Fx) {
        match self {
            Self::Primary(engine) => engine.link_lost(reason, fx),
            Self::Backup(engine) => engine.link_lost(reason, fx),
        }
    }

    /// Once a promoted volume's journal is drained, the image alone is the volume: from then on it
    /// is a plain primary. Gives the requests that waited.
    pub(super) fn become_plain(
        &mut self,
        mem: &mut PoolMemory,
        settings: &PrimarySettings,
        meta: &GroupMeta,
        fx: &mut Fx,
    ) -> bool {
        let Self::Backup(backup) = self else {
            return false;
        };
        if backup.mode() != Mode::Drained {
            return false;
        }
        let Some(requests) = backup.take_drained() else {
            return false;
        };
        let known = backup.meta().clone();
        let identity = Identity {
            group: known.group,
            volume: known.volume,
            volume_index: known.volume_index,
            volume_count: meta.volume_count,
            size_bytes: known.size_bytes,
        };
        let lineage = meta.lineage.iter().map(|e| (e.id, e.first_epoch)).collect();
        // Empty epochs are no fact on disk, but the one of the promotion was told to the operator.
        let epoch = backup.epochs().0.max(meta.promoted).next();
        let mut primary = PrimaryVolume::new(
            mem,
            identity,
            settings.clone(),
            meta.name.clone(),
            lineage,
            epoch,
        );
        for (id, request) in requests {
            primary.request(0, mem, id, request, fx);
        }
        *self = Self::Primary(Box::new(primary));
        true
    }
}

/// The group, on the thread of the first volume.
pub(super) enum Group {
    Primary(Box<PrimaryGroup>),
    Backup(Box<BackupGroup>),
}

impl Group {
    pub(super) fn volume(
        &mut self,
        at: &mut Now,
        index: usize,
        message: ToGroup,
        fx: &mut Vec<GroupEffect>,
    ) {
        match self {
            Self::Primary(group) => group.volume(at, index, message, fx),
            Self::Backup(group) => group.volume(at, index, message, fx),
        }
    }

    pub(super) fn meta_written(
        &mut self,
        at: &mut Now,
        result: Result<(), String>,
        fx: &mut Vec<GroupEffect>,
    ) {
        match self {
            Self::Primary(group) => group.meta_written(at, result, fx),
            Self::Backup(group) => group.meta_written(at, result, fx),
        }
    }

    pub(super) fn standing(&self) -> &Standing {
        match self {
            Self::Primary(group) => group.standing(),
            Self::Backup(group) => group.standing(),
        }
    }

    /// Of a primary: a backup has taken every volume in since the start.
    pub(super) fn was_linked(&self) -> bool {
        match self {
            Self::Primary(group) => group.was_linked(),
            Self::Backup(_) => false,
        }
    }

    pub(super) fn meta(&self) -> &GroupMeta {
        match self {
            Self::Primary(group) => group.meta(),
            Self::Backup(group) => group.meta(),
        }
    }
}
