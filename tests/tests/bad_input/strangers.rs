//! Whoever else finds the link's port: wrong versions and groups, noise, silence, absurd lengths.

use super::{LIMIT, small};
use blkback_proto::ids::{Epoch, GroupUuid, LineageId, SessionId, VolumeUuid};
use blkback_proto::link::{
    FRAME_BYTES, FRAME_MAGIC, Frame, Hello, LINK_VERSION_MAX, RefuseCode, peek_body_bytes,
};
use blkback_proto::record::{FORMAT_VERSION, RECORD_BYTES_MAX, RECORD_MAGIC, peek_total_bytes};
use blockrep_tests::harness::{Pair, binary, free_port};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn connect(pair: &Pair) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", pair.port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: LINK_VERSION_MAX,
        session: SessionId(77),
        group: GroupUuid([7; 16]),
        name: "forged".to_owned(),
        volume: VolumeUuid([8; 16]),
        volume_index: 0,
        volume_count: 1,
        assume_identical: false,
        size_bytes: 8 << 20,
        epoch: Epoch(5),
        lineage: vec![(LineageId([9; 16]), Epoch(1))],
    }
}

fn frame(hello: Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    let session = hello.session;
    Frame::Hello(Box::new(hello)).encode(session, &mut bytes);
    bytes
}

/// What the backup answers to bytes: its refusal, or `None` when it just hangs up.
fn answer(pair: &Pair, bytes: &[u8]) -> Option<(RefuseCode, String)> {
    let mut stream = connect(pair);
    // The backup may have hung up before the last byte: its answer counts.
    let _ = stream.write_all(bytes);
    let mut head = vec![0; FRAME_BYTES];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) => {
            let hung_up = [
                std::io::ErrorKind::UnexpectedEof,
                std::io::ErrorKind::ConnectionReset,
            ];
            assert!(hung_up.contains(&error.kind()), "no answer: {error}");
            return None;
        }
    }
    let body = peek_body_bytes(&head).unwrap();
    head.resize(FRAME_BYTES + body, 0);
    stream.read_exact(&mut head[FRAME_BYTES..]).unwrap();
    match Frame::decode(&head).unwrap().0 {
        Frame::Refuse { code, text } => {
            super::is_for_people(&text);
            Some((code, text))
        }
        other => panic!("the backup answered {other:?}"),
    }
}

/// Two releases that do not fit must say so in words both understand.
#[test]
fn another_version_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let hello = Hello {
        version_min: 99,
        version_max: 120,
        ..hello()
    };
    let (code, text) = answer(&pair, &frame(hello)).unwrap();
    assert_eq!(code, RefuseCode::Version);
    for word in ["versions 1 to 1", "99 to 120", "install the same release"] {
        assert!(text.contains(word), "{text}");
    }
    let (code, text) = answer(&pair, &frame(with_size(4 << 20))).unwrap();
    assert_eq!(code, RefuseCode::Size, "{text}");
}

fn with_size(size_bytes: u64) -> Hello {
    Hello {
        size_bytes,
        ..hello()
    }
}

