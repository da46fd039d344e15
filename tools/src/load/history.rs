//! What a log says, request by request: the ground the oracle stands on.

use std::path::Path;

use super::log::{Event, Header, Kind, LogError, LogReader, Record};
use super::unit::UNIT_SIZE;

/// The stamp of a completion that was never seen.
pub const NEVER: u64 = u64::MAX;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Stamp taken before it was sent.
    pub submitted: u64,
    /// Stamp taken after its successful reply was read; [`NEVER`] if it failed or no reply was
    /// seen.
    pub completed: u64,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub len: u32,
    /// What it does.
    pub kind: Kind,
    /// Asked for durability of itself at completion.
    pub fua: bool,
    /// An error came back. What the disk did with it is open: all, nothing, or some units.
    pub failed: bool,
}

impl Request {
    /// Units it covers, by unit number on the disk. Empty for a flush.
    pub fn units(&self) -> std::ops::Range<u64> {
        let first = self.offset / UNIT_SIZE as u64;
        first..first + u64::from(self.len) / UNIT_SIZE as u64
    }

    /// It changes the disk.
    pub fn changes_disk(&self) -> bool {
        self.kind != Kind::Flush
    }
}

/// One cut that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Stamp taken before it was asked for.
    pub sent: u64,
    /// Stamp taken after the reply.
    pub replied: u64,
    /// The epoch that ended with it.
    pub epoch: u64,
}

/// A whole run.
#[derive(Debug, Clone)]
pub struct History {
    /// Facts of the run.
    pub header: Header,
    /// Request with id `n` stands at `n - 1`; `submitted` grows with the id.
    pub requests: Vec<Request>,
    /// Answered cuts in order of reply; epochs do not fall.
    pub cuts: Vec<Cut>,
}

impl History {
    /// Reads a log and checks that it makes sense.
    pub fn read(path: &Path) -> Result<History, LogError> {
        let mut reader = LogReader::open(path)?;
        let mut builder = Builder::new(reader.header());
        while let Some(record) = reader.next_record()? {
            builder.add(record).map_err(|what| reader.damaged(what))?;
        }
        Ok(builder.history)
    }

    /// The request with this id.
    pub fn request(&self, id: u64) -> Option<&Request> {
        self.requests.get(usize::try_from(id.checked_sub(1)?).ok()?)
    }
}

/// Turns records into a history. An error is the name of the broken rule.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) history: History,
    cuts_open: Vec<(u64, u64)>,
    cuts_sent: u64,
}

/// Requests a history may hold: ids must fit the four bytes the oracle spends on a unit.
const REQUESTS_MAX: usize = u32::MAX as usize - 2;

impl Builder {
    pub(super) fn new(header: Header) -> Builder {
        let history = History {
            header,
            requests: Vec::new(),
            cuts: Vec::new(),
        };
        Builder {
            history,
            cuts_open: Vec::new(),
            cuts_sent: 0,
        }
    }

