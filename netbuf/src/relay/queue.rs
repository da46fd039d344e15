//! Frames of several epochs in one ring of bytes. Pure: no clock, no socket, no allocation per frame.
//!
//! ```text
//!   head          ready_to                                   tail
//!    │ released,    │ epoch 7        │ epoch 8     │ the epoch │
//!    │ to be sent   │ cut            │ cut         │ that runs │
//! ```
//!
//! - What is before `ready_to` may be sent, nothing else. RELEASE n moves it to the end of epoch n; OPEN
//!   moves it along with `tail`.
//! - A queue begins open. HOLD or the first CUT closes it; only OPEN opens it again.
//! - Numbers of CUT and of RELEASE grow. Only an epoch that was cut is released; RELEASE of the number
//!   released last is taken again and does nothing, so that a lost answer may be asked for twice.
//! - **At the limit the newest frame is dropped** and counted: to the guest's peers that is loss on the way,
//!   as at any full queue. From three quarters of the limit until half of it [`QueueStats::alarm`] is set.
//!
//! A record is 16 bytes (length, time) and the frame, in multiples of 16, and never wraps: what is left at the
//! end of the ring is skipped. The ring is one largest record longer than the limit, so skipping costs nobody
//! room below it.

use std::collections::VecDeque;

#[cfg(test)]
mod tests;

const HEAD_BYTES: usize = 16;
/// In place of a length: the rest of the ring is skipped.
const SKIP: u32 = u32::MAX;

/// What a frame of `bytes` counts against the limit.
pub const fn charge(bytes: usize) -> usize {
    HEAD_BYTES + bytes.div_ceil(16) * 16
}

/// A command that was refused; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    #[error("Epoch {epoch} cannot be cut: epoch {last} was cut already")]
    CutGoesBack { epoch: u64, last: u64 },
    #[error("Epoch {epoch} cannot be cut: {epochs_max} epochs wait for their release")]
    TooManyEpochs { epoch: u64, epochs_max: usize },
    #[error("Epoch {epoch} cannot be released: it was not cut")]
    NotCut { epoch: u64 },
    #[error("Epoch {epoch} cannot be released: epoch {last} was released already")]
    ReleaseGoesBack { epoch: u64, last: u64 },
}

/// What happened to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    Kept,
    /// The limit is reached, or the frame is longer than the queue was made for.
    Dropped,
}

/// What one command let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub frames: u64,
    /// Without record heads.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, other: Amount) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueStats {
    /// Frames pass without a release.
    pub open: bool,
    /// Waiting for a release.
    pub held: Amount,
    /// Released and not sent yet.
    pub ready: Amount,
    /// Age of the oldest frame in the queue.
    pub oldest_ns: Option<u64>,
    /// Dropped at the limit.
    pub dropped: Amount,
    pub epochs_in_flight: usize,
    pub last_cut: Option<u64>,
    pub last_released: Option<u64>,
    /// [`charge`] of everything in the queue, and its limit.
    pub charged_bytes: usize,
    pub limit_bytes: usize,
    pub alarm: bool,
}

#[derive(Debug, Clone, Copy)]
struct Epoch {
    number: u64,
    end: u64,
    amount: Amount,
}

#[derive(Debug)]
pub struct EpochQueue {
    ring: Box<[u8]>,
    limit_bytes: usize,
    frame_bytes_max: usize,
    charged_bytes: usize,
    /// Positions in the endless stream of records; modulo the ring they are places in it.
    head: u64,
    ready_to: u64,
    tail: u64,
    epochs: VecDeque<Epoch>,
    epochs_max: usize,
    /// Of the epoch that runs.
    running: Amount,
    ready: Amount,
    dropped: Amount,
    open: bool,
    alarm: bool,
    last_cut: Option<u64>,
    last_released: Option<u64>,
}

