//! What could go wrong: a field one byte off makes another object than meant, or lets IPv6 pass; an
//! answer that is too short ends the process that holds the guest.

#![cfg(target_endian = "little")]

use super::answer::{Answer, answer};
use super::request::*;
use super::wire::{Attributes, Message, Parts};
use super::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let rows = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""));
    let digits: String = rows.flat_map(str::split_whitespace).collect();
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

#[track_caller]
fn assert_bytes(message: Message, expected: &str) {
    let (got, expected) = (message.finish(7), hex(expected));
    assert_eq!(got, expected, "\ngot  {got:02x?}\nwant {expected:02x?}");
}

#[test]
fn make_ifb_is_byte_for_byte() {
    assert_bytes(
        make_ifb("netbuf-1f"),
        "4c000000 1000 0506 07000000 00000000  # length, NEWLINK, REQUEST ACK EXCL CREATE, seq, port
         00 00 0000 00000000 00000000 00000000 # ifinfomsg: unspec, type, index, flags, change
         0e00 0300 6e65746275662d316600 0000   # IFLA_IFNAME netbuf-1f, zero byte, padding
         0800 1f00 01000000                    # IFLA_NUM_TX_QUEUES 1
         0800 2000 01000000                    # IFLA_NUM_RX_QUEUES 1
         0c00 1200                             # IFLA_LINKINFO
         0700 0100 696662 00                   # IFLA_INFO_KIND ifb, padding",
    );
}

#[test]
fn link_requests_are_byte_for_byte() {
    assert_bytes(
        set_up(5, true),
        "20000000 1000 0500 07000000 00000000 00000000 05000000 01000000 01000000",
    );
    assert_bytes(
        set_up(5, false),
        "20000000 1000 0500 07000000 00000000 00000000 05000000 00000000 01000000",
    );
    assert_bytes(
        delete_link(5),
        "20000000 1100 0500 07000000 00000000 00000000 05000000 00000000 00000000",
    );
    assert_bytes(
        link_by_name("e"),
        "28000000 1200 0500 07000000 00000000 00000000 00000000 00000000 00000000
         0600 0300 6500 0000",
    );
    assert_bytes(
        link_by_index(5),
        "20000000 1200 0500 07000000 00000000 00000000 05000000 00000000 00000000",
    );
    assert_bytes(
        dump_links(),
        "20000000 1200 0103 07000000 00000000 00000000 00000000 00000000 00000000",
    );
}

#[test]
fn requests_for_the_relay_are_byte_for_byte() {
    assert_bytes(
        make_veth("a", "b", 1500),
        "64000000 1000 0506 07000000 00000000  # NEWLINK, REQUEST ACK EXCL CREATE
         00000000 00000000 00000000 00000000   # ifinfomsg
         0600 0300 6100 0000 0800 0400 dc050000 # IFLA_IFNAME a, IFLA_MTU 1500
         3400 1200 0800 0100 76657468          # IFLA_LINKINFO, IFLA_INFO_KIND veth
         2800 0200 2400 0100                   # IFLA_INFO_DATA, VETH_INFO_PEER
         00000000 00000000 00000000 00000000   # ifinfomsg of the other end
         0600 0300 6200 0000 0800 0400 dc050000",
    );
    assert_bytes(
        set_master(5, Some(9)),
        "28000000 1000 0500 07000000 00000000 00000000 05000000 00000000 00000000
         0800 0a00 09000000",
    );
    assert_bytes(
        set_alias(5, "vm1"),
        "28000000 1000 0500 07000000 00000000 00000000 05000000 00000000 00000000
         0700 1400 766d3100",
    );
    assert_bytes(
        station_is_behind(5, [2, 0, 0, 0, 0, 1]),
        "28000000 1c00 0505 07000000 00000000  # NEWNEIGH, REQUEST ACK CREATE REPLACE
         07 00 0000 05000000 0200 04 00        # ndmsg: AF_BRIDGE, index, REACHABLE, MASTER
         0a00 0200 020000000001 0000           # NDA_LLADDR",
    );
    assert_bytes(
        delete_root(6),
        "24000000 2500 0500 07000000 00000000 00000000 06000000 0000b100 ffffffff 00000000",
    );
}

