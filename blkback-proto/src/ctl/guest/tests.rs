//! A checkpointer and a tool of different builds that misread each other: a promotion that was meant with a guard is
//! done without it, and an operator acts on the figures of another step.

use proptest::prelude::*;

use super::*;
use crate::ctl::{
    Answer, ErrorCode, EventKind, HEADER_BYTES, MemoryPart, Request, Response, decode,
    response_packets,
};

const DOCUMENT: &str = include_str!("../../../PROTOCOL.md");

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    bytes.join(" ")
}

fn spread(p50: u64, p99: u64) -> Spread {
    Spread { p50, p99 }
}

fn daemon() -> DaemonStatus {
    DaemonStatus {
        name: "checkpointer".into(),
        version: "0.1.0".into(),
        pid: 4711,
        uptime_s: 60,
    }
}

fn stated<S>(state: S, reason: &str, since_unix_ms: u64, next: &str) -> Stated<S> {
    Stated {
        state,
        reason: reason.into(),
        since_unix_ms,
        next: next.into(),
    }
}

fn timeline() -> GuestTimeline {
    GuestTimeline {
        epochs: 42,
        us: StepTimes {
            stop: spread(300, 900),
            disk_cut: spread(150, 400),
            scan: spread(90, 200),
            copy: spread(110, 700),
            device_state: spread(1900, 6000),
            output_cut: spread(80, 200),
            cont: spread(200, 500),
            pause: spread(3100, 9000),
            ours: spread(350, 1300),
            encode: spread(800, 3000),
            send: spread(900, 4000),
            whole: Some(spread(1500, 6000)),
            committed: Some(spread(2100, 7000)),
            released: Some(spread(2200, 7400)),
        },
        dirty_pages: spread(120, 2000),
        raw_bytes: spread(520_192, 8_220_672),
        wire_bytes: spread(61_440, 1_048_576),
    }
}

fn lineage() -> String {
    "9f0c1d2e3b4a5968".repeat(2)
}

fn authority() -> GuestAuthority {
    GuestAuthority {
        words: "the file /var/lib/blockrep/vm1.authority".into(),
        record: Some(GuestRecord {
            generation: 2,
            lineage: lineage(),
            primary: "a".into(),
            in_sync: vec!["a".into(), "b".into()],
            note: "b has joined".into(),
            unix_ms: 1_700_000_000_100,
        }),
        failed: None,
    }
}

fn bounds(bytes_max: u64) -> Bounds {
    let staging = MemoryPart {
        name: "staging".into(),
        bytes_max,
    };
    Bounds {
        memory_bytes_max: bytes_max,
        memory: if bytes_max > 0 { vec![staging] } else { vec![] },
        queues: vec![],
    }
}

fn standby() -> GuestReport {
    GuestReport {
        daemon: daemon(),
        guest: "vm1".into(),
        host: "b".into(),
        side: GuestSide::Standby,
        stated: stated(
            GuestProtection::Lost,
            "the primary is silent for 300 ms",
            1_700_000_000_123,
            "blockrepctl guest promote vm1 --by-hand, when the guest is known to be off at a",
        ),
        hypervisor: None,
        tracker: None,
        authority: GuestAuthority {
            words: "an operator".into(),
            record: None,
            failed: Some("the record cannot be read: permission denied".into()),
        },
        disks: None,
        output: None,
        memory_link: None,
        first_copy: None,
        epochs: GuestEpochs {
            whole: Some(43),
            committed: Some(42),
            ..GuestEpochs::default()
        },
        interval: None,
        timeline: None,
        clock: None,
        given_up: GuestGivenUp::default(),
        standby: Some(GuestStandby {
            generation: 3,
            pid: Some(4713),
            promotable_epoch: Some(42),
            promotable_age_ms: Some(350),
            if_promoted: "the guest goes on from epoch 42".into(),
        }),
        bounds: bounds(0),
    }
}