/// A disk of another machine, or of another history of this one, would overwrite the copy.
#[test]
fn another_group_and_another_history_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let _backup = pair.start_backup().unwrap();
    let mut primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    let (code, text) = answer(&pair, &frame(hello())).unwrap();
    assert_eq!(code, RefuseCode::Busy, "{text}");
    let status = pair.status("b").unwrap();
    let id = |text: &serde_json::Value| text.as_str().unwrap().to_owned();
    let (group, volume) = (
        id(&status["group"]["uuid"]),
        id(&status["volumes"][0]["uuid"]),
    );
    primary.kill();
    pair.wait_state("b", "waiting-for-primary", LIMIT).unwrap();

    let (code, text) = answer(&pair, &frame(hello())).unwrap();
    assert_eq!(code, RefuseCode::Identity, "{text}");
    assert!(text.contains(&group), "{text}");
    let ours = Hello {
        group: group.parse().unwrap(),
        volume: volume.parse().unwrap(),
        ..hello()
    };
    let (code, text) = answer(&pair, &frame(ours.clone())).unwrap();
    assert_eq!(code, RefuseCode::Lineage, "{text}");
    assert!(text.contains("nothing is overwritten"), "{text}");
    let none = Hello {
        lineage: Vec::new(),
        ..ours.clone()
    };
    // Not even a hello, or one that is refused: never a session.
    if let Some((code, text)) = answer(&pair, &frame(none)) {
        assert_eq!(code, RefuseCode::Protocol, "{text}");
    }
    let misplaced = Hello {
        volume_index: 1,
        volume_count: 2,
        ..ours
    };
    let (code, text) = answer(&pair, &frame(misplaced)).unwrap();
    assert_eq!(code, RefuseCode::Identity, "{text}");
    let _primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
}

/// A port scanner, a browser, a broken peer: cut off at once, and the real primary gets in.
#[test]
fn noise_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let long_frame = |bytes: u32| {
        let mut head = vec![0; FRAME_BYTES];
        head[..8].copy_from_slice(&FRAME_MAGIC);
        head[8] = 1;
        head[12..16].copy_from_slice(&bytes.to_le_bytes());
        head
    };
    let mut record = vec![0xff; 8192];
    record[..8].copy_from_slice(&RECORD_MAGIC);
    let mut flipped = frame(hello());
    flipped[FRAME_BYTES + 9] ^= 1;
    let mut ping = Vec::new();
    Frame::Ping(1).encode(SessionId(77), &mut ping);
    let noise: [(&str, Vec<u8>); 8] = [
        (
            "a browser",
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[b' '; 64]].concat(),
        ),
        (
            "random bytes",
            (0..4096u32).map(|i| ((i * 37) >> 3) as u8).collect(),
        ),
        ("the longest length", long_frame(u32::MAX)),
        ("a length one too long", long_frame(4097)),
        ("an absurd record", record),
        ("a large record", large_record()),
        ("a flipped bit", flipped),
        ("no hello", ping),
    ];
    for (what, bytes) in noise {
        assert!(answer(&pair, &bytes).is_none(), "{what} was answered");
        assert!(backup.is_running(), "{what}: {}", backup.text());
    }
    // Half a hello, and then nobody.
    drop(connect(&pair).write_all(&frame(hello())[..100]));
    let _primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    assert!(!backup.text().contains("panicked"), "{}", backup.text());
    backup.kill();
}

/// The prefix of a record of the largest length, from somebody who never said hello.
fn large_record() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(&RECORD_MAGIC);
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let total = u32::try_from(RECORD_BYTES_MAX).unwrap();
    bytes[16..20].copy_from_slice(&total.to_le_bytes());
    assert_eq!(peek_total_bytes(&bytes), Ok(RECORD_BYTES_MAX));
    bytes
}

/// Connections that say nothing take every place: the real primary must get in all the same.
#[test]
fn silence_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let mut backup = pair.start_backup().unwrap();
    let silent: Vec<TcpStream> = (0..40).map(|_| connect(&pair)).collect();
    let half: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = connect(&pair);
            let _ = stream.write_all(&frame(hello())[..70]);
            stream
        })
        .collect();
    let primary = pair.start_primary().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
    // Its first connection was taken: no try was given up before.
    let events = pair.ctl("a", &["events"]).unwrap();
    let events = String::from_utf8_lossy(&events.stdout).into_owned();
    assert!(!events.contains("still standalone"), "{events}");
    assert!(backup.is_running(), "{}", backup.text());
    drop((silent, half, primary));
}

/// What a listener does to a connection; gives it where it stays open.
type Manner = fn(TcpStream) -> Option<TcpStream>;

