//! The files and sockets of a reactor, and what each of them remembers.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::fault::FaultPlan;
use super::op::{OpError, StoreError};
use super::open::FileOptions;
use super::ring::{Ring, Target};

pub(super) struct FileState {
    fd: OwnedFd,
    pub(super) target: Target,
    pub(super) direct: bool,
    /// Bytes; requests that are not whole blocks are read, modified and written.
    pub(super) block: u64,
    pub(super) mem_align: usize,
    /// The first failed change: no further one is tried.
    pub(super) poison: Option<StoreError>,
    pub(super) faults: Option<Box<FaultPlan>>,
    /// What fallocate turned out not to do here.
    pub(super) no_zero_range: bool,
    pub(super) no_punch_hole: bool,
    /// Byte ranges (whole blocks) of unaligned changes under way, and who holds them.
    locks: Vec<(Range<u64>, u32)>,
    /// Who waits for a range, oldest first.
    waiting: VecDeque<(Range<u64>, u32)>,
}

impl FileState {
    /// The blocks a request touches, as a byte range.
    pub(super) fn blocks_of(&self, offset: u64, len: u64) -> Range<u64> {
        let begin = offset - offset % self.block;
        begin..(offset + len).next_multiple_of(self.block)
    }

    /// Takes the range for `flight`, or queues it behind whoever is in the way.
    pub(super) fn lock_or_wait(&mut self, range: Range<u64>, flight: u32) -> bool {
        let meets = |(other, _): &(Range<u64>, u32)| overlaps(other, &range);
        if self.locks.iter().any(meets) || self.waiting.iter().any(meets) {
            self.waiting.push_back((range, flight));
            return false;
        }
        self.locks.push((range, flight));
        true
    }

