//! What could go wrong: a daemon that dies or ends lets go what it held; the next one is open by accident;
//! cleanup takes what is not ours, or leaves what is.

use crate::namespace::ip;
use crate::site::{Site, detach, devices, frame, hold, in_namespace};

#[test]
fn killed_in_the_middle_of_holding_nothing_leaves_and_the_next_begins_held() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.cut(1);
        site.guest.send(&frame(1));
        site.holds(1);
        site.kill();
        site.guest.send(&frame(2));
        assert_eq!(site.seen(), [] as [u8; 0], "left a dead daemon");
        // Whoever makes the device a port again meets the wall.
        ip("link set g1 master br0");
        site.guest.send(&frame(3));
        assert_eq!(site.seen(), [] as [u8; 0], "past a dead daemon");
        site.start(&["run", "--mechanism", "relay"]);
        assert_eq!(site.state(), "adopted");
        site.guest.send(&frame(4));
        site.holds(1);
        assert_eq!(site.seen(), [] as [u8; 0], "open on restart");
        let events = site.events();
        assert!(
            events
                .iter()
                .any(|e| e.new_state.as_deref() == Some("adopted"))
        );
        site.open();
        assert_eq!(site.comes(), 4, "what a dead daemon held is gone, in order");
        assert_eq!(site.seen(), [] as [u8; 0]);
    });
}

#[test]
fn ended_while_holding_nothing_leaves() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.cut(1);
        site.guest.send(&frame(1));
        site.holds(1);
        assert_eq!(site.end(), 0);
        site.guest.send(&frame(2));
        assert_eq!(site.seen(), [] as [u8; 0]);
        assert!(!site.socket().exists(), "a socket without a daemon");
    });
}

/// Things that look like ours, of somebody else's.
fn strangers() {
    ip("link add netbuf-x type ifb");
    ip("link add ifb7 type ifb");
    ip("link add netbuf-7fff type bridge");
    ip("link add nbr-7ffe type veth peer name other");
    ip("link add nbr-7ffd type bridge");
}

#[test]
fn cleanup_removes_everything_of_ours_and_nothing_else() {
    in_namespace(|| {
        let mut site = Site::new();
        strangers();
        let before = devices();
        site.start(&["run", "--mechanism", "relay", "--attach", "vm1=g1"]);
        assert_ne!(devices(), before);
        let (code, text) = site.types(&["cleanup"]);
        assert_eq!(code, 4, "beside a daemon: {text}");
        assert!(text.contains("netbuf cleanup --force"), "{text}");
        site.cut(1);
        site.kill();
        let (code, text) = site.types(&["cleanup"]);
        assert_eq!(code, 0, "{text}");
        assert_eq!(devices(), before, "{text}");
        site.guest.send(&frame(1));
        assert_eq!(site.comes(), 1, "as before");
        let (code, text) = site.types(&["cleanup"]);
        assert_eq!((code, text.as_str()), (0, "there was nothing to remove\n"));
    });
}

#[test]
fn two_daemons_do_not_share_a_network() {
    in_namespace(|| {
        let site = Site::started(&[]);
        let (code, text) = site.types(&["run"]);
        assert_eq!(code, 4, "{text}");
        let other = site.socket().with_file_name("other.sock");
        let (code, text) = site.types(&["--control", other.to_str().unwrap(), "run"]);
        assert_eq!(code, 4, "{text}");
        assert!(
            text.contains("another netbuf works in this network namespace"),
            "{text}"
        );
    });
}

#[test]
fn detached_while_open_the_device_is_as_it_was() {
    in_namespace(|| {
        let mut site = Site::new();
        let before = devices();
        site.start(&["run", "--mechanism", "relay", "--attach", "vm1=g1"]);
        let done = site.done(&detach("g1"));
        assert!(!done.already && done.note.is_empty(), "{done:?}");
        assert_eq!(devices(), before);
        site.guest.send(&frame(1));
        assert_eq!(site.comes(), 1);
    });
}

#[test]
fn detached_while_held_the_device_stays_out_until_somebody_says_otherwise() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.cut(1);
        site.done(&hold());
        site.guest.send(&frame(1));
        site.holds(1);
        let done = site.done(&detach("g1"));
        assert!(done.note.contains("netbuf attach vm1 g1"), "{done:?}");
        assert!(site.done(&detach("g1")).already);
        site.guest.send(&frame(2));
        assert_eq!(site.seen(), [] as [u8; 0]);
        // A restart does not take it for the guest's.
        assert_eq!(site.end(), 0);
        site.start(&["run", "--mechanism", "relay"]);
        assert_eq!(site.status().guests.len(), 0);
        site.guest.send(&frame(3));
        assert_eq!(site.seen(), [] as [u8; 0]);
        let (code, text) = site.types(&["attach", "vm1", "g1"]);
        assert_eq!(code, 0, "{text}");
        site.guest.send(&frame(4));
        site.holds(1);
        assert_eq!(site.seen(), [] as [u8; 0], "nobody said that it may speak");
        site.open();
        assert_eq!(site.comes(), 4);
    });
}
