//! The record of a guest.

use blkback_proto::ctl::{GuestRecord, NET_GUEST_BYTES_MAX};
use blkback_proto::ids::LineageId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of a host.
pub const HOST_BYTES_MAX: usize = 64;
/// Longest note, in bytes.
const NOTE_BYTES_MAX: usize = 1000;
/// A primary and its backup.
const IN_SYNC_MAX: usize = 2;

/// Who may run a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its name.
    pub guest: String,
    /// Counts the changes, from 1.
    pub generation: u64,
    /// Who writes the guest.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub lineage: LineageId,
    /// Host whose guest it is.
    pub primary: String,
    /// Hosts that it could go on at, by name; the primary is one of them.
    pub in_sync: Vec<String>,
    /// Why it was changed last, for people.
    pub note: String,
    /// When, Unix time by the clock of the host that changed it; for people only.
    pub unix_ms: u64,
}

impl Record {
    /// Whether this host may let the guest speak without asking anybody.
    #[must_use]
    pub fn is_alone(&self, host: &str) -> bool {
        self.primary == host && self.in_sync == [host]
    }

    /// The other host that the guest could go on at.
    #[must_use]
    pub fn backup(&self) -> Option<&str> {
        let mut others = self.in_sync.iter().filter(|host| **host != self.primary);
        others.next().map(String::as_str)
    }

    /// As it stands in a status.
    #[must_use]
    pub fn told(&self) -> GuestRecord {
        GuestRecord {
            generation: self.generation,
            lineage: hex(&self.lineage),
            primary: self.primary.clone(),
            in_sync: self.in_sync.clone(),
            note: self.note.clone(),
            unix_ms: self.unix_ms,
        }
    }

    /// What is wrong with a record that came from outside.
    ///
    /// # Errors
    /// In words, one line.
    pub fn check(&self, guest: &str) -> Result<(), String> {
        let sorted = self.in_sync.windows(2).all(|pair| pair[0] < pair[1]);
        let hosts = self.in_sync.iter().chain([&self.primary]);
        if let Some(host) = hosts.into_iter().find(|host| !is_host_name(host)) {
            return Err(format!("\"{}\" is no name of a host", host.escape_debug()));
        }
        let wrong = if self.guest != guest {
            format!("it is of the guest \"{}\"", self.guest.escape_debug())
        } else if self.generation == 0 {
            "its generation is 0".to_owned()
        } else if self.lineage.is_none() {
            "its lineage is nobody's".to_owned()
        } else if self.in_sync.len() > IN_SYNC_MAX || !sorted {
            "in_sync is not a list of one or two hosts by name".to_owned()
        } else if !self.in_sync.contains(&self.primary) {
            format!("its primary {} is not in in_sync", self.primary)
        } else if self.note.len() > NOTE_BYTES_MAX {
            format!("its note is longer than {NOTE_BYTES_MAX} bytes")
        } else {
            return Ok(());
        };
        Err(wrong)
    }
}

/// Whether a name can be one of a host: 1 to [`HOST_BYTES_MAX`] letters, digits, `-`, `_` or `.`, beginning with a
/// letter or digit.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= HOST_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
}

const _: () = assert!(HOST_BYTES_MAX == NET_GUEST_BYTES_MAX);

/// 32 digits, as lineages stand in every message.
pub(super) fn hex(lineage: &LineageId) -> String {
    lineage.to_string().replace('-', "")
}

fn to_hex<S: Serializer>(lineage: &LineageId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(lineage))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LineageId, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}
