//! Looks at the guest as a checkpoint does: which pages were written within an interval, what they would be on the wire,
//! and now and then a whole pause.
//!
//! Between the pauses pages are scanned while the guest runs; what its disks write in that moment may be missed, which a
//! checkpoint must not do and an estimate may. Of the pages a part goes through the encoder, always the same part: the
//! version before is known then, as it is to the encoder of a checkpoint.

use super::figures::{Pause, Window};
use crate::memory::PAGE_BYTES;
use crate::memory::dirty::Pages;
use crate::memory::stream::Cut;
use crate::memory::stream::encoder::{Encoder, EncoderSettings};
use crate::protect::guest::{Guest, Uncollected, us};
use blkback_proto::ids::{Epoch, LineageId, SessionId};
use std::time::{Duration, Instant};

/// Pages that go through the encoder for a window, at most.
const SAMPLE_MAX: usize = 512;
/// Pages that are armed in one step: the guest waits for it a little.
const ARM_PAGES: u64 = 4096;

pub(super) struct Sampler {
    guest: Guest,
    encoder: Encoder,
    dirty: Pages,
    /// One page in 2 to the power of this is sampled.
    shift: u32,
    epoch: Epoch,
    state: Vec<u8>,
    numbers: Vec<u64>,
    bytes: Vec<u8>,
    since: Instant,
}

impl Sampler {
    /// Watches all pages from now on.
    ///
    /// # Errors
    /// They cannot be watched, one line.
    pub(super) fn begin(mut guest: Guest, cache_bytes_max: usize) -> Result<Self, String> {
        let pages = guest.mapping.pages();
        guest.records.arm()?;
        let tracker = guest.tracker.as_mut().ok_or("no page is watched")?;
        for first in (0..pages).step_by(usize::try_from(ARM_PAGES).expect("small")) {
            let count = ARM_PAGES.min(pages - first);
            tracker.arm(first, count).map_err(|e| e.to_string())?;
        }
        let mut encoder = Encoder::new(EncoderSettings { cache_bytes_max });
        encoder.begin_session(SessionId(1), 1);
        let mut sampler = Self {
            guest,
            encoder,
            dirty: Pages::none(pages),
            shift: 0,
            epoch: Epoch(0),
            state: Vec::new(),
            numbers: Vec::with_capacity(SAMPLE_MAX),
            bytes: Vec::new(),
            since: Instant::now(),
        };
        // What is written since is what counts; a comparison knows nothing before.
        sampler.scan()?;
        Ok(sampler)
    }

    fn scan(&mut self) -> Result<(), String> {
        self.dirty.clear();
        let tracker = self.guest.tracker.as_mut().ok_or("no page is watched")?;
        tracker.scan(&mut self.dirty).map_err(|e| e.to_string())?;
        let (records, layout) = (&mut self.guest.records, &self.guest.layout);
        records.take(layout, &mut self.dirty)
    }

    /// What was written since the last look, while the guest runs.
    ///
    /// # Errors
    /// Nothing is known of its pages any more, one line.
    pub(super) fn window(&mut self) -> Result<Window, String> {
        self.scan()?;
        let lasted_us = self.turn();
        Ok(self.encode(lasted_us).0)
    }

    /// Since the last look.
    pub(super) fn lasts(&self) -> Duration {
        self.since.elapsed()
    }

    fn turn(&mut self) -> u64 {
        let lasted_us = us(self.since);
        self.since = Instant::now();
        lasted_us
    }

