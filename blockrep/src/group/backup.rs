//! The backup's side of a group: who may follow, what is committed, and promotion.
//!
//! ```text
//!  Waiting ◄──► Following ──┐            ┌── Inconsistent (a sync has not ended)
//!     │             │       ├─ promote ──┤
//!     └─────────────┴───────┘            └── Suspect (operator's word)
//!                   │ fence every volume, n* = highest epoch sealed by all
//!                   ▼
//!               Promoting ── metadata durable, every volume serves ──► Promoted
//! ```
//!
//! An epoch is committed when every volume sealed it, and the guest's memory of it is whole where that is a
//! member ([`super::memory`]). Nothing else decides that.

use super::memory::Memory;
use super::refusal::{not_identical_text, other_group_text, size_text, superseded_text};
use super::{GroupEffect, Now, PromoteError, PromoteWish, Promoted, Standing, State};
use crate::engine::{Nanos, ToGroup, ToVolume};
use blkback_proto::ctl::epochs_text;
use blkback_proto::ids::Epoch;
use blkback_proto::link::{Hello, RefuseCode};
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy, Role};

/// What recovery found of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberFacts {
    /// Of the image.
    pub size_bytes: u64,
    /// Highest epoch sealed here.
    pub sealed: Epoch,
    /// The image is no epoch.
    pub inconsistent: bool,
    /// Promotion takes the operator's word.
    pub suspect: bool,
    /// Highest epoch whose seal stands behind damage in the journal; none without damage.
    pub damaged: Epoch,
    /// Never followed anybody.
    pub blank: bool,
    /// First epoch the image can be: earlier ones were mixed by a sync.
    pub consistent_from: Epoch,
    /// Highest epoch that this volume knows to be committed: every volume had sealed it.
    pub committed: Epoch,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) facts: MemberFacts,
    hello: Option<Box<Hello>>,
    /// The hello was accepted: what was sealed and not committed is dropped.
    accepted: bool,
    up: bool,
    fenced: bool,
    serving: bool,
}

/// A promotion under way.
#[derive(Debug)]
pub(super) struct Promoting {
    token: u64,
    since: Nanos,
    wish: PromoteWish,
}

/// The backup's side of a group.
#[derive(Debug)]
pub struct BackupGroup {
    pub(super) meta: GroupMeta,
    pub(super) members: Vec<Member>,
    standing: Standing,
    pub(super) committed: Epoch,
    pub(super) memory: Memory,
    /// Highest epoch any volume ever sealed, dropped ones included. Sessions begin above it: else
    /// one volume's old epoch and another's new one could bear the same number.
    seen: Epoch,
    /// Highest epoch that had begun to arrive anywhere when the volumes were fenced.
    begun: Epoch,
    /// A primary waits until its history is durable here.
    pub(super) adopting: bool,
    pub(super) promoting: Option<Promoting>,
    failed: Option<String>,
    /// Said until a primary is taken in for the first time: whose disk that would overwrite.
    warning: Option<String>,
}

impl BackupGroup {
    /// A group as recovery found it.
    #[must_use]
    pub fn new(meta: GroupMeta, facts: &[MemberFacts], unix_ns: u64) -> Self {
        let members = facts
            .iter()
            .map(|facts| Member {
                facts: *facts,
                hello: None,
                accepted: false,
                up: false,
                fenced: false,
                serving: false,
            })
            .collect();
        let standing = Standing {
            state: State::Waiting,
            reason: String::new(),
            since_unix_ns: unix_ns,
            next: "",
        };
        let mut group = Self {
            meta,
            members,
            standing,
            committed: Epoch::NONE,
            memory: Memory::default(),
            seen: facts
                .iter()
                .map(|f| f.sealed.max(f.committed))
                .max()
                .unwrap_or(Epoch::NONE),
            begun: Epoch::NONE,
            adopting: false,
            promoting: None,
            failed: None,
            warning: None,
        };
        let (state, reason) = group.resting_state();
        group.standing.state = state;
        group.standing.reason = reason;
        group.standing.next = group.next_of(state);
        group
    }

    /// With what to know before a primary is taken in for the first time.
    #[must_use]
    pub fn with_warning(mut self, warning: Option<String>) -> Self {
        self.warning = warning;
        self.standing.reason = self.resting_state().1;
        self
    }

