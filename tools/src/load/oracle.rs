//! The consistency oracle: is this image a state the disk could have been in at one moment?
//!
//! # What is asked
//! Requests that change the disk: writes, zeroes, discards (both leave zeroes). `a` **happens
//! before** `b` iff the completion of `a` was seen before `b` was submitted: only then could `b`
//! depend on `a`. An image is accepted iff there is a set `S` of requests such that
//! 1. `S` is closed: `b` in `S` and `a` before `b` ⇒ `a` in `S`;
//! 2. every unit shows the last request of `S` that covers it, in *some* order that respects
//!    happens-before (overlapping requests in flight together may land either way, unit by unit); a
//!    unit covered by no request of `S` shows its initial content, zero;
//! 3. `S` contains what was promised ([`Ack`], and everything acknowledged before the cut that
//!    ended the epoch was asked for) and nothing submitted after the reply to that cut.
//!
//! A request is in `S` with all its units or not at all, because an epoch holds whole writes.
//! [`Rules::split`] drops that for images of a disk that lost its host in the middle of a write. A
//! request that failed may always have landed in part.
//!
//! # How it is decided
//! Happens-before is an interval order: with submission `s`, completion `c`, `a` is before `b` iff
//! `c(a) < s(b)`. So `S` is closed iff it contains `D(T) = {a : c(a) < T}` for `T = max s(S)`.
//!
//! In the units that cover it, a request can be last iff nothing in `S` is after it:
//! `c(v) > s(x)` for all other `x` of `S` there. Hence, for a unit showing write `v`, every element
//! of `S` is either harmless or a proof of a loss, independently of all others; more elements never
//! help. The least candidate is `V ∪ R ∪ D(T0)` with `V` the visible writes, `R` the promised
//! ones and `T0 = max s(V ∪ R)`; if it harms a unit showing a write, no set will do.
//!
//! Zero units leave a choice: the initial zero, or any zero request that may be last. For a given
//! `T` it is best to take *every* zero request in flight at `T` (`s ≤ T ≤ c`) that harms no unit
//! showing a write: at its zero units it can be last (its completion lies beyond `T`, hence beyond
//! all submissions), and where several zero requests meet, the one submitted last is never
//! overtaken by another zero that matters. So `T` decides everything, and only `T0` and the
//! submissions of zero requests after it need to be tried. The sweep goes up from `T0`, adding
//! completed requests as `T` passes them, until all zero units are explained (accept) or a unit
//! showing a write is harmed (reject: that only gets worse).
//!
//! Cost: one pass over the units of all requests; four bytes per unit of the span, plus a small
//! entry per zero unit that a request of `S` covers. The brute-force check of the three rules above
//! over all subsets, on small random histories, must give the same verdict (module `model`, tests
//! only).

mod search;

use super::history::History;
use search::Search;

/// Content of one unit as found in the image: a write id, or one of the constants.
pub type Content = u32;
/// The unit is zero.
pub const ZERO: Content = 0;
/// The unit shows a valid stamp of an earlier run: initial content that no request of this run
/// replaced.
pub const EARLIER: Content = u32::MAX;
/// The unit is broken and was reported as such; nothing is concluded from it.
pub const BROKEN: Content = u32::MAX - 1;

/// What the acknowledgement of a request promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ack {
    /// Nothing by itself: the tail may be lost.
    Local,
    /// What completed before a completed flush was submitted, and completed FUA writes, is safe.
    Flush,
    /// Every completed request is safe.
    Write,
}

/// What the image is held to beyond being consistent.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The promise of acknowledgements.
    pub ack: Ack,
    /// The last epoch the image contains. With a cut of exactly this epoch in the log both bounds
    /// are exact; otherwise the nearest cuts below and above bound it.
    pub epoch: Option<u64>,
    /// A request in flight may have landed in part.
    pub split: bool,
}

/// Why a request must be in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// Some unit shows it.
    Visible,
    /// A completed flush, its own FUA, or ack mode write promised it.
    Acknowledged,
    /// It was acknowledged before the cut of an epoch the image contains.
    Epoch,
    /// It completed before an included request was submitted.
    Before,
}

/// One rule broken. Offsets are bytes on the disk, ids are request ids of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// The unit does not show a request that must be in the image and came after what it shows.
    Lost {
        /// The unit.
        offset: u64,
        /// The write it shows; `None` for zero or initial content.
        shows: Option<u64>,
        /// The request it should show, or that the request it should show came after.
        lost: u64,
        /// Why that request must be there.
        because: Because,
    },
    /// The unit shows a write submitted after the reply to the cut that ended the image's epoch.
    AfterCut {
        /// A unit that shows it.
        offset: u64,
        /// The write.
        write: u64,
    },
    /// A request was promised, yet submitted after the reply to the cut that ended the image's
    /// epoch.
    PromiseAfterCut {
        /// The request.
        request: u64,
    },
}

/// The verdict on the order of what the image shows.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Broken rules, at most one for each unit or request.
    pub violations: Vec<Violation>,
    /// Distinct writes that some unit shows.
    pub writes_visible: u64,
    /// Requests of the least set that explains the image.
    pub included: u64,
    /// Completed requests outside that set: at most this much was lost.
    pub lost_tail: u64,
    /// Submission stamp of the latest request of that set, 0 if there is none.
    pub latest_stamp: u64,
    /// Its id, 0 if there is none.
    pub latest_id: u64,
}

/// Judges an image whose unit `n` shows `units[n]`.
///
/// # Panics
/// If `units` is not one entry per unit of the span, or names a request the history does not know
/// as a write covering that unit. [`super::image`] guarantees both.
pub fn judge(history: &History, units: &[Content], rules: &Rules) -> Verdict {
    let mut search = Search::new(history, units, rules);
    let mut violations = search.demand();
    search.include_least();
    violations.extend(search.harmed_units());
    if search.harmed.is_empty() && search.zeros_unexplained() > 0 {
        let before_sweep = search.unexplained_units();
        if !search.sweep() {
            violations.extend(before_sweep);
        }
    } else {
        violations.extend(search.unexplained_units());
    }
    search.verdict(violations)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
