//! Requests. Each is idempotent; fields that are not known are refused.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::frame::{FrameError, FrameKind, HANDSHAKE_VERSION, encode};
use super::guest::{
    GuestPromoteRequest, GuestStatusRequest, GuestStopRequest, GuestTimelineRequest,
};
use super::memory::{
    DriveRequest, MemoryEpoch, MemoryJoinRequest, MemoryLeaveRequest, MemoryWaitRequest,
};
use super::netbuf::{
    NetAnnounceRequest, NetAttachRequest, NetDetachRequest, NetEpochRequest, NetHoldRequest,
    NetLineageRequest, NetResyncRequest, NetStatusRequest,
};
use super::pages::{PagesArmRequest, PagesDisarmRequest, PagesTakeRequest};
use super::text::one_line;

/// Everything a client may ask, as it stands in the body: `{"cut":{"epoch":7}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// First request of a connection, in a frame of [`HANDSHAKE_VERSION`].
    Hello(HelloRequest),
    /// Everything there is to know about the group.
    Status(StatusRequest),
    /// Events kept so far, and on wish those to come.
    Events(EventsRequest),
    /// First half of a cut: hold completions.
    Prepare(PrepareRequest),
    /// Ends the open epoch.
    Cut(CutRequest),
    /// Makes a backup the primary.
    Promote(PromoteRequest),
    /// Makes the client the one who cuts epochs.
    Drive(DriveRequest),
    /// Makes the guest's memory a member of a backup's group.
    MemoryJoin(MemoryJoinRequest),
    /// The memory of an epoch is whole.
    MemoryWhole(MemoryEpoch),
    /// Waits for a commit.
    MemoryWait(MemoryWaitRequest),
    /// Memory is no member any more.
    MemoryLeave(MemoryLeaveRequest),
    /// Begins a record of the guest pages that the daemon writes.
    PagesArm(PagesArmRequest),
    /// Reads a turn of that record.
    PagesTake(PagesTakeRequest),
    /// Ends the record.
    PagesDisarm(PagesDisarmRequest),
    /// Holds the output of an interface as its guest's state says.
    NetAttach(NetAttachRequest),
    /// Leaves an interface alone.
    NetDetach(NetDetachRequest),
    /// Closes the output of an epoch.
    NetCut(NetEpochRequest),
    /// Lets the output of an epoch go.
    NetRelease(NetEpochRequest),
    /// Nothing more leaves.
    NetHold(NetHoldRequest),
    /// Who writes the guest, from the client of the authority.
    NetAuthority(NetLineageRequest),
    /// Everything leaves.
    NetOpen(NetLineageRequest),
    /// Counts anew.
    NetResync(NetResyncRequest),
    /// Tells the network where the guest now is.
    NetAnnounce(NetAnnounceRequest),
    /// Everything there is to know about held output.
    NetStatus(NetStatusRequest),
    /// Everything there is to know about a guest with its memory.
    GuestStatus(GuestStatusRequest),
    /// The last checkpoints one by one.
    GuestTimeline(GuestTimelineRequest),
    /// Ends the protection of the guest, in order.
    GuestStop(GuestStopRequest),
    /// Lets the guest go on at its standby.
    GuestPromote(GuestPromoteRequest),
}

/// Who the client is and which versions it speaks. Its three fields are frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HelloRequest {
    /// Name and version of the program, for the daemon's log.
    pub client: String,
    /// Oldest version spoken.
    pub min: u16,
    /// Newest version spoken.
    pub max: u16,
}

/// No parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {}

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsRequest {
    /// First event wanted; 0 is the oldest kept.
    #[serde(default)]
    pub from_seq: u64,
    /// Whether event frames follow the answer, from its `next_seq` on.
    #[serde(default)]
    pub follow: bool,
}

/// First half of a cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareRequest {
    /// The epoch that the cut is to end; without it, the open one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

/// Ends the open epoch now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutRequest {
    /// The epoch to end; answered alike when it has already ended. Without it, the open one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Answer when the epoch is committed instead of when it is cut.
    #[serde(default)]
    pub wait_durable: bool,
    /// Leave a seal in every journal, also where nothing was written: memory goes with this epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub seal: bool,
    /// How long the daemon waits for that; 0 is the daemon's own limit.
    #[serde(default)]
    pub timeout_ms: u64,
}

/// Makes a backup the primary, at the newest epoch that is complete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Also beside a living link.
    #[serde(default)]
    pub force: bool,
    /// Also where the last acknowledged epoch may be damaged.
    #[serde(default)]
    pub accept_suspect: bool,
    /// By the holder of the guest's memory, which goes on from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_memory: bool,
    /// Without the guest's memory, where there is one: the guest boots as after a power cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_only: bool,
    /// Written into the lineage and the events.
    #[serde(default)]
    pub reason: String,
}

/// A body that is not what its frame says.
#[derive(Debug, Error)]
#[error("{what} is not understood: {}", one_line(&.source.to_string()))]
pub struct BodyError {
    /// What was being read.
    pub what: &'static str,
    /// Where the JSON is wrong.
    pub source: serde_json::Error,
}

impl Request {
    /// Name of the request, as it stands in the body.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Status(_) => "status",
            Self::Events(_) => "events",
            Self::Prepare(_) => "prepare",
            Self::Cut(_) => "cut",
            Self::Promote(_) => "promote",
            Self::Drive(_) => "drive",
            Self::MemoryJoin(_) => "memory-join",
            Self::MemoryWhole(_) => "memory-whole",
            Self::MemoryWait(_) => "memory-wait",
            Self::MemoryLeave(_) => "memory-leave",
            Self::PagesArm(_) => "pages-arm",
            Self::PagesTake(_) => "pages-take",
            Self::PagesDisarm(_) => "pages-disarm",
            Self::NetAttach(_) => "net-attach",
            Self::NetDetach(_) => "net-detach",
            Self::NetCut(_) => "net-cut",
            Self::NetRelease(_) => "net-release",
            Self::NetHold(_) => "net-hold",
            Self::NetAuthority(_) => "net-authority",
            Self::NetOpen(_) => "net-open",
            Self::NetResync(_) => "net-resync",
            Self::NetAnnounce(_) => "net-announce",
            Self::NetStatus(_) => "net-status",
            Self::GuestStatus(_) => "guest-status",
            Self::GuestTimeline(_) => "guest-timeline",
            Self::GuestStop(_) => "guest-stop",
            Self::GuestPromote(_) => "guest-promote",
        }
    }

    /// Whether it is for the netbuf daemon.
    pub fn is_for_netbuf(&self) -> bool {
        self.name().starts_with("net-")
    }

    /// Whether it is for a checkpointer.
    pub fn is_for_checkpointer(&self) -> bool {
        self.name().starts_with("guest-")
    }

    /// The request as a packet; `version` is what the handshake agreed.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] for texts beyond the body limit.
    pub fn to_packet(&self, version: u16, request_id: u32) -> Result<Vec<u8>, FrameError> {
        let version = if matches!(self, Self::Hello(_)) {
            HANDSHAKE_VERSION
        } else {
            version
        };
        let body = serde_json::to_vec(self).expect("requests are plain data with text keys");
        encode(version, FrameKind::Request, request_id, &body)
    }

    /// Reads the body of a request frame.
    ///
    /// # Errors
    /// [`BodyError`] for anything that is not exactly one known request.
    pub fn from_body(body: &[u8]) -> Result<Self, BodyError> {
        serde_json::from_slice(body).map_err(|source| BodyError {
            what: "request",
            source,
        })
    }
}
