use super::*;

/// A server that says fixed bytes and records what it hears.
struct Script {
    says: io::Cursor<Vec<u8>>,
    heard: Vec<u8>,
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.says.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.heard.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn greeting() -> Vec<u8> {
    [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 3]].concat()
}

fn option_reply(kind: u32, body: &[u8]) -> Vec<u8> {
    let magic = OPTION_REPLY_MAGIC.to_be_bytes();
    let len = (body.len() as u32).to_be_bytes();
    [
        magic.as_slice(),
        &7u32.to_be_bytes(),
        &kind.to_be_bytes(),
        &len,
        body,
    ]
    .concat()
}

fn talk(says: Vec<u8>) -> (Result<Export, NbdError>, Vec<u8>) {
    let mut script = Script {
        says: io::Cursor::new(says),
        heard: Vec::new(),
    };
    let result = handshake(&mut script, "disk");
    (result, script.heard)
}

fn good() -> Vec<u8> {
    let export = [&[0, 0][..], &4096u64.to_be_bytes(), &[1, 0b0110_1101]].concat();
    let sizes = [
        &[0, 3][..],
        &512u32.to_be_bytes(),
        &[0, 0, 16, 0],
        &[0, 16, 0, 0],
    ]
    .concat();
    let replies = [
        option_reply(3, &sizes),
        option_reply(3, &export),
        option_reply(1, &[]),
    ];
    [greeting(), replies.concat()].concat()
}

/// Production: a misread flag or size makes the generator send what the server never offered.
#[test]
fn the_handshake_reads_what_the_server_offers() {
    let (export, heard) = talk(good());
    let export = export.unwrap();
    assert_eq!(
        (export.bytes, export.block_min, export.payload_max),
        (4096, 512, 1 << 20)
    );
    assert!(export.flush() && export.fua() && export.trim() && export.write_zeroes());
    assert!(export.multi_conn() && !export.read_only());
    assert_eq!(heard[..4], [0, 0, 0, 3]);
    assert_eq!(heard[4..20], *b"IHAVEOPT\0\0\0\x07\0\0\0\x0c");
    assert_eq!(heard[20..], *b"\0\0\0\x04disk\0\x01\0\x03");
}

/// Production: a server that dies in the handshake must be an error, not a hang or a panic.
#[test]
fn a_handshake_cut_at_any_byte_is_an_error() {
    let good = good();
    for cut in 0..good.len() {
        assert!(talk(good[..cut].to_vec()).0.is_err(), "cut at {cut}");
    }
}

/// Production: absurd lengths, endless replies or a refusal from the other end.
#[test]
fn hostile_and_refusing_servers_get_an_error_each() {
    let mut absurd = [greeting(), option_reply(3, &[])].concat();
    let at = absurd.len() - 4;
    absurd[at..].copy_from_slice(&u32::MAX.to_be_bytes());
    let endless = [greeting(), option_reply(3, &[0, 9]).repeat(100)].concat();
    let unsized_ack = [greeting(), option_reply(1, &[])].concat();
    for says in [
        absurd,
        endless,
        unsized_ack,
        b"HTTP/1.1 400 Bad Request".to_vec(),
    ] {
        assert!(matches!(talk(says).0, Err(NbdError::Protocol(_))));
    }
    match talk([greeting(), option_reply(REPLY_IS_ERROR | 6, &[])].concat()).0 {
        Err(NbdError::Refused { reason, .. }) => assert_eq!(reason, "no such export"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Production: a mistyped address must name the form expected.
#[test]
fn addresses_have_two_forms() {
    assert_eq!("unix:/a:b".parse(), Ok(Address::Unix("/a:b".into())));
    assert_eq!(
        "tcp:[::1]:10809".parse(),
        Ok(Address::Tcp("[::1]:10809".into()))
    );
    for bad in ["", "unix:", "tcp:host", "tcp:host:port", "/path"] {
        assert!(bad.parse::<Address>().is_err(), "accepted {bad}");
    }
}
