//! What can be wrong with a configuration: one line each, saying where, what, and what to type.

use std::path::PathBuf;
use std::sync::Arc;

use blkback_proto::diskspec::SpecError;
use blkback_proto::diskspec::text::quoted;
use blkback_proto::units::UnitError;

use super::listen::NbdListenError;
use super::modes::{ChoiceError, EpochModeError};
use super::settings::Place;

/// What to write instead, by what the parser says.
fn syntax_hint(what: &str) -> &'static str {
    if what.starts_with("duplicate key") {
        "leave one of the two out"
    } else if what.contains("must be quoted") {
        "put the value in quotes, or give true or false where a switch is meant"
    } else if what.contains("array") {
        "a list is KEY = [\"A\", \"B\"]"
    } else {
        "give lines of the form KEY = \"VALUE\""
    }
}

/// A configuration that was refused. Every one ends a daemon before it has touched anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is no TOML.
    #[error("{path}:{line}: {what}; {}", syntax_hint(what))]
    Syntax {
        path: Arc<str>,
        line: usize,
        what: String,
    },
    /// A key nobody knows.
    #[error("{path}:{line}: unknown key {}; {}", quoted(key), key_hint(*nearest))]
    UnknownKey {
        path: Arc<str>,
        line: usize,
        key: String,
        nearest: Option<&'static str>,
    },
    /// A key of the other daemon.
    #[error("{path}:{line}: key '{key}' is not one of {program}; take it out")]
    OtherDaemon {
        path: Arc<str>,
        line: usize,
        key: &'static str,
        program: &'static str,
    },
    /// A list where a text belongs, and so on.
    #[error("{place} is of the wrong kind; give {expected}")]
    WrongKind {
        place: Place,
        expected: &'static str,
    },

    /// A wrong disk spec or address; [`SpecError::caret`] draws it.
    #[error("{place}: {source}")]
    Spec { place: Place, source: SpecError },
    /// A wrong time, byte count or rate.
    #[error("{place}: {source}")]
    Unit { place: Place, source: UnitError },
    /// A word that is none of the choices.
    #[error("{place}: {source}")]
    Choice { place: Place, source: ChoiceError },
    /// Neither a time nor `manual`.
    #[error("{place}: {source}")]
    Epoch {
        place: Place,
        source: EpochModeError,
    },
    /// No address for NBD.
    #[error("{place}: {source}")]
    Nbd {
        place: Place,
        source: NbdListenError,
    },
    /// No socket for vhost-user.
    #[error(
        "{place}: {} is no socket for vhost-user; give unix:/PATH of at most {} bytes",
        quoted(text),
        super::SOCKET_PATH_BYTES_MAX
    )]
    VhostUser { place: Place, text: String },
    /// A value beyond its bounds.
    #[error("{place}: {value} is out of range; give {low} to {high}")]
    OutOfRange {
        place: Place,
        value: String,
        low: String,
        high: String,
    },
    /// A journal that does not divide into segments.
    #[error("{place}: {value} is no multiple of the segment size {segment}; give {instead}")]
    UnevenJournal {
        place: Place,
        value: String,
        segment: String,
        instead: String,
    },
    /// A path that is relative, unprintable or too long.
    #[error(
        "{place}: {} is no absolute path in printable characters; give one such as /var/lib/blockrep",
        quoted(path)
    )]
    Path { place: Place, path: String },
    /// A path no socket can be bound at.
    #[error(
        "{place}: {} is no absolute path for a socket; give --control /PATH of at most {max} bytes",
        quoted(path)
    )]
    SocketPath {
        place: Place,
        path: String,
        max: usize,
    },
    /// A group name that is no file name.
    #[error(
        "{place}: {} is no group name; give up to {max} letters, digits, '.', '_' or '-', \
         beginning with a letter or digit and not ending in .backup",
        quoted(name)
    )]
    GroupName {
        place: Place,
        name: String,
        max: usize,
    },

    /// A primary without a disk.
    #[error("no disk is given; give -n 'remus:HOST:PORT|aio:/PATH'")]
    NoDisk,
    /// A backup without an image.
    #[error(
        "no image is given; give -n 'remus:HOST:PORT|aio:/PATH', or --listen HOST:PORT with \
         --image /PATH"
    )]
    NoImage,
    /// A backup that does not know where to listen.
    #[error("{place}: the spec names no address to listen on; give 'remus:HOST:PORT|aio:{}'",
        image.display())]
    NoListenAddress { place: Place, image: PathBuf },
    /// An address where a path belongs.
    #[error("{place}: an address does not belong here; give --image /PATH, or the spec with -n")]
    ImageWithRemote { place: Place },
    /// Some volumes with a backup and some without.
    #[error("{place}: volume {} has no backup while others have; give \
        'remus:HOST:PORT|aio:{}'", image.display(), image.display())]
    MixedRemotes { place: Place, image: PathBuf },
    /// More volumes than a group holds.
    #[error("{given} volumes are given; give at most {max} to a daemon")]
    TooManyVolumes { given: usize, max: usize },
    /// `-n` beside `--listen` or `--image`.
    #[error("{place}: volumes are named by -n already; give either -n, or --listen and --image")]
    TwoWaysToNameVolumes { place: Place },
    /// Not one listener per image.
    #[error(
        "{images} --image and {listeners} --listen do not pair up; give one --listen HOST:PORT \
         per --image, in the same order"
    )]
    UnpairedListeners { images: usize, listeners: usize },
    /// Two volumes of one image.
    #[error("{place}: image {} is given twice; give each volume an image of its own",
        image.display())]
    DuplicateImage { place: Place, image: PathBuf },
    /// Two volumes, or a volume and NBD, on one address.
    #[error("{place}: {address} is given twice; give each volume a port of its own")]
    DuplicateAddress { place: Place, address: String },
    /// One path for two things.
    #[error("{place}: {} is already {other}; give another path", path.display())]
    PathTaken {
        place: Place,
        path: PathBuf,
        other: &'static str,
    },
    /// A device has no place beside it.
    #[error(
        "--state is needed, because {} is a device with no place beside it; \
         give --state /var/lib/blockrep/{group}",
        image.display()
    )]
    StateNeeded { image: PathBuf, group: String },
    /// A listener others can reach, without encryption.
    #[error(
        "{place}: {address} can be reached from other hosts and is not encrypted; \
         say --insecure-plaintext, or listen on 127.0.0.1"
    )]
    Plaintext { place: Place, address: String },
    /// A setting that means nothing without a backup.
    #[error(
        "{place}: '{value}' needs a backup and no volume has one; \
         give -n 'remus:HOST:PORT|aio:/PATH', or leave it out"
    )]
    NeedsBackup { place: Place, value: String },
}

fn key_hint(nearest: Option<&str>) -> String {
    match nearest {
        Some(key) => format!("did you mean {key}?"),
        None => "the keys are the long flags of --help".to_owned(),
    }
}
