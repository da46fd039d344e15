//! What could go wrong: a device is renamed or goes, and the daemon holds on to a name; a part of the
//! mechanism is taken away, and nobody is told.

use crate::namespace::{ip, ip_shows, until};
use crate::site::{Site, attach, frame, in_namespace};
use blkback_proto::ctl::{NetAttachRequest, Request};

#[test]
fn a_renamed_device_is_the_same_and_one_that_went_is_gone() {
    in_namespace(|| {
        let site = Site::started(&[]);
        ip("link set g1 down");
        ip("link set g1 name vif1.0");
        ip("link set vif1.0 up");
        until("the new name", || {
            (site.status().guests[0].interfaces[0].interface == "vif1.0").then_some(())
        });
        site.cut(1);
        until("the carrier", || {
            site.guest.send(&frame(1));
            (site.status().guests[0].interfaces[0].held_frames > Some(0)).then_some(())
        });
        site.release(1);
        ip("link del vif1.0");
        until("the end", || {
            site.status().guests[0].interfaces.is_empty().then_some(())
        });
        let states: Vec<String> = site
            .events()
            .into_iter()
            .filter_map(|e| e.new_state)
            .collect();
        for word in ["attached", "renamed", "gone"] {
            assert!(states.iter().any(|state| state == word), "{states:?}");
        }
        let left = ip_shows("-br link show");
        assert!(!left.contains("nbr-") && !left.contains("nbp-"), "{left}");
        assert_eq!(
            site.state(),
            "holding",
            "one interface less is no word to open"
        );
    });
}

#[test]
fn a_relay_that_lost_its_way_to_the_bridge_fails_and_says_so() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.cut(1);
        site.guest.send(&frame(1));
        site.holds(1);
        let free = site.status().guests[0].interfaces[0].by.clone();
        ip(&format!("link del {free}"));
        until("the failure", || (site.state() == "failed").then_some(()));
        let guest = site.status().guests.remove(0);
        assert!(guest.next.contains("attach it again"), "{guest:?}");
        assert!(guest.interfaces[0].failed.is_some());
        assert_eq!(site.seen(), [] as [u8; 0]);
        site.done(&crate::site::detach("g1"));
        assert_eq!(site.state(), "held");
        site.done(&attach("g1"));
        site.open();
        until("its way", || {
            site.guest.send(&frame(2));
            (!site.seen().is_empty()).then_some(())
        });
    });
}

#[test]
fn a_second_interface_joins_the_epochs_of_the_first() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        ip("link add h0 type veth peer name h1");
        ip("link set h1 master br0");
        ip("link set h0 up");
        ip("link set h1 up");
        site.cut(1);
        site.done(&attach("h1"));
        assert!(site.done(&attach("h1")).already);
        let second = crate::wire::Wire::open("h0");
        until("the carrier", || {
            second.send(&frame(2));
            (site.status().guests[0].interfaces[1].held_frames > Some(0)).then_some(())
        });
        site.release(1);
        assert_eq!(site.seen(), [] as [u8; 0], "it said nothing in epoch 1");
        site.cut(2);
        site.release(2);
        assert_eq!(site.comes(), 2);
        let guest = &site.status().guests[0];
        assert!(
            guest.interfaces.iter().all(|of| of.failed.is_none()),
            "{guest:?}"
        );
    });
}

#[test]
fn devices_that_cannot_be_held_are_refused_and_stay_as_they_were() {
    in_namespace(|| {
        let site = Site::started(&[]);
        let before = crate::site::devices();
        let with = |guest: &str, interface: &str, bridge: Option<&str>| {
            site.refused(&Request::NetAttach(NetAttachRequest {
                guest: guest.into(),
                interface: interface.into(),
                bridge: bridge.map(str::to_owned),
            }))
        };
        assert!(with("vm1", "none", None).contains("no network device none"));
        assert!(with("vm1", "w1", None).contains("port of no bridge"));
        assert!(with("vm1", "w0", Some("lo")).contains("lo is no bridge"));
        assert!(with("vm2", "g1", None).contains("is of guest vm1"));
        assert!(with("vm 2", "w0", None).contains("is not usable"));
        assert!(with("vm1", &"x".repeat(4000), None).contains("is not usable"));
        assert!(with("vm1", "a/b", None).contains("is not usable"));
        assert_eq!(crate::site::devices(), before);
        assert_eq!(site.status().guests.len(), 1);
    });
}