    /// What the volumes have to be told before anything else: what is whole everywhere counts.
    pub fn start(&mut self, fx: &mut Vec<GroupEffect>) {
        self.advance_commit(fx);
    }

    /// State with reason.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Metadata as it is in mind.
    #[must_use]
    pub fn meta(&self) -> &GroupMeta {
        &self.meta
    }

    /// Highest epoch every volume sealed.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    fn tell(&self, message: &ToVolume, fx: &mut Vec<GroupEffect>) {
        for index in 0..self.members.len() {
            fx.push(GroupEffect::ToVolume(index, message.clone()));
        }
    }

    fn become_state(&mut self, at: &Now, state: State, reason: String, fx: &mut Vec<GroupEffect>) {
        let old = self.standing.state;
        if old == state && self.standing.reason == reason {
            return;
        }
        self.standing = Standing {
            state,
            reason,
            since_unix_ns: at.unix_ns,
            next: self.next_of(state),
        };
        fx.push(GroupEffect::Changed {
            old,
            new: self.standing.clone(),
        });
    }

    /// What happens next, or what to do: a promotion is named only where it is possible.
    fn next_of(&self, state: State) -> &'static str {
        if state == State::Waiting && self.members.iter().any(|m| m.facts.blank) {
            return "follows a primary when one connects; not promotable: it never held an epoch";
        }
        if state == State::Waiting && self.waits_for_memory() {
            return "start `checkpointer receive`; until then no primary is taken in, and \
                    `blockrepctl promote --disk-only` promotes without the memory";
        }
        if state == State::Following && self.has_memory() {
            return "nothing to do; `blockrepctl guest promote` when the primary is dead";
        }
        if state == State::Waiting && self.has_memory() {
            return "follows a primary when one connects, or `blockrepctl guest promote`";
        }
        if state == State::Inconsistent && self.members.iter().all(|m| m.up) {
            return "an epoch again when the comparison has ended; until then not promotable";
        }
        state.next()
    }

    /// The state that follows from the facts when nothing is going on.
    fn resting_state(&self) -> (State, String) {
        if let Some(text) = &self.failed {
            return (State::Failed, text.clone());
        }
        if self.meta.role == Role::Primary {
            let reason = format!("promoted at epoch {}", self.meta.promoted);
            let reason = match self.damaged_and_dropped() {
                Some(last) => {
                    let lost = epochs_text(self.meta.promoted.next().0, last.0);
                    format!("{reason}, without {lost}, damaged in the journal")
                }
                None => reason,
            };
            return (State::Promoted, reason);
        }
        let connected = self.members.iter().all(|m| m.up);
        if let Some(index) = self.mixed() {
            if let Some(reason) = self.damage() {
                return (State::Inconsistent, reason);
            }
            let doing = if connected { "is being" } else { "was being" };
            let mut reason = format!("volume {index} {doing} compared with the primary");
            if let Some(other) = self.missing() {
                reason += &format!("; the primary is not connected with volume {other}");
            }
            return (State::Inconsistent, reason);
        }
        if connected {
            return (State::Following, "a primary is connected".to_owned());
        }
        if self.waits_for_memory() {
            let reason = "the guest's memory is kept beside these disks, and its holder has not said yet what it has";
            return (State::Waiting, reason.to_owned());
        }
        if let Some(reason) = self.damage() {
            return (State::Suspect, reason);
        }
        let reason = if self.members.iter().any(|m| m.facts.blank) {
            let warning = self.warning.as_ref();
            warning.map_or_else(
                || "no primary was taken in yet".to_owned(),
                |text| format!("no primary was taken in yet; {text}"),
            )
        } else {
            "no primary is connected".to_owned()
        };
        (State::Waiting, reason)
    }

    /// What is damaged in a journal, where that decides what can be promoted: until a primary is
    /// connected.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        if self.meta.role == Role::Primary || self.members.iter().all(|m| m.up) {
            return None;
        }
        let whole = self.sealed_by_all();
        if let Some(index) = self.mixed() {
            let facts = &self.members[index].facts;
            let is_damaged = !facts.inconsistent && whole < facts.committed;
            return is_damaged
                .then(|| format!("volume {index} is damaged above epoch {}", facts.sealed));
        }
        let suspect = |m: &Member| m.facts.suspect;
        let index = self.members.iter().position(suspect)?;
        let last = self.members[index].facts.damaged;
        Some(format!(
            "the journal of volume {index} is damaged above epoch {whole}: what was sealed there up to epoch \
             {last} is not whole, and may have been acknowledged"
        ))
    }

    /// The highest of the damaged epochs that a promotion left out on the operator's word.
    fn damaged_and_dropped(&self) -> Option<Epoch> {
        let suspects = self.members.iter().filter(|m| m.facts.suspect);
        let damaged = suspects.map(|m| m.facts.damaged).max()?;
        (damaged > self.meta.promoted).then_some(damaged)
    }

    pub(super) fn rest(&mut self, at: &Now, why: Option<String>, fx: &mut Vec<GroupEffect>) {
        if self.promoting.is_some() {
            return;
        }
        let (state, reason) = self.resting_state();
        let reason = match (state, why) {
            (State::Waiting, Some(why)) => why,
            _ => reason,
        };
        self.become_state(at, state, reason, fx);
    }

    /// The first volume without a primary, where others have one.
    fn missing(&self) -> Option<usize> {
        let some = self.members.iter().any(|m| m.up);
        self.members.iter().position(|m| !m.up).filter(|_| some)
    }

    pub(super) fn sealed_by_all(&self) -> Epoch {
        let sealed = self.members.iter().map(|m| m.facts.sealed);
        let whole = if crate::mutant!("commit-by-any") {
            sealed.max()
        } else {
            sealed.min()
        };
        whole.unwrap_or(Epoch::NONE)
    }

    /// A volume that is no epoch, or none that all the others can be, too.
    fn mixed(&self) -> Option<usize> {
        let whole = self.sealed_by_all();
        let members = self.members.iter();
        let mixed = |m: &Member| m.facts.inconsistent || whole < m.facts.consistent_from;
        members.clone().position(mixed).or_else(|| {
            // Damaged here, and in the image of another volume perhaps.
            let committed = members.clone().map(|m| m.facts.committed).max()?;
            members.clone().position(|m| m.facts.sealed < committed)
        })
    }

    pub(super) fn advance_commit(&mut self, fx: &mut Vec<GroupEffect>) {
        if self.waits_for_memory() {
            return;
        }
        self.commit(self.whole(), fx);
    }

    pub(super) fn commit(&mut self, epoch: Epoch, fx: &mut Vec<GroupEffect>) {
        if epoch > self.committed {
            self.committed = epoch;
            self.note_commit(epoch);
            self.tell(&ToVolume::Commit(epoch), fx);
        }
    }

    /// A message of a volume.
    pub fn volume(
        &mut self,
        at: &mut Now,
        index: usize,
        message: ToGroup,
        fx: &mut Vec<GroupEffect>,
    ) {
        match message {
            ToGroup::Hello(hello) => self.hello(at, index, hello, fx),
            ToGroup::SessionUp => {
                self.members[index].up = true;
                self.members[index].facts.blank = false;
                self.members[index].facts.suspect = false;
                self.rest(at, None, fx);
            }
            ToGroup::Sealed(epoch) => self.sealed(at, index, epoch, fx),
            ToGroup::Inconsistent => {
                self.members[index].facts.inconsistent = true;
                self.rest(at, None, fx);
            }
            ToGroup::Consistent(epoch) => {
                self.members[index].facts.inconsistent = false;
                self.members[index].facts.consistent_from = epoch;
                self.rest(at, None, fx);
            }
            ToGroup::LinkLost(reason) => {
                self.members[index].up = false;
                self.members[index].accepted = false;
                self.members[index].hello = None;
                self.rest(at, Some(reason), fx);
            }
            ToGroup::Failed(text) => {
                self.failed = Some(format!("volume {index}: {text}"));
                if let Some(Promoting { token, .. }) = self.promoting.take() {
                    let result = Err(PromoteError::Failed(text));
                    fx.push(GroupEffect::PromoteReply { token, result });
                }
                self.rest(at, None, fx);
            }
            ToGroup::Fenced { sealed, begun } => {
                self.begun = self.begun.max(begun);
                self.members[index].facts.sealed = sealed;
                self.members[index].fenced = true;
                self.advance_promotion(at, fx);
            }
            ToGroup::Serving => {
                self.members[index].serving = true;
                self.finish_promotion(at, fx);
            }
            ToGroup::Drained => {}
            other => unreachable!("{other:?} comes from a primary"),
        }
    }

    fn sealed(&mut self, at: &Now, index: usize, epoch: Epoch, fx: &mut Vec<GroupEffect>) {
        self.seen = self.seen.max(epoch);
        let member = &mut self.members[index];
        if member.accepted && !member.up {
            // Sealed in the session before, and dropped when the volume heard of the new one.
            return;
        }
        member.facts.sealed = epoch;
        self.advance_commit(fx);
        if self.standing.state == State::Inconsistent {
            self.rest(at, None, fx);
        }
    }

    fn hello(&mut self, at: &mut Now, index: usize, hello: Box<Hello>, fx: &mut Vec<GroupEffect>) {
        if let Err((code, text)) = self.check_hello(index, &hello) {
            fx.push(GroupEffect::ToVolume(index, ToVolume::Refuse(code, text)));
            return;
        }
        self.members[index].hello = Some(hello);
        self.members[index].accepted = false;
        self.take_in(at, fx);
    }

    fn follows(&self, hello: &Hello) -> bool {
        self.meta.group == hello.group
            && self.meta.tip().map(|t| t.id) == hello.lineage.last().map(|(id, _)| *id)
    }

    /// Accepts who waits, once the history they bring is durable here.
    fn take_in(&mut self, at: &Now, fx: &mut Vec<GroupEffect>) {
        if self.adopting || self.promoting.is_some() || self.memory.is_changing() {
            return;
        }
        self.accept_waiting(fx);
        let new = self.members.iter().position(|m| {
            !m.accepted && m.hello.as_ref().is_some_and(|hello| !self.follows(hello))
        });
        if let Some(index) = new {
            self.adopt(at, index, fx);
        }
    }

    /// Takes over identity and history of the primary, durably, before its session begins.
    fn adopt(&mut self, at: &Now, index: usize, fx: &mut Vec<GroupEffect>) {
        let hello = self.members[index].hello.as_ref().expect("adopts a hello");
        self.meta.group = hello.group;
        self.meta.name.clone_from(&hello.name);
        self.meta.clean = false;
        let unix_s = at.unix_ns / 1_000_000_000;
        let known = std::mem::take(&mut self.meta.lineage);
        for (id, first_epoch) in &hello.lineage {
            let entry = known
                .iter()
                .find(|e| e.id == *id)
                .copied()
                .unwrap_or(LineageEntry {
                    id: *id,
                    // A primary that was started anew counts from below what was sealed here.
                    first_epoch: (*first_epoch).max(self.seen.next()),
                    why: LineageWhy::Started,
                    unix_s,
                });
            self.meta.begin(entry);
        }
        self.meta.generation += 1;
        self.adopting = true;
        fx.push(GroupEffect::WriteMeta(Box::new(self.meta.clone())));
    }

    fn accept_waiting(&mut self, fx: &mut Vec<GroupEffect>) {
        let Some(tip) = self.meta.tip().copied() else {
            return;
        };
        for index in 0..self.members.len() {
            let member = &self.members[index];
            let Some(hello) = member.hello.as_ref().filter(|hello| self.follows(hello)) else {
                continue;
            };
            if member.accepted {
                continue;
            }
            let sync = !(hello.assume_identical && member.facts.blank);
            let (session, epoch) = (hello.session, hello.epoch.max(self.seen.next()));
            let accept = ToVolume::Accept {
                session,
                lineage: tip.id,
                epoch,
                sync,
            };
            fx.push(GroupEffect::ToVolume(index, accept));
            self.memory.session(epoch, tip.id);
            let member = &mut self.members[index];
            member.accepted = true;
            member.facts.sealed = member.facts.sealed.min(self.committed);
            member.facts.inconsistent |= member.facts.blank && sync;
            // A comparison may begin to change the image: nobody can vouch for it any more.
            member.facts.blank &= !sync;
        }
    }

    fn check_hello(&self, index: usize, hello: &Hello) -> Result<(), (RefuseCode, String)> {
        let Some((tip, _)) = hello.lineage.last() else {
            return Err((
                RefuseCode::Protocol,
                "a primary without a history".to_owned(),
            ));
        };
        let promoted = (self.meta.role == Role::Primary).then_some(self.meta.promoted);
        if !self.meta.group.is_none() && self.meta.group != hello.group {
            let text = other_group_text(&self.meta.name, self.meta.group, promoted, hello);
            return Err((RefuseCode::Identity, text));
        }
        if self.promoting.is_some() {
            // It may still be given up: nobody is superseded before it is durable.
            let text = "an operator is promoting this backup".to_owned();
            return Err((RefuseCode::Busy, text));
        }
        if let Some(epoch) = promoted {
            let own = self.meta.tip().map(|t| t.id).unwrap_or_default();
            return Err((RefuseCode::Superseded, superseded_text(epoch, own, *tip)));
        }
        if self.waits_for_memory() && !crate::mutant!("hello-before-join") {
            let text = "the guest's memory is kept there, and its holder has not said yet what it has: start \
                        `checkpointer receive` there, or give the memory up: `blockrepctl memory-leave`";
            return Err((RefuseCode::Busy, text.to_owned()));
        }
        if usize::from(hello.volume_count) != self.members.len()
            || usize::from(hello.volume_index) != index
        {
            let text = format!(
                "the primary's volume {} of {} came to this backup's volume {index} of {}: give \
                 the same disks in the same order on both hosts",
                hello.volume_index,
                hello.volume_count,
                self.members.len()
            );
            return Err((RefuseCode::Identity, text));
        }
        if let Some(own) = self.meta.tip()
            && !hello.lineage.iter().any(|(id, _)| *id == own.id)
        {
            let text = format!(
                "this backup follows lineage {}, which the primary's history, now {tip}, does not \
                 contain: one of the two went its own way; nothing is overwritten",
                own.id
            );
            return Err((RefuseCode::Lineage, text));
        }
        let facts = &self.members[index].facts;
        if hello.size_bytes != facts.size_bytes {
            let is_held = !self.meta.group.is_none();
            let text = size_text(hello.size_bytes, facts.size_bytes, is_held);
            return Err((RefuseCode::Size, text));
        }
        if hello.assume_identical
            && facts.blank
            && let Some(warning) = &self.warning
        {
            return Err((RefuseCode::Identity, not_identical_text(warning)));
        }
        let others = self
            .members
            .iter()
            .filter(|m| m.up)
            .filter_map(|m| m.hello.as_ref());
        for other in others {
            if other.lineage.last().map(|(id, _)| id) != Some(tip) {
                let text = "another volume still follows the primary's earlier session".to_owned();
                return Err((RefuseCode::Busy, text));
            }
        }
        Ok(())
    }

    /// An operator wants this side to be the primary.
    pub fn promote(
        &mut self,
        at: &mut Now,
        token: u64,
        wish: PromoteWish,
        fx: &mut Vec<GroupEffect>,
    ) {
        if self.meta.role == Role::Primary && self.promoting.is_none() {
            let lineage = self.meta.tip().map(|t| t.id).unwrap_or_default();
            let promoted = Promoted {
                epoch: self.meta.promoted,
                lineage,
                dropped_epochs: 0,
                damaged: None,
                took_ns: 0,
            };
            fx.push(GroupEffect::PromoteReply {
                token,
                result: Ok(promoted),
            });
            return;
        }
        if let Err(error) = self.may_promote(&wish) {
            fx.push(GroupEffect::PromoteReply {
                token,
                result: Err(error),
            });
            return;
        }
        self.promoting = Some(Promoting {
            token,
            since: at.ns,
            wish,
        });
        for member in &mut self.members {
            member.fenced = false;
        }
        self.become_state(
            at,
            State::Promoting,
            "an operator asked for it".to_owned(),
            fx,
        );
        self.tell(&ToVolume::Fence, fx);
    }

    /// Whether a promotion would be refused, and why.
    ///
    /// # Errors
    /// The reason.
    pub fn may_promote(&self, wish: &PromoteWish) -> Result<(), PromoteError> {
        if let Some(text) = &self.failed {
            return Err(PromoteError::Failed(text.clone()));
        }
        if self.promoting.is_some() {
            return Err(PromoteError::UnderWay);
        }
        if let Some(volume) = self.mixed() {
            return Err(PromoteError::Inconsistent { volume });
        }
        if self.members.iter().any(|m| m.facts.blank) {
            return Err(PromoteError::Blank);
        }
        self.promotable(wish.with_memory, wish.disk_only)?;
        if self.members.iter().any(|m| m.facts.suspect) && !wish.accept_suspect {
            return Err(PromoteError::Suspect {
                epoch: self.sealed_by_all(),
            });
        }
        match &wish.alive {
            Some(alive) if !wish.force && self.members.iter().any(|m| m.up) => {
                Err(PromoteError::Alive(alive.clone()))
            }
            _ => Ok(()),
        }
    }

    fn advance_promotion(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        let Some(promoting) = &self.promoting else {
            return;
        };
        if self.memory.is_changing() || !self.members.iter().all(|m| m.fenced) {
            return;
        }
        if let Some(volume) = self.mixed() {
            self.give_up_promotion(at, PromoteError::Inconsistent { volume }, fx);
            return;
        }
        let wish = &promoting.wish;
        let epoch = match self.promotable(wish.with_memory, wish.disk_only) {
            Ok(epoch) => epoch,
            Err(error) => {
                self.give_up_promotion(at, error, fx);
                return;
            }
        };
        assert!(
            epoch >= self.committed,
            "what was committed is sealed everywhere"
        );
        self.meta.role = Role::Primary;
        self.meta.promoted = epoch;
        self.meta.all_dirty = true;
        self.meta.memory = false;
        self.meta.clean = false;
        self.meta.begin(LineageEntry {
            id: (at.fresh)(),
            first_epoch: epoch.next(),
            why: LineageWhy::Promoted,
            unix_s: at.unix_ns / 1_000_000_000,
        });
        self.meta.generation += 1;
        fx.push(GroupEffect::WriteMeta(Box::new(self.meta.clone())));
    }

    /// A sync had begun when the operator asked: primaries may connect again.
    fn give_up_promotion(&mut self, at: &Now, error: PromoteError, fx: &mut Vec<GroupEffect>) {
        let Some(Promoting { token, .. }) = self.promoting.take() else {
            return;
        };
        self.tell(&ToVolume::Unfence, fx);
        self.rest(at, None, fx);
        fx.push(GroupEffect::PromoteReply {
            token,
            result: Err(error),
        });
        self.take_in(at, fx);
    }

    /// The metadata is durable, or cannot be made so.
    pub fn meta_written(
        &mut self,
        at: &mut Now,
        result: Result<(), String>,
        fx: &mut Vec<GroupEffect>,
    ) {
        if let Err(error) = result {
            self.failed = Some(format!("group metadata: {error}"));
            self.memory_changed(at, Err(error.clone()), fx);
            if let Some(Promoting { token, .. }) = self.promoting.take() {
                let result = Err(PromoteError::Failed(error));
                fx.push(GroupEffect::PromoteReply { token, result });
            }
            self.rest(at, None, fx);
            return;
        }
        if self.memory.is_changing() {
            self.memory_changed(at, Ok(()), fx);
            self.take_in(at, fx);
            self.advance_promotion(at, fx);
            return;
        }
        if std::mem::take(&mut self.adopting) {
            self.take_in(at, fx);
            return;
        }
        if self.promoting.is_some() && self.meta.role == Role::Primary {
            let lineage = self.meta.tip().expect("a promotion begins a history").id;
            let epoch = self.meta.promoted;
            self.committed = epoch;
            self.tell(&ToVolume::Promote { epoch, lineage }, fx);
        }
    }

    fn finish_promotion(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        if !self.members.iter().all(|m| m.serving) {
            return;
        }
        let Some(Promoting { token, since, .. }) = self.promoting.take() else {
            return;
        };
        let lineage = self.meta.tip().expect("a promotion begins a history").id;
        let took_ns = at.ns.saturating_sub(since);
        let damaged = self.damaged_and_dropped();
        let begun = self.begun.max(damaged.unwrap_or_default());
        let promoted = Promoted {
            epoch: self.meta.promoted,
            lineage,
            dropped_epochs: begun.0.saturating_sub(self.meta.promoted.0),
            damaged,
            took_ns,
        };
        self.rest(at, None, fx);
        fx.push(GroupEffect::PromoteReply {
            token,
            result: Ok(promoted),
        });
    }
}