    pub(super) fn add(&mut self, record: Record) -> Result<(), &'static str> {
        let stamp = record.stamp;
        match record.event {
            Event::Submit {
                id,
                kind,
                fua,
                offset,
                len,
                connection: _,
            } => {
                if id != self.history.requests.len() as u64 + 1 {
                    return Err("request ids are not dense");
                }
                if self.history.requests.len() >= REQUESTS_MAX {
                    return Err("more requests than the oracle can number");
                }
                self.check_range(kind, offset, len)?;
                let (submitted, completed, failed) = (stamp, NEVER, false);
                let request = Request {
                    submitted,
                    completed,
                    offset,
                    len,
                    kind,
                    fua,
                    failed,
                };
                self.history.requests.push(request);
            }
            Event::Complete { id, error } => {
                let index = id
                    .checked_sub(1)
                    .and_then(|index| usize::try_from(index).ok());
                let request = index.and_then(|index| self.history.requests.get_mut(index));
                let request = request.ok_or("a completion of an unknown request")?;
                if request.completed != NEVER || request.failed {
                    return Err("a request completed twice");
                }
                match error {
                    0 => request.completed = stamp,
                    _ => request.failed = true,
                }
            }
            Event::CutSent { id } => {
                self.cuts_sent += 1;
                if id != self.cuts_sent {
                    return Err("cut ids are not dense");
                }
                self.cuts_open.push((id, stamp));
            }
            Event::CutReply { id, epoch } => self.cut_reply(id, stamp, epoch)?,
        }
        Ok(())
    }

    fn check_range(&self, kind: Kind, offset: u64, len: u32) -> Result<(), &'static str> {
        let unit = UNIT_SIZE as u64;
        let end = offset
            .checked_add(u64::from(len))
            .ok_or("a range that overflows")?;
        let aligned = offset.is_multiple_of(unit) && u64::from(len).is_multiple_of(unit);
        match (kind, len) {
            (Kind::Flush, 0) if offset == 0 => Ok(()),
            (Kind::Flush, _) => Err("a flush with a range"),
            (_, 0) => Err("an empty range"),
            _ if !aligned => Err("a range that is not made of units"),
            _ if end > self.history.header.span_bytes => Err("a range beyond the span"),
            _ => Ok(()),
        }
    }

    fn cut_reply(&mut self, id: u64, stamp: u64, epoch: Option<u64>) -> Result<(), &'static str> {
        let open = self.cuts_open.iter().position(|(open, _)| *open == id);
        let (_, sent) = self
            .cuts_open
            .swap_remove(open.ok_or("a reply to an unknown cut")?);
        let Some(epoch) = epoch else { return Ok(()) };
        if self
            .history
            .cuts
            .last()
            .is_some_and(|cut| epoch < cut.epoch)
        {
            return Err("epoch numbers fall");
        }
        self.history.cuts.push(Cut {
            sent,
            replied: stamp,
            epoch,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        run: 1,
        disk_bytes: 8192,
        span_bytes: 4096,
        seed: 0,
    };

    fn submit(id: u64, kind: Kind, offset: u64, len: u32) -> Event {
        Event::Submit {
            id,
            kind,
            fua: false,
            offset,
            len,
            connection: 0,
        }
    }

    fn verdict(events: &[Event]) -> Result<History, &'static str> {
        let mut builder = Builder::new(HEADER);
        for (stamp, event) in (1..).zip(events) {
            builder.add(Record {
                stamp,
                ns: 0,
                event: *event,
            })?;
        }
        Ok(builder.history)
    }

    /// Production: a log that contradicts itself would be judged as if it were the truth.
    #[test]
    fn impossible_histories_are_refused() {
        let write = submit(1, Kind::Write, 0, 512);
        let done = Event::Complete { id: 1, error: 0 };
        let cases: [&[Event]; 11] = [
            &[submit(2, Kind::Write, 0, 512)],
            &[submit(1, Kind::Write, 0, 0)],
            &[submit(1, Kind::Write, 1, 512)],
            &[submit(1, Kind::Write, 4096, 512)],
            &[submit(1, Kind::Zero, u64::MAX - 511, 512)],
            &[submit(1, Kind::Flush, 0, 512)],
            &[done],
            &[write, done, done],
            &[write, Event::Complete { id: 1, error: 5 }, done],
            &[Event::CutReply {
                id: 1,
                epoch: Some(1),
            }],
            &[Event::CutSent { id: 2 }],
        ];
        for case in cases {
            assert!(verdict(case).is_err(), "accepted {case:?}");
        }
    }

    /// Production: a failed write counted as acknowledged would make the oracle demand lost data.
    #[test]
    fn requests_and_cuts_are_put_together_from_their_events() {
        let history = verdict(&[
            submit(1, Kind::Write, 512, 1024),
            submit(2, Kind::Zero, 0, 512),
            Event::CutSent { id: 1 },
            Event::Complete { id: 2, error: 5 },
            Event::CutReply {
                id: 1,
                epoch: Some(9),
            },
            Event::CutSent { id: 2 },
            Event::Complete { id: 1, error: 0 },
            Event::CutReply { id: 2, epoch: None },
        ])
        .unwrap();
        let [write, zero] = history.requests[..] else {
            panic!("two requests")
        };
        assert_eq!(
            (write.submitted, write.completed, write.units()),
            (1, 7, 1..3)
        );
        assert_eq!((zero.completed, zero.failed), (NEVER, true));
        assert_eq!(
            history.cuts,
            [Cut {
                sent: 3,
                replied: 5,
                epoch: 9
            }]
        );
    }
}
