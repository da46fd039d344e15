//! What could go wrong: memory without end, a drop nobody hears of, a thread that panics or spins when an
//! interface goes, held frames that get out of a relay that ended.

use crate::kinds::frame;
use crate::lab::Lab;
use crate::namespace::{ip, possible, settled};
use crate::wire::Wire;
use netbuf::relay::RelayError;
use netbuf::relay::isolate::{isolate, leaks};
use netbuf::relay::port::{PortState, VNET_BYTES};
use netbuf::relay::queue::charge;
use std::time::Duration;

#[test]
fn the_limit_drops_the_newest_and_is_told_before() {
    if !possible() {
        return;
    }
    let one = charge(VNET_BYTES + 100);
    let mut lab = Lab::new(1500, |config| config.held_bytes_max = 40 * one);
    lab.relay.hold().unwrap();
    let mut sent = Vec::new();
    for number in 0..60u64 {
        let mut frame = frame([0xff; 6], [0x88, 0xb5], 100);
        frame[14..22].copy_from_slice(&number.to_be_bytes());
        lab.guest.send(&frame);
        sent.push(frame);
        lab.read(number + 1);
        let queue = lab.relay.status().unwrap().queue;
        assert_eq!(queue.alarm, number + 1 >= 30);
        assert_eq!(queue.dropped.frames, (number + 1).saturating_sub(40));
        assert!(queue.charged_bytes <= queue.limit_bytes);
    }
    lab.relay.cut(1).unwrap();
    lab.relay.release(1).unwrap();
    assert_eq!(lab.receive(40), sent[..40]);
    assert!(lab.seen().is_empty());
    assert!(
        !lab.until(|status| status.queue.charged_bytes == 0)
            .queue
            .alarm
    );
}

#[test]
fn a_deleted_interface_is_a_state() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(1500, |_| ());
    lab.relay.hold().unwrap();
    let held = frame([0xff; 6], [0x88, 0xb5], 99);
    lab.guest.send(&held);
    lab.read(1);
    ip("link del g0");
    lab.until(|status| status.guest == PortState::Gone);
    // A namesake is somebody else's.
    ip("link add g1 type veth peer name g0\nlink set g1 up\nlink set g0 up");
    quiet(&lab);
    assert_eq!(lab.relay.cut(1).unwrap().epoch.frames, 1);
    assert!(lab.seen().is_empty());
    lab.relay.release(1).unwrap();
    assert_eq!(lab.witness.receive(), held);
    lab.send_sentinel();
    lab.until(|status| status.inbound.unwanted_frames > 0);
    ip("link del b0");
    lab.until(|status| status.bridge == PortState::Gone);
    quiet(&lab);
    lab.relay.cut(2).unwrap();
    lab.relay.release(2).unwrap();
}

#[test]
fn released_frames_wait_for_a_bridge_that_is_deleted_without_a_spin() {
    if !possible() {
        return;
    }
    let lab = Lab::new(1500, |_| ());
    lab.relay.hold().unwrap();
    lab.guest.send(&frame([0xff; 6], [0x88, 0xb5], 99));
    lab.read(1);
    lab.relay.cut(1).unwrap();
    ip("link del b0");
    lab.relay.release(1).unwrap();
    let status = lab.until(|status| status.bridge == PortState::Gone);
    assert_eq!(status.queue.ready.frames, 1);
    quiet(&lab);
}

#[test]
fn an_interface_that_was_down_goes_on() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(1500, |_| ());
    lab.relay.hold().unwrap();
    let frames: Vec<_> = (60..70)
        .map(|n| frame([0xff; 6], [0x88, 0xb5], n))
        .collect();
    frames[..5].iter().for_each(|frame| lab.guest.send(frame));
    lab.read(5);
    lab.relay.cut(1).unwrap();
    ip("link set b0 down");
    lab.until(|status| status.bridge == PortState::Down);
    lab.relay.release(1).unwrap();
    assert_eq!(lab.relay.status().unwrap().queue.ready.frames, 5);
    ip("link set g1 down");
    lab.until(|status| status.guest == PortState::Down);
    // In front of the bridge, whose port opens in its own time.
    let port = Wire::open("b1");
    ip("link set b0 up");
    lab.until(|status| status.bridge == PortState::Up);
    for frame in &frames[..5] {
        assert_eq!(port.receive(), *frame);
    }
    ip("link set g1 up");
    lab.until(|status| status.guest == PortState::Up);
    settled();
    lab.seen();
    frames[5..].iter().for_each(|frame| lab.guest.send(frame));
    lab.read(10);
    lab.relay.cut(2).unwrap();
    assert!(lab.seen().is_empty());
    lab.relay.release(2).unwrap();
    assert_eq!(lab.receive(5), frames[5..]);
}

#[test]
fn a_relay_that_ended_passes_nothing() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(1500, |_| ());
    lab.relay.hold().unwrap();
    lab.guest.send(&frame([0xff; 6], [0x88, 0xb5], 99));
    lab.read(1);
    lab.relay.cut(1).unwrap();
    std::mem::replace(
        &mut lab.relay,
        crate::lab::relay(|config| config.held = true),
    )
    .stop();
    assert!(
        lab.seen().is_empty(),
        "a new relay knows nothing of what was held"
    );
    let last = frame([0xff; 6], [0x88, 0xb5], 77);
    lab.guest.send(&last);
    lab.read(1);
    assert!(lab.seen().is_empty(), "and begins held");
    lab.relay.open().unwrap();
    assert_eq!(lab.witness.receive(), last);
}

#[test]
fn an_interface_is_isolated_or_it_is_said_why_not() {
    if !possible() {
        return;
    }
    crate::lab::interfaces(1500);
    ip("addr add 192.0.2.1/24 dev g1");
    let all = leaks("g1").unwrap().join("\n");
    assert!(
        all.contains("answers ARP") && all.contains("IPv4 address"),
        "{all}"
    );
    assert_eq!(isolate("g1").unwrap(), ["g1 has an IPv4 address"]);
    let port = isolate("b1").unwrap();
    assert!(
        port.len() == 1 && port[0].contains("is a port of"),
        "{port:?}"
    );
    assert!(isolate("nobody").is_err());
    let config = netbuf::relay::RelayConfig::new("g1", "nobody");
    let error = netbuf::relay::Relay::start(&config).unwrap_err();
    assert!(matches!(&error, RelayError::Port { interface, .. } if interface == "nobody"));
    assert_eq!(error.to_string(), "Interface nobody cannot be opened");
}

/// The thread sleeps: it does not count turns while nothing happens.
#[track_caller]
fn quiet(lab: &Lab) {
    let before = lab.relay.status().unwrap().turns;
    std::thread::sleep(Duration::from_millis(200));
    let turns = lab.relay.status().unwrap().turns - before;
    assert!(turns < 20, "{turns} turns while nothing happened");
}