impl EpochQueue {
    /// An open queue of at most `limit_bytes` (see [`charge`]) in at most `epochs_max` epochs.
    pub fn new(limit_bytes: usize, frame_bytes_max: usize, epochs_max: usize) -> Self {
        let ring_bytes = limit_bytes.next_multiple_of(16) + charge(frame_bytes_max);
        Self {
            ring: vec![0; ring_bytes].into_boxed_slice(),
            limit_bytes,
            frame_bytes_max,
            charged_bytes: 0,
            head: 0,
            ready_to: 0,
            tail: 0,
            epochs: VecDeque::with_capacity(epochs_max),
            epochs_max,
            running: Amount::default(),
            ready: Amount::default(),
            dropped: Amount::default(),
            open: true,
            alarm: false,
            last_cut: None,
            last_released: None,
        }
    }

    /// Takes a frame into the epoch that runs.
    pub fn push(&mut self, frame: &[u8], now_ns: u64) -> Pushed {
        let one = Amount {
            frames: 1,
            bytes: frame.len() as u64,
        };
        let cost = charge(frame.len());
        if frame.len() > self.frame_bytes_max || self.charged_bytes + cost > self.limit_bytes {
            self.dropped.add(one);
            return Pushed::Dropped;
        }
        let mut at = self.place(self.tail);
        let left = self.ring.len() - at;
        if left < cost {
            if left > 0 {
                self.ring[at..at + 4].copy_from_slice(&SKIP.to_le_bytes());
            }
            self.tail += left as u64;
            at = 0;
        }
        let length = u32::try_from(frame.len()).expect("a frame is far shorter than 4 GiB");
        self.ring[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.ring[at + 8..at + HEAD_BYTES].copy_from_slice(&now_ns.to_le_bytes());
        let body = at + HEAD_BYTES;
        self.ring[body..body + frame.len()].copy_from_slice(frame);
        self.tail += cost as u64;
        assert!(
            self.tail - self.head <= self.ring.len() as u64,
            "the ring is longer than the limit by the largest record"
        );
        self.charged_bytes += cost;
        self.alarm |= self.charged_bytes >= self.limit_bytes / 4 * 3;
        if self.open {
            self.ready_to = self.tail;
            self.ready.add(one);
        } else {
            self.running.add(one);
        }
        Pushed::Kept
    }

    /// Ends the epoch that runs: what was pushed so far belongs to `epoch` or one before it. Holds what comes.
    ///
    /// # Errors
    /// When the number does not grow or too many epochs are in flight.
    pub fn cut(&mut self, epoch: u64) -> Result<Amount, QueueError> {
        if let Some(last) = self.last_cut.filter(|last| epoch <= *last) {
            return Err(QueueError::CutGoesBack { epoch, last });
        }
        if self.epochs.len() == self.epochs_max {
            let epochs_max = self.epochs_max;
            return Err(QueueError::TooManyEpochs { epoch, epochs_max });
        }
        let amount = std::mem::take(&mut self.running);
        self.epochs.push_back(Epoch {
            number: epoch,
            end: self.tail,
            amount,
        });
        self.last_cut = Some(epoch);
        self.open = false;
        Ok(amount)
    }

    /// Lets all epochs up to `epoch` go; [`Self::ready`] has their frames.
    ///
    /// # Errors
    /// When the epoch was not cut, or a later one was released.
    pub fn release(&mut self, epoch: u64) -> Result<Amount, QueueError> {
        match self.last_released {
            Some(last) if epoch == last => return Ok(Amount::default()),
            Some(last) if epoch < last => return Err(QueueError::ReleaseGoesBack { epoch, last }),
            _ => {}
        }
        let found = self.epochs.binary_search_by_key(&epoch, |cut| cut.number);
        let Ok(index) = found else {
            return Err(QueueError::NotCut { epoch });
        };
        let mut released = Amount::default();
        for cut in self.epochs.drain(..=index) {
            released.add(cut.amount);
            self.ready_to = cut.end;
        }
        self.ready.add(released);
        self.last_released = Some(epoch);
        Ok(released)
    }

    /// Holds from now on; what was let through before stays let through.
    pub fn hold(&mut self) {
        self.open = false;
    }

    /// Lets everything go, held epochs too, and passes what comes until HOLD or CUT.
    pub fn open(&mut self) -> Amount {
        let mut released = std::mem::take(&mut self.running);
        for cut in self.epochs.drain(..) {
            released.add(cut.amount);
        }
        self.ready.add(released);
        self.ready_to = self.tail;
        self.last_released = self.last_cut.or(self.last_released);
        self.open = true;
        released
    }

    /// The frames that may be sent, oldest first. They stay until [`Self::consume`].
    pub fn ready(&self) -> Ready<'_> {
        Ready {
            queue: self,
            at: self.head,
        }
    }

