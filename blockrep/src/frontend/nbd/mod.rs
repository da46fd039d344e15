//! NBD server protocol (fixed newstyle) without any I/O: bytes in, bytes and events out.
//!
//! [`Conn`] is one client connection. It never touches a socket, a clock or a disk, so the I/O
//! thread of the volume drives it from its ring and tests drive it from byte strings. Source of
//! every rule here: the NBD protocol document, `doc/proto.md` of the NetworkBlockDevice project;
//! names of constants ([`consts`]) are the document's.
//!
//! ```text
//!            Conn::new: greeting                          EXPORT_NAME, GO
//!   connect ───────────────────► Negotiation ─────────────────────────────► Transmission
//!                                 │  ▲  │ ABORT                              │  ▲      │ DISC
//!                                 └──┘  │              ┌── WRITE accepted ───┘  │      │
//!                         other options │              ▼                        │      │
//!                                       │       payload belongs to the driver ──┘      │
//!                                       ▼               payload_done, refuse_payload   ▼
//!                                    Closing ◄─────────────────────────────────────────┘
//!                                       ▲  Fatal from any phase: close without a word
//! ```
//!
//! What the driver does, in a loop over what it received:
//!
//! ```text
//! while conn.takes_input() && !buffer.is_empty() {
//!     let step = conn.input(buffer, &exports, &mut out)?;   // Err: close now
//!     buffer = &buffer[step.consumed..];
//!     match step.event {
//!         TransmissionStarted => bind the connection to the volume of conn.export()
//!         Request(r)          => submit; when it completes, send conn.replies().success(&r)
//!                                (a READ's data right behind it) or .error(r.cookie, errno)
//!         WritePayload(r)     => take r.length bytes: first from buffer, then from the socket
//!                                into the aligned buffer; conn.payload_done(); submit
//!         Disconnect          => send out, let requests in flight end, close
//!     }
//! }
//! ```
//!
//! Invariants:
//! - One call of [`Conn::input`] handles at most one message, so the driver can stop between any
//!   two: when `out` waits for the socket, or when enough requests are in flight. Nothing is lost
//!   by stopping; unconsumed bytes are offered again.
//! - Memory held per connection is bounded by [`MAX_OPTION_DATA_BYTES`]; no length a client names
//!   is allocated before it was compared with a limit. Refused payloads are dropped as they come.
//! - A request that reaches the driver lies inside the export, is aligned to
//!   [`MIN_BLOCK_BYTES`], is not empty (FLUSH aside), is allowed by the advertised flags, and
//!   does not write to a read-only export.
//! - Time is the driver's: a client that never ends its negotiation must be timed out there
//!   ([`Conn::phase`]).

pub mod consts;

mod conn;
mod export;
#[doc(hidden)]
pub mod fuzz;
mod options;
mod partial;
mod reply;
mod request;
mod session;

pub use conn::{Config, ConfigError, Conn, Event, Fatal, Phase, Step};
pub use export::{ExportError, ExportInfo, ExportTable, Features, MIN_BLOCK_BYTES};
pub use options::{MAX_OPTION_DATA_BYTES, MAX_OPTION_DRAIN_BYTES, MAX_OPTIONS};
pub use reply::{
    Errno, Replies, ReplyHeader, encode_error_chunk, encode_none_chunk, encode_offset_data_header,
    encode_simple_reply,
};
pub use request::{Command, Cookie, Request};

#[cfg(test)]
mod tests;
