//! Chooses requests: what, where, how long. Deterministic by seed, no I/O.

use std::collections::VecDeque;

use super::log::Kind;
use super::unit::UNIT_SIZE;

/// The shape of a workload. Percentages are of all requests that change the disk.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Lengths in bytes, drawn evenly; each a multiple of the unit and at most the span.
    pub block_sizes: Vec<u32>,
    /// Bytes from the start of the disk that are used; a multiple of the unit.
    pub span_bytes: u64,
    /// Writes that ask for FUA.
    pub fua_percent: u8,
    /// Requests that overlap a recent one, shifted by whole units.
    pub overlap_percent: u8,
    /// Requests that write zeroes.
    pub zero_percent: u8,
    /// Requests that discard.
    pub discard_percent: u8,
    /// Requests that wait for another one's completion first.
    pub dependent_percent: u8,
    /// A flush after this many requests; 0 for none.
    pub flush_every: u64,
}

/// One request to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// What it does.
    pub kind: Kind,
    /// Asks for FUA.
    pub fua: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// How many recent places are remembered for overlaps.
const RECENT_MAX: usize = 64;

/// Draws requests.
#[derive(Debug)]
pub struct Planner {
    workload: Workload,
    random: fastrand::Rng,
    recent: VecDeque<(u64, u32)>,
    since_flush: u64,
}

impl Planner {
    /// A planner that draws the same requests for the same seed.
    pub fn new(workload: Workload, seed: u64) -> Planner {
        let random = fastrand::Rng::with_seed(seed);
        Planner {
            workload,
            random,
            recent: VecDeque::new(),
            since_flush: 0,
        }
    }

    /// Whether the next request should wait for one in flight.
    pub fn wants_dependency(&mut self) -> bool {
        let percent = self.workload.dependent_percent;
        self.chance(percent)
    }

    /// The next request. One that depends on the request at `after` overlaps it half of the time.
    pub fn next(&mut self, after: Option<(u64, u32)>) -> Planned {
        let every = self.workload.flush_every;
        if every > 0 && self.since_flush >= every {
            self.since_flush = 0;
            return Planned {
                kind: Kind::Flush,
                fua: false,
                offset: 0,
                len: 0,
            };
        }
        self.since_flush += 1;
        let sizes = &self.workload.block_sizes;
        let len = sizes[self.random.usize(..sizes.len())];
        let overlap_percent = self.workload.overlap_percent;
        let near = match after {
            Some(place) if self.random.bool() => Some(place),
            _ if self.chance(overlap_percent) && !self.recent.is_empty() => {
                Some(self.recent[self.random.usize(..self.recent.len())])
            }
            _ => None,
        };
        let offset = match near {
            Some((offset, other)) => self.overlapping(offset, other, len),
            None => self.aligned(len),
        };
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((offset, len));
        let draw = self.random.u8(..100);
        let (zero, discard) = (self.workload.zero_percent, self.workload.discard_percent);
        let kind = match draw {
            draw if draw < zero => Kind::Zero,
            draw if draw < zero.saturating_add(discard) => Kind::Discard,
            _ => Kind::Write,
        };
        let fua_percent = self.workload.fua_percent;
        Planned {
            kind,
            fua: self.chance(fua_percent),
            offset,
            len,
        }
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.random.u8(..100) < percent
    }

    /// Any place aligned to the request's own length.
    fn aligned(&mut self, len: u32) -> u64 {
        let len = u64::from(len);
        self.random.u64(..self.workload.span_bytes / len) * len
    }

    /// Any place that shares at least one unit with the other request.
    fn overlapping(&mut self, offset: u64, other: u32, len: u32) -> u64 {
        let unit = UNIT_SIZE as u64;
        let lowest = (offset + unit).saturating_sub(u64::from(len)) / unit;
        let highest = offset + u64::from(other) - unit;
        let highest = highest.min(self.workload.span_bytes - u64::from(len)) / unit;
        self.random.u64(lowest..=highest) * unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn workload(block_sizes: Vec<u32>, span_bytes: u64) -> Workload {
        Workload {
            block_sizes,
            span_bytes,
            fua_percent: 10,
            overlap_percent: 50,
            zero_percent: 10,
            discard_percent: 10,
            dependent_percent: 20,
            flush_every: 7,
        }
    }

    proptest! {
        /// Production: a request beyond the span or off the unit would be refused by the server or,
        /// worse, by the oracle after the run.
        #[test]
        fn requests_lie_in_the_span_and_dependents_overlap(
            sizes in prop::collection::vec(1..16u32, 1..4), extra in 0..40u64, seed: u64
        ) {
            let sizes: Vec<u32> = sizes.into_iter().map(|units| units * 512).collect();
            let span = u64::from(*sizes.iter().max().unwrap()) + extra * 512;
            let mut planner = Planner::new(workload(sizes.clone(), span), seed);
            for turn in 0..200 {
                let after = (turn % 2 == 1).then_some((span - 512, 512));
                let request = planner.next(after);
                if request.kind == Kind::Flush {
                    prop_assert_eq!((request.offset, request.len), (0, 0));
                    continue;
                }
                prop_assert!(sizes.contains(&request.len));
                prop_assert!(request.offset.is_multiple_of(512));
                prop_assert!(request.offset + u64::from(request.len) <= span);
            }
        }
    }

    /// Production: a seed printed by a failing run must draw the same requests again.
    #[test]
    fn the_same_seed_draws_the_same_requests_of_every_kind() {
        let draw = |seed| {
            let mut planner = Planner::new(workload(vec![512, 4096], 1 << 20), seed);
            (0..500).map(|_| planner.next(None)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        for kind in [Kind::Write, Kind::Zero, Kind::Discard, Kind::Flush] {
            assert!(draw(1).iter().any(|request| request.kind == kind));
        }
    }
}
