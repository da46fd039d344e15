//! What can be wrong with a disk spec, and how it is shown to the person who typed it.

use std::fmt;
use std::ops::Range;

use super::text::{quoted, visible};
use super::{IMAGE_PATH_BYTES_MAX, SPEC_BYTES_MAX};

/// A spec, or an address, that was refused: the text, the wrong part of it, and why.
///
/// `Display` is one line: what, where, the form expected. [`SpecError::caret`] draws it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.line())]
pub struct SpecError {
    pub(super) spec: String,
    pub(super) span: Range<usize>,
    pub(super) kind: SpecErrorKind,
}

/// The mistakes told apart. Texts held are parts of the spec as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecErrorKind {
    /// Nothing was given.
    Empty,
    /// More than [`SPEC_BYTES_MAX`] bytes.
    TooLong,
    /// A control character, such as a line break.
    Control(char),
    /// A blank at the start or at the end.
    EdgeBlank,
    /// `key=value` parts of an xl disk line.
    XlLine,
    /// `,xvda,w` after the image: for xl, not for us.
    XlTail,
    /// A driver nobody knows, and the known one it resembles.
    UnknownDriver {
        name: String,
        nearest: Option<&'static str>,
    },
    /// A driver of an image format other than raw.
    NotRaw(String),
    /// No host before the port.
    EmptyHost,
    /// An image right behind the address, without `|` between them.
    NoBar,
    /// Something that is neither a host name nor an address.
    BadHost,
    /// An IPv6 address without brackets.
    BareIpv6,
    /// Brackets around something else than an IPv6 address.
    BadIpv6,
    /// `[` without `]`, or the other way round.
    Bracket,
    /// A colon and no port after it, or something that is not a number.
    PortDigits,
    /// A port outside 1 to 65535.
    PortRange,
    /// The remote is there and the image is not.
    NoImage,
    /// An image path that does not begin at the root.
    RelativeImage,
    /// An image path that names a directory.
    Directory,
    /// An image path over [`IMAGE_PATH_BYTES_MAX`] bytes.
    PathTooLong,
    /// `remus:` behind an image.
    RemoteNotFirst,
    /// A second `|`, or a `|` between two images.
    ExtraPart,
}

const REMOTE_FORM: &str = "remus:HOST:PORT|aio:/PATH";
const IMAGE_FORM: &str = "aio:/PATH";

impl fmt::Display for SpecErrorKind {
    /// What is wrong, without place or remedy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing is given"),
            Self::TooLong => write!(f, "it is longer than {SPEC_BYTES_MAX} bytes"),
            Self::Control(c) => write!(f, "control character U+{:04X}", u32::from(*c)),
            Self::EdgeBlank => f.write_str("a blank stands at its edge"),
            Self::XlLine => f.write_str("this is a disk line of xl, not a disk spec"),
            Self::XlTail => f.write_str("this tail belongs to xl"),
            Self::UnknownDriver { name, nearest } => {
                let meant = nearest.unwrap_or("aio");
                write!(
                    f,
                    "unknown driver {} (did you mean {meant}:?)",
                    quoted(&format!("{name}:"))
                )
            }
            Self::NotRaw(name) => write!(f, "only raw images are served, not {name}"),
            Self::EmptyHost => f.write_str("the host is empty"),
            Self::NoBar => f.write_str("'|' has to stand between the address and the image"),
            Self::BadHost => f.write_str("this is no host name or address"),
            Self::BareIpv6 => f.write_str("an IPv6 address needs brackets"),
            Self::BadIpv6 => f.write_str("this is no IPv6 address"),
            Self::Bracket => f.write_str("the bracket has no partner"),
            Self::PortDigits => f.write_str("the port is not a number"),
            Self::PortRange => f.write_str("there is no such port"),
            Self::NoImage => f.write_str("the image is missing"),
            Self::RelativeImage => f.write_str("the image path is not absolute"),
            Self::Directory => f.write_str("the image path names a directory"),
            Self::PathTooLong => {
                write!(
                    f,
                    "the image path is longer than {IMAGE_PATH_BYTES_MAX} bytes"
                )
            }
            Self::RemoteNotFirst => f.write_str("remus: must come first"),
            Self::ExtraPart => f.write_str("this part is too much"),
        }
    }
}

