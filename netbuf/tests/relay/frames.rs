//! What could go wrong: a kind of frame that slips by, a frame that goes early, twice, never or out of order.

use crate::kinds::{frame, kinds};
use crate::lab::{Lab, interfaces, relay};
use crate::namespace::possible;
use netbuf::relay::batch::{Received, Sender};
use netbuf::relay::port::{End, Port, VNET_BYTES};

#[test]
fn every_kind_of_frame_waits_for_its_epoch() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(9000, |_| ());
    let kinds = kinds();
    for (_, frame) in &kinds {
        lab.guest.send(frame);
    }
    for (name, frame) in &kinds {
        assert_eq!(lab.witness.receive(), *frame, "{name}: open passes");
    }
    lab.relay.hold().unwrap();
    let mut sent = kinds.len() as u64;
    for epoch in 1..=3 {
        for (_, frame) in &kinds {
            lab.guest.send(frame);
        }
        sent += kinds.len() as u64;
        lab.read(sent);
        let cut = lab.relay.cut(epoch).unwrap();
        assert!(cut.emptied);
        assert_eq!(cut.epoch.frames, kinds.len() as u64);
        assert!(lab.seen().is_empty(), "held");
    }
    lab.guest.send(&frame([0xff; 6], [0x88, 0xb5], 61));
    lab.read(sent + 1);
    for epoch in [1, 2, 3] {
        let released = lab.relay.release(epoch).unwrap();
        assert_eq!(released.frames, kinds.len() as u64);
        for (name, frame) in &kinds {
            assert_eq!(lab.witness.receive(), *frame, "{name}: released");
        }
        assert!(lab.seen().is_empty(), "exactly the frames of epoch {epoch}");
    }
    assert!(lab.relay.release(4).is_err());
    assert!(lab.seen().is_empty());
    lab.relay.open().unwrap();
    assert_eq!(lab.witness.receive().len(), 61);
    let status = lab.relay.status().unwrap();
    assert_eq!(
        status.queue.dropped.frames + status.outbound.refused_frames,
        0
    );
    assert_eq!(
        status.outbound.unreadable_frames + status.outbound.socket_drops,
        0
    );
}

#[test]
fn what_comes_in_is_never_held() {
    if !possible() {
        return;
    }
    let mut lab = Lab::new(9000, |_| ());
    lab.relay.hold().unwrap();
    for epoch in 1..=100 {
        lab.guest.send(&frame([0xff; 6], [0x88, 0xb5], 60));
        lab.relay.cut(epoch).unwrap();
        let sentinel = lab.send_sentinel();
        assert_eq!(lab.guest.receive(), sentinel);
        assert_eq!(lab.witness.receive(), sentinel);
    }
    // From the witness to the guest, of every kind.
    for (name, frame) in kinds() {
        lab.witness.send(&frame);
        assert_eq!(lab.guest.receive(), frame, "{name}");
    }
    assert!(lab.seen().is_empty());
}

/// 50 frames an epoch of 14 to 1500 bytes, four epochs in flight, 16 MiB at most.
#[test]
fn a_hundred_thousand_frames_of_two_thousand_epochs() {
    const EPOCHS: u64 = 2000;
    const FRAMES: u64 = 50;
    const IN_FLIGHT: u64 = 4;
    if !possible() {
        return;
    }
    let mut lab = Lab::new(1500, |config| config.held_bytes_max = 16 << 20);
    lab.relay.hold().unwrap();
    let mut lengths = fastrand::Rng::with_seed(7);
    let mut next_sent = 0u64;
    let mut next_seen = 0u64;
    for epoch in 1..=EPOCHS + IN_FLIGHT {
        if epoch <= EPOCHS {
            for _ in 0..FRAMES {
                let mut frame = frame([0xff; 6], [0x88, 0xb5], lengths.usize(30..1515));
                frame[14..22].copy_from_slice(&next_sent.to_be_bytes());
                frame[22..30].copy_from_slice(&epoch.to_be_bytes());
                lab.guest.send(&frame);
                next_sent += 1;
            }
            lab.read(next_sent);
        }
        assert!(lab.relay.cut(epoch).unwrap().emptied);
        if epoch % 50 == 0 {
            assert!(lab.seen().is_empty(), "nothing before its release");
        }
        let Some(release) = epoch.checked_sub(IN_FLIGHT).filter(|n| *n > 0) else {
            continue;
        };
        lab.relay.release(release).unwrap();
        for frame in lab.receive(FRAMES as usize) {
            let number = |at: usize| u64::from_be_bytes(frame[at..at + 8].try_into().unwrap());
            assert_eq!((number(14), number(22)), (next_seen, release));
            next_seen += 1;
        }
    }
    assert_eq!((next_sent, next_seen), (EPOCHS * FRAMES, EPOCHS * FRAMES));
    assert!(lab.seen().is_empty());
    let status = lab.relay.status().unwrap();
    assert_eq!(status.queue.dropped.frames, 0);
    assert_eq!(status.outbound.sent_frames, next_sent);
}

/// A TCP segment of 9000 bytes behind a VLAN tag, its checksum still to be made, to be cut at 1448 bytes: the
/// kernel takes the tag out on each receipt, and what the header says of places must move both ways.
#[test]
#[expect(
    clippy::host_endian_bytes,
    reason = "a virtio_net_hdr of a packet socket"
)]
fn a_tagged_segment_keeps_its_offloads() {
    if !possible() {
        return;
    }
    interfaces(1500);
    let relay = relay(|_| ());
    let mut record = vec![1u8, 1]; // NEEDS_CSUM, TCPv4
    for field in [58u16, 1448, 38, 16] {
        record.extend(field.to_ne_bytes());
    }
    record.extend([
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0x20, 0x2a, 8, 0,
    ]);
    let total = 20 + 20 + 9000u16;
    record.extend([0x45, 0]);
    record.extend(total.to_be_bytes());
    record.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    record.extend([
        0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    record.extend((0..9000u32).map(|i| (i * 7) as u8));
    let mut guest = Port::open("g0", 8 << 20).unwrap();
    let mut witness = Port::open("w1", 8 << 20).unwrap();
    relay.hold().unwrap();
    let (sent, end) = Sender::new().send(&mut guest, [record.as_slice()].into_iter());
    assert_eq!((sent, end), (1, End::More));
    while relay.status().unwrap().outbound.received_frames == 0 {
        std::thread::yield_now();
    }
    relay.cut(1).unwrap();
    let mut received = Received::new();
    assert_eq!(received.receive(&mut witness), End::Again, "held");
    relay.release(1).unwrap();
    let mut tries = 0;
    while received.is_empty() {
        received.receive(&mut witness);
        std::thread::sleep(std::time::Duration::from_millis(1));
        tries += 1;
        assert!(tries < 20_000, "nothing came");
    }
    let got = received.frames(0).next().unwrap();
    let mut same = record.clone();
    // How much of a frame lies in one piece is the kernel's own business.
    same[2..4].copy_from_slice(&got[2..4]);
    assert_eq!(got[..VNET_BYTES + 58], same[..VNET_BYTES + 58]);
    assert!(got == same, "the rest of the segment");
}
