//! The primary's side of a session. Calls block until the kernel has the bytes, or the socket's write timeout
//! has passed; then the session is over, and everything that was not acknowledged is the owner's to take back.

use super::acks::AckReader;
use super::encoder::{Counts, Cut, Encoder, EncoderSettings};
use super::frames::{FrameReader, Link, LinkLost};
use super::gain::{Gain, Packing};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use blkback_proto::memory::{Frame, Hello, VERSION_MAX, VERSION_MIN, Welcome};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Epochs whose way is timed at once.
const TIMED_MAX: usize = 64;

/// Of one session.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    pub encoder: EncoderSettings,
    pub packing: Packing,
    /// Of the first copy, on the wire; 0 for no limit.
    pub copy_bytes_per_s_max: u64,
}

/// One session, once the backup has welcomed it.
#[derive(Debug)]
pub struct Sender<W> {
    link: Link<W>,
    encoder: Encoder,
    settings: Settings,
    gain: Gain,
    copy: Pace,
    /// Sent and not yet whole: number, bytes, when.
    timed: VecDeque<(Epoch, u64, Instant)>,
    is_lost: bool,
}

impl<W: Write> Sender<W> {
    /// Says hello and waits for the answer: at most one read timeout of the socket. `session` is random.
    ///
    /// # Errors
    /// Refused, silent, failed.
    ///
    /// # Panics
    /// Where [`Hello::check`] does not hold.
    pub fn connect<R: Read>(
        from: R,
        to: W,
        hello: &Hello,
        session: SessionId,
        settings: Settings,
    ) -> Result<(Self, AckReader<R, W>, Welcome), LinkLost> {
        let link = Link::new(to, session);
        link.say(&Frame::Hello(Box::new(hello.clone())))?;
        let mut frames = FrameReader::new(from);
        let welcome = match frames.read()? {
            None => return Err(LinkLost::Silent),
            Some((Frame::Refuse { code, text }, _)) => {
                return Err(LinkLost::Refused { code, text });
            }
            Some((Frame::Welcome(welcome), of)) if of == session => welcome,
            Some(_) => return Err(LinkLost::Peer("no answer to a hello".to_owned())),
        };
        if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
            let text = format!("it speaks version {}", welcome.version);
            return Err(LinkLost::Peer(text));
        }
        let mut encoder = Encoder::new(settings.encoder);
        encoder.begin_session(session, hello.generation);
        let sender = Self {
            link: link.clone(),
            encoder,
            gain: Gain::new(settings.packing),
            copy: Pace::new(settings.copy_bytes_per_s_max),
            settings,
            timed: VecDeque::new(),
            is_lost: false,
        };
        Ok((sender, AckReader { frames, link }, welcome))
    }

    /// Begins a first copy, under a new random id. Refused by the backup, it says so as [`super::Acked::Refused`].
    ///
    /// # Errors
    /// The session is over.
    pub fn start_copy(&mut self, generation: u64) -> Result<(), LinkLost> {
        self.check()?;
        self.copy = Pace::new(self.settings.copy_bytes_per_s_max);
        let done = self.link.put(self.encoder.copy_start(generation));
        self.is_lost = done.is_err();
        Ok(done?)
    }

    /// Pages behind one another, while the guest runs; sleeps to keep the limit.
    ///
    /// # Errors
    /// The session is over.
    pub fn send_copy(&mut self, first: u64, bytes: &[u8]) -> Result<(), LinkLost> {
        self.check()?;
        let (link, pace) = (&self.link, &mut self.copy);
        let done = self.encoder.copy(first, bytes, |frame| {
            link.put(frame)?;
            let wait = pace.wait(frame.len() as u64, Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            Ok::<_, std::io::Error>(())
        });
        self.is_lost = done.is_err();
        Ok(done?)
    }

    /// An epoch.
    ///
    /// # Errors
    /// The session is over.
    pub fn send_epoch(&mut self, cut: &Cut<'_>) -> Result<Counts, LinkLost> {
        self.check()?;
        self.encoder.packs = self.gain.packs();
        let begun = Instant::now();
        let mut writing = Duration::ZERO;
        let link = &self.link;
        let done = self.encoder.epoch(cut, |frames| {
            let before = Instant::now();
            let done = link.put(frames);
            writing += before.elapsed();
            done
        });
        self.is_lost = done.is_err();
        let counts = done?;
        if self.encoder.packs {
            let took = begun.elapsed().saturating_sub(writing);
            self.gain
                .packed(counts.plain_bytes, counts.packed_bytes, nanos(took));
        }
        if self.timed.len() == TIMED_MAX {
            self.timed.pop_front();
        }
        self.timed.push_back((cut.epoch, counts.wire_bytes, begun));
        Ok(counts)
    }

    /// The owner read [`super::Acked::Whole`]: what the way took says how fast the wire is.
    pub fn whole(&mut self, epoch: Epoch) {
        while let Some((of, bytes, begun)) = self.timed.front().copied() {
            if of > epoch {
                break;
            }
            if of == epoch {
                self.gain.sent(bytes, nanos(begun.elapsed()));
            }
            self.timed.pop_front();
        }
    }

    /// The guest is off: nothing goes on from here.
    ///
    /// # Errors
    /// The session is over.
    pub fn end_of_guest(&mut self, epoch: Epoch, lineage: LineageId) -> Result<(), LinkLost> {
        self.say(&Frame::EndOfGuest { epoch, lineage })
    }

    /// # Errors
    /// The session is over.
    pub fn ping(&mut self, token: u64) -> Result<(), LinkLost> {
        self.say(&Frame::Ping(token))
    }

    /// # Errors
    /// The session is over anyway.
    pub fn bye(mut self, text: &str) -> Result<(), LinkLost> {
        self.say(&Frame::Bye {
            text: text.to_owned(),
        })
    }

    /// The guest is off this host, and had not switched itself off: the backup is to take it over.
    ///
    /// # Errors
    /// The session is over.
    pub fn hand_over(&mut self, text: &str) -> Result<(), LinkLost> {
        self.say(&Frame::HandOver {
            text: text.to_owned(),
        })
    }

    /// What was sent is no base any more, though the session goes on.
    pub fn take_back(&mut self) {
        self.encoder.forget();
    }

    fn say(&mut self, frame: &Frame<'_>) -> Result<(), LinkLost> {
        self.check()?;
        let done = self.link.say(frame);
        self.is_lost = done.is_err();
        Ok(done?)
    }

    fn check(&self) -> Result<(), LinkLost> {
        if self.is_lost {
            return Err(LinkLost::Closed);
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Bytes a second, kept by sleeping. Pure.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    bytes_per_s_max: u64,
    /// When the bytes so far are through.
    until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_s_max: u64) -> Self {
        Self {
            bytes_per_s_max,
            until: None,
        }
    }

    /// How long to wait after so many bytes; time that was not used is not made up for.
    pub(super) fn wait(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.bytes_per_s_max == 0 {
            return Duration::ZERO;
        }
        let took_ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s_max);
        let took = Duration::from_nanos(u64::try_from(took_ns).unwrap_or(u64::MAX));
        let until = self.until.unwrap_or(now).max(now) + took;
        self.until = Some(until);
        until - now
    }
}
