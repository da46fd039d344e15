//! The daemon's side of a request: the handler, and the handle by which it answers later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blkback_proto::ctl::{Answer, ErrorCode, Request, Response};

use super::socket::PeerCred;
use crate::Waker;

/// What a daemon does with requests. Called on the ctl thread: it must not wait for anything, but
/// hand the [`ReplyHandle`] to whoever will know the answer.
pub trait Handler: Send {
    /// Never called with `hello` and `events`, which the server answers itself. What the daemon
    /// does not do is answered with [`ErrorCode::Unsupported`].
    fn handle(&mut self, request: Request, peer: PeerCred, reply: ReplyHandle);
}

/// The duty to answer one request, from any thread, at any time. Dropped without an answer, the
/// client gets [`ErrorCode::Internal`]; answered after the client has gone, nothing happens.
#[derive(Debug)]
pub struct ReplyHandle {
    outbox: Arc<Outbox>,
    client: u64,
    request_id: u32,
    request: &'static str,
    answered: bool,
}

/// An answer on its way to the ctl thread.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) client: u64,
    pub(super) request_id: u32,
    pub(super) response: Response,
}

/// Where answers wait for the ctl thread. Bounded by the requests in flight: each handle gives
/// one answer, and each client has a limited number of handles out.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Vec<Answered>>,
    closed: AtomicBool,
    pub(super) waker: Arc<Waker>,
}

impl Outbox {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            queue: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
            waker,
        }
    }

    /// Ends the ctl thread at its next turn; answers given later go nowhere.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn take(&self) -> Vec<Answered> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, answered: Answered) {
        if !self.is_closed() {
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(answered);
            self.waker.wake();
        }
    }
}

impl ReplyHandle {
    pub(super) fn new(
        outbox: &Arc<Outbox>,
        client: u64,
        request_id: u32,
        request: &Request,
    ) -> Self {
        let outbox = Arc::clone(outbox);
        Self {
            outbox,
            client,
            request_id,
            request: request.name(),
            answered: false,
        }
    }

    /// Name of the request that waits.
    pub fn request_name(&self) -> &'static str {
        self.request
    }

    /// Done.
    pub fn ok(self, answer: Answer) {
        self.send(Response::Ok(answer));
    }

    /// Not done; the message is one line: what, where, what to type instead.
    pub fn error(self, code: ErrorCode, message: impl AsRef<str>) {
        self.send(Response::error(code, message));
    }

    /// Either.
    pub fn send(mut self, response: Response) {
        self.answered = true;
        self.put(response);
    }

    fn put(&self, response: Response) {
        let (client, request_id) = (self.client, self.request_id);
        self.outbox.put(Answered {
            client,
            request_id,
            response,
        });
    }
}

impl Drop for ReplyHandle {
    fn drop(&mut self) {
        if !self.answered {
            let message = format!(
                "the daemon gave up \"{}\" without an answer: see its log, then status",
                self.request
            );
            self.put(Response::error(ErrorCode::Internal, message));
        }
    }
}
