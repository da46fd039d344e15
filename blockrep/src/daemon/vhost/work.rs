//! Requests of a ring on their way through the engine: taken, cut into pieces, answered.

use super::request::{RingPart, RingRequest, gather, memory_of, note_filled, scatter};
use crate::daemon::memory::{PoolBuf, PoolBufMut, PoolMemory};
use crate::daemon::nbd::PIECE_BYTES;
use crate::daemon::nbd_loop::{charge_of, has_room};
use crate::daemon::role::Engine;
use crate::daemon::thread::VolumeThread;
use crate::frontend::virtio_blk::chain::Chain;
use crate::frontend::virtio_blk::request::{Ask, Limits, Mistake, Parsed, Status, parse};
use crate::io::{Request, RequestId};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

/// Ids of pieces that come from rings have this bit.
const RING_BIT: u64 = 1 << 63;

impl VolumeThread {
    pub(super) fn take_request(&mut self, index: usize, head: u16) {
        let limits = Limits {
            size_bytes: self.about.size_bytes,
            is_read_only: false,
        };
        let Some(rings) = &mut self.rings else { return };
        let (Some(guest), Some(ring)) = (rings.guest.clone(), rings.rings[index].as_mut()) else {
            return;
        };
        ring.in_flight += 1;
        let mut read =
            |address: u64, out: &mut [u8]| guest.read_slice(out, GuestAddress(address)).is_ok();
        let mut descriptors = std::mem::take(&mut rings.descriptors);
        descriptors.clear();
        let table = ring.queue.desc_table();
        descriptors.extend(Chain::new(table, ring.queue.size(), head, &mut read));
        let parsed = parse(descriptors.drain(..), limits, &mut rings.spare, &mut read);
        rings.descriptors = descriptors;
        match parsed {
            Ok(Parsed { ask, data, status }) => {
                let key = rings.requests.insert(RingRequest {
                    ring: index,
                    head,
                    status,
                    ask,
                    data,
                    handed: 0,
                    left: 1,
                    answer: Status::Ok,
                });
                if !self.hand_on(key)
                    && let Some(rings) = &mut self.rings
                {
                    rings.waiting.push_back(key);
                }
            }
            Err(mistake) => {
                tracing::debug!("vhost-user: ring {index}: {mistake}");
                let length = match mistake {
                    Mistake::NoStatus => 0,
                    Mistake::Answer { status, answer, .. } => {
                        let _ = guest.write_obj(answer as u8, GuestAddress(status));
                        1
                    }
                };
                rings.publish(&guest, index, head, length);
            }
        }
    }

    /// Hands on what had to wait for memory, in order.
    pub(super) fn hand_waiting(&mut self) {
        loop {
            let waiting = self.rings.as_ref().and_then(|r| r.waiting.front().copied());
            let Some(key) = waiting else { return };
            if !self.hand_on(key) {
                return;
            }
            if let Some(rings) = &mut self.rings {
                rings.waiting.pop_front();
            }
        }
    }

    /// Hands the pieces of a request to the engine; false when some have to wait for memory.
    fn hand_on(&mut self, key: usize) -> bool {
        loop {
            let Some(rings) = &mut self.rings else {
                return true;
            };
            let request = &mut rings.requests[key];
            if request.is_handed() || request.answer != Status::Ok {
                if request.ask == Ask::GetId {
                    let guest = rings.guest.as_ref().expect("rings have memory");
                    if !scatter(guest, &request.data, 0, &rings.id) {
                        request.answer = Status::IoError;
                    }
                }
                self.ring_step(key);
                return true;
            }
            match self.piece(key) {
                Some((engine_request, charge, at)) => {
                    let Some(rings) = &mut self.rings else {
                        return true;
                    };
                    rings.requests[key].left += 1;
                    let part = rings.parts.insert(RingPart {
                        request: key,
                        at,
                        charge,
                    });
                    self.front_bytes += charge;
                    let id = RequestId(RING_BIT | part as u64);
                    self.engine
                        .request(self.now, &mut self.mem, id, engine_request, &mut self.fx);
                }
                None => {
                    let failed = self
                        .rings
                        .as_ref()
                        .is_some_and(|r| r.requests[key].answer != Status::Ok);
                    if !failed {
                        self.stalled = true;
                        return false;
                    }
                }
            }
        }
    }

