//! Requests of the transmission phase: parsing, and every check that does not need the disk.

use std::fmt;

use byteorder::{BE, ByteOrder};

use super::conn::Fatal;
use super::consts::*;
use super::export::{ExportInfo, MIN_BLOCK_BYTES};
use super::reply::Errno;

/// Bytes of a request before its payload.
pub(super) const REQUEST_BYTES: usize = 28;

/// The client's mark of a request, returned in the reply and meaning nothing here. Clients may
/// use one value for several requests in flight: no key for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read `length` bytes at `offset`.
    Read {
        /// The reply must not be split; one header and all data never is.
        dont_fragment: bool,
    },
    /// Write the payload.
    Write,
    /// Make completed writes durable; `offset` and `length` are 0.
    Flush,
    /// Discard; contents afterwards are undefined.
    Trim,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Keep the range allocated.
        no_hole: bool,
        /// Answer [`Errno::NotSup`], changing nothing, unless faster than writing.
        fast: bool,
    },
}

/// A request that passed every check against its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// To be returned in the reply.
    pub cookie: Cookie,
    /// What to do.
    pub command: Command,
    /// First byte, a multiple of [`MIN_BLOCK_BYTES`].
    pub offset: u64,
    /// Bytes, a multiple of [`MIN_BLOCK_BYTES`], not 0 except in a flush. At most the configured
    /// payload for READ and WRITE; up to the end of the export for TRIM and WRITE_ZEROES.
    pub length: u32,
    /// What this request writes must be durable before it is answered. Clients may set it on
    /// commands that write nothing; there it has no meaning.
    pub fua: bool,
}

/// A request not carried out: what the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    /// For humans, sent where the reply has room for it.
    pub(super) why: &'static str,
}

impl Refusal {
    const fn new(errno: Errno, why: &'static str) -> Refusal {
        Refusal { errno, why }
    }

    pub(super) const SHUTTING_DOWN: Refusal =
        Refusal::new(Errno::Shutdown, "server is shutting down");
}

/// A request as it came over the wire.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawRequest {
    pub(super) flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: Cookie,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl RawRequest {
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Result<RawRequest, Fatal> {
        let found = BE::read_u32(&bytes[..4]);
        if found != NBD_REQUEST_MAGIC {
            return Err(Fatal::BadRequestMagic { found });
        }
        Ok(RawRequest {
            flags: BE::read_u16(&bytes[4..6]),
            kind: BE::read_u16(&bytes[6..8]),
            cookie: Cookie(BE::read_u64(&bytes[8..16])),
            offset: BE::read_u64(&bytes[16..24]),
            length: BE::read_u32(&bytes[24..28]),
        })
    }

    /// Bytes that follow the request, whether it is accepted or not.
    pub(super) fn payload_bytes(&self) -> u32 {
        if self.kind == NBD_CMD_WRITE {
            self.length
        } else {
            0
        }
    }
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) export: &'a ExportInfo,
    pub(super) structured: bool,
    pub(super) max_payload_bytes: u32,
}

impl Rules<'_> {
    /// Accepts a request or says why not. DISC is not a request in this sense.
    pub(super) fn check(&self, raw: &RawRequest) -> Result<Request, Refusal> {
        let command = self.command(raw)?;
        self.check_flags(raw)?;
        match command {
            Command::Flush => {
                if raw.offset != 0 || raw.length != 0 {
                    return Err(Refusal::new(
                        Errno::Inval,
                        "FLUSH takes no offset and no length",
                    ));
                }
            }
            _ => self.check_range(raw, command)?,
        }
        Ok(Request {
            cookie: raw.cookie,
            command,
            offset: raw.offset,
            length: raw.length,
            fua: raw.flags & NBD_CMD_FLAG_FUA != 0,
        })
    }

    fn command(&self, raw: &RawRequest) -> Result<Command, Refusal> {
        let offered = self.export.features;
        let has = |flag: u16| raw.flags & flag != 0;
        let writes = matches!(
            raw.kind,
            NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES
        );
        if writes && self.export.read_only {
            return Err(Refusal::new(Errno::Perm, "export is read-only"));
        }
        match raw.kind {
            NBD_CMD_READ => Ok(Command::Read {
                dont_fragment: has(NBD_CMD_FLAG_DF),
            }),
            NBD_CMD_WRITE => Ok(Command::Write),
            NBD_CMD_FLUSH if offered.flush => Ok(Command::Flush),
            NBD_CMD_TRIM if offered.trim => Ok(Command::Trim),
            NBD_CMD_WRITE_ZEROES if offered.write_zeroes => Ok(Command::WriteZeroes {
                no_hole: has(NBD_CMD_FLAG_NO_HOLE),
                fast: has(NBD_CMD_FLAG_FAST_ZERO),
            }),
            _ => Err(Refusal::new(
                Errno::Inval,
                "command is not offered by this export",
            )),
        }
    }

    fn check_flags(&self, raw: &RawRequest) -> Result<(), Refusal> {
        let offered = self.export.features;
        let mut allowed = if offered.fua { NBD_CMD_FLAG_FUA } else { 0 };
        match raw.kind {
            NBD_CMD_READ if self.structured => allowed |= NBD_CMD_FLAG_DF,
            NBD_CMD_WRITE_ZEROES => {
                allowed |= NBD_CMD_FLAG_NO_HOLE;
                if offered.fast_zero {
                    allowed |= NBD_CMD_FLAG_FAST_ZERO;
                }
            }
            _ => {}
        }
        if raw.flags & !allowed != 0 {
            return Err(Refusal::new(
                Errno::Inval,
                "flag does not belong to this command",
            ));
        }
        Ok(())
    }

    fn check_range(&self, raw: &RawRequest, command: Command) -> Result<(), Refusal> {
        let unit = MIN_BLOCK_BYTES;
        if raw.length == 0 {
            return Err(Refusal::new(Errno::Inval, "length is zero"));
        }
        if !raw.offset.is_multiple_of(u64::from(unit)) || !raw.length.is_multiple_of(unit) {
            return Err(Refusal::new(
                Errno::Inval,
                "offset or length is not a multiple of 512",
            ));
        }
        let end = raw.offset.checked_add(u64::from(raw.length));
        if end.is_none_or(|end| end > self.export.size_bytes()) {
            let errno = match command {
                Command::Write | Command::WriteZeroes { .. } => Errno::NoSpc,
                _ => Errno::Inval,
            };
            return Err(Refusal::new(errno, "range passes the end of the export"));
        }
        let too_long = raw.length > self.max_payload_bytes;
        match command {
            // The document knows EOVERFLOW for reads only where DF exists.
            Command::Read { .. } if too_long && self.structured => Err(Refusal::new(
                Errno::Overflow,
                "read is longer than the maximum payload",
            )),
            Command::Read { .. } | Command::Write if too_long => Err(Refusal::new(
                Errno::Inval,
                "payload is longer than the maximum",
            )),
            _ => Ok(()),
        }
    }
}