    /// The same with a pause, as a checkpoint makes it; and what of the device state would go on the wire.
    ///
    /// # Errors
    /// The guest was not paused, or nothing was learned of it, one line. It goes on in every case that lets it.
    pub(super) fn pause(&mut self) -> Result<(Window, Pause, u64), String> {
        let collected = match self.guest.pause() {
            Ok(()) => self.guest.collect().map_err(|error| match error {
                Uncollected::GivenUp(why) | Uncollected::Blind(why) => why,
            }),
            Err(why) => Err(why),
        };
        let lasted_us = self.turn();
        let resumed = self.guest.resume();
        self.since = Instant::now();
        resumed.map_err(|why| {
            format!("the guest does not go on, type `cont` in its monitor: {why}")
        })?;
        collected?;
        let steps = &self.guest.steps;
        let pause = Pause {
            stop_us: steps.stop,
            scan_us: steps.scan,
            copy_us: steps.copy,
            device_state_us: steps.device_state,
            cont_us: steps.cont,
            pages: self.guest.dirty_pages,
        };
        let epoch = Epoch(self.epoch.0 + 1);
        if let Some(load) = self.guest.take(epoch) {
            self.dirty.clear();
            for page in load.staging.pages() {
                self.dirty.insert_run(*page, 1);
            }
            self.state.clone_from(&load.state);
            self.guest.give_back(load);
            self.guest.acked(epoch);
        }
        let (window, state_bytes) = self.encode(lasted_us);
        Ok((window, pause, state_bytes))
    }

    /// A part of the pages and the device state through the encoder.
    fn encode(&mut self, lasted_us: u64) -> (Window, u64) {
        self.choose();
        self.bytes.clear();
        for page in &self.numbers {
            let at = self.guest.mapping.at(*page).0.cast_const();
            let bytes = usize::try_from(PAGE_BYTES).expect("a page");
            let end = self.bytes.len();
            self.bytes.resize(end + bytes, 0);
            // SAFETY: `at` is a whole page of a mapping that outlives this, and there is room for one. The guest may write
            // meanwhile: what is torn so is counted, and sent nowhere.
            unsafe { std::ptr::copy_nonoverlapping(at, self.bytes[end..].as_mut_ptr(), bytes) };
        }
        self.epoch.0 += 1;
        let cut = Cut {
            epoch: self.epoch,
            lineage: LineageId([0; 16]),
            pages: &self.numbers,
            bytes: &self.bytes,
            state: &self.state,
            kind: self.guest.state_kind(),
        };
        let sink = |_: &[u8]| Ok::<(), std::convert::Infallible>(());
        let Ok(counts) = self.encoder.epoch(&cut, sink);
        let window = Window {
            lasted_us,
            pages: self.dirty.count(),
            sampled: self.numbers.len() as u64,
            zero: counts.zero,
            wire_bytes: counts.page_wire_bytes,
        };
        (window, counts.wire_bytes - counts.page_wire_bytes)
    }

    /// Dirty pages of the sample, which becomes smaller where it is too much.
    fn choose(&mut self) {
        loop {
            self.numbers.clear();
            let all = self
                .dirty
                .runs()
                .flat_map(|(first, count)| first..first + count);
            let mine = all.filter(|page| is_sampled(*page, self.shift));
            self.numbers.extend(mine.take(SAMPLE_MAX + 1));
            if self.numbers.len() <= SAMPLE_MAX {
                return;
            }
            self.shift += 1;
        }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest is as it was.
    ///
    /// # Errors
    /// Its pages stay watched until this process ends, one line.
    pub(super) fn end(mut self) -> Result<(), String> {
        match self.guest.tracker.as_mut() {
            Some(tracker) => tracker.disarm().map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

/// A page is in every larger sample than the smallest one that has it; neighbours have nothing to do with one another.
fn is_sampled(page: u64, shift: u32) -> bool {
    let mixed = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    mixed & ((1 << shift) - 1) == 0
}

#[cfg(test)]
mod tests {
    //! A sample that changes from window to window knows no version before, and every page looks as dear as a new one.
    use super::*;

    #[test]
    fn samples_lie_within_one_another_and_are_as_large_as_they_should_be() {
        let of = |shift| {
            let all = (0..1_u64 << 16).filter(move |page| is_sampled(*page, shift));
            all.collect::<std::collections::BTreeSet<u64>>()
        };
        assert_eq!(of(0).len(), 1 << 16);
        for shift in 1..6 {
            assert!(of(shift).is_subset(&of(shift - 1)));
            let (is, should) = (of(shift).len(), (1 << 16) >> shift);
            assert!(is.abs_diff(should) < should / 4, "{is} of {should}");
        }
    }
}
