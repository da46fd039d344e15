//! Violations that end a connection, bounds, payload handling, shutting down.

use proptest::prelude::*;

use super::*;

fn end_of(stream: &[u8]) -> Result<Phase, Fatal> {
    play(config(), &one_export(), stream, &[usize::MAX]).end
}

/// Going on after a broken message would take noise for writes.
#[test]
fn violations_end_the_connection() {
    let flags = client_flags(3);
    let export_name = |name: &[u8]| option(NBD_OPT_EXPORT_NAME, name);
    let mut huge = option(NBD_OPT_LIST, &[]);
    huge[12..16].copy_from_slice(&(MAX_OPTION_DRAIN_BYTES + 1).to_be_bytes());
    let mut long_name = export_name(&[]);
    long_name[12..16].copy_from_slice(&(MAX_OPTION_DATA_BYTES + 1).to_be_bytes());
    let cases: Vec<(Vec<u8>, Fatal)> = vec![
        (client_flags(4), Fatal::UnknownClientFlags { flags: 4 }),
        (
            client_flags(0x8000_0001),
            Fatal::UnknownClientFlags { flags: 0x8000_0001 },
        ),
        (
            [flags.clone(), vec![7; 16]].concat(),
            Fatal::BadOptionMagic {
                found: 0x0707_0707_0707_0707,
            },
        ),
        (
            [flags.clone(), huge].concat(),
            Fatal::OptionTooLong {
                option: NBD_OPT_LIST,
                length: MAX_OPTION_DRAIN_BYTES + 1,
                limit: MAX_OPTION_DRAIN_BYTES,
            },
        ),
        (
            [flags.clone(), long_name].concat(),
            Fatal::OptionTooLong {
                option: NBD_OPT_EXPORT_NAME,
                length: MAX_OPTION_DATA_BYTES + 1,
                limit: MAX_OPTION_DATA_BYTES,
            },
        ),
        (
            [client_flags(2), option(NBD_OPT_LIST, &[])].concat(),
            Fatal::NotFixedNewstyle {
                option: NBD_OPT_LIST,
            },
        ),
        (
            [flags.clone(), export_name(b"other")].concat(),
            Fatal::UnknownExport {
                name: "other".to_owned(),
            },
        ),
        (
            [flags, export_name(&[b'a'; 5000])].concat(),
            Fatal::UnknownExport {
                name: "a".repeat(64),
            },
        ),
        (
            [handshake(false), vec![0x12; 28]].concat(),
            Fatal::BadRequestMagic { found: 0x1212_1212 },
        ),
    ];
    for (stream, fatal) in cases {
        assert_eq!(end_of(&stream), Err(fatal));
    }
}

/// A name with control characters must not reach the operator's terminal as they are.
#[test]
fn a_client_cannot_write_to_the_terminal() {
    let fatal = Fatal::UnknownExport {
        name: "a\u{1b}[2J\"".to_owned(),
    };
    assert_eq!(
        fatal.to_string(),
        "client asked for export \"a\\u{1b}[2J\\\"\", which is not served here"
    );
}

/// A client that haggles for ever holds a connection for ever.
#[test]
fn haggling_is_bounded() {
    let ask = |count: usize| {
        let options = option(NBD_OPT_LIST, &[]).repeat(count);
        end_of(&[client_flags(1), options].concat())
    };
    assert_eq!(ask(64), Ok(Phase::Negotiation));
    assert_eq!(ask(65), Err(Fatal::TooManyOptions));
}

/// After its end a connection must not come back to life.
#[test]
fn nothing_is_read_after_the_end() {
    let exports = one_export();
    let mut out = Vec::new();
    let mut broken = Conn::new(config(), &mut out);
    assert!(
        broken
            .input(&client_flags(0x100), &exports, &mut out)
            .is_err()
    );
    let mut left = Conn::new(config(), &mut out);
    let bye = [client_flags(1), option(NBD_OPT_ABORT, &[])].concat();
    let step = left.input(&bye, &exports, &mut out);
    assert_eq!(
        step,
        Ok(Step {
            consumed: bye.len(),
            event: Some(Event::Disconnect)
        })
    );
    for conn in [&mut broken, &mut left] {
        let before = out.len();
        assert!(!conn.takes_input());
        assert_eq!(conn.phase(), Phase::Closing);
        let step = conn.input(&handshake(true), &exports, &mut out);
        assert_eq!(
            step,
            Ok(Step {
                consumed: 0,
                event: None
            })
        );
        assert_eq!(out.len(), before);
    }
}

