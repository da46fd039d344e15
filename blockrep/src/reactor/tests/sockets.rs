//! Socket operations over Unix pairs and loopback TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::reactor::{SockId, SockOp, tcp_socket};

fn pair(bed: &mut Bed) -> (SockId, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // The reactor has to undo this, or every receive fails with EAGAIN.
    ours.set_nonblocking(true).unwrap();
    (bed.reactor.add_socket(ours.into()).unwrap(), theirs)
}

fn recv(bed: &mut Bed, sock: SockId, range: std::ops::Range<usize>) -> Op {
    let mut buf = bed.reactor.pool().alloc(4096).unwrap();
    buf.fill(0);
    Op::Recv { sock, buf, range }
}

/// A receive that writes outside its range destroys a record that was assembled before it.
#[test]
fn receives_come_short_in_order_and_inside_their_range() {
    let mut bed = Bed::new();
    let (sock, mut peer) = pair(&mut bed);
    let op = recv(&mut bed, sock, 100..200);
    bed.reactor.submit(1, op);
    let op = recv(&mut bed, sock, 0..4096);
    bed.reactor.submit(2, op);
    bed.reactor
        .poll(Some(Duration::ZERO), &mut bed.done)
        .unwrap();
    peer.write_all(&[9; 150]).unwrap();
    let done = bed.wait(2);
    assert_eq!((done[0].token, &done[0].result), (1, &Ok(100)));
    assert_eq!((done[1].token, &done[1].result), (2, &Ok(50)));
    let first = done.into_iter().next().unwrap().buf.into_mut().unwrap();
    assert!(first[..100].iter().chain(&first[200..]).all(|&b| b == 0));
    assert!(first[100..200].iter().all(|&b| b == 9));
    drop(peer);
    let op = recv(&mut bed, sock, 0..1);
    assert_eq!(bed.run(op).result, Ok(0), "the end of the stream");
    for range in [0..0, 4000..4097] {
        let op = recv(&mut bed, sock, range);
        assert!(matches!(bed.run(op).result, Err(OpError::Invalid(_))));
    }
}

/// Two records interleaved on the wire, or one cut short, end a session at best.
#[test]
fn large_vectored_sends_arrive_whole_and_in_order() {
    let mut bed = Bed::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let listener = bed.reactor.add_socket(listener.into()).unwrap();
    let client = bed.reactor.add_socket(tcp_socket(&addr).unwrap()).unwrap();
    bed.reactor.submit(1, Op::Accept { sock: listener });
    bed.reactor.submit(2, Op::Connect { sock: client, addr });
    let mut accepted = None;
    for mut done in bed.wait(2) {
        assert_eq!(done.result, Ok(0), "{}", done.token);
        accepted = accepted.or(done.accepted.take());
    }
    let mut server = TcpStream::from(accepted.expect("accept brings a connection"));
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        server.read_to_end(&mut seen).unwrap();
        seen
    });
    let mut wanted = Vec::new();
    for token in 0..6u8 {
        // A header and 1500 slices, more than one sendmsg takes, of memory that is not adjacent.
        let header = bed.buf(&[token; 100]);
        let mut payload = vec![0; 1 << 20];
        fastrand::Rng::with_seed(token.into()).fill(&mut payload);
        let payload = bed.buf(&payload);
        let mut bufs = vec![header];
        bufs.extend((0..1500).map(|n| payload.slice(n * 601..n * 601 + 600)));
        let skip = if token == 3 { 350 } else { 0 };
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        wanted.extend_from_slice(&all[skip..]);
        bed.reactor.submit(
            token.into(),
            Op::Send {
                sock: client,
                bufs,
                skip,
            },
        );
    }
    for (token, done) in bed.wait(6).into_iter().enumerate() {
        assert_eq!(done.token, token as u64);
        let len = 100 + 1500 * 600 - if token == 3 { 350 } else { 0 };
        assert_eq!(done.result, Ok(len));
        assert_eq!(done.buf.into_many().unwrap().len(), 1501);
    }
    assert!(bed.reactor.remove_socket(client));
    assert!(reader.join().unwrap() == wanted);
}