    /// Gives back the range of `flight`. Those that could take theirs now hold it, and are put
    /// into `woken`.
    pub(super) fn unlock(&mut self, flight: u32, woken: &mut VecDeque<u32>) {
        self.locks.retain(|(_, holder)| *holder != flight);
        let mut at = 0;
        while at < self.waiting.len() {
            let range = &self.waiting[at].0;
            let meets = |(other, _): &(Range<u64>, u32)| overlaps(other, range);
            if self.locks.iter().any(meets) || self.waiting.iter().take(at).any(meets) {
                at += 1;
            } else if let Some(freed) = self.waiting.remove(at) {
                woken.push_back(freed.1);
                self.locks.push(freed);
            }
        }
    }
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

pub(super) struct SockState {
    fd: OwnedFd,
    pub(super) target: Target,
    /// Sends in order; the kernel has the first one.
    pub(super) sends: VecDeque<u32>,
    /// Receives in order; the kernel has the first one.
    pub(super) recvs: VecDeque<u32>,
    /// Why nothing more can be sent: part of a message may be missing from the stream.
    pub(super) send_error: Option<OpError>,
}

enum Resource {
    Free,
    File(FileState),
    Sock(SockState),
    /// Only held open.
    Kept {
        _fd: OwnedFd,
    },
}

struct Slot {
    generation: u32,
    /// Operations that have not completed.
    in_flight: u32,
    /// Removed by the owner; closed when nothing is in flight.
    closing: bool,
    resource: Resource,
}

/// Table of files and sockets. An index is reused under a new generation only after everything
/// under the old one has completed.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn add_file(
        &mut self,
        ring: &Ring,
        fd: OwnedFd,
        options: FileOptions,
    ) -> (u32, u32) {
        let index = self.reserve();
        let target = ring.register_file(index, fd.as_raw_fd());
        let file = FileState {
            fd,
            target,
            direct: options.direct,
            block: u64::from(options.logical_block),
            mem_align: options.mem_align as usize,
            poison: None,
            faults: options.faults.map(Box::new),
            no_zero_range: false,
            no_punch_hole: false,
            locks: Vec::new(),
            waiting: VecDeque::new(),
        };
        self.fill(index, Resource::File(file))
    }

    /// Sockets stay out of the registered table. The kernel lets go of that only with the whole
    /// ring, after all disk operations of a killed process: so long its peers would not learn that
    /// it is gone.
    pub(super) fn add_sock(&mut self, fd: OwnedFd) -> (u32, u32) {
        let index = self.reserve();
        let target = Target::Fd(fd.as_raw_fd());
        let sock = SockState {
            fd,
            target,
            sends: VecDeque::new(),
            recvs: VecDeque::new(),
            send_error: None,
        };
        self.fill(index, Resource::Sock(sock))
    }

    /// Keeps a descriptor in the registered table for as long as the ring is.
    pub(super) fn keep(&mut self, ring: &Ring, fd: OwnedFd) {
        let index = self.reserve();
        if let Target::Fd(_) = ring.register_file(index, fd.as_raw_fd()) {
            tracing::warn!("A lock is let go with the process, not with its last operation");
        }
        self.fill(index, Resource::Kept { _fd: fd });
    }

    fn reserve(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                in_flight: 0,
                closing: false,
                resource: Resource::Free,
            });
            (self.slots.len() - 1) as u32
        })
    }

    fn fill(&mut self, index: u32, resource: Resource) -> (u32, u32) {
        let slot = &mut self.slots[index as usize];
        slot.resource = resource;
        slot.closing = false;
        (index, slot.generation)
    }

    /// The open file of an id; `None` once it was removed.
    pub(super) fn file_of(&mut self, index: u32, generation: u32) -> Option<&mut FileState> {
        match self.open_slot(index, generation)? {
            Slot {
                resource: Resource::File(file),
                ..
            } => Some(file),
            _ => None,
        }
    }

    /// The open socket of an id; `None` once it was removed.
    pub(super) fn sock_of(&mut self, index: u32, generation: u32) -> Option<&mut SockState> {
        match self.open_slot(index, generation)? {
            Slot {
                resource: Resource::Sock(sock),
                ..
            } => Some(sock),
            _ => None,
        }
    }

    fn open_slot(&mut self, index: u32, generation: u32) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(index as usize)?;
        (slot.generation == generation && !slot.closing).then_some(slot)
    }

    /// The descriptor of an open file or socket.
    pub(super) fn fd_of(&self, index: u32, generation: u32) -> Option<BorrowedFd<'_>> {
        let slot = self.slots.get(index as usize)?;
        match &slot.resource {
            _ if slot.generation != generation || slot.closing => None,
            Resource::Free | Resource::Kept { .. } => None,
            Resource::File(file) => Some(file.fd.as_fd()),
            Resource::Sock(sock) => Some(sock.fd.as_fd()),
        }
    }

    /// The file an operation in flight works on.
    pub(super) fn file_in_flight(&mut self, index: u32) -> &mut FileState {
        match &mut self.slots[index as usize].resource {
            Resource::File(file) => file,
            _ => unreachable!("an operation in flight keeps its file in the table"),
        }
    }

    /// The socket an operation in flight works on.
    pub(super) fn sock_in_flight(&mut self, index: u32) -> &mut SockState {
        match &mut self.slots[index as usize].resource {
            Resource::Sock(sock) => sock,
            _ => unreachable!("an operation in flight keeps its socket in the table"),
        }
    }

    pub(super) fn enter(&mut self, index: u32) {
        self.slots[index as usize].in_flight += 1;
    }

    /// One operation fewer; closes what its owner removed.
    pub(super) fn leave(&mut self, index: u32, ring: &Ring) {
        let slot = &mut self.slots[index as usize];
        slot.in_flight -= 1;
        self.close_if_unused(index, ring);
    }

    /// Refuses new operations from now on; closes as soon as nothing is in flight.
    pub(super) fn remove(&mut self, index: u32, generation: u32, ring: &Ring) -> bool {
        match self.open_slot(index, generation) {
            Some(slot) => slot.closing = true,
            None => return false,
        }
        self.close_if_unused(index, ring);
        true
    }

    fn close_if_unused(&mut self, index: u32, ring: &Ring) {
        let slot = &mut self.slots[index as usize];
        if !slot.closing || slot.in_flight > 0 {
            return;
        }
        match std::mem::replace(&mut slot.resource, Resource::Free) {
            Resource::File(FileState { fd, target, .. })
            | Resource::Sock(SockState { fd, target, .. }) => {
                ring.unregister_file(target);
                drop(fd);
            }
            Resource::Free | Resource::Kept { .. } => return,
        }
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }
}
