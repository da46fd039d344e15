//! Golden bytes, round trips, truncation and flips of the control protocol.

use proptest::prelude::*;

use super::*;

const DOCUMENT: &str = include_str!("../../PROTOCOL.md");

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn sample_event() -> Event {
    Event {
        seq: 7,
        unix_ms: 1_700_000_000_123,
        group: "vm1".into(),
        kind: EventKind::GroupState,
        old_state: Some("protected".into()),
        new_state: Some("degraded".into()),
        reason: "backup silent for 3 s".into(),
        next: "differences are noted; resync when it is back".into(),
        detail: [("epoch".to_owned(), "41".to_owned())].into(),
    }
}

fn sample_region() -> PageRegion {
    PageRegion {
        guest_address: 0,
        size_bytes: 256 << 20,
        file_offset: 0,
        file_device: 1,
        file_inode: 4711,
    }
}

fn golden_packets() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let hello = Request::Hello(HelloRequest {
        client: "blockrepctl 0.1.0".into(),
        min: 1,
        max: 1,
    });
    let answer = |answer| {
        response_packets(1, 4, &Response::Ok(answer))
            .unwrap()
            .remove(0)
    };
    vec![
        (
            "hello",
            hello.to_packet(1, 1).unwrap(),
            "42 52 43 54 00 00 01 00 01 00 00 00 38 00 00 00",
            r#"{"hello":{"client":"blockrepctl 0.1.0","min":1,"max":1}}"#,
        ),
        (
            "hello answer",
            response_packets(
                HANDSHAKE_VERSION,
                1,
                &Response::Ok(Answer::Hello(HelloAnswer {
                    version: 1,
                    daemon: "blockrep 0.1.0".into(),
                    pid: 4711,
                })),
            )
            .unwrap()
            .remove(0),
            "42 52 43 54 00 00 02 00 01 00 00 00 43 00 00 00",
            r#"{"ok":{"hello":{"version":1,"daemon":"blockrep 0.1.0","pid":4711}}}"#,
        ),
        (
            "status",
            Request::Status(StatusRequest {}).to_packet(1, 2).unwrap(),
            "42 52 43 54 01 00 01 00 02 00 00 00 0d 00 00 00",
            r#"{"status":{}}"#,
        ),
        (
            "events",
            Request::Events(EventsRequest {
                from_seq: 7,
                follow: true,
            })
            .to_packet(1, 3)
            .unwrap(),
            "42 52 43 54 01 00 01 00 03 00 00 00 27 00 00 00",
            r#"{"events":{"from_seq":7,"follow":true}}"#,
        ),
        (
            "event",
            EventBody::Event(sample_event()).to_packet(1, 3).unwrap(),
            "42 52 43 54 01 00 03 00 03 00 00 00 ed 00 00 00",
            r#"{"event":{"seq":7,"unix_ms":1700000000123,"group":"vm1","kind":"group-state","old_state":"protected","new_state":"degraded","reason":"backup silent for 3 s","next":"differences are noted; resync when it is back","detail":{"epoch":"41"}}}"#,
        ),
        (
            "lost",
            EventBody::Lost(Lost {
                count: 3,
                next_seq: 11,
            })
            .to_packet(1, 3)
            .unwrap(),
            "42 52 43 54 01 00 03 00 03 00 00 00 22 00 00 00",
            r#"{"lost":{"count":3,"next_seq":11}}"#,
        ),
        (
            "prepare",
            Request::Prepare(PrepareRequest { epoch: Some(42) })
                .to_packet(1, 4)
                .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 18 00 00 00",
            r#"{"prepare":{"epoch":42}}"#,
        ),
        (
            "prepare answer",
            answer(Answer::Prepare(PrepareAnswer { epoch: 42 })),
            "42 52 43 54 01 00 02 00 04 00 00 00 1f 00 00 00",
            r#"{"ok":{"prepare":{"epoch":42}}}"#,
        ),
        (
            "cut",
            Request::Cut(CutRequest {
                epoch: None,
                wait_durable: true,
                timeout_ms: 1000,
                ..CutRequest::default()
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 2f 00 00 00",
            r#"{"cut":{"wait_durable":true,"timeout_ms":1000}}"#,
        ),
        (
            "cut answer",
            answer(Answer::Cut(CutAnswer {
                epoch: 42,
                committed: true,
                ..CutAnswer::default()
            })),
            "42 52 43 54 01 00 02 00 04 00 00 00 2c 00 00 00",
            r#"{"ok":{"cut":{"epoch":42,"committed":true}}}"#,
        ),
        (
            "promote",
            Request::Promote(PromoteRequest {
                force: false,
                accept_suspect: false,
                reason: "host a is down".into(),
                ..PromoteRequest::default()
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 4c 00 00 00",
            r#"{"promote":{"force":false,"accept_suspect":false,"reason":"host a is down"}}"#,
        ),
        (
            "promote answer",
            answer(Answer::Promote(PromoteAnswer {
                epoch: 42,
                cut_unix_ns: 1_700_000_000_123_456_789,
                lineage: "9f0c1d2e3b4a5968".into(),
                dropped_epochs: 1,
                duration_us: 1830,
                ..PromoteAnswer::default()
            })),
            "42 52 43 54 01 00 02 00 04 00 00 00 84 00 00 00",
            r#"{"ok":{"promote":{"epoch":42,"cut_unix_ns":1700000000123456789,"lineage":"9f0c1d2e3b4a5968","dropped_epochs":1,"duration_us":1830}}}"#,
        ),
        (
            "error",
            response_packets(
                1,
                4,
                &Response::error(
                    ErrorCode::NeedsForce,
                    "vm1: the primary 10.0.0.1:7001 is alive\ntype promote --force to cut it loose",
                ),
            )
            .unwrap()
            .remove(0),
            "42 52 43 54 01 00 02 00 04 00 00 00 79 00 00 00",
            r#"{"error":{"code":"needs-force","message":"vm1: the primary 10.0.0.1:7001 is alive type promote --force to cut it loose"}}"#,
        ),
    ]
}

fn golden_pages() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let answer = |answer| {
        response_packets(1, 4, &Response::Ok(answer))
            .unwrap()
            .remove(0)
    };
    vec![
        (
            "pages-arm",
            Request::PagesArm(PagesArmRequest {
                volume: Some("vm1".into()),
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 1e 00 00 00",
            r#"{"pages-arm":{"volume":"vm1"}}"#,
        ),
        (
            "pages-arm answer",
            answer(Answer::PagesArm(PagesArmAnswer {
                record: "9f0c1d2e3b4a5968".into(),
                regions: vec![sample_region()],
            })),
            "42 52 43 54 01 00 02 00 04 00 00 00 9b 00 00 00",
            r#"{"ok":{"pages-arm":{"record":"9f0c1d2e3b4a5968","regions":[{"guest_address":0,"size_bytes":268435456,"file_offset":0,"file_device":1,"file_inode":4711}]}}}"#,
        ),
        (
            "pages-take",
            Request::PagesTake(PagesTakeRequest {
                volume: None,
                record: "9f0c1d2e3b4a5968".into(),
                turn: 7,
                from_page: 0,
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 43 00 00 00",
            r#"{"pages-take":{"record":"9f0c1d2e3b4a5968","turn":7,"from_page":0}}"#,
        ),
        (
            "pages-take answer",
            answer(Answer::PagesTake(PagesTakeAnswer {
                record: "9f0c1d2e3b4a5968".into(),
                turn: 7,
                complete: true,
                reason: None,
                pages: 5000,
                runs: vec![(256, 1), (300, 8)],
                next_page: Some(4100),
                regions: vec![sample_region()],
            })),
            "42 52 43 54 01 00 02 00 04 00 00 00 ec 00 00 00",
            r#"{"ok":{"pages-take":{"record":"9f0c1d2e3b4a5968","turn":7,"complete":true,"pages":5000,"runs":[[256,1],[300,8]],"next_page":4100,"regions":[{"guest_address":0,"size_bytes":268435456,"file_offset":0,"file_device":1,"file_inode":4711}]}}}"#,
        ),
        (
            "pages-disarm",
            Request::PagesDisarm(PagesDisarmRequest::default())
                .to_packet(1, 4)
                .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 13 00 00 00",
            r#"{"pages-disarm":{}}"#,
        ),
        (
            "pages-disarm answer",
            answer(Answer::PagesDisarm(PagesDisarmAnswer { was_armed: true })),
            "42 52 43 54 01 00 02 00 04 00 00 00 2a 00 00 00",
            r#"{"ok":{"pages-disarm":{"was_armed":true}}}"#,
        ),
    ]
}

/// What checkpointer and standby ask of the disks.
fn golden_memory() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    const LINEAGE: &str = "9f0c1d2e3b4a59689f0c1d2e3b4a5968";
    let answer = |answer| {
        response_packets(1, 4, &Response::Ok(answer))
            .unwrap()
            .remove(0)
    };
    vec![
        (
            "drive",
            Request::Drive(DriveRequest {
                state: "protected".into(),
                timeout_ms: 1000,
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 31 00 00 00",
            r#"{"drive":{"state":"protected","timeout_ms":1000}}"#,
        ),
        (
            "drive answer",
            answer(Answer::Drive(DriveAnswer {
                state: "protected".into(),
                reason: "the backup follows".into(),
                cut_wanted: true,
                ack_mode: "local".into(),
                on_backup_loss: "degrade".into(),
                lineage: LINEAGE.into(),
                volumes: vec!["vm1".into()],
            })),
            "42 52 43 54 01 00 02 00 04 00 00 00 c3 00 00 00",
            r#"{"ok":{"drive":{"state":"protected","reason":"the backup follows","cut_wanted":true,"ack_mode":"local","on_backup_loss":"degrade","lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968","volumes":["vm1"]}}}"#,
        ),
        (
            "memory-join",
            Request::MemoryJoin(MemoryJoinRequest {
                committed: Some(41),
                whole: vec![MemoryEpoch {
                    epoch: 42,
                    lineage: LINEAGE.into(),
                }],
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 64 00 00 00",
            r#"{"memory-join":{"committed":41,"whole":[{"epoch":42,"lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968"}]}}"#,
        ),
        (
            "memory-whole",
            Request::MemoryWhole(MemoryEpoch {
                epoch: 42,
                lineage: LINEAGE.into(),
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 4a 00 00 00",
            r#"{"memory-whole":{"epoch":42,"lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968"}}"#,
        ),
        (
            "memory-wait",
            Request::MemoryWait(MemoryWaitRequest {
                above: 41,
                timeout_ms: 1000,
            })
            .to_packet(1, 4)
            .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 2e 00 00 00",
            r#"{"memory-wait":{"above":41,"timeout_ms":1000}}"#,
        ),
        (
            "memory-wait answer",
            answer(Answer::MemoryWait(MemoryAnswer {
                committed: 42,
                with_memory: Some(42),
            })),
            "42 52 43 54 01 00 02 00 04 00 00 00 38 00 00 00",
            r#"{"ok":{"memory-wait":{"committed":42,"with_memory":42}}}"#,
        ),
        (
            "memory-leave",
            Request::MemoryLeave(MemoryLeaveRequest {})
                .to_packet(1, 4)
                .unwrap(),
            "42 52 43 54 01 00 01 00 04 00 00 00 13 00 00 00",
            r#"{"memory-leave":{}}"#,
        ),
    ]
}

/// A changed byte on the wire makes tools and daemons of different builds misread each other
/// during an upgrade, exactly when somebody needs to promote.
#[test]
fn golden_bytes_and_document_agree() {
    for (name, packet, header, body) in golden_packets()
        .into_iter()
        .chain(golden_pages())
        .chain(golden_memory())
    {
        assert_eq!(hex(&packet[..HEADER_BYTES]), header, "{name}: header");
        assert_eq!(
            std::str::from_utf8(&packet[HEADER_BYTES..]).unwrap(),
            body,
            "{name}: body"
        );
        assert!(
            DOCUMENT.contains(header),
            "{name}: header is not in the document"
        );
        assert!(
            DOCUMENT.contains(body),
            "{name}: body is not in the document"
        );
    }
}

/// A word or limit that only the code has cannot be programmed against.
#[test]
fn document_names_every_word_and_limit() {
    let lists = [
        Role::WORDS,
        GroupState::WORDS,
        VolumeState::WORDS,
        LinkState::WORDS,
        GuestState::WORDS,
        AckMode::WORDS,
        OutputClass::WORDS,
        EventKind::WORDS,
        ErrorCode::WORDS,
    ];
    for word in lists.into_iter().flatten() {
        assert!(
            DOCUMENT.contains(&format!("`{word}`")),
            "{word} is not in the document"
        );
    }
    for limit in [
        HEADER_BYTES,
        BODY_BYTES_MAX,
        PACKET_BYTES_MAX,
        ANSWER_BYTES_MAX,
        PAGE_RUNS_MAX,
        PAGE_REGIONS_MAX,
        MEMORY_WHOLE_MAX,
    ] {
        assert!(
            DOCUMENT.contains(&limit.to_string()),
            "{limit} is not in the document"
        );
    }
}

/// A daemon that ignores a field it does not know does something else than it was told, for
/// example promotes without the guard a newer client asked for.
#[test]
fn requests_with_unknown_fields_are_refused() {
    for body in [
        r#"{"promote":{"force":false,"only_if_epoch":7}}"#,
        r#"{"status":{"x":1}}"#,
        r#"{"status":{},"cut":{}}"#,
        r#"{"format-disk":{}}"#,
        r#"{"cut":{"epoch":-1}}"#,
        r#"{"pages-take":{"turn":1}}"#,
        r#"{"pages-take":{"record":"a","turn":-1}}"#,
        r#"{"pages-arm":{"volumes":["a"]}}"#,
        r#"{"cut":{"epoch":1,"epoch":2}}"#,
        r#"{"status":{}} trailing"#,
        "",
        "null",
    ] {
        let error = Request::from_body(body.as_bytes()).expect_err(body);
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let cut = Request::from_body(br#"{"cut":{}}"#).unwrap();
    assert_eq!(cut, Request::Cut(CutRequest::default()));
}

/// An old blockrepctl that chokes on a new field leaves the operator blind after an upgrade.
#[test]
fn answers_and_events_with_unknown_fields_and_words_are_read() {
    let body = br#"{"ok":{"cut":{"epoch":1,"committed":true,"new_field":[1,{}]}}}"#;
    assert_eq!(
        Response::from_body(body).unwrap(),
        Response::Ok(Answer::Cut(CutAnswer {
            epoch: 1,
            committed: true,
            ..CutAnswer::default()
        }))
    );
    let body = br#"{"error":{"code":"some-new-code","message":"m"}}"#;
    let Response::Error(error) = Response::from_body(body).unwrap() else {
        panic!("not an error")
    };
    assert_eq!(error.code, ErrorCode::Other("some-new-code".into()));
    let body = br#"{"event":{"seq":1,"unix_ms":2,"group":"g","kind":"new-kind","reason":"r","next":"n","weight":3}}"#;
    let EventBody::Event(event) = EventBody::from_body(body).unwrap() else {
        panic!("not an event")
    };
    assert_eq!(event.kind.as_str(), "new-kind");
}

/// A rate computed over no time is not a number; written as null it must not hide the status.
#[test]
fn rate_that_is_no_number_keeps_the_status_readable() {
    let rates = Rates {
        epochs_per_s: f64::NAN,
        ..Rates::default()
    };
    let read: Rates = serde_json::from_str(&serde_json::to_string(&rates).unwrap()).unwrap();
    assert_eq!(read.epochs_per_s, 0.0);
}

/// Agreeing on a version one side does not speak misreads every later frame.
#[test]
fn version_choice_is_within_both_ranges() {
    assert_eq!(choose_version(1, 1), Some(1));
    assert_eq!(choose_version(1, 9), Some(VERSION_MAX));
    assert_eq!(choose_version(0, 0), None);
    assert_eq!(choose_version(2, 9), None);
    assert_eq!(choose_version(9, 1), None, "an empty range");
}

/// A status of very many volumes must arrive whole or be refused, never cut short.
#[test]
fn long_answers_come_in_parts_and_too_long_ones_not_at_all() {
    let long = |bytes: usize| {
        Response::Error(ErrorReply {
            code: ErrorCode::Refused,
            message: "x".repeat(bytes),
        })
    };
    let response = long(150_000);
    let packets = response_packets(1, 9, &response).unwrap();
    assert_eq!(packets.len(), 3);
    let mut parts = Reassembly::new(9);
    let mut whole = None;
    for packet in &packets {
        assert!(whole.is_none(), "ended before the last part");
        whole = parts.push(decode(packet).unwrap()).unwrap();
    }
    assert_eq!(Response::from_body(&whole.unwrap()).unwrap(), response);

    let error = response_packets(1, 9, &long(ANSWER_BYTES_MAX)).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { what: "answer", .. }));
}

/// A server that never ends its answer would otherwise fill the memory of the tool.
#[test]
fn reassembly_is_bounded_and_takes_only_its_own_answer() {
    let packet = encode(1, FrameKind::ResponsePart, 9, &vec![b'x'; BODY_BYTES_MAX]).unwrap();
    let frame = decode(&packet).unwrap();
    let mut parts = Reassembly::new(9);
    let error = (0..100)
        .find_map(|_| parts.push(frame).err())
        .expect("a bound");
    assert!(matches!(error, FrameError::TooLarge { .. }));
    assert_eq!(
        Reassembly::new(8).push(frame),
        Err(FrameError::PartOrder {
            expected: 8,
            found: 9
        })
    );
    let event = encode(1, FrameKind::Event, 9, b"{}").unwrap();
    let error = Reassembly::new(9)
        .push(decode(&event).unwrap())
        .unwrap_err();
    assert_eq!(error, FrameError::Kind { found: 3 });
}

/// An event too long for a frame would end the stream of whoever follows; line ends and escapes
/// in a reason would let a peer write to the operator's terminal.
#[test]
fn events_are_bounded_and_single_lines() {
    let mut event = sample_event();
    event.reason = "\"\\\u{1b}[2J\n".repeat(2000);
    event.next = "ö".repeat(5000);
    event.old_state = Some("\"".repeat(9000));
    event.detail = (0..500)
        .map(|i| (format!("key{i}"), "v".repeat(100)))
        .collect();
    event.bound();
    assert!(!event.reason.chars().any(char::is_control));
    assert!(serde_json::to_vec(&event).unwrap().len() <= EVENT_JSON_BYTES_MAX);
    assert_eq!(event.detail["shortened"], "true");

    let mut many = sample_event();
    many.detail = (0..17)
        .map(|i| (format!("key{i:02}"), "v".to_owned()))
        .collect();
    many.bound();
    assert_eq!(many.detail.len(), EVENT_DETAILS_MAX);
    assert!(many.detail.contains_key("key00") && many.detail.contains_key("shortened"));

    let mut small = sample_event();
    small.bound();
    assert_eq!(
        small,
        sample_event(),
        "an event within the bound is not touched"
    );
}

/// Every length around the header and the limits, as a broken or hostile client would send it.
#[test]
fn lengths_are_checked_before_use() {
    let (_, packet, ..) = golden_packets().remove(0);
    for end in 0..packet.len() {
        let error = decode(&packet[..end]).expect_err("a cut packet is no frame");
        let short = end < HEADER_BYTES;
        assert_eq!(
            matches!(error, FrameError::Short { .. }),
            short,
            "cut at {end}"
        );
    }
    let mut absurd = packet.clone();
    absurd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        decode(&absurd),
        Err(FrameError::BodyLength {
            stated: u32::MAX,
            ..
        })
    ));
    assert!(matches!(
        decode(&vec![0; PACKET_BYTES_MAX + 1]),
        Err(FrameError::Long { .. })
    ));
    assert!(encode(1, FrameKind::Request, 1, &vec![0; BODY_BYTES_MAX]).is_ok());
    assert!(encode(1, FrameKind::Request, 1, &vec![0; BODY_BYTES_MAX + 1]).is_err());
}

/// A bit that flips in the header must never give a frame of another version or length.
#[test]
fn every_flip_in_the_header_is_refused_or_changes_only_its_field() {
    let packet = Request::Status(StatusRequest {}).to_packet(1, 2).unwrap();
    let original = decode(&packet).unwrap();
    for bit in 0..HEADER_BYTES * 8 {
        let mut flipped = packet.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let byte = bit / 8;
        match decode(&flipped) {
            // Bit 65 makes id 2 into the reserved id 0; any other id is as good as the first.
            Err(_) => assert!(!(8..12).contains(&byte) || bit == 65, "bit {bit} refused"),
            Ok(frame) => {
                assert_eq!(frame.body, original.body);
                let changed = match byte {
                    4..6 => frame.version == HANDSHAKE_VERSION,
                    6..8 => frame.kind != original.kind,
                    8..12 => frame.request_id != original.request_id,
                    _ => false,
                };
                assert!(changed, "bit {bit} was taken for nothing");
            }
        }
    }
}

fn any_kind() -> impl Strategy<Value = FrameKind> {
    prop_oneof![
        Just(FrameKind::Request),
        Just(FrameKind::Response),
        Just(FrameKind::Event),
        Just(FrameKind::ResponsePart),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<String>(), any::<u16>(), any::<u16>())
            .prop_map(|(client, min, max)| Request::Hello(HelloRequest { client, min, max })),
        Just(Request::Status(StatusRequest {})),
        (any::<u64>(), any::<bool>())
            .prop_map(|(from_seq, follow)| Request::Events(EventsRequest { from_seq, follow })),
        any::<Option<u64>>().prop_map(|epoch| Request::Prepare(PrepareRequest { epoch })),
        (any::<Option<u64>>(), any::<bool>(), any::<u64>()).prop_map(
            |(epoch, wait_durable, timeout_ms)| Request::Cut(CutRequest {
                epoch,
                wait_durable,
                timeout_ms,
                seal: wait_durable,
            })
        ),
        (any::<bool>(), any::<bool>(), any::<String>()).prop_map(
            |(force, accept_suspect, reason)| Request::Promote(PromoteRequest {
                force,
                accept_suspect,
                with_memory: force,
                disk_only: accept_suspect,
                reason
            })
        ),
        any::<Option<String>>().prop_map(|volume| Request::PagesArm(PagesArmRequest { volume })),
        any::<Option<String>>()
            .prop_map(|volume| Request::PagesDisarm(PagesDisarmRequest { volume })),
        (
            any::<Option<String>>(),
            any::<String>(),
            any::<u64>(),
            any::<u64>()
        )
            .prop_map(|(volume, record, turn, from_page)| {
                Request::PagesTake(PagesTakeRequest {
                    volume,
                    record,
                    turn,
                    from_page,
                })
            }),
    ]
}

fn any_region() -> impl Strategy<Value = PageRegion> {
    any::<[u64; 5]>().prop_map(|[a, b, c, d, e]| PageRegion {
        guest_address: a,
        size_bytes: b,
        file_offset: c,
        file_device: d,
        file_inode: e,
    })
}

/// The longest turn a daemon may answer with has to fit, or a checkpoint fails when most was written.
#[test]
fn largest_part_of_a_turn_fits_an_answer() {
    let last_page = u64::MAX / PAGE_BYTES;
    let region = PageRegion {
        guest_address: u64::MAX,
        size_bytes: u64::MAX,
        file_offset: 1 << 47,
        file_device: u64::from(u32::MAX),
        file_inode: 1 << 47,
    };
    let answer = Answer::PagesTake(PagesTakeAnswer {
        record: "9f0c1d2e3b4a5968".into(),
        turn: u64::MAX,
        complete: false,
        reason: Some("x".repeat(TEXT_BYTES_MAX)),
        pages: last_page,
        runs: vec![(last_page, last_page); PAGE_RUNS_MAX],
        next_page: Some(last_page),
        regions: vec![region; PAGE_REGIONS_MAX],
    });
    let response = Response::Ok(answer);
    assert!(response_packets(1, 1, &response).is_ok());
}

proptest! {
    /// What one side encodes and the other reads as something else is acted upon wrongly.
    #[test]
    fn frames_round_trip(
        kind in any_kind(),
        id in 1u32..,
        version in prop_oneof![Just(0u16), Just(1u16)],
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let packet = encode(version, kind, id, &body).unwrap();
        let frame = decode(&packet).unwrap();
        prop_assert_eq!(frame, Frame { version, kind, request_id: id, body: &body });
    }

    /// The same for whole requests, with any text and number in them.
    #[test]
    fn requests_round_trip(request in any_request(), id in 1u32..) {
        let packet = request.to_packet(1, id).unwrap();
        let frame = decode(&packet).unwrap();
        prop_assert_eq!(Request::from_body(frame.body).unwrap(), request);
    }

    /// A page that is lost on the way is a page the backup's guest wakes up without.
    #[test]
    fn turns_round_trip(
        (turn, complete, pages) in any::<(u64, bool, u64)>(),
        reason in any::<Option<String>>(),
        runs in prop::collection::vec(any::<(u64, u64)>(), 0..50),
        next_page in any::<Option<u64>>(),
        regions in prop::collection::vec(any_region(), 0..5),
    ) {
        let record = "9f0c1d2e3b4a5968".to_owned();
        let response = Response::Ok(Answer::PagesTake(PagesTakeAnswer {
            record, turn, complete, reason, pages, runs, next_page, regions,
        }));
        let body = serde_json::to_vec(&response).unwrap();
        prop_assert_eq!(Response::from_body(&body).unwrap(), response);
        for cut in 0..body.len().min(200) {
            prop_assert!(Response::from_body(&body[..cut]).is_err());
        }
    }

    /// Garbage from any local program must not panic the daemon.
    #[test]
    fn garbage_is_refused_without_panic(
        packet in prop::collection::vec(any::<u8>(), 0..200),
        body in any::<String>(),
    ) {
        prop_assert!(decode(&packet).is_err() || packet.starts_with(&MAGIC));
        prop_assert!(Request::from_body(body.as_bytes()).is_err());
        let _ = Response::from_body(&packet);
        let _ = EventBody::from_body(&packet);
    }

    /// A bounded event always fits, whatever text a peer or a disk error put into it.
    #[test]
    fn bounded_events_always_fit(texts in prop::collection::vec(any::<String>(), 6), many in 0usize..3000) {
        let mut event = sample_event();
        event.group = texts[0].repeat(many);
        event.reason = texts[1].repeat(many);
        event.next = texts[2].repeat(many);
        event.old_state = Some(texts[3].repeat(many));
        event.new_state = Some(texts[4].repeat(many));
        event.kind = EventKind::Other(texts[5].repeat(many));
        event.bound();
        prop_assert!(serde_json::to_vec(&event).unwrap().len() <= EVENT_JSON_BYTES_MAX);
    }
}
