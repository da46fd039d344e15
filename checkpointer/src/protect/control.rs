//! What is asked over the control socket.

use super::{Input, Protector};
use crate::control::Asked;
use crate::sequence::Event;
use blkback_proto::ctl::{
    Answer, ErrorCode, GuestProtection, GuestStopAnswer, GuestStopRequest, Request,
};
use blockrep_host::ctl::{ReplyHandle, elsewhere};

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

impl Protector {
    pub(super) fn asked(&mut self, request: &Request, reply: ReplyHandle) {
        match request {
            Request::GuestStatus(_) => reply.ok(Answer::GuestStatus(Box::new(self.report()))),
            Request::GuestTimeline(asked) => {
                reply.ok(Answer::GuestTimeline(self.timeline.batch(asked.from_seq)));
            }
            Request::GuestStop(asked) => self.stop(asked, reply),
            Request::GuestPromote(_) => {
                let text = "the guest runs here: promote it where it would go on";
                reply.error(ErrorCode::WrongRole, text);
            }
            other => reply.error(ErrorCode::Unsupported, elsewhere(other)),
        }
    }

    /// The guest is to run on alone; the authority has to agree, or an operator to vouch.
    fn stop(&mut self, asked: &GuestStopRequest, reply: ReplyHandle) {
        let standing = self.sequence.standing();
        if matches!(standing.state, "open" | "over") {
            reply.ok(Answer::GuestStop(self.stopped(standing.state, true)));
            return;
        }
        tracing::info!("an operator ends the protection: {}", asked.reason);
        self.is_stopping = true;
        self.is_by_hand |= asked.by_hand;
        self.stop_replies.push(reply);
        self.step(Event::Stop);
    }

    fn stopped(&self, state: &str, already: bool) -> GuestStopAnswer {
        let state = GuestProtection::from(state);
        let note = match state {
            GuestProtection::Over => self.sequence.standing().reason,
            _ => String::new(),
        };
        GuestStopAnswer {
            already,
            state,
            committed: self.sequence.committed().map(|epoch| epoch.0),
            note,
        }
    }

    /// Protection has come to its end, or the authority has said something about it.
    pub(super) fn answer_stops(&mut self, state: &str) {
        let answer = self.stopped(state, false);
        for reply in self.stop_replies.drain(..) {
            reply.ok(Answer::GuestStop(answer.clone()));
        }
        if state == "open" && self.is_stopping {
            self.is_over = true;
        }
    }

    /// The authority did not agree: who asked is told why, and what to type.
    pub(super) fn refuse_stops(&mut self, why: &str) {
        let text = format!("protection does not end: {why}");
        for reply in self.stop_replies.drain(..) {
            reply.error(ErrorCode::NeedsByHand, &text);
        }
    }
}