fn in_transmission(out: &mut Vec<u8>) -> Conn {
    let exports = one_export();
    let mut conn = Conn::new(config(), out);
    let stream = handshake(true);
    let mut rest = stream.as_slice();
    while conn.phase() == Phase::Negotiation {
        assert!(
            !rest.is_empty(),
            "the handshake did not lead to transmission"
        );
        let step = conn.input(rest, &exports, out).expect("a good handshake");
        rest = &rest[step.consumed..];
    }
    out.clear();
    conn
}

/// A refused write of 4 GiB must cost the server neither memory nor the connection.
#[test]
fn the_longest_refused_payload_is_dropped_in_pieces() {
    let exports = one_export();
    let mut out = Vec::new();
    let mut conn = in_transmission(&mut out);
    let head = request(0, NBD_CMD_WRITE, 5, 0, u32::MAX);
    assert!(
        conn.input(&head, &exports, &mut out)
            .is_ok_and(|step| step.event.is_none())
    );
    let piece = vec![0x25; 1 << 22];
    let mut left = u32::MAX as usize;
    while left > 0 {
        assert!(out.is_empty(), "answered before the payload was read");
        let now = piece.len().min(left);
        let step = conn.input(&piece[..now], &exports, &mut out);
        assert_eq!(
            step,
            Ok(Step {
                consumed: now,
                event: None
            })
        );
        assert!(conn.buffered_bytes() <= 28);
        left -= now;
    }
    assert_eq!(out[20..24], 22u32.to_be_bytes());
    let next = conn.input(&request(0, NBD_CMD_FLUSH, 6, 0, 0), &exports, &mut out);
    assert!(matches!(
        next,
        Ok(Step {
            event: Some(Event::Request(_)),
            ..
        })
    ));
}

/// Bytes of a payload taken as a request would be executed.
#[test]
fn the_parser_stops_before_an_accepted_payload() {
    let exports = one_export();
    let mut out = Vec::new();
    let mut conn = in_transmission(&mut out);
    let hidden = request(0, NBD_CMD_TRIM, 666, 0, 512);
    let stream = [request(0, NBD_CMD_WRITE, 5, 0, 512), hidden.repeat(20)].concat();
    let step = conn
        .input(&stream, &exports, &mut out)
        .expect("a good write");
    assert_eq!(step.consumed, 28);
    assert!(matches!(
        step.event,
        Some(Event::WritePayload(Request { length: 512, .. }))
    ));
    assert!(!conn.takes_input());
    let step = conn.input(&stream[28..], &exports, &mut out);
    assert_eq!(
        step,
        Ok(Step {
            consumed: 0,
            event: None
        })
    );
    conn.payload_done();
    assert!(conn.takes_input() && conn.awaited_payload().is_none() && out.is_empty());
}

/// A driver without a buffer left must be able to say no and keep the connection.
#[test]
fn the_driver_can_refuse_a_payload_at_any_point() {
    let exports = one_export();
    for taken in [0, 100, 512] {
        let mut out = Vec::new();
        let mut conn = in_transmission(&mut out);
        let head = request(0, NBD_CMD_WRITE, 5, 0, 512);
        assert!(conn.input(&head, &exports, &mut out).is_ok());
        conn.refuse_payload(Errno::Io, 512 - taken, &mut out);
        let behind = request(0, NBD_CMD_FLUSH, 6, 0, 0);
        let stream = [vec![0x25; 512 - taken as usize], behind].concat();
        let mut rest = stream.as_slice();
        let mut events = vec![];
        while !rest.is_empty() {
            let step = conn
                .input(rest, &exports, &mut out)
                .expect("the stream is in step");
            rest = &rest[step.consumed..];
            events.extend(step.event);
        }
        assert!(matches!(
            events[..],
            [Event::Request(Request {
                cookie: Cookie(6),
                ..
            })]
        ));
        assert_eq!(out[20..24], 5u32.to_be_bytes(), "taken {taken}");
    }
}

/// A driver that lost count would go on and execute data as requests.
#[test]
#[should_panic(expected = "no payload is awaited")]
fn payload_done_without_a_payload_is_our_own_error() {
    let mut out = Vec::new();
    in_transmission(&mut out).payload_done();
}

