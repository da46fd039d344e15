//! The primary's side of a group: cuts, protection, and what a lost backup means.
//!
//! ```text
//!              every volume linked            everything copied and committed
//!  Standalone ───────────────────► Resyncing ─────────────────────────────────► Protected
//!   Degraded ─────────▲                │ link lost                                  │ link lost
//!      ▲  ▲                            ▼                                            ▼
//!      │  └─────────────────── as before (or Paused)              policy degrade: Degrading
//!      └──────────────── loss is durable ◄──────────────────────────────────────────┤
//!                                                                 policy pause: Paused
//! ```
//!
//! A backup that was promoted meanwhile refuses its former primary: from Standalone, Degraded and
//! Paused that leads to Superseded, and only a backup that takes this side in leads out of it.
//!
//! A cut has two phases, so that no write of one volume enters epoch n that was issued after the
//! completion of a write of another volume in n + 1: all volumes hold completions, then all cut,
//! then all let go.

use super::refusal::remedy;
use super::{GroupEffect, Now, Standing, State};
use crate::config::LossPolicy;
use crate::engine::{Nanos, Protection, ToGroup, ToVolume};
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::link::RefuseCode;
use blkback_proto::meta::{GroupMeta, LineageEntry, LineageWhy};
use std::collections::VecDeque;

/// Epochs that may be cut and not yet committed before the timer waits.
const INFLIGHT_TIMED_MAX: usize = 8;
/// Epochs whose cut is remembered while none of them is acknowledged.
const INFLIGHT_KEPT_MAX: usize = 1024;
/// How long a commit that makes the group protected is waited for before another cut is wished.
const WISHED_AGAIN_NS: Nanos = 200_000_000;
/// The limit of cuts somebody waits for.
const INFLIGHT_WANTED_MAX: usize = 2;

/// Volumes told of in one reason.
pub const TOLD_VOLUMES_MAX: usize = 3;

/// What an operator sets of a primary group.
#[derive(Clone, Debug)]
pub struct GroupSettings {
    /// Time between cuts; `None`: only on request.
    pub epoch_ns: Option<Nanos>,
    /// What happens when the backup is lost.
    pub loss: LossPolicy,
    /// What people call the volumes, volume 0 first; one without a name is told of by its number.
    pub volume_names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Up { synced: Option<Epoch> },
}

#[derive(Clone, Debug)]
struct Member {
    link: Link,
    /// Why it has none; nothing where it gave its link up because of another volume.
    lost: Option<String>,
    /// It was told to give its link up, and has not said yet that it did.
    gives_up: bool,
    committed: Epoch,
    prepared: bool,
    cut: Option<bool>,
}

impl Member {
    fn link_up(&mut self, synced: Option<Epoch>) {
        self.link = Link::Up { synced };
        (self.lost, self.gives_up) = (None, false);
        self.committed = Epoch::NONE;
    }
}

#[derive(Debug)]
struct Cutting {
    epoch: Epoch,
    next: Epoch,
    unix_ns: u64,
    sent: bool,
    /// Every journal gets a seal of it, written or not.
    begins: bool,
}

/// The primary's side of a group.
#[derive(Debug)]
pub struct PrimaryGroup {
    meta: GroupMeta,
    settings: GroupSettings,
    members: Vec<Member>,
    standing: Standing,
    open: Epoch,
    floor: Epoch,
    base: Epoch,
    cutting: Option<Cutting>,
    wanted: bool,
    /// Until then somebody else makes the epochs: a checkpointer, with the guest paused.
    driven_until: Nanos,
    /// A cut was wanted that is theirs to make.
    is_wished: bool,
    /// A link came up or a sync was sent since the last cut: what the backup begins to follow with
    /// must be found in every journal after a crash, and an empty epoch would not be.
    must_seal: bool,
    /// Who waits for the cut that is under way, and who for the one after it.
    tokens: Vec<u64>,
    next_tokens: Vec<u64>,
    /// The one after it leaves a seal in every journal.
    next_seals: bool,
    inflight: VecDeque<(Epoch, Nanos)>,
    committed: Epoch,
    next_cut: Nanos,
    writing_meta: bool,
    lost: Option<String>,
    /// The backup refused this side and will do so again.
    refusal: Option<RefuseCode>,
    /// A backup has taken every volume in since the start.
    was_linked: bool,
}

