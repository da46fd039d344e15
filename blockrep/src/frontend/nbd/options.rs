//! Option haggling: what a client may ask before it has chosen an export.
//!
//! Options whose data is not looked at are drained, never stored. The options that carry a name
//! are stored up to [`MAX_OPTION_DATA_BYTES`] and answered `NBD_REP_ERR_TOO_BIG` above it.

use super::conn::Fatal;
use super::consts::*;
use super::export::{ExportInfo, ExportTable, MIN_BLOCK_BYTES};
use super::partial::{Partial, skip};

/// Data of one option that is stored: the longest name and about two thousand information
/// requests, in bytes.
pub const MAX_OPTION_DATA_BYTES: u32 = 8 << 10;
/// Data of one option that is read and dropped before the client is hung up on, in bytes.
pub const MAX_OPTION_DRAIN_BYTES: u32 = 1 << 20;
/// Options after which a client that still has not chosen an export is hung up on.
pub const MAX_OPTIONS: u32 = 64;

/// Longest part of a client's export name repeated in an error, in characters.
const NAME_IN_ERROR_CHARS: usize = 64;

/// What an option led to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Negotiation goes on.
    More,
    /// The client said good-bye and was answered.
    Abort,
    /// Transmission begins.
    Enter(ExportInfo),
}

/// What this server's side brings into the negotiation.
#[derive(Clone, Copy)]
pub(super) struct Offer<'a> {
    pub(super) exports: &'a dyn ExportTable,
    pub(super) structured_replies: bool,
    pub(super) max_payload_bytes: u32,
    pub(super) shutting_down: bool,
}

/// Client flags given, no export chosen yet.
#[derive(Debug)]
pub(super) struct Negotiation {
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    options_seen: u32,
    step: OptionStep,
}

#[derive(Debug)]
enum OptionStep {
    Header,
    Data(OptionHeader),
    Drain { header: OptionHeader, left: u32 },
}

#[derive(Clone, Copy, Debug)]
struct OptionHeader {
    option: u32,
    length: u32,
}

/// Data of a complete option.
enum OptionData<'a> {
    Kept(&'a [u8]),
    Dropped,
}

