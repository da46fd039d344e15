//! The rings of a volume on its I/O thread: kicks come in through the reactor, requests go to the
//! engine, answers into the used ring, and the guest is called once a turn of the loop.

use super::record::Record;
use super::request::{RingPart, RingRequest};
use super::standing::Standing;
use super::{Guest, Mapping, RingMail, Start};
use crate::daemon::thread::{Token, VolumeThread};
use crate::frontend::virtio_blk::QUEUES_MAX;
use crate::frontend::virtio_blk::inflight::Table;
use crate::frontend::virtio_blk::request::{Descriptor, ID_BYTES, Spare};
use crate::reactor::Op as ROp;
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// A ring that runs.
pub(super) struct Ring {
    pub(super) queue: Queue,
    kick: Rc<EventConsumer>,
    call: Option<EventNotifier>,
    /// Token of the poll for kicks.
    poll: u64,
    /// There may be requests.
    kicked: bool,
    /// The driver broke the rules of the ring: nothing more is taken from it.
    pub(super) is_broken: bool,
    pub(super) in_flight: usize,
    /// Taken before this process began, to be carried out again.
    again: VecDeque<u16>,
    /// Answers stand in the used ring that the guest may have to be called for.
    to_call: bool,
    /// It has to be called, whatever the indices say: somebody else may have answered and not called.
    must_call: bool,
    stop: Option<SyncSender<u16>>,
}

/// All rings of a volume.
pub(in crate::daemon) struct Rings {
    pub(super) guest: Option<Arc<Guest>>,
    pub(super) rings: [Option<Ring>; QUEUES_MAX],
    /// Ring and descriptor of polls that are out, by token; the descriptor lives as long.
    polls: Slab<(usize, Rc<EventConsumer>)>,
    pub(super) requests: Slab<RingRequest>,
    pub(super) parts: Slab<RingPart>,
    /// Requests that wait for memory.
    pub(super) waiting: VecDeque<usize>,
    pub(super) table: Table<Mapping>,
    pub(super) id: [u8; ID_BYTES as usize],
    pub(super) descriptors: Vec<Descriptor>,
    /// Segments of requests that have ended, for those to come.
    pub(super) spare: Spare,
    /// The same for memory that is read into.
    pub(super) vectors: Vec<Vec<libc::iovec>>,
    /// What is written into the guest's memory, where somebody asked for it.
    pub(super) record: Option<Record>,
    pub(super) standing: Standing,
}

impl Rings {
    pub(in crate::daemon) fn new(table: Table<Mapping>, name: &str) -> Self {
        let mut id = [0; ID_BYTES as usize];
        let length = name.len().min(id.len());
        id[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self {
            guest: None,
            rings: Default::default(),
            polls: Slab::new(),
            requests: Slab::new(),
            parts: Slab::new(),
            waiting: VecDeque::new(),
            table,
            id,
            descriptors: Vec::new(),
            spare: Spare::default(),
            vectors: Vec::new(),
            record: None,
            standing: Standing::default(),
        }
    }

    /// Nothing of any ring is with the engine.
    pub(in crate::daemon) fn is_quiet(&self) -> bool {
        self.requests.is_empty()
    }
}

impl VolumeThread {
    pub(in crate::daemon) fn ring_mail(&mut self, mail: RingMail) {
        let Some(rings) = &mut self.rings else { return };
        match mail {
            RingMail::Memory(guest) => {
                if let Some(record) = &mut rings.record {
                    record.moved(rings.guest.as_deref(), &guest);
                }
                rings.guest = Some(guest);
            }
            RingMail::Connected => rings.standing.connected(),
            RingMail::Features(features) => rings.standing.features(features),
            RingMail::Gone(reason) => {
                rings.standing.gone(reason);
                if let Some(record) = &mut rings.record {
                    record.gone();
                }
                rings.guest = None;
            }
            RingMail::Start(start) => self.start_ring(*start),
            RingMail::Call(ring, call) => {
                if let Some(ring) = &mut rings.rings[ring] {
                    ring.call = call;
                    // What was answered before may have been announced to nobody.
                    ring.must_call = true;
                }
            }
            RingMail::Stop(ring, answer) => match &mut rings.rings[ring] {
                Some(running) => running.stop = Some(answer),
                None => {
                    rings.standing.mended(ring);
                    // As below.
                    let _ = answer.send(0);
                }
            },
        }
        self.tell_guest();
    }

    fn start_ring(&mut self, start: Start) {
        let Some(rings) = &mut self.rings else { return };
        let Start {
            ring: index,
            queue: state,
            kick,
            call,
        } = start;
        if rings.rings[index].is_some() {
            tracing::error!("vhost-user: ring {index} is started and has not stopped");
            return;
        }
        let taken = Queue::try_from(state).ok().and_then(|mut queue| {
            let guest = rings.guest.as_ref()?;
            queue.set_ready(true);
            if !queue.is_valid(&**guest) {
                return None;
            }
            let used = queue.used_idx(&**guest, Ordering::Acquire).ok()?.0;
            let avail = queue.avail_idx(&**guest, Ordering::Acquire).ok()?.0;
            let found = rings.table.recover(index, queue.size(), used, avail);
            queue.set_next_used(used);
            queue.set_next_avail(found.next_avail);
            Some((queue, found))
        });
        let Some((queue, found)) = taken else {
            let why = "it does not lie in the guest's memory, or makes no sense";
            rings.standing.broke(index, why);
            return;
        };
        rings.standing.mended(index);
        if found.forgotten {
            tracing::warn!("vhost-user: ring {index}: what another guest left is forgotten");
        }
        if !found.heads.is_empty() {
            let count = found.heads.len();
            tracing::info!("vhost-user: ring {index}: {count} requests are carried out again");
        }
        rings.rings[index] = Some(Ring {
            queue,
            kick: Rc::new(kick),
            call,
            poll: 0,
            kicked: true,
            is_broken: false,
            in_flight: 0,
            again: found.heads.into(),
            to_call: false,
            // For answers of a process that died between the used ring and the call: the guest
            // waits for that call, and the indices only speak of answers given since.
            must_call: true,
            stop: None,
        });
        self.poll_ring(index);
    }

