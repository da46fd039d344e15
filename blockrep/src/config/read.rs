//! From settings to values: one function per kind of value, with its bounds.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use blkback_proto::diskspec::IMAGE_PATH_BYTES_MAX;
use blkback_proto::units::{
    exact_bytes, exact_duration, exact_rate, parse_bytes, parse_duration, parse_rate,
};
use blockrep_host::ctl::{control_path, control_path_of_backup};

use super::error::ConfigError;
use super::listen::{NbdListen, SOCKET_PATH_BYTES_MAX, is_socket_path};
use super::modes::ChoiceError;
use super::settings::{Key, Place, Program, Settings};
use super::{
    GROUP_NAME_BYTES_MAX, JOURNAL_BYTES_DEFAULT, JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN,
    THROTTLE_BYTES_PER_S_MAX, THROTTLE_BYTES_PER_S_MIN, journal_segment_bytes,
};

/// Refuses a value outside `range`, printing it and the bounds by `print`.
pub(super) fn within<T: PartialOrd + Copy>(
    place: &Place,
    value: T,
    range: &RangeInclusive<T>,
    print: impl Fn(T) -> String,
) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::OutOfRange {
        place: place.clone(),
        value: print(value),
        low: print(*range.start()),
        high: print(*range.end()),
    })
}

impl Settings {
    pub(super) fn word<T>(&self, key: Key) -> Result<Option<T>, ConfigError>
    where
        T: FromStr<Err = ChoiceError> + fmt::Display,
    {
        let Some(given) = self.one(key) else {
            return Ok(None);
        };
        let wrong = |source| ConfigError::Choice {
            place: given.place.clone(),
            source,
        };
        given.text.parse().map(Some).map_err(wrong)
    }

