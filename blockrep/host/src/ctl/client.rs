//! The blocking client. Every wait has a limit.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blkback_proto::ctl::{
    Answer, CutAnswer, CutRequest, ErrorReply, EventBody, EventsAnswer, EventsRequest, FrameKind,
    HelloAnswer, HelloRequest, PagesArmAnswer, PagesArmRequest, PagesDisarmAnswer,
    PagesDisarmRequest, PagesTakeAnswer, PagesTakeRequest, PrepareAnswer, PrepareRequest,
    PromoteAnswer, PromoteRequest, Request, Status, StatusRequest, VERSION_MAX, VERSION_MIN,
};
use thiserror::Error;

use super::wire::Wire;

/// Why a request has no good answer. One line each, for the user.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody there.
    #[error("cannot reach a daemon at {}: {}", path.display(), unreachable_text(path, source))]
    Unreachable { path: PathBuf, source: io::Error },
    /// The daemon says no, or failed.
    #[error("{}", .0.message)]
    Daemon(ErrorReply),
    /// No answer in time. The request may still be done: every request may be sent again.
    #[error("the daemon at {} did not answer \"{request}\" within {waited_ms} ms: look at its log", path.display())]
    TimedOut {
        path: PathBuf,
        request: &'static str,
        waited_ms: u128,
    },
    /// The connection ended before the answer.
    #[error("the daemon at {} closed the connection before it answered \"{request}\": look at its log", path.display())]
    Closed {
        path: PathBuf,
        request: &'static str,
    },
    /// What came is not the protocol.
    #[error("what answers at {} is no blockrep daemon of this release: {reason}", path.display())]
    Protocol { path: PathBuf, reason: String },
    /// The socket failed.
    #[error("connection to {} failed: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn unreachable_text(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused if is_no_socket(path) => {
            "this is no socket; give the --control of a daemon".to_owned()
        }
        io::ErrorKind::NotFound => {
            "there is no such socket; start the daemon, or give the --control that it was started with"
                .to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody answers at this socket: the daemon is still starting, see its log, or has ended; then start it \
             again"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "not permitted; run as the user of the daemon or as root".to_owned()
        }
        io::ErrorKind::WouldBlock => "it takes no connections; look at its log".to_owned(),
        _ if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
            "this is a socket of something else; give the --control of a daemon".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Something else stands there: to the kernel it is a socket on which nobody listens.
fn is_no_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| !meta.file_type().is_socket())
}

/// A connection after its handshake. One request at a time.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    hello: HelloAnswer,
    timeout: Duration,
}

impl Client {
    /// Connects and agrees on a version. `timeout` holds for this and, unless said otherwise, for
    /// each request.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if nobody listens; the others as they say.
    pub fn connect(path: &Path, client: &str, timeout: Duration) -> Result<Self, ClientError> {
        let mut wire = Wire::connect(path, timeout)?;
        let hello = HelloRequest {
            client: client.to_owned(),
            min: VERSION_MIN,
            max: VERSION_MAX,
        };
        match wire.call(&Request::Hello(hello), timeout)? {
            Answer::Hello(hello) if (VERSION_MIN..=VERSION_MAX).contains(&hello.version) => {
                wire.version = hello.version;
                Ok(Self {
                    wire,
                    hello,
                    timeout,
                })
            }
            _ => Err(wire.protocol_error("it chose a version that was not offered")),
        }
    }

    /// What the daemon said of itself.
    pub fn hello(&self) -> &HelloAnswer {
        &self.hello
    }

