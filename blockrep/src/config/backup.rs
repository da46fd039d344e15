//! What `blockrep-backup` was told to do.

use std::fmt;
use std::path::PathBuf;

use blkback_proto::diskspec::DiskSpec;
use blkback_proto::units::exact_rate;

use super::error::ConfigError;
use super::listen::{ListenAddr, NbdListen, addrs_clash};
use super::settings::{Given, Key, Place, Program, Settings};
use super::{Common, VOLUMES_MAX, line, list};

/// A volume of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupVolume {
    /// Absolute path of its image.
    pub image: PathBuf,
    /// Where its primary connects to.
    pub listen: ListenAddr,
}

/// A checked configuration of a backup. `Display` is a configuration file that says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupConfig {
    /// What both daemons share.
    pub common: Common,
    /// 1 to [`VOLUMES_MAX`] volumes, in the order given; no two on one address.
    pub volumes: Vec<BackupVolume>,
    /// Most bytes per second written to each image from its journal; none: no limit.
    pub throttle_apply: Option<u64>,
    /// Most bytes per second received for each volume; none: no limit.
    pub throttle_link: Option<u64>,
}

impl BackupConfig {
    /// Checks settings as a whole.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn new(settings: &Settings) -> Result<Self, ConfigError> {
        let volumes = volumes(settings)?;
        let images: Vec<_> = volumes
            .iter()
            .map(|v| (v.volume.image.as_path(), &v.image))
            .collect();
        let common = Common::new(Program::Backup, settings, &images)?;
        check_listeners(&volumes, &common, settings)?;
        Ok(Self {
            common,
            volumes: volumes.into_iter().map(|v| v.volume).collect(),
            throttle_apply: settings.rate(Key::ThrottleApply)?,
            throttle_link: settings.rate(Key::ThrottleLink)?,
        })
    }
}

/// A volume, and where its image and its address were said.
struct Said {
    volume: BackupVolume,
    image: Place,
    listen: Place,
}

fn volumes(settings: &Settings) -> Result<Vec<Said>, ConfigError> {
    let disks = settings.all(Key::Disk);
    let (images, listeners) = (settings.all(Key::Image), settings.all(Key::Listen));
    let count = disks.len().max(images.len());
    if count > VOLUMES_MAX {
        return Err(ConfigError::TooManyVolumes {
            given: count,
            max: VOLUMES_MAX,
        });
    }
    if !disks.is_empty() {
        if let Some(other) = images.first().or(listeners.first()) {
            return Err(ConfigError::TwoWaysToNameVolumes {
                place: other.place.clone(),
            });
        }
        return disks.iter().map(from_spec).collect();
    }
    if images.is_empty() {
        return Err(ConfigError::NoImage);
    }
    if images.len() != listeners.len() {
        let (images, listeners) = (images.len(), listeners.len());
        return Err(ConfigError::UnpairedListeners { images, listeners });
    }
    images
        .iter()
        .zip(listeners)
        .map(|(image, listen)| from_pair(image, listen))
        .collect()
}

/// The address of a spec is always the backup's: here it is where to listen.
fn from_spec(given: &Given) -> Result<Said, ConfigError> {
    let place = given.place.clone();
    let DiskSpec { remote, image } =
        DiskSpec::parse(&given.text).map_err(|source| ConfigError::Spec {
            place: place.clone(),
            source,
        })?;
    let Some(remote) = remote else {
        return Err(ConfigError::NoListenAddress { place, image });
    };
    let volume = BackupVolume {
        image,
        listen: ListenAddr::from(remote),
    };
    Ok(Said {
        volume,
        image: place.clone(),
        listen: place,
    })
}

fn from_pair(image: &Given, listen: &Given) -> Result<Said, ConfigError> {
    let wrong = |given: &Given, source| ConfigError::Spec {
        place: given.place.clone(),
        source,
    };
    let disk = DiskSpec::parse(&image.text).map_err(|source| wrong(image, source))?;
    if disk.remote.is_some() {
        return Err(ConfigError::ImageWithRemote {
            place: image.place.clone(),
        });
    }
    let address = listen
        .text
        .parse()
        .map_err(|source| wrong(listen, source))?;
    let volume = BackupVolume {
        image: disk.image,
        listen: address,
    };
    Ok(Said {
        volume,
        image: image.place.clone(),
        listen: listen.place.clone(),
    })
}

/// No address twice, and none that other hosts reach unless that is meant.
fn check_listeners(
    volumes: &[Said],
    common: &Common,
    settings: &Settings,
) -> Result<(), ConfigError> {
    for (at, said) in volumes.iter().enumerate() {
        let listen = &said.volume.listen;
        let address = || listen.to_string();
        let place = || said.listen.clone();
        if !listen.is_loopback() && !common.insecure_plaintext {
            return Err(ConfigError::Plaintext {
                place: place(),
                address: address(),
            });
        }
        if volumes[..at]
            .iter()
            .any(|other| other.volume.listen.clashes_with(listen))
        {
            return Err(ConfigError::DuplicateAddress {
                place: place(),
                address: address(),
            });
        }
        if let (Some(NbdListen::Tcp(nbd)), ListenAddr::Addr(addr)) = (&common.nbd, listen)
            && addrs_clash(*nbd, *addr)
        {
            let (place, address) = (settings.place(Key::Nbd), nbd.to_string());
            return Err(ConfigError::DuplicateAddress { place, address });
        }
    }
    Ok(())
}

impl fmt::Display for BackupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(
            f,
            Key::Listen,
            self.volumes.iter().map(|v| v.listen.to_string()),
        )?;
        list(
            f,
            Key::Image,
            self.volumes.iter().map(|v| v.image.display().to_string()),
        )?;
        self.common.print(f, true)?;
        for (key, rate) in [
            (Key::ThrottleApply, self.throttle_apply),
            (Key::ThrottleLink, self.throttle_link),
        ] {
            if let Some(rate) = rate {
                line(f, key, exact_rate(rate))?;
            }
        }
        Ok(())
    }
}
