//! One host: engines, group, and what carries out their effects. The second driver of the code
//! that the daemons drive.

use super::disk::{Capture, Disk};
use blkback_proto::ids::{GroupUuid, VolumeUuid};
use blkback_proto::meta::{GroupMeta, SLOT_BYTES, slot_offset};
use blockrep::engine::backup::BackupVolume;
use blockrep::engine::primary::PrimaryVolume;
use blockrep::engine::{Identity, Protection};
use blockrep::group::backup::BackupGroup;
use blockrep::group::primary::PrimaryGroup;
use blockrep::io::{HeapMemory, IoId, Op, Target};
use std::collections::{BTreeMap, VecDeque};

/// Memory that records on their way in must leave free, so that what is first in the queue can
/// always be worked on: a chunk to compare and headers.
pub const MEMORY_KEPT: usize = (1 << 20) + (64 << 10);

/// What runs a volume.
pub enum Engine {
    /// Nothing.
    Off,
    /// Primary.
    Primary(Box<PrimaryVolume<HeapMemory>>),
    /// Backup, or promoted and not drained.
    Backup(Box<BackupVolume<HeapMemory>>),
}

/// What runs a group.
pub enum Group {
    /// Nothing.
    Off,
    /// Primary.
    Primary(PrimaryGroup),
    /// Backup or promoted.
    Backup(BackupGroup),
}

/// Who waits for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The engine of the volume.
    Volume(IoId),
    /// The group: its metadata.
    Group,
}

/// An operation on its way.
pub struct InFlight {
    /// Who waits.
    pub owner: Owner,
    /// What.
    pub op: Op<HeapMemory>,
    /// Of a sync.
    pub capture: Option<Capture>,
    /// It will fail with this errno.
    pub error: Option<i32>,
}

/// A volume of a host.
pub struct Slot {
    /// Its engine.
    pub engine: Engine,
    /// Its memory.
    pub memory: HeapMemory,
    /// Connection in use.
    pub conn: Option<usize>,
    /// Operations on their way, by token.
    pub ops: BTreeMap<u64, InFlight>,
    /// Earliest tick that is scheduled.
    pub tick_at: u64,
    /// Last delivery to the group and from it: messages stay in order.
    pub to_group_at: u64,
    /// See `to_group_at`.
    pub from_group_at: u64,
    /// What the group said last.
    pub protection: Protection,
    /// Backup: what reads show: first step of the era and position.
    pub shows: Option<(usize, usize)>,
    /// Backup: start of the primary that was accepted last.
    pub era: u32,
    /// Backup: epoch that was whole when it was started.
    pub started_at: blkback_proto::ids::Epoch,
    /// Backup: what reads show once the group has said so after a start.
    pub started_shows: Option<(usize, usize)>,
}

impl Slot {
    /// A volume that does not run.
    #[must_use]
    pub fn new(memory_bytes: usize) -> Self {
        Self {
            engine: Engine::Off,
            memory: HeapMemory::new(memory_bytes),
            conn: None,
            ops: BTreeMap::new(),
            tick_at: u64::MAX,
            to_group_at: 0,
            from_group_at: 0,
            protection: Protection::Blocked,
            shows: None,
            era: 0,
            started_at: blkback_proto::ids::Epoch::NONE,
            started_shows: None,
        }
    }
}

/// A failure of a store that lasts until the host is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakage {
    /// Which volume.
    pub volume: usize,
    /// Segments, image or metadata.
    pub file: FileKind,
    /// Syncs fail rather than writes.
    pub sync: bool,
    /// errno.
    pub errno: i32,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// The image.
    Image,
    /// Journal segments.
    Journal,
    /// Metadata of volume or group.
    Meta,
}

impl FileKind {
    /// Kind of a file.
    #[must_use]
    pub fn of(target: Target) -> Self {
        match target {
            Target::Image => Self::Image,
            Target::Segment(_) => Self::Journal,
            Target::VolumeMeta | Target::GroupMeta => Self::Meta,
        }
    }
}

/// A host.
pub struct Host {
    /// Its disks, by volume.
    pub disks: Vec<Disk>,
    /// Counts starts; 0 before the first.
    pub boot: u32,
    /// It runs.
    pub up: bool,
    /// Recovery refused to touch the store.
    pub refused: bool,
    /// Volumes.
    pub slots: Vec<Slot>,
    /// Group.
    pub group: Group,
    /// Metadata of the group to be written, in order.
    pub group_writes: VecDeque<GroupMeta>,
    /// The first of them is on its way; true when it is being synced.
    pub group_writing: Option<bool>,
    /// Disks are that much slower.
    pub slow: u64,
    /// What fails.
    pub broken: Vec<Breakage>,
    /// Group tick that is scheduled.
    pub group_tick_at: u64,
}

impl Host {
    /// A host that was never started.
    #[must_use]
    pub fn new(disks: Vec<Disk>) -> Self {
        Self {
            disks,
            boot: 0,
            up: false,
            refused: false,
            slots: Vec::new(),
            group: Group::Off,
            group_writes: VecDeque::new(),
            group_writing: None,
            slow: 1,
            broken: Vec::new(),
            group_tick_at: u64::MAX,
        }
    }

    /// It was switched on.
    #[must_use]
    pub fn was_started(&self) -> bool {
        self.boot > 0
    }

    /// Writes metadata of the group at once and durably: before anything runs.
    pub fn put_group(&mut self, meta: &GroupMeta) {
        let mut bytes = [0; SLOT_BYTES];
        meta.encode(&mut bytes);
        self.disks[0].write(Target::GroupMeta, slot_offset(meta.generation), &bytes);
        self.disks[0].sync_all();
    }

    /// The errno an operation of that kind gets now.
    #[must_use]
    pub fn error_of(&self, volume: usize, op: &Op<HeapMemory>) -> Option<i32> {
        let (target, sync) = match op {
            Op::Read { .. } => return None,
            Op::Write { target, .. } => (*target, false),
            Op::Sync { target } => (*target, true),
            Op::Zero { .. } | Op::Discard { .. } => (Target::Image, false),
        };
        let fits =
            |b: &&Breakage| b.volume == volume && b.file == FileKind::of(target) && b.sync == sync;
        self.broken.iter().find(fits).map(|b| b.errno)
    }
}

/// Identity of a volume in every run.
#[must_use]
pub fn identity(index: usize, count: usize, size_bytes: u64) -> Identity {
    Identity {
        group: GroupUuid([7; 16]),
        volume: VolumeUuid([0x10 + u8::try_from(index).expect("two at most"); 16]),
        volume_index: u16::try_from(index).expect("two at most"),
        volume_count: u16::try_from(count).expect("two at most"),
        size_bytes,
    }
}
