//! The backup's side of a session, on a thread of its own: frames into the store, word to the owner.
//!
//! The store is shared with the owner, who commits ([`commit`]) while the next epoch comes in; it is locked for
//! one frame at a time. An epoch is acknowledged as whole only when the store has it.

use super::decoder::{DecodeError, Decoder};
use super::frames::{FrameReader, Link, LinkLost, lock};
use crate::memory::PAGE_BYTES;
use crate::memory::store::{Store, StoreError};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::{Codec, Frame, Hello, RefuseCode, VERSION_MAX, Welcome};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What came of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    /// A session is welcomed.
    Hello(Box<Hello>),
    /// A copy begins; the one before counts until the first epoch of this one is committed.
    CopyBegun { generation: u64 },
    /// An epoch is in the store, and was acknowledged.
    Whole {
        epoch: Epoch,
        lineage: LineageId,
        came: Came,
    },
    /// The same, and the guest is off.
    EndOfGuest { epoch: Epoch, lineage: LineageId },
    /// The guest is off the primary, which asks that it goes on here; and why.
    HandOver(String),
    /// The primary is alive; with every frame.
    Heard,
    /// To the ping with this number.
    Pong(u64),
    /// Nothing within the socket's read timeout. How often is too often is the owner's judgement.
    Quiet,
}

/// What came of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Came {
    pub pages: u64,
    /// Of the pages and the state of the devices.
    pub raw_bytes: u64,
    pub wire_bytes: u64,
    /// From its first frame to its last, in the store.
    pub us: u64,
}

/// Whether a primary's guest is the one that a standby is for.
///
/// # Errors
/// What differs, in words.
pub fn same_shape(primary: &Hello, standby: &Hello) -> Result<(), String> {
    let differs = |what: &str, theirs: &str, mine: &str| {
        Err(format!("its {what} is {theirs}, the standby's is {mine}"))
    };
    if primary.guest != standby.guest {
        return differs("guest", &primary.guest, &standby.guest);
    }
    if primary.machine != standby.machine {
        return differs("machine", &primary.machine, &standby.machine);
    }
    if primary.blocks != standby.blocks {
        let text = |hello: &Hello| format!("{:?}", hello.blocks);
        return differs("RAM", &text(primary), &text(standby));
    }
    if primary.state_kind != standby.state_kind {
        let text = |hello: &Hello| format!("{:?}", hello.state_kind);
        return differs("kind of device state", &text(primary), &text(standby));
    }
    Ok(())
}

/// Commits, and tells the primary if there is one.
///
/// # Errors
/// Of the store. A link that fails is told by whoever reads from it.
pub fn commit<W: Write>(
    store: &Mutex<Store>,
    link: Option<&Link<W>>,
    epoch: Epoch,
) -> Result<Epoch, StoreError> {
    let committed = lock(store).commit(epoch)?;
    if let Some(link) = link.filter(|_| committed != Epoch::NONE) {
        // Whoever reads from the link finds out.
        let _ = link.say(&Frame::Committed(committed));
    }
    Ok(committed)
}

