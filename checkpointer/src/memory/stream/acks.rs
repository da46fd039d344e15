//! What the backup says, read on a thread of its own.

use super::frames::{FrameReader, Link, LinkLost};
use blkback_proto::ids::Epoch;
use blkback_proto::memory::{Frame, RefuseCode};
use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// What the backup said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acked {
    /// It has all of this epoch.
    Whole(Epoch),
    /// It would go on from this epoch.
    Committed(Epoch),
    /// To the ping with this number.
    Pong(u64),
    /// It takes nothing more, and why.
    Refused { code: RefuseCode, text: String },
    /// Nothing within the socket's read timeout. How often is too often is the owner's judgement.
    Quiet,
    /// The last of a session.
    Lost(String),
}

/// Of one session.
#[derive(Debug)]
pub struct AckReader<R, W> {
    pub(super) frames: FrameReader<R>,
    pub(super) link: Link<W>,
}

impl<R: Read, W: Write> AckReader<R, W> {
    /// Says everything until the session ends, or `say` is false.
    pub fn run(mut self, mut say: impl FnMut(Acked) -> bool) {
        loop {
            let acked = match self.next() {
                Ok(Some(acked)) => acked,
                Ok(None) => continue,
                Err(lost) => {
                    say(Acked::Lost(lost.to_string()));
                    return;
                }
            };
            if !say(acked) {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<Option<Acked>, LinkLost> {
        let Some((frame, session)) = self.frames.read()? else {
            return Ok(Some(Acked::Quiet));
        };
        if session != self.link.session() {
            return Err(LinkLost::Peer("a frame of another session".to_owned()));
        }
        Ok(Some(match frame {
            Frame::Whole(epoch) => Acked::Whole(epoch),
            Frame::Committed(epoch) => Acked::Committed(epoch),
            Frame::Pong(token) => Acked::Pong(token),
            Frame::Ping(token) => {
                self.link.say(&Frame::Pong(token))?;
                return Ok(None);
            }
            Frame::Refuse { code, text } => Acked::Refused { code, text },
            Frame::Bye { text } => return Err(LinkLost::Bye(text)),
            _ => {
                return Err(LinkLost::Peer(
                    "a frame that a backup never sends".to_owned(),
                ));
            }
        }))
    }
}

impl<R: Read + Send + 'static, W: Write + Send + 'static> AckReader<R, W> {
    /// Runs on a thread of its own, which ends with the session or with the channel.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn spawn(self) -> std::io::Result<(mpsc::Receiver<Acked>, JoinHandle<()>)> {
        let (to, from) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("memory-acks".to_owned())
            .spawn(move || self.run(|acked| to.send(acked).is_ok()))?;
        Ok((from, thread))
    }
}