fn primary() -> GuestReport {
    GuestReport {
        host: "a".into(),
        side: GuestSide::Primary,
        stated: stated(
            GuestProtection::Protected,
            "the backup has epoch 42",
            1_700_000_000_123,
            "",
        ),
        hypervisor: Some(GuestHypervisor {
            pid: Some(4712),
            version: "QEMU 10.0.0".into(),
            state_path: Some(StatePath::XenSave),
            why: "no memory lies outside the shared file".into(),
        }),
        tracker: Some(GuestTracker {
            kind: TrackerKind::Uffd,
            why: "the kernel has it".into(),
            last_scan_us: Some(90),
        }),
        authority: authority(),
        disks: Some(GuestDisks {
            control: "/run/blockrep/vm1.sock".into(),
            state: Some("protected".into()),
            reason: "the backup acknowledges epochs".into(),
        }),
        output: Some(GuestOutput {
            state: Some(NetState::Holding),
            mechanism: Some(NetMechanism::Relay),
            reason: "epoch 42 is out".into(),
        }),
        memory_link: Some(MemoryLink {
            peer: Some("10.0.0.2:7100".into()),
            stated: stated(LinkState::Up, "connected", 1_700_000_000_050, ""),
            rtt_us: Some(210),
            sent_bytes: 268_435_456,
            received_bytes: 4096,
        }),
        epochs: GuestEpochs {
            cut: Some(43),
            sent: Some(43),
            whole: Some(42),
            committed: Some(42),
            released: Some(42),
        },
        interval: Some(GuestInterval {
            mode: IntervalMode::Adaptive,
            now_ms: 60,
            min_ms: 25,
            max_ms: 200,
            pause_percent: 4.5,
            pause_percent_max: Some(5.0),
        }),
        timeline: Some(timeline()),
        clock: Some(GuestClock {
            lost_ms: 130,
            lost_percent: 4.5,
        }),
        given_up: GuestGivenUp {
            count: 1,
            last_reason: "the disks did not answer in 100 ms".into(),
        },
        standby: None,
        bounds: bounds(268_435_456),
        ..standby()
    }
}

fn batch() -> GuestTimelineAnswer {
    let whole = EpochFigures {
        seq: 7,
        epoch: Some(42),
        unix_ms: 1_700_000_000_123,
        us: StepTimes {
            stop: 300,
            disk_cut: 150,
            scan: 90,
            copy: 110,
            device_state: 1900,
            output_cut: 80,
            cont: 200,
            pause: 2830,
            ours: 350,
            encode: 800,
            send: 900,
            whole: Some(1500),
            committed: Some(2100),
            released: Some(2200),
        },
        dirty_pages: 120,
        zero_pages: None,
        raw_bytes: 520_192,
        wire_bytes: 61_440,
        given_up: None,
    };
    let given_up = EpochFigures {
        seq: 8,
        unix_ms: 1_700_000_000_148,
        us: StepTimes {
            stop: 100_000,
            cont: 200,
            pause: 100_200,
            ..StepTimes::default()
        },
        given_up: Some("the guest did not stop in 100 ms".into()),
        ..EpochFigures::default()
    };
    GuestTimelineAnswer {
        log: "9f0c1d2e3b4a5968".into(),
        epochs: vec![whole, given_up],
        lost: 0,
        next_seq: 9,
        more: false,
    }
}

fn promoted() -> GuestPromoteAnswer {
    GuestPromoteAnswer {
        already: false,
        epoch: 42,
        lineage: lineage(),
        duration_us: 14_300,
        steps: PromoteSteps {
            decide_us: 700,
            disk_us: 2900,
            memory_us: 1200,
            load_us: 7400,
            cont_us: 1600,
            announce_us: 500,
        },
        clock_behind_ms: Some(480),
        note: String::new(),
    }
}

fn requests() -> Vec<(Request, (&'static str, &'static str))> {
    vec![
        (Request::GuestStatus(GuestStatusRequest {}), GUEST_STATUS),
        (
            Request::GuestTimeline(GuestTimelineRequest { from_seq: 7 }),
            GUEST_TIMELINE,
        ),
        (
            Request::GuestStop(GuestStopRequest {
                reason: "host b is taken down".into(),
                by_hand: false,
            }),
            GUEST_STOP,
        ),
        (
            Request::GuestPromote(GuestPromoteRequest {
                force: false,
                by_hand: true,
                reason: "host a is off, I pulled the plug".into(),
            }),
            GUEST_PROMOTE,
        ),
    ]
}