/// A message after one that was cut short would be read as its middle.
#[test]
fn nothing_follows_a_failed_send() {
    let mut bed = Bed::new();
    let (sock, peer) = pair(&mut bed);
    let big = bed.buf(&vec![1; 1 << 20]);
    for token in 0..3 {
        let bufs = vec![big.clone(); 4];
        bed.reactor.submit(
            token,
            Op::Send {
                sock,
                bufs,
                skip: 0,
            },
        );
    }
    // The peer takes nothing: the first send is stuck in the middle.
    bed.reactor
        .poll(Some(Duration::ZERO), &mut bed.done)
        .unwrap();
    assert!(bed.done.is_empty());
    bed.reactor.submit(9, Op::Cancel { target: 0 });
    for done in bed.wait(4) {
        let wanted = if done.token == 9 {
            Ok(1)
        } else {
            Err(OpError::Cancelled)
        };
        assert_eq!(done.result, wanted, "{}", done.token);
    }
    let bufs = vec![big.slice(..10)];
    assert_eq!(
        bed.run(Op::Send {
            sock,
            bufs,
            skip: 0
        })
        .result,
        Err(OpError::Cancelled)
    );
    drop(peer);

    let (sock, peer) = pair(&mut bed);
    drop(peer);
    let done = bed.run(Op::Send {
        sock,
        bufs: vec![big.clone()],
        skip: 0,
    });
    let broken = OpError::Socket {
        op: SockOp::Send,
        errno: libc::EPIPE,
    };
    assert_eq!(done.result, Err(broken), "and no SIGPIPE");
    for (bufs, skip) in [
        (vec![], 0),
        (vec![big.slice(..10)], 10),
        (vec![big.slice(..10)], 11),
    ] {
        let done = bed.run(Op::Send { sock, bufs, skip });
        assert!(matches!(done.result, Err(OpError::Invalid(_))));
    }
}

/// A session that ends with receives outstanding must give back their buffers and its descriptor.
#[test]
fn removing_a_socket_ends_everything_on_it() {
    let mut bed = Bed::new();
    let (sock, mut peer) = pair(&mut bed);
    for token in 0..3 {
        let op = recv(&mut bed, sock, 0..10);
        bed.reactor.submit(token, op);
    }
    bed.reactor
        .poll(Some(Duration::ZERO), &mut bed.done)
        .unwrap();
    assert!(bed.reactor.socket_fd(sock).is_some());
    assert!(bed.reactor.remove_socket(sock));
    let op = recv(&mut bed, sock, 0..10);
    bed.reactor.submit(3, op);
    for done in bed.wait(4) {
        let wanted = if done.token == 3 {
            OpError::Removed
        } else {
            OpError::Cancelled
        };
        assert_eq!(done.result, Err(wanted), "{}", done.token);
    }
    assert_eq!(bed.reactor.pool().stats().pages_used, 0);
    assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0, "our end is closed");
    assert!(!bed.reactor.remove_socket(sock));
    let (next, _peer) = pair(&mut bed);
    assert_ne!(next, sock);
}

/// A listener that cannot be stopped keeps a demoted host's port.
#[test]
fn accept_can_be_cancelled_and_its_end_frees_the_port() {
    let mut bed = Bed::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let sock = bed.reactor.add_socket(listener.into()).unwrap();
    bed.reactor.submit(1, Op::Accept { sock });
    bed.reactor.submit(2, Op::Cancel { target: 1 });
    for done in bed.wait(2) {
        let wanted = if done.token == 1 {
            Err(OpError::Cancelled)
        } else {
            Ok(1)
        };
        assert_eq!(done.result, wanted);
    }
    assert_eq!(
        bed.run(Op::Cancel { target: 1 }).result,
        Ok(0),
        "nothing under that token any more"
    );
    assert!(bed.reactor.remove_socket(sock));
    let refused = bed.reactor.add_socket(tcp_socket(&addr).unwrap()).unwrap();
    let error = bed
        .run(Op::Connect {
            sock: refused,
            addr,
        })
        .result
        .unwrap_err();
    assert_eq!(
        error,
        OpError::Socket {
            op: SockOp::Connect,
            errno: libc::ECONNREFUSED
        }
    );
}

