//! Requests of control clients, on the thread of the group.

use super::files::write_text;
use super::role::Group;
use super::status::{Collector, refused_lately};
use super::thread::{Mail, VolumeThread, fresh_lineage, now};
use crate::engine::{Nanos, ToVolume};
use crate::group::{Alive, PromoteError, PromoteWish, Promoted, State};
use crate::reactor::MailSender;
use blkback_proto::ctl::{
    Answer, CutAnswer, CutRequest, ErrorCode, EventKind, PrepareAnswer, PromoteAnswer,
    PromoteRequest, RefusedPeer, Request, UNSERVED,
};
use blkback_proto::ids::Epoch;
use blockrep_host::clock;
use blockrep_host::ctl::{Handler, NewEvent, PeerCred, ReplyHandle, elsewhere};
use std::sync::Arc;

/// Longest wait for a commit that a client may ask for, in milliseconds.
const WAIT_MS_MAX: u64 = 60_000;
/// How long a promotion without force waits for the link to end: a primary that was killed a moment
/// ago still looks connected until the kernel tells of it.
const LINK_END_NS_MAX: Nanos = 2_000_000_000;

/// A cut whose commit somebody waits for.
pub(super) struct CutWait {
    pub(super) epoch: Epoch,
    pub(super) reply: ReplyHandle,
    pub(super) until: Nanos,
}

/// A promotion under way.
pub(super) struct PromoteAsked {
    pub(super) token: u64,
    pub(super) reply: ReplyHandle,
    /// The primary that was connected when it began.
    pub(super) cut_off: Option<String>,
}

/// A promotion that waits for the end of the link.
pub(super) struct PromoteWait {
    pub(super) request: PromoteRequest,
    pub(super) reply: ReplyHandle,
    pub(super) until: Nanos,
}

/// Hands requests of the control thread to the I/O threads.
pub(super) struct Router {
    pub(super) threads: Vec<MailSender<Mail>>,
}

impl Handler for Router {
    fn handle(&mut self, request: Request, _peer: PeerCred, reply: ReplyHandle) {
        if matches!(request, Request::Status(_)) {
            let collector = Arc::new(Collector::new(self.threads.len(), reply));
            for thread in &self.threads {
                // Without the thread its report is missing and the collector's drop answers.
                let _ = thread.try_send(Mail::Status(Arc::clone(&collector)));
            }
            return;
        }
        // A full mailbox or an ended thread drops the handle, which answers with an error.
        let _ = self.threads[0].try_send(Mail::Control(request, reply));
    }
}

impl VolumeThread {
    pub(super) fn control(&mut self, request: Request, reply: ReplyHandle) {
        match request {
            Request::Prepare(_) => self.prepare(reply),
            Request::Cut(cut) => self.cut(&cut, reply),
            Request::Promote(promote) => self.ask_promotion(promote, reply),
            Request::Drive(_)
            | Request::MemoryJoin(_)
            | Request::MemoryWhole(_)
            | Request::MemoryWait(_)
            | Request::MemoryLeave(_) => self.guest_memory(request, reply),
            Request::PagesArm(_) | Request::PagesTake(_) | Request::PagesDisarm(_) => {
                self.pages(request, reply);
            }
            Request::Hello(_) | Request::Events(_) | Request::Status(_) => {
                reply.error(ErrorCode::Unsupported, "answered elsewhere");
            }
            request => reply.error(ErrorCode::Unsupported, elsewhere(&request)),
        }
    }

    fn cut(&mut self, cut: &CutRequest, reply: ReplyHandle) {
        let until = self.now + cut.timeout_ms.min(WAIT_MS_MAX) * 1_000_000;
        let Some(Group::Primary(group)) = &mut self.group else {
            let text = "this side is a backup: cut epochs at the primary";
            reply.error(ErrorCode::WrongRole, text);
            return;
        };
        let token = self.next_token;
        self.next_token += 1;
        let open = group.epochs().0;
        match cut.epoch.map(Epoch) {
            Some(epoch) if epoch > open || epoch == Epoch::NONE => {
                let text = format!("epoch {epoch} is not next: {open} is open");
                reply.error(ErrorCode::WrongEpoch, text);
            }
            Some(epoch) if epoch < open => {
                self.pending_cuts
                    .push((token, cut.wait_durable, until, reply));
                self.cut_done(token, epoch);
            }
            _ => {
                self.pending_cuts
                    .push((token, cut.wait_durable, until, reply));
                let mut fresh = fresh_lineage;
                let mut at = now(self.now, &mut fresh);
                group.cut(&mut at, token, cut.seal, &mut self.gfx);
            }
        }
    }

