//! The reactor's state and its public face: set-up, files and sockets, submission.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::buffer::Buf;
use super::fault::FaultPlan;
use super::files::FileRequest;
use super::flight::{Flights, Kind};
use super::foreign::Foreign;
use super::op::{Completion, FileId, FileOp, Op, ReturnedBuf, SockId, StoreError};
use super::open::{FileOptions, leave_page_cache};
use super::pool::{PAGE_BYTES, Pool};
use super::ring::Ring;
use super::slots::Slots;
use super::{sockets, unaligned};

/// Zeros for files on which fallocate does not work.
const ZERO_BYTES: usize = 256 * 1024;

/// Sizes of a reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReactorConfig {
    /// Submission entries; more operations than that may be in flight.
    pub entries: u32,
    /// Registered files and sockets; more may be open, at a small cost.
    pub file_slots: u32,
    /// The pool: memory that is mapped, and pinned when registration works.
    pub pool_bytes: usize,
    /// The largest buffer.
    pub alloc_bytes_max: usize,
}

impl Default for ReactorConfig {
    fn default() -> ReactorConfig {
        ReactorConfig {
            entries: 512,
            file_slots: 64,
            pool_bytes: 64 << 20,
            alloc_bytes_max: (1 << 20) + PAGE_BYTES,
        }
    }
}

/// What a reactor is and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReactorStats {
    /// Operations submitted and not completed.
    pub in_flight: usize,
    /// Operations submitted.
    pub submitted: u64,
    /// io_uring_enter calls.
    pub enters: u64,
    /// Operations that needed a bounce buffer.
    pub bounced: u64,
    /// Short results that were continued.
    pub continued: u64,
    /// The most entries that ever waited for room in the submission queue.
    pub backlog_max: usize,
    /// Whether the kernel registered the pool.
    pub buffers_registered: bool,
    /// Whether the ring defers its work to this thread's own system calls.
    pub deferred: bool,
}

/// The runtime. See the module documentation.
pub struct Reactor {
    // Dropped in this order: the ring lets go of memory before the pools unmap it.
    pub(super) ring: Ring,
    pub(super) flights: Flights,
    pub(super) slots: Slots,
    /// Completions for the next `poll`.
    pub(super) ready: Vec<Completion>,
    /// File operations that may take their next step.
    pub(super) runnable: VecDeque<u32>,
    /// File operations held back by a planted delay.
    pub(super) delayed: Vec<(Instant, u32)>,
    /// File operations waiting for a bounce buffer, oldest first.
    pub(super) bounce_waiting: VecDeque<u32>,
    /// The connection of the Accept that is being completed.
    pub(super) accepted: Option<OwnedFd>,
    /// Operations the kernel holds.
    pub(super) in_kernel: usize,
    pub(super) reaped: Vec<(u64, i32)>,
    pub(super) stats: ReactorStats,
    pub(super) zeros: Buf,
    pub(super) bounce: Pool,
    pub(super) pool: Pool,
}

impl Reactor {
    /// Sets up ring and pool for the calling thread.
    ///
    /// # Errors
    /// io_uring missing, forbidden or older than Linux 5.11; senseless sizes; no memory.
    pub fn new(config: &ReactorConfig) -> io::Result<Reactor> {
        let pool = Pool::new(config.pool_bytes, config.alloc_bytes_max)?;
        let bounce = Pool::new(unaligned::BOUNCE_BYTES, unaligned::CHUNK_BYTES_MAX)?;
        let zeros = Pool::new(ZERO_BYTES, ZERO_BYTES)?.alloc(ZERO_BYTES);
        Ok(Reactor {
            ring: Ring::new(config.entries, config.file_slots, &pool)?,
            flights: Flights::default(),
            slots: Slots::default(),
            ready: Vec::new(),
            runnable: VecDeque::new(),
            delayed: Vec::new(),
            bounce_waiting: VecDeque::new(),
            accepted: None,
            in_kernel: 0,
            reaped: Vec::new(),
            stats: ReactorStats::default(),
            zeros: zeros
                .expect("a new pool has room for its one buffer")
                .freeze(),
            bounce,
            pool,
        })
    }

    /// The pool whose buffers this reactor moves fastest. Clone the handle as needed.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Adds a file; take the options from [`open_image`](super::open_image).
    ///
    /// # Panics
    /// When the options are not as [`FileOptions`] says.
    pub fn add_file(&mut self, fd: OwnedFd, options: FileOptions) -> FileId {
        options.check();
        if options.direct {
            leave_page_cache(&fd);
        }
        let (index, generation) = self.slots.add_file(&self.ring, fd, options);
        FileId { index, generation }
    }

    /// Adds a listening, unconnected or connected stream socket, and makes it blocking: io_uring
    /// does the waiting.
    ///
    /// # Errors
    /// What `fcntl` says.
    pub fn add_socket(&mut self, fd: OwnedFd) -> io::Result<SockId> {
        sockets::set_blocking(&fd)?;
        let (index, generation) = self.slots.add_sock(fd);
        Ok(SockId { index, generation })
    }

    /// Keeps a descriptor open until nothing of this reactor is with the kernel any more. After a
    /// kill the kernel may finish operations on files when the process is long gone: a lock that is
    /// kept here tells a successor when that is over. Without a registered table (that was logged)
    /// it is closed with the process.
    pub fn keep_open(&mut self, fd: OwnedFd) {
        self.slots.keep(&self.ring, fd);
    }

