//! The search for the set `S`: builds the least candidate and sweeps upwards from it. What and why
//! stands in the parent module.

use std::collections::HashMap;

use super::{Ack, BROKEN, Because, Content, EARLIER, Rules, Verdict, Violation, ZERO};
use crate::load::history::{History, NEVER, Request};
use crate::load::log::Kind;
use crate::load::unit::UNIT_SIZE;

/// How a request stands to `S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    Out,
    /// Taken because it explains zeroes; not proven to be there.
    Helpful,
    In(Because),
}

/// What `S` does to a unit that shows zero.
#[derive(Debug, Clone, Copy, Default)]
struct ZeroUnit {
    /// Latest submission in `S` here.
    submitted_max: u64,
    /// Latest completion of a zero request in `S` here.
    zero_completed_max: u64,
    /// The write of `S` submitted last here, if any, and why it is in `S`.
    write: Option<(u64, Because)>,
}

impl ZeroUnit {
    fn explained(&self) -> bool {
        self.write.is_none() || self.zero_completed_max > self.submitted_max
    }
}

/// The candidate set while it grows.
pub(super) struct Search<'a> {
    history: &'a History,
    units: &'a [Content],
    split: bool,
    ack: Ack,
    /// Everything completed before this stamp is promised by the epoch.
    promised_before: u64,
    /// Nothing submitted after this stamp may be included.
    end: u64,
    /// `T`: the latest submission in `S`.
    horizon: u64,
    members: Vec<Member>,
    zero_units: HashMap<u64, ZeroUnit>,
    unexplained: u64,
    /// Unit showing a write (or earlier content) → the first request of `S` that came after it.
    pub(super) harmed: HashMap<u64, (u64, Because)>,
    visible: Vec<bool>,
}

