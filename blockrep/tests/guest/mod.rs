//! A guest with a vhost-user disk: its memory, one queue, and the driver's side of it.
//!
//! What the guest writes itself stands in a shadow, too. So whatever differs from the shadow was
//! written by the disk.

#![allow(dead_code, reason = "not every test needs all of it")]

pub(crate) mod daemon;
mod log;
pub(crate) mod memory;

pub(crate) use log::Log;

use memory::{HIGH, HIGH_BYTES, LOW_BYTES, Memory};
use std::path::Path;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Requests in flight at most, each with descriptors of its own.
pub(crate) const SLOTS: usize = 64;
const SLOT_DESCRIPTORS: u16 = 8;
/// Entries of the queue.
pub(crate) const ENTRIES: u16 = SLOTS as u16 * SLOT_DESCRIPTORS;

const PAGE: u64 = 4096;
const TABLE: u64 = 0;
const AVAIL: u64 = 2 * PAGE;
/// The used ring; what the disk says of kicks stands on the second of its pages.
pub(crate) const USED: u64 = 3 * PAGE;
const HEADERS: u64 = 5 * PAGE;
const STATUS: u64 = 8 * PAGE;
/// Where data may lie in low memory.
pub(crate) const DATA: u64 = STATUS + SLOTS as u64 * PAGE;

const FLUSH: u64 = 1 << 9;
/// Notifications by index.
pub(crate) const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of the disk.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const FLUSH_ALL: u32 = 4;
pub(crate) const GET_ID: u32 = 8;

/// A request: what, where, and the memory its data is in.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    /// Address and length.
    pub(crate) data: [Option<(u64, u32)>; 3],
}

impl Ask {
    pub(crate) fn new(kind: u32, sector: u64, data: &[(u64, u32)]) -> Self {
        let mut ask = Self {
            kind,
            sector,
            data: [None; 3],
        };
        for (to, from) in ask.data.iter_mut().zip(data) {
            *to = Some(*from);
        }
        ask
    }

    /// The disk writes the data.
    pub(crate) fn is_into_guest(&self) -> bool {
        self.kind != WRITE && self.kind != FLUSH_ALL
    }
}

/// Where the status of a slot's request stands.
pub(crate) fn status_of(slot: usize) -> u64 {
    STATUS + slot as u64 * PAGE
}

/// A guest whose VMM is connected.
pub(crate) struct Guest {
    /// None for a moment, between two connections.
    frontend: Option<Frontend>,
    pub(crate) memory: Memory,
    kick: EventFd,
    call: EventFd,
    features: u64,
    avail: u16,
    used: u16,
    /// Slots that are free.
    free: Vec<usize>,
}

impl Guest {
    /// Connects, and starts the queue.
    pub(crate) fn connect(socket: &Path, features: u64) -> Self {
        let memory = Memory::new();
        let mut guest = Self {
            frontend: Some(greeted(socket, features)),
            memory,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            features,
            avail: 0,
            used: 0,
            free: (0..SLOTS).rev().collect(),
        };
        guest.tell_memory(true);
        guest.start(0);
        guest
    }

    fn frontend(&self) -> Frontend {
        self.frontend.clone().expect("connected")
    }

    /// The same guest over another connection, as after a death of the daemon.
    pub(crate) fn reconnect(&mut self, socket: &Path) {
        // A disk serves one VMM after the other.
        self.frontend = None;
        self.frontend = Some(greeted(socket, self.features));
        self.tell_memory(true);
        self.start(self.used);
    }

