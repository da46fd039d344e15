//! From a configuration to running threads, and back to an exit code.

use super::control::Router;
use super::faults::{Faults, plant};
use super::files::{self, FileError, JournalReader, Layout, words};
use super::listen::{link_listener, nbd_listener};
use super::memory::PoolMemory;
use super::net::Net;
use super::owner;
use super::role::{Engine, Group};
use super::thread::{About, Files, Mail, VolumeThread, fresh_lineage};
use super::watch::Watch;
use super::{ENGINE_RESERVE_BYTES, EXTENT_BYTES, EXTENTS_MAX, FRONT_BYTES_MAX, POOL_BYTES};
use crate::cli::ExitCode;
use crate::config::{self, BackupConfig, Common, EpochMode, NbdListen, OutputClass, PrimaryConfig};
use crate::engine::Identity;
use crate::engine::backup::{BackupSettings, BackupVolume, Recovered};
use crate::engine::primary::{PrimarySettings, PrimaryVolume};
use crate::frontend::nbd::{ExportInfo, Features};
use crate::group::backup::{BackupGroup, MemberFacts};
use crate::group::primary::{GroupSettings, PrimaryGroup};
use crate::journal::recovery::Decision;
use crate::journal::ring::Geometry;
use crate::journal::start::{
    Refusal, VolumeShape, VolumeStart, begin_primary, blank_group, blank_volume, recover_volume,
};
use crate::reactor::{
    Access, MailSender, Mailbox, OpenedFile, PAGE_BYTES, Pool, Reactor, ReactorConfig, mailbox,
    open_image,
};
use blkback_proto::diskspec::Endpoint;
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, UNIT_BYTES, VolumeUuid};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role, VolumeMeta};
use blockrep_host::ctl::{EVENT_LOG_BYTES_MAX, EventLog, NewEvent, Server, ServerConfig};
use blockrep_host::{clock, ids, lock::FileLock, logging, notify, signals::Shutdown};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const _: () = assert!(ENGINE_RESERVE_BYTES < POOL_BYTES);

/// Messages that may wait for an I/O thread.
const MAILBOX_MAX: usize = 4096;

/// Why a daemon does not run: one line, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct StartError {
    text: String,
    /// How the process should end.
    pub code: ExitCode,
}

impl StartError {
    pub(super) fn new(code: ExitCode, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code,
        }
    }
}

impl From<FileError> for StartError {
    fn from(error: FileError) -> Self {
        Self {
            text: error.text,
            code: error.code,
        }
    }
}

/// What a thread is made of, before it owns a reactor.
struct Seed {
    about: About,
    image: OpenedFile,
    segments: Vec<OpenedFile>,
    volume_meta: OpenedFile,
    group_meta: Option<OpenedFile>,
    nbd_listener: Option<OwnedFd>,
    link_listener: Option<OwnedFd>,
    remote: Option<Endpoint>,
    exports: Vec<ExportInfo>,
    /// Held until the kernel is done with the last operation of the thread.
    locks: Vec<OwnedFd>,
    kind: Kind,
}

/// How a thread's engine and group begin.
enum Kind {
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
        resume: Option<LineageId>,
    },
}

