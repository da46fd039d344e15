//! A guest, its interface in a bridge, and a witness on the far side; in a namespace of this thread.
//!
//! `guest ═ vif ─ bridge ─ far ═ witness`  (═ is a veth pair)

use crate::install::{Root, look};
use crate::netlink::Netlink;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

pub(super) const ROOT: Root = Root::Pfifo { limit_frames: 1000 };

pub(super) struct Lan {
    pub(super) netlink: Netlink,
    pub(super) vif: u32,
    guest: OwnedFd,
    witness: OwnedFd,
}

/// Runs a body in a namespace of its own; says so and skips where that is not allowed.
pub(super) fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: no pointers; affects this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let why = std::io::Error::last_os_error();
            println!("skipped: a network namespace takes root ({why})");
            return;
        }
        if Command::new("ip").arg("-V").output().is_err() {
            println!("skipped: the test network is made with ip(8), which is not here");
            return;
        }
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// One ip(8) command in the thread's namespace.
#[track_caller]
pub(super) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

impl Lan {
    pub(super) fn new() -> Self {
        // Nobody but the tests says anything.
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            std::fs::write(path, "1").unwrap();
        }
        // Where the host filters what its bridges pass, IP without a valid header would not arrive.
        for of in ["iptables", "ip6tables", "arptables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{of}");
            if std::fs::exists(&path).unwrap() {
                std::fs::write(path, "0").unwrap();
            }
        }
        ip("link add br0 type bridge mcast_snooping 0 stp_state 0");
        ip("link add guest type veth peer name vif");
        ip("link add witness type veth peer name far");
        for name in ["guest", "vif", "far", "witness", "br0"] {
            ip(&format!("link set {name} mtu 9000"));
        }
        for name in ["vif", "far"] {
            ip(&format!("link set {name} master br0"));
        }
        for name in ["guest", "vif", "far", "witness", "br0"] {
            ip(&format!("link set {name} up"));
        }
        let mut netlink = Netlink::open().unwrap();
        let mut index = |name| netlink.link(name).unwrap().unwrap().index;
        let (guest, witness) = (packet(index("guest")), packet(index("witness")));
        let vif = index("vif");
        let lan = Self {
            netlink,
            vif,
            guest,
            witness,
        };
        lan.wait_until_the_bridge_forwards();
        lan
    }

    /// A port that just came up learns for a moment.
    fn wait_until_the_bridge_forwards(&self) {
        let frame = frame(b"\xff\xff\xff\xff\xff\xff", &[0x88, 0xb5], 60, 0xee);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            self.say(&frame);
            if self.hear(200).is_some() {
                while self.hear(100).is_some() {}
                return;
            }
        }
        panic!("the bridge does not forward");
    }

    pub(super) fn say(&self, frame: &[u8]) {
        // SAFETY: pointer and length are those of `frame`.
        let sent = unsafe {
            libc::send(
                self.guest.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(usize::try_from(sent).ok(), Some(frame.len()), "{error}");
    }

    /// The next frame at the witness, its VLAN tag where it stood on the wire.
    pub(super) fn hear(&self, patience_ms: i32) -> Option<Vec<u8>> {
        let mut poll = libc::pollfd {
            fd: self.witness.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, alive.
        if unsafe { libc::poll(&raw mut poll, 1, patience_ms) } <= 0 {
            return None;
        }
        Some(receive(&self.witness))
    }

    /// Frames that passed the IFB.
    pub(super) fn passed(&mut self) -> u32 {
        let root = look(&mut self.netlink, self.vif).unwrap().root;
        root.map_or(0, |root| root.counters.sent_frames)
    }

    /// Frames the guest's interface has taken in.
    pub(super) fn taken_in(&self) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = text.lines().find(|l| l.trim_start().starts_with("vif:"));
        let fields = line.unwrap().split(':').nth(1).unwrap();
        fields.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

pub(super) fn frame(to: &[u8; 6], ethertype: &[u8], length: usize, mark: u8) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame.extend_from_slice(ethertype);
    frame.resize(length, mark);
    frame
}

fn packet(index: u32) -> OwnedFd {
    let all = u16::to_be(0x0003);
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let raw = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(all)) };
    assert!(raw >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = all;
    address.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: address and length belong together.
    let bound = unsafe { libc::bind(raw, std::ptr::from_ref(&address).cast(), length) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    for option in [libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
        let on = 1i32;
        // SAFETY: an int and its size.
        let set = unsafe {
            libc::setsockopt(
                raw,
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(&on).cast(),
                4,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
    socket
}

fn receive(socket: &OwnedFd) -> Vec<u8> {
    let mut frame = vec![0u8; 16 * 1024];
    let mut control = [0u64; 16];
    let mut part = libc::iovec {
        iov_base: frame.as_mut_ptr().cast(),
        iov_len: frame.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all buffers of the message live through the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    frame.truncate(usize::try_from(length).unwrap());
    // SAFETY: the kernel has filled the control buffer.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !at.is_null() {
        // SAFETY: not null, so a whole header stands there.
        let header = unsafe { *at };
        if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: of this type the kernel writes a tpacket_auxdata.
            let data: libc::tpacket_auxdata = unsafe {
                libc::CMSG_DATA(at)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned()
            };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let tag = [
                    data.tp_vlan_tpid.to_be_bytes(),
                    data.tp_vlan_tci.to_be_bytes(),
                ];
                frame.splice(12..12, tag.concat());
            }
        }
        // SAFETY: both belong to the filled message.
        at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
    }
    frame
}
