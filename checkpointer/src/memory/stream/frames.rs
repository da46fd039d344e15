//! Frames in and out of a connection.

use blkback_proto::ids::SessionId;
use blkback_proto::memory::{FRAME_BYTES, Frame, MemoryError, RefuseCode, peek_body_bytes};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why a session ended, by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum LinkLost {
    #[error("the memory link failed: {0}")]
    Io(#[from] io::Error),
    #[error("the other side closed the memory link")]
    Closed,
    #[error("the other side broke the memory protocol: {0}")]
    Protocol(#[from] MemoryError),
    /// The same, of what a frame says rather than how it is made.
    #[error("the other side broke the memory protocol: {0}")]
    Peer(String),
    #[error("the backup refuses: {text}")]
    Refused { code: RefuseCode, text: String },
    #[error("the other side ended the session: {0}")]
    Bye(String),
    #[error("no answer from the other side")]
    Silent,
    /// The owner's word.
    #[error("stopped")]
    Stopped,
}

/// Sets the limits of every read and write of a connection, and sends small frames at once.
///
/// # Errors
/// Of the socket.
pub fn set_limits(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))
}

/// Reads frames whole; a timeout in the middle of one loses nothing.
#[derive(Debug)]
pub struct FrameReader<R> {
    from: R,
    buffer: Vec<u8>,
    /// Of `buffer`; a frame that was given is behind it.
    filled: usize,
    given: bool,
}

impl<R: Read> FrameReader<R> {
    pub fn new(from: R) -> Self {
        Self {
            from,
            buffer: vec![0; FRAME_BYTES],
            filled: 0,
            given: false,
        }
    }

    /// Bytes of the frame that was read last; 0 where none was.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        if self.given { self.filled as u64 } else { 0 }
    }

    /// The next frame; `None` when the socket's read timeout passed without all of one.
    ///
    /// # Errors
    /// Closed, failed, or not a frame. The session is over then.
    pub fn read(&mut self) -> Result<Option<(Frame<'_>, SessionId)>, LinkLost> {
        if std::mem::take(&mut self.given) {
            self.filled = 0;
        }
        loop {
            let needed = if self.filled < FRAME_BYTES {
                FRAME_BYTES
            } else {
                FRAME_BYTES + peek_body_bytes(&self.buffer)?
            };
            if self.filled == needed {
                break;
            }
            if self.buffer.len() < needed {
                self.buffer.resize(needed, 0);
            }
            match self.from.read(&mut self.buffer[self.filled..needed]) {
                Ok(0) => return Err(LinkLost::Closed),
                Ok(got) => self.filled += got,
                Err(e) if is_timeout(&e) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.given = true;
        Ok(Some(Frame::decode(&self.buffer[..self.filled])?))
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The way out of a session, for more than one thread: frames go whole, one after the other.
#[derive(Debug)]
pub struct Link<W> {
    out: Arc<Mutex<W>>,
    session: SessionId,
}

impl<W> Clone for Link<W> {
    fn clone(&self) -> Self {
        Self {
            out: Arc::clone(&self.out),
            session: self.session,
        }
    }
}

impl<W: Write> Link<W> {
    pub fn new(out: W, session: SessionId) -> Self {
        Self {
            out: Arc::new(Mutex::new(out)),
            session,
        }
    }

    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// # Errors
    /// Of the socket, a passed timeout too: the frame may be cut short, so the session is over.
    pub fn say(&self, frame: &Frame<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame.encode(self.session, &mut bytes);
        self.put(&bytes)
    }

    /// Whole frames.
    ///
    /// # Errors
    /// As [`Link::say`].
    pub fn put(&self, frames: &[u8]) -> io::Result<()> {
        let mut out = lock(&self.out);
        out.write_all(frames)?;
        out.flush()
    }
}

/// What a panic left behind is no worse for these than an error: a cut frame is found by who reads it, a
/// store by its next use.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
