//! Bugs that `NETBUF_TEST_PLANT` asks for, put into the objects of the kernel or done by the daemon.

use crate::namespace::ip;
use crate::site::{Site, mechanism};
use netbuf::gate::Order;
use netbuf::install::{carry_out, ifb_name};
use netbuf::netlink::Netlink;
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
