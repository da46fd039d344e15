//! What is asked over the control socket of the standby's daemon.

use super::promote::NotPromoted;
use super::{Input, Keeper, lock};
use crate::control::Asked;
use blkback_proto::ctl::{
    Answer, ErrorCode, GuestPromoteAnswer, GuestPromoteRequest, GuestProtection, GuestStopAnswer,
    Request,
};
use blockrep_host::ctl::{ReplyHandle, elsewhere};
use std::time::Duration;

impl Asked for Input {
    fn asked(request: Request, reply: ReplyHandle) -> Self {
        Self::Ask(request, reply)
    }

    fn reply(self) -> Option<ReplyHandle> {
        match self {
            Self::Ask(_, reply) => Some(reply),
            _ => None,
        }
    }
}

impl Keeper {
    pub(super) fn asked(&mut self, request: &Request, reply: ReplyHandle) {
        match request {
            Request::GuestStatus(_) => reply.ok(Answer::GuestStatus(Box::new(self.report()))),
            Request::GuestTimeline(asked) => {
                reply.ok(Answer::GuestTimeline(self.timeline.batch(asked.from_seq)));
            }
            Request::GuestPromote(asked) => self.promote_asked(asked, reply),
            Request::GuestStop(_) if self.promoted.is_some() => self.stop(reply),
            Request::GuestStop(_) => {
                let text = "this is the standby: end the protection where the guest runs";
                reply.error(ErrorCode::WrongRole, text);
            }
            other => reply.error(ErrorCode::Unsupported, elsewhere(other)),
        }
    }

    /// The guest runs alone already; without this daemon its monitor is free for another.
    fn stop(&mut self, reply: ReplyHandle) {
        let monitor = self.spec.place(&self.run).monitor;
        let note = format!(
            "it runs here, process {}; protect it with `checkpointer protect --qmp {}`",
            self.standby_pid().unwrap_or_default(),
            monitor.display()
        );
        reply.ok(Answer::GuestStop(GuestStopAnswer {
            already: true,
            state: GuestProtection::Promoted,
            committed: None,
            note,
        }));
        self.is_over = true;
    }

    fn promote_asked(&mut self, asked: &GuestPromoteRequest, reply: ReplyHandle) {
        if let Some(done) = &self.promoted {
            let answer = GuestPromoteAnswer {
                already: true,
                ..done.clone()
            };
            reply.ok(Answer::GuestPromote(answer));
            return;
        }
        let limit = Duration::from_millis(self.config.standby.silence_ms);
        // Once it is decided, whoever speaks is not the primary any more.
        let is_decided = self.unfinished.is_some();
        let is_heard = self.heard.is_some_and(|heard| heard.elapsed() <= limit);
        if is_heard && self.handed_over.is_none() && !is_decided && !asked.force {
            let text = "the primary is alive: stop its guest there; or --force, which takes the guest over from it";
            reply.error(ErrorCode::NeedsForce, text);
            return;
        }
        match self.promote(&asked.reason, asked.by_hand) {
            Ok(answer) => reply.ok(Answer::GuestPromote(answer)),
            Err(NotPromoted { code, why }) => {
                let whole = lock(&self.store).committed();
                tracing::error!("not promoted at epoch {whole}: {why}");
                reply.error(code, &why);
            }
        }
    }
}
