//! Brings committed epochs from the journal into the image.
//!
//! Works in passes. A pass takes every overlay extent up to a limit epoch, newest version only, in
//! the order of the image, adjacent ones joined; then the image is synced; only then are the
//! extents forgotten and the journal's tail moves. The limit is an epoch whose commit is durable:
//! apply never passes it.

use super::Nanos;
use crate::io::Memory;
use crate::overlay::{Extent, Overlay, Source};
use blkback_proto::ids::Epoch;
use slab::Slab;

/// Most bytes written to the image in one operation.
pub const RUN_BYTES_MAX: u64 = 256 << 10;
/// Most extents joined into one operation.
const RUN_EXTENTS_MAX: usize = 64;
/// Operations on the image in flight at once.
const RUNS_MAX: usize = 4;

/// Adjacent extents on their way into the image.
struct Run<M: Memory> {
    extents: Vec<Extent>,
    bufs: Vec<Option<M::Buf>>,
    reads_left: usize,
}

/// Where a pass stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Copying { cursor: u64, exhausted: bool },
    Syncing,
}

/// What apply wants done; run and part are given back with the completion.
pub enum Want<M: Memory> {
    /// Read a part of a run from the journal.
    Read {
        /// Run.
        run: usize,
        /// Part of the run.
        part: usize,
        /// What to read.
        extent: Extent,
        /// Where to.
        buf: M::BufMut,
    },
    /// Write a whole run to the image.
    Write {
        /// Run.
        run: usize,
        /// Byte offset in the image.
        offset: u64,
        /// What to write.
        bufs: Vec<M::Buf>,
    },
    /// Zero a range of the image.
    Zero {
        /// Run.
        run: usize,
        /// The range.
        extent: Extent,
        /// It may be given back.
        discard: bool,
    },
    /// Sync the image.
    Sync,
}

impl<M: Memory> std::fmt::Debug for Want<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { run, part, .. } => write!(f, "apply read run {run} part {part}"),
            Self::Write { run, .. } => write!(f, "apply write run {run}"),
            Self::Zero { run, .. } => write!(f, "apply zero run {run}"),
            Self::Sync => f.write_str("apply sync"),
        }
    }
}

/// The state of apply.
pub struct Apply<M: Memory> {
    stage: Stage,
    limit: Epoch,
    applied: Epoch,
    runs: Slab<Run<M>>,
    done: Vec<Extent>,
    rate_bytes_per_s: Option<u64>,
    allowance: u64,
    refilled: Nanos,
    /// Bytes written to the image since start.
    pub bytes: u64,
}

impl<M: Memory> std::fmt::Debug for Apply<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "apply {:?} applied {}", self.stage, self.applied)
    }
}

impl<M: Memory> Apply<M> {
    /// No throttle from now on: somebody waits.
    pub fn hurry(&mut self) {
        self.rate_bytes_per_s = None;
    }

    /// Everything up to `applied` is in the image. `rate_bytes_per_s` throttles.
    #[must_use]
    pub fn new(applied: Epoch, rate_bytes_per_s: Option<u64>) -> Self {
        Self {
            stage: Stage::Idle,
            limit: applied,
            applied,
            runs: Slab::new(),
            done: Vec::new(),
            rate_bytes_per_s,
            allowance: 0,
            refilled: 0,
            bytes: 0,
        }
    }

    /// Everything up to this epoch is in the synced image.
    #[must_use]
    pub fn applied(&self) -> Epoch {
        self.applied
    }

    /// No pass is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Throttled: wants to be called again at this time.
    #[must_use]
    pub fn next_tick(&self) -> Option<Nanos> {
        let waits = matches!(
            self.stage,
            Stage::Copying {
                exhausted: false,
                ..
            }
        );
        (waits && self.rate_bytes_per_s.is_some() && self.runs.len() < RUNS_MAX)
            .then_some(self.refilled + 10_000_000)
    }

    /// Nothing is left of an epoch that wrote nothing.
    pub fn skip_to(&mut self, epoch: Epoch) {
        assert!(self.is_idle(), "only between passes");
        self.applied = self.applied.max(epoch);
    }