    /// Lets a file go: new operations are refused, those in flight complete, then it is closed.
    /// Returns false if the id was removed already.
    pub fn remove_file(&mut self, file: FileId) -> bool {
        self.slots.remove(file.index, file.generation, &self.ring)
    }

    /// Lets a socket go: new operations are refused, those in flight are cancelled (each still
    /// completes), then it is closed. Returns false if the id was removed already.
    pub fn remove_socket(&mut self, sock: SockId) -> bool {
        if !self.slots.remove(sock.index, sock.generation, &self.ring) {
            return false;
        }
        for index in self.flights.indices() {
            let flight = self.flights.get(index);
            if matches!(flight.kind, Kind::Sock(_)) && flight.slot == sock.index {
                self.cancel_flight(index);
            }
        }
        true
    }

    /// The descriptor of a file, until it is removed.
    pub fn file_fd(&self, file: FileId) -> Option<BorrowedFd<'_>> {
        self.slots.fd_of(file.index, file.generation)
    }

    /// The descriptor of a socket, until it is removed; for options and addresses.
    pub fn socket_fd(&self, sock: SockId) -> Option<BorrowedFd<'_>> {
        self.slots.fd_of(sock.index, sock.generation)
    }

    /// Whether a read at that offset can go straight into `memory`: no block of the file is touched in
    /// part, and the device can use the memory.
    pub fn reads_into(&mut self, file: FileId, offset: u64, memory: &Foreign) -> bool {
        let Some(file) = self.slots.file_of(file.index, file.generation) else {
            return false;
        };
        let whole = (offset | memory.len()).is_multiple_of(file.block);
        whole && !memory.is_empty() && memory.is_aligned(file.mem_align, file.block)
    }

    /// The first failed change of a file, after which it accepts no other.
    pub fn poisoned(&mut self, file: FileId) -> Option<StoreError> {
        self.slots.file_of(file.index, file.generation)?.poison
    }

    /// Plants faults into a file, or takes them away; operations in flight are not touched.
    pub fn set_faults(&mut self, file: FileId, faults: Option<FaultPlan>) {
        if let Some(file) = self.slots.file_of(file.index, file.generation) {
            file.faults = faults.map(Box::new);
        }
    }

    /// Counters as of now.
    pub fn stats(&self) -> ReactorStats {
        ReactorStats {
            in_flight: self.flights.active(),
            enters: self.ring.enters,
            backlog_max: self.ring.backlog_max,
            buffers_registered: self.ring.fixed_buffers,
            deferred: self.ring.is_deferred(),
            ..self.stats
        }
    }

    /// Takes an operation. Never fails and never blocks: the kernel sees it at the next
    /// [`Reactor::poll`], and a refusal is a completion like any other. How much is in flight at
    /// once is for the caller to bound. `token` comes back with the completion; the reactor only
    /// compares it for [`Op::Cancel`].
    pub fn submit(&mut self, token: u64, op: Op) {
        self.stats.submitted += 1;
        let (id, (op, offset, len), buf) = match op {
            Op::Read { file, offset, buf } => {
                let what = (FileOp::Read, offset, buf.len() as u64);
                (file, what, ReturnedBuf::Mut(buf))
            }
            Op::ReadInto {
                file,
                offset,
                memory,
            } => {
                let what = (FileOp::Read, offset, memory.len());
                (file, what, ReturnedBuf::Foreign(memory))
            }
            Op::Write { file, offset, buf } => {
                let what = (FileOp::Write, offset, buf.len() as u64);
                (file, what, ReturnedBuf::One(buf))
            }
            Op::WriteV { file, offset, bufs } => {
                let len = bufs.iter().map(|buf| buf.len() as u64).sum();
                (file, (FileOp::Write, offset, len), ReturnedBuf::Many(bufs))
            }
            Op::Sync { file } => (file, (FileOp::Sync, 0, 0), ReturnedBuf::None),
            Op::Zero { file, offset, len } => {
                (file, (FileOp::Zero, offset, len), ReturnedBuf::None)
            }
            Op::Discard { file, offset, len } => {
                (file, (FileOp::Discard, offset, len), ReturnedBuf::None)
            }
            other => return self.submit_other(token, other),
        };
        self.start_file(FileRequest {
            token,
            id,
            op,
            offset,
            len,
            buf,
        });
        self.run();
    }

    /// Operations that are not on files.
    fn submit_other(&mut self, token: u64, op: Op) {
        match op {
            Op::Accept { sock } => self.start_accept(token, sock),
            Op::Connect { sock, addr } => self.start_connect(token, sock, addr),
            Op::Recv { sock, buf, range } => self.start_recv(token, sock, buf, range),
            Op::Send { sock, bufs, skip } => self.start_send(token, sock, bufs, skip),
            Op::PollIn { fd } => self.start_poll_in(token, fd),
            Op::Cancel { target } => self.cancel_token(token, target),
            _ => unreachable!("operations on files were taken out before"),
        }
        self.run();
    }

    fn cancel_token(&mut self, token: u64, target: u64) {
        let mut asked = 0;
        for index in self.flights.indices() {
            let flight = self.flights.get(index);
            if matches!(flight.kind, Kind::Sock(_)) && flight.token == target {
                self.cancel_flight(index);
                asked += 1;
            }
        }
        let (result, buf) = (Ok(asked), ReturnedBuf::None);
        self.ready.push(Completion {
            token,
            result,
            buf,
            accepted: None,
        });
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
