//! Answers, and how an answer longer than one body is split and put together.

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::frame::{ANSWER_BYTES_MAX, BODY_BYTES_MAX, Frame, FrameError, FrameKind, encode};
use super::guest::{GuestPromoteAnswer, GuestReport, GuestStopAnswer, GuestTimelineAnswer};
use super::memory::{DriveAnswer, MemoryAnswer};
use super::netbuf::{NetDone, NetStatus};
use super::pages::{PagesArmAnswer, PagesDisarmAnswer, PagesTakeAnswer};
use super::request::BodyError;
use super::status::{RefusedPeer, Status};
use super::text::one_line;
use super::words::ErrorCode;

/// What a request gets: `{"ok":{"cut":{…}}}` or `{"error":{"code":…,"message":…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// Done.
    Ok(Answer),
    /// Not done.
    Error(ErrorReply),
}

/// Payload of a request that was done, under the request's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To hello.
    Hello(HelloAnswer),
    /// To status.
    Status(Box<Status>),
    /// To events.
    Events(EventsAnswer),
    /// To prepare.
    Prepare(PrepareAnswer),
    /// To cut.
    Cut(CutAnswer),
    /// To promote.
    Promote(PromoteAnswer),
    /// To drive.
    Drive(DriveAnswer),
    /// To memory-join.
    MemoryJoin(MemoryAnswer),
    /// To memory-whole.
    MemoryWhole(MemoryAnswer),
    /// To memory-wait.
    MemoryWait(MemoryAnswer),
    /// To memory-leave.
    MemoryLeave(MemoryAnswer),
    /// To pages-arm.
    PagesArm(PagesArmAnswer),
    /// To pages-take.
    PagesTake(PagesTakeAnswer),
    /// To pages-disarm.
    PagesDisarm(PagesDisarmAnswer),
    /// To net-attach.
    NetAttach(NetDone),
    /// To net-detach.
    NetDetach(NetDone),
    /// To net-cut.
    NetCut(NetDone),
    /// To net-release.
    NetRelease(NetDone),
    /// To net-hold.
    NetHold(NetDone),
    /// To net-authority.
    NetAuthority(NetDone),
    /// To net-open.
    NetOpen(NetDone),
    /// To net-resync.
    NetResync(NetDone),
    /// To net-announce.
    NetAnnounce(NetDone),
    /// To net-status.
    NetStatus(Box<NetStatus>),
    /// To guest-status.
    GuestStatus(Box<GuestReport>),
    /// To guest-timeline.
    GuestTimeline(GuestTimelineAnswer),
    /// To guest-stop.
    GuestStop(GuestStopAnswer),
    /// To guest-promote.
    GuestPromote(GuestPromoteAnswer),
}

/// What the two sides speak from now on. Its three fields are frozen, others may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloAnswer {
    /// Version of every frame from here on.
    pub version: u16,
    /// Name and version of the daemon.
    pub daemon: String,
    /// Process id of the daemon.
    pub pid: u32,
}

/// A bounded batch of kept events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsAnswer {
    /// Random id of this run of the daemon: sequence numbers of another run mean nothing.
    pub log: String,
    /// Oldest first.
    pub events: Vec<Event>,
    /// Events between the one asked for and the oldest kept, gone for good.
    pub lost: u64,
    /// Ask from here next; a following stream begins here.
    pub next_seq: u64,
    /// Whether more are already waiting at `next_seq`.
    pub more: bool,
}

/// Completions are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareAnswer {
    /// The epoch that the next cut ends.
    pub epoch: u64,
}

/// The epoch has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutAnswer {
    /// The epoch that ended.
    pub epoch: u64,
    /// Whether it is already committed.
    pub committed: bool,
    /// The history that it is of, hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lineage: String,
}

/// The group serves here as primary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteAnswer {
    /// The epoch whose end is the state served.
    pub epoch: u64,
    /// When the old primary cut it, Unix time; 0 if nothing was ever written.
    pub cut_unix_ns: u64,
    /// Id of the new lineage, hex.
    pub lineage: String,
    /// Epochs that had begun to arrive and were not complete, or are damaged here.
    pub dropped_epochs: u64,
    /// The highest of them that is damaged here and may have been acknowledged: what was flushed in
    /// it is lost. Dropped on the operator's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged_epoch: Option<u64>,
    /// From the request to serving.
    pub duration_us: u64,
    /// Nobody can reach the disk: the daemon was given no address to serve it at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unserved: bool,
    /// A primary that was refused here not long before, and may be alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedPeer>,
    /// The primary that was connected when it was asked for: cut off by the promotion, not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<String>,
    /// When the last session with a primary had ended, Unix time; absent with `cut_off`, and where
    /// there was none since the start of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_lost_unix_ms: Option<u64>,
    /// When the daemon started, Unix time; only where it had no session with a primary since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_link_since_unix_ms: Option<u64>,
}

