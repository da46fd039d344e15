//! From a configuration to running threads, and back to an exit code.
//!
//! Runs on the main thread, in the order in which it has to happen: signals, images, locks and
//! addresses, metadata, recovery, and only then threads. Nothing serves before everything was found
//! good; what is wrong is one line and an exit code, and leaves nothing behind.
//!
//! ```text
//!  configuration ─► images ─► claims ─► state ─► seeds ─► run ─► one thread per volume
//! ```

mod claims;
mod damage;
mod fresh;
mod images;
mod in_order;
mod making;
mod run;
mod seed;
mod state;

pub(super) use seed::lone_group;

use crate::cli::ExitCode;
use crate::config::{self, BackupConfig, Common, EpochMode, OutputClass, PrimaryConfig};
use crate::daemon::faults::Faults;
use crate::daemon::files::{FileError, Layout, words};
use crate::daemon::image_mark::Claim;
use crate::daemon::listen::{BoundLink, tell_address};
use crate::daemon::vhost::Mapping;
use crate::daemon::watch::Watch;
use crate::daemon::{EXTENT_BYTES, EXTENTS_MAX, FRONT_BYTES_MAX, WINDOW_BYTES_MAX};
use crate::engine::backup::{BackupSettings, SWITCH_EXTENTS};
use crate::engine::primary::PrimarySettings;
use crate::frontend::nbd::ExportInfo;
use crate::frontend::virtio_blk::inflight::TABLE_WORDS;
use crate::group::backup::MemberFacts;
use crate::group::primary::GroupSettings;
use crate::journal::ring::Geometry;
use crate::journal::start::is_first_start;
use blockrep_host::lock::FileLock;
use blockrep_host::logging;
use blockrep_host::signals::Shutdown;
use fresh::Fresh;
use images::{Images, exports, open_images, open_meta, open_store, tell_buffered};
use run::run;
use seed::{Kind, Seed, about, memory_bounds};
use state::{backup_state, primary_state};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

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

fn group_settings(config: &PrimaryConfig, exports: &[ExportInfo]) -> GroupSettings {
    GroupSettings {
        epoch_ns: match config.epoch {
            EpochMode::Every(length) => Some(nanos(length)),
            EpochMode::Manual => None,
        },
        loss: config.on_backup_loss,
        volume_names: exports.iter().map(|e| e.name().to_owned()).collect(),
    }
}

/// Runs a primary until it is told to stop.
///
/// # Errors
/// [`StartError`] when it does not get so far, or its storage failed while it ran.
pub fn run_primary(config: &PrimaryConfig) -> Result<(), StartError> {
    let faults = begin(&config.common)?;
    let shutdown = install_signals()?;
    let layout = layout(&config.common);
    let images: Vec<&Path> = config.volumes.iter().map(|v| v.image.as_path()).collect();
    let opened = open_images(&images)?;
    let mut claims = claims::take(&config.common, &layout, &images, &[])?;
    let known = Images::new(&images, &opened, config.common.same_image);
    let name = &config.common.group;
    let (meta, identities) = primary_state(&layout, name, known, &mut claims.fresh)?;
    if config.assume_identical && !is_first_start(&meta) {
        tracing::warn!("--assume-identical counts at the first start only: images are compared");
    }
    let output = OutputClass::Open;
    let settings = PrimarySettings {
        ack: config.ack_for(output),
        reserve_bytes: FRONT_BYTES_MAX,
        assume_identical: config.assume_identical && is_first_start(&meta),
        pressure_ns_max: nanos(config.backpressure_timeout),
    };
    let exports = exports(&images, &opened)?;
    let group = group_settings(config, &exports);
    if let Some(nbd) = &claims.nbd {
        tell_address("NBD address tcp:", nbd);
    }
    let mut seeds = Vec::new();
    let volumes = config.volumes.iter().zip(opened).zip(identities);
    for (index, ((volume, image), identity)) in volumes.enumerate() {
        tell_buffered("image", &volume.image, &image);
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
            nbd_listener: claims.nbd.take(),
            link_listener: None,
            remote: volume.remote.clone(),
            exports: exports.clone(),
            vhost_listener: claims.vhost.pop_front(),
            inflight: inflight_table(&config.common, &layout, index, &mut claims.fresh)?,
            claim: None,
            locks: descriptors(&claims.locks)?,
            kind: Kind::Primary {
                identity,
                meta: meta.clone(),
                group: (index == 0).then(|| group.clone()),
                reason,
            },
        });
    }
    run(
        &config.common,
        "blockrep",
        claims,
        seeds,
        &faults,
        Watch::new(&images),
        &shutdown,
    )
}