/// Runs a primary until it is told to stop.
///
/// # Errors
/// [`StartError`] when it does not get so far, or its storage failed while it ran.
pub fn run_primary(config: &PrimaryConfig) -> Result<(), StartError> {
    let faults = begin(&config.common)?;
    let shutdown = install_signals()?;
    files::make_dir(&config.common.state)?;
    let state_lock = lock(&config.common.state.join("lock"))?;
    let layout = layout(&config.common);
    let images: Vec<&Path> = config.volumes.iter().map(|v| v.image.as_path()).collect();
    let (opened, mut locks) = open_images(&images)?;
    locks.push(state_lock);
    let meta = primary_group_meta(&layout, config)?;
    let output = OutputClass::Open;
    let settings = PrimarySettings {
        ack: config.ack_for(output),
        reserve_bytes: FRONT_BYTES_MAX,
        assume_identical: config.assume_identical,
        pressure_ns_max: nanos(config.backpressure_timeout),
    };
    let group = GroupSettings {
        epoch_ns: match config.epoch {
            EpochMode::Every(length) => Some(nanos(length)),
            EpochMode::Manual => None,
        },
        loss: config.on_backup_loss,
    };
    let exports = exports(&images, &opened)?;
    let mut nbd = nbd_listener(config.common.nbd.as_ref())?;
    let mut seeds = Vec::new();
    for (index, (volume, image)) in config.volumes.iter().zip(opened).enumerate() {
        let identity = primary_volume_meta(&layout, index, &meta, &volume.image, &image)?;
        let reason = volume
            .remote
            .as_ref()
            .map_or("no backup was given".to_owned(), |remote| {
                format!("backup {remote} has not been reached since the start")
            });
        let memory = memory_bounds(index, 0);
        seeds.push(Seed {
            about: about(
                &config.common,
                index,
                &volume.image,
                &image,
                &settings,
                memory,
                output,
            )
            .with(
                true,
                config.on_backup_loss,
                Some(identity.volume.to_string()),
                None,
            ),
            image,
            segments: Vec::new(),
            volume_meta: open_meta(&layout.volume_meta(index))?,
            group_meta: (index == 0)
                .then(|| open_meta(&layout.group_meta()))
                .transpose()?,
            nbd_listener: nbd.take(),
            link_listener: None,
            remote: volume.remote.clone(),
            exports: exports.clone(),
            locks: descriptors(&locks)?,
            kind: Kind::Primary {
                identity,
                meta: meta.clone(),
                group: (index == 0).then_some(group),
                reason,
            },
        });
    }
    run(
        &config.common,
        "blockrep",
        seeds,
        &faults,
        Watch::new(&images),
        &shutdown,
    )
}

/// Runs a backup until it is told to stop.
///
/// # Errors
/// [`StartError`] when it does not get so far, or its storage failed while it ran.
pub fn run_backup(config: &BackupConfig) -> Result<(), StartError> {
    let faults = begin(&config.common)?;
    let shutdown = install_signals()?;
    files::make_dir(&config.common.state)?;
    let state_lock = lock(&config.common.state.join("lock"))?;
    let layout = layout(&config.common);
    let images: Vec<&Path> = config.volumes.iter().map(|v| v.image.as_path()).collect();
    let (opened, mut locks) = open_images(&images)?;
    locks.push(state_lock);
    for index in 0..images.len() {
        locks.push(owner::lock_journal(&layout, index)?);
    }
    let meta = backup_group_meta(&layout, config)?;
    let mut recovered = Vec::new();
    for (index, image) in opened.iter().enumerate() {
        recovered.push(recover(&layout, index, &meta, images[index], image)?);
    }
    let facts: Vec<MemberFacts> = recovered.iter().map(|start| start.facts).collect();
    let settings = PrimarySettings {
        ack: config::AckMode::Flush,
        reserve_bytes: FRONT_BYTES_MAX,
        assume_identical: false,
        pressure_ns_max: nanos(config::BACKPRESSURE_TIMEOUT_DEFAULT),
    };
    let exports = exports(&images, &opened)?;
    let mut nbd = nbd_listener(config.common.nbd.as_ref())?;
    let mut seeds = Vec::new();
    let volumes = config.volumes.iter().zip(opened).zip(recovered);
    for (index, ((volume, image), recovered)) in volumes.enumerate() {
        let mut segments = Vec::new();
        for file in 0..layout.geometry.segment_count {
            segments.push(open_store(&layout.segment(index, file))?);
        }
        let memory = memory_bounds(index, EXTENTS_MAX as u64 * EXTENT_BYTES);
        let known = recovered.recovered.meta.volume;
        let uuid = (!known.is_none()).then(|| known.to_string());
        seeds.push(Seed {
            about: about(
                &config.common,
                index,
                &volume.image,
                &image,
                &settings,
                memory,
                OutputClass::Open,
            )
            .with(
                false,
                config::LossPolicy::Degrade,
                uuid,
                config.throttle_link,
            ),
            image,
            segments,
            volume_meta: open_meta(&layout.volume_meta(index))?,
            group_meta: (index == 0)
                .then(|| open_meta(&layout.group_meta()))
                .transpose()?,
            nbd_listener: nbd.take(),
            link_listener: Some(link_listener(
                &volume.listen,
                config.common.insecure_plaintext,
            )?),
            remote: None,
            exports: exports.clone(),
            locks: descriptors(&locks)?,
            kind: Kind::Backup {
                resume: recovered.resume,
                recovered: Box::new(recovered.recovered),
                settings: BackupSettings {
                    geometry: layout.geometry,
                    extents_max: EXTENTS_MAX,
                    apply_rate: config.throttle_apply,
                },
                group: (index == 0).then(|| (meta.clone(), facts.clone())),
            },
        });
    }
    run(
        &config.common,
        "blockrep-backup",
        seeds,
        &faults,
        Watch::new(&images),
        &shutdown,
    )
}

