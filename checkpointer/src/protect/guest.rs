//! The guest in the hands of the checkpointer: its hypervisor, which of its pages are dirty, and what of them is on
//! its way.
//!
//! Every page that was written is, at every moment, in one of these: the tracker, `pending`, the checkpoint in
//! hand, one that was sent and not acknowledged. What is given up goes back to `pending`; so nothing is lost.

use super::farewell::Process;
use super::first_copy::FirstCopy;
use super::guardian::Guardian;
use super::records::Records;
use super::state::{Moment, Parts, framed};
use crate::hypervisor::qemu::ram::Layout;
use crate::hypervisor::qemu::state::{Kind as StateWay, Saver, may_save};
use crate::hypervisor::qemu::{Event, Qemu, Resumed};
use crate::memory::dirty::Pages;
use crate::memory::ram::Mapping;
use crate::memory::staging::Staging;
use crate::memory::tracker::{self, Kind as TrackerKind, Tracker};
use crate::plant::{Plant, planted};
use blkback_proto::ctl::StepTimes;
use blkback_proto::ids::Epoch;
use blkback_proto::memory::{Block, Hello, StateKind, VERSION_MAX, VERSION_MIN};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The copy of one checkpoint. It goes to whoever sends it, and comes back.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) staging: Staging,
    /// As [`framed`](super::state::framed) makes it.
    pub(super) state: Vec<u8>,
}

/// A checkpoint that was collected.
#[derive(Debug)]
struct InHand {
    load: Load,
    pages: Pages,
}

/// What a pause took so far, in microseconds.
pub(super) type Steps = StepTimes<u64>;

/// What went wrong with a collection.
#[derive(Debug)]
pub(super) enum Uncollected {
    /// The checkpoint is none.
    GivenUp(String),
    /// Nothing is known of the guest's pages any more, or more of them are dirty than a checkpoint can have: a copy begins anew.
    Blind(String),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Guest {
    guardian: Guardian,
    pub(super) process: Process,
    pub(super) qemu: Qemu,
    pub(super) layout: Layout,
    saver: Saver,
    pub(super) tracker: Option<Box<dyn Tracker>>,
    pub(super) tracker_why: String,
    pub(super) tracker_forced: Option<TrackerKind>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) records: Records,
    pending: Pages,
    /// Room of each buffer.
    load_bytes: u64,
    in_hand: Option<InHand>,
    sent: VecDeque<(Epoch, Pages)>,
    free: Vec<Load>,
    /// Spare sets, so that a pause allocates none.
    spare: Vec<Pages>,
    pub(super) copy: Option<FirstCopy>,
    pub(super) steps: Steps,
    pub(super) dirty_pages: u64,
    /// The authority's, as the standby is to have it.
    pub(super) record: Vec<u8>,
    /// Of the pause that is, or was last.
    pub(super) moment: Moment,
}

/// Microseconds since a moment.
pub(super) fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What a guest is opened with.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    /// For the pages of all checkpoints on their way.
    pub(super) buffer_bytes: u64,
    /// Copies that are on their way at once.
    pub(super) loads: usize,
    /// Control socket of the daemon of the disks, for the pages that it writes.
    pub(super) disks: Option<std::path::PathBuf>,
    pub(super) tracker: Option<TrackerKind>,
}

impl Guest {
    /// Looks the guest over and gets everything ready; it is paused once, for a moment.
    ///
    /// # Errors
    /// What stands in the way, one line.
    pub(super) fn open(
        mut qemu: Qemu,
        opening: &Opening,
        mut guardian: Guardian,
    ) -> Result<Self, String> {
        let told = |e: crate::hypervisor::qemu::Error| e.to_string();
        let pid = qemu.pid();
        let process = Process::open(pid).map_err(|e| format!("QEMU, process {pid}: {e}"))?;
        let layout = Layout::find(&mut qemu).map_err(told)?;
        let unguarded = |e: std::io::Error| format!("the guardian of the guest's pauses: {e}");
        guardian.say(true).map_err(unguarded)?;
        let saver = Saver::choose(&mut qemu, &layout).map_err(told)?;
        guardian.say(false).map_err(unguarded)?;
        let mapping = Arc::new(Mapping::open(&layout.ram).map_err(|e| e.to_string())?);
        let pages = mapping.pages();
        let each =
            (opening.buffer_bytes / opening.loads as u64).min(pages * crate::memory::PAGE_BYTES);
        let mut free = Vec::new();
        for _ in 0..opening.loads {
            let staging = Staging::new(each).map_err(|e| format!("memory for checkpoints: {e}"))?;
            let state = Vec::with_capacity(1 << 20);
            free.push(Load { staging, state });
        }
        let spare = (0..opening.loads + 2).map(|_| Pages::none(pages)).collect();
        let mut guest = Self {
            records: Records::new(opening.disks.as_deref().map(Path::to_path_buf)),
            guardian,
            process,
            qemu,
            layout,
            saver,
            tracker: None,
            tracker_why: String::new(),
            tracker_forced: opening.tracker,
            mapping,
            pending: Pages::none(pages),
            load_bytes: each,
            in_hand: None,
            sent: VecDeque::new(),
            free,
            spare,
            copy: None,
            steps: Steps::default(),
            dirty_pages: 0,
            record: Vec::new(),
            moment: Moment::default(),
        };
        guest.choose_tracker()?;
        Ok(guest)
    }

