//! The I/O runtime of one thread: an io_uring with registered buffers and files, a bounded pool of
//! aligned buffers, files with direct I/O, sockets, and a mailbox for other threads.
//!
//! One I/O thread per volume owns a [`Reactor`] and everything from its [`Pool`]; nothing here may
//! cross threads but a [`MailSender`]. The owner's loop is
//!
//! ```text
//!   loop {
//!       drain the mailbox, feed the engine, submit(token, op) ...
//!       poll(timeout, &mut completions)      one system call: hand over, wait, take back
//!   }
//! ```
//!
//! Invariants:
//! - Every submitted operation completes exactly once, with its buffers, whatever happens.
//! - Memory the kernel may touch is owned by a record of the operation until the kernel let go of
//!   it, also when the reactor is dropped.
//! - After a failed change a file accepts no further change ([`OpError::Poisoned`]); reads go on.
//! - Operations of different tokens are not ordered, but sends and receives of one socket are.
//!   Requests that overlap on disk are for the caller to keep apart; requests that merely share a
//!   device block are kept apart here.

mod buffer;
mod fault;
mod files;
mod flight;
mod foreign;
mod op;
mod open;
mod pool;
mod ring;
mod runtime;
mod slots;
mod sockets;
mod turn;
mod unaligned;
mod wake;
mod zeroing;

pub use buffer::{Buf, BufMut};
pub use fault::{FaultAction, FaultParseError, FaultPlan, FaultRule};
pub use foreign::Foreign;
pub use op::{Completion, FileId, FileOp, Op, OpError, ReturnedBuf, SockId, SockOp, StoreError};
pub use open::{
    Access, BLOCK_BYTES_MAX, FileOptions, OpenError, OpenedFile, SECTOR_BYTES, open_image,
};
pub use pool::{PAGE_BYTES, Pool, PoolStats};
pub use runtime::{Reactor, ReactorConfig, ReactorStats};
pub use sockets::tcp_socket;
pub use wake::{MailError, MailSender, Mailbox, mailbox};

#[cfg(test)]
mod tests;