#[test]
fn qdisc_requests_are_byte_for_byte() {
    assert_bytes(
        make_plug(6, 0x0098_9680),
        "3c000000 2400 0506 07000000 00000000  # NEWQDISC, REQUEST ACK EXCL CREATE
         00000000 06000000 0000b100 ffffffff 00000000 # tcmsg: index, handle b1:0, parent root
         0900 0100 706c756700 000000           # TCA_KIND plug
         0c00 0200 03000000 80969800           # TCA_OPTIONS: LIMIT, 10000000 bytes",
    );
    for (action, byte) in [
        (PlugAction::Buffer, "00"),
        (PlugAction::ReleaseOne, "01"),
        (PlugAction::ReleaseIndefinite, "02"),
        (PlugAction::Limit, "03"),
    ] {
        assert_bytes(
            change_plug(6, action, 0),
            &format!(
                "3c000000 2400 0500 07000000 00000000
                 00000000 06000000 0000b100 ffffffff 00000000
                 0900 0100 706c756700 000000 0c00 0200 {byte}000000 00000000"
            ),
        );
    }
    assert_bytes(
        make_pfifo(6, 1000),
        "38000000 2400 0506 07000000 00000000
         00000000 06000000 0000b100 ffffffff 00000000
         0a00 0100 706669666f00 0000 0800 0200 e8030000",
    );
    assert_bytes(
        make_ingress(5),
        "30000000 2400 0506 07000000 00000000
         00000000 05000000 0000ffff f1ffffff 00000000
         0c00 0100 696e677265737300",
    );
    assert_bytes(
        delete_ingress(5),
        "24000000 2500 0500 07000000 00000000 00000000 05000000 0000ffff f1ffffff 00000000",
    );
    assert_bytes(
        our_root(6),
        "24000000 2600 0d00 07000000 00000000 00000000 06000000 0000b100 ffffffff 00000000",
    );
    assert_bytes(
        dump_qdiscs(),
        "24000000 2600 0103 07000000 00000000 00000000 00000000 00000000 00000000 00000000",
    );
}

#[test]
fn redirect_is_byte_for_byte() {
    assert_bytes(
        redirect(5, 6),
        "7c000000 2c00 0506 07000000 00000000  # NEWTFILTER, REQUEST ACK EXCL CREATE
         00000000 05000000 00000000 0000ffff 00030100 # index, parent ffff:0, priority 1, ETH_P_ALL
         0800 0100 75333200                    # TCA_KIND u32
         5000 0200                             # TCA_OPTIONS
         1400 0500 01 00 00 00 0000 0000 0000 0000 00000000 # TCA_U32_SEL: terminal, no key
         3800 0700                             # TCA_U32_ACT
         3400 0100                             # the first action
         0b00 0100 6d697272656400 00           # TCA_ACT_KIND mirred
         2400 0200                             # TCA_ACT_OPTIONS
         2000 0200 00000000 00000000 04000000  # TCA_MIRRED_PARMS: index, capab, STOLEN
         00000000 00000000 01000000 06000000   # refcnt, bindcnt, EGRESS_REDIR, ifindex",
    );
    assert_bytes(
        dump_ingress_filters(5),
        "24000000 2e00 0103 07000000 00000000 00000000 05000000 00000000 0000ffff 00000000",
    );
}

/// What the kernel sends for a plug: kind, statistics.
fn plug_answer() -> Vec<u8> {
    let mut message = Message::new(RTM_NEWQDISC, 2)
        .raw(&hex("00000000 06000000 0000b100 ffffffff 01000000"))
        .attribute_text(TCA_KIND, "plug");
    let nest = message.begin(TCA_STATS2);
    message = message
        .attribute(1, &hex("0102000000000000 09000000 00000000"))
        .attribute(3, &hex("03000000 e8030000 05000000 00000000 00000000"));
    message.end(&nest);
    message.finish(7)
}

fn redirect_answer() -> Vec<u8> {
    let mut bytes = redirect(5, 6).finish(7);
    bytes[4..8].copy_from_slice(&hex("2c00 0200"));
    bytes
}

fn error_answer() -> Vec<u8> {
    Message::new(2, 0x300)
        .raw(&hex("edffffff 20000000 12000500 07000000 00000000"))
        .attribute_text(1, "no such thing")
        .finish(7)
}

