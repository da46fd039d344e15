//! One TCP connection to the guest: whole frames, and every wait with a limit.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::receipts::{ANSWER_HEAD, Answer, Request};

/// One try to connect; the SYN of a guest that is not there is lost.
const TRY: Duration = Duration::from_secs(2);
/// A guest that takes nothing for this long, with a few KiB under way, is gone.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// What was read of frames that are not whole yet.
    buffer: Vec<u8>,
}

/// What a wait came to.
#[derive(Debug)]
pub(super) enum Got {
    Answer(Box<Answer>),
    Nothing,
    /// Reset, closed, or not what this program understands.
    Ended(String),
}

impl Connection {
    /// Tries again and again for `limit`: the guest may still be booting.
    pub(super) fn open(
        address: SocketAddr,
        limit: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let end = Instant::now() + limit;
        loop {
            let error = match TcpStream::connect_timeout(&address, TRY) {
                Ok(stream) => return Self::over(stream).context("set up the connection"),
                Err(error) => error,
            };
            if stop() {
                bail!("asked to stop before {address} could be reached: {error}");
            }
            if Instant::now() >= end {
                bail!(
                    "{address} was not reached in {} s: {error}",
                    limit.as_secs()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    pub(super) fn send(&mut self, request: &Request) -> Result<(), String> {
        let sent = self.stream.write_all(&request.encode());
        sent.map_err(|error| error.to_string())
    }

    /// The next answer, if one comes within `limit`.
    pub(super) fn receive(&mut self, limit: Duration) -> Got {
        let end = Instant::now() + limit;
        let mut room = [0; 16 << 10];
        loop {
            match self.take_frame() {
                Ok(Some(answer)) => return Got::Answer(Box::new(answer)),
                Ok(None) => {}
                Err(why) => return Got::Ended(why),
            }
            match self.stream.read(&mut room) {
                Ok(0) => return Got::Ended("the guest closed the connection".to_owned()),
                Ok(count) => self.buffer.extend_from_slice(&room[..count]),
                Err(error) if is_pause(&error) && Instant::now() >= end => return Got::Nothing,
                Err(error) if is_pause(&error) => {}
                Err(error) => return Got::Ended(error.to_string()),
            }
        }
    }

    /// One question and its answer.
    pub(super) fn ask(&mut self, request: &Request, limit: Duration) -> Result<Answer> {
        let sent = self.send(request);
        sent.map_err(|why| anyhow::anyhow!("send: {why}"))?;
        match self.receive(limit) {
            Got::Answer(answer)
                if (answer.kind, answer.number) == (request.kind, request.number) =>
            {
                Ok(*answer)
            }
            Got::Answer(_) => bail!("the guest answered something that was not asked"),
            Got::Nothing => bail!("no answer in {} s", limit.as_secs()),
            Got::Ended(why) => bail!("{why}"),
        }
    }

    fn take_frame(&mut self) -> Result<Option<Answer>, String> {
        let Some(head) = self.buffer.first_chunk::<ANSWER_HEAD>() else {
            return Ok(None);
        };
        let length = Answer::frame_len(head)?;
        if self.buffer.len() < length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(length);
        let frame = std::mem::replace(&mut self.buffer, rest);
        Answer::decode(&frame).map(Some)
    }
}

fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
