//! What is refused, with which error, and that the connection goes on after it.

use super::*;

/// What a client is told about one request.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Accepted,
    Error(u32),
}

/// Sends one request, its payload, and a good read behind it, which proves that the stream is
/// still in step.
fn ask(exports: &[ExportInfo], structured: bool, client_request: Vec<u8>) -> Told {
    let kind = u16::from_be_bytes([client_request[6], client_request[7]]);
    let length = u32::from_be_bytes(client_request[24..28].try_into().expect("4 bytes"));
    let payload = if kind == NBD_CMD_WRITE {
        length as usize
    } else {
        0
    };
    let probe = request(0, NBD_CMD_READ, 99, 0, 512);
    let before = play(config(), exports, &handshake(structured), &[usize::MAX])
        .out
        .len();
    let stream = [
        handshake(structured),
        client_request.clone(),
        vec![0; payload],
        probe,
    ]
    .concat();
    let played = play(config(), exports, &stream, &[7000]);
    let Some(Event::Request(last)) = played.events.last() else {
        panic!("the request behind was lost: {:?}", played.events);
    };
    assert_eq!(last.cookie, Cookie(99));
    let reply = &played.out[before..];
    if reply.is_empty() {
        assert_eq!(played.events.len(), 3);
        return Told::Accepted;
    }
    assert_eq!(
        played.events.len(),
        2,
        "a refused request reached the driver"
    );
    assert_eq!(reply[8..16], client_request[8..16], "cookie");
    let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().expect("4 bytes"));
    if !structured {
        assert_eq!((word(0), reply.len()), (NBD_SIMPLE_REPLY_MAGIC, 16));
        return Told::Error(word(4));
    }
    assert_eq!(
        (word(0), word(4)),
        (NBD_STRUCTURED_REPLY_MAGIC, 0x0001_8001)
    );
    assert_eq!(word(16) as usize, reply.len() - 20);
    let text_bytes = usize::from(u16::from_be_bytes([reply[24], reply[25]]));
    assert_eq!(text_bytes, reply.len() - 26);
    assert!(str::from_utf8(&reply[26..]).is_ok_and(|text| !text.is_empty()));
    Told::Error(word(20))
}

/// A wrong check lets a guest write where it must not, or fails I/O that is fine.
#[test]
fn every_check_has_its_error_number() {
    const SIZE: u64 = 0x10_0000;
    use Told::*;
    let cases = [
        // flags, command, offset, length, with simple replies, with structured replies
        (0, NBD_CMD_READ, SIZE - 512, 512, Accepted, Accepted),
        (0, NBD_CMD_READ, SIZE, 512, Error(22), Error(22)),
        (0, NBD_CMD_READ, SIZE - 512, 1024, Error(22), Error(22)),
        (0, NBD_CMD_READ, u64::MAX - 511, 512, Error(22), Error(22)),
        (0, NBD_CMD_READ, u64::MAX - 511, 1024, Error(22), Error(22)),
        (0, NBD_CMD_READ, 0, 0, Error(22), Error(22)),
        (0, NBD_CMD_READ, 1, 512, Error(22), Error(22)),
        (0, NBD_CMD_READ, 512, 513, Error(22), Error(22)),
        (0, NBD_CMD_WRITE, SIZE - 512, 512, Accepted, Accepted),
        (0, NBD_CMD_WRITE, SIZE, 512, Error(28), Error(28)),
        (0, NBD_CMD_WRITE, u64::MAX - 511, 1024, Error(28), Error(28)),
        (0, NBD_CMD_WRITE, 100, 512, Error(22), Error(22)),
        (0, NBD_CMD_WRITE, 0, 100, Error(22), Error(22)),
        (0, NBD_CMD_WRITE, 0, 0, Error(22), Error(22)),
        (0, NBD_CMD_TRIM, SIZE, 512, Error(22), Error(22)),
        (0, NBD_CMD_TRIM, 0, 0, Error(22), Error(22)),
        (0, NBD_CMD_TRIM, 3, 512, Error(22), Error(22)),
        (0, NBD_CMD_WRITE_ZEROES, SIZE, 512, Error(28), Error(28)),
        (0, NBD_CMD_WRITE_ZEROES, 0, 0, Error(22), Error(22)),
        (0, NBD_CMD_FLUSH, 0, 0, Accepted, Accepted),
        (0, NBD_CMD_FLUSH, 512, 0, Error(22), Error(22)),
        (0, NBD_CMD_FLUSH, 0, 512, Error(22), Error(22)),
        (0, NBD_CMD_CACHE, 0, 512, Error(22), Error(22)),
        (0, NBD_CMD_BLOCK_STATUS, 0, 512, Error(22), Error(22)),
        (0, 8, 0, 512, Error(22), Error(22)),
        (0, 0xffff, 0, 512, Error(22), Error(22)),
        (NBD_CMD_FLAG_FUA, NBD_CMD_READ, 0, 512, Accepted, Accepted),
        (NBD_CMD_FLAG_FUA, NBD_CMD_FLUSH, 0, 0, Accepted, Accepted),
        (NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512, Error(22), Accepted),
        (NBD_CMD_FLAG_DF, NBD_CMD_WRITE, 0, 512, Error(22), Error(22)),
        (
            NBD_CMD_FLAG_NO_HOLE,
            NBD_CMD_WRITE_ZEROES,
            0,
            512,
            Accepted,
            Accepted,
        ),
        (
            NBD_CMD_FLAG_NO_HOLE,
            NBD_CMD_TRIM,
            0,
            512,
            Error(22),
            Error(22),
        ),
        (
            NBD_CMD_FLAG_FAST_ZERO,
            NBD_CMD_WRITE_ZEROES,
            0,
            512,
            Error(22),
            Error(22),
        ),
        (
            NBD_CMD_FLAG_REQ_ONE,
            NBD_CMD_READ,
            0,
            512,
            Error(22),
            Error(22),
        ),
        (0x8000, NBD_CMD_WRITE, 0, 512, Error(22), Error(22)),
    ];
    for (flags, kind, offset, length, simple, structured) in cases {
        let sent = request(flags, kind, 0x0a0b_0c0d_0e0f_1011, offset, length);
        let label = format!("flags {flags} command {kind} at {offset:#x} length {length}");
        assert_eq!(
            ask(&one_export(), false, sent.clone()),
            simple,
            "{label}, simple"
        );
        assert_eq!(
            ask(&one_export(), true, sent),
            structured,
            "{label}, structured"
        );
    }
}

