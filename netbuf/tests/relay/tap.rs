//! What could go wrong: a CUT that leaves frames of a paused guest to the next epoch, which is then one frame more
//! than its memory and disk know of.
//!
//! With a tap the promise is exact: when the `write` of its owner has returned, the frame is at the relay's socket.

use crate::kinds::frame;
use crate::lab::interfaces;
use crate::namespace::{ip, possible};
use netbuf::relay::isolate::isolate;
use netbuf::relay::{Relay, RelayConfig};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;

fn tap(name: &str) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .ok()?;
    // SAFETY: TUNSETIFF reads one ifreq of plain numbers.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        (libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) == 0).then_some(file)
    }
}

#[test]
fn a_cut_takes_everything_a_paused_guest_has_written() {
    const EPOCHS: u64 = 200;
    const FRAMES: u64 = 500;
    if !possible() {
        return;
    }
    interfaces(1500);
    let Some(mut guest) = tap("t0") else {
        eprintln!("skipped: no /dev/net/tun");
        return;
    };
    ip("link set t0 up");
    assert_eq!(isolate("t0").unwrap(), Vec::<String>::new());
    let relay = Relay::start(&RelayConfig::new("t0", "b0")).unwrap();
    relay.hold().unwrap();
    let frame = frame([0xff; 6], [0x88, 0xb5], 200);
    for epoch in 1..=EPOCHS {
        for _ in 0..FRAMES {
            assert_eq!(guest.write(&frame).unwrap(), frame.len());
        }
        let cut = relay.cut(epoch).unwrap();
        assert!(cut.emptied);
        assert_eq!(cut.epoch.frames, FRAMES, "epoch {epoch}");
        assert_eq!(relay.release(epoch).unwrap().frames, FRAMES);
    }
    let status = relay.status().unwrap();
    assert_eq!(
        status.outbound.socket_drops + status.queue.dropped.frames,
        0
    );
}
