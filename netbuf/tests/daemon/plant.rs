//! Bugs that `NETBUF_TEST_PLANT` asks for, put into the objects of the kernel or done by the daemon.

use crate::namespace::ip;
use crate::site::{Site, mechanism};
use netbuf::gate::Order;
use netbuf::install::{carry_out, ifb_name};
use netbuf::netlink::Netlink;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

/// Plants the bug here, if it is `which`.
pub(crate) fn plant(site: &Site, which: &str) {
    if std::env::var("NETBUF_TEST_PLANT").as_deref() != Ok(which) {
        return;
    }
    let status = site.status();
    let port = &status.guests[0].interfaces[0];
    match (which, mechanism().as_str()) {
        ("early-release", "plug") => order(port.index, Order::OpenAll),
        ("early-release", _) => {
            site.open();
        }
        // Room for a frame or two.
        ("lost-frame", "plug") => order(port.index, Order::Limit { bytes: 2000 }),
        // The longer frames do not fit through any more.
        ("lost-frame", _) => ip(&format!("link set {} mtu 600", port.by)),
        ("ipv4-only", mechanism) => {
            blind(site.pid());
            redirect_ipv4_only(&ifb_name(port.index));
            if mechanism == "relay" {
                // Where frames that are not redirected to the wall go.
                ip("link set g1 master br0");
            }
        }
        _ => panic!("no plant is called {which}"),
    }
}

fn order(index: u32, order: Order) {
    let mut netlink = Netlink::open().unwrap();
    let ifb = netlink.link(&ifb_name(index)).unwrap().unwrap().index;
    carry_out(&mut netlink, ifb, order).unwrap();
}

fn redirect_ipv4_only(ifb: &str) {
    let filter = format!(
        "filter add dev g1 parent ffff: protocol ip prio 1 u32 match u32 0 0 action mirred egress redirect dev {ifb}"
    );
    for words in ["filter del dev g1 ingress", &filter] {
        let done = Command::new("tc").args(words.split(' ')).status();
        assert!(done.unwrap().success(), "tc {words}");
    }
}

/// The daemon hears no more of what changes in the kernel: it would put the filter right.
fn blind(pid: u32) {
    let pid_fd = descriptor(libc::SYS_pidfd_open, [pid.into(), 0]);
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let number: u64 = entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let socket = descriptor(libc::SYS_pidfd_getfd, [pid_fd.as_raw_fd() as u64, number]);
        for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_TC] {
            // SAFETY: setsockopt reads four bytes of a number; what is no netlink socket refuses.
            unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_NETLINK,
                    libc::NETLINK_DROP_MEMBERSHIP,
                    (&raw const group).cast(),
                    4,
                )
            };
        }
    }
}

fn descriptor(call: libc::c_long, words: [u64; 2]) -> OwnedFd {
    // SAFETY: both calls take numbers only, the last one flags, and answer with a new descriptor.
    let fd = unsafe { libc::syscall(call, words[0], words[1], 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}
