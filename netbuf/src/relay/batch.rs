//! Many frames per system call: `recvmmsg` into buffers made once, `sendmmsg` out of anybody's.
//!
//! Lists of pointers are made anew in front of every call; nothing points anywhere between two.

use super::port::{ETHERNET_BYTES, End, Port, RECORD_BYTES_MAX, VNET_BYTES};
use std::io;
use std::mem::{size_of, zeroed};

/// Frames per system call.
pub const BATCH_FRAMES: usize = 64;
pub(super) const TAG_BYTES: usize = 4;
/// Room for a tag that is put back in front of what the kernel wrote.
const SLOT_BYTES: usize = (TAG_BYTES + RECORD_BYTES_MAX).next_multiple_of(64);
/// Header and both addresses: what moves to make room for a tag.
const BEFORE_TAG: usize = VNET_BYTES + 12;
const CONTROL_WORDS: usize = 8;

/// Frames read in one call, each with its `virtio_net_hdr` in front.
pub struct Received {
    buffers: Box<[u8]>,
    control: Vec<[u64; CONTROL_WORDS]>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    frames: Vec<(usize, usize)>,
    /// Not understood since [`Self::take_unreadable`].
    unreadable: u64,
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Received {
    #[expect(clippy::new_without_default, reason = "it is megabytes")]
    pub fn new() -> Self {
        Self {
            buffers: vec![0; BATCH_FRAMES * SLOT_BYTES].into_boxed_slice(),
            control: vec![[0; CONTROL_WORDS]; BATCH_FRAMES],
            iovecs: Vec::with_capacity(BATCH_FRAMES),
            headers: Vec::with_capacity(BATCH_FRAMES),
            frames: Vec::with_capacity(BATCH_FRAMES),
            unreadable: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    /// The frames from the `from`th on.
    pub fn frames(&self, from: usize) -> impl Iterator<Item = &[u8]> {
        let frames = self.frames.get(from..).unwrap_or_default();
        frames
            .iter()
            .map(|(at, length)| &self.buffers[*at..at + length])
    }

    /// Reads once. `Busy` and `Refused` say nothing of the next read.
    pub fn receive(&mut self, port: &mut Port) -> End {
        self.receive_some(port, BATCH_FRAMES)
    }

    /// As [`Self::receive`], up to `frames_max` frames.
    pub(super) fn receive_some(&mut self, port: &mut Port, frames_max: usize) -> End {
        self.frames.clear();
        self.prepare(frames_max);
        // SAFETY: the kernel writes into buffers and control words that `prepare` has pointed it at, within
        // their lengths; all live through the call.
        let got = unsafe {
            let count = self.headers.len() as libc::c_uint;
            let list = self.headers.as_mut_ptr();
            libc::recvmmsg(
                port.fd(),
                list,
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO);
            let end = port.judge(error);
            // A frame whose offloads no header can say is taken from the queue and lost.
            self.unreadable += u64::from(matches!(end, End::Refused(libc::EINVAL)));
            return end;
        };
        for index in 0..got {
            self.accept(index);
        }
        End::More
    }

    fn prepare(&mut self, frames_max: usize) {
        self.iovecs.clear();
        self.headers.clear();
        let slots = self.buffers.chunks_exact_mut(SLOT_BYTES).take(frames_max);
        self.iovecs.extend(slots.map(|slot| libc::iovec {
            iov_base: slot[TAG_BYTES..].as_mut_ptr().cast(),
            iov_len: RECORD_BYTES_MAX,
        }));
        for (iovec, control) in self.iovecs.iter_mut().zip(&mut self.control) {
            // SAFETY: a msghdr of zeros is one that points nowhere.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of_val(control) as _;
            self.headers.push(header);
        }
    }

    fn accept(&mut self, index: usize) {
        let header = &self.headers[index];
        let length = header.msg_len as usize;
        let cut_short = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        if cut_short || length < VNET_BYTES + ETHERNET_BYTES {
            self.unreadable += 1;
            return;
        }
        let at = index * SLOT_BYTES;
        // SAFETY: the kernel has just filled the control words that this header points at.
        let Some((kind, value)) = (unsafe { tag(&header.msg_hdr) }) else {
            self.frames.push((at + TAG_BYTES, length));
            return;
        };
        let slot = &mut self.buffers[at..at + TAG_BYTES + length];
        put_tag(slot, kind, value);
        self.frames.push((at, TAG_BYTES + length));
    }
}

/// Puts a tag into a record that begins [`TAG_BYTES`] behind the start of `slot`; then it begins there.
pub(super) fn put_tag(slot: &mut [u8], kind: u16, value: u16) {
    slot.copy_within(TAG_BYTES..TAG_BYTES + BEFORE_TAG, 0);
    slot[BEFORE_TAG..BEFORE_TAG + 2].copy_from_slice(&kind.to_be_bytes());
    slot[BEFORE_TAG + 2..BEFORE_TAG + 4].copy_from_slice(&value.to_be_bytes());
    shift(&mut slot[..VNET_BYTES]);
}

/// Type and value of the VLAN tag that the kernel took out.
///
/// # Safety
/// `header` is as recvmsg(2) left it and its control buffer lives.
unsafe fn tag(header: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the macros walk within msg_controllen; the data of an auxdata message is a tpacket_auxdata,
    // read without regard to its alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let this = &*message;
            if this.cmsg_level == libc::SOL_PACKET && this.cmsg_type == libc::PACKET_AUXDATA {
                let data = libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>();
                let auxdata = data.read_unaligned();
                if auxdata.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                    return None;
                }
                let named = auxdata.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
                let kind = if named { auxdata.tp_vlan_tpid } else { 0x8100 };
                return Some((kind, auxdata.tp_vlan_tci));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

/// What a `virtio_net_hdr` says of places in the frame, four bytes further on.
fn shift(header: &mut [u8]) {
    const NEEDS_CSUM: u8 = 1;
    if header[1] != 0 {
        add_tag(&mut header[2..4]); // hdr_len
    }
    if header[0] & NEEDS_CSUM != 0 {
        add_tag(&mut header[6..8]); // csum_start
    }
}

#[expect(
    clippy::host_endian_bytes,
    reason = "packet sockets speak the host's order here"
)]
fn add_tag(field: &mut [u8]) {
    let value = u16::from_ne_bytes([field[0], field[1]]);
    field.copy_from_slice(&value.saturating_add(TAG_BYTES as u16).to_ne_bytes());
}

/// The lists for one `sendmmsg`.
pub struct Sender {
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    #[expect(clippy::new_without_default, reason = "as the other half")]
    pub fn new() -> Self {
        Self {
            iovecs: Vec::with_capacity(BATCH_FRAMES),
            headers: Vec::with_capacity(BATCH_FRAMES),
        }
    }

    /// Sends up to [`BATCH_FRAMES`] of `frames` in order: how many the kernel took, and why not more.
    pub fn send<'a>(
        &mut self,
        port: &mut Port,
        frames: impl Iterator<Item = &'a [u8]>,
    ) -> (usize, End) {
        self.iovecs.clear();
        self.headers.clear();
        self.iovecs
            .extend(frames.take(BATCH_FRAMES).map(|frame| libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            }));
        for iovec in &mut self.iovecs {
            // SAFETY: a msghdr of zeros is one that points nowhere.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            self.headers.push(header);
        }
        if self.headers.is_empty() {
            return (0, End::More);
        }
        // SAFETY: the kernel reads the frames, which `frames` borrows until this function ends, and writes
        // the lengths into our own list.
        let sent = unsafe {
            let count = self.headers.len() as libc::c_uint;
            let list = self.headers.as_mut_ptr();
            libc::sendmmsg(port.fd(), list, count, libc::MSG_DONTWAIT as _)
        };
        match usize::try_from(sent) {
            // After some, the kernel keeps the error of the next to itself: it comes again.
            Ok(sent) => (sent, End::More),
            Err(_) => {
                let error = io::Error::last_os_error().raw_os_error();
                (0, port.judge(error.unwrap_or(libc::EIO)))
            }
        }
    }
}

