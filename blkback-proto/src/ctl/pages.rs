//! The record of guest pages that a daemon wrote: armed, taken turn by turn, ended.
//!
//! A checkpointer that watches the pages of a hypervisor's process does not see what a vhost-user
//! back end writes through its own mapping. The daemon remembers it, and hands it over in turns. A
//! turn is kept until the next one is asked for, so that an answer that was lost, or did not fit one
//! body, can be had again. PROTOCOL.md §2 says what a turn promises.

use serde::{Deserialize, Serialize};

/// Bytes of a page, whatever the guest's own are.
pub const PAGE_BYTES: u64 = 4096;

/// Most runs of one answer.
pub const PAGE_RUNS_MAX: usize = 4096;

/// Most regions of one answer: what a back end takes in slots of memory.
pub const PAGE_REGIONS_MAX: usize = 509;

/// Begins a record; one that was kept until now ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesArmRequest {
    /// Name of the volume; it may be left out where there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// Reads a turn, or goes on to read it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesTakeRequest {
    /// As in [`PagesArmRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Id of the record, as arm answered it.
    pub record: String,
    /// The turn after the last one begins a turn, the last one is given again. The first is 1.
    pub turn: u64,
    /// Only pages from this one on.
    #[serde(default)]
    pub from_page: u64,
}

/// Ends the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesDisarmRequest {
    /// As in [`PagesArmRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
}

/// A record is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesArmAnswer {
    /// Random id of the record, hex: another arm or run of the daemon has another one.
    pub record: String,
    /// The guest's memory now; empty without a guest.
    pub regions: Vec<PageRegion>,
}

/// Part of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesTakeAnswer {
    /// The record it is of.
    pub record: String,
    /// The turn it is of.
    pub turn: u64,
    /// Every page that was written since the turn before began is in this one.
    pub complete: bool,
    /// Why it is not complete, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Pages of the whole turn.
    pub pages: u64,
    /// First page and number of pages, ascending; at most [`PAGE_RUNS_MAX`] of them.
    pub runs: Vec<(u64, u64)>,
    /// Ask from here for the rest of the turn; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page: Option<u64>,
    /// The guest's memory when the turn began.
    pub regions: Vec<PageRegion>,
}

/// No record is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesDisarmAnswer {
    /// Whether one was kept until now.
    pub was_armed: bool,
}

/// A stretch of guest memory and the file behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRegion {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Its length.
    pub size_bytes: u64,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Device number of the file; 0 where it has none.
    pub file_device: u64,
    /// Inode number of the file; 0 where it has none.
    pub file_inode: u64,
}
