//! The control socket of the standby's daemon.

use super::promote::NotPromoted;
use super::{Input, Keeper, ReceiveError, lock};
use crate::config::Config;
use blkback_proto::ctl::{
    Answer, ErrorCode, GuestPromoteAnswer, GuestPromoteRequest, GuestProtection, GuestStopAnswer,
    GuestTimelineAnswer, Request,
};
use blockrep_host::ctl::{
    ControlSocket, EventLog, Handler, Limits, PeerCred, ReplyHandle, Server, ServerConfig,
    elsewhere,
};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

struct Mailbox(Sender<Input>);

impl Handler for Mailbox {
    fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
        // An owner that has gone drops the handle, which answers with an error.
        let _ = self.0.send(Input::Ask(request, reply));
    }
}

pub(super) fn serve(
    path: &Path,
    config: &Config,
    log: &EventLog,
    outbox: Sender<Input>,
) -> Result<Server, ReceiveError> {
    let socket = ControlSocket::claim(path)?;
    let server = ServerConfig {
        path: path.to_owned(),
        daemon: format!("checkpointer {}", env!("CARGO_PKG_VERSION")),
        limits: Limits::default(),
    };
    tracing::info!("{}: control at {}", config.guest, path.display());
    Ok(Server::start_on(
        socket,
        server,
        log.clone(),
        Mailbox(outbox),
    )?)
}

impl Keeper {
    pub(super) fn asked(&mut self, request: &Request, reply: ReplyHandle) {
        match request {
            Request::GuestStatus(_) => reply.ok(Answer::GuestStatus(Box::new(self.report()))),
            Request::GuestTimeline(_) => {
                reply.ok(Answer::GuestTimeline(GuestTimelineAnswer::default()))
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
        if is_heard && !is_decided && !asked.force {
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
