//! What could go wrong: a frame leaves before its epoch is safe, or twice, or never; a stranger's word opens.

use crate::namespace::{ip, until};
use crate::site::{Site, frame, hold, in_namespace, lineage, of_epoch};
use blkback_proto::ctl::{NetLineageRequest, NetResyncRequest, Request, StatusRequest};

#[test]
fn epochs_leave_when_they_are_released_and_not_before() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.guest.send(&frame(1));
        assert_eq!(site.comes(), 1, "open until the first cut");
        assert_eq!(site.cut(5).state.as_str(), "cut");
        site.guest.send(&frame(6));
        site.holds(1);
        assert!(site.cut(5).already, "asked twice");
        site.cut(6);
        site.guest.send(&frame(7));
        site.holds(2);
        // Several epochs in flight.
        assert_eq!(site.cut(7).epochs_in_flight, 3);
        site.guest.send(&frame(8));
        site.holds(3);
        assert_eq!(site.seen(), [] as [u8; 0], "left early");
        site.release(5);
        assert_eq!(
            site.seen(),
            [] as [u8; 0],
            "epoch 5 said nothing after the cut"
        );
        site.release(6);
        assert_eq!(site.comes(), 6);
        assert_eq!(site.seen(), [] as [u8; 0], "only epoch 6");
        assert!(site.release(6).already, "asked twice");
        site.release(7);
        assert_eq!(site.comes(), 7);
        assert_eq!(site.seen(), [] as [u8; 0], "8 was said after the last cut");
        assert_eq!(site.state(), "holding");
        let refused = site.refused(&Request::NetRelease(of_epoch(9)));
        assert_eq!(refused, "RELEASE 9: it was never cut; CUT 9 first");
    });
}

#[test]
fn only_the_lineage_of_the_authority_opens() {
    in_namespace(|| {
        let mut site = Site::started(&[]);
        site.cut(1);
        site.done(&hold());
        site.guest.send(&frame(1));
        site.holds(1);
        let open = Request::NetOpen(lineage());
        let refused = site.refused(&open);
        assert!(
            refused.contains("the authority has not been heard"),
            "{refused}"
        );
        let other = NetLineageRequest {
            lineage: "f".repeat(32),
            ..lineage()
        };
        site.done(&Request::NetAuthority(other.clone()));
        let refused = site.refused(&open);
        assert!(
            refused.contains(&format!("then OPEN {}", other.lineage)),
            "{refused}"
        );
        for bad in [
            "",
            "0102",
            "zz02030405060708090a0b0c0d0e0f10",
            "é".repeat(16).as_str(),
        ] {
            let bad = NetLineageRequest {
                lineage: bad.to_owned(),
                ..lineage()
            };
            let refused = site.refused(&Request::NetOpen(bad));
            assert!(refused.contains("32 hexadecimal digits"), "{refused}");
        }
        let refused = site.refused(&Request::NetRelease(of_epoch(1)));
        assert!(refused.contains("output is held (a test)"), "{refused}");
        assert_eq!(site.seen(), [] as [u8; 0]);
        site.open();
        assert_eq!(site.comes(), 1);
        assert_eq!(site.state(), "open");
    });
}

#[test]
fn counting_begins_anew_only_with_a_quiet_guest() {
    in_namespace(|| {
        let site = Site::started(&[]);
        site.cut(3);
        site.done(&hold());
        site.guest.send(&frame(1));
        site.holds(1);
        let resync = |paused, committed| {
            Request::NetResync(NetResyncRequest {
                guest: "vm1".into(),
                epoch: 4,
                paused,
                committed,
            })
        };
        assert!(
            site.refused(&resync(false, Some(4)))
                .contains("pause it first")
        );
        assert!(
            site.refused(&resync(true, Some(3)))
                .contains("wait for its commit")
        );
        assert!(
            site.refused(&resync(true, Some(4)))
                .contains("may hold frames")
        );
        site.open();
        assert_eq!(site.comes(), 1);
        site.done(&hold());
        site.done(&resync(true, Some(4)));
        assert!(site.done(&resync(true, Some(4))).already);
        site.guest.send(&frame(2));
        site.holds(1);
        site.cut(5);
        site.release(5);
        assert_eq!(site.comes(), 2);
    });
}