/// A wrong count would leave the stream out of step for good.
#[test]
#[should_panic(expected = "more bytes left than the payload had")]
fn refusing_more_than_the_payload_is_our_own_error() {
    let mut out = Vec::new();
    let mut conn = in_transmission(&mut out);
    let head = request(0, NBD_CMD_WRITE, 5, 0, 512);
    assert!(conn.input(&head, &one_export(), &mut out).is_ok());
    conn.refuse_payload(Errno::Io, 513, &mut out);
}

/// A client that asks without reading the answers would fill the server's memory with them.
#[test]
fn the_driver_can_stop_after_every_answer_and_every_request() {
    let exports = one_export();
    let bad = request(0, NBD_CMD_CACHE, 5, 0, 512);
    let good = request(0, NBD_CMD_READ, 5, 0, 512);
    for (message, answered) in [(bad, true), (good, false)] {
        let mut out = Vec::new();
        let mut conn = in_transmission(&mut out);
        let step = conn
            .input(&message.repeat(1000), &exports, &mut out)
            .expect("good requests");
        assert_eq!((step.consumed, step.event.is_none()), (28, answered));
        assert_eq!(out.is_empty(), !answered);
    }
    let mut out = Vec::new();
    let mut conn = Conn::new(config(), &mut out);
    let list = option(NBD_OPT_LIST, &[]);
    let stream = [client_flags(3), list.repeat(60)].concat();
    let step = conn.input(&stream, &exports, &mut out);
    assert_eq!(
        step,
        Ok(Step {
            consumed: 4 + list.len(),
            event: None
        })
    );
    assert_eq!(option_replies(&out).len(), 2);
}

/// A server that is going down must say so instead of accepting work it will not do.
#[test]
fn shutting_down_refuses_new_work_and_lets_a_payload_finish() {
    let exports = one_export();
    let mut out = Vec::new();
    let mut conn = in_transmission(&mut out);
    assert!(
        conn.input(&request(0, NBD_CMD_WRITE, 1, 0, 512), &exports, &mut out)
            .is_ok()
    );
    conn.shut_down();
    conn.payload_done();
    let stream = [request(0, NBD_CMD_WRITE, 2, 0, 4), vec![0; 4]].concat();
    let mut rest = stream.as_slice();
    while !rest.is_empty() {
        let step = conn
            .input(rest, &exports, &mut out)
            .expect("a good request");
        assert_eq!(step.event, None);
        rest = &rest[step.consumed..];
    }
    assert_eq!(out[20..24], 108u32.to_be_bytes());
    let bye = conn.input(&request(0, NBD_CMD_DISC, 3, 0, 0), &exports, &mut out);
    assert!(matches!(
        bye,
        Ok(Step {
            event: Some(Event::Disconnect),
            ..
        })
    ));

    let go = option(NBD_OPT_GO, &info_data(b"", &[]));
    for (last, end) in [
        (option(NBD_OPT_ABORT, &[]), Ok(())),
        (
            option(NBD_OPT_EXPORT_NAME, b"disk"),
            Err(Fatal::ShuttingDown),
        ),
    ] {
        let mut out = Vec::new();
        let mut conn = Conn::new(config(), &mut out);
        conn.shut_down();
        let first = [client_flags(3), go.clone()].concat();
        let step = conn.input(&first, &exports, &mut out);
        assert_eq!(
            step,
            Ok(Step {
                consumed: first.len(),
                event: None
            })
        );
        assert_eq!(option_replies(&out)[0].1, NBD_REP_ERR_SHUTDOWN);
        assert_eq!(conn.input(&last, &exports, &mut out).map(drop), end);
    }
}

/// A limit the client is not told, or one below what it may rely on, breaks good clients.
#[test]
fn limits_of_the_payload_limit() {
    for bytes in [0, 65_535, 65_536 + 1, (1 << 25) + 512, u32::MAX] {
        assert_eq!(Config::new(bytes), Err(ConfigError::MaxPayload { bytes }));
    }
    for bytes in [65_536, 1 << 20, 1 << 25] {
        assert_eq!(Config::new(bytes).map(|c| c.max_payload_bytes()), Ok(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// One packet of noise must not take the daemon down or eat its memory.
    #[test]
    fn no_bytes_at_all_break_an_invariant(data in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz::any_bytes(&data);
    }
}