impl Negotiation {
    pub(super) fn new(client_flags: u32) -> Result<Negotiation, Fatal> {
        if client_flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) != 0 {
            return Err(Fatal::UnknownClientFlags {
                flags: client_flags,
            });
        }
        Ok(Negotiation {
            fixed_newstyle: client_flags & NBD_FLAG_C_FIXED_NEWSTYLE != 0,
            no_zeroes: client_flags & NBD_FLAG_C_NO_ZEROES != 0,
            structured: false,
            options_seen: 0,
            step: OptionStep::Header,
        })
    }

    /// Structured replies were negotiated.
    pub(super) fn structured(&self) -> bool {
        self.structured
    }

    /// Takes bytes off `rest` up to the end of one option at most.
    pub(super) fn feed(
        &mut self,
        partial: &mut Partial,
        rest: &mut &[u8],
        offer: Offer<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Fatal> {
        match &mut self.step {
            OptionStep::Header => {
                let Some(bytes) = partial.array::<16>(rest) else {
                    return Ok(Outcome::More);
                };
                let header = self.accept_header(bytes)?;
                self.step = if keeps_data(header.option) && header.length <= MAX_OPTION_DATA_BYTES {
                    OptionStep::Data(header)
                } else {
                    OptionStep::Drain {
                        header,
                        left: header.length,
                    }
                };
                if header.length > 0 {
                    return Ok(Outcome::More);
                }
                // Nothing more will come for this option: finish it now.
                self.feed(partial, rest, offer, out)
            }
            OptionStep::Data(header) => {
                let header = *header;
                let Some(data) = partial.block(header.length as usize, rest) else {
                    return Ok(Outcome::More);
                };
                self.step = OptionStep::Header;
                self.answer(header, OptionData::Kept(&data), offer, out)
            }
            OptionStep::Drain { header, left } => {
                skip(left, rest);
                if *left > 0 {
                    return Ok(Outcome::More);
                }
                let header = *header;
                self.step = OptionStep::Header;
                self.answer(header, OptionData::Dropped, offer, out)
            }
        }
    }

    fn accept_header(&mut self, bytes: [u8; 16]) -> Result<OptionHeader, Fatal> {
        let [
            m0,
            m1,
            m2,
            m3,
            m4,
            m5,
            m6,
            m7,
            o0,
            o1,
            o2,
            o3,
            l0,
            l1,
            l2,
            l3,
        ] = bytes;
        let found = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
        let option = u32::from_be_bytes([o0, o1, o2, o3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if found != IHAVEOPT {
            return Err(Fatal::BadOptionMagic { found });
        }
        if !self.fixed_newstyle && option != NBD_OPT_EXPORT_NAME {
            return Err(Fatal::NotFixedNewstyle { option });
        }
        self.options_seen += 1;
        if self.options_seen > MAX_OPTIONS {
            return Err(Fatal::TooManyOptions);
        }
        // EXPORT_NAME cannot be answered with an error, so it has no polite refusal.
        let name_only = option == NBD_OPT_EXPORT_NAME;
        let limit = if name_only {
            MAX_OPTION_DATA_BYTES
        } else {
            MAX_OPTION_DRAIN_BYTES
        };
        if length > limit {
            return Err(Fatal::OptionTooLong {
                option,
                length,
                limit,
            });
        }
        Ok(OptionHeader { option, length })
    }

    fn answer(
        &mut self,
        header: OptionHeader,
        data: OptionData<'_>,
        offer: Offer<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Fatal> {
        let OptionHeader { option, length } = header;
        let mut refuse = |kind, why| {
            push_reply(out, option, kind, &[str::as_bytes(why)]);
            Ok(Outcome::More)
        };
        match (option, data) {
            (NBD_OPT_ABORT, _) => {
                push_reply(out, option, NBD_REP_ACK, &[]);
                Ok(Outcome::Abort)
            }
            (NBD_OPT_EXPORT_NAME, _) if offer.shutting_down => Err(Fatal::ShuttingDown),
            (_, _) if offer.shutting_down => {
                refuse(NBD_REP_ERR_SHUTDOWN, "server is shutting down")
            }
            (NBD_OPT_EXPORT_NAME, OptionData::Kept(name)) => self.export_name(name, offer, out),
            (NBD_OPT_INFO | NBD_OPT_GO, OptionData::Kept(data)) => {
                Ok(self.info_or_go(option, data, offer, out))
            }
            (NBD_OPT_INFO | NBD_OPT_GO, OptionData::Dropped) => {
                refuse(NBD_REP_ERR_TOO_BIG, "option data is too long")
            }
            (NBD_OPT_LIST | NBD_OPT_STRUCTURED_REPLY | NBD_OPT_STARTTLS, _) if length > 0 => {
                refuse(NBD_REP_ERR_INVALID, "option takes no data")
            }
            (NBD_OPT_LIST, _) => {
                list(offer.exports, out);
                Ok(Outcome::More)
            }
            (NBD_OPT_STRUCTURED_REPLY, _) if !offer.structured_replies => {
                refuse(NBD_REP_ERR_UNSUP, "structured replies are not offered")
            }
            (NBD_OPT_STRUCTURED_REPLY, _) if self.structured => refuse(
                NBD_REP_ERR_INVALID,
                "structured replies are negotiated already",
            ),
            (NBD_OPT_STRUCTURED_REPLY, _) => {
                self.structured = true;
                push_reply(out, option, NBD_REP_ACK, &[]);
                Ok(Outcome::More)
            }
            (NBD_OPT_STARTTLS, _) => refuse(NBD_REP_ERR_POLICY, "TLS is not offered here"),
            _ => refuse(NBD_REP_ERR_UNSUP, "option is not supported"),
        }
    }

    fn export_name(
        &self,
        name: &[u8],
        offer: Offer<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Fatal> {
        let export = str::from_utf8(name)
            .ok()
            .and_then(|name| offer.exports.find(name));
        let Some(export) = export else {
            let name = String::from_utf8_lossy(name)
                .chars()
                .take(NAME_IN_ERROR_CHARS)
                .collect();
            return Err(Fatal::UnknownExport { name });
        };
        out.extend_from_slice(&export.size_bytes().to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        Ok(Outcome::Enter(export))
    }

    fn info_or_go(&self, option: u32, data: &[u8], offer: Offer<'_>, out: &mut Vec<u8>) -> Outcome {
        let Some((name, wanted)) = parse_info(data) else {
            let why = "name or list of information requests is malformed";
            push_reply(out, option, NBD_REP_ERR_INVALID, &[why.as_bytes()]);
            return Outcome::More;
        };
        let Some(export) = offer.exports.find(name) else {
            push_reply(out, option, NBD_REP_ERR_UNKNOWN, &[b"no such export"]);
            return Outcome::More;
        };
        let mut info = |kind: u16, payload: &[&[u8]]| {
            let mut parts = vec![];
            let kind = kind.to_be_bytes();
            parts.push(kind.as_slice());
            parts.extend_from_slice(payload);
            push_reply(out, option, NBD_REP_INFO, &parts);
        };
        let size = export.size_bytes().to_be_bytes();
        let flags = export.transmission_flags(self.structured).to_be_bytes();
        info(NBD_INFO_EXPORT, &[&size, &flags]);
        if wanted.contains(NBD_INFO_NAME) {
            info(NBD_INFO_NAME, &[export.name().as_bytes()]);
        }
        if wanted.contains(NBD_INFO_DESCRIPTION) {
            info(NBD_INFO_DESCRIPTION, &[export.description().as_bytes()]);
        }
        // Sent unasked too: the limits hold for every client, asked for or not.
        info(
            NBD_INFO_BLOCK_SIZE,
            &[
                &MIN_BLOCK_BYTES.to_be_bytes(),
                &export.preferred_block_bytes().to_be_bytes(),
                &offer.max_payload_bytes.to_be_bytes(),
            ],
        );
        push_reply(out, option, NBD_REP_ACK, &[]);
        if option == NBD_OPT_GO {
            Outcome::Enter(export)
        } else {
            Outcome::More
        }
    }
}

/// Information requests of an INFO or GO, as they came.
struct Wanted<'a>(&'a [u8]);

impl Wanted<'_> {
    fn contains(&self, kind: u16) -> bool {
        self.0
            .chunks_exact(2)
            .any(|request| request == kind.to_be_bytes())
    }
}

/// Name and information requests of an INFO or GO; `None` unless the lengths add up exactly and
/// the name is a string by the document's rules.
fn parse_info(data: &[u8]) -> Option<(&str, Wanted<'_>)> {
    let (name_bytes, data) = data.split_first_chunk::<4>()?;
    let name_bytes = usize::try_from(u32::from_be_bytes(*name_bytes)).ok()?;
    let (name, data) = data.split_at_checked(name_bytes)?;
    let (count, requests) = data.split_first_chunk::<2>()?;
    if requests.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
        return None;
    }
    if name.len() > NBD_MAX_STRING || name.contains(&0) {
        return None;
    }
    Some((str::from_utf8(name).ok()?, Wanted(requests)))
}

fn keeps_data(option: u32) -> bool {
    matches!(option, NBD_OPT_EXPORT_NAME | NBD_OPT_INFO | NBD_OPT_GO)
}

fn list(exports: &dyn ExportTable, out: &mut Vec<u8>) {
    exports.for_each(&mut |export| {
        let name = export.name().as_bytes();
        let name_bytes = u32::try_from(name.len()).expect("names have at most 4096 bytes");
        let parts = [
            &name_bytes.to_be_bytes()[..],
            name,
            export.description().as_bytes(),
        ];
        push_reply(out, NBD_OPT_LIST, NBD_REP_SERVER, &parts);
    });
    push_reply(out, NBD_OPT_LIST, NBD_REP_ACK, &[]);
}

fn push_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("our strings are limited to 4096 bytes each");
    out.extend_from_slice(&NBD_REP_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}