impl SpecErrorKind {
    /// The form expected at the place of the mistake: what to type instead.
    pub fn form(&self) -> String {
        match self {
            Self::Empty | Self::TooLong => format!("{IMAGE_FORM} or {REMOTE_FORM}"),
            Self::Control(_) => "printable characters only".to_owned(),
            Self::EdgeBlank => "the spec without blanks around it".to_owned(),
            Self::XlLine => format!("only what stands after target=, as in {REMOTE_FORM}"),
            Self::XlTail => format!("the spec alone, as in {IMAGE_FORM}: leave that part to xl"),
            Self::UnknownDriver {
                nearest: Some("remus"),
                ..
            } => REMOTE_FORM.to_owned(),
            Self::UnknownDriver { .. } => IMAGE_FORM.to_owned(),
            Self::NotRaw(_) => {
                format!("{IMAGE_FORM} of a raw image ('qemu-img convert -O raw' makes one)")
            }
            Self::EmptyHost | Self::BadHost => {
                "HOST:PORT, as in 10.0.0.2:9000 or backup.example:9000".to_owned()
            }
            Self::BareIpv6 | Self::BadIpv6 | Self::Bracket => {
                "[ADDRESS]:PORT, as in [fd00::2]:9000".to_owned()
            }
            Self::PortDigits | Self::PortRange => "HOST:PORT with a port of 1 to 65535".to_owned(),
            Self::NoImage | Self::NoBar => REMOTE_FORM.to_owned(),
            Self::RelativeImage => "an absolute path, as in /srv/disk.img".to_owned(),
            Self::Directory => "the path of a file or block device".to_owned(),
            Self::PathTooLong => "a shorter path".to_owned(),
            Self::RemoteNotFirst => REMOTE_FORM.to_owned(),
            Self::ExtraPart => format!("one image: {IMAGE_FORM} or {REMOTE_FORM}"),
        }
    }
}

impl SpecError {
    /// Which mistake it is.
    pub fn kind(&self) -> &SpecErrorKind {
        &self.kind
    }

    /// The text that was refused, as typed.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// Byte range of the wrong part in [`SpecError::spec`]; empty where something is missing.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Place of the wrong part in characters, counted from 1, as an editor does.
    pub fn column(&self) -> usize {
        self.spec[..self.span.start].chars().count() + 1
    }

    fn line(&self) -> String {
        let form = self.kind.form();
        if self.spec.is_empty() {
            return format!("{}; expected {form}", self.kind);
        }
        let (spec, column) = (quoted(&self.spec), self.column());
        format!("{spec}, column {column}: {}; expected {form}", self.kind)
    }

    /// Two lines, without a line break at the end: the spec, and carets under the wrong part; what
    /// is expected stands in the line above them. A long spec is shown as a window around the wrong part.
    pub fn caret(&self) -> String {
        const WINDOW_CHARS: usize = 72;
        let chars: Vec<char> = self.spec.chars().map(visible).collect();
        let start = self.column() - 1;
        let wrong = self.spec[self.span.clone()].chars().count();
        let (first, last) = if chars.len() <= WINDOW_CHARS {
            (0, chars.len())
        } else {
            let first = start.saturating_sub(WINDOW_CHARS / 3);
            (first, chars.len().min(first + WINDOW_CHARS))
        };
        let head = if first > 0 { "…" } else { "" };
        let tail = if last < chars.len() { "…" } else { "" };
        let shown: String = chars[first..last].iter().collect();
        let indent = start - first + head.chars().count();
        let carets = wrong.min(last.saturating_sub(start)).max(1);
        format!(
            "{head}{shown}{tail}\n{}{}",
            " ".repeat(indent),
            "^".repeat(carets)
        )
    }
}
