//! What could go wrong: a stream that dies of the epochs, a checksum or a segment size that did not survive the way.
//!
//! Guest and witness are namespaces of their own with real TCP stacks; segments of 64 KiB with checksums still to be
//! made cross the relay, plain and behind a VLAN tag.

use crate::lab::{interfaces, relay};
use crate::namespace::{Room, ip, possible, try_ip};
use netbuf::relay::Relay;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const EPOCH: Duration = Duration::from_millis(25);

struct Hosts {
    relay: Relay,
    guest: Room,
    witness: Room,
}

/// `vlan`: both ends speak through a VLAN interface. None where the kernel has no VLANs.
fn hosts(vlan: bool) -> Option<Hosts> {
    interfaces(1500);
    let (guest, witness) = (Room::new(), Room::new());
    let relay = relay(|_| ());
    ip(&format!(
        "link set g0 netns {}\nlink set w1 netns {}",
        guest.thread, witness.thread
    ));
    for (room, interface, host) in [(&guest, "g0", 1), (&witness, "w1", 2)] {
        let made = room.run(move || {
            let mut lines = format!("link set lo up\nlink set {interface} up\n");
            let mut named = interface;
            if vlan {
                named = "v";
                lines += &format!("link add link {interface} name v type vlan id 42\n");
            }
            lines += &format!("addr add 10.9.0.{host}/24 dev {named}\nlink set {named} up\n");
            try_ip(&lines)
        });
        if !made && vlan {
            eprintln!("skipped: no VLAN interfaces in this kernel");
            return None;
        }
        assert!(made);
    }
    Some(Hosts {
        relay,
        guest,
        witness,
    })
}

fn listen(room: &Room) -> (TcpListener, SocketAddr) {
    room.run(|| {
        let listener = TcpListener::bind("10.9.0.2:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    })
}

fn accept(listener: &TcpListener) -> TcpStream {
    bounded(listener.accept().unwrap().0)
}

fn bounded(stream: TcpStream) -> TcpStream {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Epochs of 25 ms, two in flight, while `work` runs: how many, and the largest mean frame of one.
fn epochs<T>(relay: &Relay, work: JoinHandle<T>) -> (u64, u64, T) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let (mut epoch, mut largest) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                epoch += 1;
                let cut = relay.cut(epoch).unwrap().epoch;
                largest = largest.max(cut.bytes.checked_div(cut.frames).unwrap_or(0));
                if epoch > 2 {
                    relay.release(epoch - 2).unwrap();
                }
                std::thread::sleep(EPOCH);
            }
            (epoch, largest)
        });
        let done = work.join();
        over.store(true, Ordering::Relaxed);
        let (epochs, largest) = driver.join().unwrap();
        (epochs, largest, done.unwrap())
    })
}

#[test]
fn requests_and_responses_live_through_epochs() {
    const ROUNDS: usize = 60;
    if !possible() {
        return;
    }
    let hosts = hosts(false).unwrap();
    hosts.relay.hold().unwrap();
    // The guest answers, as a protected server does.
    let (listener, address) = hosts.guest.run(|| {
        let listener = TcpListener::bind("10.9.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    });
    let server = std::thread::spawn(move || {
        let mut stream = accept(&listener);
        let mut request = [0; 1000];
        for _ in 0..ROUNDS {
            stream.read_exact(&mut request).unwrap();
            stream.write_all(&request).unwrap();
        }
    });
    let witness = hosts.witness;
    let client = std::thread::spawn(move || {
        witness.run(move || {
            let mut stream = bounded(TcpStream::connect(address).unwrap());
            for round in 0..ROUNDS {
                let mut answer = [0; 1000];
                stream.write_all(&[round as u8; 1000]).unwrap();
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [round as u8; 1000]);
            }
        });
    });
    let (epochs, _, ()) = epochs(&hosts.relay, client);
    server.join().unwrap();
    assert!(
        epochs > ROUNDS as u64,
        "every answer waited for an epoch: {epochs}"
    );
}

fn bulk(vlan: bool, megabytes: usize) {
    if !possible() {
        return;
    }
    let Some(hosts) = hosts(vlan) else {
        return;
    };
    let (listener, address) = listen(&hosts.witness);
    let reader = std::thread::spawn(move || {
        let mut stream = accept(&listener);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(b"done").unwrap();
        all
    });
    let pattern = |i: usize| (i / 3 % 251) as u8;
    let guest = hosts.guest;
    let writer = std::thread::spawn(move || {
        guest.run(move || {
            let mut stream = bounded(TcpStream::connect(address).unwrap());
            let all: Vec<u8> = (0..megabytes << 20).map(pattern).collect();
            stream.write_all(&all).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut done = [0; 4];
            stream.read_exact(&mut done).unwrap();
        });
    });
    let (epochs, largest, ()) = epochs(&hosts.relay, writer);
    let all = reader.join().unwrap();
    assert_eq!(all.len(), megabytes << 20);
    assert!(all.iter().enumerate().all(|(i, byte)| *byte == pattern(i)));
    assert!(
        largest > 4000,
        "no segments of several frames: {largest} bytes at most"
    );
    let status = hosts.relay.status().unwrap();
    assert_eq!(
        status.outbound.refused_frames + status.outbound.unreadable_frames,
        0
    );
    println!("{megabytes} MiB in {epochs} epochs, mean frame of an epoch up to {largest} bytes");
}

#[test]
fn a_stream_of_large_segments_arrives_whole() {
    bulk(false, 32);
}

#[test]
fn a_stream_of_large_segments_behind_a_tag_arrives_whole() {
    bulk(true, 16);
}
