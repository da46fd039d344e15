//! What the thread of a volume is made of: put together on the main thread, brought to life on the
//! thread itself, which alone owns reactor, engine and group from then on.

use crate::config::{self, Common, OutputClass};
use crate::daemon::faults::{Faults, plant};
use crate::daemon::files::read_text;
use crate::daemon::image_mark::Claim;
use crate::daemon::memory::PoolMemory;
use crate::daemon::net::Net;
use crate::daemon::on_word::stands_on_word;
use crate::daemon::role::{Engine, Group};
use crate::daemon::thread::{About, Files, Mail, VolumeThread};
use crate::daemon::timeline::Rate;
use crate::daemon::vhost::{Mapping, Rings};
use crate::daemon::{ENGINE_RESERVE_BYTES, POOL_BYTES};
use crate::engine::Identity;
use crate::engine::backup::{BackupSettings, BackupVolume, Recovered};
use crate::engine::primary::{PrimarySettings, PrimaryVolume};
use crate::frontend::nbd::ExportInfo;
use crate::frontend::virtio_blk::inflight::Table;
use crate::group::backup::{BackupGroup, MemberFacts};
use crate::group::primary::{GroupSettings, PrimaryGroup};
use crate::reactor::{MailSender, Mailbox, OpenedFile, PAGE_BYTES, Pool, Reactor, ReactorConfig};
use blkback_proto::diskspec::Endpoint;
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role, VolumeMeta};
use blockrep_host::ctl::{EVENT_LOG_BYTES_MAX, EventLog};
use blockrep_host::{clock, ids};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

const _: () = assert!(ENGINE_RESERVE_BYTES < POOL_BYTES);

/// Longest text read of what a promotion left out, in bytes.
const LOSS_BYTES_MAX: usize = 512;

/// Messages that may wait for an I/O thread.
pub(super) const MAILBOX_MAX: usize = 4096;

/// What a thread is made of, before it owns a reactor.
pub(super) struct Seed {
    pub(super) about: About,
    pub(super) image: OpenedFile,
    pub(super) segments: Vec<OpenedFile>,
    pub(super) volume_meta: OpenedFile,
    pub(super) group_meta: Option<OpenedFile>,
    pub(super) nbd_listener: Option<OwnedFd>,
    pub(super) link_listener: Option<OwnedFd>,
    pub(super) remote: Option<Endpoint>,
    pub(super) exports: Vec<ExportInfo>,
    /// Where a VMM is served by vhost-user.
    pub(super) vhost_listener: Option<OwnedFd>,
    /// The table of what its guest has in flight.
    pub(super) inflight: Option<Mapping>,
    /// Of a backup that never held anything.
    pub(super) claim: Option<Claim>,
    /// Held until the kernel is done with the last operation of the thread.
    pub(super) locks: Vec<OwnedFd>,
    pub(super) kind: Kind,
}

/// How a thread's engine and group begin.
pub(super) enum Kind {
    Primary {
        identity: Identity,
        meta: GroupMeta,
        group: Option<GroupSettings>,
        reason: String,
    },
    Backup {
        recovered: Box<Recovered>,
        settings: BackupSettings,
        group: Option<(GroupMeta, Vec<MemberFacts>)>,
        /// What to know before a primary is taken in for the first time.
        warning: Option<String>,
        resume: Option<LineageId>,
    },
}

/// What the thread of a volume takes at most, and with the first volume what the daemon takes
/// besides: names and bytes.
pub(super) fn memory_bounds(index: usize, extents_bytes: u64) -> Vec<(String, u64)> {
    // The arena, bounce buffers, and zeros of the reactor.
    let buffers = POOL_BYTES as u64 + (8 << 20);
    let mailbox = MAILBOX_MAX * size_of::<Mail>();
    let mut bounds = vec![
        (format!("volume {index}: buffers"), buffers),
        (format!("volume {index}: mailbox"), mailbox as u64),
    ];
    if extents_bytes > 0 {
        bounds.push((format!("volume {index}: extents"), extents_bytes));
    }
    if index == 0 {
        let limits = blockrep_host::ctl::Limits::default();
        bounds.push(("events".to_owned(), EVENT_LOG_BYTES_MAX as u64));
        bounds.push(("answers to clients".to_owned(), limits.memory_bytes_max()));
        // Program, stacks, and small change.
        bounds.push(("program and tables".to_owned(), 32 << 20));
    }
    bounds
}

pub(super) fn about(
    common: &Common,
    index: usize,
    path: &Path,
    image: &OpenedFile,
    settings: &PrimarySettings,
    memory_bytes_max: Vec<(String, u64)>,
    output: OutputClass,
) -> About {
    let loss_file = common.state.join("promotion.loss");
    About {
        index,
        group_name: common.group.clone(),
        image_path: path.display().to_string(),
        size_bytes: image.size_bytes,
        volume_uuid: None,
        is_primary_daemon: true,
        settings: settings.clone(),
        output,
        loss: config::LossPolicy::Degrade,
        memory_bytes_max,
        link_rate: None,
        image_trouble: None,
        same_image: common.same_image,
        lost: read_text(&loss_file, LOSS_BYTES_MAX).ok().flatten(),
        loss_file,
        on_word: false,
        started: Instant::now(),
    }
}

