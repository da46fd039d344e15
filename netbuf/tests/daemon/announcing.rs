//! What could go wrong: after a failover the network sends to the dead host, until the guest speaks.

use crate::namespace::{ip, ip_shows, until};
use crate::site::{Site, hold, in_namespace};
use blkback_proto::ctl::{NetAnnounceRequest, NetStation, Request};

const MAC: &str = "02:00:00:aa:bb:cc";

fn announce(addresses: &[&str]) -> Request {
    Request::NetAnnounce(NetAnnounceRequest {
        guest: "vm1".into(),
        stations: vec![NetStation {
            interface: None,
            mac: MAC.into(),
            addresses: addresses
                .iter()
                .map(|&address| address.to_owned())
                .collect(),
            vlan: None,
        }],
    })
}

#[test]
fn a_far_host_and_the_bridge_learn_where_the_guest_is() {
    in_namespace(|| {
        let site = Site::started(&[]);
        // The witness is a host of the guest's network, and knows another station under its address.
        ip("addr add 192.0.2.1/24 dev w1");
        ip("neigh replace 192.0.2.7 lladdr 02:00:00:00:00:99 dev w1 nud stale");
        site.done(&announce(&["192.0.2.7"]));
        until("the neighbour", || {
            ip_shows("neigh show dev w1").contains(MAC).then_some(())
        });
        let bridge = std::process::Command::new("bridge")
            .args(["fdb", "show", "br", "br0"])
            .output();
        let fdb = String::from_utf8(bridge.unwrap().stdout).unwrap();
        let port = fdb.lines().find(|line| line.starts_with(MAC)).unwrap();
        assert!(port.contains("dev nbp-"), "{port}");
        until("the rounds", || {
            (site.status().guests[0].announcements_left == 0).then_some(())
        });
        let heard = std::iter::from_fn(|| Some(site.witness.receive()))
            .filter(|frame| frame[6..12] == [2, 0, 0, 0xaa, 0xbb, 0xcc])
            .take(15)
            .count();
        assert_eq!(heard, 15, "RARP, request and reply, five times each");
    });
}

#[test]
fn a_held_guest_is_not_announced_and_hold_ends_what_was_begun() {
    in_namespace(|| {
        let site = Site::started(&[]);
        site.done(&announce(&[]));
        site.done(&hold());
        assert_eq!(site.status().guests[0].announcements_left, 0);
        let refused = site.refused(&announce(&[]));
        assert!(refused.contains("takes it from another host"), "{refused}");
        let many = vec!["192.0.2.7"; 64];
        let refused = site.refused(&announce(&many));
        assert!(refused.contains("1 to 64 addresses"), "{refused}");
    });
}
