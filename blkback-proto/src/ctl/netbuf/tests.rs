//! Golden bytes and round trips of the requests to netbuf.

use super::*;
use crate::ctl::{Answer, EventKind, HEADER_BYTES, Request, Response, decode, response_packets};
use proptest::prelude::*;

const DOCUMENT: &str = include_str!("../../../PROTOCOL.md");

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    bytes.join(" ")
}

fn guest() -> String {
    "vm1".to_owned()
}

fn lineage() -> NetLineageRequest {
    NetLineageRequest {
        guest: guest(),
        lineage: "9f0c1d2e3b4a5968".repeat(2),
    }
}

fn done() -> NetDone {
    NetDone {
        already: false,
        state: NetState::Cut,
        last_cut: Some(42),
        epochs_in_flight: 1,
        held_frames: Some(3),
        held_bytes: Some(420),
        dropped_frames: 0,
        alarm: false,
        limit_reached: false,
        note: String::new(),
    }
}

fn interface() -> NetInterface {
    NetInterface {
        interface: "vif1.0".into(),
        index: 7,
        bridge: Some("br0".into()),
        by: "nbr-7".into(),
        held_frames: Some(3),
        held_bytes: Some(420),
        oldest_held_ms: Some(12),
        dropped_frames: Some(0),
        limit_bytes: 64 << 20,
        alarm: false,
        failed: None,
    }
}

fn status() -> NetStatus {
    NetStatus {
        daemon: DaemonStatus {
            name: "netbuf".into(),
            version: "0.1.0".into(),
            pid: 4711,
            uptime_s: 60,
        },
        mechanism: NetMechanism::Relay,
        why: "the kernel has no plug".into(),
        limit_bytes: 64 << 20,
        at_limit: "the newest frames are dropped and counted, as on a full wire".into(),
        guests: vec![NetGuest {
            guest: guest(),
            mechanism: NetMechanism::Relay,
            state: NetState::Cut,
            reason: "epoch 42 is cut and waits for its commit".into(),
            since_unix_ms: 1_700_000_000_123,
            next: "RELEASE, when the backup has the epoch".into(),
            last_cut: Some(42),
            epochs_in_flight: 1,
            epochs_in_flight_max: 1024,
            lineage: None,
            alarm: false,
            announcements_left: 0,
            interfaces: vec![interface()],
        }],
    }
}

fn answer(answer: Answer) -> Vec<u8> {
    let mut packets = response_packets(1, 4, &Response::Ok(answer)).unwrap();
    packets.remove(0)
}