const _: () = assert!(size_of::<libc::tpacket_auxdata>() <= CONTROL_WORDS * 8 - 16);

#[cfg(test)]
mod tests {
    use super::{add_tag, shift};

    /// A tagged segment whose checksum starts four bytes too early is made garbage by the card.
    #[test]
    #[expect(clippy::host_endian_bytes, reason = "as the kernel writes it")]
    fn places_move_with_the_tag_and_only_where_they_are_used() {
        let mut header = [0u8; 10];
        header[0] = 1;
        header[1] = 1;
        header[2..4].copy_from_slice(&54u16.to_ne_bytes());
        header[6..8].copy_from_slice(&34u16.to_ne_bytes());
        header[8..10].copy_from_slice(&16u16.to_ne_bytes());
        shift(&mut header);
        assert_eq!(header[2..4], 58u16.to_ne_bytes());
        assert_eq!(header[6..8], 38u16.to_ne_bytes());
        assert_eq!(header[8..10], 16u16.to_ne_bytes());
        let mut plain = [0u8; 10];
        shift(&mut plain);
        assert_eq!(plain, [0; 10]);
        let mut last = u16::MAX.to_ne_bytes();
        add_tag(&mut last);
        assert_eq!(last, u16::MAX.to_ne_bytes());
    }
}
