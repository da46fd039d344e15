//! Namespaces, interfaces and a relay between them.

use crate::kinds::frame;
use crate::wire::Wire;
use netbuf::relay::isolate::isolate;
use netbuf::relay::{Relay, RelayConfig, RelayStatus};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const SENTINEL: [u8; 2] = [0x88, 0xb6];

/// False, with a line, where namespaces cannot be made.
pub(crate) fn possible() -> bool {
    // SAFETY: geteuid(2) touches no memory.
    let root = unsafe { libc::geteuid() } == 0;
    let ip = Command::new("ip")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !root || !ip {
        eprintln!("skipped: needs root and ip (Debian package iproute2)");
    }
    root && ip
}

/// Puts the calling thread into a namespace of its own, without IPv6 of its own accord.
pub(crate) fn unshare() {
    // SAFETY: unshare(2) touches no memory.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    for which in ["default", "all"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        // A kernel without IPv6 has no such file.
        let _ = std::fs::write(path, "1");
    }
    // A bridge that asks the packet filter drops IP frames without a sound header.
    for family in ["ip", "ip6", "arp"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        let _ = std::fs::write(path, "0");
    }
}

/// Runs lines of `ip` in the calling thread's namespace.
pub(crate) fn ip(lines: &str) -> bool {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    child.wait().unwrap().success()
}

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
    assert!(ip(&lines));
    settled();
}

/// Waits until every interface has its carrier and every port forwards: the kernel's worker for that is late on a
/// busy host, and until then frames are swallowed.
pub(crate) fn settled() {
    let begun = Instant::now();
    loop {
        let list = ["-d", "-o", "link", "show", "type", "veth"];
        let output = Command::new("ip").args(list).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let ready = |line: &str| {
            let port = line.contains("bridge_slave");
            line.contains(" state UP ") && (!port || line.contains("bridge_slave state forwarding"))
        };
        if text.lines().all(ready) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{text}");
        std::thread::sleep(Duration::from_millis(1));
    }
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
            assert!(begun.elapsed() < Duration::from_secs(20), "{status:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread with a namespace of its own.
pub(crate) struct Room {
    pub(crate) thread: i32,
    jobs: Sender<Job>,
}

impl Room {
    pub(crate) fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            unshare();
            // SAFETY: gettid(2) touches no memory.
            tell.send(unsafe { libc::gettid() }).unwrap();
            for job in inbox {
                job();
            }
        });
        let thread = told.recv().unwrap();
        Self { thread, jobs }
    }

    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job: Job = Box::new(move || tell.send(job()).unwrap());
        self.jobs.send(job).unwrap();
        told.recv().unwrap()
    }
}
