//! The disk specs people type, shared by every tool.
//!
//! ```text
//! SPEC    := [ALIAS] [REMOTE '|'] IMAGE
//! ALIAS   := 'tap:' | 'tap2:' | 'tapdisk:' | 'tap:tapdisk:' | 'tap2:tapdisk:'      no meaning
//! REMOTE  := 'remus:' HOST [':' PORT]                     HOST is always the backup's address
//! IMAGE   := ['aio:' | 'file:' | 'phy:'] '/' PATH         a raw file or a block device
//! HOST    := name | IPv4 | '[' IPv6 ']'
//! ```
//!
//! The same string serves both hosts: the primary connects to HOST:PORT, the backup listens
//! there. A `|` parts a spec wherever it stands, so an image path cannot hold one.
//!
//! Pure: nothing is looked up, neither the host nor the file.

mod endpoint;
mod error;
pub mod text;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use endpoint::Endpoint;
pub use error::{SpecError, SpecErrorKind};

/// TCP port of the link when a spec names none.
pub const DEFAULT_LINK_PORT: u16 = 9000;

/// Longest spec read, in bytes.
pub const SPEC_BYTES_MAX: usize = 8192;

/// Longest image path, in bytes: `PATH_MAX` without its terminating NUL.
pub const IMAGE_PATH_BYTES_MAX: usize = 4095;

/// Drivers of a raw image; they all mean the same.
const IMAGE_DRIVERS: [&str; 3] = ["aio", "file", "phy"];
/// Words that may begin a spec: a mistyped first word is compared with these.
const FIRST_WORDS: [&str; 7] = ["aio", "file", "phy", "remus", "tap", "tap2", "tapdisk"];
/// Drivers of formats that are not raw.
const FORMAT_DRIVERS: [&str; 9] = [
    "vhd", "vhdx", "qcow", "qcow2", "qed", "vmdk", "vdi", "luks", "iso",
];

/// A disk: its image here, and the backup where there is one.
///
/// `Display` prints the canonical form, which parses to an equal value: `aio:/img` or
/// `remus:HOST:PORT|aio:/img`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSpec {
    /// The backup's address; none for a disk without a backup.
    pub remote: Option<Endpoint>,
    /// Absolute path of the image file or block device, as typed.
    pub image: PathBuf,
}

impl DiskSpec {
    /// Reads a spec.
    ///
    /// # Errors
    /// The first mistake, with the place of the wrong part.
    pub fn parse(spec: &str) -> Result<Self, SpecError> {
        let whole = Part::checked(spec)?;
        let mut parts = whole.split_bars();
        if let Some(value_at) = xl_line(spec) {
            return Err(whole.first(value_at).wrong(SpecErrorKind::XlLine));
        }
        parts[0] = parts[0]
            .without("tap:")
            .or(parts[0].without("tap2:"))
            .unwrap_or(parts[0]);
        parts[0] = parts[0].without("tapdisk:").unwrap_or(parts[0]);
        if let Some(remote) = parts[0].without("remus:") {
            if let Some(image) = image_without_bar(remote) {
                return Err(image.wrong(SpecErrorKind::NoBar));
            }
            let remote = Endpoint::read(remote)?;
            let Some(image) = parts.get(1) else {
                return Err(whole.from(spec.len()).wrong(SpecErrorKind::NoImage));
            };
            let image = image_path(*image, &IMAGE_DRIVERS)?;
            if let Some(extra) = parts.get(2) {
                return Err(whole.from(extra.at).wrong(SpecErrorKind::ExtraPart));
            }
            return Ok(Self {
                remote: Some(remote),
                image,
            });
        }
        if let Some(remote) = remote_behind(parts[0]) {
            return Err(remote.wrong(SpecErrorKind::RemoteNotFirst));
        }
        let image = image_path(parts[0], &FIRST_WORDS)?;
        match parts.get(1) {
            None => Ok(Self {
                remote: None,
                image,
            }),
            Some(second) if second.text.starts_with("remus:") => {
                Err(second.wrong(SpecErrorKind::RemoteNotFirst))
            }
            Some(second) => Err(whole.from(second.at).wrong(SpecErrorKind::ExtraPart)),
        }
    }
}

