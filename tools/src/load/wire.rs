//! One NBD connection in transmission phase, on tokio-uring.
//!
//! Requests collect in an outbox; the writer task sends all that is there in one operation while
//! the next requests collect in a second buffer. The outbox is bounded by the queue depth of the
//! connection. The reader task takes replies apart. tokio-uring owns each buffer while the kernel
//! uses it.
//!
//! Only streams made by the standard library are handed to tokio-uring (its Unix listener is broken
//! on newer kernels, its streams are fine).

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Shutdown;

use tokio::sync::Notify;
use tokio_uring::net::{TcpStream, UnixStream};

use super::nbd::{self, REPLY_SIZE, Stream};

/// Bytes of replies read at once.
const READ_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    stream: UringStream,
    outbox: RefCell<Vec<u8>>,
    kick: Notify,
    closing: Cell<bool>,
}

enum UringStream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl std::fmt::Debug for UringStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            UringStream::Unix(_) => "Unix",
            UringStream::Tcp(_) => "Tcp",
        })
    }
}

impl Connection {
    /// Takes over a stream after the handshake. Needs the tokio-uring runtime.
    pub(super) fn new(stream: Stream) -> Connection {
        let stream = match stream {
            Stream::Unix(stream) => UringStream::Unix(UnixStream::from_std(stream)),
            Stream::Tcp(stream) => UringStream::Tcp(TcpStream::from_std(stream)),
        };
        let (outbox, kick) = (RefCell::default(), Notify::new());
        Connection {
            stream,
            outbox,
            kick,
            closing: Cell::new(false),
        }
    }

    /// Lets `fill` append one request to the outbox and wakes the writer.
    pub(super) fn queue(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        fill(&mut self.outbox.borrow_mut());
        self.kick.notify_one();
    }

    /// The writer ends once the outbox is empty.
    pub(super) fn close_after_outbox(&self) {
        self.closing.set(true);
        self.kick.notify_one();
    }

    /// Ends both tasks at once.
    pub(super) fn shut_down(&self) {
        let done = match &self.stream {
            UringStream::Unix(stream) => stream.shutdown(Shutdown::Both),
            UringStream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
        // Fails only if the other end shut it down before.
        drop(done);
        self.close_after_outbox();
    }

    /// The writer task.
    pub(super) async fn write_loop(&self) -> io::Result<()> {
        let mut spare = Vec::new();
        loop {
            if self.outbox.borrow().is_empty() {
                if self.closing.get() {
                    return Ok(());
                }
                self.kick.notified().await;
                continue;
            }
            let batch = self.outbox.replace(spare);
            let (sent, batch) = match &self.stream {
                UringStream::Unix(stream) => stream.write_all(batch).await,
                UringStream::Tcp(stream) => stream.write_all(batch).await,
            };
            sent?;
            spare = batch;
            spare.clear();
        }
    }

    /// The reader task: hands (cookie, error) of every reply to `on_reply`, which returns false for
    /// a cookie it does not know. Ends with an error in any case; the end of the stream is one.
    pub(super) async fn read_loop(&self, mut on_reply: impl FnMut(u64, u32) -> bool) -> io::Error {
        let mut buffer = vec![0; READ_BYTES];
        let mut partial: Vec<u8> = Vec::with_capacity(READ_BYTES + REPLY_SIZE);
        loop {
            let (got, back) = match &self.stream {
                UringStream::Unix(stream) => stream.read(buffer).await,
                UringStream::Tcp(stream) => stream.read(buffer).await,
            };
            buffer = back;
            match got {
                Ok(0) => {
                    return io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server");
                }
                Ok(got) => partial.extend_from_slice(&buffer[..got]),
                Err(error) => return error,
            }
            let (replies, _) = partial.as_chunks::<REPLY_SIZE>();
            let whole = replies.len() * REPLY_SIZE;
            let understood = |bytes: &[u8; REPLY_SIZE]| {
                nbd::reply(bytes).is_some_and(|(cookie, error)| on_reply(cookie, error))
            };
            if !replies.iter().all(understood) {
                let what = "a reply that is malformed or answers no request";
                return io::Error::new(io::ErrorKind::InvalidData, what);
            }
            partial.drain(..whole);
        }
    }
}
