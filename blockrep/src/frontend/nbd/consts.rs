//! Numbers of the NBD protocol, under the names its document gives them.
//!
//! Everything on the wire is big-endian.

// Magic numbers.

/// First 8 bytes of the server's greeting, `NBDMAGIC`; also known as `INIT_PASSWD`.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second half of the greeting, and the start of every option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const NBD_REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts every request of the transmission phase.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

// Handshake flags, 16 bits, sent by the server.

/// Server speaks fixed newstyle.
pub const NBD_FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Server can leave out the 124 zeroes after `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;

// Client flags, 32 bits.

/// Client speaks fixed newstyle.
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client wants no 124 zeroes after `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

// Transmission flags, 16 bits, sent with the size of the export.

/// Always set.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Writes will be refused.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// `NBD_CMD_FLUSH` is supported.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// `NBD_CMD_FLAG_FUA` is supported.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// The medium rotates.
pub const NBD_FLAG_ROTATIONAL: u16 = 1 << 4;
/// `NBD_CMD_TRIM` is supported.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// `NBD_CMD_WRITE_ZEROES` and `NBD_CMD_FLAG_NO_HOLE` are supported.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// `NBD_CMD_FLAG_DF` is supported; only with structured replies.
pub const NBD_FLAG_SEND_DF: u16 = 1 << 7;
/// A flush on one connection covers completed writes of all connections.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// `NBD_CMD_CACHE` is supported.
pub const NBD_FLAG_SEND_CACHE: u16 = 1 << 10;
/// `NBD_CMD_FLAG_FAST_ZERO` is supported.
pub const NBD_FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

// Options.

/// Choose an export and begin transmission; cannot be answered with an error.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// End the session.
pub const NBD_OPT_ABORT: u32 = 2;
/// List the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// Withdrawn extension.
pub const NBD_OPT_PEEK_EXPORT: u32 = 4;
/// Upgrade to TLS.
pub const NBD_OPT_STARTTLS: u32 = 5;
/// Ask about an export.
pub const NBD_OPT_INFO: u32 = 6;
/// Ask about an export and begin transmission.
pub const NBD_OPT_GO: u32 = 7;
/// Negotiate structured replies.
pub const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/// List metadata contexts.
pub const NBD_OPT_LIST_META_CONTEXT: u32 = 9;
/// Select metadata contexts.
pub const NBD_OPT_SET_META_CONTEXT: u32 = 10;
/// Experimental extension: 64-bit lengths.
pub const NBD_OPT_EXTENDED_HEADERS: u32 = 11;

// Replies to options. Bit 31 marks an error.

/// Done, nothing more to say.
pub const NBD_REP_ACK: u32 = 1;
/// One export of a list.
pub const NBD_REP_SERVER: u32 = 2;
/// One fact about an export.
pub const NBD_REP_INFO: u32 = 3;
/// One metadata context.
pub const NBD_REP_META_CONTEXT: u32 = 4;
/// Bit of every error reply.
pub const NBD_REP_FLAG_ERROR: u32 = 1 << 31;
/// Option not known here.
pub const NBD_REP_ERR_UNSUP: u32 = NBD_REP_FLAG_ERROR | 1;
/// Option known, but not allowed here.
pub const NBD_REP_ERR_POLICY: u32 = NBD_REP_FLAG_ERROR | 2;
/// Option malformed, or out of place.
pub const NBD_REP_ERR_INVALID: u32 = NBD_REP_FLAG_ERROR | 3;
/// Option not available on this platform.
pub const NBD_REP_ERR_PLATFORM: u32 = NBD_REP_FLAG_ERROR | 4;
/// TLS first.
pub const NBD_REP_ERR_TLS_REQD: u32 = NBD_REP_FLAG_ERROR | 5;
/// No such export.
pub const NBD_REP_ERR_UNKNOWN: u32 = NBD_REP_FLAG_ERROR | 6;
/// Server is going away.
pub const NBD_REP_ERR_SHUTDOWN: u32 = NBD_REP_FLAG_ERROR | 7;
/// Client must ask for the block sizes first.
pub const NBD_REP_ERR_BLOCK_SIZE_REQD: u32 = NBD_REP_FLAG_ERROR | 8;
/// Request or reply too large.
pub const NBD_REP_ERR_TOO_BIG: u32 = NBD_REP_FLAG_ERROR | 9;

// Kinds of information in `NBD_REP_INFO`.

/// Size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// Canonical name.
pub const NBD_INFO_NAME: u16 = 1;
/// Text for humans.
pub const NBD_INFO_DESCRIPTION: u16 = 2;
/// Minimum and preferred block size, largest payload.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

// Commands.

/// Read.
pub const NBD_CMD_READ: u16 = 0;
/// Write; the only command followed by a payload.
pub const NBD_CMD_WRITE: u16 = 1;
/// End the session; not answered.
pub const NBD_CMD_DISC: u16 = 2;
/// Make completed writes durable.
pub const NBD_CMD_FLUSH: u16 = 3;
/// Discard.
pub const NBD_CMD_TRIM: u16 = 4;
/// Prefetch.
pub const NBD_CMD_CACHE: u16 = 5;
/// Write zeroes without sending them.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;
/// Query metadata of a range.
pub const NBD_CMD_BLOCK_STATUS: u16 = 7;

// Command flags, 16 bits.

/// Answer only when the data is on stable storage.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// Zeroed range must stay allocated.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// At most one content chunk in the reply.
pub const NBD_CMD_FLAG_DF: u16 = 1 << 2;
/// One extent per metadata context.
pub const NBD_CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Zero only if that is faster than writing.
pub const NBD_CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

// Structured replies.

/// Last chunk of a reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;
/// No payload; ends a reply.
pub const NBD_REPLY_TYPE_NONE: u16 = 0;
/// Offset and data.
pub const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Offset and size of a hole.
pub const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Error number and text.
pub const NBD_REPLY_TYPE_ERROR: u16 = (1 << 15) | 1;
/// Error number, text and offset.
pub const NBD_REPLY_TYPE_ERROR_OFFSET: u16 = (1 << 15) | 2;

// Error numbers.

/// Not permitted.
pub const NBD_EPERM: u32 = 1;
/// Input/output error.
pub const NBD_EIO: u32 = 5;
/// Out of memory.
pub const NBD_ENOMEM: u32 = 12;
/// Invalid argument.
pub const NBD_EINVAL: u32 = 22;
/// No space left.
pub const NBD_ENOSPC: u32 = 28;
/// Value too large.
pub const NBD_EOVERFLOW: u32 = 75;
/// Not supported.
pub const NBD_ENOTSUP: u32 = 95;
/// Server is going away.
pub const NBD_ESHUTDOWN: u32 = 108;

// Limits and fixed sizes.

/// Longest string (name, description, error text), in bytes.
pub const NBD_MAX_STRING: usize = 4096;
/// Zeroes after the reply to `NBD_OPT_EXPORT_NAME`, unless negotiated away.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// Largest payload a portable client expects to be allowed, in bytes.
pub const PORTABLE_MAX_PAYLOAD_BYTES: u32 = 1 << 25;
/// A read with `NBD_CMD_FLAG_DF` up to this many bytes must be served.
pub const DF_MIN_SUPPORTED_BYTES: u32 = 1 << 16;
