//! The output of one guest, over all its interfaces: what is let go, and when. Pure: an event and the
//! time go in, orders for what holds the frames (a plug of the kernel, or a relay) come out, one owner
//! holds it.
//!
//! ```text
//!            CUT n                RELEASE n
//!   Open ────────────► Cut n ◄──────────────► Holding n+1
//!    ▲                   │        CUT n+1         │
//!    │ OPEN              ▼          HOLD          ▼
//!    ├──────────────── Held ◄─────────────────────┘
//!    │                   │ RESYNC n (quiet) ──► Holding n+1
//!    └── Adopted ────────┘               Failed: the way out is detach and attach
//! ```
//!
//! | state | CUT n | RELEASE n | HOLD | OPEN | RESYNC n | added | gone, detached | failed |
//! |---|---|---|---|---|---|---|---|---|
//! | `Open` | Buffer → Cut n, once drained | refused | Freeze → Held | nothing | refused | Limit, OpenAll | – | Shut, others Freeze → Failed |
//! | `Holding` m | Buffer → Cut n, n ≥ m | refused | → Held | OpenAll → Open | refused | Limit | – | Shut → Failed |
//! | `Cut` …n | Buffer → Cut …n, o with room for one more, else **refused** | ReleaseOne → Cut, or Holding n+1 when the last is out | → Held | OpenAll → Open | refused | Limit | – | Shut → Failed |
//! | `Held` | refused | refused | nothing | OpenAll → Open | OpenAll, Count → Holding n+1 | Limit | – | Shut → Failed |
//! | `Adopted` | refused | refused | → Held | OpenAll → Open | OpenAll, Count → Holding n+1 | Limit | – | Shut → Failed |
//! | `Failed` | refused | refused | nothing | refused | refused | Limit | – | Shut |
//!
//! Of an interface that is detached the gate orders Shut, of one that is gone nothing: neither opens.
//! A restart begins a new gate with [`Event::Restarted`]: Freeze on everything found, `Adopted`.
//!
//! Invariants:
//! - Numbers of epochs only grow. What was released or opened is never released again.
//! - A plug counts one unreleased epoch and forgets the count at a second BUFFER; so the capacity of a
//!   gate over plugs is 1, and `Buffer` is ordered only where none is outstanding. A relay keeps the
//!   places of many; its gate has that many. RELEASE n lets go every epoch up to n.
//! - `Freeze` and `Count` are the same message to a plug: where the count is worthless (after `Freeze` no
//!   `ReleaseOne` comes before an `OpenAll`), and where nothing is in it (right after `OpenAll`).
//! - A plug holds from birth. An interface that comes while the guest is held gets no order that opens.
//! - `OpenAll` follows the authority's lineage, a quiet guest, or an interface that comes to an open one.

mod refusal;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use refusal::Refusal;

/// Number of an epoch of the guest's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who writes the guest's state, as the authority names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lineage(pub [u8; 16]);

impl Lineage {
    /// 32 hexadecimal digits; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The kernel's index of a guest's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface(pub u32);

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {}", self.0)
    }
}

/// What the caller knows of the guest when it asks for new counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// The guest runs no instruction.
    pub paused: bool,
    /// The highest epoch the backup has whole.
    pub committed: Option<Epoch>,
    /// Frames in all plugs of the guest; `None` where that could not be read.
    pub backlog_frames: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest is paused at the end of epoch n. `drained`: no plug has a frame. Asked for only where
    /// output is open: frames that passed uncounted would make every later release short by as many.
    Cut { epoch: Epoch, drained: bool },
    /// The backup has epoch n whole.
    Release(Epoch),
    /// Nothing more leaves, whatever was cut.
    Hold { why: String },
    /// Told by the client of the authority, never by whoever asks to open.
    Authority(Lineage),
    /// Everything leaves from now on.
    Open(Lineage),
    /// Count anew from the end of epoch n.
    Resync { epoch: Epoch, quiet: Quiet },
    /// A plug was made for an interface; it holds.
    Added(Interface),
    /// The interface does not exist any more.
    Gone(Interface),
    /// The interface shall be left alone.
    Detached(Interface),
    /// The process began anew and found these plugs.
    Restarted(Vec<Interface>),
    /// Bytes a plug holds before it drops.
    Limit { bytes: u32 },
    /// The kernel refused an order.
    OrderFailed { of: Interface, what: String },
}

/// What a plug or a relay shall do; to a plug all but `Shut` are one message of the kernel each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Close this epoch: what comes from now on is of a later one (BUFFER).
    Buffer(Epoch),
    /// Hold and count from here; right after `OpenAll` with nothing in it (BUFFER).
    Count,
    /// Everything up to the end of this closed epoch may leave (RELEASE_ONE).
    ReleaseOne(Epoch),
    /// Everything may leave, counts are zero (RELEASE_INDEFINITE).
    OpenAll,
    /// Bytes held before frames are dropped (LIMIT).
    Limit { bytes: u32 },
    /// Hold, whatever it did before; its counts mean nothing until `OpenAll` (BUFFER).
    Freeze,
    /// IFB down: what it holds is dropped, and what comes is dropped.
    Shut,
}

