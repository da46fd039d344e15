//! A packet socket that shares no code with the relay's.

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Every wait for a frame ends after this, with a failure.
const WAIT_MS: i32 = 20_000;

pub(crate) struct Wire(OwnedFd);

impl Wire {
    pub(crate) fn open(interface: &str) -> Self {
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: plain system calls; every pointer lives through its call.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let sizes = [
                (libc::SO_RCVBUFFORCE, 64 << 20),
                (libc::SO_SNDBUFFORCE, 8 << 20),
            ];
            let options = [(libc::PACKET_AUXDATA, 1), (libc::PACKET_IGNORE_OUTGOING, 1)];
            for (level, (option, value)) in [(libc::SOL_SOCKET, sizes), (libc::SOL_PACKET, options)]
                .into_iter()
                .flat_map(|(level, list)| list.map(|one| (level, one)))
            {
                let value: libc::c_int = value;
                let length = size_of_val(&value) as u32;
                let from = (&raw const value).cast();
                assert_eq!(
                    libc::setsockopt(fd.as_raw_fd(), level, option, from, length),
                    0
                );
            }
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let length = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(
                libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length),
                0
            );
            Self(fd)
        }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        // SAFETY: send(2) reads the frame.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Sends as many copies as the kernel takes.
    pub(crate) fn flood(&self, frame: &[u8], copies: usize) {
        // SAFETY: sendmmsg(2) reads `copies` headers and the one frame they all point at.
        unsafe {
            let base = frame.as_ptr().cast_mut().cast();
            let mut iovec = libc::iovec {
                iov_base: base,
                iov_len: frame.len(),
            };
            let mut header: libc::mmsghdr = zeroed();
            header.msg_hdr.msg_iov = &raw mut iovec;
            header.msg_hdr.msg_iovlen = 1;
            let mut headers = vec![header; copies];
            libc::sendmmsg(self.0.as_raw_fd(), headers.as_mut_ptr(), copies as u32, 0);
        }
    }

    /// The next frame as it was on the wire, with its outer tag.
    pub(crate) fn receive(&self) -> Vec<u8> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: poll(2) reads and writes one pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, WAIT_MS) };
        assert_eq!(ready, 1, "no frame came");
        let mut bytes = vec![0u8; 70_000];
        let mut control = [0u64; 16];
        // SAFETY: recvmsg writes into the two buffers within their lengths; the control messages are walked by
        // the macros made for it.
        unsafe {
            let base = bytes.as_mut_ptr().cast();
            let mut iovec = libc::iovec {
                iov_base: base,
                iov_len: bytes.len(),
            };
            let mut header: libc::msghdr = zeroed();
            header.msg_iov = &raw mut iovec;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&control) as _;
            let got = libc::recvmsg(self.0.as_raw_fd(), &raw mut header, 0);
            assert!(got >= 14, "{}", io::Error::last_os_error());
            bytes.truncate(got as usize);
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            assert!(!message.is_null(), "no auxdata");
            let data = libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>();
            let aux = data.read_unaligned();
            if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let [a, b] = aux.tp_vlan_tpid.to_be_bytes();
                let [c, d] = aux.tp_vlan_tci.to_be_bytes();
                bytes.splice(12..12, [a, b, c, d]);
            }
        }
        bytes
    }
}