/// Serves one session to its end, which is never an `Ok`. `admit` looks at who comes; `got` is told of everything, with the
/// link to answer by, and ends the session by false.
pub fn serve<R: Read, W: Write>(
    from: R,
    to: W,
    store: &Arc<Mutex<Store>>,
    admit: impl FnOnce(&Hello) -> Result<(), (RefuseCode, String)>,
    mut got: impl FnMut(Got, &Link<W>) -> bool,
) -> LinkLost {
    let mut frames = FrameReader::new(from);
    let (hello, session) = match frames.read() {
        Ok(Some((Frame::Hello(hello), session))) => (*hello, session),
        Ok(Some(_)) => return LinkLost::Peer("no hello".to_owned()),
        Ok(None) => return LinkLost::Silent,
        Err(lost) => return lost,
    };
    let link = Link::new(to, session);
    let welcome = match welcome(&hello, store, admit) {
        Ok(welcome) => welcome,
        Err((code, text)) => return refuse(&link, code, text),
    };
    if let Err(e) = link.say(&Frame::Welcome(welcome)) {
        return e.into();
    }
    let has_base = welcome.has_base(hello.incarnation, hello.generation);
    let generation = if has_base { welcome.generation } else { 0 };
    let mut session = Session {
        decoder: Decoder::new(generation, hello.pages()),
        has_copy: has_base,
        session,
        store,
        hello,
        begun: Instant::now(),
        wire_bytes: 0,
    };
    if !got(Got::Hello(Box::new(session.hello.clone())), &link) {
        return bye(&link);
    }
    loop {
        let mut told = match frames.read() {
            Ok(None) => Got::Quiet,
            Ok(Some((frame, of))) => match session.take(frame, of, &link) {
                Ok(told) => told,
                Err(Ended::Lost(lost)) => return lost,
                Err(Ended::Refused(code, text)) => return refuse(&link, code, text),
            },
            Err(lost) => return lost,
        };
        session.count(frames.frame_bytes(), &mut told);
        if !got(told, &link) {
            return bye(&link);
        }
    }
}

fn welcome(
    hello: &Hello,
    store: &Mutex<Store>,
    admit: impl FnOnce(&Hello) -> Result<(), (RefuseCode, String)>,
) -> Result<Welcome, (RefuseCode, String)> {
    let version = hello.choose_version().ok_or_else(|| {
        let text = format!("no common version: this backup speaks up to {VERSION_MAX}");
        (RefuseCode::Version, text)
    })?;
    admit(hello)?;
    let mut store = lock(store);
    store.begin_session().map_err(refusal)?;
    let (base, whole) = store.base().unzip();
    Ok(Welcome {
        version,
        whole: whole.unwrap_or_default(),
        generation: base.map_or(0, |base| base.generation),
        incarnation: base.map_or(0, |base| base.incarnation),
    })
}

fn refusal(error: StoreError) -> (RefuseCode, String) {
    let code = match error {
        StoreError::Room { .. } | StoreError::Pending { .. } => RefuseCode::Room,
        StoreError::Promoted => RefuseCode::Promoted,
        StoreError::Peer { .. } => RefuseCode::Protocol,
        _ => RefuseCode::Store,
    };
    (code, error.to_string())
}

/// Says no. Also for an owner who has a primary already.
pub fn refuse<W: Write>(link: &Link<W>, code: RefuseCode, text: String) -> LinkLost {
    let frame = Frame::Refuse {
        code,
        text: text.clone(),
    };
    // The session is over either way.
    let _ = link.say(&frame);
    LinkLost::Refused { code, text }
}

fn bye<W: Write>(link: &Link<W>) -> LinkLost {
    // The session is over either way.
    let _ = link.say(&Frame::Bye {
        text: "the backup ends the session".to_owned(),
    });
    LinkLost::Stopped
}

enum Ended {
    Lost(LinkLost),
    Refused(RefuseCode, String),
}

impl From<LinkLost> for Ended {
    fn from(lost: LinkLost) -> Self {
        Self::Lost(lost)
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.into())
    }
}

fn not_taken(error: DecodeError) -> Ended {
    match error {
        DecodeError::Peer(text) => Ended::Refused(RefuseCode::Protocol, text),
        DecodeError::Store(error) => store_failed(error),
    }
}

fn store_failed(error: StoreError) -> Ended {
    let (code, text) = refusal(error);
    Ended::Refused(code, text)
}

struct Session<'a> {
    decoder: Decoder,
    /// There is a copy that epochs can belong to.
    has_copy: bool,
    session: SessionId,
    store: &'a Arc<Mutex<Store>>,
    hello: Hello,
    /// The epoch that comes in.
    begun: Instant,
    wire_bytes: u64,
}

