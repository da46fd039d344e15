//! Frames per second through the relay and through the bridge alone. Figures, not a bar:
//! `cargo test -p netbuf --test relay speed -- --ignored --nocapture`.

use crate::kinds::frame;
use crate::lab::{interfaces, relay};
use crate::namespace::{ip, possible, settled};
use crate::wire::Wire;
use std::time::{Duration, Instant};

const RUN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum Way {
    Bridge,
    Open,
    Held,
}

fn received() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table
        .lines()
        .find(|line| line.trim_start().starts_with("w1:"))
        .unwrap();
    let (_, numbers) = line.split_once(':').unwrap();
    numbers.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The witness's stack takes its frames in at the top of the bridge; nobody reads them.
fn measure(way: Way, bytes: usize) {
    interfaces(1500);
    let relay = match way {
        Way::Bridge => {
            ip("link set g1 master br0");
            settled();
            None
        }
        Way::Open | Way::Held => Some(relay(|_| ())),
    };
    let guest = Wire::open("g0");
    let frame = frame([2, 0, 0, 0, 0, 2], [0x88, 0xb5], bytes);
    let (begun, before) = (Instant::now(), received());
    let mut epoch = 0;
    let mut next = begun;
    while begun.elapsed() < RUN {
        for _ in 0..8 {
            guest.flood(&frame, 64);
        }
        if let (Way::Held, Some(relay), true) = (way, &relay, Instant::now() >= next) {
            epoch += 1;
            relay.cut(epoch).unwrap();
            if epoch > 1 {
                relay.release(epoch - 1).unwrap();
            }
            next += Duration::from_millis(25);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let frames = (received() - before) as f64 / seconds;
    let gigabits = frames * bytes as f64 * 8.0 / 1e9;
    println!("{way:?} {bytes} bytes: {frames:.0} frames/s, {gigabits:.2} Gbit/s");
    if let Some(relay) = relay {
        let status = relay.status().unwrap();
        println!(
            "  socket drops {}, queue drops {}",
            status.outbound.socket_drops, status.queue.dropped.frames
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    if !possible() {
        return;
    }
    for bytes in [64, 1500] {
        for way in [Way::Bridge, Way::Open, Way::Held] {
            measure(way, bytes);
        }
    }
}