    fn poll_ring(&mut self, index: usize) {
        let Some(rings) = &mut self.rings else { return };
        let Some(ring) = &mut rings.rings[index] else {
            return;
        };
        let fd = ring.kick.as_raw_fd();
        let key = rings.polls.insert((index, ring.kick.clone()));
        ring.poll = Token::RingKick.with(key as u64);
        self.reactor.submit(ring.poll, ROp::PollIn { fd });
    }

    /// A ring was kicked, or the poll of one that is gone has ended.
    pub(in crate::daemon) fn ring_kicked(&mut self, key: u64) {
        let Some(rings) = &mut self.rings else { return };
        let (index, kick) = rings
            .polls
            .remove(usize::try_from(key).expect("keys are small"));
        if let Some(ring) = &mut rings.rings[index]
            && Rc::ptr_eq(&ring.kick, &kick)
        {
            // It is readable, and nobody else reads it.
            let _ = ring.kick.consume();
            ring.kicked = true;
            self.poll_ring(index);
        }
    }

    /// Takes requests of every ring as far as memory and bounds allow.
    pub(in crate::daemon) fn pump_rings(&mut self) {
        if self.rings.is_none() {
            return;
        }
        self.hand_waiting();
        for index in 0..QUEUES_MAX {
            while let Some(head) = self.next_head(index) {
                self.take_request(index, head);
            }
            self.end_ring(index);
        }
        self.tell_guest();
    }

    /// The next request of a ring, if it may be taken now.
    fn next_head(&mut self, index: usize) -> Option<u16> {
        let stopping = self.stopping.is_some();
        let rings = self.rings.as_mut()?;
        let guest = rings.guest.as_ref()?;
        let ring = rings.rings[index].as_mut()?;
        if stopping || !rings.waiting.is_empty() {
            return None;
        }
        // Carried out again before anything else, also when the ring is to be stopped.
        if let Some(head) = ring.again.pop_front() {
            return Some(head);
        }
        if ring.stop.is_some() || !ring.kicked || ring.is_broken {
            return None;
        }
        if ring.in_flight >= usize::from(ring.queue.size()) {
            return None;
        }
        // Asked again after kicks are wanted again: one that came in between would be lost.
        let mut broken = None;
        for _ in 0..2 {
            if let Some(chain) = ring.queue.pop_descriptor_chain(&**guest) {
                let head = chain.head_index();
                if head >= ring.queue.size() {
                    broken = Some(format!("head {head} of {} entries", ring.queue.size()));
                    break;
                }
                rings.table.take(index, head);
                return Some(head);
            }
            if !ring.queue.enable_notification(&**guest).unwrap_or(false) {
                ring.kicked = false;
                return None;
            }
        }
        ring.is_broken = true;
        let why = broken.unwrap_or_else(|| too_many(&ring.queue, guest));
        rings.standing.broke(index, why);
        None
    }

    /// Calls the guest for what was answered in this turn.
    pub(in crate::daemon) fn call_guests(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let Some(guest) = &rings.guest else { return };
        for ring in rings.rings.iter_mut().flatten() {
            let must_call = std::mem::take(&mut ring.must_call);
            if !std::mem::take(&mut ring.to_call) && !must_call {
                continue;
            }
            let wanted = ring.queue.needs_notification(&**guest).unwrap_or(true) || must_call;
            if let Some(call) = &ring.call
                && wanted
                && let Err(error) = call.notify()
            {
                tracing::warn!("vhost-user: a guest could not be called: {error}");
            }
        }
    }

    /// Answers a stop once everything of the ring is answered.
    fn end_ring(&mut self, index: usize) {
        let Some(rings) = &mut self.rings else { return };
        let Some(ring) = &mut rings.rings[index] else {
            return;
        };
        if ring.in_flight > 0 || !ring.again.is_empty() || ring.stop.is_none() {
            return;
        }
        self.call_guests();
        let Some(rings) = &mut self.rings else { return };
        let Some(ring) = rings.rings[index].take() else {
            return;
        };
        rings.table.forget(index);
        rings.standing.mended(index);
        let target = ring.poll;
        let cancel = Token::RingCancel.with(0);
        self.reactor.submit(cancel, ROp::Cancel { target });
        if let Some(stop) = ring.stop {
            // Nobody waits any more: it is stopped all the same.
            let _ = stop.send(ring.queue.next_avail());
        }
    }
}

/// Why nothing can be taken from a ring that has something.
fn too_many(queue: &Queue, guest: &Guest) -> String {
    let avail = queue.avail_idx(guest, Ordering::Acquire);
    let ahead = avail.map_or(0, |avail| avail.0.wrapping_sub(queue.next_avail()));
    format!("{ahead} requests in {} entries", queue.size())
}

impl Rings {
    /// Puts an answer into the used ring.
    pub(super) fn publish(&mut self, guest: &Guest, index: usize, head: u16, length: u32) {
        let Some(ring) = &mut self.rings[index] else {
            return;
        };
        let used = ring.queue.next_used();
        self.table.answering(index, head, used);
        if let Err(error) = ring.queue.add_used(guest, head, length) {
            tracing::warn!("vhost-user: ring {index}: {error}");
        }
        self.table.answered(index, head, ring.queue.next_used());
        ring.in_flight -= 1;
        ring.to_call = true;
    }
}