impl<'a> Search<'a> {
    pub(super) fn new(history: &'a History, units: &'a [Content], rules: &Rules) -> Search<'a> {
        let span_units = history.header.span_bytes / UNIT_SIZE as u64;
        assert_eq!(
            units.len() as u64,
            span_units,
            "one entry per unit of the span"
        );
        let (promised_before, end) = epoch_bounds(history, rules.epoch);
        let mut visible = vec![false; history.requests.len()];
        for unit in units.iter().filter(|unit| is_write(**unit)) {
            visible[*unit as usize - 1] = true;
        }
        Search {
            history,
            units,
            split: rules.split,
            ack: rules.ack,
            promised_before,
            end,
            horizon: 0,
            members: vec![Member::Out; history.requests.len()],
            zero_units: HashMap::new(),
            unexplained: 0,
            harmed: HashMap::new(),
            visible,
        }
    }

    /// Marks `V` and `R`, finds `T0`, and reports what of them lies beyond the end.
    pub(super) fn demand(&mut self) -> Vec<Violation> {
        let flushed_before = match self.ack {
            Ack::Flush => last_flush(self.history),
            Ack::Local | Ack::Write => 0,
        };
        let mut violations = Vec::new();
        for (index, request) in self.history.requests.iter().enumerate() {
            if !request.changes_disk() {
                continue;
            }
            let acknowledged = request.completed != NEVER
                && match self.ack {
                    Ack::Local => false,
                    Ack::Flush => request.fua || request.completed < flushed_before,
                    Ack::Write => true,
                };
            let because = if acknowledged {
                Because::Acknowledged
            } else if request.completed < self.promised_before {
                Because::Epoch
            } else if self.visible[index] {
                Because::Visible
            } else {
                continue;
            };
            self.members[index] = Member::In(because);
            self.horizon = self.horizon.max(request.submitted);
            if acknowledged && request.submitted > self.end {
                violations.push(Violation::PromiseAfterCut {
                    request: index as u64 + 1,
                });
            }
        }
        violations.extend(self.shown_after_end());
        violations
    }

    /// Visible writes submitted after the end, one violation each.
    fn shown_after_end(&self) -> Vec<Violation> {
        let mut reported = vec![false; self.visible.len()];
        let mut found = Vec::new();
        for (unit, content) in (0u64..)
            .zip(self.units)
            .filter(|(_, content)| is_write(**content))
        {
            let index = *content as usize - 1;
            let late = self.history.requests[index].submitted > self.end;
            if late && !std::mem::replace(&mut reported[index], true) {
                found.push(Violation::AfterCut {
                    offset: byte(unit),
                    write: u64::from(*content),
                });
            }
        }
        found
    }

    /// Builds `V ∪ R ∪ D(T0)` and adds the helpful zero requests in flight at `T0`.
    pub(super) fn include_least(&mut self) {
        let history = self.history;
        let upto = history
            .requests
            .partition_point(|request| request.submitted <= self.horizon);
        for (index, request) in history.requests[..upto].iter().enumerate() {
            if request.changes_disk() && request.completed < self.horizon {
                self.include_completed(index);
                continue;
            }
            match self.members[index] {
                Member::In(Because::Visible) if self.may_be_partial(request) => {}
                Member::In(_) => self.cover(index),
                Member::Out | Member::Helpful => {}
            }
        }
        for index in 0..upto {
            self.offer_zero(index);
        }
    }

    /// Goes up from `T0` until the zero units are explained; false if that cannot be.
    pub(super) fn sweep(&mut self) -> bool {
        let history = self.history;
        let start = history
            .requests
            .partition_point(|request| request.submitted <= self.horizon);
        let mut completions: Vec<usize> = (0..history.requests.len())
            .filter(|index| {
                let request = &history.requests[*index];
                request.changes_disk() && (self.horizon..NEVER).contains(&request.completed)
            })
            .collect();
        completions.sort_unstable_by_key(|index| history.requests[*index].completed);
        let mut completions = completions.into_iter().peekable();
        for index in start..history.requests.len() {
            let request = &history.requests[index];
            if request.submitted > self.end {
                break;
            }
            let is_due = |done: &usize| history.requests[*done].completed < request.submitted;
            while let Some(done) = completions.next_if(is_due) {
                self.include_completed(done);
                if !self.harmed.is_empty() {
                    return false;
                }
            }
            if self.offer_zero(index) {
                self.horizon = request.submitted;
                if self.zeros_unexplained() == 0 {
                    return true;
                }
            }
        }
        false
    }

    /// Takes a zero request in flight at `T` into `S` if that harms no unit showing a write.
    fn offer_zero(&mut self, index: usize) -> bool {
        let request = self.history.requests[index];
        let is_zero = matches!(request.kind, Kind::Zero | Kind::Discard);
        if !is_zero || self.members[index] != Member::Out {
            return false;
        }
        let harms = request.units().any(|unit| self.harms(unit, index));
        if harms && !self.may_be_partial(&request) {
            return false;
        }
        self.members[index] = Member::Helpful;
        for unit in request
            .units()
            .filter(|unit| self.units[*unit as usize] == ZERO)
        {
            self.cover_zero_unit(unit, index, Because::Before);
        }
        true
    }

    /// A request of `D(T)` is in `S` with all its units, whatever part of it was in before.
    fn include_completed(&mut self, index: usize) {
        if matches!(self.members[index], Member::Out | Member::Helpful) {
            self.members[index] = Member::In(Because::Before);
        }
        self.cover(index);
    }

    /// A request of `S` covers its units.
    fn cover(&mut self, index: usize) {
        let Member::In(because) = self.members[index] else {
            unreachable!("only proven members cover all their units")
        };
        for unit in self.history.requests[index].units() {
            if self.units[unit as usize] == ZERO {
                self.cover_zero_unit(unit, index, because);
            } else if self.harms(unit, index) {
                self.harmed
                    .entry(unit)
                    .or_insert((index as u64 + 1, because));
            }
        }
    }

    /// The unit shows something that `index` came after.
    fn harms(&self, unit: u64, index: usize) -> bool {
        match self.units[unit as usize] {
            ZERO | BROKEN => false,
            EARLIER => true,
            shown => {
                let shown = self.history.requests[shown as usize - 1];
                shown.completed < self.history.requests[index].submitted
            }
        }
    }

    fn cover_zero_unit(&mut self, unit: u64, index: usize, because: Because) {
        let request = &self.history.requests[index];
        let state = self.zero_units.entry(unit).or_default();
        let was = state.explained();
        state.submitted_max = state.submitted_max.max(request.submitted);
        if request.kind == Kind::Write {
            let id = index as u64 + 1;
            if state.write.is_none_or(|(last, _)| last < id) {
                state.write = Some((id, because));
            }
        } else {
            state.zero_completed_max = state.zero_completed_max.max(request.completed);
        }
        let is = state.explained();
        self.unexplained = self.unexplained + u64::from(was && !is) - u64::from(!was && is);
    }

    fn may_be_partial(&self, request: &Request) -> bool {
        request.failed || (self.split && request.completed >= self.horizon)
    }

    pub(super) fn zeros_unexplained(&self) -> u64 {
        self.unexplained
    }

    pub(super) fn unexplained_units(&self) -> Vec<Violation> {
        let unexplained = self
            .zero_units
            .iter()
            .filter(|(_, state)| !state.explained());
        unexplained
            .filter_map(|(unit, state)| state.write.map(|write| (*unit, write)))
            .map(|(unit, (lost, because))| Violation::Lost {
                offset: byte(unit),
                shows: None,
                lost,
                because,
            })
            .collect()
    }

    pub(super) fn harmed_units(&self) -> Vec<Violation> {
        let lost = |(unit, (lost, because)): (&u64, &(u64, Because))| {
            let content = self.units[*unit as usize];
            let shows = is_write(content).then_some(u64::from(content));
            Violation::Lost {
                offset: byte(*unit),
                shows,
                lost: *lost,
                because: *because,
            }
        };
        self.harmed.iter().map(lost).collect()
    }

    pub(super) fn verdict(&self, mut violations: Vec<Violation>) -> Verdict {
        violations.sort_unstable_by_key(|violation| match violation {
            Violation::AfterCut { offset, .. } => (0, *offset),
            Violation::PromiseAfterCut { request } => (1, *request),
            Violation::Lost { offset, .. } => (2, *offset),
        });
        let mut verdict = Verdict {
            violations,
            ..Verdict::default()
        };
        verdict.writes_visible = self.visible.iter().map(|visible| u64::from(*visible)).sum();
        for (id, (request, member)) in (1..).zip(self.history.requests.iter().zip(&self.members)) {
            match member {
                Member::In(_) => {
                    verdict.included += 1;
                    verdict.latest_stamp = request.submitted;
                    verdict.latest_id = id;
                }
                Member::Out | Member::Helpful => {
                    let done = request.changes_disk() && request.completed != NEVER;
                    verdict.lost_tail += u64::from(done);
                }
            }
        }
        verdict
    }
}

fn is_write(content: Content) -> bool {
    !matches!(content, ZERO | EARLIER | BROKEN)
}

fn byte(unit: u64) -> u64 {
    unit * UNIT_SIZE as u64
}

/// Submission of the last completed flush.
fn last_flush(history: &History) -> u64 {
    let done = |request: &&Request| request.kind == Kind::Flush && request.completed != NEVER;
    history
        .requests
        .iter()
        .rev()
        .find(done)
        .map_or(0, |flush| flush.submitted)
}

/// (everything completed before this is promised, nothing submitted after this may be there).
fn epoch_bounds(history: &History, epoch: Option<u64>) -> (u64, u64) {
    let Some(epoch) = epoch else {
        return (0, NEVER);
    };
    let ended = history.cuts.iter().filter(|cut| cut.epoch <= epoch);
    let promised = ended.map(|cut| cut.sent).max().unwrap_or(0);
    let closing = history.cuts.iter().filter(|cut| cut.epoch >= epoch);
    (
        promised,
        closing.map(|cut| cut.replied).min().unwrap_or(NEVER),
    )
}
