//! What listens on the socket may be anything: a checkpointer that hangs on it holds the guest's output for good.

use checkpointer::hypervisor::qemu::{Error, Event, LINE_BYTES_MAX, Qmp};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, \"package\": \
                        \"\"}, \"capabilities\": []}}\r\n";
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

struct Peer {
    path: PathBuf,
    thread: JoinHandle<()>,
    _dir: TempDir,
}

/// Listens once, and does as told.
fn peer(act: impl FnOnce(UnixStream) + Send + 'static) -> Peer {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).expect("a socket");
    let thread = std::thread::spawn(move || act(listener.accept().expect("a caller").0));
    Peer {
        path,
        thread,
        _dir: dir,
    }
}

/// Greets, answers the first command, then does as told.
fn greeted(act: impl FnOnce(UnixStream) + Send + 'static) -> Peer {
    peer(move |mut stream| {
        stream.write_all(GREETING.as_bytes()).expect("greeted");
        read_line(&mut stream);
        stream
            .write_all(b"{\"return\": {}, \"id\": 1}\r\n")
            .expect("answered");
        act(stream);
    })
}

fn read_line(stream: &mut UnixStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {}
}

fn connect(peer: &Peer) -> Qmp {
    Qmp::connect(&peer.path, LONG).expect("greeted")
}

fn connect_fails(peer: Peer, limit: Duration) -> String {
    let told = Qmp::connect(&peer.path, limit)
        .expect_err("no QEMU")
        .to_string();
    peer.thread.join().expect("a peer");
    told
}

#[test]
fn nobody_listens() {
    let told = Qmp::connect("/nowhere/qmp".as_ref(), SHORT).expect_err("nobody");
    assert!(told.to_string().contains("/nowhere/qmp"), "{told}");
}

#[test]
fn garbage_silence_and_an_early_end() {
    let told = connect_fails(
        peer(|mut s| s.write_all(b"SSH-2.0-Open\n").expect("said")),
        LONG,
    );
    assert!(told.contains("SSH-2.0"), "{told}");
    // It waits for our end.
    let told = connect_fails(peer(|mut s| drop(s.read(&mut [0]))), SHORT);
    assert!(told.contains("300 ms"), "{told}");
    let told = connect_fails(peer(drop), LONG);
    assert!(told.contains("gone"), "{told}");
    let half = &GREETING.as_bytes()[..40];
    let told = connect_fails(peer(move |mut s| s.write_all(half).expect("said")), LONG);
    assert!(told.contains("gone"), "{told}");
}

#[test]
fn an_endless_line_ends() {
    let told = connect_fails(
        peer(|mut stream| {
            let part = vec![b' '; 1 << 20];
            // Until nobody reads any more.
            let mut sent = 0;
            while sent < 4 * LINE_BYTES_MAX && stream.write_all(&part).is_ok() {
                sent += part.len();
            }
            assert!(sent < 2 * LINE_BYTES_MAX, "it took {sent} bytes");
        }),
        LONG,
    );
    assert!(told.contains("longer than"), "{told}");
}

#[test]
fn a_late_answer_is_nobodys() {
    let peer = greeted(|mut stream| {
        read_line(&mut stream);
        read_line(&mut stream);
        let late = b"{\"return\": \"late\", \"id\": 2}\r\n{\"event\": \"STOP\", \"data\": {}}\r\n";
        stream.write_all(late).expect("said");
        stream
            .write_all(b"{\"return\": \"right\", \"id\": 3}\r\n")
            .expect("said");
        read_line(&mut stream);
        stream.write_all(b"{\"retur").expect("said");
    });
    let mut qmp = connect(&peer);
    let late = qmp.run("stop", None, SHORT).expect_err("no answer");
    assert!(matches!(late, Error::Late { what: "stop", .. }), "{late}");
    assert_eq!(
        qmp.run("query-status", None, LONG).expect("an answer"),
        "right"
    );
    assert_eq!(qmp.event(Duration::ZERO).expect("alive"), Some(Event::Stop));
    let told = qmp.run("cont", None, LONG).expect_err("half an answer");
    assert!(matches!(told, Error::Gone(_)), "{told}");
    peer.thread.join().expect("a peer");
}