/// A request above the limit would need a buffer the driver does not have.
#[test]
fn payloads_above_the_maximum_are_refused_and_discards_are_not() {
    let exports = vec![full_export("big", 1 << 40)];
    let cases = [
        (NBD_CMD_READ, MIB, Told::Accepted, Told::Accepted),
        (NBD_CMD_READ, MIB + 512, Told::Error(22), Told::Error(75)),
        (NBD_CMD_READ, 0xffff_fe00, Told::Error(22), Told::Error(75)),
        (NBD_CMD_WRITE, MIB, Told::Accepted, Told::Accepted),
        (NBD_CMD_WRITE, MIB + 512, Told::Error(22), Told::Error(22)),
        (NBD_CMD_TRIM, 0xffff_fe00, Told::Accepted, Told::Accepted),
        (
            NBD_CMD_WRITE_ZEROES,
            0xffff_fe00,
            Told::Accepted,
            Told::Accepted,
        ),
    ];
    for (kind, length, simple, structured) in cases {
        let sent = request(0, kind, 7, 1 << 20, length);
        assert_eq!(
            ask(&exports, false, sent.clone()),
            simple,
            "{kind} {length}, simple"
        );
        assert_eq!(
            ask(&exports, true, sent),
            structured,
            "{kind} {length}, structured"
        );
    }
}

/// A backup that has not been promoted must not take a single write.
#[test]
fn read_only_refuses_every_command_that_writes() {
    let mut exports = one_export();
    exports[0].read_only = true;
    for kind in [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
        for offset in [0, 1, 1 << 40] {
            let sent = request(0, kind, 1, offset, 512);
            assert_eq!(
                ask(&exports, true, sent),
                Told::Error(1),
                "{kind} at {offset}"
            );
        }
    }
    for (kind, length) in [(NBD_CMD_READ, 512), (NBD_CMD_FLUSH, 0)] {
        assert_eq!(
            ask(&exports, true, request(0, kind, 1, 0, length)),
            Told::Accepted,
            "{kind}"
        );
    }
}

/// A command that was not advertised would reach an engine that does not know it.
#[test]
fn what_is_not_advertised_is_not_accepted() {
    let exports = vec![ExportInfo::new("bare", 1 << 20).expect("a good export")];
    for (flags, kind, length) in [
        (0, NBD_CMD_FLUSH, 0),
        (0, NBD_CMD_TRIM, 512),
        (0, NBD_CMD_WRITE_ZEROES, 512),
        (NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 512),
    ] {
        let sent = request(flags, kind, 1, 0, length);
        assert_eq!(ask(&exports, true, sent), Told::Error(22), "{kind}");
    }
    let mut exports = one_export();
    exports[0].features.fast_zero = true;
    let sent = request(NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 1, 0, 512);
    assert_eq!(ask(&exports, true, sent), Told::Accepted);
}