    /// Sends the memory table, with or without the upper region.
    pub(crate) fn tell_memory(&mut self, with_high: bool) {
        let region = |address: u64, bytes: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: address,
            memory_size: bytes,
            userspace_addr: self.memory.host(address) as u64,
            mmap_offset: Memory::offset(address).unwrap() as u64,
            mmap_handle: self.memory.fd(),
        };
        let both = [region(0, LOW_BYTES), region(HIGH, HIGH_BYTES)];
        let table = if with_high { &both[..] } else { &both[..1] };
        self.frontend().set_mem_table(table).unwrap();
    }

    /// Starts the queue where the disk stopped it.
    pub(crate) fn start(&mut self, base: u16) {
        self.start_at(base, AVAIL);
    }

    /// The same with the ring of heads at some address.
    pub(crate) fn start_at(&mut self, base: u16, avail: u64) {
        let address = |at: u64| self.memory.host(at) as u64;
        let config = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: address(TABLE),
            used_ring_addr: address(USED),
            avail_ring_addr: address(avail),
            log_addr: None,
        };
        let mut frontend = self.frontend();
        frontend.set_vring_num(0, ENTRIES).unwrap();
        frontend.set_vring_addr(0, &config).unwrap();
        frontend.set_vring_base(0, base).unwrap();
        frontend.set_vring_call(0, &self.call).unwrap();
        frontend.set_vring_kick(0, &self.kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
    }

    /// Gives the disk a log of the pages that it writes.
    pub(crate) fn log_to(&self, log: &Log) {
        self.frontend().set_log_base(0, Some(log.region())).unwrap();
    }

    /// Begins a migration, or ends it.
    pub(crate) fn set_logging(&self, is_on: bool) {
        let log = if is_on { LOG_ALL } else { 0 };
        self.frontend()
            .set_features(wanted(self.features) | log)
            .unwrap();
    }

    /// Stops the queue: nothing is in flight afterwards.
    pub(crate) fn stop(&mut self) -> u16 {
        let base = self.frontend().get_vring_base(0).unwrap();
        self.reap(|_| {});
        base as u16
    }

    /// Puts a request into the queue; the slot it has. `None` when all are in use.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Option<usize> {
        let slot = self.free.pop()?;
        let header = HEADERS + slot as u64 * 16;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&ask.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&ask.sector.to_le_bytes());
        self.memory.write(header, &bytes);
        self.memory.write(status_of(slot), &[0xff]);
        let head = slot as u16 * SLOT_DESCRIPTORS;
        let mut at = head;
        self.descriptor(at, (header, 16), FLAG_NEXT);
        for data in ask.data.iter().flatten() {
            at += 1;
            let flag = if ask.is_into_guest() { FLAG_WRITE } else { 0 };
            self.descriptor(at, *data, FLAG_NEXT | flag);
        }
        self.descriptor(at + 1, (status_of(slot), 1), FLAG_WRITE);
        self.announce(head);
        Some(slot)
    }

    /// Puts a head into the queue, whatever it is.
    pub(crate) fn announce(&mut self, head: u16) {
        let place = AVAIL + 4 + u64::from(self.avail % ENTRIES) * 2;
        self.memory.write(place, &head.to_le_bytes());
        self.skip_to(self.avail.wrapping_add(1));
    }

    /// Says that this is how many requests there are.
    pub(crate) fn skip_to(&mut self, avail: u16) {
        self.avail = avail;
        self.memory.write_index(AVAIL + 2, avail);
    }

    fn descriptor(&mut self, index: u16, memory: (u64, u32), flags: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&memory.0.to_le_bytes());
        raw[8..12].copy_from_slice(&memory.1.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&(index + 1).to_le_bytes());
        self.memory.write(TABLE + u64::from(index) * 16, &raw);
    }

    /// Tells the disk to look.
    pub(crate) fn kick(&mut self) {
        if self.features & EVENT_IDX != 0 {
            // Called for the next answer.
            let event = AVAIL + 4 + u64::from(ENTRIES) * 2;
            self.memory.write(event, &self.used.to_le_bytes());
        }
        self.kick.write(1).unwrap();
    }

    /// Takes the answers that are there; each slot is told, and free again.
    pub(crate) fn reap(&mut self, mut each: impl FnMut(usize)) -> usize {
        let there = self.memory.read_index(USED + 2);
        let mut count = 0;
        while self.used != there {
            let mut id = [0; 4];
            let at = USED + 4 + u64::from(self.used % ENTRIES) * 8;
            self.memory.read(at, &mut id);
            let slot = u32::from_le_bytes(id) as usize / usize::from(SLOT_DESCRIPTORS);
            self.used = self.used.wrapping_add(1);
            self.free.push(slot);
            each(slot);
            count += 1;
        }
        count
    }

    /// Slots that are in use.
    pub(crate) fn in_flight(&self) -> usize {
        SLOTS - self.free.len()
    }

    /// Waits until nothing is in flight; statuses are not looked at.
    pub(crate) fn finish(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.kick();
        while self.in_flight() > 0 {
            if self.reap(|_| {}) == 0 {
                assert!(Instant::now() < deadline, "{} hang", self.in_flight());
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// The status byte of a slot's request.
    pub(crate) fn status(&self, slot: usize) -> u8 {
        let mut byte = [0];
        self.memory.read(status_of(slot), &mut byte);
        byte[0]
    }
}

fn wanted(features: u64) -> u64 {
    VERSION_1 | FLUSH | features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// A connection that has agreed on features.
fn greeted(socket: &Path, features: u64) -> Frontend {
    let deadline = Instant::now() + PATIENCE;
    let mut frontend = loop {
        match Frontend::connect(socket, 1) {
            Ok(frontend) => break frontend,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let offered = frontend.get_features().unwrap();
    let wanted = wanted(features);
    assert_eq!(offered & (wanted | LOG_ALL), wanted | LOG_ALL);
    let protocol = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::LOG_SHMFD;
    frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_owner().unwrap();
    frontend.set_features(wanted).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
}
