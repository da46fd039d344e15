//! Operations on files: admission, whole-block I/O, zeroing, sync, poisoning.
//!
//! An operation goes to the kernel as often as it takes and completes once. What is not whole
//! blocks, or lies in memory the device cannot use, goes through [`super::unaligned`]; ranges to be
//! zeroed are cut into parts by [`super::zeroing`].
//!
//! A failed change poisons its file: how much of it reached the disk is unknown, and after a failed
//! sync the kernel may have dropped the data, so a second sync would lie.

use std::time::Instant;

use io_uring::{opcode, squeue, types};

use super::Reactor;
use super::fault::FaultAction;
use super::flight::{Kind, Step};
use super::op::{Completion, FileId, FileOp, OpError, ReturnedBuf, StoreError};
use super::open::SECTOR_BYTES;
use super::zeroing::give_up_fallocate;

/// Resubmissions of one step after EINTR or EAGAIN before it counts as failed.
pub(super) const RETRIES_MAX: u16 = 100;
/// The most the kernel is asked to move at once; it takes a little under 2 GiB.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

/// A request before it is admitted.
pub(super) struct FileRequest {
    pub(super) token: u64,
    pub(super) id: FileId,
    pub(super) op: FileOp,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) buf: ReturnedBuf,
}

impl Reactor {
    pub(super) fn start_file(&mut self, request: FileRequest) {
        let FileRequest {
            token,
            id,
            op,
            offset,
            len,
            buf,
        } = request;
        if let Err(refusal) = self.admit(id, op, offset, len) {
            self.ready.push(Completion {
                token,
                result: Err(refusal),
                buf,
                accepted: None,
            });
            return;
        }
        let index = self.flights.take(token, Kind::File(op), id.index);
        self.slots.enter(id.index);
        let file = self.slots.file_in_flight(id.index);
        let flight = self.flights.get_mut(index);
        flight.offset = offset;
        flight.len = len;
        flight.part_end = len;
        match buf {
            ReturnedBuf::Mut(buf) => flight.dest = Some(buf),
            ReturnedBuf::Foreign(memory) => flight.foreign = Some(memory),
            ReturnedBuf::One(buf) => flight.one = Some(buf),
            ReturnedBuf::Many(bufs) => flight.many = bufs,
            ReturnedBuf::None => {}
        }
        flight.straight = (offset | len).is_multiple_of(file.block)
            && (!file.direct
                || flight.sources().iter().all(|buf| {
                    buf.as_ptr().addr().is_multiple_of(file.mem_align)
                        && (buf.len() as u64).is_multiple_of(file.block)
                }));
        assert!(
            flight.straight || flight.foreign.is_none(),
            "asked whether it can be read into before"
        );
        let fault = file.faults.as_mut().and_then(|plan| plan.next(op));
        match fault {
            None => {}
            Some(FaultAction::Fail(errno)) => return self.fail_file(index, errno),
            Some(FaultAction::Delay(by) | FaultAction::Shuffle(by)) => {
                return self.delayed.push((Instant::now() + by, index));
            }
            Some(FaultAction::Short(bytes)) => {
                let block = file.block as u32;
                flight.clip = (bytes - bytes % block).max(block);
            }
        }
        self.advance_file(index);
    }

    fn admit(&mut self, id: FileId, op: FileOp, offset: u64, len: u64) -> Result<(), OpError> {
        let file = self
            .slots
            .file_of(id.index, id.generation)
            .ok_or(OpError::Removed)?;
        if op != FileOp::Sync {
            if !(offset | len).is_multiple_of(u64::from(SECTOR_BYTES)) {
                return Err(OpError::Invalid(
                    "offset and length must be multiples of 512",
                ));
            }
            let end = offset.checked_add(len).filter(|&end| end <= 1 << 62);
            if len == 0 || end.is_none() {
                return Err(OpError::Invalid("the range is empty or too far out"));
            }
            let whole = matches!(op, FileOp::Zero | FileOp::Discard);
            if !whole && len > u64::from(u32::MAX) {
                return Err(OpError::Invalid("more than 4 GiB in one request"));
            }
        }
        match file.poison {
            Some(cause) if op.changes_file() => Err(OpError::Poisoned(cause)),
            _ => Ok(()),
        }
    }

