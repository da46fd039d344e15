//! Requests to the netbuf daemon: what the guests of a host say is held, cut, released, opened.
//!
//! One daemon answers for many guests; each request names one. A blockrep daemon answers
//! [`ErrorCode::Unsupported`](super::ErrorCode::Unsupported) to all of them.

use serde::{Deserialize, Serialize};

use super::status::DaemonStatus;
use super::words::{NetMechanism, NetState};

/// Longest name of a guest.
pub const NET_GUEST_BYTES_MAX: usize = 64;
/// Longest name of a network device, without its zero byte (`IFNAMSIZ`).
pub const NET_DEVICE_BYTES_MAX: usize = 15;
/// Most addresses of one `net-announce`.
pub const NET_ADDRESSES_MAX: usize = 64;

/// Holds what comes in at an interface from now on, as the guest's state says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAttachRequest {
    /// 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit.
    pub guest: String,
    /// Name of the guest's network device on this host.
    pub interface: String,
    /// For the relay: the bridge it speaks to. Without it, the one the interface is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// Leaves an interface alone; what is held of it is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetDetachRequest {
    /// Of which guest.
    pub guest: String,
    /// Its device; the name it has now or the one it was attached by.
    pub interface: String,
}

/// Closes an epoch, or lets one go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetEpochRequest {
    /// Of which guest.
    pub guest: String,
    /// Number of the epoch.
    pub epoch: u64,
}

/// Nothing more leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetHoldRequest {
    /// Of which guest.
    pub guest: String,
    /// Why, in words, for status and events.
    #[serde(default)]
    pub reason: String,
}

/// Names a lineage: as the authority says it, or the one in whose name output is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLineageRequest {
    /// Of which guest.
    pub guest: String,
    /// 32 hexadecimal digits.
    pub lineage: String,
}

/// Counts anew from the end of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetResyncRequest {
    /// Of which guest.
    pub guest: String,
    /// The epoch at whose end the guest stands.
    pub epoch: u64,
    /// The guest runs no instruction, and does not until the answer.
    pub paused: bool,
    /// The highest epoch that the backup has whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<u64>,
}

/// Tells the network where the guest now is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAnnounceRequest {
    /// Of which guest.
    pub guest: String,
    /// One for each MAC address; at most [`NET_ADDRESSES_MAX`] of everything together.
    pub stations: Vec<NetStation>,
}

/// A MAC address of the guest and what is reached by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetStation {
    /// Its device on this host; it may be left out where the guest has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `02:00:00:aa:bb:cc`.
    pub mac: String,
    /// IPv4 and IPv6 addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// VLAN the guest tags for, 1 to 4094.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// Everything there is to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetStatusRequest {
    /// Of one guest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
}

/// Answer to every request about one guest but status: done, and how it stands after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDone {
    /// It was so already, and nothing was ordered.
    pub already: bool,
    /// State of the guest's output.
    pub state: NetState,
    /// The last epoch that was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_cut: Option<u64>,
    /// Epochs that are cut and not released.
    pub epochs_in_flight: u64,
    /// Frames held by all interfaces; absent where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_frames: Option<u64>,
    /// Their bytes, as the mechanism counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_bytes: Option<u64>,
    /// Dropped at the limit since the interfaces were attached.
    pub dropped_frames: u64,
    /// An interface holds more than three quarters of its limit.
    pub alarm: bool,
    /// Frames were dropped at the limit since the last answer to cut or release.
    pub limit_reached: bool,
    /// What else to know or to type, one line; empty if nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Answer to `net-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// Who answers.
    pub daemon: DaemonStatus,
    /// What holds frames on this host.
    pub mechanism: NetMechanism,
    /// Why that one.
    pub why: String,
    /// What each interface holds at most.
    pub limit_bytes: u64,
    /// What is done at the limit, in words.
    pub at_limit: String,
    /// By name.
    pub guests: Vec<NetGuest>,
}

/// Output of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetGuest {
    /// Its name.
    pub guest: String,
    /// What holds its frames.
    pub mechanism: NetMechanism,
    /// State of its output.
    pub state: NetState,
    /// Why, in words.
    pub reason: String,
    /// Since when, Unix time.
    pub since_unix_ms: u64,
    /// What leads on, in words.
    pub next: String,
    /// The last epoch that was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_cut: Option<u64>,
    /// Epochs that are cut and not released.
    pub epochs_in_flight: u64,
    /// How many there may be.
    pub epochs_in_flight_max: u64,
    /// Who writes the guest, as the authority named it last; 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// An interface holds more than three quarters of its limit.
    pub alarm: bool,
    /// Rounds of announcements that are still to be sent.
    #[serde(default)]
    pub announcements_left: u64,
    /// By index.
    pub interfaces: Vec<NetInterface>,
}

/// One network device of a guest. A counter that could not be read is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetInterface {
    /// Its name now.
    pub interface: String,
    /// The kernel's index.
    pub index: u32,
    /// The bridge its frames go to, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What holds its frames: the IFB, or the relay's end of the veth pair.
    pub by: String,
    /// Frames held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_frames: Option<u64>,
    /// Their bytes, as the mechanism counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_bytes: Option<u64>,
    /// Age of the oldest frame held; the plug does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_held_ms: Option<u64>,
    /// Dropped at the limit since it was attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_frames: Option<u64>,
    /// What it holds at most.
    pub limit_bytes: u64,
    /// It holds more than three quarters of that, and has not come below half of it since.
    pub alarm: bool,
    /// Why nothing of it passes, if its mechanism failed; one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

#[cfg(test)]
mod tests;
