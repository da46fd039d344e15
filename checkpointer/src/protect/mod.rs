//! `checkpointer protect`: the daemon beside the running guest.
//!
//! ```text
//!   disks' threads ─┐                         ┌─► QEMU (stop, state, cont)
//!   link, acks ─────┼─► inbox ─► Protector ───┼─► tracker, staging
//!   ctl ────────────┤          (one thread)   ├─► netbuf (cut, release)
//!   authority ──────┘                         └─► link, disks' threads
//! ```
//! The one thread owns the sequence and carries out its orders, those of a pause at once and by itself: what
//! answers from elsewhere comes through the inbox. Every call has a limit, so the sequence's own limits hold.

mod amends;
mod asks;
mod authority;
mod carry;
mod control;
mod disks;
mod early;
pub mod estimate;
mod farewell;
mod first_copy;
mod guardian;
mod guest;
mod idle;
mod link;
pub mod output;
mod records;
mod report;
mod start;
mod state;
mod timeline;

pub use guardian::guard;
pub use output::Interface;
pub use start::{claim, hold};
pub use state::{Moment, unframed};
pub(crate) use timeline::batch;

use crate::authority::Record;
use crate::config::{Config, Interval};
use crate::hypervisor::qemu::check::{Finding, Served, Weight, check};
use crate::hypervisor::qemu::{Event as QemuEvent, Limits};
use crate::inbox::{Outbox, ROOM};
use crate::plant::{Plant, planted};
use crate::sequence::{Event, Part, Sequence, Settings, Word};
use amends::Amends;
use asks::Asks;
use blkback_proto::ctl::{DriveAnswer, EventKind, Request};
use blkback_proto::ids::{Epoch, LineageId};
use blockrep_host::ctl::{EventLog, NewEvent, ReplyHandle};
use disks::Disks;
use early::Early;
use farewell::Farewell;
use first_copy::Step;
use guardian::Guardian;
use guest::{Guest, Opening};
use link::{Job, LinkSettings, MemoryLink};
use output::Output;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use timeline::Timeline;

/// Longest rest of the loop: QEMU's events are looked at as often.
const LOOK: Duration = Duration::from_millis(5);
/// How long netbuf may take; within a pause.
const OUTPUT_LIMIT: Duration = Duration::from_millis(500);
/// How often a part that does not come by itself is tried.
const AGAIN: Duration = Duration::from_millis(500);
/// How often the interval is looked at, where it is adaptive.
const ADAPT: Duration = Duration::from_millis(500);
/// Work taken from the inbox before the clock is looked at.
const BATCH: usize = 64;

/// Why the daemon did not start. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    #[error("{0}")]
    Guest(String),
    #[error("this guest cannot be protected: {}", told(.0))]
    Unfit(Vec<Finding>),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Bind(#[from] blockrep_host::ctl::BindError),
    #[error("the authority does not give this host the guest: {0}")]
    NotOurs(String),
    #[error("what the guest says cannot be held: {0}")]
    Unheld(String),
    /// While it was protected.
    #[error("{0}")]
    Ended(String),
}

fn told(findings: &[Finding]) -> String {
    let words: Vec<String> = findings.iter().map(ToString::to_string).collect();
    words.join(" | ")
}

/// What comes in.
#[derive(Debug)]
enum Input {
    Disks(disks::Told),
    Link(link::Told),
    /// The authority's answer to a loss, or to an operator's stop; its record, where that is as wished.
    Word(Word, Option<Record>),
    /// It has taken the backup in, or why not.
    TakenIn(Result<Record, String>),
    Ask(Request, ReplyHandle),
}

/// What is to be protected, and how.
#[derive(Debug, Clone)]
pub struct Protection {
    pub config: Config,
    /// Monitor of the running QEMU.
    pub monitor: PathBuf,
    /// Where the disks' daemon serves them.
    pub served: Vec<Served>,
    /// Directory of control sockets.
    pub control: PathBuf,
    /// The guest was started a moment ago, and has said nothing that was not held.
    pub is_afresh: bool,
    pub tracker: Option<crate::memory::tracker::Kind>,
}