fn link_answer() -> Vec<u8> {
    let mut message = Message::new(RTM_NEWLINK, 2)
        .raw(&hex("00000100 05000000 01000000 00000000"))
        .attribute_text(IFLA_IFNAME, "vif1.0")
        .attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
        .attribute_u32(IFLA_MTU, 1500)
        .attribute_u32(IFLA_MASTER, 9)
        .attribute_text(IFLA_IFALIAS, "vm1");
    let nest = message.begin(IFLA_LINKINFO | 0x8000);
    message = message.attribute(IFLA_INFO_KIND, b"veth");
    message.end(&nest);
    message.finish(7)
}

fn read(bytes: &[u8]) -> Vec<Answer> {
    let parts = Parts::new(bytes).map(|part| answer(&part.unwrap()).unwrap());
    parts.collect()
}

#[test]
fn answers_are_read() {
    let Answer::Qdisc(qdisc) = read(&plug_answer()).remove(0) else {
        panic!("no qdisc");
    };
    assert_eq!((qdisc.index, qdisc.handle), (6, OUR_ROOT));
    assert_eq!((qdisc.parent, qdisc.kind.as_str()), (TC_H_ROOT, "plug"));
    let counters = Counters {
        sent_bytes: 0x201,
        sent_frames: 9,
        backlog_frames: 3,
        backlog_bytes: 1000,
        dropped_frames: 5,
    };
    assert_eq!(qdisc.counters, counters);

    let Answer::Filter(filter) = read(&redirect_answer()).remove(0) else {
        panic!("no filter");
    };
    assert!(filter.is_ours(6) && !filter.is_ours(5), "{filter:?}");

    let answers = read(&error_answer());
    let says = "no such thing".to_owned();
    assert_eq!(answers, [Answer::Failed { errno: 19, says }]);

    let mut both = link_answer();
    both.extend(Message::new(3, 2).raw(&[0; 4]).finish(7));
    let link = Link {
        index: 5,
        name: "vif1.0".into(),
        up: true,
        kind: "veth".into(),
        master: Some(9),
        peer: None,
        mtu_bytes: 1500,
        mac: [2, 0, 0, 0, 0, 1],
        alias: "vm1".into(),
    };
    assert_eq!(read(&both), [Answer::Link(link), Answer::Done]);
}

/// Reads everything there is to read; only a panic fails.
fn swallow(bytes: &[u8]) {
    for part in Parts::new(bytes).flatten() {
        drop(answer(&part));
    }
    let attributes = Attributes::new(bytes);
    for kind in [1, 2, 3, 5, 7, 18] {
        drop(attributes.text(kind));
        if let Ok(inner) = attributes.nested(kind) {
            drop(inner.text(1));
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    vec![
        plug_answer(),
        redirect_answer(),
        error_answer(),
        link_answer(),
    ]
}

#[test]
fn answers_cut_at_every_length_do_not_panic() {
    for sample in samples() {
        for length in 0..sample.len() {
            swallow(&sample[..length]);
            // The same with a header that believes it is whole.
            let mut cut = sample[..length].to_vec();
            if length >= 4 {
                let says = u32::try_from(length).unwrap().to_le_bytes();
                cut[..4].copy_from_slice(&says);
                swallow(&cut);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        swallow(&bytes);
    }

    #[test]
    fn flipped_bytes_do_not_panic(
        which in 0..4usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = samples().swap_remove(which);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        swallow(&bytes);
    }

    #[test]
    fn attributes_come_back(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8)) {
        let mut message = Message::new(1, 0);
        for (kind, value) in (1u16..).zip(&values) {
            message = message.attribute(kind, value);
        }
        let bytes = message.finish(1);
        let part = Parts::new(&bytes).next().unwrap().unwrap();
        for (kind, value) in (1u16..).zip(&values) {
            let found = Attributes::new(part.body).find(kind).unwrap();
            prop_assert_eq!(found, Some(value.as_slice()));
        }
        let beyond = u16::try_from(values.len()).unwrap() + 1;
        prop_assert_eq!(Attributes::new(part.body).find(beyond).unwrap(), None);
    }
}