    /// The hypervisor is about to drain its guest: waiting writes may use the reserve.
    fn prepare(&mut self, reply: ReplyHandle) {
        let Some(Group::Primary(group)) = &self.group else {
            reply.error(
                ErrorCode::WrongRole,
                "this side is a backup: prepare at the primary",
            );
            return;
        };
        let epoch = group.epochs().0.0;
        for (index, peer) in self.peers.iter().enumerate() {
            if index == self.about.index {
                self.local.push(Mail::ToVolume(ToVolume::Drain));
            } else if peer.send(Mail::ToVolume(ToVolume::Drain)).is_err() {
                tracing::debug!("the thread of volume {index} has ended");
            }
        }
        reply.ok(Answer::Prepare(PrepareAnswer { epoch }));
    }

    pub(super) fn cut_done(&mut self, token: u64, epoch: Epoch) {
        let Some(at) = self.pending_cuts.iter().position(|c| c.0 == token) else {
            return;
        };
        let (_, wait, until, reply) = self.pending_cuts.swap_remove(at);
        if wait {
            self.cut_waits.push(CutWait {
                epoch,
                reply,
                until,
            });
            self.tick_control();
        } else {
            let committed = self.committed() >= epoch;
            reply.ok(Answer::Cut(CutAnswer {
                epoch: epoch.0,
                committed,
                lineage: self.lineage_text(),
            }));
        }
    }

    /// Answers waits that are over.
    pub(super) fn tick_control(&mut self) {
        self.tick_promotions();
        self.tick_guest_memory();
        if self.cut_waits.is_empty() {
            return;
        }
        let (committed, now, lineage) = (self.committed(), self.now, self.lineage_text());
        let failed = match &self.group {
            Some(Group::Primary(group)) if group.standing().state == State::Failed => {
                Some(group.standing().reason.clone())
            }
            _ => None,
        };
        let over =
            |wait: &mut CutWait| wait.epoch <= committed || wait.until <= now || failed.is_some();
        for wait in self.cut_waits.extract_if(.., over) {
            if wait.epoch <= committed {
                let answer = CutAnswer {
                    epoch: wait.epoch.0,
                    committed: true,
                    lineage: lineage.clone(),
                };
                wait.reply.ok(Answer::Cut(answer));
            } else if let Some(reason) = &failed {
                let text = format!("epoch {} will not be committed: {reason}", wait.epoch);
                wait.reply.error(ErrorCode::IoError, text);
            } else {
                let text = format!(
                    "epoch {} was cut and is not committed yet: see `blockrepctl status`",
                    wait.epoch
                );
                wait.reply.error(ErrorCode::TimedOut, text);
            }
        }
    }

    fn ask_promotion(&mut self, request: PromoteRequest, reply: ReplyHandle) {
        tracing::warn!("an operator asks for promotion: {}", request.reason);
        if self.is_held_by_link(&request) {
            tracing::info!("the primary is still connected: waits for the link to end");
            self.promote_waits.push(PromoteWait {
                request,
                reply,
                until: self.now + LINK_END_NS_MAX,
            });
            return;
        }
        self.promote(&request, reply);
    }

    /// Nothing but a primary that looks alive stands against the promotion.
    fn is_held_by_link(&self, request: &PromoteRequest) -> bool {
        let Some(Group::Backup(group)) = &self.group else {
            return false;
        };
        let held = group.may_promote(&wish_of(request, Alive::default()));
        matches!(held, Err(PromoteError::Alive(_)))
    }

    /// Promotions whose link has ended, or has not in all the time there is.
    fn tick_promotions(&mut self) {
        let waits = std::mem::take(&mut self.promote_waits);
        for wait in waits {
            if wait.until > self.now && self.is_held_by_link(&wait.request) {
                self.promote_waits.push(wait);
            } else {
                self.promote(&wait.request, wait.reply);
            }
        }
    }

    fn promote(&mut self, request: &PromoteRequest, reply: ReplyHandle) {
        let Some(Group::Backup(group)) = &mut self.group else {
            let text = "this side is the primary already: nothing to promote";
            reply.error(ErrorCode::WrongRole, text);
            return;
        };
        let token = self.next_token;
        self.next_token += 1;
        let link = self.net.link.as_ref();
        // A link that is no session belongs to somebody who was not taken in.
        let in_session = self.net.last_session.is_up();
        let peer = link.filter(|_| in_session).map(|link| link.peer.clone());
        self.promotes.push(PromoteAsked {
            token,
            reply,
            cut_off: peer.clone(),
        });
        let heard = self
            .net
            .link
            .as_ref()
            .map(|_| self.now.saturating_sub(self.net.heard));
        let mut fresh = fresh_lineage;
        let mut at = now(self.now, &mut fresh);
        let alive = Alive {
            peer: peer.unwrap_or_else(|| "another volume's link".to_owned()),
            heard_ms: heard.unwrap_or(0) / 1_000_000,
        };
        group.promote(&mut at, token, wish_of(request, alive), &mut self.gfx);
    }