/// An order and whose plug it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directed {
    pub to: Interface,
    pub order: Order,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is held.
    Open,
    /// What is said now is of this epoch or a later one; nothing is cut and unreleased.
    Holding { epoch: Epoch },
    /// These epochs are cut and unreleased, ascending, at least one and at most the gate's capacity;
    /// what is said now is of a later one.
    Cut { epochs: Vec<Epoch> },
    /// Held on somebody's word.
    Held { why: String },
    /// Held because found after a restart: what is in the plugs is of unknown epochs.
    Adopted,
    /// A plug did not do as ordered; its IFB is down.
    Failed { of: Interface, why: String },
}

impl State {
    /// One word for people and programs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Holding { .. } => "holding",
            Self::Cut { .. } => "cut",
            Self::Held { .. } => "held",
            Self::Adopted => "adopted",
            Self::Failed { .. } => "failed",
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::Open => "output is open: nothing is held".into(),
            Self::Holding { epoch } => format!("holds epoch {epoch}; all before it is out"),
            Self::Cut { epochs } => match epochs.as_slice() {
                [epoch] => format!("epoch {epoch} is cut and waits for its commit"),
                epochs => format!(
                    "epochs {} to {} are cut and {} wait for their commits",
                    epochs.first().map_or(0, |epoch| epoch.0),
                    epochs.last().map_or(0, |epoch| epoch.0),
                    epochs.len()
                ),
            },
            Self::Held { why } => format!("held: {why}"),
            Self::Adopted => "found after a restart; what is held is of unknown epochs".into(),
            Self::Failed { of, why } => format!("{of}: {why}; its output is dropped"),
        }
    }

    fn next(&self) -> &'static str {
        match self {
            Self::Open => "the first CUT begins to hold",
            Self::Holding { .. } => "CUT, at the next pause of the guest",
            Self::Cut { .. } => "RELEASE, when the backup has the epoch",
            Self::Held { .. } | Self::Adopted => {
                "OPEN with the authority's lineage, or RESYNC with the guest paused"
            }
            Self::Failed { .. } => "detach the interface and attach it again",
        }
    }
}

/// A state as people read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub state: &'static str,
    pub reason: String,
    pub since_ms: u64,
    pub next: &'static str,
}

/// What a plug counts: one epoch that is cut and unreleased.
pub const CAPACITY_OF_PLUG: usize = 1;

/// The gate of one guest.
#[derive(Debug)]
pub struct Gate {
    state: State,
    since_ms: u64,
    interfaces: BTreeSet<Interface>,
    /// Those whose IFB is down because an order failed, and which.
    broken: BTreeMap<Interface, String>,
    limit_bytes: u32,
    /// How many epochs may be cut and unreleased.
    capacity: usize,
    /// The last epoch that was cut; what was said before its end is out, or in the plugs as `state` says.
    cut: Option<Epoch>,
    authority: Option<Lineage>,
}

impl Gate {
    /// A guest without interfaces, open. `limit_bytes`: of each plug; with 0 it would drop everything.
    #[must_use]
    pub fn new(limit_bytes: u32, now_ms: u64) -> Self {
        Self::with_capacity(limit_bytes, CAPACITY_OF_PLUG, now_ms)
    }

    /// The same over something that keeps the places of several epochs: as many may be cut and unreleased.
    #[must_use]
    pub fn with_capacity(limit_bytes: u32, capacity: usize, now_ms: u64) -> Self {
        assert!(limit_bytes > 0, "a plug that drops everything");
        assert!(capacity > 0, "a gate that refuses every CUT");
        Self {
            state: State::Open,
            since_ms: now_ms,
            interfaces: BTreeSet::new(),
            broken: BTreeMap::new(),
            limit_bytes,
            capacity,
            cut: None,
            authority: None,
        }
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many epochs may be cut and unreleased.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Who writes the guest, as the authority named it last.
    #[must_use]
    pub fn authority(&self) -> Option<Lineage> {
        self.authority
    }

    /// Of each interface.
    #[must_use]
    pub fn limit_bytes(&self) -> u32 {
        self.limit_bytes
    }

    /// The last epoch that was cut.
    #[must_use]
    pub fn last_cut(&self) -> Option<Epoch> {
        self.cut
    }

    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            state: self.state.name(),
            reason: self.state.reason(),
            since_ms: self.since_ms,
            next: self.state.next(),
        }
    }
}