/// A piece of a spec that knows where it stands.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    whole: &'a str,
    /// Byte offset of `text` in `whole`.
    at: usize,
    text: &'a str,
}

impl<'a> Part<'a> {
    /// The whole of `spec`, after the checks that concern every character of it.
    fn checked(spec: &'a str) -> Result<Self, SpecError> {
        let whole = Self {
            whole: spec,
            at: 0,
            text: spec,
        };
        if spec.is_empty() {
            return Err(whole.wrong(SpecErrorKind::Empty));
        }
        if spec.len() > SPEC_BYTES_MAX {
            return Err(whole.wrong(SpecErrorKind::TooLong));
        }
        if let Some((at, c)) = spec.char_indices().find(|(_, c)| c.is_control()) {
            return Err(whole
                .sub(at, at + c.len_utf8())
                .wrong(SpecErrorKind::Control(c)));
        }
        let trimmed = spec.trim_start();
        if trimmed.len() < spec.len() {
            return Err(whole
                .first(spec.len() - trimmed.len())
                .wrong(SpecErrorKind::EdgeBlank));
        }
        let trimmed = spec.trim_end();
        if trimmed.len() < spec.len() {
            return Err(whole.from(trimmed.len()).wrong(SpecErrorKind::EdgeBlank));
        }
        Ok(whole)
    }

    fn sub(self, from: usize, to: usize) -> Self {
        Self {
            whole: self.whole,
            at: self.at + from,
            text: &self.text[from..to],
        }
    }

    fn from(self, from: usize) -> Self {
        self.sub(from, self.text.len())
    }

    fn first(self, len: usize) -> Self {
        self.sub(0, len)
    }

    fn without(self, prefix: &str) -> Option<Self> {
        self.text
            .starts_with(prefix)
            .then(|| self.from(prefix.len()))
    }

    /// Cut at each `|`, at most three parts: the third holds all the rest.
    fn split_bars(self) -> Vec<Self> {
        let mut at = 0;
        self.text
            .splitn(3, '|')
            .map(|text| {
                let part = self.sub(at, at + text.len());
                at += text.len() + 1;
                part
            })
            .collect()
    }

    fn wrong(self, kind: SpecErrorKind) -> SpecError {
        let span = self.at..self.at + self.text.len();
        SpecError {
            spec: self.whole.to_owned(),
            span,
            kind,
        }
    }
}