    /// Any request, within `timeout`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn request(&mut self, request: &Request, timeout: Duration) -> Result<Answer, ClientError> {
        self.wire.call(request, timeout)
    }

    /// Any request, answered with the JSON of its payload just as the daemon sent it, fields that
    /// this release does not know included.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn request_json(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<serde_json::Value, ClientError> {
        let body = self.wire.call_body(request, timeout)?;
        self.wire.read_response(&body)?;
        let mut whole: serde_json::Value = serde_json::from_slice(&body)
            .map_err(|error| self.wire.protocol_error(&error.to_string()))?;
        Ok(whole["ok"][request.name()].take())
    }

    /// Everything about the group.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self
            .wire
            .call(&Request::Status(StatusRequest {}), self.timeout)?
        {
            Answer::Status(status) => Ok(*status),
            _ => Err(self.wire.wrong_answer("status")),
        }
    }

    /// First half of a cut.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn prepare(&mut self, request: PrepareRequest) -> Result<PrepareAnswer, ClientError> {
        match self.wire.call(&Request::Prepare(request), self.timeout)? {
            Answer::Prepare(answer) => Ok(answer),
            _ => Err(self.wire.wrong_answer("prepare")),
        }
    }

    /// Ends the open epoch; waits for the daemon's own time limit on top of this client's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cut(&mut self, request: CutRequest) -> Result<CutAnswer, ClientError> {
        let timeout = self
            .timeout
            .saturating_add(Duration::from_millis(request.timeout_ms));
        match self.wire.call(&Request::Cut(request), timeout)? {
            Answer::Cut(answer) => Ok(answer),
            _ => Err(self.wire.wrong_answer("cut")),
        }
    }

    /// Makes the daemon the primary.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn promote(&mut self, request: PromoteRequest) -> Result<PromoteAnswer, ClientError> {
        match self.wire.call(&Request::Promote(request), self.timeout)? {
            Answer::Promote(answer) => Ok(answer),
            _ => Err(self.wire.wrong_answer("promote")),
        }
    }

    /// Begins a record of guest pages.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pages_arm(&mut self, request: PagesArmRequest) -> Result<PagesArmAnswer, ClientError> {
        match self.wire.call(&Request::PagesArm(request), self.timeout)? {
            Answer::PagesArm(answer) => Ok(answer),
            _ => Err(self.wire.wrong_answer("pages-arm")),
        }
    }

    /// A whole turn of a record, however many answers it takes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pages_take(
        &mut self,
        mut request: PagesTakeRequest,
    ) -> Result<PagesTakeAnswer, ClientError> {
        let mut whole: Option<PagesTakeAnswer> = None;
        loop {
            let ask = Request::PagesTake(request.clone());
            let Answer::PagesTake(part) = self.wire.call(&ask, self.timeout)? else {
                return Err(self.wire.wrong_answer("pages-take"));
            };
            let next_page = part.next_page;
            let whole = match &mut whole {
                Some(whole) => {
                    whole.runs.extend(part.runs);
                    whole
                }
                None => whole.insert(part),
            };
            match next_page {
                Some(page) if page > request.from_page => request.from_page = page,
                Some(_) => return Err(self.wire.protocol_error("a turn does not end")),
                None => {
                    whole.next_page = None;
                    return Ok(whole.clone());
                }
            }
        }
    }

    /// Ends a record of guest pages.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pages_disarm(
        &mut self,
        request: PagesDisarmRequest,
    ) -> Result<PagesDisarmAnswer, ClientError> {
        match self
            .wire
            .call(&Request::PagesDisarm(request), self.timeout)?
        {
            Answer::PagesDisarm(answer) => Ok(answer),
            _ => Err(self.wire.wrong_answer("pages-disarm")),
        }
    }

    /// One batch of kept events.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn events(&mut self, from_seq: u64) -> Result<EventsAnswer, ClientError> {
        self.events_request(EventsRequest {
            from_seq,
            follow: false,
        })
    }

    /// Kept events from `from_seq` on, and a stream of those that follow.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn follow(mut self, from_seq: u64) -> Result<(EventsAnswer, EventStream), ClientError> {
        let answer = self.events_request(EventsRequest {
            from_seq,
            follow: true,
        })?;
        Ok((answer, EventStream { wire: self.wire }))
    }

    fn events_request(&mut self, request: EventsRequest) -> Result<EventsAnswer, ClientError> {
        match self.wire.call(&Request::Events(request), self.timeout)? {
            Answer::Events(answer) => Ok(answer),
            _ => Err(self.wire.wrong_answer("events")),
        }
    }
}

/// A connection that only brings events.
#[derive(Debug)]
pub struct EventStream {
    wire: Wire,
}

impl EventStream {
    /// The next event, or `None` if none came within `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Closed`] when the daemon has ended; the others as they say.
    pub fn next_within(&mut self, timeout: Duration) -> Result<Option<EventBody>, ClientError> {
        let deadline = Instant::now() + timeout;
        if !self.wire.wait_readable(deadline)? {
            return Ok(None);
        }
        let Some(bytes) = self.wire.read_packet()? else {
            return Ok(None);
        };
        if bytes == 0 {
            return Err(self.wire.closed("events"));
        }
        let frame = self.wire.frame(bytes)?;
        if frame.kind != FrameKind::Event {
            return Err(self
                .wire
                .protocol_error("an answer came in a stream of events"));
        }
        EventBody::from_body(frame.body)
            .map_err(|error| self.wire.body_error(&error))
            .map(Some)
    }
}
