//! One connection: the state machine that joins negotiation and transmission.

use super::consts::*;
use super::export::{ExportInfo, ExportTable, MIN_BLOCK_BYTES};
use super::options::{MAX_OPTIONS, Negotiation, Offer, Outcome};
use super::partial::Partial;
use super::reply::{Errno, Replies};
use super::request::{Refusal, Request};
use super::session::Session;

/// What a server offers on every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    max_payload_bytes: u32,
    structured_replies: bool,
}

/// A [`Config`] no NBD server may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The bounds are what a DF read must at least get, and what portable clients at most ask.
    #[error(
        "the maximum payload is a multiple of {MIN_BLOCK_BYTES} from {DF_MIN_SUPPORTED_BYTES} to \
         {PORTABLE_MAX_PAYLOAD_BYTES} bytes, not {bytes}"
    )]
    MaxPayload {
        /// The refused size in bytes.
        bytes: u32,
    },
}

impl Config {
    /// Reads and writes of up to `max_payload_bytes` (64 KiB to 32 MiB, a multiple of 512), with
    /// structured replies for clients that ask for them.
    pub fn new(max_payload_bytes: u32) -> Result<Config, ConfigError> {
        let sane =
            (DF_MIN_SUPPORTED_BYTES..=PORTABLE_MAX_PAYLOAD_BYTES).contains(&max_payload_bytes);
        if !sane || !max_payload_bytes.is_multiple_of(MIN_BLOCK_BYTES) {
            return Err(ConfigError::MaxPayload {
                bytes: max_payload_bytes,
            });
        }
        Ok(Config {
            max_payload_bytes,
            structured_replies: true,
        })
    }

    /// The same, with simple replies only.
    pub fn simple_replies_only(self) -> Config {
        Config {
            structured_replies: false,
            ..self
        }
    }

    /// Longest READ or WRITE that reaches the driver, in bytes.
    pub fn max_payload_bytes(&self) -> u32 {
        self.max_payload_bytes
    }
}

/// A violation no reply can mend. The driver closes the connection without another word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The document demands to hang up on flags not offered.
    #[error("client sent unknown flags {flags:#010x}")]
    UnknownClientFlags {
        /// All flags the client sent.
        flags: u32,
    },
    /// Something else than an option, or the stream is out of step.
    #[error("expected an option, found {found:#018x}")]
    BadOptionMagic {
        /// The 8 bytes in the place of `IHAVEOPT`.
        found: u64,
    },
    /// More data than is drained for politeness.
    #[error("option {option} announces {length} bytes of data, the limit is {limit}")]
    OptionTooLong {
        /// The option.
        option: u32,
        /// Its length in bytes.
        length: u32,
        /// What would have been read, in bytes.
        limit: u32,
    },
    /// Without fixed newstyle there is only EXPORT_NAME, and no way to say no.
    #[error("client sent option {option} without negotiating fixed newstyle")]
    NotFixedNewstyle {
        /// The option.
        option: u32,
    },
    /// The client haggles for ever.
    #[error("client sent more than {MAX_OPTIONS} options without choosing an export")]
    TooManyOptions,
    /// EXPORT_NAME with a name not in the table; that option has no error reply.
    #[error("client asked for export \"{}\", which is not served here", name.escape_default())]
    UnknownExport {
        /// Beginning of the name, invalid UTF-8 replaced.
        name: String,
    },
    /// EXPORT_NAME after [`Conn::shut_down`]; that option has no error reply.
    #[error("client chose an export while the server shuts down")]
    ShuttingDown,
    /// Something else than a request, or the stream is out of step.
    #[error("expected a request, found {found:#010x}")]
    BadRequestMagic {
        /// The 4 bytes in the place of `NBD_REQUEST_MAGIC`.
        found: u32,
    },
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No export chosen. A driver limits how long this may last.
    Negotiation,
    /// Requests come.
    Transmission,
    /// The client said good-bye, or broke the protocol: nothing more is read. Requests in flight
    /// may still be answered after a good-bye.
    Closing,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An export was chosen: see [`Conn::export`].
    TransmissionStarted,
    /// Carry this out, then reply. Never a WRITE.
    Request(Request),
    /// An accepted WRITE: the next `length` bytes of the stream are its data. Take them, call
    /// [`Conn::payload_done`], carry it out, reply. Or call [`Conn::refuse_payload`].
    WritePayload(Request),
    /// The client said good-bye: let requests in flight end, send what is due, close.
    Disconnect,
}

/// How far one call of [`Conn::input`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "bytes that were not consumed must be offered again"]
pub struct Step {
    /// Bytes used up; offer the others again.
    pub consumed: usize,
    /// What to do now, if anything.
    pub event: Option<Event>,
}

/// Server side of one connection. See the module's description for the loop that drives it.
#[derive(Debug)]
pub struct Conn {
    config: Config,
    state: State,
    partial: Partial,
    replies: Replies,
    shutting_down: bool,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Haggling(Negotiation),
    Transmission(Session),
    Closing,
}