/// What to do about a promoted disk without an address.
pub const UNSERVED: &str =
    "nobody can reach the disk: start the daemon again with --nbd or --vhost-user";

impl PromoteAnswer {
    /// What of the stream is not in what is served.
    #[must_use]
    pub fn dropped_text(&self) -> String {
        if let Some(last) = self.damaged_epoch {
            let first = self.epoch + 1;
            let (one, it) = if last <= first {
                ("was", "it")
            } else {
                ("were", "them")
            };
            return format!(
                "{} {one} damaged in the journal and dropped: what was written and flushed in {it} is \
                 lost",
                epochs_text(first, last)
            );
        }
        match self.dropped_epochs {
            0 => "nothing was dropped".to_owned(),
            1 => "1 epoch that had not arrived whole dropped".to_owned(),
            count => format!("{count} epochs that had not arrived whole dropped"),
        }
    }
}

/// `epoch 7`, or `epochs 7 to 9`.
#[must_use]
pub fn epochs_text(first: u64, last: u64) -> String {
    if last <= first {
        format!("epoch {first}")
    } else {
        format!("epochs {first} to {last}")
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// For people, one line: what, where, what to type instead.
    pub message: String,
}

impl ErrorReply {
    /// An error whose message is made one bounded line.
    pub fn new(code: ErrorCode, message: impl AsRef<str>) -> Self {
        Self {
            code,
            message: one_line(message.as_ref()),
        }
    }
}

impl Response {
    /// Shorthand for an error.
    pub fn error(code: ErrorCode, message: impl AsRef<str>) -> Self {
        Self::Error(ErrorReply::new(code, message))
    }

    /// Reads a whole answer.
    ///
    /// # Errors
    /// [`BodyError`] if it is no answer of this version; unknown fields are passed over.
    pub fn from_body(body: &[u8]) -> Result<Self, BodyError> {
        serde_json::from_slice(body).map_err(|source| BodyError {
            what: "answer",
            source,
        })
    }
}

/// An answer as packets in the order to send: parts, then the response that ends it.
///
/// # Errors
/// [`FrameError::TooLarge`] beyond [`ANSWER_BYTES_MAX`].
pub fn response_packets(
    version: u16,
    request_id: u32,
    response: &Response,
) -> Result<Vec<Vec<u8>>, FrameError> {
    let body = serde_json::to_vec(response).expect("answers are plain data with text keys");
    check_answer_bytes(body.len())?;
    let count = body.len().div_ceil(BODY_BYTES_MAX);
    body.chunks(BODY_BYTES_MAX)
        .enumerate()
        .map(|(i, part)| {
            let kind = if i + 1 == count {
                FrameKind::Response
            } else {
                FrameKind::ResponsePart
            };
            encode(version, kind, request_id, part)
        })
        .collect()
}

fn check_answer_bytes(bytes: usize) -> Result<(), FrameError> {
    if bytes > ANSWER_BYTES_MAX {
        return Err(FrameError::TooLarge {
            what: "answer",
            bytes,
            limit: ANSWER_BYTES_MAX,
        });
    }
    Ok(())
}

/// Puts the parts of one answer together.
#[derive(Debug)]
pub struct Reassembly {
    request_id: u32,
    body: Vec<u8>,
}

impl Reassembly {
    /// Waits for the answer to this request.
    pub fn new(request_id: u32) -> Self {
        Self {
            request_id,
            body: Vec::new(),
        }
    }

    /// Takes a response frame; gives the whole body when it was the last one.
    ///
    /// # Errors
    /// [`FrameError::PartOrder`] for another request's answer, [`FrameError::TooLarge`] beyond
    /// [`ANSWER_BYTES_MAX`], [`FrameError::Kind`] for a frame that is no part of an answer.
    pub fn push(&mut self, frame: Frame<'_>) -> Result<Option<Vec<u8>>, FrameError> {
        if frame.request_id != self.request_id {
            return Err(FrameError::PartOrder {
                expected: self.request_id,
                found: frame.request_id,
            });
        }
        check_answer_bytes(self.body.len() + frame.body.len())?;
        match frame.kind {
            FrameKind::ResponsePart => {
                self.body.extend_from_slice(frame.body);
                Ok(None)
            }
            FrameKind::Response => {
                self.body.extend_from_slice(frame.body);
                Ok(Some(std::mem::take(&mut self.body)))
            }
            kind @ (FrameKind::Request | FrameKind::Event) => {
                Err(FrameError::Kind { found: kind as u16 })
            }
        }
    }
}
