//! What a daemon was told to do: flags over file over defaults, checked as a whole.
//!
//! ```text
//! flags ─┐
//!        ├─ Settings::over ─► Settings ─► PrimaryConfig::new / BackupConfig::new ─► daemon
//! file ──┘                                        └─► ConfigError: one line, exit code 2
//! ```
//!
//! Invariants: a configuration that is built is consistent in itself; nothing was opened, bound
//! or looked up for it. Pure: the one function that reads the file is in [`crate::cli`].

mod backup;
mod error;
mod file;
mod listen;
mod modes;
mod primary;
mod read;
mod settings;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blkback_proto::meta;
use blkback_proto::segment::{
    SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_COUNT_MAX, SEGMENT_COUNT_MIN,
};

pub use backup::{BackupConfig, BackupVolume};
pub use error::ConfigError;
pub use file::CONFIG_FILE_BYTES_MAX;
pub use listen::{ListenAddr, NbdListen, NbdListenError, SOCKET_PATH_BYTES_MAX};
pub use modes::{
    AckMode, ChoiceError, EpochMode, EpochModeError, LogLevel, LossPolicy, OutputClass,
};
pub use primary::{PrimaryConfig, PrimaryVolume};
pub use settings::{Given, Key, Place, Program, Settings, Takes};

/// Most volumes in a group.
pub const VOLUMES_MAX: usize = 16;
/// Longest group name, in bytes.
pub const GROUP_NAME_BYTES_MAX: usize = 63;

/// Length of an epoch that was not given.
pub const EPOCH_DEFAULT: Duration = Duration::from_millis(25);
/// Shortest epoch.
pub const EPOCH_MIN: Duration = Duration::from_millis(1);
/// Longest epoch.
pub const EPOCH_MAX: Duration = Duration::from_secs(10);

/// How long back-pressure may last before the loss policy acts.
pub const BACKPRESSURE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest time it may be given; the shortest is none at all.
pub const BACKPRESSURE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Size of a volume's journal that was not given, in bytes.
pub const JOURNAL_BYTES_DEFAULT: u64 = 1 << 30;
/// Smallest journal, in bytes. A writer keeps the share of its front ends free; a journal that
/// is not clearly larger has no room for the write that would let it move on.
pub const JOURNAL_BYTES_MIN: u64 = 32 << 20;
/// Largest journal, in bytes.
pub const JOURNAL_BYTES_MAX: u64 = SEGMENT_BYTES_MAX * JOURNAL_SEGMENTS_MAX;
/// Most segments a journal is cut into; beyond it they grow.
const JOURNAL_SEGMENTS_MAX: u64 = 1024;

const _: () = {
    assert!(JOURNAL_SEGMENTS_MAX <= SEGMENT_COUNT_MAX as u64);
    assert!(JOURNAL_BYTES_MIN >= SEGMENT_BYTES_MIN * SEGMENT_COUNT_MIN as u64);
    assert!(GROUP_NAME_BYTES_MAX <= meta::NAME_BYTES_MAX);
    assert!(VOLUMES_MAX <= meta::VOLUMES_MAX as usize);
};

/// Size of the segments of a journal of `journal_bytes`: the smallest power of two that the
/// format allows and that needs no more than 1024 of them.
///
/// Within [`JOURNAL_BYTES_MIN`] and [`JOURNAL_BYTES_MAX`] the result is within the format's
/// bounds, and so is the number of segments. A journal must be a whole number of them.
pub const fn journal_segment_bytes(journal_bytes: u64) -> u64 {
    let wanted = journal_bytes
        .div_ceil(JOURNAL_SEGMENTS_MAX)
        .next_power_of_two();
    if wanted < SEGMENT_BYTES_MIN {
        SEGMENT_BYTES_MIN
    } else {
        wanted
    }
}

/// Slowest throttle: one record header per second.
pub const THROTTLE_BYTES_PER_S_MIN: u64 = 4 << 10;
/// Fastest throttle; beyond it a limit limits nothing.
pub const THROTTLE_BYTES_PER_S_MAX: u64 = 1 << 40;

/// Loss policy that was not given.
pub const LOSS_POLICY_DEFAULT: LossPolicy = LossPolicy::Degrade;
/// Log level that was not given.
pub const LOG_DEFAULT: LogLevel = LogLevel::Info;

/// What both daemons share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// Name of the group, fit for a file name; at most [`GROUP_NAME_BYTES_MAX`] bytes.
    pub group: String,
    /// Where NBD clients are served; none: nowhere.
    pub nbd: Option<NbdListen>,
    /// Sockets for VMMs that speak vhost-user, one a volume; none: nowhere.
    pub vhost_user: Vec<PathBuf>,
    /// Path of the control socket.
    pub control: PathBuf,
    /// Directory of the metadata.
    pub state: PathBuf,
    /// Directory of the journals.
    pub journal: PathBuf,
    /// Size of each volume's journal in bytes, a whole number of segments of
    /// [`journal_segment_bytes`].
    pub journal_bytes: u64,
    /// The operator said that the images are those of the state directory, whatever files they are.
    pub same_image: bool,
    /// The operator said that listening beyond loopback without encryption is meant.
    pub insecure_plaintext: bool,
    /// Least important line logged.
    pub log: LogLevel,
}

