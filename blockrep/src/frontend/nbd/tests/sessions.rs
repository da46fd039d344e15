//! Whole generated sessions: how the network cuts them must not matter.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// One message of a client.
#[derive(Clone, Debug)]
enum Message {
    Option {
        number: u32,
        data: Vec<u8>,
    },
    Go {
        name: &'static str,
        requests: Vec<u16>,
    },
    Request {
        flags: u16,
        kind: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    },
    Noise(Vec<u8>),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        match self {
            Message::Option { number, data } => option(*number, data),
            Message::Go { name, requests } => {
                option(NBD_OPT_GO, &info_data(name.as_bytes(), requests))
            }
            Message::Request {
                flags,
                kind,
                cookie,
                offset,
                length,
            } => {
                let payload = if *kind == NBD_CMD_WRITE {
                    *length as usize
                } else {
                    0
                };
                let mut bytes = request(*flags, *kind, *cookie, *offset, *length);
                bytes.extend((0..payload).map(|at| (at as u64 ^ *cookie) as u8));
                bytes
            }
            Message::Noise(bytes) => bytes.clone(),
        }
    }
}

fn any_option() -> impl Strategy<Value = Message> {
    let data = || prop::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        6 => (3u32..14, data()).prop_map(|(number, data)| Message::Option { number, data }),
        3 => (3u32..14).prop_map(|number| Message::Option { number, data: vec![] }),
        2 => (0usize..10_000).prop_map(|length| Message::Option {
            number: NBD_OPT_INFO,
            data: vec![0; length],
        }),
        3 => prop::collection::vec(0u16..6, 0..4)
            .prop_map(|requests| Message::Go { name: "nobody", requests }),
    ]
}

fn any_request() -> impl Strategy<Value = Message> {
    let flags = select(vec![0, 0, 0, 1, 2, 4, 16, 0x100]);
    let kind = select(vec![0, 0, 1, 1, 1, 3, 4, 5, 6, 7, 9]);
    let sector = prop_oneof![9 => 0u64..2060, 1 => Just((1 << 55) - 1)];
    let length = prop_oneof![9 => (0u32..9).prop_map(|n| n * 512), 1 => 0u32..3000];
    (flags, kind, any::<u64>(), sector, length).prop_map(|(flags, kind, cookie, sector, length)| {
        // A good flush has no range, and would be generated next to never.
        let (sector, length) = if kind == NBD_CMD_FLUSH {
            (0, 0)
        } else {
            (sector, length)
        };
        Message::Request {
            flags,
            kind,
            cookie,
            offset: sector * 512,
            length,
        }
    })
}

fn any_session() -> impl Strategy<Value = Vec<Message>> {
    let end = prop_oneof![
        2 => Just(Message::Request { flags: 0, kind: NBD_CMD_DISC, cookie: 0, offset: 0, length: 0 }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Message::Noise),
    ];
    let name = select(vec!["", "disk", "second"]);
    let go = prop::collection::vec(0u16..6, 0..4);
    (
        prop::collection::vec(any_option(), 0..6),
        (name, go),
        prop::collection::vec(any_request(), 0..12),
        end,
    )
        .prop_map(|(options, (name, requests), commands, end)| {
            let mut all = options;
            all.push(Message::Go { name, requests });
            all.extend(commands);
            all.push(end);
            all
        })
}

fn encode(session: &[Message]) -> Vec<u8> {
    let mut stream = client_flags(3);
    session
        .iter()
        .for_each(|message| stream.extend(message.encode()));
    stream
}

fn two_exports() -> Vec<ExportInfo> {
    vec![
        full_export("disk", 1 << 20),
        ExportInfo::new("second", 4096).expect("a good export"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// TCP cuts where it likes; a server that depends on the cut loses or invents writes.
    #[test]
    fn cutting_a_session_changes_nothing(
        session in any_session(),
        pieces in prop::collection::vec(1usize..2000, 1..30),
    ) {
        let stream = encode(&session);
        let whole = play(config(), &two_exports(), &stream, &[usize::MAX]);
        prop_assert!(whole.events.contains(&Event::TransmissionStarted));
        prop_assert_eq!(&play(config(), &two_exports(), &stream, &[1]), &whole);
        prop_assert_eq!(&play(config(), &two_exports(), &stream, &pieces), &whole);
    }

    /// Every request gets one answer: from the driver if it saw it, else from here. A request
    /// without one hangs the guest; one with two kills its connection.
    #[test]
    fn every_request_is_either_reported_or_refused(
        commands in prop::collection::vec(any_request(), 0..20),
    ) {
        let before = play(config(), &two_exports(), &handshake(false), &[usize::MAX]).out.len();
        let mut stream = handshake(false);
        commands.iter().for_each(|command| stream.extend(command.encode()));
        let played = play(config(), &two_exports(), &stream, &[usize::MAX]);
        let refused = played.out[before..].chunks(16).map(|reply| {
            u64::from_be_bytes(reply[8..].try_into().expect("8 bytes"))
        });
        let reported = played.events.iter().filter_map(|event| match event {
            Event::Request(request) | Event::WritePayload(request) => Some(request.cookie.0),
            Event::TransmissionStarted | Event::Disconnect => None,
        });
        let mut answered: Vec<u64> = refused.chain(reported).collect();
        let mut asked: Vec<u64> = commands.iter().filter_map(|command| match command {
            Message::Request { cookie, .. } => Some(*cookie),
            _ => None,
        }).collect();
        answered.sort_unstable();
        asked.sort_unstable();
        prop_assert_eq!(answered, asked);
    }

    /// A payload that begins one byte early or late is silent corruption.
    #[test]
    fn payloads_arrive_whole(commands in prop::collection::vec(any_request(), 1..20)) {
        let mut stream = handshake(true);
        commands.iter().for_each(|command| stream.extend(command.encode()));
        let played = play(config(), &two_exports(), &stream, &[333]);
        let writes = played.events.iter().filter_map(|event| match event {
            Event::WritePayload(request) => Some(*request),
            _ => None,
        });
        let wanted: Vec<Vec<u8>> = writes
            .map(|w| (0..u64::from(w.length)).map(|at| (at ^ w.cookie.0) as u8).collect())
            .collect();
        prop_assert_eq!(played.payloads, wanted);
    }
}