fn answers() -> Vec<(Answer, (&'static str, &'static str))> {
    vec![
        (
            Answer::GuestStatus(Box::new(primary())),
            GUEST_STATUS_ANSWER,
        ),
        (
            Answer::GuestStatus(Box::new(standby())),
            GUEST_STATUS_ANSWER_OF_A_STANDBY,
        ),
        (Answer::GuestTimeline(batch()), GUEST_TIMELINE_ANSWER),
        (
            Answer::GuestStop(GuestStopAnswer {
                already: false,
                state: GuestProtection::Open,
                committed: Some(42),
                note: String::new(),
            }),
            GUEST_STOP_ANSWER,
        ),
        (Answer::GuestPromote(promoted()), GUEST_PROMOTE_ANSWER),
    ]
}

/// Bytes, document and what is read from them are one.
#[test]
fn golden_bytes_and_document_agree() {
    let requests = requests().into_iter().map(|(request, golden)| {
        assert!(request.is_for_checkpointer() && !request.is_for_netbuf());
        assert_eq!(Request::from_body(golden.1.as_bytes()).unwrap(), request);
        (request.to_packet(1, 4).unwrap(), golden)
    });
    let answers = answers().into_iter().map(|(answer, golden)| {
        let response = Response::Ok(answer);
        assert_eq!(Response::from_body(golden.1.as_bytes()).unwrap(), response);
        let mut packets = response_packets(1, 4, &response).unwrap();
        (packets.remove(0), golden)
    });
    for (packet, (header, body)) in requests.chain(answers) {
        assert_eq!(std::str::from_utf8(&packet[HEADER_BYTES..]).unwrap(), body);
        assert_eq!(hex(&packet[..HEADER_BYTES]), header, "{body}");
        let both = format!("{header}\n{body}\n");
        assert!(DOCUMENT.contains(&both), "not in the document: {body}");
    }
}

/// A word or limit that only the code has cannot be programmed against.
#[test]
fn document_names_every_word_and_limit() {
    let lists = [
        GuestSide::WORDS,
        GuestProtection::WORDS,
        StatePath::WORDS,
        TrackerKind::WORDS,
        IntervalMode::WORDS,
        EventKind::WORDS,
        ErrorCode::WORDS,
    ];
    for word in lists.into_iter().flatten() {
        assert!(DOCUMENT.contains(&format!("`{word}`")), "{word}");
    }
    for limit in [EPOCH_FIGURES_MAX, GIVEN_UP_BYTES_MAX] {
        assert!(DOCUMENT.contains(&format!("at most {limit}")), "{limit}");
    }
    for side in [GuestSide::Primary, GuestSide::Standby] {
        let path = format!("`/run/blockrep/{}`", guest_socket_name("GUEST", &side));
        assert!(DOCUMENT.contains(&path), "{path}");
    }
}

/// A guard that a newer client asked for must not be passed over in silence.
#[test]
fn unknown_fields_are_refused() {
    for body in [
        r#"{"guest-promote":{"only_if_epoch":7}}"#,
        r#"{"guest-promote":{"by_hand":"yes"}}"#,
        r#"{"guest-stop":{"guest":"vm1"}}"#,
        r#"{"guest-status":{"guest":"vm1"}}"#,
        r#"{"guest-timeline":{"from_seq":-1}}"#,
    ] {
        assert!(Request::from_body(body.as_bytes()).is_err(), "{body}");
    }
    let body = r#"{"guest-promote":{}}"#;
    let plain = Request::GuestPromote(GuestPromoteRequest::default());
    assert_eq!(Request::from_body(body.as_bytes()).unwrap(), plain);
}

/// A full timeline that no answer has room for would leave the report without any.
#[test]
fn the_largest_batch_fits_an_answer() {
    let max = u64::MAX;
    let figures = EpochFigures {
        seq: max,
        epoch: Some(max),
        unix_ms: max,
        us: StepTimes {
            stop: max,
            disk_cut: max,
            scan: max,
            copy: max,
            device_state: max,
            output_cut: max,
            cont: max,
            pause: max,
            ours: max,
            encode: max,
            send: max,
            whole: Some(max),
            committed: Some(max),
            released: Some(max),
        },
        dirty_pages: max,
        zero_pages: Some(max),
        raw_bytes: max,
        wire_bytes: max,
        given_up: Some("\"".repeat(5000)),
    };
    let figures = figures.bounded();
    assert!(serde_json::to_vec(&figures).unwrap().len() <= EPOCH_FIGURES_BYTES_MAX);
    let answer = Answer::GuestTimeline(GuestTimelineAnswer {
        log: "f".repeat(32),
        epochs: vec![figures; EPOCH_FIGURES_MAX],
        lost: max,
        next_seq: max,
        more: true,
    });
    assert!(response_packets(1, 4, &Response::Ok(answer)).is_ok());
}

