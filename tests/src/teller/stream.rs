//! Numbered transactions, a few in flight, over one connection that is never opened again.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::connection::{Connection, Got};
use super::receipts::{APPEND, Answer, PAYLOAD_MAX, Request};

/// How often the caller hears how far it is, at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(20);

/// What is asked of the client.
#[derive(Debug, Clone)]
pub struct Options {
    /// The guest.
    pub address: SocketAddr,
    /// The ledger's run, as the guest was told.
    pub run: u64,
    /// What is in the transactions follows from it.
    pub seed: u64,
    /// Transactions in flight, at least 1.
    pub window: usize,
    /// How long to stream, if nobody says stop before.
    pub time: Duration,
    /// A guest that answers nothing for this long is lost.
    pub stall: Duration,
    /// How long the first connection may take.
    pub connect: Duration,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Transactions that were answered.
    pub answered: u64,
    /// From the last answer until now.
    pub silent: Duration,
    /// The longest time between two answers so far.
    pub longest_gap: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Nanoseconds since the beginning.
    pub(super) at_ns: u64,
}

/// An answer, and when it was here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    pub(super) number: u64,
    pub(super) nonce: u64,
    pub(super) position: u64,
    pub(super) chain: u64,
    pub(super) chain_disk: u64,
    pub(super) monotonic_ns: u64,
    pub(super) real_ns: u64,
    pub(super) flags: u32,
    /// Nanoseconds since the beginning.
    pub(super) at_ns: u64,
}

/// How the stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// All that was sent is answered.
    Whole,
    /// No answer for the time that is the limit.
    Stalled,
    /// The connection was lost.
    Lost(String),
}

impl Ended {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Whole => "whole".to_owned(),
            Self::Stalled => "stalled".to_owned(),
            Self::Lost(why) => format!("lost: {why}"),
        }
    }
}

/// All that was sent and answered; transaction n is at index n − 1 of `sent`.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) begun_unix_ns: u64,
    pub(super) sent: Vec<Sent>,
    pub(super) answers: Vec<Answered>,
    pub(super) ended: Ended,
}

/// Transaction `number`.
pub(super) fn transaction(seed: u64, number: u64) -> Request {
    let mut random = fastrand::Rng::with_seed(seed ^ number.rotate_left(40));
    let nonce = random.u64(..);
    let mut payload = vec![0; random.usize(..=PAYLOAD_MAX)];
    random.fill(&mut payload);
    Request {
        kind: APPEND,
        number,
        nonce,
        payload,
    }
}

impl Stream {
    pub(super) fn play(
        connection: &mut Connection,
        options: &Options,
        stop: &dyn Fn() -> bool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Self {
        let since = Instant::now();
        let mut stream = Self {
            begun_unix_ns: now_unix_ns(),
            sent: Vec::new(),
            answers: Vec::new(),
            ended: Ended::Whole,
        };
        let (mut heard, mut told, mut longest_gap) = (since, since, Duration::ZERO);
        loop {
            let now = Instant::now();
            if now.duration_since(told) >= PROGRESS_EVERY {
                told = now;
                progress(&Progress {
                    answered: stream.answers.len() as u64,
                    silent: now.duration_since(heard),
                    longest_gap,
                });
            }
            let closing = stop() || since.elapsed() >= options.time;
            if closing && stream.in_flight() == 0 {
                return stream;
            }
            if !closing && let Err(why) = stream.fill(connection, options, since) {
                stream.ended = Ended::Lost(why);
                return stream;
            }
            match connection.receive(LOOK) {
                Got::Answer(answer) => {
                    longest_gap = longest_gap.max(heard.elapsed());
                    heard = Instant::now();
                    stream.take(&answer, nanos(since.elapsed()));
                }
                Got::Nothing if heard.elapsed() < options.stall => {}
                Got::Nothing => {
                    stream.ended = Ended::Stalled;
                    return stream;
                }
                Got::Ended(why) => {
                    stream.ended = Ended::Lost(why);
                    return stream;
                }
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.sent.len().saturating_sub(self.answers.len())
    }

    fn fill(
        &mut self,
        connection: &mut Connection,
        options: &Options,
        since: Instant,
    ) -> Result<(), String> {
        while self.in_flight() < options.window {
            let request = transaction(options.seed, self.sent.len() as u64 + 1);
            // Before: an answer must not seem to be older than its question.
            let at_ns = nanos(since.elapsed());
            self.sent.push(Sent { at_ns });
            connection.send(&request)?;
        }
        Ok(())
    }

    fn take(&mut self, answer: &Answer, at_ns: u64) {
        self.answers.push(Answered {
            number: answer.number,
            nonce: answer.nonce,
            position: answer.position,
            chain: answer.chain,
            chain_disk: answer.chain_disk,
            monotonic_ns: answer.monotonic_ns,
            real_ns: answer.real_ns,
            flags: answer.flags,
            at_ns,
        });
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn now_unix_ns() -> u64 {
    nanos(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    )
}
