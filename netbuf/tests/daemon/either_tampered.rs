//! Somebody takes away by hand what holds the frames. With either mechanism, as in `either`.

use crate::namespace::until;
use crate::site::{Site, frame, in_namespace, mechanism};
use std::process::Command;

/// The ingress qdisc of the guest's device, with the redirect in it.
fn take_away() {
    let mut tc = Command::new("tc");
    let done = tc.args("qdisc del dev g1 ingress".split(' ')).status();
    assert!(done.unwrap().success(), "tc qdisc del");
}

fn is_redirected() -> bool {
    let mut tc = Command::new("tc");
    let shown = tc.args("filter show dev g1 ingress".split(' ')).output();
    String::from_utf8_lossy(&shown.unwrap().stdout).contains("Redirect to device netbuf-")
}

#[test]
fn while_open_it_is_put_back() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        take_away();
        until("the redirect", || is_redirected().then_some(()));
        assert_eq!(site.state(), "open");
        site.guest.send(&frame(1));
        assert_eq!(site.comes(), 1, "open passes");
        site.cut(1);
        site.guest.send(&frame(2));
        site.holds(1);
        assert_eq!(site.seen(), [] as [u8; 0], "held by what was put back");
        let mut events = site.events().into_iter();
        assert!(events.any(|event| event.new_state.as_deref() == Some("mended")));
    });
}

/// A relay has the frames, whoever else heard them; past a plug some may have gone, and that is over.
#[test]
fn while_held_nothing_passes() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.cut(1);
        site.guest.send(&frame(1));
        site.holds(1);
        take_away();
        until("the redirect", || is_redirected().then_some(()));
        let state = if mechanism() == "plug" {
            "failed"
        } else {
            "cut"
        };
        until("the state", || (site.state() == state).then_some(()));
        site.guest.send(&frame(2));
        assert_eq!(site.seen(), [] as [u8; 0]);
    });
}

/// Somebody else's filter stands where ours has to be: only the device itself can be closed.
#[test]
fn with_the_place_taken_the_device_goes_down() {
    if mechanism() != "plug" {
        eprintln!("skipped: a relay holds without a filter");
        return;
    }
    in_namespace(|| {
        let site = Site::started(&[]);
        site.cut(1);
        site.guest.send(&frame(1));
        site.holds(1);
        let filter =
            "filter add dev g1 parent ffff: protocol all prio 9 u32 match u32 0 0 flowid 1:1";
        let mut tc = Command::new("tc");
        assert!(tc.args(filter.split(' ')).status().unwrap().success());
        let mut tc = Command::new("tc");
        let words = "filter del dev g1 ingress prio 1 protocol all u32";
        assert!(tc.args(words.split(' ')).status().unwrap().success());
        until("the state", || (site.state() == "failed").then_some(()));
        let shown = Command::new("ip")
            .args(["-o", "link", "show", "g1"])
            .output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        assert!(shown.contains("state DOWN"), "{shown}");
    });
}