/// The memory link as the owner knows it.
#[derive(Debug, Default)]
struct LinkStanding {
    session: u64,
    is_up: bool,
    why: String,
    since_unix_ms: u64,
    /// The backup has committed an epoch of the present copy: memory is a member of its group.
    is_member: bool,
    generation: u64,
    /// First and last epoch that were sent of the present copy.
    sent: Option<(Epoch, Epoch)>,
    sent_bytes: u64,
    heard: Option<Instant>,
}

impl LinkStanding {
    fn sends(&mut self, epoch: Epoch) {
        let first = self.sent.map_or(epoch, |(first, _)| first);
        self.sent = Some((first, epoch));
    }

    /// Of the present copy. A standby that is linked says first what it has of the one before, and a backup is not taken
    /// in for that.
    fn has_sent(&self, epoch: Epoch) -> bool {
        self.sent
            .is_some_and(|(first, last)| (first..=last).contains(&epoch))
    }
}

/// See the module.
#[derive(Debug)]
struct Protector {
    config: Config,
    guest: Guest,
    sequence: Sequence,
    settings: Settings,
    begun: Instant,
    inbox: Receiver<Input>,
    outbox: Outbox<Input>,
    disks: Option<Disks>,
    disks_standing: DriveAnswer,
    output: Option<Output>,
    is_output_there: bool,
    output_tried: Option<Instant>,
    output_words: String,
    link: MemoryLink,
    standing: LinkStanding,
    incarnation: u64,
    /// Histories of the epochs that were cut, for those that are sent.
    lineages: BTreeMap<Epoch, LineageId>,
    /// Checkpoints without disks of ours count by themselves.
    own_epoch: u64,
    slice: Option<Job>,
    timeline: Timeline,
    adapted: Instant,
    early: Early,
    log: EventLog,
    events: VecDeque<Event>,
    /// The last state that was told.
    told_state: (&'static str, String),
    state_since_unix_ms: u64,
    stop_replies: Vec<ReplyHandle>,
    is_stopping: bool,
    /// An operator vouches for the other host.
    is_by_hand: bool,
    record: Option<Record>,
    /// As far as is known, the record may have a backup in.
    may_be_in: bool,
    /// Why the authority did not answer last.
    authority_words: Option<String>,
    asks: Asks,
    /// What has to be done yet, and was refused or not answered.
    amends: Amends,
    /// Why there is nobody at QEMU's monitor any more.
    gone: Option<String>,
    farewell: Option<Farewell>,
    /// The guest is off in order, and the backup knows.
    is_finished: bool,
    is_over: bool,
}

/// Runs until the protection has ended, or a signal.
///
/// # Errors
/// It did not begin; the guest runs as before.
pub fn run(protection: Protection) -> Result<(), ProtectError> {
    let io = |what| move |source| ProtectError::Io { what, source };
    let shutdown = blockrep_host::signals::Shutdown::install().map_err(io("signals"))?;
    let config = protection.config.clone();
    let limits = Limits {
        pause: Duration::from_millis(config.epochs.pause_max_ms),
        ..Limits::default()
    };
    let mut qemu = start::attach(&protection.monitor, limits)
        .map_err(|e| ProtectError::Guest(e.to_string()))?;
    let findings =
        check(&mut qemu, &protection.served).map_err(|e| ProtectError::Guest(e.to_string()))?;
    let (refused, warned): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|f| f.weight == Weight::Refused);
    if !refused.is_empty() {
        return Err(ProtectError::Unfit(refused));
    }
    for warning in &warned {
        tracing::warn!("{warning}");
    }
    let loads = config.epochs.in_flight_max + 1;
    let opening = Opening {
        buffer_bytes: config.memory.buffer_mib << 20,
        loads,
        disks: config.disks.clone(),
        tracker: protection.tracker,
    };
    let guardian =
        Guardian::start(&protection.monitor).map_err(io("the guardian of the guest's pauses"))?;
    let guest = Guest::open(qemu, &opening, guardian).map_err(ProtectError::Guest)?;
    let record = authority::claim(&config).map_err(ProtectError::NotOurs)?;
    let log = EventLog::new().map_err(io("random numbers"))?;
    let (outbox, inbox) = crate::inbox::inbox(ROOM);
    let server = crate::control::serve(&protection.control, &config.guest, &log, outbox.clone())?;
    let mut protector =
        Protector::new(config, guest, record, log, inbox, outbox).map_err(io("threads"))?;
    protector.begin(protection.is_afresh);
    blockrep_host::notify::ready("the guest is looked over");
    protector.turn(&shutdown);
    blockrep_host::notify::stopping("protection ends");
    drop(server);
    match protector.gone {
        Some(why) if !protector.is_finished => Err(ProtectError::Ended(why)),
        _ => Ok(()),
    }
}