#[test]
fn an_answer_to_nothing_is_nonsense() {
    for line in [
        "{\"return\": {}}\r\n",
        "{\"id\": 2}\r\n",
        "[]\r\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n",
        "\r\n",
    ] {
        let peer = greeted(move |mut stream| {
            read_line(&mut stream);
            stream.write_all(line.as_bytes()).expect("said");
            drop(stream.read(&mut [0]));
        });
        let mut qmp = connect(&peer);
        let told = qmp.run("stop", None, LONG).expect_err("nonsense");
        assert!(matches!(told, Error::Nonsense(_)), "{line:?}: {told}");
        // For good.
        let again = qmp.run("cont", None, LONG).expect_err("nonsense");
        assert_eq!(again.to_string(), told.to_string());
        drop(qmp);
        peer.thread.join().expect("a peer");
    }
}

#[test]
fn a_flood_of_events_is_bounded() {
    let peer = greeted(|mut stream| {
        let off = "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n";
        stream.write_all(off.as_bytes()).expect("said");
        for _ in 0..5000 {
            stream
                .write_all(b"{\"event\": \"RTC_CHANGE\"}\r\n")
                .expect("said");
        }
        read_line(&mut stream);
        stream
            .write_all(b"{\"return\": {}, \"id\": 2}\r\n")
            .expect("said");
    });
    let mut qmp = connect(&peer);
    qmp.run("query-status", None, LONG).expect("an answer");
    let first = qmp.event(Duration::ZERO).expect("alive");
    assert!(
        matches!(first, Some(Event::Shutdown { guest: true, .. })),
        "{first:?}"
    );
    let mut more = 0;
    while let Ok(Some(_)) = qmp.event(LONG) {
        more += 1;
    }
    assert!(more < 1024, "{more} events were kept");
    peer.thread.join().expect("a peer");
}

/// A peer that reads nothing: commands fill its socket, and no more.
#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let peer = greeted(move |stream| {
        let _ = ended.recv();
        drop(stream);
    });
    let mut qmp = connect(&peer);
    let long = serde_json::json!({"text": "x".repeat(1 << 20)});
    let told = loop {
        match qmp.begin("query-status", Some(long.clone()), None) {
            Ok(ticket) => drop(ticket),
            Err(told) => break told,
        }
    };
    assert!(matches!(told, Error::Late { .. }), "{told}");
    assert!(matches!(qmp.run("cont", None, SHORT), Err(Error::Gone(_))));
    drop(end);
    peer.thread.join().expect("a peer");
}

#[test]
fn what_is_sent_ahead_makes_whole_commands() {
    let peer = greeted(|stream| {
        let mut answers = stream.try_clone().expect("another");
        let mut lines = BufReader::new(stream).lines();
        for number in 2..6 {
            let line = lines.next().expect("a command").expect("read");
            let command: serde_json::Value = serde_json::from_str(&line).expect(&line);
            assert_eq!(command["id"], number, "{line}");
            assert_eq!(command["execute"], "query-status", "{line}");
            assert_eq!(command.get("arguments").is_some(), number == 4, "{line}");
            let answer = format!("{{\"return\": {number}, \"id\": {number}}}\r\n");
            answers.write_all(answer.as_bytes()).expect("answered");
        }
    });
    let mut qmp = connect(&peer);
    for number in 2..6 {
        let arguments = (number == 4).then(|| serde_json::json!({"a": 1}));
        let answer = qmp.run("query-status", arguments, LONG).expect("answered");
        assert_eq!(answer, number);
    }
    drop(qmp);
    peer.thread.join().expect("a peer");
}
