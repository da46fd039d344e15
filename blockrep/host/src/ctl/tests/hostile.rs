//! Clients and servers that do what they should not.

use super::*;

/// Any local program may send anything; it gets an error and is closed, others go on.
#[test]
fn packets_that_are_no_frames_are_refused_and_the_client_closed() {
    let rig = Rig::new();
    let mut bystander = rig.client();
    let good = prepare(1).to_packet(1, 2).unwrap();
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        (
            "garbage",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            ErrorCode::BadFrame,
        ),
        ("one byte", vec![0], ErrorCode::BadFrame),
        (
            "header cut short",
            good[..HEADER_BYTES - 1].to_vec(),
            ErrorCode::BadFrame,
        ),
        (
            "body cut short",
            good[..good.len() - 1].to_vec(),
            ErrorCode::BadFrame,
        ),
        ("absurd length", with(15, 0xff), ErrorCode::BadFrame),
        ("unknown kind", with(6, 99), ErrorCode::BadFrame),
        ("an answer", with(6, 2), ErrorCode::BadFrame),
        ("reserved id", with(8, 0), ErrorCode::BadFrame),
        (
            "longer than any packet",
            vec![0; PACKET_BYTES_MAX + 1],
            ErrorCode::BadFrame,
        ),
        (
            "version not agreed",
            with(4, 0),
            ErrorCode::UnsupportedVersion,
        ),
        (
            "version of the future",
            with(4, 9),
            ErrorCode::UnsupportedVersion,
        ),
    ];
    for (name, packet, code) in cases {
        let raw = Raw::greeted(&rig);
        raw.send(&packet);
        let id = if name == "version not agreed" { 2 } else { 0 };
        assert_eq!(raw.error(id), code, "{name}");
        raw.assert_closed();
    }
    assert_eq!(
        bystander
            .prepare(PrepareRequest { epoch: Some(9) })
            .unwrap()
            .epoch,
        9
    );
}

/// A request of a newer tool must be refused with words, and the connection stay usable.
#[test]
fn bodies_that_are_no_requests_are_refused_and_the_client_kept() {
    let rig = Rig::new();
    let raw = Raw::greeted(&rig);
    for body in [
        "",
        "{",
        "[]",
        r#"{"explode":{}}"#,
        r#"{"promote":{"force":true,"when":1}}"#,
    ] {
        raw.send(&encode(1, FrameKind::Request, 5, body.as_bytes()).unwrap());
        assert_eq!(raw.error(5), ErrorCode::BadRequest, "{body}");
    }
    raw.send(&prepare(4).to_packet(1, 6).unwrap());
    assert!(matches!(raw.response(6), Some(Response::Ok(_))));
}