impl Conn {
    /// A new connection; the server speaks first, and what it says is appended to `out`.
    pub fn new(config: Config, out: &mut Vec<u8>) -> Conn {
        out.extend_from_slice(&NBDMAGIC.to_be_bytes());
        out.extend_from_slice(&IHAVEOPT.to_be_bytes());
        out.extend_from_slice(&(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        Conn {
            config,
            state: State::ClientFlags,
            partial: Partial::default(),
            replies: Replies::default(),
            shutting_down: false,
        }
    }

    /// Takes bytes the client sent and returns after at most one message: when there is an event,
    /// when something was appended to `out`, or when `bytes` is used up. Consumes nothing while
    /// [`Conn::takes_input`] says no.
    ///
    /// `out` gets the server's side of the negotiation and the replies to refused requests. It is
    /// sent in order; in transmission, whole replies of the driver's may go before or after it.
    pub fn input(
        &mut self,
        bytes: &[u8],
        exports: &dyn ExportTable,
        out: &mut Vec<u8>,
    ) -> Result<Step, Fatal> {
        let mut rest = bytes;
        let out_before = out.len();
        let mut event = None;
        while event.is_none() && out.len() == out_before && !rest.is_empty() && self.takes_input() {
            match self.advance(&mut rest, exports, out) {
                Ok(happened) => event = happened,
                Err(fatal) => {
                    self.state = State::Closing;
                    return Err(fatal);
                }
            }
        }
        Ok(Step {
            consumed: bytes.len() - rest.len(),
            event,
        })
    }

    /// Whether the next byte of the stream is for [`Conn::input`]. Not so while the driver owes
    /// a payload, and after the end.
    pub fn takes_input(&self) -> bool {
        match &self.state {
            State::ClientFlags | State::Haggling(_) => true,
            State::Transmission(session) => session.awaited_payload().is_none(),
            State::Closing => false,
        }
    }

    /// The driver has taken all bytes of the [`Event::WritePayload`].
    ///
    /// # Panics
    /// If no payload was awaited: the driver lost track of the stream, and going on would take
    /// data for requests.
    pub fn payload_done(&mut self) {
        let (session, _) = self.payload_owner();
        session.payload_done();
    }

    /// The driver cannot carry out the write of the last [`Event::WritePayload`], of which
    /// `left_bytes` were not taken from the stream yet. They are dropped as they come, then the
    /// client gets `errno`. Takes the place of [`Conn::payload_done`].
    ///
    /// # Panics
    /// If no payload was awaited, or `left_bytes` is more than it had.
    pub fn refuse_payload(&mut self, errno: Errno, left_bytes: u32, out: &mut Vec<u8>) {
        let (session, request) = self.payload_owner();
        assert!(
            left_bytes <= request.length,
            "more bytes left than the payload had"
        );
        let refusal = Refusal {
            errno,
            why: "write was not carried out",
        };
        session.refuse_payload(request.cookie, refusal, left_bytes, out);
    }

    fn payload_owner(&mut self) -> (&mut Session, Request) {
        if let State::Transmission(session) = &mut self.state
            && let Some(request) = session.awaited_payload().copied()
        {
            return (session, request);
        }
        panic!("no payload is awaited on this NBD connection");
    }

    /// The server is going away: new options and requests are refused from now on, requests in
    /// flight and a payload under way are not touched. The client is expected to say good-bye.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Where the connection stands.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::ClientFlags | State::Haggling(_) => Phase::Negotiation,
            State::Transmission(_) => Phase::Transmission,
            State::Closing => Phase::Closing,
        }
    }

    /// The chosen export as it was when it was chosen, in the transmission phase.
    pub fn export(&self) -> Option<&ExportInfo> {
        match &self.state {
            State::Transmission(session) => Some(session.export()),
            _ => None,
        }
    }

    /// The write whose payload the driver is to take.
    pub fn awaited_payload(&self) -> Option<&Request> {
        match &self.state {
            State::Transmission(session) => session.awaited_payload(),
            _ => None,
        }
    }

    /// Encoder of replies, final from [`Event::TransmissionStarted`] on.
    pub fn replies(&self) -> Replies {
        self.replies
    }

    /// Bytes of memory held for a message that is not complete yet.
    pub fn buffered_bytes(&self) -> usize {
        self.partial.capacity()
    }

    fn advance(
        &mut self,
        rest: &mut &[u8],
        exports: &dyn ExportTable,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event>, Fatal> {
        match &mut self.state {
            State::ClientFlags => {
                if let Some(flags) = self.partial.array::<4>(rest) {
                    self.state = State::Haggling(Negotiation::new(u32::from_be_bytes(flags))?);
                }
                Ok(None)
            }
            State::Haggling(negotiation) => {
                let offer = Offer {
                    exports,
                    structured_replies: self.config.structured_replies,
                    max_payload_bytes: self.config.max_payload_bytes,
                    shutting_down: self.shutting_down,
                };
                match negotiation.feed(&mut self.partial, rest, offer, out)? {
                    Outcome::More => Ok(None),
                    Outcome::Abort => Ok(Some(self.close())),
                    Outcome::Enter(export) => {
                        self.replies = Replies::new(negotiation.structured());
                        let limit = self.config.max_payload_bytes;
                        self.state = State::Transmission(Session::new(export, self.replies, limit));
                        Ok(Some(Event::TransmissionStarted))
                    }
                }
            }
            State::Transmission(session) => {
                let event = session.feed(&mut self.partial, rest, self.shutting_down, out)?;
                if event == Some(Event::Disconnect) {
                    return Ok(Some(self.close()));
                }
                Ok(event)
            }
            State::Closing => Ok(None),
        }
    }

    fn close(&mut self) -> Event {
        self.state = State::Closing;
        Event::Disconnect
    }
}