/// The table of what a guest has in flight, where one is served by vhost-user.
fn inflight_table(
    common: &Common,
    layout: &Layout,
    index: usize,
    fresh: &mut Fresh,
) -> Result<Option<Mapping>, StartError> {
    if common.vhost_user.is_empty() {
        return Ok(None);
    }
    let path = layout.inflight(index);
    fresh.file(&path);
    let mapping = Mapping::open(&path, TABLE_WORDS).map_err(|error| {
        let text = format!("cannot map {}: {}", path.display(), words(&error));
        StartError::new(ExitCode::Store, text)
    })?;
    Ok(Some(mapping))
}

/// Runs a backup until it is told to stop.
///
/// # Errors
/// [`StartError`] when it does not get so far, or its storage failed while it ran.
pub fn run_backup(config: &BackupConfig) -> Result<(), StartError> {
    let faults = begin(&config.common)?;
    let shutdown = install_signals()?;
    let layout = layout(&config.common);
    let images: Vec<&Path> = config.volumes.iter().map(|v| v.image.as_path()).collect();
    let opened = open_images(&images)?;
    let links: Vec<_> = config.volumes.iter().map(|v| &v.listen).collect();
    let mut claims = claims::take(&config.common, &layout, &images, &links)?;
    let known = Images::new(&images, &opened, config.common.same_image);
    let name = &config.common.group;
    let (meta, recovered) = backup_state(&layout, name, known, &mut claims.fresh)?;
    let facts: Vec<MemberFacts> = recovered.iter().map(|(start, _)| start.facts).collect();
    let marks = recovered.iter().filter_map(|(_, claim)| claim.as_ref());
    let mut warning = marks.filter_map(Claim::former).next().map(str::to_owned);
    let settings = PrimarySettings {
        ack: config::AckMode::Flush,
        reserve_bytes: FRONT_BYTES_MAX,
        assume_identical: false,
        pressure_ns_max: nanos(config::BACKPRESSURE_TIMEOUT_DEFAULT),
    };
    let exports = exports(&images, &opened)?;
    if let Some(nbd) = &claims.nbd {
        tell_address("NBD address tcp:", nbd);
    }
    if claims.nbd.is_none() {
        tracing::warn!("no --nbd: after a promotion nobody could reach the disk");
    }
    let mut seeds = Vec::new();
    let links = std::mem::take(&mut claims.links);
    let links = links.into_iter().map(BoundLink::listen);
    let links = links.collect::<Result<Vec<_>, _>>()?;
    let volumes = config.volumes.iter().zip(opened).zip(recovered).zip(links);
    for (index, (((volume, image), (recovered, claim)), link)) in volumes.enumerate() {
        tell_buffered("image", &volume.image, &image);
        let mut segments = Vec::new();
        for file in 0..layout.geometry.segment_count {
            segments.push(open_store(&layout.segment(index, file))?);
        }
        if let Some(first) = segments.first() {
            tell_buffered("journal", &layout.journal_dir(index), first);
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
            nbd_listener: claims.nbd.take(),
            link_listener: Some(link),
            remote: None,
            exports: exports.clone(),
            vhost_listener: claims.vhost.pop_front(),
            inflight: inflight_table(&config.common, &layout, index, &mut claims.fresh)?,
            claim,
            locks: descriptors(&claims.locks)?,
            kind: Kind::Backup {
                warning: (index == 0).then(|| warning.take()).flatten(),
                resume: recovered.resume,
                recovered: Box::new(recovered.recovered),
                settings: BackupSettings {
                    name: config.common.group.clone(),
                    geometry: layout.geometry,
                    extents_max: EXTENTS_MAX,
                    apply_rate: config.throttle_apply,
                    window_bytes: WINDOW_BYTES_MAX,
                    switch_extents: SWITCH_EXTENTS,
                },
                group: (index == 0).then(|| (meta.clone(), facts.clone())),
            },
        });
    }
    run(
        &config.common,
        "blockrep-backup",
        claims,
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
