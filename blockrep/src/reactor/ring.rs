//! The io_uring itself: set-up with fall-backs for older kernels, batching, waiting, reaping.
//!
//! Nothing here knows what an entry means. Whoever pushes an entry keeps all memory it names alive
//! and unmoved until its completion was reaped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue, types};

use super::pool::Pool;

/// `user_data` of entries whose completion nobody waits for.
pub(super) const UNWATCHED: u64 = u64::MAX;

/// How an entry names its file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// A slot of the registered table.
    Slot(u32),
    /// An ordinary descriptor.
    Fd(RawFd),
}

/// How long [`Ring::enter`] waits for a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    For(Duration),
    Forever,
}

/// Why [`Ring::enter`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// There may be completions.
    Done,
    TimedOut,
    /// A signal came.
    Interrupted,
    /// The kernel is short of memory or completion space: reap, then try again.
    Busy,
}

pub(super) struct Ring {
    uring: IoUring,
    /// Entries that found the submission queue full, oldest first.
    backlog: VecDeque<squeue::Entry>,
    /// Slots of the registered file table; 0 when the kernel gave none.
    file_slots: u32,
    /// Whether the pool is registered as fixed buffer 0.
    pub(super) fixed_buffers: bool,
    /// Whether completions are produced only while this thread enters the kernel.
    deferred: bool,
    /// Calls of io_uring_enter.
    pub(super) enters: u64,
    /// The longest backlog ever.
    pub(super) backlog_max: usize,
}

impl Ring {
    /// Sets up a ring with `entries` submission entries, a table of `file_slots` registered files
    /// and `pool` as registered buffer. Table and buffer are left out where the kernel refuses
    /// them (an old kernel, RLIMIT_MEMLOCK); that is logged.
    pub(super) fn new(entries: u32, file_slots: u32, pool: &Pool) -> io::Result<Ring> {
        let (uring, deferred) = build(entries)?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "The kernel's io_uring is too old: Linux 5.11 or later is needed",
            ));
        }
        let file_slots = match register_files(&uring, file_slots) {
            Ok(()) => file_slots,
            Err(refusal) => {
                tracing::warn!("Working without registered files: {refusal}");
                0
            }
        };
        let (start, len) = pool.region();
        let region = [libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        }];
        // SAFETY: the reactor holds a handle of the pool and drops the ring before it.
        let fixed_buffers = match unsafe { uring.submitter().register_buffers(&region) } {
            Ok(()) => true,
            Err(refusal) => {
                tracing::warn!(
                    bytes = len,
                    "Working without registered buffers (is RLIMIT_MEMLOCK too low?): {refusal}"
                );
                false
            }
        };
        Ok(Ring {
            uring,
            backlog: VecDeque::new(),
            file_slots,
            fixed_buffers,
            deferred,
            enters: 0,
            backlog_max: 0,
        })
    }

    /// Whether the ring runs with deferred task work, the cheapest mode.
    pub(super) fn is_deferred(&self) -> bool {
        self.deferred
    }

    /// Puts `fd` into the registered table, if there is room for `slot`.
    pub(super) fn register_file(&self, slot: u32, fd: RawFd) -> Target {
        if slot < self.file_slots {
            match self.uring.submitter().register_files_update(slot, &[fd]) {
                Ok(_) => return Target::Slot(slot),
                Err(refusal) => tracing::debug!(slot, "Not registered: {refusal}"),
            }
        }
        Target::Fd(fd)
    }

    /// Takes a file out of the registered table.
    pub(super) fn unregister_file(&self, target: Target) {
        if let Target::Slot(slot) = target
            && let Err(refusal) = self.uring.submitter().register_files_update(slot, &[-1])
        {
            tracing::warn!(slot, "A registered file could not be let go: {refusal}");
        }
    }

    /// Lets go of the whole table. Nothing may be in flight.
    pub(super) fn unregister_all(&self) {
        if self.file_slots > 0
            && let Err(refusal) = self.uring.submitter().unregister_files()
        {
            tracing::warn!("Registered files could not be let go: {refusal}");
        }
    }

    /// Queues an entry for the next [`Ring::enter`]; never fails.
    ///
    /// # Safety
    /// All memory the entry names stays alive, and unmoved, until its completion was reaped.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: promised by the caller.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
        self.backlog_max = self.backlog_max.max(self.backlog.len());
    }

    /// Asks the kernel to end the operation with this `user_data`.
    pub(super) fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data)
            .build()
            .user_data(UNWATCHED);
        // SAFETY: the entry names no memory.
        unsafe { self.push(entry) };
    }

    /// One io_uring_enter: submits all that is queued and waits as told for one completion.
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<Entered> {
        self.refill();
        let wait = if self.backlog.is_empty() {
            wait
        } else {
            Wait::No
        };
        let queued = self.uring.submission().len() as u32;
        self.enters += 1;
        let submitter = self.uring.submitter();
        let flags = EnterFlags::GETEVENTS;
        let result = match wait {
            Wait::For(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                // SAFETY: with EXT_ARG the argument is an io_uring_getevents_arg, of which
                // SubmitArgs is the transparent wrapper; it and its timespec outlive the call.
                unsafe {
                    submitter.enter(queued, 1, (flags | EnterFlags::EXT_ARG).bits(), Some(&args))
                }
            }
            Wait::No | Wait::Forever => {
                let wanted = u32::from(wait == Wait::Forever);
                // SAFETY: without an argument there is nothing to keep alive.
                unsafe { submitter.enter::<libc::sigset_t>(queued, wanted, flags.bits(), None) }
            }
        };
        match result {
            Ok(_) => Ok(Entered::Done),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME) => Ok(Entered::TimedOut),
                Some(libc::EINTR) => Ok(Entered::Interrupted),
                Some(libc::EAGAIN | libc::EBUSY) => Ok(Entered::Busy),
                _ => Err(error),
            },
        }
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised by whoever pushed it.
            if unsafe { self.uring.submission().push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Moves the completions that have arrived into `out` as (user_data, result).
    pub(super) fn reap(&mut self, out: &mut Vec<(u64, i32)>) {
        out.extend(
            self.uring
                .completion()
                .map(|cqe| (cqe.user_data(), cqe.result())),
        );
    }
}

/// The best ring the kernel grants, and whether its task work is deferred.
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let common = || {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_clamp().setup_cqsize(entries * 4);
        builder
    };
    let mut deferred = common();
    deferred
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all();
    let refusal = match deferred.build(entries) {
        Ok(uring) => return Ok((uring, true)),
        Err(refusal) => refusal,
    };
    if refusal.raw_os_error() != Some(libc::EINVAL) {
        return Err(refusal);
    }
    tracing::info!("io_uring without deferred task work: Linux 6.1 or later would be faster");
    if let Ok(uring) = common()
        .setup_coop_taskrun()
        .setup_submit_all()
        .build(entries)
    {
        return Ok((uring, false));
    }
    Ok((common().build(entries)?, false))
}

fn register_files(uring: &IoUring, slots: u32) -> io::Result<()> {
    uring
        .submitter()
        .register_files_sparse(slots)
        .or_else(|_| uring.submitter().register_files(&vec![-1; slots as usize]))
}

impl Target {
    /// The descriptor of an entry and the flag that says of which kind it is.
    pub(super) fn parts(self) -> (types::Fd, squeue::Flags) {
        match self {
            Target::Slot(slot) => (types::Fd(slot as i32), squeue::Flags::FIXED_FILE),
            Target::Fd(fd) => (types::Fd(fd), squeue::Flags::empty()),
        }
    }
}