impl Protector {
    fn new(
        config: Config,
        guest: Guest,
        record: Record,
        log: EventLog,
        inbox: Receiver<Input>,
        outbox: Outbox<Input>,
    ) -> std::io::Result<Self> {
        let mut settings = config.epochs.settings(1);
        if planted(Plant::EarlyRelease) {
            // What leaves early is what a checkpoint does not have: with few of them there is always something.
            settings.interval_ns *= 20;
        }
        let incarnation = link::random();
        let (to_disks, to_link) = (outbox.clone(), outbox.clone());
        let disks = match &config.disks {
            None => None,
            Some(control) => Some(Disks::start(
                control,
                Duration::from_millis(config.epochs.pause_max_ms),
                Duration::from_millis(config.epochs.answer_max_ms),
                move |told| to_disks.put(Input::Disks(told)),
            )?),
        };
        let hello = guest.hello(&config.guest, incarnation, 0);
        let link = LinkSettings {
            peer: config.memory.backup.clone().unwrap_or_default(),
            limit: Duration::from_millis(config.epochs.answer_max_ms),
            sender: crate::memory::stream::Settings {
                encoder: crate::memory::stream::encoder::EncoderSettings {
                    cache_bytes_max: usize::try_from(config.memory.cache_mib << 20)
                        .unwrap_or(usize::MAX),
                },
                copy_bytes_per_s_max: config.memory.copy_mib_per_s << 20,
                ..crate::memory::stream::Settings::default()
            },
        };
        let link = MemoryLink::start(link, hello, move |told| to_link.put(Input::Link(told)))?;
        let output = start::output(&config);
        let begun = Instant::now();
        let mut sequence = Sequence::new(settings, 0);
        if output.is_some() {
            sequence.set_interval_min(config.epochs.early_ms * 1_000_000);
        }
        let mut orders = Vec::new();
        for part in [Part::Disk, Part::Output] {
            let is_without = match part {
                Part::Disk => disks.is_none(),
                _ => output.is_none(),
            };
            if is_without {
                let has_base = true;
                sequence.step(0, Event::Back { part, has_base }, &mut orders);
            }
        }
        let mut protector = Self {
            guest,
            sequence,
            settings,
            begun,
            inbox,
            outbox,
            disks,
            disks_standing: DriveAnswer::default(),
            is_output_there: output.is_none(),
            output,
            output_tried: None,
            output_words: String::new(),
            link,
            standing: LinkStanding {
                why: "not connected yet".to_owned(),
                since_unix_ms: blockrep_host::clock::unix_ms(),
                ..LinkStanding::default()
            },
            incarnation,
            lineages: BTreeMap::new(),
            own_epoch: 0,
            slice: None,
            timeline: Timeline::new(),
            adapted: begun,
            early: Early::default(),
            log,
            events: VecDeque::new(),
            told_state: ("", String::new()),
            state_since_unix_ms: blockrep_host::clock::unix_ms(),
            stop_replies: Vec::new(),
            is_stopping: false,
            is_by_hand: false,
            may_be_in: record.backup().is_some(),
            record: Some(record),
            authority_words: None,
            asks: Asks::default(),
            amends: Amends::default(),
            gone: None,
            farewell: None,
            is_finished: false,
            is_over: false,
            config,
        };
        protector.show_record();
        Ok(protector)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn turn(&mut self, shutdown: &blockrep_host::signals::Shutdown) {
        while !self.is_over {
            if shutdown.requested() {
                self.leave();
                return;
            }
            self.look_at_qemu();
            self.look_at_output();
            self.make_amends();
            self.step(Event::Tick);
            self.cut_early();
            self.adapt();
            self.tell_state();
            let is_copying = self.guest.copy.is_some() || self.slice.is_some();
            let wait = if is_copying {
                Duration::ZERO
            } else {
                self.rest()
            };
            match self.inbox.recv_timeout(wait) {
                Ok(input) => {
                    self.take(input);
                    for _ in 0..BATCH {
                        match self.inbox.try_recv() {
                            Ok(input) => self.take(input),
                            Err(_) => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.copy_on(),
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("this side has a sender of its own")
                }
            }
        }
    }

    /// Until the next cut is due, at most.
    fn rest(&self) -> Duration {
        let cut = match self.sequence.next_cut(self.now()) {
            Some(in_ns) => LOOK.min(Duration::from_nanos(in_ns)),
            None => LOOK,
        };
        cut.min(self.rest_early().unwrap_or(LOOK))
    }

    /// The daemon ends: the guest runs on, and what it says stays held, since nobody says that it may not.
    fn leave(&mut self) {
        tracing::info!("told to end: the guest runs on, its output stays as it is");
        self.guest.forget();
        if let Some(tracker) = &mut self.guest.tracker
            && let Err(error) = tracker.disarm()
        {
            tracing::warn!("the guest's pages stay watched until it ends: {error}");
        }
    }

    fn step(&mut self, event: Event) {
        self.events.push_back(event);
        let mut orders = Vec::new();
        while let Some(event) = self.events.pop_front() {
            let now = self.now();
            self.sequence.step(now, event, &mut orders);
            for order in orders.drain(..) {
                self.carry_out(order);
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Disks(told) => self.disks_told(told),
            Input::Link(told) => self.link_told(told),
            Input::Word(word, record) => self.word(word, record),
            Input::TakenIn(result) => self.taken_in(result),
            Input::Ask(request, reply) => self.asked(&request, reply),
        }
    }

    fn disks_told(&mut self, told: disks::Told) {
        match told {
            disks::Told::Event(event) => {
                if let Event::DiskCommitted(epoch) = event {
                    self.timeline.committed(epoch);
                }
                self.step(event);
            }
            disks::Told::Cut(attempt, result, took) => {
                let result = result.map(|(epoch, lineage)| {
                    self.lineages.insert(epoch, lineage);
                    epoch
                });
                self.timeline.disk_cut(took);
                self.step(Event::DiskCut(attempt, result));
            }
            disks::Told::Standing(standing) => self.disks_standing = standing,
        }
    }

    fn look_at_qemu(&mut self) {
        if self.gone.is_some() {
            self.look_at_end();
            return;
        }
        loop {
            match self.guest.event() {
                Ok(None) => return,
                Ok(Some(QemuEvent::Shutdown { guest, reason })) => {
                    tracing::info!("QEMU: shutdown, by the guest: {guest}: {reason}");
                    self.step(Event::GuestOff);
                }
                Ok(Some(QemuEvent::BlockIoError { device, reason, .. })) => {
                    tracing::error!("a disk of the guest failed: {device}: {reason}");
                }
                Ok(Some(event)) => tracing::debug!("QEMU: {event:?}"),
                Err(why) => {
                    self.monitor_gone(why);
                    return;
                }
            }
        }
    }

    /// netbuf does not come by itself.
    fn look_at_output(&mut self) {
        if self.is_output_there
            || self.amends.opens()
            || self.output_tried.is_some_and(|at| at.elapsed() < AGAIN)
        {
            return;
        }
        self.output_tried = Some(Instant::now());
        let must_hold = self.must_hold();
        let Some(output) = &mut self.output else {
            return;
        };
        let attached = if must_hold {
            output.attach_held()
        } else {
            output.attach()
        };
        let part = Part::Output;
        match attached {
            Ok(standing) => {
                if standing.was_open {
                    self.was_open();
                }
                self.is_output_there = true;
                self.output_words = String::new();
                self.settings.output_cuts_max = standing.cuts_max.max(1);
                if let Some(cut) = standing.unreleased {
                    // By whoever was here before, or by an order that was given up.
                    self.own_epoch = self.own_epoch.max(cut.0);
                    self.sequence.found_output_cut(cut);
                }
                self.sequence
                    .set_output_cuts_max(self.settings.output_cuts_max);
                self.step(Event::Back {
                    part,
                    has_base: true,
                });
            }
            Err(why) => {
                self.output_words.clone_from(&why);
                self.step(Event::Lost { part, why });
            }
        }
    }

    fn output_lost(&mut self, why: String) {
        self.is_output_there = false;
        self.output_tried = Some(Instant::now());
        self.output_words.clone_from(&why);
        let part = Part::Output;
        self.events.push_back(Event::Lost { part, why });
    }

    /// Keeps the pauses to their share of the time: longer between two where they are more, shorter where less.
    fn adapt(&mut self) {
        let Interval::Adaptive {
            min_ms,
            max_ms,
            pause_percent,
        } = self.config.epochs.interval
        else {
            return;
        };
        if self.adapted.elapsed() < ADAPT {
            return;
        }
        self.adapted = Instant::now();
        let now_ms = self.settings.interval_ns / 1_000_000;
        let share = self.timeline.pause_percent();
        #[allow(clippy::cast_precision_loss, reason = "a percentage")]
        let wanted = pause_percent as f64;
        let next_ms = if share > wanted {
            now_ms + now_ms / 4 + 1
        } else if share < wanted * 0.7 {
            now_ms - now_ms / 8
        } else {
            now_ms
        };
        let next_ms = next_ms.clamp(min_ms, max_ms);
        if next_ms != now_ms {
            self.settings.interval_ns = next_ms * 1_000_000;
            self.sequence.set_interval(self.settings.interval_ns);
        }
    }

    /// A piece of the first copy.
    fn copy_on(&mut self) {
        let session = self.standing.session;
        if let Some(job) = self.slice.take() {
            if let Err(job) = self.link.send(session, job) {
                self.slice = Some(job);
                std::thread::sleep(Duration::from_millis(1));
            }
            return;
        }
        if self.guest.copy.is_none() {
            return;
        }
        match self.guest.copy_step() {
            Ok(Step::More) => {}
            Ok(Step::Slice(first, bytes)) => self.slice = Some(Job::Slice(first, bytes)),
            Ok(Step::Done(attempt)) => self.step(Event::FirstCopied(attempt, Ok(()))),
            Err(why) => {
                let attempt = self.guest.copy.take().map(|copy| copy.attempt);
                if let Some(attempt) = attempt {
                    self.step(Event::FirstCopied(attempt, Err(why)));
                }
            }
        }
    }

    fn tell_state(&mut self) {
        let standing = self.sequence.standing();
        // A reason that names the last epoch changes with each; the state is what is told.
        if standing.state == self.told_state.0 {
            return;
        }
        let old = std::mem::replace(
            &mut self.told_state,
            (standing.state, standing.reason.clone()),
        );
        self.state_since_unix_ms = blockrep_host::clock::unix_ms();
        tracing::info!("{}: {}", standing.state, standing.reason);
        let event = NewEvent::new(
            &self.config.guest,
            EventKind::GuestProtection,
            &standing.reason,
            standing.next,
        );
        self.log.publish(event.change(old.0, standing.state));
        blockrep_host::notify::status(&format!("{}: {}", standing.state, standing.reason));
        if matches!(standing.state, "over" | "open") {
            self.answer_stops(standing.state);
        }
    }
}

#[cfg(test)]
mod tests {
    //! A backup that is taken in for the copy before: its disks may have gone on without the new one, and what the guest
    //! says would leave on their account.
    use super::*;

    #[test]
    fn what_the_backup_has_of_the_copy_before_takes_it_not_in() {
        let mut standing = LinkStanding::default();
        assert!(!standing.has_sent(Epoch(40)), "nothing was sent");
        standing.sends(Epoch(42));
        standing.sends(Epoch(43));
        assert!(!standing.has_sent(Epoch(41)));
        assert!(standing.has_sent(Epoch(42)) && standing.has_sent(Epoch(43)));
        // Without disks of ours a checkpointer that was started anew counts from the beginning.
        assert!(!standing.has_sent(Epoch(500)));
    }
}
