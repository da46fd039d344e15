use super::*;
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        session: SessionId(77),
        group: GroupUuid([1; 16]),
        name: "vm7".to_owned(),
        volume: VolumeUuid([2; 16]),
        volume_index: 0,
        volume_count: 2,
        assume_identical: true,
        size_bytes: 1 << 30,
        epoch: Epoch(5),
        lineage: vec![
            (LineageId([3; 16]), Epoch(1)),
            (LineageId([4; 16]), Epoch(4)),
        ],
    }
}

fn all() -> Vec<(&'static str, Frame)> {
    let (epoch, committed, released) = (Epoch(9), Epoch(8), Epoch(7));
    vec![
        ("hello", Frame::Hello(Box::new(hello()))),
        (
            "welcome",
            Frame::Welcome(Welcome {
                version: 1,
                session: SessionId(77),
                volume: VolumeUuid([2; 16]),
                size_bytes: 1 << 30,
                committed,
                sync_needed: true,
                credit_bytes: 1 << 20,
                journal_bytes: 1 << 28,
                name: "vm1".to_owned(),
            }),
        ),
        (
            "refuse",
            Frame::Refuse {
                code: RefuseCode::Lineage,
                text: "no".to_owned(),
            },
        ),
        (
            "ack",
            Frame::Ack {
                durable: epoch,
                committed,
                applied: released,
                credit_bytes: 4096,
            },
        ),
        ("ping", Frame::Ping(3)),
        ("pong", Frame::Pong(3)),
        ("sync-start", Frame::SyncStart),
        (
            "sync-check",
            Frame::SyncCheck {
                index: 4,
                hash: [5; 32],
            },
        ),
        (
            "sync-result",
            Frame::SyncResult {
                index: 4,
                differs: true,
            },
        ),
        ("sync-end", Frame::SyncEnd { epoch }),
        (
            "empty-seal",
            Frame::EmptySeal {
                epoch,
                committed,
                released,
                cut_unix_ns: 6,
            },
        ),
        (
            "bye",
            Frame::Bye {
                text: "stopping".to_owned(),
            },
        ),
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(SessionId(77), &mut bytes);
    bytes
}

/// Two builds of the same link version must understand each other: these bytes are frozen.
#[test]
fn golden_bytes() {
    for (name, frame) in all() {
        let bytes = encoded(&frame);
        crate::golden::check(&format!("frame-v1-{name}.bin"), &bytes);
        assert_eq!(Frame::decode(&bytes), Ok((frame, SessionId(77))), "{name}");
    }
}

/// A peer of any future version must find the version range of a first hello at the same place:
/// the first 48 bytes are frozen for ever, apart from the checksum of what follows.
#[test]
fn first_hello_is_frozen() {
    let bytes = encoded(&Frame::Hello(Box::new(hello())));
    let mut frozen = [0u8; 48];
    frozen[..8].copy_from_slice(b"BRFRAME1");
    frozen[8] = 1; // kind
    frozen[12..16].copy_from_slice(&u32::try_from(bytes.len() - 64).unwrap().to_le_bytes());
    frozen[16..20].copy_from_slice(&bytes[16..20]);
    frozen[24] = 77; // session
    frozen[32] = 1; // lowest version
    frozen[40] = 1; // highest version
    assert_eq!(bytes[..48], frozen);
}

/// Damage on the way must end the session, never change what was said.
#[test]
fn flips_and_truncations_are_refused() {
    for (name, frame) in all() {
        let mut bytes = encoded(&frame);
        for length in 0..bytes.len() {
            assert!(
                Frame::decode(&bytes[..length]).is_err(),
                "{name} cut at {length}"
            );
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bytes).is_err(), "{name} bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// A peer's text goes to logs and terminals: no control characters, no endless lines.
#[test]
fn text_is_tamed() {
    let long = "é".repeat(4000);
    let bytes = encoded(&Frame::Bye { text: long });
    let Ok((Frame::Bye { text }, _)) = Frame::decode(&bytes) else {
        panic!("decodes")
    };
    assert_eq!(text.len(), TEXT_BYTES_MAX);
    let bytes = encoded(&Frame::Bye {
        text: "a\x1b[2Jb\n".to_owned(),
    });
    let Ok((Frame::Bye { text }, _)) = Frame::decode(&bytes) else {
        panic!("decodes")
    };
    assert_eq!(text, "a [2Jb ");
}

/// Versions must meet or refuse, never guess.
#[test]
fn versions() {
    let mut peer = hello();
    assert_eq!(peer.choose_version(), Some(1));
    (peer.version_min, peer.version_max) = (2, 9);
    assert_eq!(peer.choose_version(), None);
    (peer.version_min, peer.version_max) = (0, 9);
    assert_eq!(peer.choose_version(), Some(1));
}

proptest! {
    /// Garbage with a right checksum must be refused or decoded without a panic.
    #[test]
    fn garbage(kind in 0u16..20, words: [u64; 4], body in prop::collection::vec(any::<u8>(), 0..4096)) {
        let raw = RawFrame {
            magic: FRAME_MAGIC, kind: kind.into(), reserved: 0.into(),
            body_bytes: u32::try_from(body.len()).unwrap().into(), crc: 0.into(),
            reserved2: 0.into(), session: 1.into(), words: words.map(U64::from),
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let crc = frame_crc(&bytes);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        let _ = Frame::decode(&bytes);
    }
}