impl PrimaryGroup {
    /// A group whose metadata, with the history entry of this start, is durable.
    #[must_use]
    pub fn new(meta: GroupMeta, settings: GroupSettings, unix_ns: u64, reason: &str) -> Self {
        let open = meta.tip().map_or(Epoch(1), |tip| tip.first_epoch);
        let state = match settings.loss {
            LossPolicy::Degrade => State::Standalone,
            LossPolicy::Pause => State::Paused,
        };
        let member = Member {
            link: Link::Down,
            lost: None,
            gives_up: false,
            committed: Epoch::NONE,
            prepared: false,
            cut: None,
        };
        Self {
            members: vec![member; usize::from(meta.volume_count)],
            meta,
            settings,
            standing: Standing {
                state,
                reason: reason.to_owned(),
                since_unix_ns: unix_ns,
                next: state.next(),
            },
            open,
            floor: Epoch::NONE,
            base: Epoch::NONE,
            cutting: None,
            wanted: false,
            driven_until: 0,
            is_wished: false,
            must_seal: false,
            tokens: Vec::new(),
            next_tokens: Vec::new(),
            next_seals: false,
            inflight: VecDeque::new(),
            committed: Epoch::NONE,
            next_cut: 0,
            writing_meta: false,
            lost: None,
            refusal: None,
            was_linked: false,
        }
    }

    /// What the volumes have to be told before anything else.
    pub fn start(&mut self, fx: &mut Vec<GroupEffect>) {
        let protection = match self.settings.loss {
            LossPolicy::Degrade => Protection::Unprotected,
            LossPolicy::Pause => Protection::Blocked,
        };
        self.tell(&ToVolume::Protect(protection), fx);
    }

    /// The histories, oldest first, as volumes say them in a hello.
    #[must_use]
    pub fn lineage(&self) -> Vec<(LineageId, Epoch)> {
        self.meta
            .lineage
            .iter()
            .map(|e| (e.id, e.first_epoch))
            .collect()
    }

    /// State with reason.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// A backup has taken every volume in since the start.
    #[must_use]
    pub fn was_linked(&self) -> bool {
        self.was_linked
    }

    /// Metadata as it is in mind.
    #[must_use]
    pub fn meta(&self) -> &GroupMeta {
        &self.meta
    }

    /// Open and committed epoch.
    #[must_use]
    pub fn epochs(&self) -> (Epoch, Epoch) {
        (self.open, self.committed)
    }

    /// How long ago the oldest epoch that is not committed was cut.
    #[must_use]
    pub fn oldest_uncommitted_ns(&self, now: Nanos) -> Nanos {
        self.inflight
            .front()
            .map_or(0, |(_, cut_at)| now.saturating_sub(*cut_at))
    }

