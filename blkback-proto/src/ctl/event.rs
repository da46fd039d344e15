//! Events: every change of protection, numbered, with its reason and what comes next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::frame::{FrameError, FrameKind, encode};
use super::request::BodyError;
use super::text::bounded_line;
use super::words::EventKind;

/// Longest JSON of one event after [`Event::bound`].
pub const EVENT_JSON_BYTES_MAX: usize = 4096;

/// Most details of one event after [`Event::bound`].
pub const EVENT_DETAILS_MAX: usize = 16;

/// Bytes each text keeps when an event has to be shortened. Quotes and backslashes double in
/// JSON, and eight such texts with their field names stay under [`EVENT_JSON_BYTES_MAX`].
const SHORT_TEXT_BYTES: usize = 200;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Number within this run of the daemon, from 1, without gaps.
    pub seq: u64,
    /// When, Unix time.
    pub unix_ms: u64,
    /// Name of the group.
    pub group: String,
    /// What it is about.
    pub kind: EventKind,
    /// State before, where the event is a change of state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_state: Option<String>,
    /// State after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_state: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// What will happen, or what to do, in words.
    pub next: String,
    /// Anything else, for programs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
}

/// Body of an event frame: `{"event":{…}}` or `{"lost":{…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventBody {
    /// The next event.
    Event(Event),
    /// The reader was too slow: these events are gone.
    Lost(Lost),
}

/// A gap in a stream of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// How many are gone.
    pub count: u64,
    /// Number of the event that comes next.
    pub next_seq: u64,
}

impl Event {
    /// Makes the texts single lines and the whole at most [`EVENT_JSON_BYTES_MAX`] bytes of JSON
    /// with at most [`EVENT_DETAILS_MAX`] details. What is given up: details beyond the limit, then
    /// all of them, then the length of texts. A detail with the key `shortened` tells of it.
    pub fn bound(&mut self) {
        self.limit_texts(super::TEXT_BYTES_MAX);
        if self.detail.len() > EVENT_DETAILS_MAX {
            while self.detail.len() >= EVENT_DETAILS_MAX {
                self.detail.pop_last();
            }
            self.mark_shortened();
        }
        if self.json_bytes() > EVENT_JSON_BYTES_MAX {
            self.detail.clear();
            self.mark_shortened();
            self.limit_texts(SHORT_TEXT_BYTES);
        }
    }

    fn mark_shortened(&mut self) {
        self.detail
            .insert("shortened".to_owned(), "true".to_owned());
    }

    fn limit_texts(&mut self, bytes_max: usize) {
        let limit = |text: &mut String| *text = bounded_line(text, bytes_max);
        limit(&mut self.group);
        limit(&mut self.reason);
        limit(&mut self.next);
        self.old_state
            .iter_mut()
            .chain(&mut self.new_state)
            .for_each(limit);
        if let EventKind::Other(word) = &mut self.kind {
            limit(word);
        }
        self.detail.values_mut().for_each(limit);
    }

    fn json_bytes(&self) -> usize {
        serde_json::to_vec(self)
            .expect("events are plain data with text keys")
            .len()
    }
}

impl EventBody {
    /// The body as a packet of the stream opened by `request_id`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] for an event that was not bounded.
    pub fn to_packet(&self, version: u16, request_id: u32) -> Result<Vec<u8>, FrameError> {
        let body = serde_json::to_vec(self).expect("events are plain data with text keys");
        encode(version, FrameKind::Event, request_id, &body)
    }

    /// Reads the body of an event frame.
    ///
    /// # Errors
    /// [`BodyError`] if it is no event; unknown fields are passed over.
    pub fn from_body(body: &[u8]) -> Result<Self, BodyError> {
        serde_json::from_slice(body).map_err(|source| BodyError {
            what: "event",
            source,
        })
    }
}