/// The address of the other family is laid out differently.
#[test]
fn connects_by_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("this host has no IPv6 loopback");
        return;
    };
    let mut bed = Bed::new();
    let addr = listener.local_addr().unwrap();
    let sock = bed.reactor.add_socket(tcp_socket(&addr).unwrap()).unwrap();
    assert_eq!(bed.run(Op::Connect { sock, addr }).result, Ok(0));
    assert!(listener.accept().unwrap().1.is_ipv6());
}

/// A kick that is missed stalls a guest's queue.
#[test]
fn poll_in_completes_when_readable_and_can_be_cancelled() {
    let mut bed = Bed::new();
    let (reader, mut writer) = UnixStream::pair().unwrap();
    bed.reactor.submit(
        1,
        Op::PollIn {
            fd: reader.as_raw_fd(),
        },
    );
    bed.reactor
        .poll(Some(Duration::from_millis(1)), &mut bed.done)
        .unwrap();
    assert!(bed.done.is_empty());
    writer.write_all(&[1]).unwrap();
    let done = bed.wait(1).remove(0);
    assert_eq!(
        done.result.unwrap() & libc::POLLIN as u32,
        libc::POLLIN as u32
    );
    let (quiet, _other) = UnixStream::pair().unwrap();
    bed.reactor.submit(
        2,
        Op::PollIn {
            fd: quiet.as_raw_fd(),
        },
    );
    bed.reactor.submit(3, Op::Cancel { target: 2 });
    let results: Vec<_> = bed
        .wait(2)
        .into_iter()
        .map(|done| (done.token, done.result))
        .collect();
    assert!(
        results.contains(&(2, Err(OpError::Cancelled))),
        "{results:?}"
    );
    let closed = bed.run(Op::PollIn { fd: 1_000_000 });
    assert_eq!(
        closed.result,
        Err(OpError::Socket {
            op: SockOp::PollIn,
            errno: libc::EBADF
        })
    );
}

/// The kernel goes on writing into a receive buffer that was unmapped.
#[test]
fn dropping_a_reactor_ends_its_socket_operations() {
    let mut bed = Bed::new();
    let pool = bed.reactor.pool().clone();
    let (sock, mut peer) = pair(&mut bed);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = bed.reactor.add_socket(listener.into()).unwrap();
    for token in 0..2 {
        let op = recv(&mut bed, sock, 0..4096);
        bed.reactor.submit(token, op);
    }
    let bufs = vec![bed.buf(&vec![1; 1 << 20])];
    bed.reactor.submit(
        2,
        Op::Send {
            sock,
            bufs,
            skip: 0,
        },
    );
    bed.reactor.submit(3, Op::Accept { sock: listener });
    bed.reactor.submit(
        4,
        Op::PollIn {
            fd: peer.as_raw_fd(),
        },
    );
    bed.reactor
        .poll(Some(Duration::ZERO), &mut bed.done)
        .unwrap();
    drop(bed);
    assert_eq!(pool.stats().pages_used, 0);
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
}

/// A daemon that ended in order and still holds its address, or its lock, keeps its successor from
/// starting; one that lets go of the lock before its last operation lets it start too early.
#[test]
fn addresses_and_locks_are_held_as_long_as_the_reactor() {
    let mut bed = Bed::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let sock = bed.reactor.add_socket(listener.into()).unwrap();
    bed.reactor.submit(1, Op::Accept { sock });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let lock = std::fs::File::create(&path).unwrap();
    lock.try_lock().unwrap();
    bed.reactor.keep_open(lock.into());
    bed.reactor
        .poll(Some(Duration::ZERO), &mut bed.done)
        .unwrap();
    let successor = std::fs::File::open(&path).unwrap();
    assert!(successor.try_lock().is_err());
    assert!(TcpListener::bind(addr).is_err());
    drop(bed.reactor);
    successor.try_lock().unwrap();
    TcpListener::bind(addr).unwrap();
}