    /// Epochs cut and not committed.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.inflight.len()
    }

    /// When [`PrimaryGroup::tick`] wants to be called at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Nanos> {
        let timed = self.settings.epoch_ns.is_some() && self.is_linked();
        let timed = timed.then_some(self.next_cut.max(self.driven_until));
        let wished = self.is_wished.then_some(self.driven_until);
        timed.into_iter().chain(wished).min()
    }

    /// Whoever asks makes the epochs until then: this side cuts none of its own accord, and says by
    /// [`PrimaryGroup::is_cut_wished`] when it would have.
    pub fn drive(&mut self, until: Nanos) {
        self.driven_until = self.driven_until.max(until);
    }

    /// A cut is wanted before the next one is due: journals fill up, or what was compared waits for its
    /// first commit.
    #[must_use]
    pub fn is_cut_wished(&self, now: Nanos) -> bool {
        // Asked for once, it may have been another's cut, or memory of it was lost: without a commit there is no
        // protection, and without a cut no commit.
        let is_sent = |m: &Member| matches!(m.link, Link::Up { synced: Some(_) });
        let waits = self.standing.state == State::Resyncing && self.members.iter().all(is_sent);
        let is_late = self.oldest_uncommitted_ns(now) >= WISHED_AGAIN_NS;
        self.is_wished || (waits && self.cutting.is_none() && (self.inflight.is_empty() || is_late))
    }

    fn is_driven(&self, at: &Now) -> bool {
        at.ns < self.driven_until
    }

    /// Every volume is: with fewer no epoch is ever committed.
    fn is_linked(&self) -> bool {
        self.members.iter().all(|m| m.link != Link::Down)
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

    /// What happens next, or what to do: a comparison is promised only where one will come.
    fn next_of(&self, state: State) -> &'static str {
        match (state, self.refusal) {
            (State::Standalone | State::Degraded | State::Paused, Some(code)) => remedy(code),
            _ => state.next(),
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        if self.is_driven(at) {
            return;
        }
        if std::mem::take(&mut self.is_wished) {
            // Who made the epochs is gone.
            self.want_cut(at, fx);
        }
        let Some(epoch_ns) = self.settings.epoch_ns else {
            return;
        };
        if at.ns < self.next_cut || !self.is_linked() {
            return;
        }
        self.next_cut = at.ns + epoch_ns;
        if self.cutting.is_none() && self.has_room(INFLIGHT_TIMED_MAX) {
            self.start_cut(at, fx);
        }
    }

    /// Somebody wants a cut now; the answer is a [`GroupEffect::CutReply`] with the token. One that is
    /// under way does not do: it may leave out what was written before this was asked. With
    /// `leaves_seal` every journal gets a seal of it, written or not.
    pub fn cut(&mut self, at: &mut Now, token: u64, leaves_seal: bool, fx: &mut Vec<GroupEffect>) {
        if self.cutting.is_none() {
            self.must_seal |= leaves_seal;
            self.tokens.push(token);
            self.start_cut(at, fx);
        } else {
            self.next_tokens.push(token);
            self.next_seals |= leaves_seal;
        }
    }

    /// Whether one more epoch may be on its way. Until the group is protected a backup need not
    /// acknowledge any, and the one that makes it so must not wait for them.
    fn has_room(&self, inflight_max: usize) -> bool {
        self.standing.state != State::Protected || self.inflight.len() < inflight_max
    }

    fn start_cut(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        (self.wanted, self.is_wished) = (false, false);
        let next = self.open.next().max(self.floor.next());
        self.cutting = Some(Cutting {
            epoch: self.open,
            next,
            unix_ns: 0,
            sent: false,
            begins: false,
        });
        for member in &mut self.members {
            member.prepared = false;
            member.cut = None;
        }
        self.tell(&ToVolume::Prepare, fx);
        let _ = at;
    }

    fn advance_cut(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        let Some(cutting) = &mut self.cutting else {
            return;
        };
        if !cutting.sent && self.members.iter().all(|m| m.prepared) {
            cutting.sent = true;
            cutting.unix_ns = at.unix_ns;
            cutting.begins = std::mem::take(&mut self.must_seal);
            let message = ToVolume::Cut {
                epoch: cutting.epoch,
                next: cutting.next,
            };
            self.tell(&message, fx);
            return;
        }
        if !cutting.sent || !self.members.iter().all(|m| m.cut.is_some()) {
            return;
        }
        let Some(Cutting {
            epoch,
            next,
            unix_ns,
            begins,
            ..
        }) = self.cutting.take()
        else {
            return;
        };
        let group_wrote = begins || self.members.iter().any(|m| m.cut == Some(true));
        let base = self.base;
        self.open = next;
        if group_wrote {
            self.base = epoch;
        }
        if self.is_linked() {
            self.inflight.push_back((epoch, at.ns));
            if self.inflight.len() > INFLIGHT_KEPT_MAX {
                self.inflight.pop_front();
            }
        }
        self.tell(
            &ToVolume::Seal {
                epoch,
                group_wrote,
                base,
                cut_unix_ns: unix_ns,
            },
            fx,
        );
        for token in std::mem::take(&mut self.tokens) {
            fx.push(GroupEffect::CutReply {
                token,
                epoch,
                cut_unix_ns: unix_ns,
            });
        }
        self.tokens.append(&mut self.next_tokens);
        self.must_seal |= std::mem::take(&mut self.next_seals);
        if self.open <= self.floor || !self.tokens.is_empty() {
            // A backup that has seen more was heard of while this cut was under way, or a cut asked for.
            self.start_cut(at, fx);
        } else if self.wanted {
            self.want_cut(at, fx);
        }
    }

    fn want_cut(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        if self.is_driven(at) {
            (self.wanted, self.is_wished) = (false, true);
            return;
        }
        if self.cutting.is_none() && self.is_linked() && self.has_room(INFLIGHT_WANTED_MAX) {
            self.start_cut(at, fx);
        } else {
            self.wanted = true;
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
            ToGroup::Prepared => {
                self.members[index].prepared = true;
                self.advance_cut(at, fx);
            }
            ToGroup::CutDone { wrote, .. } => {
                self.members[index].cut = Some(wrote);
                self.advance_cut(at, fx);
            }
            ToGroup::WantCut => self.want_cut(at, fx),
            ToGroup::NeedEpoch(above) => {
                self.floor = self.floor.max(above);
                if self.cutting.is_none() {
                    self.start_cut(at, fx);
                }
            }
            ToGroup::LinkUp { sync_needed } => {
                self.must_seal = true;
                self.refusal = None;
                let synced = (!sync_needed).then_some(Epoch::NONE);
                self.members[index].link_up(synced);
                if self.is_linked() {
                    self.tell(&ToVolume::Compare, fx);
                }
                // Epochs cut before are committed only with one that this session seals: waiting
                // for them before that one is cut would be waiting for ever.
                self.inflight.clear();
                self.next_cut = self.next_cut.min(at.ns);
                self.advance_protection(at, fx);
                if self.wanted {
                    self.want_cut(at, fx);
                }
            }
            ToGroup::SyncSent(epoch) => {
                self.must_seal = true;
                self.members[index].link = Link::Up {
                    synced: Some(epoch),
                };
                self.inflight.clear();
                self.want_cut(at, fx);
                self.advance_protection(at, fx);
            }
            ToGroup::Acked { durable, .. } if crate::mutant!("released-above-committed") => {
                self.acked(at, index, durable, fx);
            }
            ToGroup::Acked { committed, .. } => self.acked(at, index, committed, fx),
            ToGroup::PressureTimeout => self.pressed_too_long(at, fx),
            ToGroup::Refused(code, text) => self.refused(at, index, code, &text, fx),
            // A connection that ends after a refusal says less than the refusal did.
            ToGroup::LinkLost(reason) if self.refusal.is_some() && self.is_alone() => {
                let known = self.members[index].lost.clone();
                self.unlink(index, &known.unwrap_or(reason), fx);
            }
            ToGroup::LinkLost(reason) => self.link_lost(at, index, reason, fx),
            ToGroup::Failed(text) => {
                self.tell(&ToVolume::Protect(Protection::Blocked), fx);
                self.tell(
                    &ToVolume::DropLink(format!("a primary volume failed: {text}")),
                    fx,
                );
                let reason = format!("volume {index}: {text}");
                self.become_state(at, State::Failed, reason, fx);
            }
            // From the backup that a volume was until its journal was drained.
            ToGroup::Hello(_)
            | ToGroup::SessionUp
            | ToGroup::Sealed(_)
            | ToGroup::Inconsistent
            | ToGroup::Consistent(_)
            | ToGroup::Fenced { .. }
            | ToGroup::Serving
            | ToGroup::Drained => {}
        }
    }

    fn pressed_too_long(&mut self, at: &Now, fx: &mut Vec<GroupEffect>) {
        let reason =
            "writes waited too long for room in the backup's journal: its disk, or the link, is \
                      slower than the guest writes; see --journal-size there and \
                      --backpressure-timeout here"
                .to_owned();
        if self.settings.loss == LossPolicy::Degrade {
            self.tell(&ToVolume::DropLink(reason), fx);
        } else {
            let state = self.standing.state;
            self.become_state(at, state, reason, fx);
        }
    }

    fn acked(&mut self, at: &mut Now, index: usize, committed: Epoch, fx: &mut Vec<GroupEffect>) {
        self.members[index].committed = committed;
        if committed > self.committed {
            self.committed = committed;
            while let Some((epoch, cut_at)) = self.inflight.front().copied() {
                if epoch > committed {
                    break;
                }
                self.inflight.pop_front();
                fx.push(GroupEffect::Latency(at.ns.saturating_sub(cut_at)));
            }
            // Nothing holds output here: what is committed is released.
            self.tell(&ToVolume::Released(committed), fx);
        }
        self.advance_protection(at, fx);
        if self.wanted {
            self.want_cut(at, fx);
        }
    }

    /// Protected once every volume is linked and equal as of a committed epoch.
    fn advance_protection(&mut self, at: &mut Now, fx: &mut Vec<GroupEffect>) {
        if matches!(
            self.standing.state,
            State::Failed | State::Protected | State::Degrading
        ) {
            return;
        }
        let mut all_up = true;
        let mut all_equal = true;
        for member in &self.members {
            match member.link {
                Link::Down => all_up = false,
                Link::Up { synced: None } => all_equal = false,
                Link::Up {
                    synced: Some(epoch),
                } => {
                    all_equal &= epoch == Epoch::NONE || member.committed >= epoch;
                }
            }
        }
        if !all_up {
            return;
        }
        self.was_linked = true;
        if all_equal {
            let reason = "the backup follows".to_owned();
            self.become_state(at, State::Protected, reason, fx);
            self.tell(&ToVolume::Protect(Protection::Protected), fx);
        } else if self.standing.state != State::Resyncing {
            let reason = "the images are being compared".to_owned();
            self.become_state(at, State::Resyncing, reason, fx);
        }
    }

    /// The backup does not take this side in.
    fn refused(
        &mut self,
        at: &mut Now,
        index: usize,
        code: RefuseCode,
        text: &str,
        fx: &mut Vec<GroupEffect>,
    ) {
        if code.is_final() || self.standing.state != State::Superseded {
            self.refusal = code.is_final().then_some(code);
        }
        let how = if code.is_final() {
            "refused"
        } else {
            "not taken now"
        };
        let reason = format!("{how} by the backup: {text}");
        let known = self.standing.state == State::Superseded && !code.is_final();
        if !self.is_alone() || known {
            self.link_lost(at, index, reason, fx);
            return;
        }
        self.unlink(index, &reason, fx);
        let reason = self.loss_reason(reason);
        let (state, reason) = match (code, self.settings.loss) {
            (RefuseCode::Superseded, LossPolicy::Degrade) => {
                let and = "this side still serves its guest, and writes taken here are in nobody's \
                           history";
                (State::Superseded, format!("{reason}; {and}"))
            }
            (RefuseCode::Superseded, LossPolicy::Pause) => {
                (State::Superseded, format!("{reason}; writes wait here"))
            }
            (_, LossPolicy::Pause) => (State::Paused, reason),
            (_, LossPolicy::Degrade) if self.was_linked => (State::Degraded, reason),
            (_, LossPolicy::Degrade) => (State::Standalone, reason),
        };
        self.become_state(at, state, reason, fx);
    }

    /// No backup, and that is known and durable.
    fn is_alone(&self) -> bool {
        matches!(
            self.standing.state,
            State::Standalone | State::Degraded | State::Paused | State::Superseded
        )
    }

    /// One volume has no link: the others give theirs up.
    fn unlink(&mut self, index: usize, reason: &str, fx: &mut Vec<GroupEffect>) {
        let member = &mut self.members[index];
        member.lost = (!std::mem::take(&mut member.gives_up)).then(|| reason.to_owned());
        // One that never got through takes nothing away from the others.
        if std::mem::replace(&mut member.link, Link::Down) == Link::Down {
            return;
        }
        self.inflight.clear();
        for other in 0..self.members.len() {
            if self.members[other].link != Link::Down {
                let text = format!("volume {index} lost its link: {reason}");
                self.members[other].gives_up = true;
                fx.push(GroupEffect::ToVolume(other, ToVolume::DropLink(text)));
            }
        }
    }

    /// `reason` of one volume, where the group has others: each that has no link with its own, since each
    /// has an address of its own.
    fn loss_reason(&self, reason: String) -> String {
        let lost: Vec<(usize, &String)> = (self.members.iter().enumerate())
            .filter_map(|(index, member)| Some((index, member.lost.as_ref()?)))
            .collect();
        let is_one =
            lost.len() == self.members.len() && lost.iter().all(|(_, why)| **why == reason);
        if lost.is_empty() || is_one {
            return reason;
        }
        let name = |index: usize| match self.settings.volume_names.get(index) {
            Some(name) => format!("volume {index} ({name})"),
            None => format!("volume {index}"),
        };
        let told = lost.iter().take(TOLD_VOLUMES_MAX);
        let mut parts: Vec<String> = told
            .map(|(index, why)| format!("{}: {why}", name(*index)))
            .collect();
        if lost.len() > TOLD_VOLUMES_MAX {
            parts.push(format!("and {} more", lost.len() - TOLD_VOLUMES_MAX));
        }
        parts.join("; ")
    }

    fn link_lost(&mut self, at: &mut Now, index: usize, reason: String, fx: &mut Vec<GroupEffect>) {
        self.unlink(index, &reason, fx);
        let reason = self.loss_reason(reason);
        match (self.standing.state, self.settings.loss) {
            (State::Protected, LossPolicy::Degrade) => self.degrade(at, reason, fx),
            (State::Protected | State::Resyncing | State::Paused, LossPolicy::Pause) => {
                self.tell(&ToVolume::Protect(Protection::Blocked), fx);
                self.become_state(at, State::Paused, reason, fx);
            }
            // Unprotected before and after.
            (State::Resyncing, LossPolicy::Degrade) => {
                self.become_state(at, State::Degraded, reason, fx);
            }
            (State::Standalone | State::Degraded, _) => {
                let state = self.standing.state;
                self.become_state(at, state, reason, fx);
            }
            _ => {}
        }
    }

    /// Makes the loss of protection durable; only then are writes answered without a backup.
    fn degrade(&mut self, at: &mut Now, reason: String, fx: &mut Vec<GroupEffect>) {
        self.tell(&ToVolume::Protect(Protection::Blocked), fx);
        let entry = LineageEntry {
            id: (at.fresh)(),
            first_epoch: self.open,
            why: LineageWhy::Degraded,
            unix_s: at.unix_ns / 1_000_000_000,
        };
        self.meta.begin(entry);
        self.meta.all_dirty = true;
        self.meta.generation += 1;
        self.writing_meta = true;
        self.lost = Some(reason.clone());
        fx.push(GroupEffect::WriteMeta(Box::new(self.meta.clone())));
        if crate::mutant!("degrade-before-durable") {
            self.tell(&ToVolume::Protect(Protection::Unprotected), fx);
        }
        self.become_state(at, State::Degrading, reason, fx);
    }

    /// The metadata is durable, or cannot be made so.
    pub fn meta_written(
        &mut self,
        at: &mut Now,
        result: Result<(), String>,
        fx: &mut Vec<GroupEffect>,
    ) {
        self.writing_meta = false;
        if let Err(error) = result {
            let reason = format!("group metadata: {error}");
            self.become_state(at, State::Failed, reason.clone(), fx);
            // Writes wait for a loss of protection that can never be durable: they get an error.
            self.tell(&ToVolume::Fail(reason), fx);
            return;
        }
        if self.standing.state == State::Degrading {
            let reason = self.lost.take().unwrap_or_default();
            self.tell(&ToVolume::Lineage(self.lineage()), fx);
            self.tell(&ToVolume::Protect(Protection::Unprotected), fx);
            self.become_state(at, State::Degraded, reason, fx);
            self.advance_protection(at, fx);
        }
    }

    /// Whether volumes should be connected to the backup now.
    #[must_use]
    pub fn wants_links(&self) -> bool {
        !self.writing_meta && self.standing.state != State::Failed
    }
}
