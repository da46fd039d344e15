//! Exit codes of both daemons.

use std::process::{ExitCode as ProcessCode, Termination};

/// How a daemon ended. The numbers are part of the interface: scripts and cluster agents decide
/// by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Ended as asked.
    Ok = 0,
    /// Anything that has no number of its own.
    Other = 1,
    /// Wrong flags or configuration; nothing was touched.
    Usage = 2,
    /// Image, journal or state unusable: missing, of a wrong size, of another volume, damaged.
    Store = 3,
    /// Somebody else uses it: image, journal, state directory, address or socket.
    InUse = 4,
    /// The peer refused: another group, version, lineage or size, or a second primary or backup.
    Refused = 5,
    /// Image or journal failed while running.
    StorageFailed = 6,
    /// Not promotable as it is; an operator's word is needed.
    NotPromotable = 7,
}

impl ExitCode {
    /// Every code with its line in `--help`.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Ok, "ended as asked"),
        (Self::Other, "anything else"),
        (
            Self::Usage,
            "wrong flags or configuration; nothing was touched",
        ),
        (
            Self::Store,
            "image, journal or state unusable (missing, wrong size, of another volume)",
        ),
        (
            Self::InUse,
            "image, journal, state directory, address or socket in use",
        ),
        (Self::Refused, "refused by the peer"),
        (Self::StorageFailed, "image or journal failed while running"),
        (
            Self::NotPromotable,
            "not promotable, or an operator's word is needed",
        ),
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The table for `--help` and the man pages.
    pub(super) fn help() -> String {
        let line = |(code, text): &(Self, &str)| format!("  {}  {text}", code.code());
        let lines: Vec<String> = Self::ALL.iter().map(line).collect();
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

impl From<ExitCode> for ProcessCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

impl Termination for ExitCode {
    fn report(self) -> ProcessCode {
        self.into()
    }
}