    /// # Errors
    /// No way works here.
    pub(super) fn choose_tracker(&mut self) -> Result<(), String> {
        self.tracker = None;
        let watched =
            tracker::find(self.qemu.pid(), &self.layout.ram).map_err(|e| e.to_string())?;
        let chosen = tracker::choose(
            self.qemu.pid(),
            &watched,
            &self.mapping,
            self.tracker_forced,
        );
        let (tracker, why) = chosen.map_err(|e| e.to_string())?;
        self.tracker = Some(tracker);
        self.tracker_why = why;
        Ok(())
    }

    /// As the standby is told.
    #[must_use]
    pub(super) fn hello(&self, guest: &str, incarnation: u64, generation: u64) -> Hello {
        let block = |block: &crate::memory::ram::Block| Block {
            id: block.id.clone(),
            size_bytes: block.size_bytes,
        };
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            incarnation,
            generation,
            guest: guest.to_owned(),
            machine: format!("QEMU {}", self.qemu.version()),
            state_kind: self.state_kind(),
            blocks: self.layout.ram.blocks().iter().map(block).collect(),
        }
    }

    #[must_use]
    pub(super) fn state_kind(&self) -> StateKind {
        match self.saver.kind() {
            StateWay::Devices => StateKind::SaveDevices,
            StateWay::Whole => StateKind::Migrate,
        }
    }

    #[must_use]
    pub(super) fn state_way(&self) -> StateWay {
        self.saver.kind()
    }

    /// Why the device state is read that way.
    #[must_use]
    pub(super) fn saver_why(&self) -> &str {
        self.saver.why()
    }

    /// What can be done of a pause before it.
    ///
    /// # Errors
    /// Of the monitor; the guest runs.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        let told = |e: crate::hypervisor::qemu::Error| e.to_string();
        self.saver.give_up(&mut self.qemu).map_err(told)?;
        self.saver.prepare(&mut self.qemu).map_err(told)
    }

    /// Device state begins to be saved with it, where that may be.
    ///
    /// # Errors
    /// Of the monitor; the guest may be paused yet.
    pub(super) fn pause(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        self.steps = Steps::default();
        self.guardian
            .say(true)
            .map_err(|e| format!("nobody would end the pause: {e}"))?;
        // Its clock stands from the order on: QEMU stops the ticks before anything else.
        self.moment.unix_ms = blockrep_host::clock::unix_ms();
        let saver = &mut self.saver;
        let told = |e: crate::hypervisor::qemu::Error| e.to_string();
        let follows = saver.may_follow();
        let done = self.qemu.stop_and(|qemu| match follows {
            true => saver.begin(qemu),
            false => Ok(()),
        });
        self.steps.stop = us(begun);
        let (stopped, saving) = done.map_err(told)?;
        saving.map_err(told)?;
        may_save(stopped)
    }

    /// # Errors
    /// Of the monitor; the guest may stand still.
    pub(super) fn resume(&mut self) -> Result<Resumed, String> {
        let begun = Instant::now();
        // Of a pause that came to nothing.
        let _ = self.saver.give_up(&mut self.qemu);
        let done = self.qemu.cont();
        self.steps.cont = us(begun);
        self.saver.settle(&mut self.qemu);
        if done.is_ok() {
            // Without it there is no next pause.
            let _ = self.guardian.say(false);
        }
        done.map_err(|e| e.to_string())
    }

    /// Another host has it: it stands, also when this process ends within a pause.
    ///
    /// # Errors
    /// Of the monitor; it may run.
    pub(super) fn stop_for_good(&mut self) -> Result<(), String> {
        // Otherwise the guardian would end the pause. Where it has ended, it does not.
        let _ = self.guardian.say(false);
        self.qemu.stop().map(drop).map_err(|e| e.to_string())
    }

    /// Copies dirty pages and device state, while the guest stands still.
    ///
    /// # Errors
    /// [`Uncollected`]; every page that was dirty still counts as such.
    pub(super) fn collect(&mut self) -> Result<(), Uncollected> {
        let Some(mut load) = self.free.pop() else {
            let text = "every buffer is on its way still: the link is slower than the guest writes";
            return Err(Uncollected::GivenUp(text.to_owned()));
        };
        let mut pages = self
            .spare
            .pop()
            .unwrap_or_else(|| Pages::none(self.mapping.pages()));
        pages.clear();
        let collected = self.collect_into(&mut load, &mut pages);
        match collected {
            Ok(()) => {
                self.pending.clear();
                self.in_hand = Some(InHand { load, pages });
                Ok(())
            }
            Err(error) => {
                self.pending.unite(&pages);
                self.spare.push(pages);
                self.free.push(load);
                Err(error)
            }
        }
    }

    fn collect_into(&mut self, load: &mut Load, pages: &mut Pages) -> Result<(), Uncollected> {
        let given_up = |why: String| Uncollected::GivenUp(why);
        if !self.saver.is_begun() {
            let begun = self.saver.begin(&mut self.qemu);
            begun.map_err(|e| given_up(e.to_string()))?;
        }
        let copied = self.scan_and_copy(load, pages);
        let begun = Instant::now();
        let mut state = Vec::new();
        let saved = self.saver.finish(&mut self.qemu, &mut state);
        self.steps.device_state = us(begun);
        copied?;
        saved.map_err(|e| given_up(format!("the state of the devices: {e}")))?;
        let parts = Parts {
            record: &self.record,
            constant: self.saver.constant(),
            moment: self.moment,
            state: &state,
        };
        framed(parts, &mut load.state);
        Ok(())
    }

    /// Adds what was written since it was looked at last; the guest stands still.
    ///
    /// # Errors
    /// Something may be missing: everything has to be copied anew.
    pub(super) fn see_written(&mut self, pages: &mut Pages) -> Result<(), String> {
        let unknown = |why: String| format!("the guest's pages are not known any more: {why}");
        let Some(tracker) = &mut self.tracker else {
            return Err(unknown("no page is watched".to_owned()));
        };
        tracker.scan(pages).map_err(|e| unknown(e.to_string()))?;
        self.records.take(&self.layout, pages).map_err(unknown)
    }

    /// Pages that a checkpoint has room for.
    pub(super) fn load_pages(&self) -> u64 {
        self.load_bytes / crate::memory::PAGE_BYTES
    }

    /// The next checkpoint has these.
    pub(super) fn leave_to_checkpoint(&mut self, pages: &Pages) {
        self.pending.unite(pages);
    }

    fn scan_and_copy(&mut self, load: &mut Load, pages: &mut Pages) -> Result<(), Uncollected> {
        let begun = Instant::now();
        self.see_written(pages).map_err(Uncollected::Blind)?;
        pages.unite(&self.pending);
        if planted(Plant::SkipPage) {
            // A guest may outlive one stale page; not a stale sixteenth.
            for page in (7..pages.of()).step_by(16) {
                pages.remove(page);
            }
        }
        self.steps.scan = us(begun);
        let begun = Instant::now();
        let copied = load.staging.copy(&self.mapping, pages);
        self.steps.copy = us(begun);
        match copied {
            Ok(copied) => {
                self.dirty_pages = copied.pages;
                Ok(())
            }
            // They only get more until some copy has them.
            Err(much) => Err(Uncollected::Blind(format!(
                "{much}: all is copied anew, while the guest runs; raise memory.buffer_mib"
            ))),
        }
    }

    /// What is in hand is no checkpoint: its pages are dirty still.
    pub(super) fn abandon(&mut self) {
        if let Some(InHand { load, pages }) = self.in_hand.take() {
            self.pending.unite(&pages);
            self.spare.push(pages);
            self.free.push(load);
        }
    }

    /// What is in hand, to be sent as this epoch.
    #[must_use]
    pub(super) fn take(&mut self, epoch: Epoch) -> Option<Load> {
        let InHand { load, pages } = self.in_hand.take()?;
        self.sent.push_back((epoch, pages));
        Some(load)
    }

    /// A buffer is back.
    pub(super) fn give_back(&mut self, load: Load) {
        self.free.push(load);
    }

    /// The backup has everything up to this epoch.
    pub(super) fn acked(&mut self, epoch: Epoch) {
        while self.sent.front().is_some_and(|(of, _)| *of <= epoch) {
            let (_, pages) = self.sent.pop_front().expect("it was just seen");
            self.spare.push(pages);
        }
    }

    /// What was sent and not acknowledged is dirty again.
    pub(super) fn take_back(&mut self) {
        for (_, pages) in self.sent.drain(..) {
            self.pending.unite(&pages);
            self.spare.push(pages);
        }
    }

    /// Everything that is known of dirty pages is void: a copy begins from nothing.
    pub(super) fn forget(&mut self) {
        self.abandon();
        self.take_back();
        self.pending.clear();
        self.copy = None;
    }

    /// QEMU has ended: nobody has to end a pause of it.
    pub(super) fn let_guardian_go(&mut self) {
        // Without a guardian there is none to let go.
        let _ = self.guardian.say(false);
    }

    /// What QEMU told since the last time.
    ///
    /// # Errors
    /// It is gone, in words.
    pub(super) fn event(&mut self) -> Result<Option<Event>, String> {
        self.qemu.event(Duration::ZERO).map_err(|e| e.to_string())
    }
}