impl About {
    pub(super) fn with(
        mut self,
        is_primary_daemon: bool,
        loss: config::LossPolicy,
        volume_uuid: Option<String>,
        link_rate: Option<u64>,
    ) -> Self {
        self.is_primary_daemon = is_primary_daemon;
        self.loss = loss;
        self.volume_uuid = volume_uuid;
        self.link_rate = link_rate;
        self
    }
}

/// Makes the thread's reactor, engine and group, on the thread itself.
pub(super) fn sprout(
    seed: Seed,
    faults: &Faults,
    mailbox: Mailbox<Mail>,
    peers: Vec<MailSender<Mail>>,
    events: EventLog,
) -> Result<VolumeThread, std::io::Error> {
    let mut reactor = Reactor::new(&ReactorConfig {
        pool_bytes: POOL_BYTES,
        file_slots: 128 + u32::try_from(seed.segments.len()).expect("journals are bounded"),
        ..ReactorConfig::default()
    })?;
    for lock in seed.locks {
        reactor.keep_open(lock);
    }
    let mut mem = PoolMemory(reactor.pool().clone());
    let mut add = |file: OpenedFile| reactor.add_file(file.fd, file.options);
    let journal = |file| plant(faults.journal.as_ref(), file);
    let meta = |file| plant(faults.meta.as_ref(), file);
    let files = Files {
        image: add(plant(faults.image.as_ref(), seed.image)),
        segments: seed
            .segments
            .into_iter()
            .map(journal)
            .map(&mut add)
            .collect(),
        volume_meta: add(meta(seed.volume_meta)),
        group_meta: seed.group_meta.map(meta).map(&mut add),
    };
    let nbd_listener = seed
        .nbd_listener
        .map(|fd| reactor.add_socket(fd))
        .transpose()?;
    let link_listener = seed
        .link_listener
        .map(|fd| reactor.add_socket(fd))
        .transpose()?;
    let rings = seed.inflight.map(|words| rings(words, &seed.about));
    let mut about = seed.about;
    about.on_word =
        matches!(&seed.kind, Kind::Backup { recovered, .. } if stands_on_word(&recovered.meta));
    let (engine, group) = sprout_engine(&mut mem, &about, seed.kind);
    let mut thread = VolumeThread {
        about,
        reactor,
        mem,
        engine,
        group,
        files,
        mailbox,
        peers,
        events,
        fx: Vec::new(),
        fx_spare: Vec::new(),
        gfx: Vec::new(),
        local: Vec::new(),
        now: 0,
        nbd_listener,
        exports: seed.exports,
        clients: Default::default(),
        requests: Default::default(),
        parts: Default::default(),
        todo: Default::default(),
        stalled: false,
        rings,
        front_bytes: 0,
        meta_pool: Pool::new(4 * PAGE_BYTES, PAGE_BYTES)?,
        net: Net::new(seed.remote, link_listener),
        cut_waits: Vec::new(),
        pending_cuts: Vec::new(),
        promotes: Vec::new(),
        promote_waits: Vec::new(),
        guest_memory: crate::daemon::guest_memory::GuestMemory::default(),
        next_token: 1,
        latencies: Default::default(),
        holds: Default::default(),
        claim: seed.claim,
        rates: [Rate::default(), Rate::default(), Rate::of_number()],
        pressure: Default::default(),
        progress: Default::default(),
        since: Default::default(),
        stopping: None,
        gave_up: false,
        meta_writing: false,
        meta_copy: None,
    };
    // A promoted side that had drained its journal before.
    thread.become_plain();
    thread.accept_clients();
    Ok(thread)
}

fn rings(words: Mapping, about: &About) -> Rings {
    let id = about.volume_uuid.clone().unwrap_or_default();
    Rings::new(Table::open(words, ids::boot_id()), &id.replace('-', ""))
}

fn sprout_engine(mem: &mut PoolMemory, about: &About, kind: Kind) -> (Engine, Option<Group>) {
    let unix_ns = clock::unix_ns();
    match kind {
        Kind::Primary {
            identity,
            meta,
            group,
            reason,
        } => {
            let lineage = meta.lineage.iter().map(|e| (e.id, e.first_epoch)).collect();
            let epoch = meta.tip().map_or(Epoch(1), |tip| tip.first_epoch);
            let settings = about.settings.clone();
            let name = meta.name.clone();
            let engine = PrimaryVolume::new(mem, identity, settings, name, lineage, epoch);
            let group = group.map(|settings| {
                Group::Primary(Box::new(PrimaryGroup::new(
                    meta, settings, unix_ns, &reason,
                )))
            });
            (Engine::Primary(Box::new(engine)), group)
        }
        Kind::Backup {
            recovered,
            settings,
            group,
            resume,
            warning,
        } => {
            let mut engine = BackupVolume::new(mem, settings, *recovered);
            if let Some(lineage) = resume {
                engine.resume_serving(lineage);
            }
            let group = group.map(|(meta, facts)| {
                let group = BackupGroup::new(meta, &facts, unix_ns);
                Group::Backup(Box::new(group.with_warning(warning)))
            });
            (Engine::Backup(Box::new(engine)), group)
        }
    }
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
        memory: false,
        lineage: vec![LineageEntry {
            id: volume.tail_lineage,
            first_epoch: volume.committed.next(),
            why: LineageWhy::Promoted,
            unix_s: 0,
        }],
    }
}