/// A share of no time must not make the whole status unreadable.
#[test]
fn a_share_that_is_no_number_is_read_as_none() {
    let mut report = primary();
    let interval = report.interval.as_mut().unwrap();
    interval.pause_percent = f64::NAN;
    let text = serde_json::to_string(&report).unwrap();
    let read: GuestReport = serde_json::from_str(&text).unwrap();
    assert_eq!(read.interval.unwrap().pause_percent, 0.0);
}

proptest! {
    /// What one side encodes and the other reads as something else is acted upon wrongly.
    #[test]
    fn requests_round_trip(
        (force, by_hand) in any::<(bool, bool)>(),
        reason in any::<String>(),
        from_seq in any::<u64>(),
        id in 1u32..,
    ) {
        for request in [
            Request::GuestPromote(GuestPromoteRequest { force, by_hand, reason: reason.clone() }),
            Request::GuestStop(GuestStopRequest { reason: reason.clone(), by_hand }),
            Request::GuestTimeline(GuestTimelineRequest { from_seq }),
        ] {
            let packet = request.to_packet(1, id).unwrap();
            let body = decode(&packet).unwrap().body;
            prop_assert_eq!(&Request::from_body(body).unwrap(), &request);
            for cut in 0..body.len().min(200) {
                prop_assert!(Request::from_body(&body[..cut]).is_err());
            }
        }
    }
}

