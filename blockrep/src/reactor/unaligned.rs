//! Requests that a device cannot take as they are, carried through bounce buffers.
//!
//! ```text
//!   file blocks     |        |        |        |
//!   request             |=================|
//!   chunk           |<-- len: whole blocks --->|
//!   Write:  fill head block, fill tail block, lay the request over them, store the chunk
//!   Read:   load the chunk, copy the request out of it
//! ```
//!
//! Two changes that share a block must not do this at the same time, or one undoes the other: each
//! holds its blocks in the file's lock table from its first step to its end. The engine keeps
//! requests that share a *sector* apart; sectors that share a block are kept apart here. Whole-block
//! requests need no lock: one that meets a locked block also shares a sector.
//!
//! Bounce buffers are few. Who finds none waits, holding only locks; who has one never waits for a
//! lock, so somebody can always go on.

use io_uring::opcode;

use super::Reactor;
use super::files::{clipped, nothing_moved};
use super::flight::{Chunk, Step};
use super::op::FileOp;

/// The largest chunk; a multiple of every block size.
pub(super) const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// All bounce buffers of a reactor together.
pub(super) const BOUNCE_BYTES: usize = 8 * CHUNK_BYTES_MAX;

impl Reactor {
    /// Begins the next chunk of the part up to `part_end`.
    pub(super) fn issue_chunk(&mut self, index: u32) {
        let flight = self.flights.get_mut(index);
        let block = self.slots.file_in_flight(flight.slot).block;
        let begin = flight.position() - flight.position() % block;
        let part_end = flight.offset + flight.part_end;
        let blocks_end = part_end.next_multiple_of(block);
        let buf = match flight.chunk.take() {
            Some(chunk) => chunk.buf,
            None => {
                let len = (blocks_end - begin).min(CHUNK_BYTES_MAX as u64) as usize;
                let free = self
                    .bounce_waiting
                    .is_empty()
                    .then(|| self.bounce.alloc(len))
                    .flatten();
                let Some(buf) = free else {
                    return self.bounce_waiting.push_back(index);
                };
                self.stats.bounced += 1;
                buf
            }
        };
        let len = (blocks_end - begin).min(buf.len() as u64) as usize;
        let wanted = (flight.position() - begin) as usize..len.min((part_end - begin) as usize);
        let is_read = flight.dest.is_some();
        flight.chunk = Some(Chunk {
            buf,
            begin,
            len,
            wanted,
            moving: 0..0,
        });
        self.next_chunk_step(index, if is_read { None } else { Some(Step::FillHead) });
    }

    /// Goes to the first step from `from` on (`None`: load) that the chunk needs.
    fn next_chunk_step(&mut self, index: u32, from: Option<Step>) {
        let flight = self.flights.get_mut(index);
        let block = self.slots.file_in_flight(flight.slot).block as usize;
        let chunk = flight
            .chunk
            .as_mut()
            .expect("a chunk step works on a chunk");
        let (len, wanted) = (chunk.len, chunk.wanted.clone());
        let head_partial = wanted.start > 0 || (len == block && wanted.end < block);
        let tail_partial = len > block && wanted.end < len;
        let (step, moving) = match from {
            None => (Step::LoadChunk, 0..len),
            Some(Step::FillHead) if head_partial => (Step::FillHead, 0..block),
            Some(Step::FillHead | Step::FillTail) if tail_partial => {
                (Step::FillTail, len - block..len)
            }
            Some(_) => (Step::StoreChunk, 0..len),
        };
        chunk.moving = moving;
        flight.step = step;
        if step == Step::StoreChunk {
            lay_over(flight);
        }
        self.issue_chunk_step(index);
    }

    /// Asks the kernel to move what the current step still has to move.
    pub(super) fn issue_chunk_step(&mut self, index: u32) {
        let flight = self.flights.get_mut(index);
        let (fd, flags) = self.slots.file_in_flight(flight.slot).target.parts();
        let chunk = flight
            .chunk
            .as_mut()
            .expect("a chunk step works on a chunk");
        let at = chunk.begin + chunk.moving.start as u64;
        let target = &mut chunk.buf[chunk.moving.clone()];
        let len = clipped(&mut flight.clip, target.len() as u64);
        let entry = if flight.step == Step::StoreChunk {
            opcode::Write::new(fd, target.as_ptr(), len)
                .offset(at)
                .build()
        } else {
            opcode::Read::new(fd, target.as_mut_ptr(), len)
                .offset(at)
                .build()
        };
        self.hand_over(index, entry.flags(flags));
    }

    /// The kernel moved some bytes of a chunk step.
    pub(super) fn chunk_moved(&mut self, index: u32, op: FileOp, moved: usize) {
        let flight = self.flights.get_mut(index);
        let file = self.slots.file_in_flight(flight.slot);
        let chunk = flight
            .chunk
            .as_mut()
            .expect("a chunk step works on a chunk");
        let odd = if file.direct {
            moved % file.block as usize
        } else {
            0
        };
        if flight.step == Step::StoreChunk {
            if moved - odd == 0 {
                return self.fail_file(index, nothing_moved(op));
            }
            chunk.moving.start += moved - odd;
        } else {
            chunk.moving.start += moved;
            // Direct I/O stops inside a block at the end of the file only.
            if moved == 0 || odd != 0 {
                let rest = chunk.moving.clone();
                if flight.step == Step::LoadChunk && rest.start < chunk.wanted.end {
                    return self.fail_file(index, nothing_moved(op));
                }
                // Beyond the end a file reads as zeros once it has been made longer.
                chunk.buf[rest.clone()].fill(0);
                chunk.moving.start = rest.end;
            }
        }
        if !chunk.moving.is_empty() {
            self.stats.continued += 1;
            return self.issue_chunk_step(index);
        }
        match flight.step {
            Step::FillHead => self.next_chunk_step(index, Some(Step::FillTail)),
            Step::FillTail => self.next_chunk_step(index, Some(Step::StoreChunk)),
            _ => self.chunk_done(index, op),
        }
    }

    fn chunk_done(&mut self, index: u32, op: FileOp) {
        let flight = self.flights.get_mut(index);
        let chunk = flight
            .chunk
            .as_ref()
            .expect("a chunk step works on a chunk");
        let done = flight.done as usize;
        if let Some(dest) = &mut flight.dest {
            let target = &mut dest[done..done + chunk.wanted.len()];
            target.copy_from_slice(&chunk.buf[chunk.wanted.clone()]);
        }
        flight.done += chunk.wanted.len() as u64;
        let data = matches!(op, FileOp::Read | FileOp::Write);
        if data && flight.done == flight.len {
            let len = flight.len as u32;
            return self.finish(index, Ok(len));
        }
        self.advance_file(index);
    }
}

/// Lays the next bytes of a Write, or zeros, over the wanted part of its chunk.
fn lay_over(flight: &mut super::flight::Flight) {
    let mut chunk = flight.chunk.take().expect("a chunk step works on a chunk");
    let mut target = &mut chunk.buf[chunk.wanted.clone()];
    if flight.sources().is_empty() {
        target.fill(0);
    }
    let mut skip = flight.done as usize;
    for source in flight.sources() {
        let bytes = source.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(source.len());
        let (now, later) = target.split_at_mut(bytes.len().min(target.len()));
        now.copy_from_slice(&bytes[..now.len()]);
        target = later;
    }
    flight.chunk = Some(chunk);
}