impl Common {
    fn new(
        program: Program,
        settings: &Settings,
        images: &[(&Path, &Place)],
    ) -> Result<Self, ConfigError> {
        for (at, (image, place)) in images.iter().enumerate() {
            if images[..at].iter().any(|(other, _)| other == image) {
                let image = image.to_path_buf();
                return Err(ConfigError::DuplicateImage {
                    place: (*place).clone(),
                    image,
                });
            }
        }
        let (first_image, _) = images[0];
        let group = settings.group(first_image)?;
        let state = settings.state(first_image, &group)?;
        let journal = settings
            .path(Key::Journal)?
            .unwrap_or_else(|| state.join("journal"));
        let common = Self {
            nbd: settings.nbd()?,
            vhost_user: settings.vhost_user(images.len())?,
            control: settings.control(program, &group)?,
            journal_bytes: settings.journal_bytes()?,
            same_image: settings.is_on(Key::SameImage),
            insecure_plaintext: settings.is_on(Key::InsecurePlaintext),
            log: settings.word(Key::Log)?.unwrap_or(LOG_DEFAULT),
            group,
            state,
            journal,
        };
        common.check_paths(settings, images)?;
        Ok(common)
    }

    /// No path may stand for two things.
    fn check_paths(
        &self,
        settings: &Settings,
        images: &[(&Path, &Place)],
    ) -> Result<(), ConfigError> {
        let mut taken: Vec<(&Path, &'static str)> = images
            .iter()
            .map(|(image, _)| (*image, "an image"))
            .collect();
        let nbd = match &self.nbd {
            Some(NbdListen::Unix(path)) => Some((path.as_path(), Key::Nbd, "the NBD socket")),
            _ => None,
        };
        let own = [
            (self.state.as_path(), Key::State, "the state directory"),
            (
                self.journal.as_path(),
                Key::Journal,
                "the journal directory",
            ),
            (self.control.as_path(), Key::Control, "the control socket"),
        ];
        let vhost = self.vhost_user.iter().map(|path| {
            let what = "a vhost-user socket";
            (path.as_path(), Key::VhostUser, what)
        });
        for (path, key, what) in own.into_iter().chain(nbd).chain(vhost) {
            if let Some((_, other)) = taken.iter().find(|(other, _)| *other == path) {
                let (place, path) = (settings.place(key), path.to_owned());
                return Err(ConfigError::PathTaken { place, path, other });
            }
            taken.push((path, what));
        }
        Ok(())
    }

    /// The lines of a configuration file that says the same.
    fn print(&self, f: &mut fmt::Formatter<'_>, with_journal: bool) -> fmt::Result {
        line(f, Key::Group, &self.group)?;
        if let Some(nbd) = &self.nbd {
            line(f, Key::Nbd, nbd)?;
        }
        if let Some(first) = self.vhost_user.first() {
            let text = first.display().to_string();
            let several = self.vhost_user.len() > 1;
            let path = text.strip_suffix(".0").filter(|_| several).unwrap_or(&text);
            line(f, Key::VhostUser, format_args!("unix:{path}"))?;
        }
        line(f, Key::Control, self.control.display())?;
        line(f, Key::State, self.state.display())?;
        if with_journal {
            line(f, Key::Journal, self.journal.display())?;
        }
        line(
            f,
            Key::JournalSize,
            blkback_proto::units::exact_bytes(self.journal_bytes),
        )?;
        for (key, on) in [
            (Key::SameImage, self.same_image),
            (Key::InsecurePlaintext, self.insecure_plaintext),
        ] {
            writeln!(f, "{} = {on}", key.name())?;
        }
        line(f, Key::Log, self.log)
    }
}

/// `key = "value"` as TOML; values hold no control characters, so two escapes are enough.
fn line(f: &mut fmt::Formatter<'_>, key: Key, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{} = {}", key.name(), string(value))
}

/// `key = ["a", "b"]` as TOML.
fn list(f: &mut fmt::Formatter<'_>, key: Key, values: impl Iterator<Item = String>) -> fmt::Result {
    let values: Vec<String> = values.map(string).collect();
    writeln!(f, "{} = [{}]", key.name(), values.join(", "))
}

fn string(value: impl fmt::Display) -> String {
    format!(
        "\"{}\"",
        value.to_string().replace('\\', "\\\\").replace('"', "\\\"")
    )
}