    /// Goes on as far as memory allows; `limit` is the last epoch whose commit is durable. On
    /// `hold` nothing new is written to the image for now.
    pub fn step(
        &mut self,
        now: Nanos,
        mem: &mut M,
        overlay: &Overlay,
        limit: Epoch,
        hold: bool,
        wants: &mut Vec<Want<M>>,
    ) {
        self.refill(now);
        if self.stage == Stage::Idle && limit > self.applied {
            self.limit = limit;
            self.stage = Stage::Copying {
                cursor: 0,
                exhausted: false,
            };
        }
        while let Stage::Copying {
            cursor,
            exhausted: false,
        } = self.stage
        {
            if hold
                || self.runs.len() == RUNS_MAX
                || (self.rate_bytes_per_s.is_some() && self.allowance < RUN_BYTES_MAX)
            {
                break;
            }
            let extents = next_run(overlay, cursor, self.limit);
            let Some(last) = extents.last() else {
                self.stage = Stage::Copying {
                    cursor,
                    exhausted: true,
                };
                break;
            };
            let end = last.offset + last.length;
            if !self.start_run(mem, extents, wants) {
                break;
            }
            self.stage = Stage::Copying {
                cursor: end,
                exhausted: false,
            };
        }
        if matches!(
            self.stage,
            Stage::Copying {
                exhausted: true,
                ..
            }
        ) && self.runs.is_empty()
        {
            self.stage = Stage::Syncing;
            wants.push(Want::Sync);
        }
    }

    fn refill(&mut self, now: Nanos) {
        let Some(rate) = self.rate_bytes_per_s else {
            return;
        };
        let elapsed = now.saturating_sub(self.refilled).min(1_000_000_000);
        let more = u128::from(rate) * u128::from(elapsed) / 1_000_000_000;
        if more > 0 {
            self.refilled = now;
            let more = u64::try_from(more).unwrap_or(u64::MAX);
            self.allowance = self
                .allowance
                .saturating_add(more)
                .min(rate.max(RUN_BYTES_MAX));
        }
    }

    /// False when there is no memory for it now.
    fn start_run(&mut self, mem: &mut M, extents: Vec<Extent>, wants: &mut Vec<Want<M>>) -> bool {
        let length: u64 = extents.iter().map(|e| e.length).sum();
        if let Source::Zero { discard } = extents[0].source {
            let extent = extents[0];
            let run = self.runs.insert(Run {
                extents,
                bufs: Vec::new(),
                reads_left: 0,
            });
            wants.push(Want::Zero {
                run,
                extent,
                discard,
            });
            return true;
        }
        let mut bufs = Vec::with_capacity(extents.len());
        for extent in &extents {
            let length = usize::try_from(extent.length).expect("runs are small");
            let Some(buf) = mem.alloc(length) else {
                return false;
            };
            bufs.push(buf);
        }
        self.allowance = self.allowance.saturating_sub(length);
        self.bytes += length;
        let parts: Vec<Extent> = extents.clone();
        let reads_left = parts.len();
        let empty = parts.iter().map(|_| None).collect();
        let run = self.runs.insert(Run {
            extents,
            bufs: empty,
            reads_left,
        });
        for (part, (extent, buf)) in parts.into_iter().zip(bufs).enumerate() {
            wants.push(Want::Read {
                run,
                part,
                extent,
                buf,
            });
        }
        true
    }

    /// A part of a run was read.
    pub fn read_done(&mut self, run: usize, part: usize, buf: M::Buf, wants: &mut Vec<Want<M>>) {
        let state = &mut self.runs[run];
        state.bufs[part] = Some(buf);
        state.reads_left -= 1;
        if state.reads_left == 0 {
            let bufs = state
                .bufs
                .drain(..)
                .map(|b| b.expect("all parts are read"))
                .collect();
            wants.push(Want::Write {
                run,
                offset: state.extents[0].offset,
                bufs,
            });
        }
    }

    /// A run is in the image.
    pub fn run_done(&mut self, run: usize) {
        let run = self.runs.remove(run);
        self.done.extend(run.extents);
    }

    /// The image is synced: forgets what is in it. True when a pass ended with this.
    pub fn synced(&mut self, overlay: &mut Overlay) {
        assert_eq!(self.stage, Stage::Syncing, "only a pass syncs");
        for extent in self.done.drain(..) {
            overlay.remove_applied(&extent);
        }
        self.applied = self.limit;
        self.stage = Stage::Idle;
    }
}

/// Adjacent extents from `cursor` on that go into the image in one operation.
fn next_run(overlay: &Overlay, cursor: u64, limit: Epoch) -> Vec<Extent> {
    let mut run: Vec<Extent> = Vec::new();
    let mut length = 0;
    for extent in overlay.iter_from(cursor, limit) {
        let zero = matches!(extent.source, Source::Zero { .. });
        match run.last() {
            None => {}
            Some(last) => {
                let adjacent = last.offset + last.length == extent.offset;
                if !adjacent
                    || zero
                    || matches!(last.source, Source::Zero { .. })
                    || length + extent.length > RUN_BYTES_MAX
                    || run.len() == RUN_EXTENTS_MAX
                {
                    break;
                }
            }
        }
        run.push(*extent);
        length += extent.length;
    }
    run
}
