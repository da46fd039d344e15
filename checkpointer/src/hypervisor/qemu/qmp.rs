//! QEMU's monitor on a Unix socket: commands with ids, their answers, and events in between.
//!
//! One thread holds a [`Qmp`]. A command is begun and finished apart, so that several can be on the way (QEMU
//! carries them out in order) and other work done meanwhile. Every wait has a limit. An answer that comes after
//! its limit is dropped when it comes: it has an id that nobody waits for.
//!
//! The begin of a command is sent ahead ([`command`]).
//!
//! Nothing QEMU says is trusted: lines are bounded, and what is no line of the protocol ends the connection with
//! the reason, which every later call repeats.

use super::command;
use super::event::{Event, Queue};
use super::input::{Input, wait_on};
use super::ticket::Ticket;
use super::{Error, Version};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest line of QEMU's.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Most answers that wait to be asked for.
const ANSWERS_MAX: usize = 64;
/// How long QEMU may take to read a command.
const SEND_LIMIT: Duration = Duration::from_secs(2);

/// A connection to the monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    version: Version,
    pid: u32,
    next_id: u64,
    /// The begin of the next command is out already.
    is_led: bool,
    /// Of its greeting: it reads commands while others are carried out.
    has_oob: bool,
    input: Input,
    answers: VecDeque<(u64, Result<Value, String>)>,
    events: Queue,
    /// Why nothing more can be asked.
    broken: Option<Broken>,
}

#[derive(Debug, Clone)]
enum Broken {
    Gone(String),
    Nonsense(String),
}

impl Broken {
    fn error(&self) -> Error {
        match self {
            Self::Gone(why) => Error::Gone(why.clone()),
            Self::Nonsense(why) => Error::Nonsense(why.clone()),
        }
    }
}