    /// See [`QueueStats::alarm`].
    pub fn alarm(&self) -> bool {
        self.alarm
    }

    pub fn has_ready(&self) -> bool {
        self.head < self.ready_to
    }

    /// The first `frames` of [`Self::ready`] are sent.
    ///
    /// # Panics
    /// When fewer are ready.
    pub fn consume(&mut self, frames: usize) {
        for _ in 0..frames {
            assert!(self.has_ready(), "only what is ready is consumed");
            let (at, length) = self.record(self.head);
            let cost = charge(length);
            self.head = at + cost as u64;
            self.charged_bytes -= cost;
            self.ready.frames -= 1;
            self.ready.bytes -= length as u64;
        }
        self.alarm &= self.charged_bytes >= self.limit_bytes / 2;
        if self.head == self.tail {
            self.begin_anew();
        }
    }

    /// An empty queue begins at the start of its ring: memory that is warm, and no more of it than was ever needed.
    fn begin_anew(&mut self) {
        (self.head, self.ready_to, self.tail) = (0, 0, 0);
        // Whatever is in flight is empty, and ends where the next frame begins.
        self.epochs.iter_mut().for_each(|cut| cut.end = 0);
    }

    pub fn stats(&self, now_ns: u64) -> QueueStats {
        let mut held = self.running;
        for cut in &self.epochs {
            held.add(cut.amount);
        }
        let oldest_ns = (self.head < self.tail).then(|| {
            let (at, _) = self.record(self.head);
            let at = self.place(at);
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.ring[at + 8..at + HEAD_BYTES]);
            now_ns.saturating_sub(u64::from_le_bytes(bytes))
        });
        QueueStats {
            open: self.open,
            held,
            ready: self.ready,
            oldest_ns,
            dropped: self.dropped,
            epochs_in_flight: self.epochs.len(),
            last_cut: self.last_cut,
            last_released: self.last_released,
            charged_bytes: self.charged_bytes,
            limit_bytes: self.limit_bytes,
            alarm: self.alarm,
        }
    }

    fn place(&self, position: u64) -> usize {
        (position % self.ring.len() as u64) as usize
    }

    /// Position and length of the record that stands at or, over what is skipped, behind `position`.
    fn record(&self, position: u64) -> (u64, usize) {
        let at = self.place(position);
        let length = self.length(at);
        if length == SKIP {
            let next = position + (self.ring.len() - at) as u64;
            (next, self.length(0) as usize)
        } else {
            (position, length as usize)
        }
    }

    fn length(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.ring[at..at + 4]);
        u32::from_le_bytes(bytes)
    }
}

/// See [`EpochQueue::ready`].
#[derive(Debug, Clone)]
pub struct Ready<'a> {
    queue: &'a EpochQueue,
    at: u64,
}

impl<'a> Iterator for Ready<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.at >= self.queue.ready_to {
            return None;
        }
        let (at, length) = self.queue.record(self.at);
        let body = self.queue.place(at) + HEAD_BYTES;
        self.at = at + charge(length) as u64;
        Some(&self.queue.ring[body..body + length])
    }
}
