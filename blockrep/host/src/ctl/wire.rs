//! The client's end of the socket: packets with a limit on every wait.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blkback_proto::ctl::{
    Answer, BodyError, Frame, FrameError, PACKET_BYTES_MAX, Reassembly, Request, Response,
    VERSION_MIN, decode,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, SocketAddrUnix, SocketFlags, connect, send};

use super::client::ClientError;
use super::socket::{Received, new_socket, receive};

/// Packets over the socket.
#[derive(Debug)]
pub(super) struct Wire {
    fd: OwnedFd,
    path: PathBuf,
    /// Agreed, or the oldest before that.
    pub(super) version: u16,
    next_id: u32,
    buffer: Box<[u8]>,
}

impl Wire {
    pub(super) fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            path: path.to_owned(),
            source,
        };
        let attempt = || -> rustix::io::Result<OwnedFd> {
            let address = SocketAddrUnix::new(path)?;
            let fd = new_socket(SocketFlags::empty())?;
            // Bounds connect (a full backlog) and send; reading is bounded by poll.
            set_socket_timeout(
                &fd,
                Timeout::Send,
                Some(timeout.max(Duration::from_millis(1))),
            )?;
            connect(&fd, &address)?;
            Ok(fd)
        };
        let fd = attempt().map_err(|errno| unreachable(errno.into()))?;
        let buffer = vec![0; PACKET_BYTES_MAX].into_boxed_slice();
        Ok(Self {
            fd,
            path: path.to_owned(),
            version: VERSION_MIN,
            next_id: 1,
            buffer,
        })
    }

    pub(super) fn call(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, ClientError> {
        let body = self.call_body(request, timeout)?;
        self.read_response(&body)
    }

    pub(super) fn read_response(&self, body: &[u8]) -> Result<Answer, ClientError> {
        match Response::from_body(body).map_err(|error| self.body_error(&error))? {
            Response::Ok(answer) => Ok(answer),
            Response::Error(error) => Err(ClientError::Daemon(error)),
        }
    }

    /// Sends a request and waits for the whole body of its answer.
    pub(super) fn call_body(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let started = Instant::now();
        let deadline = started + timeout;
        let name = request.name();
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.send(request, id)?;
        let mut parts = Reassembly::new(id);
        loop {
            if !self.wait_readable(deadline)? {
                let waited_ms = started.elapsed().as_millis();
                return Err(ClientError::TimedOut {
                    path: self.path.clone(),
                    request: name,
                    waited_ms,
                });
            }
            let bytes = match self.read_packet()? {
                None => continue,
                Some(0) => return Err(self.closed(name)),
                Some(bytes) => bytes,
            };
            let frame = self.frame(bytes)?;
            if frame.request_id == 0 {
                // About the connection as a whole: too many clients, not permitted.
                return Ok(frame.body.to_vec());
            }
            if frame.request_id != id {
                // The late answer to a request that was given up.
                continue;
            }
            let whole = parts
                .push(frame)
                .map_err(|error| self.frame_error(&error))?;
            if let Some(body) = whole {
                return Ok(body);
            }
        }
    }

    fn send(&self, request: &Request, id: u32) -> Result<(), ClientError> {
        let packet = request
            .to_packet(self.version, id)
            .map_err(|error| self.frame_error(&error))?;
        match send(&self.fd, &packet, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            // A server that refuses closes at once; why, is waiting to be read.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(self.io_error(errno.into())),
        }
    }

    /// False when the time is over.
    pub(super) fn wait_readable(&self, deadline: Instant) -> Result<bool, ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(
            &mut [PollFd::new(&self.fd, PollFlags::IN)],
            timeout.as_ref(),
        ) {
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            // Interrupted by a signal: the caller decides by its own deadline.
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(self.io_error(errno.into())),
        }
    }

    /// Bytes of the next packet, 0 at the end, `None` if there was nothing after all.
    pub(super) fn read_packet(&mut self) -> Result<Option<usize>, ClientError> {
        let received = match receive(&self.fd, &mut self.buffer) {
            // Reported once, ahead of the packets that came before it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                receive(&self.fd, &mut self.buffer)
            }
            other => other,
        };
        match received.map_err(|error| self.io_error(error))? {
            Received::Packet(bytes) => Ok(Some(bytes)),
            Received::Closed => Ok(Some(0)),
            Received::Nothing => Ok(None),
            Received::TooLong(have) => Err(self.frame_error(&FrameError::Long { have })),
        }
    }

    pub(super) fn frame(&self, bytes: usize) -> Result<Frame<'_>, ClientError> {
        decode(&self.buffer[..bytes]).map_err(|error| self.frame_error(&error))
    }

    pub(super) fn closed(&self, request: &'static str) -> ClientError {
        ClientError::Closed {
            path: self.path.clone(),
            request,
        }
    }

    pub(super) fn wrong_answer(&self, request: &str) -> ClientError {
        self.protocol_error(&format!("the answer to \"{request}\" is of another kind"))
    }

    fn frame_error(&self, error: &FrameError) -> ClientError {
        self.protocol_error(&error.to_string())
    }

    pub(super) fn body_error(&self, error: &BodyError) -> ClientError {
        self.protocol_error(&error.to_string())
    }

    pub(super) fn protocol_error(&self, reason: &str) -> ClientError {
        ClientError::Protocol {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }

    fn io_error(&self, source: io::Error) -> ClientError {
        ClientError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
