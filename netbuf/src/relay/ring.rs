//! Frames that the kernel writes into memory shared with it (`PACKET_RX_RING`, version 2): none of them costs a
//! system call, and none is copied twice on its way into the queue.
//!
//! ```text
//!   slot   [ header, status | … | virtio_net_hdr, frame … ]     2 KiB each, filled and read in their order
//! ```
//!
//! - The kernel's part is over when it sets a slot's status, within the call of whoever hands it the frame: what
//!   CUT has to read is there when that call has returned, as with a plain socket.
//! - What a slot has no room for (a segment of 64 KiB, a jumbo frame) is in the socket's queue as well, whole, and its slot
//!   says so (`PACKET_COPY_THRESH`). It is read from there when its slot's turn comes: the order is the slots'.
//! - A slot belongs to us from its status on, until we give it back by the same.

use super::batch::{Received, put_tag};
use super::port::{End, Port, VNET_BYTES, set};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// The headers, and a frame of 1500 bytes with tags.
pub const SLOT_BYTES: usize = 2048;
const BLOCK_BYTES: usize = 64 << 10;
/// Room in front of the frame for a tag that is put back, besides what alignment leaves.
const RESERVED_BYTES: libc::c_int = 16;
const VERSION_2: libc::c_int = 1;
/// Any length above 0: a frame that is longer than its slot is kept whole.
const COPY_LONG: libc::c_int = 1;

/// What one read of [`Ring::read`] has found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Read {
    /// Handed on.
    pub frames: usize,
    /// Not understood.
    pub unreadable: u64,
    /// Cut short, because the socket had no room for the whole.
    pub dropped: u64,
}

#[derive(Debug)]
pub struct Ring {
    base: NonNull<u8>,
    slots: usize,
    next: usize,
}

// SAFETY: the mapping is this value's alone, and whoever has the value has the mapping.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives a socket, before it is bound, a ring of about `bytes`.
    pub(super) fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let blocks = bytes.div_ceil(BLOCK_BYTES).max(1);
        let slots = blocks * (BLOCK_BYTES / SLOT_BYTES);
        let number = |count: usize| libc::c_uint::try_from(count).map_err(io::Error::other);
        set(fd, libc::SOL_PACKET, libc::PACKET_VERSION, &VERSION_2)?;
        set(fd, libc::SOL_PACKET, libc::PACKET_RESERVE, &RESERVED_BYTES)?;
        set(fd, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &COPY_LONG)?;
        let request = libc::tpacket_req {
            tp_block_size: number(BLOCK_BYTES)?,
            tp_block_nr: number(blocks)?,
            tp_frame_size: number(SLOT_BYTES)?,
            tp_frame_nr: number(slots)?,
        };
        set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&fd);
            libc::mmap(
                std::ptr::null_mut(),
                slots * SLOT_BYTES,
                rights,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a mapping at 0"))?;
        Ok(Self {
            base,
            slots,
            next: 0,
        })
    }

    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Hands on up to `frames_max` frames, each with its `virtio_net_hdr` in front, in the order in which they came;
    /// `long` is for those that have no room in a slot. [`End::Again`]: there is none after them.
    pub fn read(
        &mut self,
        port: &mut Port,
        long: &mut Received,
        frames_max: usize,
        mut hand_on: impl FnMut(&[u8]),
    ) -> (Read, End) {
        let mut read = Read::default();
        for _ in 0..frames_max {
            // SAFETY: `next` is below `slots`, so the slot lies in the mapping, whose slots begin with a
            // tpacket2_hdr, aligned, and that with the status.
            let (slot, status) = unsafe {
                let slot = self.base.add(self.next * SLOT_BYTES);
                (slot, &*slot.as_ptr().cast::<AtomicU32>())
            };
            let flags = status.load(Ordering::Acquire);
            if flags & libc::TP_STATUS_USER == 0 {
                return (read, End::Again);
            }
            if flags & libc::TP_STATUS_COPY != 0 {
                match long.receive_some(port, 1) {
                    // Its socket's error, that the interface went, stood in front of the frame.
                    End::Unusable | End::Busy => continue,
                    End::Again => read.dropped += 1,
                    End::More | End::Refused(_) => {}
                }
                long.frames(0).for_each(&mut hand_on);
                read.frames += long.len();
                read.unreadable += long.take_unreadable();
            } else {
                // SAFETY: with this status the slot is ours until it is given back below.
                let bytes = unsafe { std::slice::from_raw_parts_mut(slot.as_ptr(), SLOT_BYTES) };
                match record(bytes, flags) {
                    Found::Whole(record) => {
                        hand_on(record);
                        read.frames += 1;
                    }
                    Found::CutShort => read.dropped += 1,
                    Found::Unreadable => read.unreadable += 1,
                }
            }
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % self.slots;
        }
        (read, End::More)
    }
}

enum Found<'a> {
    Whole(&'a [u8]),
    CutShort,
    Unreadable,
}

/// The record in a slot, with its tag put back.
fn record(slot: &mut [u8], flags: u32) -> Found<'_> {
    // SAFETY: a slot is longer than the header, which is plain numbers.
    let header = unsafe { slot.as_ptr().cast::<libc::tpacket2_hdr>().read() };
    if header.tp_snaplen < header.tp_len {
        return Found::CutShort;
    }
    let (mac, length) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
    let Some(from) = mac.checked_sub(VNET_BYTES) else {
        return Found::Unreadable;
    };
    if mac + length > slot.len() || length < super::port::ETHERNET_BYTES {
        return Found::Unreadable;
    }
    if flags & libc::TP_STATUS_VLAN_VALID == 0 {
        return Found::Whole(&slot[from..mac + length]);
    }
    let named = flags & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let kind = if named { header.tp_vlan_tpid } else { 0x8100 };
    let Some(room) = from.checked_sub(super::batch::TAG_BYTES) else {
        return Found::Unreadable;
    };
    let record = &mut slot[room..mac + length];
    put_tag(record, kind, header.tp_vlan_tci);
    Found::Whole(record)
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nobody has a reference into it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.slots * SLOT_BYTES) };
    }
}
