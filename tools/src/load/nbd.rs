//! A small NBD client: addresses, the fixed newstyle handshake with `NBD_OPT_GO`, and blocking
//! reads.
//!
//! Written from the protocol document (NetworkBlockDevice/nbd, `doc/proto.md`) and on purpose not
//! shared with the server. Big-endian on the wire. Replies are simple replies: structured replies
//! are not asked for. The generator's own data path is in `wire`; it takes the stream over after
//! the handshake.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Longest wait for one answer during the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for the reply to one read.
const READ_LIMIT: Duration = Duration::from_secs(60);

const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_IS_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
const HANDSHAKE_NO_ZEROES: u16 = 2;
/// Longest option reply read: a name and a message are each at most 4096 bytes.
const OPTION_REPLY_BYTES_MAX: u32 = 16 * 1024;
/// Most option replies before the acknowledgement.
const OPTION_REPLIES_MAX: u32 = 64;
/// Longest export name the protocol allows.
const NAME_BYTES_MAX: usize = 4096;
/// Payload every server must take when it names no limit.
const PAYLOAD_DEFAULT_MAX: u32 = 32 << 20;

/// Bytes of a request without payload.
pub const REQUEST_SIZE: usize = 28;
/// Bytes of a simple reply without payload.
pub const REPLY_SIZE: usize = 16;

/// `NBD_CMD_READ` and its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are those of the protocol")]
pub enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let port_of = |addr: &str| {
            addr.rsplit_once(':')
                .and_then(|(_, p)| p.parse::<u16>().ok())
        };
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Address::Unix(path.into())),
            Some(("tcp", addr)) if port_of(addr).is_some() => Ok(Address::Tcp(addr.into())),
            _ => Err("expected unix:PATH or tcp:HOST:PORT".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(addr) => write!(f, "tcp:{addr}"),
        }
    }
}

/// What failed between this client and the server.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Nobody answers there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke or timed out.
    #[error("NBD connection: {0}")]
    Io(#[from] io::Error),
    /// The server refused the export.
    #[error("the NBD server refuses export \"{export}\": {reason}")]
    Refused {
        /// Name asked for.
        export: String,
        /// The server's message, or its error code in words.
        reason: String,
    },
    /// The other end does not speak NBD as the protocol has it.
    #[error("not a usable NBD server: {0}")]
    Protocol(&'static str),
    /// A request failed.
    #[error("the NBD server fails a read at byte {offset} with error {error}")]
    Failed {
        /// First byte of the request.
        offset: u64,
        /// NBD error number.
        error: u32,
    },
}

/// What the server said about the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub bytes: u64,
    /// Transmission flags.
    flags: u16,
    /// Smallest block a request may address.
    pub block_min: u32,
    /// Largest payload of one request.
    pub payload_max: u32,
}

impl Export {
    /// Writes are refused.
    pub fn read_only(&self) -> bool {
        self.has(1)
    }

    /// FLUSH may be sent.
    pub fn flush(&self) -> bool {
        self.has(2)
    }

    /// The FUA flag may be sent.
    pub fn fua(&self) -> bool {
        self.has(3)
    }

    /// TRIM may be sent.
    pub fn trim(&self) -> bool {
        self.has(5)
    }

    /// WRITE_ZEROES may be sent.
    pub fn write_zeroes(&self) -> bool {
        self.has(6)
    }

    /// Several connections see each other's completed writes, and a flush on one covers all.
    pub fn multi_conn(&self) -> bool {
        self.has(8)
    }

    fn has(&self, bit: u16) -> bool {
        self.flags & (1 << bit) != 0
    }
}

/// A connected stream of either family.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Stream {
    fn connect(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Address::Tcp(addr) => {
                let stream = TcpStream::connect(addr.as_str())?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    fn set_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(s) => s
                .set_read_timeout(limit)
                .and_then(|()| s.set_write_timeout(limit)),
            Stream::Tcp(s) => s
                .set_read_timeout(limit)
                .and_then(|()| s.set_write_timeout(limit)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buf),
            Stream::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(buf),
            Stream::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects and enters transmission. The stream comes back without time limits.
pub fn connect(address: &Address, export: &str) -> Result<(Stream, Export), NbdError> {
    let mut stream = Stream::connect(address).map_err(|source| NbdError::Connect {
        address: address.clone(),
        source,
    })?;
    stream.set_limit(Some(HANDSHAKE_LIMIT))?;
    let export = handshake(&mut stream, export)?;
    stream.set_limit(None)?;
    Ok((stream, export))
}

fn handshake(stream: &mut (impl Read + Write), name: &str) -> Result<Export, NbdError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(NbdError::Protocol("an export name has at most 4096 bytes"));
    }
    if read_u64(stream)? != INIT_MAGIC || read_u64(stream)? != OPTION_MAGIC {
        return Err(NbdError::Protocol(
            "the greeting is not that of newstyle NBD",
        ));
    }
    let flags = read_u16(stream)?;
    if flags & HANDSHAKE_FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Protocol(
            "the server does not speak fixed newstyle",
        ));
    }
    let ours = HANDSHAKE_FIXED_NEWSTYLE | (flags & HANDSHAKE_NO_ZEROES);
    let mut go = u32::from(ours).to_be_bytes().to_vec();
    go.extend(OPTION_MAGIC.to_be_bytes());
    go.extend(OPTION_GO.to_be_bytes());
    go.extend((name.len() as u32 + 4 + 2 + 2).to_be_bytes());
    go.extend((name.len() as u32).to_be_bytes());
    go.extend(name.as_bytes());
    go.extend(1u16.to_be_bytes());
    go.extend(INFO_BLOCK_SIZE.to_be_bytes());
    stream.write_all(&go)?;
    option_replies(stream, name)
}

