//! What `blockrep` was told to do.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use blkback_proto::diskspec::{DiskSpec, Endpoint};
use blkback_proto::units::exact_duration;

use super::error::ConfigError;
use super::modes::{AckMode, EpochMode, LossPolicy, OutputClass};
use super::read::within;
use super::settings::{Key, Place, Program, Settings};
use super::{
    BACKPRESSURE_TIMEOUT_DEFAULT, BACKPRESSURE_TIMEOUT_MAX, Common, EPOCH_DEFAULT, EPOCH_MAX,
    EPOCH_MIN, LOSS_POLICY_DEFAULT, VOLUMES_MAX, line, list,
};

/// A volume of a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimaryVolume {
    /// Absolute path of its image.
    pub image: PathBuf,
    /// Its backup. Either every volume has one or none has: then the group is standalone.
    pub remote: Option<Endpoint>,
}

/// A checked configuration of a primary. `Display` is a configuration file that says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimaryConfig {
    /// What both daemons share.
    pub common: Common,
    /// 1 to [`VOLUMES_MAX`] volumes, in the order given.
    pub volumes: Vec<PrimaryVolume>,
    /// When epochs are cut; a timer within [`EPOCH_MIN`] and [`EPOCH_MAX`].
    pub epoch: EpochMode,
    /// The ack mode that was asked for; none: by output class, see [`PrimaryConfig::ack_for`].
    pub ack: Option<AckMode>,
    /// What happens when the backup is lost.
    pub on_backup_loss: LossPolicy,
    /// How long back-pressure may last before `on_backup_loss` acts; zero: at once.
    pub backpressure_timeout: Duration,
    /// Skip the first comparison: the operator knows that both images hold the same.
    pub assume_identical: bool,
}

impl PrimaryConfig {
    /// Checks settings as a whole.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let volumes = volumes(settings)?;
        let images: Vec<_> = volumes
            .iter()
            .map(|(v, place)| (v.image.as_path(), place))
            .collect();
        let common = Common::new(Program::Primary, settings, &images)?;
        let config = Self {
            common,
            volumes: volumes.into_iter().map(|(volume, _)| volume).collect(),
            epoch: epoch(settings)?,
            ack: settings.word(Key::Ack)?,
            on_backup_loss: settings
                .word(Key::OnBackupLoss)?
                .unwrap_or(LOSS_POLICY_DEFAULT),
            backpressure_timeout: settings
                .time(
                    Key::BackpressureTimeout,
                    &(Duration::ZERO..=BACKPRESSURE_TIMEOUT_MAX),
                )?
                .unwrap_or(BACKPRESSURE_TIMEOUT_DEFAULT),
            assume_identical: settings.is_on(Key::AssumeIdentical),
        };
        config.check_standalone(settings)?;
        Ok(config)
    }

    /// Whether no volume has a backup.
    pub fn is_standalone(&self) -> bool {
        self.volumes.iter().all(|volume| volume.remote.is_none())
    }

    /// The ack mode in force for a group of this output class.
    pub fn ack_for(&self, output: OutputClass) -> AckMode {
        self.ack.unwrap_or(output.default_ack())
    }

    /// A promise that nobody can keep is refused, not forgotten.
    fn check_standalone(&self, settings: &Settings) -> Result<(), ConfigError> {
        if !self.is_standalone() {
            return Ok(());
        }
        let local = |text: &str| text == AckMode::Local.name();
        let degrade = |text: &str| text == LossPolicy::Degrade.name();
        let ack = settings.one(Key::Ack).filter(|given| !local(&given.text));
        let loss = settings
            .one(Key::OnBackupLoss)
            .filter(|given| !degrade(&given.text));
        match ack.or(loss) {
            None => Ok(()),
            Some(given) => Err(ConfigError::NeedsBackup {
                place: given.place.clone(),
                value: given.text.clone(),
            }),
        }
    }
}

fn volumes(settings: &Settings) -> Result<Vec<(PrimaryVolume, Place)>, ConfigError> {
    let given = settings.all(Key::Disk);
    if given.is_empty() {
        return Err(ConfigError::NoDisk);
    }
    if given.len() > VOLUMES_MAX {
        return Err(ConfigError::TooManyVolumes {
            given: given.len(),
            max: VOLUMES_MAX,
        });
    }
    let mut volumes: Vec<(PrimaryVolume, Place)> = Vec::with_capacity(given.len());
    for given in given {
        let place = given.place.clone();
        let DiskSpec { remote, image } =
            DiskSpec::parse(&given.text).map_err(|source| ConfigError::Spec {
                place: place.clone(),
                source,
            })?;
        let twice = volumes.iter().any(|(other, _)| other.remote == remote);
        if let Some(remote) = remote.as_ref().filter(|_| twice) {
            return Err(ConfigError::DuplicateAddress {
                place,
                address: remote.to_string(),
            });
        }
        volumes.push((PrimaryVolume { image, remote }, place));
    }
    let with_backup = volumes.iter().any(|(volume, _)| volume.remote.is_some());
    match volumes
        .iter()
        .find(|(volume, _)| with_backup && volume.remote.is_none())
    {
        Some((volume, place)) => {
            let (place, image) = (place.clone(), volume.image.clone());
            Err(ConfigError::MixedRemotes { place, image })
        }
        None => Ok(volumes),
    }
}

fn epoch(settings: &Settings) -> Result<EpochMode, ConfigError> {
    let Some(given) = settings.one(Key::Epoch) else {
        return Ok(EpochMode::Every(EPOCH_DEFAULT));
    };
    let wrong = |source| ConfigError::Epoch {
        place: given.place.clone(),
        source,
    };
    let mode: EpochMode = given.text.parse().map_err(wrong)?;
    if let EpochMode::Every(period) = mode {
        within(
            &given.place,
            period,
            &(EPOCH_MIN..=EPOCH_MAX),
            exact_duration,
        )?;
    }
    Ok(mode)
}

impl fmt::Display for PrimaryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = |v: &PrimaryVolume| {
            DiskSpec {
                remote: v.remote.clone(),
                image: v.image.clone(),
            }
            .to_string()
        };
        list(f, Key::Disk, self.volumes.iter().map(spec))?;
        self.common.print(f, false)?;
        line(f, Key::Epoch, self.epoch)?;
        match self.ack {
            Some(ack) => line(f, Key::Ack, ack)?,
            None => {
                let (open, held) = (OutputClass::Open, OutputClass::Held);
                let (name, open, held) = (Key::Ack.name(), open.default_ack(), held.default_ack());
                let when = "while a checkpointer holds the guest's output";
                writeln!(f, "# {name}: not given, so {open}, and {held} {when}")?;
            }
        }
        line(f, Key::OnBackupLoss, self.on_backup_loss)?;
        line(
            f,
            Key::BackpressureTimeout,
            exact_duration(self.backpressure_timeout),
        )?;
        writeln!(
            f,
            "{} = {}",
            Key::AssumeIdentical.name(),
            self.assume_identical
        )
    }
}