    /// Takes the next step of a file operation that the kernel does not hold.
    pub(super) fn advance_file(&mut self, index: u32) {
        let flight = self.flights.get_mut(index);
        let Kind::File(op) = flight.kind else {
            unreachable!("only file operations are advanced as such");
        };
        let file = self.slots.file_in_flight(flight.slot);
        if op.changes_file() {
            if let Some(cause) = file.poison {
                return self.finish(index, Err(OpError::Poisoned(cause)));
            }
            if !flight.straight && !flight.locked {
                // Even if it has to wait: whoever lets it go on also gives it the lock.
                flight.locked = true;
                let blocks = file.blocks_of(flight.offset, flight.len);
                if !file.lock_or_wait(blocks, index) {
                    return;
                }
            }
        }
        match op {
            FileOp::Read | FileOp::Write if flight.straight => self.issue_straight(index),
            FileOp::Read | FileOp::Write => self.issue_chunk(index),
            FileOp::Zero | FileOp::Discard => self.issue_zero_part(index, op),
            FileOp::Sync => {
                flight.step = Step::Sync;
                let (fd, flags) = file.target.parts();
                let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC);
                self.hand_over(index, sync.build().flags(flags));
            }
        }
    }

    /// Moves the rest of a Read or Write directly between the caller's buffers and the file.
    fn issue_straight(&mut self, index: u32) {
        let flight = self.flights.get_mut(index);
        flight.step = Step::Straight;
        let left = clipped(&mut flight.clip, flight.len - flight.done);
        let at = flight.position();
        let (fd, flags) = self.slots.file_in_flight(flight.slot).target.parts();
        let entry = if flight.foreign.is_some() {
            let many = flight.scatter(u64::from(left));
            opcode::Readv::new(fd, many.as_ptr(), many.len() as u32)
                .offset(at)
                .build()
        } else if let Some(dest) = &mut flight.dest {
            let fixed = self.ring.fixed_buffers && dest.belongs_to(&self.pool);
            let start = dest[flight.done as usize..].as_mut_ptr();
            if fixed {
                opcode::ReadFixed::new(fd, start, left, 0)
                    .offset(at)
                    .build()
            } else {
                opcode::Read::new(fd, start, left).offset(at).build()
            }
        } else {
            let fixed = self.ring.fixed_buffers
                && flight
                    .sources()
                    .iter()
                    .all(|buf| buf.belongs_to(&self.pool));
            match flight.gather(flight.done, u64::from(left)) {
                [only] => {
                    let (start, len) = (only.iov_base.cast::<u8>(), only.iov_len as u32);
                    if fixed {
                        opcode::WriteFixed::new(fd, start, len, 0)
                            .offset(at)
                            .build()
                    } else {
                        opcode::Write::new(fd, start, len).offset(at).build()
                    }
                }
                many => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
                    .offset(at)
                    .build(),
            }
        };
        self.hand_over(index, entry.flags(flags));
    }

    /// The kernel has finished a step of a file operation.
    pub(super) fn file_step_done(&mut self, index: u32, op: FileOp, result: i32) {
        let flight = self.flights.get_mut(index);
        let file = self.slots.file_in_flight(flight.slot);
        if result < 0 {
            let errno = -result;
            let transient = matches!(errno, libc::EINTR | libc::EAGAIN);
            let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS);
            if transient && flight.retries < RETRIES_MAX {
                flight.retries += 1;
                return self.issue_again(index);
            }
            if flight.step == Step::Allocate && unsupported {
                give_up_fallocate(file, op);
                return self.advance_file(index);
            }
            return self.fail_file(index, errno);
        }
        flight.retries = 0;
        match flight.step {
            Step::Straight => self.straight_moved(index, op, result as u64),
            Step::FillHead | Step::FillTail | Step::StoreChunk | Step::LoadChunk => {
                self.chunk_moved(index, op, result as usize);
            }
            Step::Allocate => {
                flight.done = flight.part_end;
                self.advance_file(index);
            }
            // A change that failed while this sync was under way: say so rather than call the file
            // durable.
            Step::Sync => match file.poison {
                Some(cause) => self.finish(index, Err(OpError::Poisoned(cause))),
                None => self.finish(index, Ok(0)),
            },
        }
    }

    fn issue_again(&mut self, index: u32) {
        match self.flights.get(index).step {
            Step::FillHead | Step::FillTail | Step::StoreChunk | Step::LoadChunk => {
                self.issue_chunk_step(index);
            }
            Step::Straight | Step::Allocate | Step::Sync => self.advance_file(index),
        }
    }

    fn straight_moved(&mut self, index: u32, op: FileOp, moved: u64) {
        let flight = self.flights.get_mut(index);
        let file = self.slots.file_in_flight(flight.slot);
        let complete = flight.done + moved == flight.len;
        // Direct I/O can only go on at a block boundary.
        let moved = if file.direct && !complete {
            moved - moved % file.block
        } else {
            moved
        };
        if moved == 0 {
            return self.fail_file(index, nothing_moved(op));
        }
        flight.done += moved;
        if op == FileOp::Read || op == FileOp::Write {
            if complete {
                let len = flight.len as u32;
                return self.finish(index, Ok(len));
            }
            self.stats.continued += 1;
        }
        self.advance_file(index);
    }

    /// Completes with a failure of the file, which is poisoned unless it was a read.
    pub(super) fn fail_file(&mut self, index: u32, errno: i32) {
        let flight = self.flights.get(index);
        let Kind::File(op) = flight.kind else {
            unreachable!("only file operations fail as such");
        };
        let cause = StoreError {
            op,
            offset: flight.offset,
            errno,
        };
        let file = self.slots.file_in_flight(flight.slot);
        if op.changes_file() && file.poison.is_none() {
            file.poison = Some(cause);
        }
        self.finish(index, Err(OpError::Store(cause)));
    }

    pub(super) fn hand_over(&mut self, index: u32, entry: squeue::Entry) {
        let entry = entry.user_data(self.flights.user_data(index));
        self.flights.get_mut(index).in_kernel = true;
        self.in_kernel += 1;
        // SAFETY: entries name the buffers, vectors and header of their own record, which is
        // neither moved nor freed while `in_kernel` is set, and the zero buffer of the reactor.
        unsafe { self.ring.push(entry) };
    }
}

/// What a step that moves no byte means.
pub(super) fn nothing_moved(op: FileOp) -> i32 {
    if op == FileOp::Read {
        libc::ENODATA
    } else {
        libc::EIO
    }
}

/// `left` under the kernel's limit and under a planted one, which counts until it has had an effect.
pub(super) fn clipped(clip: &mut u32, left: u64) -> u32 {
    let left = left.min(TRANSFER_BYTES_MAX) as u32;
    if *clip == 0 || *clip >= left {
        return left;
    }
    std::mem::take(clip)
}