    pub(super) fn promote_done(&mut self, token: u64, result: Result<Promoted, PromoteError>) {
        let Some(at) = self.promotes.iter().position(|p| p.token == token) else {
            return;
        };
        let PromoteAsked { reply, cut_off, .. } = self.promotes.swap_remove(at);
        match result {
            Ok(promoted) => {
                let answer = self.answer_of(&promoted, cut_off);
                if is_news(&promoted) {
                    self.keep_loss(&answer);
                    self.tell_promoted(&answer);
                }
                reply.ok(Answer::Promote(answer));
            }
            Err(error) => {
                let event = NewEvent::new(
                    self.about.group_name.clone(),
                    EventKind::PromotionRefused,
                    error.to_string(),
                    "",
                );
                self.publish(event);
                reply.error(code_of(&error), error.to_string());
            }
        }
    }
}

/// Asked again, a side that is promoted only says so.
fn is_news(promoted: &Promoted) -> bool {
    promoted.took_ns != 0
}

impl VolumeThread {
    fn answer_of(&self, promoted: &Promoted, cut_off: Option<String>) -> PromoteAnswer {
        let cut_unix_ns = match &self.engine {
            super::role::Engine::Backup(engine) => engine.cut_unix_ns(promoted.epoch),
            super::role::Engine::Primary(_) => 0,
        };
        let is_news = is_news(promoted);
        let cut_off = cut_off.filter(|_| is_news);
        let lost = self.net.last_session.lost_unix_ms();
        let link_lost_unix_ms = lost.filter(|_| is_news && cut_off.is_none());
        let uptime_ms = u64::try_from(self.about.started.elapsed().as_millis());
        let started_unix_ms = clock::unix_ms().saturating_sub(uptime_ms.unwrap_or(0));
        let never = is_news && cut_off.is_none() && link_lost_unix_ms.is_none();
        PromoteAnswer {
            epoch: promoted.epoch.0,
            cut_unix_ns,
            lineage: promoted.lineage.to_string(),
            dropped_epochs: promoted.dropped_epochs,
            damaged_epoch: promoted.damaged.map(|epoch| epoch.0),
            duration_us: promoted.took_ns / 1000,
            unserved: self.is_unserved(),
            refused: refused_lately(self.net.refused.as_ref(), clock::unix_ms()),
            cut_off,
            link_lost_unix_ms,
            no_link_since_unix_ms: never.then_some(started_unix_ms),
        }
    }

    /// The disk has no address at which anybody could use it.
    pub(super) fn is_unserved(&self) -> bool {
        self.nbd_listener.is_none() && self.rings.is_none()
    }

    /// What an operator gave up is told by status as long as this disk is served.
    fn keep_loss(&mut self, answer: &PromoteAnswer) {
        if answer.damaged_epoch.is_none() {
            return;
        }
        let text = format!("at the promotion {}", answer.dropped_text());
        if let Err(error) = write_text(&self.about.loss_file, &text) {
            tracing::warn!("{text}; after a restart status does not say so: {error}");
        }
        self.about.lost = Some(text);
    }

    /// The change of state has told the epoch and what comes next.
    fn tell_promoted(&self, answer: &PromoteAnswer) {
        let mut reason = format!(
            "serves epoch {} under lineage {}; {}",
            answer.epoch,
            answer.lineage,
            answer.dropped_text()
        );
        if let Some(peer) = &answer.cut_off {
            reason += &format!(
                "; it was forced: the primary at {peer} was connected and is cut off, not stopped: what \
                 it answers from now on is not here, stop it"
            );
        }
        if let Some(lost) = answer.link_lost_unix_ms {
            reason += &format!(
                "; the link was lost at {}: what the primary answered after that is not here",
                clock::utc_text(lost)
            );
        }
        if let Some(RefusedPeer { peer, unix_ms, .. }) = &answer.refused {
            let ago_s = clock::unix_ms().saturating_sub(*unix_ms) / 1000;
            reason += &format!(
                "; the primary at {peer} was alive {ago_s} s ago, when it was refused: its guest \
                 must not run"
            );
        }
        let next = if answer.unserved { UNSERVED } else { "" };
        let group = self.about.group_name.clone();
        self.publish(NewEvent::new(group, EventKind::Promoted, reason, next));
    }
}

fn wish_of(request: &PromoteRequest, alive: Alive) -> PromoteWish {
    PromoteWish {
        force: request.force,
        accept_suspect: request.accept_suspect,
        with_memory: request.with_memory,
        disk_only: request.disk_only,
        alive: Some(alive),
    }
}

fn code_of(error: &PromoteError) -> ErrorCode {
    match error {
        PromoteError::Alive(_) => ErrorCode::NeedsForce,
        PromoteError::Inconsistent { .. } => ErrorCode::Inconsistent,
        PromoteError::Suspect { .. } => ErrorCode::NeedsAcceptSuspect,
        PromoteError::Blank | PromoteError::UnderWay | PromoteError::Memory(_) => {
            ErrorCode::Refused
        }
        PromoteError::Failed(_) => ErrorCode::IoError,
    }
}