const GUEST_STATUS: (&str, &str) = (
    "42 52 43 54 01 00 01 00 04 00 00 00 13 00 00 00",
    r#"{"guest-status":{}}"#,
);
const GUEST_TIMELINE: (&str, &str) = (
    "42 52 43 54 01 00 01 00 04 00 00 00 21 00 00 00",
    r#"{"guest-timeline":{"from_seq":7}}"#,
);
const GUEST_STOP: (&str, &str) = (
    "42 52 43 54 01 00 01 00 04 00 00 00 40 00 00 00",
    r#"{"guest-stop":{"reason":"host b is taken down","by_hand":false}}"#,
);
const GUEST_PROMOTE: (&str, &str) = (
    "42 52 43 54 01 00 01 00 04 00 00 00 5c 00 00 00",
    r#"{"guest-promote":{"force":false,"by_hand":true,"reason":"host a is off, I pulled the plug"}}"#,
);
const GUEST_STATUS_ANSWER: (&str, &str) = (
    "42 52 43 54 01 00 02 00 04 00 00 00 d1 07 00 00",
    r#"{"ok":{"guest-status":{"daemon":{"name":"checkpointer","version":"0.1.0","pid":4711,"uptime_s":60},"guest":"vm1","host":"a","side":"primary","state":"protected","reason":"the backup has epoch 42","since_unix_ms":1700000000123,"next":"","hypervisor":{"pid":4712,"version":"QEMU 10.0.0","state_path":"xen-save","why":"no memory lies outside the shared file"},"tracker":{"kind":"uffd","why":"the kernel has it","last_scan_us":90},"authority":{"words":"the file /var/lib/blockrep/vm1.authority","record":{"generation":2,"lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968","primary":"a","in_sync":["a","b"],"note":"b has joined","unix_ms":1700000000100}},"disks":{"control":"/run/blockrep/vm1.sock","state":"protected","reason":"the backup acknowledges epochs"},"output":{"state":"holding","mechanism":"relay","reason":"epoch 42 is out"},"memory_link":{"peer":"10.0.0.2:7100","state":"up","reason":"connected","since_unix_ms":1700000000050,"next":"","rtt_us":210,"sent_bytes":268435456,"received_bytes":4096},"epochs":{"cut":43,"sent":43,"whole":42,"committed":42,"released":42},"interval":{"mode":"adaptive","now_ms":60,"min_ms":25,"max_ms":200,"pause_percent":4.5,"pause_percent_max":5.0},"timeline":{"epochs":42,"us":{"stop":{"p50":300,"p99":900},"disk_cut":{"p50":150,"p99":400},"scan":{"p50":90,"p99":200},"copy":{"p50":110,"p99":700},"device_state":{"p50":1900,"p99":6000},"output_cut":{"p50":80,"p99":200},"cont":{"p50":200,"p99":500},"pause":{"p50":3100,"p99":9000},"ours":{"p50":350,"p99":1300},"encode":{"p50":800,"p99":3000},"send":{"p50":900,"p99":4000},"whole":{"p50":1500,"p99":6000},"committed":{"p50":2100,"p99":7000},"released":{"p50":2200,"p99":7400}},"dirty_pages":{"p50":120,"p99":2000},"raw_bytes":{"p50":520192,"p99":8220672},"wire_bytes":{"p50":61440,"p99":1048576}},"clock":{"lost_ms":130,"lost_percent":4.5},"given_up":{"count":1,"last_reason":"the disks did not answer in 100 ms"},"bounds":{"memory_bytes_max":268435456,"memory":[{"name":"staging","bytes_max":268435456}],"queues":[]}}}}"#,
);
const GUEST_STATUS_ANSWER_OF_A_STANDBY: (&str, &str) = (
    "42 52 43 54 01 00 02 00 04 00 00 00 95 02 00 00",
    r#"{"ok":{"guest-status":{"daemon":{"name":"checkpointer","version":"0.1.0","pid":4711,"uptime_s":60},"guest":"vm1","host":"b","side":"standby","state":"lost","reason":"the primary is silent for 300 ms","since_unix_ms":1700000000123,"next":"blockrepctl guest promote vm1 --by-hand, when the guest is known to be off at a","authority":{"words":"an operator","failed":"the record cannot be read: permission denied"},"epochs":{"whole":43,"committed":42},"given_up":{"count":0},"standby":{"generation":3,"pid":4713,"promotable_epoch":42,"promotable_age_ms":350,"if_promoted":"the guest goes on from epoch 42"},"bounds":{"memory_bytes_max":0,"memory":[],"queues":[]}}}}"#,
);
const GUEST_TIMELINE_ANSWER: (&str, &str) = (
    "42 52 43 54 01 00 02 00 04 00 00 00 92 02 00 00",
    r#"{"ok":{"guest-timeline":{"log":"9f0c1d2e3b4a5968","epochs":[{"seq":7,"epoch":42,"unix_ms":1700000000123,"us":{"stop":300,"disk_cut":150,"scan":90,"copy":110,"device_state":1900,"output_cut":80,"cont":200,"pause":2830,"ours":350,"encode":800,"send":900,"whole":1500,"committed":2100,"released":2200},"dirty_pages":120,"raw_bytes":520192,"wire_bytes":61440},{"seq":8,"unix_ms":1700000000148,"us":{"stop":100000,"disk_cut":0,"scan":0,"copy":0,"device_state":0,"output_cut":0,"cont":200,"pause":100200,"ours":0,"encode":0,"send":0},"dirty_pages":0,"raw_bytes":0,"wire_bytes":0,"given_up":"the guest did not stop in 100 ms"}],"lost":0,"next_seq":9,"more":false}}}"#,
);
const GUEST_STOP_ANSWER: (&str, &str) = (
    "42 52 43 54 01 00 02 00 04 00 00 00 45 00 00 00",
    r#"{"ok":{"guest-stop":{"already":false,"state":"open","committed":42}}}"#,
);
const GUEST_PROMOTE_ANSWER: (&str, &str) = (
    "42 52 43 54 01 00 02 00 04 00 00 00 f6 00 00 00",
    r#"{"ok":{"guest-promote":{"already":false,"epoch":42,"lineage":"9f0c1d2e3b4a59689f0c1d2e3b4a5968","duration_us":14300,"steps":{"decide_us":700,"disk_us":2900,"memory_us":1200,"load_us":7400,"cont_us":1600,"announce_us":500},"clock_behind_ms":480}}}"#,
);
