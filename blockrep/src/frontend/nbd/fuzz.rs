//! Body of a fuzz target: any bytes at all, from a client that means harm.
//!
//! A plain function, so that a fuzzer, a property test and a saved input can all call it.

use super::consts::*;
use super::*;

/// Largest READ and WRITE in the fuzzed configuration, in bytes.
const MAX_PAYLOAD_BYTES: u32 = 1 << 16;
/// What one message may be answered with: a list of the two exports with their texts, and ends.
const MAX_ANSWER_BYTES: usize = 512;

/// Reads `data` as a choice of how to frame the bytes, how to cut them, and the bytes.
/// Panics when an invariant of the module is broken.
pub fn any_bytes(data: &[u8]) {
    let [framing, cut, body @ ..] = data else {
        return;
    };
    let stream = match framing % 4 {
        0 => body.to_vec(),
        1 => [&hello(), body].concat(),
        2 => [hello(), framed_options(body)].concat(),
        _ => [hello(), go(), framed_requests(body)].concat(),
    };
    let mut out = Vec::new();
    let config = Config::new(MAX_PAYLOAD_BYTES).expect("a good configuration");
    let mut conn = Conn::new(config, &mut out);
    let exports = exports(framing & 0x80 != 0);
    for piece in stream.chunks(usize::from(*cut) + 1) {
        out.clear();
        if !feed(&mut conn, piece, &exports, &mut out) {
            assert_eq!(conn.phase(), Phase::Closing);
            return;
        }
    }
}

/// Feeds one piece; false when the connection came to its end.
fn feed(conn: &mut Conn, piece: &[u8], exports: &[ExportInfo], out: &mut Vec<u8>) -> bool {
    let mut rest = piece;
    let mut payload_left = 0;
    while !rest.is_empty() {
        if payload_left > 0 {
            // A driver that gives up after the first piece of the payload.
            let take = rest.len().min(payload_left);
            rest = &rest[take..];
            let left = u32::try_from(payload_left - take).expect("a payload's length is a u32");
            payload_left = 0;
            conn.refuse_payload(Errno::Io, left, out);
            continue;
        }
        let out_before = out.len();
        let Ok(step) = conn.input(rest, &exports, out) else {
            assert!(!conn.takes_input());
            return false;
        };
        assert!(step.consumed > 0 || step.event.is_some(), "no progress");
        assert!(
            out.len() - out_before <= MAX_ANSWER_BYTES,
            "answer without a bound"
        );
        assert!(
            conn.buffered_bytes() <= MAX_OPTION_DATA_BYTES as usize,
            "buffer without a bound"
        );
        rest = &rest[step.consumed..];
        match step.event {
            Some(Event::Request(request)) => check(conn, &request, false),
            Some(Event::WritePayload(request)) => {
                check(conn, &request, true);
                payload_left = request.length as usize;
                if rest.is_empty() {
                    conn.refuse_payload(Errno::Io, request.length, out);
                    payload_left = 0;
                }
            }
            Some(Event::Disconnect) => return false,
            Some(Event::TransmissionStarted) | None => {}
        }
    }
    true
}

/// The promises every request keeps that reaches a driver.
fn check(conn: &Conn, request: &Request, with_payload: bool) {
    let export = conn
        .export()
        .expect("requests come in the transmission phase");
    let flags = export.transmission_flags(conn.replies().structured());
    let length = u64::from(request.length);
    let unit = u64::from(MIN_BLOCK_BYTES);
    assert!(request.offset.is_multiple_of(unit) && length.is_multiple_of(unit));
    assert!(
        request
            .offset
            .checked_add(length)
            .is_some_and(|end| end <= export.size_bytes())
    );
    assert!(!request.fua || flags & NBD_FLAG_SEND_FUA != 0);
    assert_eq!(length == 0, request.command == Command::Flush);
    assert_eq!(with_payload, request.command == Command::Write);
    let (needed, limited) = match request.command {
        Command::Read { dont_fragment } => (if dont_fragment { NBD_FLAG_SEND_DF } else { 0 }, true),
        Command::Write => (0, true),
        Command::Flush => (NBD_FLAG_SEND_FLUSH, false),
        Command::Trim => (NBD_FLAG_SEND_TRIM, false),
        Command::WriteZeroes { fast: false, .. } => (NBD_FLAG_SEND_WRITE_ZEROES, false),
        Command::WriteZeroes { .. } => {
            (NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO, false)
        }
    };
    assert_eq!(
        flags & needed,
        needed,
        "a command the export does not offer"
    );
    assert!(!limited || request.length <= MAX_PAYLOAD_BYTES);
    let reads_only = matches!(request.command, Command::Read { .. } | Command::Flush);
    assert!(reads_only || !export.read_only);
}

fn exports(read_only: bool) -> Vec<ExportInfo> {
    let mut disk = ExportInfo::new("disk", 1 << 20).expect("a good export");
    disk.features = Features {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        ..Features::default()
    };
    disk.read_only = read_only;
    let bare = ExportInfo::new("bare", 1 << 12).expect("a good export");
    vec![disk, bare]
}

fn hello() -> Vec<u8> {
    (NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)
        .to_be_bytes()
        .to_vec()
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short data");
    [
        &IHAVEOPT.to_be_bytes(),
        &option.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

fn go() -> Vec<u8> {
    option(NBD_OPT_GO, &[0; 6])
}

/// Options with a right magic and a length that fits, everything else from `body`.
fn framed_options(body: &[u8]) -> Vec<u8> {
    body.chunks(19)
        .flat_map(|chunk| option(u32::from(chunk[0] % 13), &chunk[1..]))
        .collect()
}

/// Requests with a right magic and small numbers where those are more telling, the rest from
/// `body`.
fn framed_requests(body: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for chunk in body.chunks(8) {
        let at = |index: usize| chunk.get(index).copied().unwrap_or(0);
        let sector = |high: u8, low: u8| u64::from(u16::from_be_bytes([high, low]) % 2100) * 512;
        let length = (sector(at(4), at(5)) as u32).wrapping_add(u32::from(at(6) / 254));
        stream.extend_from_slice(&NBD_REQUEST_MAGIC.to_be_bytes());
        stream.extend_from_slice(&[0, at(0) % 40, 0, at(1) % 9]);
        stream.extend_from_slice(&[at(7); 8]);
        stream.extend_from_slice(&sector(at(2), at(3)).to_be_bytes());
        stream.extend_from_slice(&length.to_be_bytes());
        if u16::from(at(1) % 9) == NBD_CMD_WRITE {
            // Most payloads end where the next request begins, some do not.
            stream.resize(stream.len() + (length as usize).min(1 << 17), at(7));
        }
    }
    stream
}
