//! The protocol as seen from the other end of the wire.

mod golden;
mod limits;
mod peer;
mod refusals;
mod sessions;

use super::consts::*;
use super::*;

const MIB: u32 = 1 << 20;

/// Everything one connection did.
#[derive(Debug, PartialEq, Eq)]
struct Played {
    out: Vec<u8>,
    events: Vec<Event>,
    payloads: Vec<Vec<u8>>,
    end: Result<Phase, Fatal>,
}

fn config() -> Config {
    Config::new(MIB).expect("a good configuration")
}

fn full_export(name: &str, size_bytes: u64) -> ExportInfo {
    let mut export = ExportInfo::new(name, size_bytes).expect("a good export");
    export.features = Features {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: false,
        multi_conn: true,
        rotational: false,
    };
    export
}

fn one_export() -> Vec<ExportInfo> {
    vec![full_export("disk", 0x10_0000)]
}

/// Plays a client's whole side, cut into pieces of the given sizes (the last one repeats), and
/// takes payloads as a driver does.
fn play(config: Config, exports: &[ExportInfo], stream: &[u8], pieces: &[usize]) -> Played {
    let mut out = Vec::new();
    let mut conn = Conn::new(config, &mut out);
    let (mut events, mut payloads) = (Vec::new(), Vec::new());
    let mut payload: Vec<u8> = Vec::new();
    let mut ahead = stream;
    let mut sizes = pieces.iter().chain(pieces.last().into_iter().cycle());
    while !ahead.is_empty() && conn.phase() != Phase::Closing {
        let size = *sizes.next().expect("pieces is not empty");
        let (mut rest, after) = ahead.split_at(size.min(ahead.len()));
        ahead = after;
        while !rest.is_empty() && conn.phase() != Phase::Closing {
            if let Some(request) = conn.awaited_payload() {
                let missing = request.length as usize - payload.len();
                let (now, later) = rest.split_at(missing.min(rest.len()));
                payload.extend_from_slice(now);
                rest = later;
                if payload.len() == request.length as usize {
                    payloads.push(std::mem::take(&mut payload));
                    conn.payload_done();
                }
                continue;
            }
            match conn.input(rest, &exports, &mut out) {
                Ok(step) => {
                    rest = &rest[step.consumed..];
                    events.extend(step.event);
                }
                Err(fatal) => {
                    return Played {
                        out,
                        events,
                        payloads,
                        end: Err(fatal),
                    };
                }
            }
        }
    }
    Played {
        out,
        events,
        payloads,
        end: Ok(conn.phase()),
    }
}

/// Bytes from hex; blanks and `#` comments to the end of the line are for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or("").chars())
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("a hex digit"))
        .collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

fn client_flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
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

fn info_data(name: &[u8], requests: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&(requests.len() as u16).to_be_bytes());
    requests
        .iter()
        .for_each(|request| data.extend_from_slice(&request.to_be_bytes()));
    data
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = NBD_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// Client flags, structured replies if wanted, GO: everything before the first request.
fn handshake(structured: bool) -> Vec<u8> {
    let mut stream = client_flags(3);
    if structured {
        stream.extend(option(NBD_OPT_STRUCTURED_REPLY, &[]));
    }
    stream.extend(option(NBD_OPT_GO, &info_data(b"", &[])));
    stream
}

/// The option replies in `out` after the greeting: option, kind, data.
fn option_replies(out: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut rest = &out[18..];
    let mut replies = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(rest[..8], NBD_REP_MAGIC.to_be_bytes());
        let length = word(16) as usize;
        replies.push((word(8), word(12), rest[20..20 + length].to_vec()));
        rest = &rest[20 + length..];
    }
    replies
}