impl Session<'_> {
    fn count(&mut self, frame_bytes: u64, told: &mut Got) {
        self.wire_bytes += frame_bytes;
        if let Got::Whole { came, .. } = told {
            came.wire_bytes = self.wire_bytes;
        }
    }

    fn take<W: Write>(
        &mut self,
        frame: Frame<'_>,
        of: SessionId,
        link: &Link<W>,
    ) -> Result<Got, Ended> {
        if of != self.session {
            return Err(LinkLost::Peer("a frame of another session".to_owned()).into());
        }
        match frame {
            Frame::CopyStart { generation } => {
                self.decoder.copy_start(generation).map_err(not_taken)?;
                let mut store = lock(self.store);
                store
                    .begin_generation(&self.hello, generation)
                    .map_err(store_failed)?;
                self.has_copy = true;
                return Ok(Got::CopyBegun { generation });
            }
            Frame::Ping(token) => link.say(&Frame::Pong(token))?,
            Frame::Pong(token) => return Ok(Got::Pong(token)),
            Frame::Bye { text } => return Err(LinkLost::Bye(text).into()),
            Frame::HandOver { text } => return Ok(Got::HandOver(text)),
            _ if !self.has_copy => {
                let text = "memory without a copy that it could belong to".to_owned();
                return Err(Ended::Refused(RefuseCode::Protocol, text));
            }
            Frame::EndOfGuest { epoch, lineage } => {
                self.decoder.check_closed().map_err(not_taken)?;
                lock(self.store)
                    .end_of_guest(epoch, lineage)
                    .map_err(store_failed)?;
                link.say(&Frame::Whole(epoch))?;
                return Ok(Got::EndOfGuest { epoch, lineage });
            }
            frame => return self.memory(frame, link),
        }
        Ok(Got::Heard)
    }

    fn memory<W: Write>(&mut self, frame: Frame<'_>, link: &Link<W>) -> Result<Got, Ended> {
        let mut store = lock(self.store);
        match frame {
            Frame::Copy { first, crc, blob } => {
                let bytes = self.decoder.copy(first, crc, &blob).map_err(not_taken)?;
                let done = if blob.codec == Codec::Zero {
                    store.zero_copy(first.into(), blob.count as u64)
                } else {
                    store.write_copy(first.into(), bytes)
                };
                done.map_err(store_failed)?;
            }
            Frame::Begin(begin) => {
                self.decoder.begin(&begin).map_err(not_taken)?;
                self.begun = Instant::now();
                self.wire_bytes = 0;
                store
                    .begin_epoch(begin.epoch, begin.lineage)
                    .map_err(store_failed)?;
            }
            Frame::Pages { entries, blob } => {
                let bytes = self
                    .decoder
                    .pages(&entries, &blob, &*store)
                    .map_err(not_taken)?;
                store.put_pages(&entries, bytes).map_err(store_failed)?;
            }
            Frame::State { indexes, blob } => {
                self.decoder.state(&indexes, &blob).map_err(not_taken)?;
            }
            Frame::End {
                epoch,
                page_count,
                digest,
            } => {
                let whole = self
                    .decoder
                    .end(epoch, page_count, digest)
                    .map_err(not_taken)?;
                store
                    .finish_epoch(whole.digest, whole.kind, whole.state)
                    .map_err(store_failed)?;
                let lineage = whole.lineage;
                let came = Came {
                    pages: page_count,
                    raw_bytes: page_count * PAGE_BYTES + whole.state.len() as u64,
                    wire_bytes: 0,
                    us: u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
                };
                drop(store);
                link.say(&Frame::Whole(epoch))?;
                return Ok(Got::Whole {
                    epoch,
                    lineage,
                    came,
                });
            }
            _ => {
                let text = "a frame that a primary never sends".to_owned();
                return Err(Ended::Refused(RefuseCode::Protocol, text));
            }
        }
        Ok(Got::Heard)
    }
}
