//! Interfaces and a relay between them.

use crate::kinds::frame;
use crate::namespace::{PATIENCE, ip, settled, unshare};
use crate::wire::Wire;
use netbuf::relay::isolate::isolate;
use netbuf::relay::{Relay, RelayConfig, RelayStatus};
use std::time::{Duration, Instant};

const SENTINEL: [u8; 2] = [0x88, 0xb6];

pub(crate) struct Lab {
    pub(crate) relay: Relay,
    pub(crate) guest: Wire,
    pub(crate) witness: Wire,
    sentinel: Wire,
    sentinels: u64,
}

/// The interfaces of the picture, in the calling thread's namespace.
pub(crate) fn interfaces(mtu: u32) {
    unshare();
    let mut lines = String::from("link set lo up\n");
    lines.push_str("link add name br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n");
    for (near, far) in [("g0", "g1"), ("b0", "b1"), ("w1", "w0"), ("s0", "s1")] {
        lines.push_str(&format!(
            "link add {near} mtu {mtu} type veth peer name {far} mtu {mtu}\n"
        ));
    }
    for port in ["b1", "w0", "s1"] {
        lines.push_str(&format!("link set {port} master br0\n"));
    }
    for up in ["br0", "g0", "g1", "b0", "b1", "w0", "w1", "s0", "s1"] {
        lines.push_str(&format!("link set {up} up\n"));
    }
    ip(&lines);
    settled();
}

pub(crate) fn relay(change: impl FnOnce(&mut RelayConfig)) -> Relay {
    for interface in ["g1", "b0"] {
        assert_eq!(isolate(interface).unwrap(), Vec::<String>::new());
    }
    let mut config = RelayConfig::new("g1", "b0");
    config.held = false;
    change(&mut config);
    Relay::start(&config).unwrap()
}

impl Lab {
    pub(crate) fn new(mtu: u32, change: impl FnOnce(&mut RelayConfig)) -> Self {
        interfaces(mtu);
        Self {
            relay: relay(change),
            guest: Wire::open("g0"),
            witness: Wire::open("w1"),
            sentinel: Wire::open("s0"),
            sentinels: 0,
        }
    }

    /// Frames that the witness has got and not been asked for yet.
    pub(crate) fn seen(&mut self) -> Vec<Vec<u8>> {
        let sentinel = self.send_sentinel();
        let mut seen = Vec::new();
        loop {
            let frame = self.witness.receive();
            if frame == sentinel {
                return seen;
            }
            seen.push(frame);
        }
    }

    /// Sends a frame to everybody on the bridge.
    pub(crate) fn send_sentinel(&mut self) -> Vec<u8> {
        self.sentinels += 1;
        let mut frame = frame([0xff; 6], SENTINEL, 60);
        frame[14..22].copy_from_slice(&self.sentinels.to_be_bytes());
        self.sentinel.send(&frame);
        frame
    }

    pub(crate) fn receive(&self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.witness.receive()).collect()
    }

    /// Waits until the relay has read `frames` of the guest: a veth end may hand on later than it is sent to.
    pub(crate) fn read(&self, frames: u64) {
        self.until(|status| status.outbound.received_frames >= frames);
    }

    #[track_caller]
    pub(crate) fn until(&self, done: impl Fn(&RelayStatus) -> bool) -> RelayStatus {
        let begun = Instant::now();
        loop {
            let status = self.relay.status().unwrap();
            if done(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{status:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
