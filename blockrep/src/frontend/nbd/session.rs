//! Transmission phase: one request after the other, and the payloads of writes.

use super::conn::{Event, Fatal};
use super::consts::*;
use super::export::ExportInfo;
use super::partial::{Partial, skip};
use super::reply::Replies;
use super::request::{Cookie, RawRequest, Refusal, Request, Rules};

/// A connection that has chosen its export.
#[derive(Debug)]
pub(super) struct Session {
    export: ExportInfo,
    replies: Replies,
    max_payload_bytes: u32,
    step: RequestStep,
}

#[derive(Debug)]
enum RequestStep {
    Header,
    /// The driver takes the payload of this accepted write.
    Payload(Request),
    /// A refused write: `left` bytes to drop, then the refusal is sent.
    Drain {
        cookie: Cookie,
        refusal: Refusal,
        left: u32,
    },
}

impl Session {
    pub(super) fn new(export: ExportInfo, replies: Replies, max_payload_bytes: u32) -> Session {
        Session {
            export,
            replies,
            max_payload_bytes,
            step: RequestStep::Header,
        }
    }

    pub(super) fn export(&self) -> &ExportInfo {
        &self.export
    }

    /// The write whose payload the driver is taking.
    pub(super) fn awaited_payload(&self) -> Option<&Request> {
        match &self.step {
            RequestStep::Payload(request) => Some(request),
            _ => None,
        }
    }

    /// The driver has the payload: the next byte begins a request.
    pub(super) fn payload_done(&mut self) {
        self.step = RequestStep::Header;
    }

    /// The driver does not want the rest of the payload, `left` bytes.
    pub(super) fn refuse_payload(
        &mut self,
        cookie: Cookie,
        refusal: Refusal,
        left: u32,
        out: &mut Vec<u8>,
    ) {
        self.step = RequestStep::Drain {
            cookie,
            refusal,
            left,
        };
        self.finish_drain(out);
    }

    /// Takes bytes off `rest` up to the end of one request at most.
    pub(super) fn feed(
        &mut self,
        partial: &mut Partial,
        rest: &mut &[u8],
        shutting_down: bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event>, Fatal> {
        match &mut self.step {
            RequestStep::Header => match partial.array(rest) {
                Some(bytes) => {
                    let raw = RawRequest::parse(&bytes)?;
                    Ok(self.begin(&raw, shutting_down, out))
                }
                None => Ok(None),
            },
            RequestStep::Payload(_) => Ok(None),
            RequestStep::Drain { left, .. } => {
                skip(left, rest);
                self.finish_drain(out);
                Ok(None)
            }
        }
    }

    fn begin(&mut self, raw: &RawRequest, shutting_down: bool, out: &mut Vec<u8>) -> Option<Event> {
        if raw.kind == NBD_CMD_DISC {
            return Some(Event::Disconnect);
        }
        let rules = Rules {
            export: &self.export,
            structured: self.replies.structured(),
            max_payload_bytes: self.max_payload_bytes,
        };
        let verdict = if shutting_down {
            Err(Refusal::SHUTTING_DOWN)
        } else {
            rules.check(raw)
        };
        match verdict {
            Ok(request) if raw.kind == NBD_CMD_WRITE => {
                self.step = RequestStep::Payload(request);
                Some(Event::WritePayload(request))
            }
            Ok(request) => Some(Event::Request(request)),
            Err(refusal) => {
                self.refuse_payload(raw.cookie, refusal, raw.payload_bytes(), out);
                None
            }
        }
    }

    fn finish_drain(&mut self, out: &mut Vec<u8>) {
        if let RequestStep::Drain {
            cookie,
            refusal,
            left: 0,
        } = self.step
        {
            self.replies
                .push_error(out, cookie, refusal.errno, refusal.why);
            self.step = RequestStep::Header;
        }
    }
}