    /// The next piece of a request, its charge, and where in the data it begins; `None` when there is
    /// no memory, or the request turned out to be wrong.
    fn piece(&mut self, key: usize) -> Option<(Request<PoolMemory>, u64, u64)> {
        let rings = self.rings.as_mut()?;
        let guest = rings.guest.as_ref()?;
        let request = &mut rings.requests[key];
        let at = request.handed;
        match &request.ask {
            Ask::Read { offset, length } => {
                let bytes = (*length - at).min(PIECE_BYTES);
                let size = usize::try_from(bytes).expect("pieces are small");
                let offset = *offset + at;
                // An engine that puts reads together itself has to see them.
                let passes_on = matches!(self.engine, Engine::Primary(_));
                let into = passes_on.then(|| {
                    let vector = rings.vectors.pop().unwrap_or_default();
                    memory_of(guest, &request.data, at, size, vector)
                });
                let buf = match into.flatten() {
                    Some(memory) if self.reactor.reads_into(self.files.image, offset, &memory) => {
                        PoolBufMut::Guest(memory)
                    }
                    Some(memory) => {
                        rings.vectors.push(memory.into_vec());
                        PoolBufMut::Own(self.mem.alloc_outside(size)?)
                    }
                    None => PoolBufMut::Own(self.mem.alloc_outside(size)?),
                };
                request.handed += bytes;
                Some((Request::Read { offset, buf }, 0, at))
            }
            Ask::Write { offset, length } => {
                let bytes = (*length - at).min(PIECE_BYTES);
                if !has_room(self.front_bytes, bytes) {
                    return None;
                }
                let mut buf = self
                    .mem
                    .alloc_outside(usize::try_from(bytes).expect("pieces are small"))?;
                if !gather(guest, &request.data, at, &mut buf) {
                    request.answer = Status::IoError;
                    return None;
                }
                request.handed += bytes;
                let engine_request = Request::Write {
                    offset: *offset + at,
                    buf: PoolBuf(buf.freeze()),
                    fua: false,
                };
                Some((engine_request, charge_of(bytes), at))
            }
            Ask::Zero(ranges) => {
                if !has_room(self.front_bytes, 0) {
                    return None;
                }
                let range = ranges[usize::try_from(at).expect("few")];
                request.handed += 1;
                let engine_request = Request::Zero {
                    offset: range.offset,
                    length: range.length,
                    discard: range.discard,
                    fua: false,
                };
                Some((engine_request, charge_of(0), at))
            }
            Ask::Flush => {
                request.handed = 1;
                Some((Request::Flush, 0, 0))
            }
            Ask::GetId => None,
        }
    }

    /// The engine answered a piece; false when the piece is none of a ring's.
    pub(in crate::daemon) fn ring_part_done(
        &mut self,
        id: RequestId,
        errno: Option<i32>,
        buf: &mut Option<PoolBufMut>,
    ) -> bool {
        if id.0 & RING_BIT == 0 {
            return false;
        }
        let Some(rings) = &mut self.rings else {
            return true;
        };
        let part = rings
            .parts
            .remove(usize::try_from(id.0 & !RING_BIT).expect("ids come from this slab"));
        self.front_bytes -= part.charge;
        let request = &mut rings.requests[part.request];
        let guest = rings.guest.as_ref().expect("rings have memory");
        let fits = match buf.take() {
            Some(PoolBufMut::Own(data)) => scatter(guest, &request.data, part.at, &data),
            Some(PoolBufMut::Guest(memory)) => {
                let length = usize::try_from(memory.len()).expect("pieces are small");
                note_filled(guest, &request.data, part.at, length);
                rings.vectors.push(memory.into_vec());
                true
            }
            None => {
                // A read that failed may have filled some of it.
                if matches!(request.ask, Ask::Read { .. }) {
                    note_filled(guest, &request.data, part.at, usize::MAX);
                }
                true
            }
        };
        if errno.is_some() || !fits {
            request.answer = Status::IoError;
        }
        self.ring_step(part.request);
        true
    }

    fn ring_step(&mut self, key: usize) {
        let Some(rings) = &mut self.rings else { return };
        let request = &mut rings.requests[key];
        request.left -= 1;
        if request.left > 0 {
            return;
        }
        let request = rings.requests.remove(key);
        let guest = rings.guest.clone().expect("rings have memory");
        let _ = guest.write_obj(request.answer as u8, GuestAddress(request.status));
        rings.publish(&guest, request.ring, request.head, request.written_bytes());
        rings.spare.give(request.data);
    }
}