fn begin(common: &Common) -> Result<Faults, StartError> {
    logging::init(Some(&common.log.to_string()))
        .map_err(|error| StartError::new(ExitCode::Usage, error.to_string()))?;
    Faults::from_env().map_err(|text| StartError::new(ExitCode::Usage, text))
}

fn install_signals() -> Result<Shutdown, StartError> {
    Shutdown::install().map_err(|error| {
        StartError::new(
            ExitCode::Other,
            format!("cannot take signals: {}", words(&error)),
        )
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock(path: &Path) -> Result<FileLock, StartError> {
    FileLock::lock_file(path).map_err(|error| StartError::new(ExitCode::Store, error.to_string()))
}

fn descriptors(locks: &[FileLock]) -> Result<Vec<OwnedFd>, StartError> {
    let all = locks.iter().map(FileLock::descriptor);
    all.collect::<std::io::Result<_>>()
        .map_err(|error| StartError::new(ExitCode::Other, words(&error)))
}

fn layout(common: &Common) -> Layout {
    let segment_bytes = config::journal_segment_bytes(common.journal_bytes);
    let segment_count = u32::try_from(common.journal_bytes / segment_bytes)
        .expect("the configuration bounds the journal");
    Layout {
        state: common.state.clone(),
        journal: common.journal.clone(),
        geometry: Geometry {
            segment_bytes,
            segment_count,
        },
    }
}

fn open_images(images: &[&Path]) -> Result<(Vec<OpenedFile>, Vec<FileLock>), StartError> {
    let mut opened = Vec::new();
    let mut locks = Vec::new();
    for path in images {
        let image = open_store(path).map_err(with_image_hint)?;
        if image.size_bytes == 0 || image.size_bytes % UNIT_BYTES != 0 {
            return Err(StartError::new(
                ExitCode::Store,
                format!(
                    "image {} has {} bytes: a volume needs a multiple of 512, and more than none \
                     (truncate -s SIZE makes one)",
                    path.display(),
                    image.size_bytes
                ),
            ));
        }
        locks.push(
            FileLock::exclusive(path)
                .map_err(|error| StartError::new(ExitCode::Store, error.to_string()))?,
        );
        if let Some(reason) = &image.buffered_reason {
            tracing::warn!("image {}: through the page cache: {reason}", path.display());
        }
        opened.push(image);
    }
    Ok((opened, locks))
}

fn open_store(path: &Path) -> Result<OpenedFile, StartError> {
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
        "{}: give the image of the disk (truncate -s SIZE PATH makes an empty one)",
        error.text
    );
    StartError::new(error.code, text)
}

/// Metadata goes through the page cache: it is small, rare, and synced after every write.
fn open_meta(path: &Path) -> Result<OpenedFile, StartError> {
    open_store(path)
}

fn primary_group_meta(layout: &Layout, config: &PrimaryConfig) -> Result<GroupMeta, StartError> {
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

fn primary_volume_meta(
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

fn backup_group_meta(layout: &Layout, config: &BackupConfig) -> Result<GroupMeta, StartError> {
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

fn recover(
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
pub(super) fn lone_group(volume: &VolumeMeta) -> GroupMeta {
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

fn exports(images: &[&Path], opened: &[OpenedFile]) -> Result<Vec<ExportInfo>, StartError> {
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

/// What the thread of a volume takes at most, and with the first volume what the daemon takes
/// besides: names and bytes.
fn memory_bounds(index: usize, extents_bytes: u64) -> Vec<(String, u64)> {
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

fn about(
    common: &Common,
    index: usize,
    path: &Path,
    image: &OpenedFile,
    settings: &PrimarySettings,
    memory_bytes_max: Vec<(String, u64)>,
    output: OutputClass,
) -> About {
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
        started: Instant::now(),
    }
}

impl About {
    fn with(
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

/// Starts threads and control server, waits for the end.
fn run(
    common: &Common,
    daemon: &str,
    seeds: Vec<Seed>,
    faults: &Faults,
    watch: Watch,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let other = |error: std::io::Error| StartError::new(ExitCode::Other, words(&error));
    let events = EventLog::new().map_err(other)?;
    let mut senders = Vec::new();
    let mut boxes = Vec::new();
    for _ in &seeds {
        let (sender, mailbox) = mailbox::<Mail>(MAILBOX_MAX).map_err(other)?;
        senders.push(sender);
        boxes.push(mailbox);
    }
    if let Some(dir) = common.control.parent() {
        files::make_dir(dir)?;
    }
    let server = Server::start(
        ServerConfig {
            path: common.control.clone(),
            daemon: format!("{daemon} {}", env!("CARGO_PKG_VERSION")),
            limits: Default::default(),
        },
        events.clone(),
        Router {
            threads: senders.clone(),
        },
    )
    .map_err(|error| StartError::new(ExitCode::AddressInUse, error.to_string()))?;
    let mut threads: Vec<JoinHandle<Result<Option<String>, std::io::Error>>> = Vec::new();
    for (seed, mailbox) in seeds.into_iter().zip(boxes) {
        let peers = senders.clone();
        let log = events.clone();
        let faults = faults.clone();
        let name = format!("volume-{}", seed.about.index);
        let spawned = std::thread::Builder::new()
            .name(name)
            .spawn(move || sprout(seed, &faults, mailbox, peers, log)?.run());
        threads.push(spawned.map_err(other)?);
    }
    let kind = blkback_proto::ctl::EventKind::DaemonStarted;
    events.publish(NewEvent::new(common.group.clone(), kind, "started", ""));
    notify::ready("serving");
    wait(shutdown, watch, &threads, &senders);
    notify::stopping("stopping");
    let result = join(threads);
    drop(server);
    if let Some(NbdListen::Unix(path)) = &common.nbd {
        // Gone already or not ours any more: both are fine.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn wait(
    shutdown: &Shutdown,
    mut watch: Watch,
    threads: &[JoinHandle<Result<Option<String>, std::io::Error>>],
    senders: &[MailSender<Mail>],
) {
    while !shutdown.wait_within(Duration::from_secs(1)) {
        notify::watchdog();
        watch.look(senders);
        if threads.iter().any(JoinHandle::is_finished) {
            break;
        }
    }
    for sender in senders {
        // A thread that has ended needs no telling.
        let _ = sender.send(Mail::Stop);
    }
}

fn join(
    threads: Vec<JoinHandle<Result<Option<String>, std::io::Error>>>,
) -> Result<(), StartError> {
    let mut result = Ok(());
    for thread in threads {
        match thread.join() {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(text))) => result = Err(StartError::new(ExitCode::StorageFailed, text)),
            Ok(Err(error)) => {
                let text = format!("an I/O thread failed: {}", words(&error));
                result = Err(StartError::new(ExitCode::Other, text));
            }
            Err(_) => {
                result = Err(StartError::new(ExitCode::Other, "an I/O thread panicked"));
            }
        }
    }
    result
}

/// Makes the thread's reactor, engine and group, on the thread itself.
fn sprout(
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
    let (engine, group) = sprout_engine(&mut mem, &seed.about, seed.kind);
    let mut thread = VolumeThread {
        about: seed.about,
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
        front_bytes: 0,
        meta_pool: Pool::new(4 * PAGE_BYTES, PAGE_BYTES)?,
        net: Net::new(seed.remote, link_listener),
        cut_waits: Vec::new(),
        pending_cuts: Vec::new(),
        promotes: Vec::new(),
        next_token: 1,
        latencies: Default::default(),
        rates: Default::default(),
        progress: Default::default(),
        since: Default::default(),
        stopping: None,
        meta_writing: false,
        meta_copy: None,
    };
    thread.accept_clients();
    Ok(thread)
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
        } => {
            let mut engine = BackupVolume::new(mem, settings, *recovered);
            if let Some(lineage) = resume {
                engine.resume_serving(lineage);
            }
            let group = group.map(|(meta, facts)| {
                Group::Backup(Box::new(BackupGroup::new(meta, &facts, unix_ns)))
            });
            (Engine::Backup(Box::new(engine)), group)
        }
    }
}
