//! The control socket of either daemon: what is asked goes to the owner, who answers.

use crate::inbox::Outbox;
use blkback_proto::ctl::{ErrorCode, Request};
use blockrep_host::ctl::{
    BindError, ControlSocket, EventLog, Handler, Limits, PeerCred, ReplyHandle, Server,
    ServerConfig,
};
use std::path::Path;

/// A word for an owner that may be a request.
pub(crate) trait Asked: Send + 'static {
    /// This one is.
    fn asked(request: Request, reply: ReplyHandle) -> Self;
    /// Who waits for the answer.
    fn reply(self) -> Option<ReplyHandle>;
}

struct Mailbox<T>(Outbox<T>);

impl<T: Asked> Handler for Mailbox<T> {
    fn handle(&mut self, request: Request, _: PeerCred, reply: ReplyHandle) {
        // An owner that has gone drops the handle, which answers with an error.
        if let Err(back) = self.0.offer(T::asked(request, reply))
            && let Some(reply) = back.reply()
        {
            let text = "the daemon has more to do than it can keep: ask again in a moment";
            reply.error(ErrorCode::TimedOut, text);
        }
    }
}

/// Serves a guest's requests to the owner of the inbox.
///
/// # Errors
/// Of the socket.
pub(crate) fn serve<T: Asked>(
    path: &Path,
    guest: &str,
    log: &EventLog,
    outbox: Outbox<T>,
) -> Result<Server, BindError> {
    let socket = ControlSocket::claim(path)?;
    let server = ServerConfig {
        path: path.to_owned(),
        daemon: format!("checkpointer {}", env!("CARGO_PKG_VERSION")),
        limits: Limits::default(),
    };
    tracing::info!("{guest}: control at {}", path.display());
    Server::start_on(socket, server, log.clone(), Mailbox(outbox))
}