/// Reads replies to `NBD_OPT_GO` up to the acknowledgement.
fn option_replies(stream: &mut impl Read, name: &str) -> Result<Export, NbdError> {
    let mut export = None;
    let (mut block_min, mut payload_max) = (1, PAYLOAD_DEFAULT_MAX);
    for _ in 0..OPTION_REPLIES_MAX {
        if read_u64(stream)? != OPTION_REPLY_MAGIC || read_u32(stream)? != OPTION_GO {
            return Err(NbdError::Protocol(
                "an option reply with a wrong magic or option",
            ));
        }
        let kind = read_u32(stream)?;
        let len = read_u32(stream)?;
        if len > OPTION_REPLY_BYTES_MAX {
            return Err(NbdError::Protocol("an option reply of absurd length"));
        }
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body)?;
        match kind {
            REPLY_ACK => {
                let (bytes, flags) =
                    export.ok_or(NbdError::Protocol("the server named no size of the export"))?;
                return Ok(Export {
                    bytes,
                    flags,
                    block_min,
                    payload_max,
                });
            }
            REPLY_INFO => {
                let mut body = body.as_slice();
                match read_u16(&mut body)? {
                    INFO_EXPORT => export = Some((read_u64(&mut body)?, read_u16(&mut body)?)),
                    INFO_BLOCK_SIZE => {
                        block_min = read_u32(&mut body)?;
                        let _preferred = read_u32(&mut body)?;
                        payload_max = read_u32(&mut body)?;
                    }
                    _ => {}
                }
            }
            kind if kind & REPLY_IS_ERROR != 0 => {
                let export = name.to_owned();
                return Err(NbdError::Refused {
                    export,
                    reason: refusal(kind, &body),
                });
            }
            _ => return Err(NbdError::Protocol("an option reply of unknown kind")),
        }
    }
    Err(NbdError::Protocol("option replies without end"))
}

fn refusal(kind: u32, message: &[u8]) -> String {
    if !message.is_empty() {
        return String::from_utf8_lossy(message).into_owned();
    }
    match kind & !REPLY_IS_ERROR {
        1 => "it does not know NBD_OPT_GO".into(),
        2 => "by policy".into(),
        5 => "it wants TLS".into(),
        6 => "no such export".into(),
        7 => "it is shutting down".into(),
        code => format!("error {code}"),
    }
}

/// The 28 bytes in front of a request's payload.
pub fn request(
    command: Command,
    fua: bool,
    cookie: u64,
    offset: u64,
    len: u32,
) -> [u8; REQUEST_SIZE] {
    let mut bytes = [0; REQUEST_SIZE];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&u16::from(fua).to_be_bytes());
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A simple reply: (cookie, error number). `None` if it is none.
pub fn reply(bytes: &[u8; REPLY_SIZE]) -> Option<(u64, u32)> {
    let mut bytes = bytes.as_slice();
    let magic = read_u32(&mut bytes).ok()?;
    let error = read_u32(&mut bytes).ok()?;
    let cookie = read_u64(&mut bytes).ok()?;
    (magic == REPLY_MAGIC).then_some((cookie, error))
}

/// Reads an export, one request at a time.
#[derive(Debug)]
pub struct Reader {
    stream: Stream,
    export: Export,
    cookie: u64,
}

impl Reader {
    /// Connects for reading.
    pub fn open(address: &Address, export: &str) -> Result<Reader, NbdError> {
        let (stream, export) = connect(address, export)?;
        stream.set_limit(Some(READ_LIMIT))?;
        Ok(Reader {
            stream,
            export,
            cookie: 0,
        })
    }

    /// What the server said about the export.
    pub fn export(&self) -> Export {
        self.export
    }

    /// Fills `out` from byte `offset`; at most the export's `payload_max` bytes.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), NbdError> {
        let len = u32::try_from(out.len())
            .ok()
            .filter(|len| *len <= self.export.payload_max);
        let len = len.ok_or(NbdError::Protocol("a read longer than the server takes"))?;
        self.cookie += 1;
        self.stream
            .write_all(&request(Command::Read, false, self.cookie, offset, len))?;
        let mut header = [0; REPLY_SIZE];
        self.stream.read_exact(&mut header)?;
        match reply(&header) {
            Some((cookie, 0)) if cookie == self.cookie => Ok(self.stream.read_exact(out)?),
            Some((cookie, error)) if cookie == self.cookie => {
                Err(NbdError::Failed { offset, error })
            }
            _ => Err(NbdError::Protocol("a reply to no request of ours")),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A polite goodbye; the server notices a closed socket as well.
        let _ = self
            .stream
            .write_all(&request(Command::Disconnect, false, 0, 0, 0));
    }
}

fn read_u16(input: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    input
        .read_exact(&mut bytes)
        .map(|()| u16::from_be_bytes(bytes))
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input
        .read_exact(&mut bytes)
        .map(|()| u32::from_be_bytes(bytes))
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input
        .read_exact(&mut bytes)
        .map(|()| u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests;