    pub(super) fn time(
        &self,
        key: Key,
        range: &RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, ConfigError> {
        let Some(given) = self.one(key) else {
            return Ok(None);
        };
        let time = parse_duration(&given.text).map_err(|source| ConfigError::Unit {
            place: given.place.clone(),
            source,
        })?;
        within(&given.place, time, range, exact_duration).map(Some)
    }

    pub(super) fn rate(&self, key: Key) -> Result<Option<u64>, ConfigError> {
        let Some(given) = self.one(key) else {
            return Ok(None);
        };
        let rate = parse_rate(&given.text).map_err(|source| ConfigError::Unit {
            place: given.place.clone(),
            source,
        })?;
        let range = THROTTLE_BYTES_PER_S_MIN..=THROTTLE_BYTES_PER_S_MAX;
        within(&given.place, rate, &range, exact_rate).map(Some)
    }

    pub(super) fn path(&self, key: Key) -> Result<Option<PathBuf>, ConfigError> {
        let Some(given) = self.one(key) else {
            return Ok(None);
        };
        let text = &given.text;
        let printable = !text.chars().any(char::is_control);
        if !text.starts_with('/') || !printable || text.len() > IMAGE_PATH_BYTES_MAX {
            return Err(ConfigError::Path {
                place: given.place.clone(),
                path: text.clone(),
            });
        }
        Ok(Some(PathBuf::from(text)))
    }

    pub(super) fn nbd(&self) -> Result<Option<NbdListen>, ConfigError> {
        let Some(given) = self.one(Key::Nbd) else {
            return Ok(None);
        };
        let wrong = |source| ConfigError::Nbd {
            place: given.place.clone(),
            source,
        };
        let listen = given.text.parse().map_err(wrong)?;
        if let NbdListen::Tcp(addr) = &listen {
            let loopback = addr.ip().to_canonical().is_loopback();
            if !loopback && !self.is_on(Key::InsecurePlaintext) {
                let (place, address) = (given.place.clone(), addr.to_string());
                return Err(ConfigError::Plaintext { place, address });
            }
        }
        Ok(Some(listen))
    }

    /// The socket of each volume.
    pub(super) fn vhost_user(&self, volumes: usize) -> Result<Vec<PathBuf>, ConfigError> {
        let Some(given) = self.one(Key::VhostUser) else {
            return Ok(Vec::new());
        };
        let wrong = || ConfigError::VhostUser {
            place: given.place.clone(),
            text: given.text.clone(),
        };
        let path = given.text.strip_prefix("unix:").ok_or_else(wrong)?;
        let named = |index: usize| match volumes {
            1 => path.to_owned(),
            _ => format!("{path}.{index}"),
        };
        (0..volumes)
            .map(|index| {
                let path = named(index);
                let fits = is_socket_path(&path);
                fits.then(|| PathBuf::from(path)).ok_or_else(wrong)
            })
            .collect()
    }

    pub(super) fn journal_bytes(&self) -> Result<u64, ConfigError> {
        let Some(given) = self.one(Key::JournalSize) else {
            return Ok(JOURNAL_BYTES_DEFAULT);
        };
        let place = || given.place.clone();
        let bytes = parse_bytes(&given.text).map_err(|source| ConfigError::Unit {
            place: place(),
            source,
        })?;
        let range = JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX;
        within(&given.place, bytes, &range, exact_bytes)?;
        let segment = journal_segment_bytes(bytes);
        if !bytes.is_multiple_of(segment) {
            return Err(ConfigError::UnevenJournal {
                place: place(),
                value: exact_bytes(bytes),
                segment: exact_bytes(segment),
                instead: exact_bytes(bytes.next_multiple_of(segment)),
            });
        }
        Ok(bytes)
    }

    /// The group's name: as given, else made of the file name of the first image.
    pub(super) fn group(&self, first_image: &Path) -> Result<String, ConfigError> {
        let Some(given) = self.one(Key::Group) else {
            return Ok(group_of(first_image));
        };
        let name = given.text.clone();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let head = name
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        let fits = name.len() <= GROUP_NAME_BYTES_MAX && !name.ends_with(BACKUP_ENDING);
        if !head || !name.bytes().all(plain) || !fits {
            let (place, max) = (given.place.clone(), GROUP_NAME_BYTES_MAX);
            return Err(ConfigError::GroupName { place, name, max });
        }
        Ok(name)
    }

    /// The control socket. Each daemon of a group has its own, so that both may run on one host.
    pub(super) fn control(&self, program: Program, group: &str) -> Result<PathBuf, ConfigError> {
        let (text, place) = match self.one(Key::Control) {
            Some(given) => (given.text.clone(), given.place.clone()),
            None => {
                let path = match program {
                    Program::Primary => control_path(group),
                    Program::Backup => control_path_of_backup(group),
                };
                let path = path.map_err(|error| ConfigError::GroupName {
                    place: self.place(Key::Group),
                    name: error.name,
                    max: GROUP_NAME_BYTES_MAX,
                })?;
                let text = path.display().to_string();
                (text, Place::Default(Key::Control))
            }
        };
        if !is_socket_path(&text) {
            let max = SOCKET_PATH_BYTES_MAX;
            return Err(ConfigError::SocketPath {
                place,
                path: text,
                max,
            });
        }
        Ok(PathBuf::from(text))
    }

    /// The state directory: as given, else `IMAGE.blockrep` beside the first image. Whether the
    /// image really is a file shows only when it is opened; here its path decides.
    pub(super) fn state(&self, first_image: &Path, group: &str) -> Result<PathBuf, ConfigError> {
        if let Some(path) = self.path(Key::State)? {
            return Ok(path);
        }
        if first_image.starts_with("/dev") {
            let (image, group) = (first_image.to_owned(), group.to_owned());
            return Err(ConfigError::StateNeeded { image, group });
        }
        let mut state = first_image.as_os_str().to_owned();
        state.push(".blockrep");
        Ok(PathBuf::from(state))
    }

    /// Where `key` was said, or that it is the default.
    pub(super) fn place(&self, key: Key) -> Place {
        self.one(key)
            .map_or(Place::Default(key), |given| given.place.clone())
    }
}

/// No group name ends so: the control socket of `x.backup` would be that of the backup of `x`.
const BACKUP_ENDING: &str = ".backup";

/// A group name from a file name: without its last extension, foreign characters as `-`.
fn group_of(image: &Path) -> String {
    let stem = image
        .file_stem()
        .map(|stem| stem.to_string_lossy())
        .unwrap_or_default();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' || c == '.' {
            c
        } else {
            '-'
        }
    };
    let name: String = stem.chars().map(plain).collect();
    let name = name.trim_start_matches(['-', '_', '.']);
    let name = &name[..name.len().min(GROUP_NAME_BYTES_MAX)];
    let name = name.trim_end_matches(BACKUP_ENDING);
    if name.is_empty() {
        "volume".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The name ends up in a path of a socket: nothing in it may lead out of its directory.
    #[test]
    fn group_names_are_made_of_image_names() {
        for (image, group) in [
            ("/srv/db.raw", "db"),
            ("/dev/vg0/vm-disk", "vm-disk"),
            ("/srv/my disk (1).img", "my-disk--1-"),
            ("/srv/..raw", "volume"),
            ("/srv/.hidden", "hidden"),
            ("/srv/ü", "volume"),
            ("/srv/db.backup.raw", "db"),
        ] {
            assert_eq!(group_of(Path::new(image)), group, "{image}");
        }
        let long = group_of(Path::new(&format!("/{}", "n".repeat(255))));
        assert_eq!(long.len(), GROUP_NAME_BYTES_MAX);
    }
}