/// In `HOST:PORT,aio:/PATH` and the like, the part from the wrong separator on: no address has a
/// slash, so an image is meant.
fn image_without_bar(remote: Part<'_>) -> Option<Part<'_>> {
    let address = &remote.text[..remote.text.find('/')?];
    let address = IMAGE_DRIVERS
        .iter()
        .find_map(|driver| address.strip_suffix(&format!("{driver}:")))
        .unwrap_or(address);
    let address = address.trim_end_matches([',', ';', ' ', ':']);
    Some(remote.from(address.len()))
}

/// In `aio:/PATH,remus:HOST:PORT` and the like, the part from the wrong separator on. A path that
/// merely holds the word has a slash in front of it.
fn remote_behind(image: Part<'_>) -> Option<Part<'_>> {
    let at = image.text.find("remus:")?;
    let path = image.text[..at].trim_end_matches([',', ';', ' ']);
    (path.len() < at).then(|| image.from(path.len()))
}

/// Reads `[DRIVER:]/PATH`; a driver that is not one is compared with `words`.
fn image_path(part: Part<'_>, words: &[&'static str]) -> Result<PathBuf, SpecError> {
    if part.text.is_empty() {
        return Err(part.wrong(SpecErrorKind::NoImage));
    }
    let path = match driver(part.text) {
        None => part,
        Some(name) if IMAGE_DRIVERS.contains(&name) => part.from(name.len() + 1),
        Some("remus") => return Err(part.wrong(SpecErrorKind::RemoteNotFirst)),
        Some(name) => {
            let named = part.first(name.len() + 1);
            let lower = name.to_ascii_lowercase();
            if FORMAT_DRIVERS.contains(&lower.as_str()) {
                return Err(named.wrong(SpecErrorKind::NotRaw(lower)));
            }
            // `tap:tap:` is a right word in a wrong place: no help to name it again.
            let nearest = text::nearest(&lower, words.iter().copied()).filter(|near| *near != name);
            let name = name.to_owned();
            return Err(named.wrong(SpecErrorKind::UnknownDriver { name, nearest }));
        }
    };
    if path.text.is_empty() {
        return Err(path.wrong(SpecErrorKind::NoImage));
    }
    if !path.text.starts_with('/') {
        return Err(path.wrong(SpecErrorKind::RelativeImage));
    }
    if let Some(tail) = xl_tail(path.text) {
        return Err(path.from(tail).wrong(SpecErrorKind::XlTail));
    }
    if path.text.len() > IMAGE_PATH_BYTES_MAX {
        return Err(path.wrong(SpecErrorKind::PathTooLong));
    }
    if matches!(path.text.rsplit('/').next(), Some("" | "." | "..")) {
        return Err(path.wrong(SpecErrorKind::Directory));
    }
    Ok(PathBuf::from(path.text))
}

/// The word before the first colon, when it looks like a driver: it begins with a letter and
/// holds no slash.
fn driver(text: &str) -> Option<&str> {
    let (name, _) = text.split_once(':')?;
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'+';
    let word = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(inner);
    word.then_some(name)
}

/// For `format=raw,...,target=SPEC`, the length of the part in front of SPEC.
fn xl_line(spec: &str) -> Option<usize> {
    const KEYS: [&str; 8] = [
        "target",
        "format",
        "vdev",
        "access",
        "backendtype",
        "backend",
        "script",
        "devtype",
    ];
    let (key, _) = spec.split_once('=')?;
    if !KEYS.contains(&key) {
        return None;
    }
    Some(
        spec.find("target=")
            .map_or(spec.len(), |at| at + "target=".len()),
    )
}

/// Byte offset of the comma that begins `,xvda,w` or the like. Other commas belong to the path.
fn xl_tail(path: &str) -> Option<usize> {
    let is_xl = |field: &str| {
        let vdev = ["xvd", "hd", "sd", "vd", "ioemu:"]
            .iter()
            .filter_map(|prefix| field.strip_prefix(prefix))
            .any(|rest| !rest.is_empty() && rest.len() <= 16 && !rest.contains(['.', '/']));
        let word = matches!(
            field,
            "r" | "w" | "ro" | "rw" | "w!" | "!" | "raw" | "cdrom"
        );
        let key = [
            "format=",
            "vdev=",
            "access=",
            "backendtype=",
            "script=",
            "discard",
            "target=",
        ]
        .iter()
        .any(|key| field.starts_with(key));
        vdev || word || key
    };
    let commas = path.match_indices(',').map(|(at, _)| at);
    commas
        .into_iter()
        .find(|&at| path[at + 1..].split(',').next().is_some_and(is_xl))
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(remote) = &self.remote {
            write!(f, "remus:{remote}|")?;
        }
        write!(f, "aio:{}", self.image.display())
    }
}

impl FromStr for DiskSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        Self::parse(spec)
    }
}

impl TryFrom<String> for DiskSpec {
    type Error = SpecError;

    fn try_from(spec: String) -> Result<Self, SpecError> {
        Self::parse(&spec)
    }
}

impl From<DiskSpec> for String {
    fn from(spec: DiskSpec) -> Self {
        spec.to_string()
    }
}