/// Options a server does not know are how clients find out; a wrong answer ends their attempt.
#[test]
fn every_option_has_its_answer() {
    let long_name = vec![b'n'; 4097];
    let cases: Vec<(u32, Vec<u8>, u32)> = vec![
        (NBD_OPT_LIST, b"x".to_vec(), NBD_REP_ERR_INVALID),
        (NBD_OPT_PEEK_EXPORT, vec![], NBD_REP_ERR_UNSUP),
        (NBD_OPT_STARTTLS, vec![], NBD_REP_ERR_POLICY),
        (NBD_OPT_STARTTLS, b"x".to_vec(), NBD_REP_ERR_INVALID),
        (NBD_OPT_STRUCTURED_REPLY, b"x".to_vec(), NBD_REP_ERR_INVALID),
        (NBD_OPT_LIST_META_CONTEXT, vec![0; 8], NBD_REP_ERR_UNSUP),
        (NBD_OPT_SET_META_CONTEXT, vec![0; 20_000], NBD_REP_ERR_UNSUP),
        (NBD_OPT_EXTENDED_HEADERS, vec![], NBD_REP_ERR_UNSUP),
        (0, vec![], NBD_REP_ERR_UNSUP),
        (u32::MAX, vec![9; 1 << 20], NBD_REP_ERR_UNSUP),
        (NBD_OPT_INFO, info_data(b"nobody", &[]), NBD_REP_ERR_UNKNOWN),
        (NBD_OPT_GO, info_data(b"nobody", &[3]), NBD_REP_ERR_UNKNOWN),
        (NBD_OPT_GO, vec![], NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, vec![0; 5], NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, vec![0; 7], NBD_REP_ERR_INVALID),
        (
            NBD_OPT_GO,
            [&[0xff; 4][..], b"disk"].concat(),
            NBD_REP_ERR_INVALID,
        ),
        (
            NBD_OPT_GO,
            [&[0, 0, 0, 0, 0, 2][..], &[0, 3]].concat(),
            NBD_REP_ERR_INVALID,
        ),
        (NBD_OPT_GO, info_data(b"di\0sk", &[]), NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, info_data(b"\xff\xfe", &[]), NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, info_data(&long_name, &[]), NBD_REP_ERR_INVALID),
        (NBD_OPT_GO, vec![0; 8193], NBD_REP_ERR_TOO_BIG),
        (NBD_OPT_INFO, vec![0; 1 << 20], NBD_REP_ERR_TOO_BIG),
    ];
    for (number, data, error) in cases {
        let label = format!("option {number} with {} bytes", data.len());
        let stream = [
            client_flags(1),
            option(number, &data),
            option(NBD_OPT_ABORT, &[]),
        ]
        .concat();
        let played = play(config(), &one_export(), &stream, &[5000]);
        let replies = option_replies(&played.out);
        assert_eq!(replies.len(), 2, "{label}");
        assert_eq!((replies[0].0, replies[0].1), (number, error), "{label}");
        assert!(
            str::from_utf8(&replies[0].2).is_ok_and(|text| !text.is_empty()),
            "{label}"
        );
        assert_eq!(replies[1].1, NBD_REP_ACK, "{label}");
    }
}

/// A client told twice that it has structured replies, or once wrongly, misreads every read.
#[test]
fn structured_replies_are_negotiated_once_and_only_if_offered() {
    let ask = option(NBD_OPT_STRUCTURED_REPLY, &[]);
    let go = option(NBD_OPT_GO, &info_data(b"disk", &[]));
    let stream = [client_flags(3), ask.clone(), ask, go].concat();
    for (config, kinds, df) in [
        (config(), [NBD_REP_ACK, NBD_REP_ERR_INVALID], true),
        (
            config().simple_replies_only(),
            [NBD_REP_ERR_UNSUP, NBD_REP_ERR_UNSUP],
            false,
        ),
    ] {
        let replies = option_replies(&play(config, &one_export(), &stream, &[64]).out);
        assert_eq!([replies[0].1, replies[1].1], kinds);
        let flags = u16::from_be_bytes([replies[2].2[10], replies[2].2[11]]);
        assert_eq!(flags & NBD_FLAG_SEND_DF != 0, df);
    }
}