/// The host's own stack hears the guest after the packet socket does: a DHCP server on all interfaces
/// answered what nobody had released, and the answer told of an unsafe state.
#[test]
fn a_server_of_this_host_does_not_hear_a_held_guest() {
    in_namespace(|| {
        let site = Site::started(&[]);
        site.cut(1);
        let server = std::net::UdpSocket::bind("0.0.0.0:67").unwrap();
        server.set_nonblocking(true).unwrap();
        site.guest.send(&dhcp_discover());
        site.holds(1);
        let mut heard = [0; 600];
        let kind = server.recv(&mut heard).map_err(|error| error.kind());
        assert_eq!(
            kind,
            Err(std::io::ErrorKind::WouldBlock),
            "the host heard it"
        );
        // The same without the wall, so that the frame is shown to be one that is heard.
        let index = site.status().guests[0].interfaces[0].index;
        ip(&format!("link del netbuf-{index:x}"));
        qdisc_gone();
        site.guest.send(&dhcp_discover());
        until("the frame without a wall", || server.recv(&mut heard).ok());
    });
}

fn qdisc_gone() {
    let gone = std::process::Command::new("tc")
        .args(["qdisc", "del", "dev", "g1", "ingress"])
        .status();
    assert!(gone.unwrap().success());
}

/// From 0.0.0.0 to everybody, as a client without an address sends it.
fn dhcp_discover() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    let mut header = vec![
        0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255,
    ];
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    // UDP 68 to 67, 20 bytes, no checksum.
    frame.extend([0, 68, 0, 67, 0, 20, 0, 0]);
    frame.extend([1; 12]);
    frame.resize(60, 0);
    frame
}

#[test]
fn the_newest_frames_are_dropped_at_the_limit_and_everybody_is_told() {
    in_namespace(|| {
        let site = Site::started(&["--limit", "128KiB"]);
        site.cut(1);
        let mut large = frame(3);
        large.resize(1514, 3);
        // More than the limit, and less than a socket's buffer.
        for _ in 0..200 {
            site.guest.send(&large);
        }
        let dropped = |site: &Site| {
            site.status().guests[0].interfaces[0]
                .dropped_frames
                .unwrap()
        };
        until("a drop", || (dropped(&site) > 0).then_some(()));
        until("all of them", || {
            let port = &site.status().guests[0].interfaces[0];
            (port.held_frames.unwrap() + port.dropped_frames.unwrap() == 200).then_some(())
        });
        let told = until("the events", || {
            let events = site.events();
            let of = |new: &str| {
                events.iter().any(|e| {
                    e.kind.as_str() == "limit-reached" && e.new_state.as_deref() == Some(new)
                })
            };
            (of("near") && of("dropping")).then_some(events)
        });
        assert!(
            told.iter()
                .any(|event| event.reason.contains("frames were dropped"))
        );
        let done = site.cut(2);
        assert!(
            done.limit_reached && done.alarm && done.dropped_frames > 0,
            "{done:?}"
        );
        assert!(!site.release(1).limit_reached, "told once");
        let (code, text) = site.types(&["status"]);
        assert_eq!(code, 0);
        assert!(
            text.contains("NEAR ITS LIMIT") && text.contains("newest frames are dropped"),
            "{text}"
        );
    });
}

#[test]
fn what_is_not_for_netbuf_is_refused_in_a_line() {
    in_namespace(|| {
        let site = Site::started(&[]);
        let refused = site.refused(&Request::Status(StatusRequest {}));
        assert!(refused.contains("is for a blockrep daemon"), "{refused}");
        let nobody = crate::site::of_epoch(1);
        let nobody = blkback_proto::ctl::NetEpochRequest {
            guest: "vm2".into(),
            ..nobody
        };
        assert!(
            site.refused(&Request::NetCut(nobody))
                .ends_with("there is vm1")
        );
        let (code, text) = site.types(&["cut", "vm1", "x"]);
        assert_eq!(code, 2, "{text}");
        let (code, text) = site.types(&["release", "vm1", "7"]);
        assert_eq!((code, text.lines().count()), (4, 1), "{text}");
    });
}