fn golden() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    vec![
        (
            "net-attach",
            Request::NetAttach(NetAttachRequest {
                guest: guest(),
                interface: "vif1.0".into(),
                bridge: Some("br0".into()),
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 42 00 00 00",
            r#"{"net-attach":{"guest":"vm1","interface":"vif1.0","bridge":"br0"}}"#,
        ),
        (
            "net-detach",
            Request::NetDetach(NetDetachRequest {
                guest: guest(),
                interface: "vif1.0".into(),
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 33 00 00 00",
            r#"{"net-detach":{"guest":"vm1","interface":"vif1.0"}}"#,
        ),
        (
            "net-cut",
            Request::NetCut(NetEpochRequest {
                guest: guest(),
                epoch: 42,
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 26 00 00 00",
            r#"{"net-cut":{"guest":"vm1","epoch":42}}"#,
        ),
        (
            "net-release",
            Request::NetRelease(NetEpochRequest {
                guest: guest(),
                epoch: 42,
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 2a 00 00 00",
            r#"{"net-release":{"guest":"vm1","epoch":42}}"#,
        ),
        (
            "net-hold",
            Request::NetHold(NetHoldRequest {
                guest: guest(),
                reason: "the authority is silent".into(),
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 3f 00 00 00",
            r#"{"net-hold":{"guest":"vm1","reason":"the authority is silent"}}"#,
        ),
        (
            "net-authority",
            Request::NetAuthority(lineage()).to_packet(1, 4).unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 4e 00 00 00",
            r#"{"net-authority":{"guest":"vm1","lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968"}}"#,
        ),
        (
            "net-open",
            Request::NetOpen(lineage()).to_packet(1, 4).unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 49 00 00 00",
            r#"{"net-open":{"guest":"vm1","lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968"}}"#,
        ),
        (
            "net-resync",
            Request::NetResync(NetResyncRequest {
                guest: guest(),
                epoch: 42,
                paused: true,
                committed: Some(42),
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 46 00 00 00",
            r#"{"net-resync":{"guest":"vm1","epoch":42,"paused":true,"committed":42}}"#,
        ),
        (
            "net-announce",
            Request::NetAnnounce(NetAnnounceRequest {
                guest: guest(),
                stations: vec![NetStation {
                    interface: None,
                    mac: "02:00:00:aa:bb:cc".into(),
                    addresses: vec!["192.0.2.7".into()],
                    vlan: None,
                }],
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 63 00 00 00",
            r#"{"net-announce":{"guest":"vm1","stations":[{"mac":"02:00:00:aa:bb:cc","addresses":["192.0.2.7"]}]}}"#,
        ),
        (
            "net-status",
            Request::NetStatus(NetStatusRequest::default())
                .to_packet(1, 4)
                .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 11 00 00 00",
            r#"{"net-status":{}}"#,
        ),
        (
            "net-cut answer",
            answer(Answer::NetCut(done())),
            "42 52 43 54 01 00 02 00 04 00 00 00 ad 00 00 00",
            r#"{"ok":{"net-cut":{"already":false,"state":"cut","last_cut":42,"epochs_in_flight":1,"held_frames":3,"held_bytes":420,"dropped_frames":0,"alarm":false,"limit_reached":false}}}"#,
        ),
        (
            "net-status answer",
            answer(Answer::NetStatus(Box::new(status()))),
            "42 52 43 54 01 00 02 00 04 00 00 00 cd 02 00 00",
            r#"{"ok":{"net-status":{"daemon":{"name":"netbuf","version":"0.1.0","pid":4711,"uptime_s":60},"mechanism":"relay","why":"the kernel has no plug","limit_bytes":67108864,"at_limit":"the newest frames are dropped and counted, as on a full wire","guests":[{"guest":"vm1","mechanism":"relay","state":"cut","reason":"epoch 42 is cut and waits for its commit","since_unix_ms":1700000000123,"next":"RELEASE, when the backup has the epoch","last_cut":42,"epochs_in_flight":1,"epochs_in_flight_max":1024,"alarm":false,"announcements_left":0,"interfaces":[{"interface":"vif1.0","index":7,"bridge":"br0","by":"nbr-7","held_frames":3,"held_bytes":420,"oldest_held_ms":12,"dropped_frames":0,"limit_bytes":67108864,"alarm":false}]}]}}}"#,
        ),
    ]
}

/// A changed byte makes a checkpointer and a netbuf of different builds misread each other.
#[test]
fn golden_bytes_and_document_agree() {
    for (name, packet, header, body) in golden() {
        assert_eq!(hex(&packet[..HEADER_BYTES]), header, "{name}: header");
        let text = std::str::from_utf8(&packet[HEADER_BYTES..]).unwrap();
        assert_eq!(text, body, "{name}: body");
        assert!(
            DOCUMENT.contains(header),
            "{name}: header not in the document"
        );
        assert!(DOCUMENT.contains(body), "{name}: body not in the document");
    }
}

/// A word or limit that only the code has cannot be programmed against.
#[test]
fn document_names_every_word_and_limit() {
    let lists = [NetState::WORDS, NetMechanism::WORDS, EventKind::WORDS];
    for word in lists.into_iter().flatten() {
        assert!(DOCUMENT.contains(&format!("`{word}`")), "{word}");
    }
    for limit in [NET_GUEST_BYTES_MAX, NET_DEVICE_BYTES_MAX, NET_ADDRESSES_MAX] {
        assert!(DOCUMENT.contains(&limit.to_string()), "{limit}");
    }
}

/// A guard that a newer client asked for must not be passed over in silence.
#[test]
fn unknown_fields_are_refused() {
    for body in [
        r#"{"net-open":{"guest":"vm1","lineage":"00","only_if_epoch":7}}"#,
        r#"{"net-cut":{"guest":"vm1","epoch":-1}}"#,
        r#"{"net-cut":{"guest":"vm1"}}"#,
        r#"{"net-resync":{"guest":"vm1","epoch":1}}"#,
        r#"{"net-hold":{}}"#,
    ] {
        assert!(Request::from_body(body.as_bytes()).is_err(), "{body}");
    }
}

fn any_station() -> impl Strategy<Value = NetStation> {
    let addresses = prop::collection::vec(any::<String>(), 0..4);
    (
        any::<Option<String>>(),
        any::<String>(),
        addresses,
        any::<Option<u16>>(),
    )
        .prop_map(|(interface, mac, addresses, vlan)| NetStation {
            interface,
            mac,
            addresses,
            vlan,
        })
}

fn any_request() -> impl Strategy<Value = Request> {
    let epoch = || {
        (any::<String>(), any::<u64>()).prop_map(|(guest, epoch)| NetEpochRequest { guest, epoch })
    };
    let lineage = || {
        (any::<String>(), any::<String>())
            .prop_map(|(guest, lineage)| NetLineageRequest { guest, lineage })
    };
    prop_oneof![
        (any::<String>(), any::<String>(), any::<Option<String>>()).prop_map(
            |(guest, interface, bridge)| Request::NetAttach(NetAttachRequest {
                guest,
                interface,
                bridge
            })
        ),
        (any::<String>(), any::<String>()).prop_map(|(guest, interface)| Request::NetDetach(
            NetDetachRequest { guest, interface }
        )),
        epoch().prop_map(Request::NetCut),
        epoch().prop_map(Request::NetRelease),
        (any::<String>(), any::<String>())
            .prop_map(|(guest, reason)| Request::NetHold(NetHoldRequest { guest, reason })),
        lineage().prop_map(Request::NetAuthority),
        lineage().prop_map(Request::NetOpen),
        (
            any::<String>(),
            any::<u64>(),
            any::<bool>(),
            any::<Option<u64>>()
        )
            .prop_map(|(guest, epoch, paused, committed)| Request::NetResync(
                NetResyncRequest {
                    guest,
                    epoch,
                    paused,
                    committed
                }
            )),
        (any::<String>(), prop::collection::vec(any_station(), 0..4)).prop_map(
            |(guest, stations)| Request::NetAnnounce(NetAnnounceRequest { guest, stations })
        ),
        any::<Option<String>>().prop_map(|guest| Request::NetStatus(NetStatusRequest { guest })),
    ]
}

proptest! {
    /// What one side encodes and the other reads as something else is acted upon wrongly.
    #[test]
    fn requests_round_trip(request in any_request(), id in 1u32..) {
        prop_assert!(request.is_for_netbuf());
        let packet = request.to_packet(1, id).unwrap();
        let body = decode(&packet).unwrap().body;
        prop_assert_eq!(&Request::from_body(body).unwrap(), &request);
        for cut in 0..body.len().min(200) {
            prop_assert!(Request::from_body(&body[..cut]).is_err());
        }
    }

    /// A count that is read wrong lets a checkpointer believe that nothing was dropped.
    #[test]
    fn answers_round_trip(
        (already, alarm, limit_reached) in any::<(bool, bool, bool)>(),
        (last_cut, held_frames, held_bytes) in any::<(Option<u64>, Option<u64>, Option<u64>)>(),
        (epochs_in_flight, dropped_frames) in any::<(u64, u64)>(),
        note in any::<String>(),
        state in any::<String>(),
    ) {
        let done = NetDone {
            already, state: state.as_str().into(), last_cut, epochs_in_flight, held_frames, held_bytes,
            dropped_frames, alarm, limit_reached, note,
        };
        let response = Response::Ok(Answer::NetRelease(done));
        let body = serde_json::to_vec(&response).unwrap();
        prop_assert_eq!(Response::from_body(&body).unwrap(), response);
    }
}
