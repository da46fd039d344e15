//! Brings committed epochs from the journal into the image.
//!
//! Works in passes. A pass takes every overlay extent up to a limit epoch, newest version only, in
//! the order of the image, adjacent ones joined; then the image is synced; only then are the
//! extents forgotten and the journal's tail moves. The limit is an epoch whose commit is durable:
//! apply never passes it.
//!
//! ```text
//!  Idle ──limit──► Loading ──small pieces are in memory──► Copying ──all written──► Syncing ──► Idle
//! ```

mod run;
mod want;
mod window;

use super::Nanos;
use crate::io::Memory;
use crate::overlay::{Extent, Overlay, Source};
use blkback_proto::ids::{Epoch, Place};
use run::{RUN_BYTES_MAX, next_run};
use slab::Slab;
pub use want::Want;
use window::Window;

/// Operations on the image in flight at once.
const RUNS_MAX: usize = 4;
/// The same while large records fill the memory for them: the journal has as many bytes in flight.
const RUNS_LARGE_MAX: usize = 16;
/// The same while somebody waits for room in the journal.
const RUNS_HURRIED_MAX: usize = 32;

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
    /// Reads of that many stretches of the journal are on their way.
    Loading {
        left: usize,
    },
    Copying {
        cursor: u64,
        exhausted: bool,
    },
    Syncing,
}

/// The state of apply.
pub struct Apply<M: Memory> {
    stage: Stage,
    limit: Epoch,
    applied: Epoch,
    runs: Slab<Run<M>>,
    done: Vec<Extent>,
    window: Window<M>,
    runs_max: usize,
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

    /// Everything up to `applied` is in the image. `rate_bytes_per_s` throttles, and so many bytes of
    /// the journal may be kept in memory.
    #[must_use]
    pub fn new(applied: Epoch, rate_bytes_per_s: Option<u64>, window_bytes: u64) -> Self {
        Self {
            stage: Stage::Idle,
            limit: applied,
            applied,
            runs: Slab::new(),
            done: Vec::new(),
            window: Window::new(window_bytes),
            runs_max: RUNS_MAX,
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
        (waits && self.rate_bytes_per_s.is_some() && self.runs.len() < self.runs_max())
            .then_some(self.refilled + 10_000_000)
    }

    /// Somebody waits for room in the journal: more is written at once.
    pub fn press(&mut self, is_pressed: bool) {
        self.runs_max = if is_pressed {
            RUNS_HURRIED_MAX
        } else {
            RUNS_MAX
        };
    }

    /// What waits is in memory, large, and about to be too much for it.
    #[must_use]
    pub fn is_filled_by_large(&self) -> bool {
        self.window.is_filled_by_large()
    }

    fn runs_max(&self) -> usize {
        if self.window.is_filled_by_large() {
            self.runs_max.max(RUNS_LARGE_MAX)
        } else {
            self.runs_max
        }
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
            self.load(mem, overlay, wants);
        }
        while let Stage::Copying {
            cursor,
            exhausted: false,
        } = self.stage
        {
            if hold
                || self.runs.len() >= self.runs_max()
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

    /// Begins a pass: small pieces are read together.
    fn load(&mut self, mem: &mut M, overlay: &Overlay, wants: &mut Vec<Want<M>>) {
        let mut left = 0;
        for chunk in window::plan(&self.window, overlay.iter_from(0, self.limit)) {
            let length = usize::try_from(chunk.length).expect("chunks are small");
            // Without memory its pieces are read one by one, as memory allows.
            let Some(buf) = mem.alloc(length) else { break };
            left += 1;
            let place = chunk.place;
            wants.push(Want::Load { place, buf });
        }
        self.stage = Stage::Loading { left };
        self.begin_copying();
    }

    fn begin_copying(&mut self) {
        if self.stage == (Stage::Loading { left: 0 }) {
            self.stage = Stage::Copying {
                cursor: 0,
                exhausted: false,
            };
        }
    }

    /// A stretch of the journal was read.
    pub fn load_done(&mut self, place: Place, buf: M::Buf) {
        self.window.insert(place, buf);
        if let Stage::Loading { left } = &mut self.stage {
            *left -= 1;
        }
        self.begin_copying();
    }

    /// A record came in; it stands at that place of the journal.
    pub fn keep(&mut self, place: Place, record: &M::Buf, nothing_waits: bool) {
        self.window.keep(place, record, nothing_waits);
    }

    /// Everything in the journal before that place is applied.
    pub fn forget_before(&mut self, place: Place) {
        self.window.forget_before(place);
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
        let mut reads = Vec::new();
        for (part, extent) in extents.iter().enumerate() {
            let Source::Journal(place) = extent.source else {
                unreachable!("zeros are runs of their own")
            };
            let kept = self.window.get(mem, place, extent.length);
            if kept.is_none() {
                let length = usize::try_from(extent.length).expect("runs are small");
                let Some(buf) = mem.alloc(length) else {
                    return false;
                };
                reads.push((part, *extent, buf));
            }
            bufs.push(kept);
        }
        self.allowance = self.allowance.saturating_sub(length);
        self.bytes += length;
        let run = self.runs.insert(Run {
            extents,
            bufs,
            reads_left: reads.len(),
        });
        for (part, extent, buf) in reads {
            wants.push(Want::Read {
                run,
                part,
                extent,
                buf,
            });
        }
        self.write_if_read(run, wants);
        true
    }

    /// A part of a run was read.
    pub fn read_done(&mut self, run: usize, part: usize, buf: M::Buf, wants: &mut Vec<Want<M>>) {
        let state = &mut self.runs[run];
        state.bufs[part] = Some(buf);
        state.reads_left -= 1;
        self.write_if_read(run, wants);
    }

    fn write_if_read(&mut self, run: usize, wants: &mut Vec<Want<M>>) {
        let state = &mut self.runs[run];
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