impl Qmp {
    /// Connects, reads the greeting and leaves negotiation, all within `limit`.
    ///
    /// # Errors
    /// Nobody listens there, or what does is no QEMU that speaks the protocol.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let until = Instant::now() + limit;
        let cannot = |source| Error::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(cannot)?;
        stream.set_nonblocking(true).map_err(cannot)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream);
        let peer = peer.map_err(|e| cannot(e.into()))?;
        let mut qmp = Self {
            stream,
            version: Version::default(),
            pid: peer.pid.as_raw_nonzero().get().unsigned_abs(),
            next_id: 1,
            is_led: false,
            has_oob: false,
            input: Input::default(),
            answers: VecDeque::new(),
            events: Queue::default(),
            broken: None,
        };
        while qmp.version == Version::default() {
            qmp.fill(until, "its greeting", limit, true)?;
        }
        let oob = qmp.has_oob.then(|| json!({"enable": ["oob"]}));
        let ticket = qmp.begin("qmp_capabilities", oob, None)?;
        qmp.finish(ticket, until.saturating_duration_since(Instant::now()))?;
        Ok(qmp)
    }

    /// As its greeting says.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The process that listens on the socket; QEMU, where QEMU made the socket itself.
    #[must_use]
    pub fn peer_pid(&self) -> u32 {
        self.pid
    }

    /// Begins a command and waits for its end.
    ///
    /// # Errors
    /// As [`Qmp::begin`] and [`Qmp::finish`].
    pub fn run(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, Error> {
        let ticket = self.begin(command, arguments, None)?;
        self.finish(ticket, limit)
    }

    /// Sends a command, with a descriptor where one is given.
    ///
    /// # Errors
    /// QEMU is gone, or takes nothing.
    pub fn begin(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Ticket, Error> {
        if let Some(broken) = &self.broken {
            return Err(broken.error());
        }
        let id = self.next_id;
        self.next_id += 1;
        let line = command::line(id, self.is_led, command, arguments.as_ref());
        self.is_led = command::leads(id);
        self.send(line.as_bytes(), descriptor, command)?;
        Ok(Ticket { id, command })
    }

    /// Waits for the answer of a command.
    ///
    /// # Errors
    /// QEMU refuses it, is gone, talks nonsense, or says nothing in time; only after the last can be gone on.
    pub fn finish(&mut self, ticket: Ticket, limit: Duration) -> Result<Value, Error> {
        let until = Instant::now() + limit;
        loop {
            if let Some(answer) = self.answer(&ticket) {
                return answer;
            }
            self.fill(until, ticket.command, limit, true)?;
        }
    }

    /// The answer, where it has come already.
    pub(super) fn answer(&mut self, ticket: &Ticket) -> Option<Result<Value, Error>> {
        let at = self.answers.iter().position(|(id, _)| *id == ticket.id)?;
        let (_, answer) = self.answers.remove(at)?;
        Some(answer.map_err(|why| Error::Refused {
            command: ticket.command,
            why,
        }))
    }

    /// Waits until QEMU has said something or `other` is ready as asked for, and reads what QEMU said. Whether
    /// `other` is ready.
    ///
    /// # Errors
    /// QEMU is gone, talks nonsense, or neither is ready before `until`.
    pub(super) fn wait_with(
        &mut self,
        other: BorrowedFd<'_>,
        flags: PollFlags,
        until: Instant,
        what: &'static str,
    ) -> Result<bool, Error> {
        let (mut said, mut ready) = (false, false);
        let begun = Instant::now();
        while !said && !ready {
            let mut polled = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::from_borrowed_fd(other, flags),
            ];
            let Some(wait) = until.checked_duration_since(Instant::now()) else {
                return Err(late(what, until.saturating_duration_since(begun)));
            };
            wait_on(&mut polled, wait).map_err(|e| Error::Gone(e.to_string()))?;
            [said, ready] = [0, 1].map(|at| !polled[at].revents().is_empty());
        }
        if said {
            self.fill(until, what, Duration::ZERO, false)?;
        }
        Ok(ready)
    }

    /// Waits until QEMU says something, and reads it.
    ///
    /// # Errors
    /// QEMU is gone, talks nonsense, or says nothing before `until`.
    pub(super) fn wait_word(
        &mut self,
        until: Instant,
        what: &'static str,
        limit: Duration,
    ) -> Result<(), Error> {
        self.fill(until, what, limit, true)
    }

    /// The next event, if one comes within `limit`; with none it only looks.
    ///
    /// # Errors
    /// QEMU is gone or talks nonsense, and every event before that was read.
    pub fn event(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        let until = Instant::now() + limit;
        loop {
            if let Some(event) = self.events.pop() {
                return Ok(Some(event));
            }
            if !self.listen(until)? {
                return Ok(None);
            }
        }
    }

    /// Reads what has come without waiting; events stay in the queue.
    ///
    /// # Errors
    /// QEMU is gone or talks nonsense.
    pub(super) fn look(&mut self) -> Result<(), Error> {
        while self.listen(Instant::now())? {}
        Ok(())
    }

    pub(super) fn queue(&mut self) -> &mut Queue {
        &mut self.events
    }

    fn listen(&mut self, until: Instant) -> Result<bool, Error> {
        match self.fill(until, "anything", Duration::ZERO, true) {
            Ok(()) => Ok(true),
            Err(Error::Late { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// Reads once and takes in all whole lines.
    fn fill(
        &mut self,
        until: Instant,
        what: &'static str,
        limit: Duration,
        is_waiting: bool,
    ) -> Result<(), Error> {
        if let Some(broken) = &self.broken {
            return Err(broken.error());
        }
        let read = loop {
            match self.input.read_from(&mut self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && is_waiting => {
                    let mut polled = [PollFd::new(&self.stream, PollFlags::IN)];
                    let wait = until.saturating_duration_since(Instant::now());
                    if wait.is_zero() || wait_on(&mut polled, wait).is_err() {
                        return Err(late(what, limit));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(0) => self.fail(Broken::Gone("it has hung up".to_owned())),
            Ok(_) => self.lines(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => self.fail(Broken::Gone(e.to_string())),
        }
    }

    fn lines(&mut self) -> Result<(), Error> {
        while let Some(line) = self.input.line() {
            let read: Result<Value, _> = serde_json::from_slice(&line);
            let told = read.map_err(|e| {
                let begin = String::from_utf8_lossy(&line[..line.len().min(80)]);
                format!("{begin:?}: {e}")
            });
            if let Err(why) = told.and_then(|line| self.take_in(line)) {
                return self.fail(Broken::Nonsense(why));
            }
        }
        if self.input.len() > LINE_BYTES_MAX {
            let why = format!("a line longer than {LINE_BYTES_MAX} bytes");
            return self.fail(Broken::Nonsense(why));
        }
        Ok(())
    }

    fn take_in(&mut self, mut line: Value) -> Result<(), String> {
        if let Some(name) = line["event"].as_str() {
            self.events.push(Event::read(name, &line["data"]));
            return Ok(());
        }
        if let Some(version) = line.pointer("/QMP/version/qemu") {
            self.version = Version::read(version).ok_or("a greeting with no version")?;
            let mut offered = line["QMP"]["capabilities"].as_array().into_iter().flatten();
            self.has_oob = offered.any(|one| one == "oob");
            return Ok(());
        }
        let answer = if let Some(value) = line.get_mut("return") {
            Ok(value.take())
        } else if let Some(error) = line.get("error") {
            Err(error["desc"].as_str().unwrap_or("no reason").to_owned())
        } else {
            return Err("a line that is neither answer nor event".to_owned());
        };
        let Some(id) = line["id"].as_u64() else {
            return Err(match answer {
                Ok(_) => "an answer without its id".to_owned(),
                Err(why) => format!("it did not understand a command: {why}"),
            });
        };
        // Nobody waits for the oldest any more when there are so many.
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back((id, answer));
        Ok(())
    }

    fn fail(&mut self, broken: Broken) -> Result<(), Error> {
        let error = broken.error();
        self.broken = Some(broken);
        Err(error)
    }

    fn send(
        &mut self,
        mut bytes: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        command: &'static str,
    ) -> Result<(), Error> {
        let until = Instant::now() + SEND_LIMIT;
        let mut descriptors = descriptor.as_slice();
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
                assert!(fits, "there is room for one descriptor");
            }
            let parts = [IoSlice::new(bytes)];
            match sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    descriptors = &[];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let mut polled = [PollFd::new(&self.stream, PollFlags::OUT)];
                    let wait = until.saturating_duration_since(Instant::now());
                    if wait.is_zero() || wait_on(&mut polled, wait).is_err() {
                        // Half a command may be out: nothing can follow it.
                        self.broken = Some(Broken::Gone("it reads no commands".to_owned()));
                        return Err(late(command, SEND_LIMIT));
                    }
                }
                Err(e) => {
                    // What it said before it went may be the reason.
                    while self.listen(Instant::now()).is_ok_and(|read| read) {}
                    self.broken = Some(Broken::Gone(e.to_string()));
                    return Err(Error::Gone(e.to_string()));
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn late(what: &'static str, limit: Duration) -> Error {
    Error::Late {
        what,
        limit_ms: limit.as_millis(),
    }
}