/// A tool of another release is told so instead of being misunderstood.
#[test]
fn handshake_refuses_foreign_versions_and_other_first_requests() {
    let rig = Rig::new();
    let raw = rig.raw();
    raw.send(&hello(2, 9));
    assert_eq!(raw.error(1), ErrorCode::UnsupportedVersion);
    raw.assert_closed();

    for packet in [
        prepare(1).to_packet(1, 1).unwrap(),
        encode(0, FrameKind::Request, 1, br#"{"prepare":{}}"#).unwrap(),
        encode(1, FrameKind::Request, 1, &hello(1, 1)[HEADER_BYTES..]).unwrap(),
        encode(0, FrameKind::Request, 1, b"nonsense").unwrap(),
    ] {
        let raw = rig.raw();
        raw.send(&packet);
        assert_eq!(raw.error(1), ErrorCode::BadRequest);
        raw.assert_closed();
    }

    let raw = rig.raw();
    raw.send(&hello(1, 900));
    assert!(matches!(raw.response(1), Some(Response::Ok(Answer::Hello(a))) if a.version == 1));
    raw.send(&hello(1, 1));
    assert!(raw.response(1).is_some(), "hello twice is as hello once");
}

/// Connections that say nothing must not use up the places of tools.
#[test]
fn half_open_clients_are_closed() {
    let rig = Rig::with(
        Limits {
            hello_ms_max: 200,
            ..Limits::default()
        },
        EVENTS_KEPT,
    );
    // Who has said hello may be silent: a controller between two failovers. On a busy machine
    // even this one may say hello too late; then it tries again.
    let greeted = (0..100).find_map(|_| {
        let raw = rig.raw();
        let sent = send(&raw.0, &hello(1, 1), SendFlags::NOSIGNAL).is_ok();
        (sent && raw.response(1).is_some()).then_some(raw)
    });
    let greeted = greeted.expect("said hello in time");
    rig.raw().assert_closed();
    greeted.send(&prepare(1).to_packet(1, 2).unwrap());
    assert!(greeted.response(2).is_some());
}

/// A script that leaks connections must get words, and places must come back.
#[test]
fn clients_beyond_the_limit_are_told_so() {
    let rig = Rig::with(
        Limits {
            clients_max: 2,
            ..Limits::default()
        },
        EVENTS_KEPT,
    );
    let first = rig.client();
    let _second = rig.client();
    let error = Client::connect(&rig.path(), "third", LONG).unwrap_err();
    let ClientError::Daemon(reply) = &error else {
        panic!("{error}")
    };
    assert_eq!(reply.code, ErrorCode::TooManyClients);
    drop(first);
    // The server sees the end of the first and the new one in either order.
    let again = (0..1000).find_map(|_| {
        std::thread::yield_now();
        Client::connect(&rig.path(), "fourth", LONG).ok()
    });
    assert!(again.is_some(), "the place did not come back");
}

/// A tool with too many requests in flight is not read further, and loses none.
#[test]
fn requests_in_flight_are_bounded_and_none_is_lost() {
    const SENT: u32 = 40;
    let rig = Rig::new();
    let raw = Raw::greeted(&rig);
    for id in 2..2 + SENT {
        raw.send(
            &Request::Cut(CutRequest::default())
                .to_packet(1, id)
                .unwrap(),
        );
    }
    let mut held = Vec::new();
    let mut seen = 0;
    while seen < SENT {
        let (_, _, reply) = rig.kept.recv_timeout(LONG).unwrap();
        seen += 1;
        held.push(reply);
        assert!(held.len() <= conn::IN_FLIGHT_MAX, "{} at once", held.len());
        if held.len() == conn::IN_FLIGHT_MAX || seen == SENT {
            // A turn of the server passes: were it to read on, it would hand out a ninth.
            drop(rig.client());
            assert!(rig.kept.try_recv().is_err());
            for reply in held.drain(..) {
                reply.ok(Answer::Cut(CutAnswer {
                    epoch: 1,
                    committed: false,
                    ..CutAnswer::default()
                }));
            }
        }
    }
    for id in 2..2 + SENT {
        assert!(
            matches!(raw.response(id), Some(Response::Ok(_))),
            "answer {id}"
        );
    }
}

/// A client that asks and does not read must not fill the memory of the daemon, nor lose answers
/// when it reads at last.
#[test]
fn client_that_never_reads_its_answers_is_bounded() {
    let rig = Rig::new();
    let raw = Raw::greeted(&rig);
    let status = Request::Status(StatusRequest {}).to_packet(1, 2).unwrap();
    // Each answer has 100,000 bytes; nobody takes them. The server stops reading, so that sending
    // would block in the end.
    let mut sent = 0;
    while sent < 10_000 && send(&raw.0, &status, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
    {
        sent += 1;
    }
    assert!(sent < 10_000, "the server reads without end");
    assert_eq!(
        rig.client()
            .prepare(PrepareRequest::default())
            .unwrap()
            .epoch,
        1
    );
    for answer in 0..sent {
        assert!(raw.response(2).is_some(), "closed before answer {answer}");
    }
}

/// Something that is no daemon must not hang or confuse the tool.
#[test]
fn client_refuses_servers_that_speak_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let fake = seqpacket();
    bind(&fake, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&fake, 8).unwrap();

    let error = Client::connect(&path, "c", Duration::from_millis(20)).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::TimedOut {
                request: "hello",
                ..
            }
        ),
        "{error}"
    );
    drop(rustix::net::accept(&fake).unwrap());

    let bad_hello = br#"{"ok":{"hello":{"version":7,"daemon":"d","pid":1}}}"#;
    for packet in [
        b"garbage".to_vec(),
        encode(0, FrameKind::Response, 1, b"{}").unwrap(),
        encode(0, FrameKind::Event, 1, b"{}").unwrap(),
        encode(0, FrameKind::Response, 1, bad_hello).unwrap(),
    ] {
        let at = path.clone();
        let tool = std::thread::spawn(move || Client::connect(&at, "c", LONG).map(drop));
        let peer = rustix::net::accept(&fake).unwrap();
        recv(&peer, &mut [0; 512][..], RecvFlags::empty()).unwrap();
        send(&peer, &packet, SendFlags::NOSIGNAL).unwrap();
        let error = tool.join().unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    }
}