/// Another test that looks for a free port may have this one for a moment.
fn bind(port: u16) -> TcpListener {
    let deadline = Instant::now() + LIMIT;
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "port {port}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A listener that does to every connection what `with` says, until the test ends.
fn listen(pair: &Pair, with: Manner) -> impl Drop {
    struct Listener(Arc<AtomicBool>, Option<JoinHandle<()>>);
    impl Drop for Listener {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            let _ = self.1.take().unwrap().join();
        }
    }
    let listener = bind(pair.port);
    listener.set_nonblocking(true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let mut held = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => held.extend(with(stream)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    Listener(stop, Some(thread))
}

/// An address with a wrong port was told as "Connection reset by peer", or not at all: whoever
/// typed it looked for the fault in the network.
#[test]
fn a_listener_that_is_no_backup_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    let pair = small(dir.path());
    let address = format!(
        "127.0.0.1:{} answers but is not a blockrep backup: ",
        pair.port
    );
    let check = "check that this is the --listen address of a blockrep-backup";
    let _primary = pair.start_primary().unwrap();
    let cases: [(Manner, &str); 4] = [
        (
            // Unread bytes make the kernel reset it; a listener that is quicker only closes.
            |stream| {
                let _ = stream.peek(&mut [0]);
                None
            },
            "it reset the connection before any hello",
        ),
        (
            |mut stream| {
                let _ = stream.set_read_timeout(Some(LIMIT));
                let _ = stream.read_exact(&mut [0; FRAME_BYTES]);
                let _ = stream.shutdown(Shutdown::Write);
                Some(stream)
            },
            "it closed the connection before any hello",
        ),
        (Some, "it said nothing for 3 s"),
        (
            |mut stream| {
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
                Some(stream)
            },
            "it sent 21 bytes that are no answer to a hello, and no more for 3 s",
        ),
    ];
    for (with, what) in cases {
        let _listener = listen(&pair, with);
        let status = super::wait_reason(&pair, "a", &[&address, what, check]);
        assert_eq!(status["group"]["state"], "standalone", "{status}");
        let link = status["link"]["reason"].as_str().unwrap();
        assert!(link.contains("is not a blockrep backup"), "{link}");
        // Nobody has answered: no session has begun, and nothing was granted.
        for absent in ["session", "credit_bytes"] {
            assert!(status["link"][absent].is_null(), "{status}");
        }
    }
    let _backup = pair.start_backup().unwrap();
    pair.wait_state("a", "protected", LIMIT).unwrap();
}

/// A backup's disk spec with its NBD address: "client sent unknown flags 0x42524652", twice a second,
/// and no word of who it was.
#[test]
fn a_primary_at_the_nbd_address_is_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = small(dir.path());
    let (nbd_port, link_port) = (pair.port, free_port().unwrap());
    pair.port = link_port;
    let nbd = format!("tcp:127.0.0.1:{nbd_port}");
    let mut command = Command::new(binary("blockrep-backup").unwrap());
    command.args(["--listen", &format!("127.0.0.1:{link_port}"), "--nbd", &nbd]);
    command.args(["--group", "g", "--journal-size", "32MiB"]);
    for (flag, file) in [
        ("--image", "b.img"),
        ("--state", "b.state"),
        ("--control", "b.ctl"),
    ] {
        command.arg(flag).arg(pair.path(file));
    }
    let mut backup = pair.launch("b", &mut command).unwrap();
    pair.port = nbd_port;
    let _primary = pair.start_primary().unwrap();
    let words = [
        "a primary at 127.0.0.1:",
        "it calls at the NBD address: give it the --listen",
    ];
    super::wait_reason(&pair, "b", &words);
    std::thread::sleep(Duration::from_secs(2));
    let text = backup.text();
    assert_eq!(
        text.matches("calls at the NBD address").count(),
        1,
        "{text}"
    );
    assert!(!text.contains("unknown flags"), "{text}");
    backup.kill();
}
