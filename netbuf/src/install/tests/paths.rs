//! What could go wrong: a kind of frame that the redirect does not match leaves while all others are
//! held, as ARP and IPv6 did with the script that came before.

use super::lan::{Lan, ROOT, frame, in_namespace};
use crate::gate::Order;
use crate::install::{Begin, STEPS, carry_out, install, install_first};
use crate::netlink::request::{self, redirect_of};
use std::time::{Duration, Instant};

const UNICAST: [u8; 6] = [2, 0, 0, 0, 0, 9];
const EVERYBODY: [u8; 6] = [0xff; 6];

/// One of each kind; the last byte of each says which.
fn every_kind() -> Vec<(&'static str, Vec<u8>)> {
    let tagged = |inner: [u8; 2]| [0x81, 0x00, 0x20, 0x64, inner[0], inner[1]];
    let double = [0x88, 0xa8, 0x00, 0x05, 0x81, 0x00, 0x00, 0x06, 0x08, 0x00];
    vec![
        ("IPv4", frame(&UNICAST, &[0x08, 0x00], 98, 1)),
        ("IPv6", frame(&UNICAST, &[0x86, 0xdd], 118, 2)),
        ("ARP", frame(&EVERYBODY, &[0x08, 0x06], 60, 3)),
        ("VLAN", frame(&UNICAST, &tagged([0x08, 0x00]), 102, 4)),
        ("VLAN, IPv6", frame(&UNICAST, &tagged([0x86, 0xdd]), 102, 5)),
        ("VLAN in VLAN", frame(&UNICAST, &double, 106, 6)),
        (
            "multicast",
            frame(&[1, 0, 0x5e, 0, 0, 0x16], &[0x08, 0x00], 60, 7),
        ),
        (
            "IPv6 multicast",
            frame(&[0x33, 0x33, 0, 0, 0, 1], &[0x86, 0xdd], 86, 8),
        ),
        ("jumbo", frame(&UNICAST, &[0x08, 0x00], 9014, 9)),
        ("unknown", frame(&UNICAST, &[0x88, 0xb5], 60, 10)),
        ("802.3 length", frame(&UNICAST, &[0x00, 0x26], 60, 11)),
        ("no payload", frame(&UNICAST, &[0x88, 0xb5], 14, 12)),
        ("3 bytes of payload", frame(&UNICAST, &[0x08, 0x00], 17, 13)),
    ]
}

/// Says one of each and waits until the interface has taken them in; what the witness heard.
fn say_all(lan: &Lan) -> Vec<Vec<u8>> {
    let frames = every_kind();
    let before = lan.taken_in();
    for (_, frame) in &frames {
        lan.say(frame);
    }
    let end = Instant::now() + Duration::from_secs(10);
    while lan.taken_in() < before + frames.len() as u64 && Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(lan.taken_in() >= before + frames.len() as u64, "not said");
    let mut heard = Vec::new();
    while heard.len() < frames.len() {
        match lan.hear(300) {
            Some(frame) => heard.push(frame),
            None => break,
        }
    }
    heard
}

fn names(heard: &[Vec<u8>]) -> Vec<&'static str> {
    let kinds = every_kind();
    let of = |frame: &Vec<u8>| {
        kinds
            .iter()
            .find(|(_, k)| k == frame)
            .map_or("changed", |k| k.0)
    };
    heard.iter().map(of).collect()
}

fn all_names() -> Vec<&'static str> {
    every_kind().iter().map(|(name, _)| *name).collect()
}

#[test]
fn every_kind_of_frame_goes_through_the_ifb_in_order_and_unchanged() {
    in_namespace(|| {
        let mut lan = Lan::new();
        assert_eq!(
            names(&say_all(&lan)),
            all_names(),
            "without anything of ours"
        );
        install(&mut lan.netlink, lan.vif, ROOT, Begin::Open).unwrap();
        assert_eq!(lan.passed(), 0);
        for round in 1..=5 {
            assert_eq!(names(&say_all(&lan)), all_names());
            let expected = round * u32::try_from(every_kind().len()).unwrap();
            assert_eq!(lan.passed(), expected, "not all through the IFB");
        }
    });
}

#[test]
fn with_the_ifb_down_or_gone_nothing_arrives() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let ifb = install(&mut lan.netlink, lan.vif, ROOT, Begin::Open).unwrap();
        carry_out(&mut lan.netlink, ifb, Order::Shut).unwrap();
        assert_eq!(names(&say_all(&lan)), [] as [&str; 0], "IFB down");
        lan.netlink.ask("up", request::set_up(ifb, true)).unwrap();
        assert_eq!(names(&say_all(&lan)), all_names(), "up again");
        lan.netlink
            .ask("delete", request::delete_link(ifb))
            .unwrap();
        assert_eq!(names(&say_all(&lan)), [] as [&str; 0], "IFB deleted");
    });
}

/// Two filters people write, planted in the place of ours, and what slips by each.
#[test]
fn planted_filters_let_frames_slip_by() {
    in_namespace(|| {
        let mut lan = Lan::new();
        let without = STEPS.len() - 1;
        let ifb = install_first(&mut lan.netlink, lan.vif, ROOT, Begin::Open, without).unwrap();
        carry_out(&mut lan.netlink, ifb, Order::Shut).unwrap();
        let mut slipping = |protocol, keys| {
            let plant = redirect_of(lan.vif, ifb, protocol, keys);
            lan.netlink.ask("plant", plant).unwrap();
            let heard = names(&say_all(&lan));
            let again = request::delete_ingress(lan.vif);
            lan.netlink.ask("unplant", again).unwrap();
            let again = request::make_ingress(lan.vif);
            lan.netlink.ask("ingress", again).unwrap();
            heard
        };
        let ipv4_only = slipping(0x0800, 1);
        println!("IPv4 only lets by: {ipv4_only:?}");
        assert!(ipv4_only.contains(&"ARP") && ipv4_only.contains(&"IPv6"));
        assert!(!ipv4_only.contains(&"IPv4"));
        // As tc(8) writes `protocol all u32 match u32 0 0`.
        let with_a_key = slipping(request::ETH_P_ALL, 1);
        println!("protocol all with a key lets by: {with_a_key:?}");
        assert_eq!(with_a_key, ["no payload", "3 bytes of payload"]);
        assert_eq!(slipping(request::ETH_P_ALL, 0), [] as [&str; 0]);
    });
}

/// A burst keeps its order through softirqs on whatever core.
#[test]
fn a_burst_keeps_its_order() {
    in_namespace(|| {
        let mut lan = Lan::new();
        install(&mut lan.netlink, lan.vif, ROOT, Begin::Open).unwrap();
        let mut said = 0u32;
        let mut heard = 0u32;
        while heard < 5_000 {
            // Never more on the way than the queues take.
            for _ in 0..20 {
                let mut frame = frame(&UNICAST, &[0x88, 0xb5], 60, 0);
                frame[20..24].copy_from_slice(&said.to_be_bytes());
                lan.say(&frame);
                said += 1;
            }
            while heard < said {
                let frame = lan.hear(2_000).expect("a frame was lost");
                assert_eq!(frame[20..24], heard.to_be_bytes(), "order");
                heard += 1;
            }
        }
        assert_eq!(lan.passed(), 5_000);
    });
}
