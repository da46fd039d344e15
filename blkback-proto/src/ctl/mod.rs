//! The control protocol of every daemon: a small, versioned request protocol on a Unix socket.
//!
//! One SOCK_SEQPACKET packet is one frame: a fixed header of 16 bytes ([`frame`]) and a JSON body
//! of at most [`BODY_BYTES_MAX`] bytes. A socket answers for one group.
//!
//! ```text
//! client                                  server
//!   | Request 1  hello {min, max}  (v0) --> |
//!   | <-- Response 1  ok hello {version}    |   from here every frame carries that version
//!   | Request 2  status ------------------> |
//!   | <-- ResponsePart 2 … Response 2       |   an answer over one body comes in parts
//!   | Request 3  events {follow} ---------> |
//!   | <-- Response 3, then Event 3 …        |
//! ```
//!
//! Invariants:
//! - a request is idempotent: sent twice, it leaves the daemon as sent once;
//! - every request gets exactly one answer, if need be an error saying that there is none;
//! - versions outside [`VERSION_MIN`]`..=`[`VERSION_MAX`] are refused. Within a version,
//!   requests with unknown fields are refused (a daemon must not ignore what it was told), while
//!   unknown fields and words in answers and events are passed over (an old client still reads).
//!
//! Byte by byte: PROTOCOL.md §2.

mod answer;
mod event;
mod frame;
mod guest;
mod memory;
mod netbuf;
mod pages;
mod request;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod words;

pub use answer::{
    Answer, CutAnswer, ErrorReply, EventsAnswer, HelloAnswer, PrepareAnswer, PromoteAnswer,
    Reassembly, Response, UNSERVED, epochs_text, response_packets,
};
pub use event::{EVENT_DETAILS_MAX, EVENT_JSON_BYTES_MAX, Event, EventBody, Lost};
pub use frame::{
    ANSWER_BYTES_MAX, BODY_BYTES_MAX, Frame, FrameError, FrameKind, HANDSHAKE_VERSION,
    HEADER_BYTES, MAGIC, PACKET_BYTES_MAX, VERSION_MAX, VERSION_MIN, choose_version, decode,
    encode,
};
pub use guest::{
    EPOCH_FIGURES_MAX, EpochFigures, GIVEN_UP_BYTES_MAX, GuestAuthority, GuestClock, GuestDisks,
    GuestEpochs, GuestGivenUp, GuestHypervisor, GuestInterval, GuestOutput, GuestPromoteAnswer,
    GuestPromoteRequest, GuestRecord, GuestReport, GuestStandby, GuestStatusRequest,
    GuestStopAnswer, GuestStopRequest, GuestTimeline, GuestTimelineAnswer, GuestTimelineRequest,
    GuestTracker, MemoryLink, PromoteSteps, Spread, StepTimes, guest_socket_name,
};
pub use memory::{
    DriveAnswer, DriveRequest, MEMORY_WHOLE_MAX, MemoryAnswer, MemoryEpoch, MemoryJoinRequest,
    MemoryLeaveRequest, MemoryWaitRequest,
};
pub use netbuf::{
    NET_ADDRESSES_MAX, NET_DEVICE_BYTES_MAX, NET_GUEST_BYTES_MAX, NetAnnounceRequest,
    NetAttachRequest, NetDetachRequest, NetDone, NetEpochRequest, NetGuest, NetHoldRequest,
    NetInterface, NetLineageRequest, NetResyncRequest, NetStation, NetStatus, NetStatusRequest,
};
pub use pages::{
    PAGE_BYTES, PAGE_REGIONS_MAX, PAGE_RUNS_MAX, PageRegion, PagesArmAnswer, PagesArmRequest,
    PagesDisarmAnswer, PagesDisarmRequest, PagesTakeAnswer, PagesTakeRequest,
};
pub use request::{
    BodyError, CutRequest, EventsRequest, HelloRequest, PrepareRequest, PromoteRequest, Request,
    StatusRequest,
};
pub use status::{
    Bounds, CommitLatency, CutHold, DaemonStatus, DiskTime, Epochs, GroupStatus, GuestMemoryStatus,
    GuestStatus, JournalStatus, LineageEntry, LinkStatus, MemoryPart, OutputStatus, QueueBound,
    Rates, RefusedPeer, Stated, Status, SyncProgress, VolumeCounters, VolumeStatus,
};
pub use text::{TEXT_BYTES_MAX, one_line};
pub use words::{
    AckMode, ErrorCode, EventKind, GroupState, GuestProtection, GuestSide, GuestState,
    IntervalMode, LinkState, NetMechanism, NetState, OutputClass, Role, StatePath, TrackerKind,
    VolumeState,
};
