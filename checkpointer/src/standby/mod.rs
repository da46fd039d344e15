//! `checkpointer receive`: the daemon where the guest would go on.
//!
//! ```text
//!   session (frames → store) ─┐                    ┌─► store: commit, ready
//!   disks' threads ───────────┼─► inbox ─► Keeper ─┼─► standby QEMU: load, cont
//!   ctl ──────────────────────┤   (one thread)     ├─► netbuf: announce, open
//!   clock (silence) ──────────┘                    └─► authority, disks: promote
//! ```
//! Memory is applied to the standby's RAM only when the disks' group has committed its epoch; so what a
//! promotion goes on from is one moment of both.

mod control;
mod disks;
mod found;
mod progress;
mod promote;
mod report;
mod session;
mod timeline;
mod unfinished;

use crate::authority::Record;
use crate::config::{Config, Promote};
use crate::hypervisor::qemu::spec::{Place, Spec};
use crate::hypervisor::qemu::standby::Standby;
use crate::hypervisor::qemu::{Error, Limits, Qemu};
use crate::inbox::{Outbox, ROOM};
use crate::memory::ram::Ram;
use crate::memory::store::{self, Store};
use crate::memory::stream::{Got, Link, commit};
use crate::plant::{Plant, planted};
use crate::protect::output::{Interface, Output};
use blkback_proto::ctl::{EventKind, GuestPromoteAnswer, GuestProtection, Request};
use blkback_proto::ids::Epoch;
use blkback_proto::memory::{Frame, Hello, RefuseCode};
use blockrep_host::ctl::{EventLog, NewEvent, ReplyHandle};
use disks::Disks;
use found::Begin;
use progress::Progress;
use session::Sessions;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use timeline::Timeline;
use unfinished::Unfinished;

/// Longest rest of the loop.
const LOOK: Duration = Duration::from_millis(20);
/// How often the waiting standby is looked at.
const CHECK: Duration = Duration::from_secs(1);
/// After a promotion that failed, until it is tried anew by itself.
const AGAIN: Duration = Duration::from_secs(2);
/// A daemon that was started anew hears of its primary within this.
const GRACE: Duration = Duration::from_secs(5);
/// How long netbuf may take.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);

/// Why the daemon did not start. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Bind(#[from] blockrep_host::ctl::BindError),
    /// The guest is this host's, or was: this is no standby of it.
    #[error("{0}")]
    NoStandby(String),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ReceiveError {
    let what = what.into();
    move |source| ReceiveError::Io { what, source }
}

/// What comes in.
#[derive(Debug)]
enum Input {
    Session(session::Told),
    Disks(disks::Told),
    /// A standby for this copy's RAM file.
    Up(u64, Box<Result<Standby, String>>),
    Ask(Request, ReplyHandle),
}

/// What is received, and where.
#[derive(Debug, Clone)]
pub struct Reception {
    pub config: Config,
    pub spec: Spec,
    /// Control socket.
    pub control: PathBuf,
    /// Directory of the standby's monitor and log.
    pub run: PathBuf,
}

/// The standby QEMU.
#[derive(Debug)]
enum Waiting {
    None,
    Starting(u64),
    Up(u64, Box<Standby>),
    /// The guest itself, promoted by a daemon before this one.
    Found(Box<Qemu>),
    Failed {
        generation: u64,
        why: String,
        at: Instant,
    },
}

/// What a keeper is made of, besides its channels.
struct Parts {
    spec: Spec,
    run: PathBuf,
    store: Arc<Mutex<Store>>,
    path: PathBuf,
    log: EventLog,
}

/// See the module.
#[derive(Debug)]
struct Keeper {
    config: Config,
    spec: Spec,
    run: PathBuf,
    begun: Instant,
    inbox: Receiver<Input>,
    outbox: Outbox<Input>,
    store: Arc<Mutex<Store>>,
    /// Directory of the store.
    path: PathBuf,
    sessions: Sessions,
    disks: Option<Disks>,
    disks_words: String,
    output: Option<Output>,
    waiting: Waiting,
    checked: Instant,
    link: Option<Link<TcpStream>>,
    session: u64,
    link_words: String,
    link_since_unix_ms: u64,
    received: Option<Hello>,
    heard: Option<Instant>,
    committed_at: Option<Instant>,
    whole: Option<Epoch>,
    is_off: bool,
    /// The primary wants the guest to go on here, and why.
    handed_over: Option<String>,
    promoted: Option<GuestPromoteAnswer>,
    /// Decided, and not done.
    unfinished: Option<Unfinished>,
    /// Why the last promotion failed, and when.
    unpromoted: Option<(String, Instant)>,
    log: EventLog,
    timeline: Timeline,
    state: GuestProtection,
    reason: String,
    since_unix_ms: u64,
    is_over: bool,
}

/// Runs until a signal; after a promotion until the guest is off.
///
/// # Errors
/// It did not begin.
pub fn run(reception: Reception) -> Result<(), ReceiveError> {
    let shutdown = blockrep_host::signals::Shutdown::install().map_err(io_error("signals"))?;
    let Reception {
        config,
        spec,
        control,
        run,
    } = reception;
    let listen = config.memory.listen.clone().unwrap_or_default();
    std::fs::create_dir_all(&run).map_err(io_error(run.display().to_string()))?;
    let path = config.memory.store.join(&config.guest);
    std::fs::create_dir_all(&path).map_err(io_error(path.display().to_string()))?;
    let limits = store::Limits {
        pending_bytes_max: config.memory.buffer_mib << 20,
    };
    let store = Arc::new(Mutex::new(Store::open(&path, limits)?));
    let begin = found::look(&config, &store, &path, &spec.place(&run).monitor)?;
    let listener = TcpListener::bind(&listen).map_err(io_error(format!("listen at {listen}")))?;
    let log = EventLog::new().map_err(io_error("random numbers"))?;
    let (outbox, inbox) = crate::inbox::inbox(ROOM);
    let server = crate::control::serve(&control, &config.guest, &log, outbox.clone())?;
    let is_closed = !matches!(begin, Begin::Standby);
    let part = Parts {
        spec,
        run,
        store,
        path,
        log,
    };
    let mut keeper = Keeper::new(config, part, listener, is_closed, inbox, outbox)?;
    keeper.begin(begin);
    blockrep_host::notify::ready("waits for a primary");
    keeper.turn(&shutdown);
    blockrep_host::notify::stopping("ends");
    drop(server);
    Ok(())
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// Takes no primary in where `is_closed`.
    fn new(
        config: Config,
        parts: Parts,
        listener: TcpListener,
        is_closed: bool,
        inbox: Receiver<Input>,
        outbox: Outbox<Input>,
    ) -> Result<Self, ReceiveError> {
        let Parts {
            spec,
            run,
            store,
            path,
            log,
        } = parts;
        let to_session = outbox.clone();
        let (guest, bytes) = (config.guest.clone(), spec.memory_bytes());
        let admit = move |hello: &Hello| admits(hello, &guest, bytes);
        let limit = Duration::from_millis(config.standby.silence_ms.max(100));
        let closed = Arc::new(AtomicBool::new(is_closed));
        let is_over = Arc::clone(&closed);
        let told = move |told| {
            to_session.put_unless(Input::Session(told), || is_over.load(Ordering::SeqCst))
        };
        let sessions = Sessions::start(listener, limit, closed, Arc::clone(&store), admit, told);
        let disks = disks_of(&config, &store, outbox.clone())?;
        let output = output_of(&config);
        let now = Instant::now();
        // Whoever was silent before this start may be dead since.
        let is_held = lock(&store).committed() != Epoch::NONE;
        Ok(Self {
            sessions: sessions.map_err(io_error("threads"))?,
            config,
            spec,
            run,
            begun: now,
            inbox,
            outbox,
            store,
            path,
            disks,
            disks_words: String::new(),
            output,
            waiting: Waiting::None,
            checked: now,
            link: None,
            session: 0,
            link_words: "no primary has come yet".to_owned(),
            link_since_unix_ms: blockrep_host::clock::unix_ms(),
            received: None,
            heard: is_held.then_some(now + GRACE),
            committed_at: None,
            whole: None,
            is_off: false,
            handed_over: None,
            promoted: None,
            unfinished: None,
            unpromoted: None,
            log,
            timeline: Timeline::new(),
            state: GuestProtection::Waiting,
            reason: "no primary has come yet".to_owned(),
            since_unix_ms: blockrep_host::clock::unix_ms(),
            is_over: false,
        })
    }

    /// Goes on with what a daemon before this one began.
    fn begin(&mut self, begin: Begin) {
        let unfinished = |record: &Record| {
            let text = format!(
                "the guest is this host's by the authority's record, generation {} ({}), and does not run yet",
                record.generation, record.note
            );
            (Unfinished::found(record), text)
        };
        match begin {
            Begin::Standby => {}
            Begin::Unfinished(record) => {
                let (found, text) = unfinished(&record);
                self.unfinished = Some(found);
                self.change(GuestProtection::Unfinished, text);
            }
            Begin::Loaded(record, qemu) => {
                self.waiting = Waiting::Found(qemu);
                match record {
                    Some(record) => {
                        let (found, text) = unfinished(&record);
                        self.unfinished = Some(found);
                        self.change(GuestProtection::Unfinished, text);
                    }
                    None => self.take_up(None),
                }
            }
            Begin::Running(record, qemu) => {
                self.waiting = Waiting::Found(qemu);
                self.take_up(record.as_ref());
            }
        }
    }

    /// The guest was promoted by a daemon that is gone, and is there.
    fn take_up(&mut self, record: Option<&Record>) {
        let epoch = lock(&self.store).committed();
        let known = Progress::of(&self.path, record).answer;
        self.promoted = Some(known.unwrap_or_else(|| {
            GuestPromoteAnswer {
                epoch: epoch.0,
                lineage: record
                    .map(|record| record.lineage.to_string())
                    .unwrap_or_default(),
                ..GuestPromoteAnswer::default()
            }
        }));
        let pid = self.standby_pid().unwrap_or_default();
        let text = format!(
            "went on from epoch {epoch} under a daemon before this one, and is watched again: process {pid}"
        );
        self.change(GuestProtection::Promoted, text);
    }

    fn turn(&mut self, shutdown: &blockrep_host::signals::Shutdown) {
        while !self.is_over && !shutdown.requested() {
            match self.inbox.recv_timeout(LOOK) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("this side has a sender of its own")
                }
            }
            while let Ok(input) = self.inbox.try_recv() {
                self.take(input);
            }
            self.keep_a_standby();
            self.look_at_standby();
            self.judge_silence();
            self.try_again();
            self.stand();
        }
        self.leave();
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Session(session::Told::Got { session, got, link }) => {
                self.got(session, got, link)
            }
            Input::Session(session::Told::Heard(once)) => {
                once.heard();
                self.heard = Some(Instant::now());
            }
            Input::Session(session::Told::Ended { session, why }) => {
                if session == self.session {
                    self.link = None;
                    self.link_words = why;
                    self.link_since_unix_ms = blockrep_host::clock::unix_ms();
                }
            }
            Input::Disks(disks::Told::Committed(epoch)) => self.commit(epoch),
            Input::Disks(disks::Told::Standing(words)) => {
                if !words.is_empty() && words != self.disks_words {
                    tracing::warn!("the disks: {words}");
                }
                self.disks_words = words;
            }
            Input::Up(generation, standby) => self.came_up(generation, *standby),
            Input::Ask(request, reply) => self.asked(&request, reply),
        }
    }

    fn got(&mut self, session: u64, got: Got, link: Link<TcpStream>) {
        if self.promoted.is_some() || self.unfinished.is_some() {
            // Said before the sessions were closed; nobody is answered any more.
            return;
        }
        self.heard = Some(Instant::now());
        self.session = session;
        self.link = Some(link);
        match got {
            Got::Hello(hello) => {
                tracing::info!("a primary is connected: {}", hello.machine);
                self.received = Some(*hello);
                self.link_words = "connected".to_owned();
                self.link_since_unix_ms = blockrep_host::clock::unix_ms();
                self.is_off = false;
                self.handed_over = None;
                // What was committed while there was no link.
                let committed = lock(&self.store).committed();
                if committed != Epoch::NONE {
                    self.commit(committed);
                }
            }
            Got::Whole {
                epoch,
                lineage,
                came,
            } => {
                self.whole = Some(epoch);
                self.timeline.whole(epoch, &came);
                self.told_whole(epoch, lineage);
            }
            Got::EndOfGuest { epoch, lineage } => {
                self.is_off = true;
                self.told_whole(epoch, lineage);
            }
            Got::HandOver(why) => {
                tracing::warn!("the primary hands the guest over: {why}");
                self.handed_over = Some(why);
            }
            Got::Quiet | Got::CopyBegun { .. } | Got::Heard | Got::Pong(_) => {}
        }
    }

    fn told_whole(&mut self, epoch: Epoch, lineage: blkback_proto::ids::LineageId) {
        match &self.disks {
            Some(disks) => disks.whole(epoch, lineage),
            None => self.commit(epoch),
        }
    }

    fn commit(&mut self, epoch: Epoch) {
        if self.promoted.is_some() || lock(&self.store).is_promoted() {
            return;
        }
        let applied = if planted(Plant::OlderEpoch) {
            self.tell_without_applying(epoch)
        } else {
            epoch
        };
        match commit(&self.store, self.link.as_ref(), applied) {
            Ok(committed) => {
                self.timeline.committed(committed);
                self.committed_at = Some(Instant::now());
            }
            Err(error) => {
                tracing::error!("epoch {epoch} of memory was not applied: {error}");
                self.fail(error.to_string());
            }
        }
        if self.is_off && lock(&self.store).is_off() {
            tracing::info!("the guest is off, in order");
            if let Some(disks) = &self.disks {
                disks.leave();
            }
        }
    }

    /// The planted bug: the primary is told of an epoch that is not applied.
    fn tell_without_applying(&self, epoch: Epoch) -> Epoch {
        if let Some(link) = &self.link {
            let _ = link.say(&Frame::Committed(epoch));
        }
        Epoch(epoch.0.saturating_sub(promote::OLDER_BY))
    }

    fn fail(&mut self, why: String) {
        self.change(GuestProtection::Failed, why);
        self.sessions.close();
        self.is_over = true;
    }

    /// A QEMU of the guest's shape, with the RAM file of the copy that counts.
    fn keep_a_standby(&mut self) {
        if self.promoted.is_some() {
            return;
        }
        let (generation, ram) = {
            let store = lock(&self.store);
            if store.is_promoted() {
                return;
            }
            (store.generation(), store.ram())
        };
        let (Some(Ok(ram)), false) = (ram, generation == 0) else {
            return;
        };
        match &self.waiting {
            Waiting::Starting(of) | Waiting::Up(of, _) if *of == generation => return,
            Waiting::Starting(_) => return,
            Waiting::Failed {
                generation: of, at, ..
            } if *of == generation && at.elapsed() < AGAIN => return,
            _ => {}
        }
        let place = match self.standby_place(&ram) {
            Ok(place) => place,
            Err(why) => {
                self.waiting = Waiting::Failed {
                    generation,
                    why,
                    at: Instant::now(),
                };
                return;
            }
        };
        // The one before maps a file that is gone.
        self.waiting = Waiting::Starting(generation);
        let (spec, outbox) = (self.spec.clone(), self.outbox.clone());
        let run = move || {
            let standby = end_leftover(&place.monitor).and_then(|()| {
                Standby::start(&spec, &place, Limits::default()).map_err(|e| e.to_string())
            });
            // Without the owner it ends here.
            let _ = outbox.put(Input::Up(generation, Box::new(standby)));
        };
        if let Err(error) = std::thread::Builder::new()
            .name("standby".to_owned())
            .spawn(run)
        {
            tracing::error!("no standby is started: {error}");
            self.waiting = Waiting::None;
        }
    }

    fn standby_place(&self, ram: &Ram) -> Result<Place, String> {
        let [block] = ram.blocks() else {
            let text = "a guest with more than one block of RAM has no standby yet";
            return Err(text.to_owned());
        };
        Ok(Place {
            memory: block.file.clone(),
            ..self.spec.place(&self.run)
        })
    }

    fn came_up(&mut self, generation: u64, standby: Result<Standby, String>) {
        match standby {
            Ok(standby) => {
                tracing::info!("a standby waits, process {}", standby.pid());
                self.waiting = Waiting::Up(generation, Box::new(standby));
            }
            Err(why) => {
                tracing::error!("no standby: {why}");
                self.waiting = Waiting::Failed {
                    generation,
                    why,
                    at: Instant::now(),
                };
            }
        }
    }

    fn look_at_standby(&mut self) {
        if self.checked.elapsed() < CHECK {
            return;
        }
        self.checked = Instant::now();
        if self.promoted.is_some() {
            self.look_at_guest();
            return;
        }
        if lock(&self.store).is_promoted() {
            return;
        }
        let Waiting::Up(generation, standby) = &mut self.waiting else {
            return;
        };
        if let Err(error) = standby.check() {
            let (generation, why) = (*generation, error.to_string());
            tracing::error!("the standby is lost, another is started: {why}");
            self.waiting = Waiting::Failed {
                generation,
                why,
                at: Instant::now(),
            };
        }
    }

    /// Nothing was heard of the primary for too long, and it was protected.
    fn judge_silence(&mut self) {
        let is_decided = self.promoted.is_some() || self.unfinished.is_some();
        if is_decided || self.is_off || self.config.standby.promote != Promote::Auto {
            return;
        }
        let limit = Duration::from_millis(self.config.standby.silence_ms);
        let now = Instant::now();
        let is_handed_over = self.handed_over.is_some();
        let is_silent = is_handed_over
            || self
                .heard
                .is_some_and(|heard| now.saturating_duration_since(heard) > limit);
        let is_ready =
            matches!(self.waiting, Waiting::Up(..)) && lock(&self.store).committed() != Epoch::NONE;
        let is_early = self
            .unpromoted
            .as_ref()
            .is_some_and(|(_, at)| at.elapsed() < AGAIN);
        if !is_silent || !is_ready || is_early {
            return;
        }
        // Its disks still speak: the checkpointer there ended, and the guest may run.
        let heard_ms = self.disks.as_ref().and_then(Disks::heard_ms);
        if !is_handed_over && heard_ms.is_some_and(|ms| ms <= self.config.standby.silence_ms) {
            return;
        }
        let silent = self.heard.map_or(0, |heard| heard.elapsed().as_millis());
        let reason = match &self.handed_over {
            Some(why) => format!("the primary hands the guest over: {why}"),
            None => format!("the primary was silent for {silent} ms"),
        };
        self.change(GuestProtection::Lost, reason.clone());
        if let Err(error) = self.promote(&reason, false) {
            tracing::error!("not promoted: {}", error.why);
            self.unpromoted = Some((error.why, Instant::now()));
        }
    }

    fn change(&mut self, state: GuestProtection, reason: String) {
        if self.state == state {
            self.reason = reason;
            return;
        }
        let old = std::mem::replace(&mut self.state, state.clone());
        self.since_unix_ms = blockrep_host::clock::unix_ms();
        tracing::info!("{state}: {reason}");
        let event = NewEvent::new(&self.config.guest, EventKind::GuestProtection, &reason, "");
        self.log.publish(event.change(old.as_str(), state.as_str()));
        blockrep_host::notify::status(&format!("{state}: {reason}"));
        self.reason = reason;
    }

    /// The state that follows from what is known.
    fn stand(&mut self) {
        let is_decided = self.promoted.is_some() || self.unfinished.is_some();
        if is_decided || self.is_over {
            return;
        }
        let committed = lock(&self.store).committed();
        let (state, reason) = match (&self.link, committed) {
            _ if self.is_off => (
                GuestProtection::Ending,
                "the guest is off, in order".to_owned(),
            ),
            (_, epoch) if epoch != Epoch::NONE && self.handed_over.is_some() => {
                let why = self.handed_over.clone().unwrap_or_default();
                let failed = self.unpromoted.as_ref();
                let failed =
                    failed.map_or(String::new(), |(why, _)| format!("; not promoted: {why}"));
                let text = format!("handed over: {why}{failed}; would go on from epoch {epoch}");
                (GuestProtection::Lost, text)
            }
            (Some(_), Epoch::NONE) => (
                GuestProtection::Copying,
                "the first copy comes in".to_owned(),
            ),
            (Some(_), epoch) => (
                GuestProtection::Following,
                format!("would go on from epoch {epoch}"),
            ),
            (None, Epoch::NONE) => (GuestProtection::Waiting, self.link_words.clone()),
            (None, epoch) => {
                let why = match &self.unpromoted {
                    Some((why, _)) => format!("{}; not promoted: {why}", self.link_words),
                    None => self.link_words.clone(),
                };
                (
                    GuestProtection::Lost,
                    format!("{why}; would go on from epoch {epoch}"),
                )
            }
        };
        self.change(state, reason);
    }

    /// The daemon ends. A guest that was promoted runs on.
    fn leave(&mut self) {
        self.sessions.close();
        // From the mark in the store on it may run.
        if self.promoted.is_none() && !lock(&self.store).is_promoted() {
            return;
        }
        if let Waiting::Up(_, standby) = std::mem::replace(&mut self.waiting, Waiting::None) {
            tracing::info!("the guest runs on, process {}", standby.pid());
            let (_, child) = standby.into_parts();
            child.let_go();
        }
    }

    fn look_at_guest(&mut self) {
        let status = match &mut self.waiting {
            Waiting::Up(_, standby) => standby.qemu().status(),
            Waiting::Found(qemu) => qemu.status(),
            _ => return,
        };
        match status {
            Ok(_) => {}
            Err(Error::Gone(why)) => self.guest_ended(&why),
            // Busy, or stopped by somebody: it has the guest still.
            Err(error) => tracing::warn!("the guest's QEMU: {error}"),
        }
    }

    fn guest_ended(&mut self, why: &str) {
        tracing::warn!("the guest has ended: {why}");
        let text = format!("the guest has ended: {why}");
        self.change(GuestProtection::Over, text);
        self.is_over = true;
    }
}

/// The threads that speak to the daemon of the disks.
fn disks_of(
    config: &Config,
    store: &Arc<Mutex<Store>>,
    outbox: Outbox<Input>,
) -> Result<Option<Disks>, ReceiveError> {
    let Some(control) = &config.disks else {
        return Ok(None);
    };
    let told = move |told| outbox.put(Input::Disks(told));
    let disks = Disks::start(control.clone(), Arc::clone(store), told);
    disks.map(Some).map_err(io_error("threads"))
}

fn output_of(config: &Config) -> Option<Output> {
    let interfaces: Vec<Interface> = (config.output.interfaces.iter())
        .map(|name| Interface {
            name: name.clone(),
            bridge: config.output.bridge.clone(),
        })
        .collect();
    let control = config.output.control.clone();
    (!interfaces.is_empty())
        .then(|| Output::new(control, config.guest.clone(), interfaces, OUTPUT_LIMIT))
}

/// A standby of a daemon that was killed waits still: it has the guest's device and maps a file that is gone.
fn end_leftover(monitor: &Path) -> Result<(), String> {
    let limits = Limits {
        ask: Duration::from_secs(2),
        pause: Duration::from_secs(2),
    };
    let Ok(mut qemu) = Qemu::attach(monitor, limits) else {
        return Ok(());
    };
    let status = qemu.status().map_err(|e| e.to_string())?;
    // One that stands was loaded, and never ran: what may run is marked in the store, and not started a second time.
    if !matches!(status.word.as_str(), "inmigrate" | "paused") {
        return Err(format!(
            "{}: a guest answers there, and it is {}",
            monitor.display(),
            status.word
        ));
    }
    tracing::info!(
        "a standby of a daemon that was killed is ended, process {}",
        qemu.pid()
    );
    qemu.quit().map_err(|e| e.to_string())
}

fn admits(hello: &Hello, guest: &str, bytes: u64) -> Result<(), (RefuseCode, String)> {
    if hello.guest != guest {
        let text = format!("this is a standby of {guest}, not of {}", hello.guest);
        return Err((RefuseCode::Shape, text));
    }
    if hello.blocks.len() != 1 {
        let text = format!(
            "the guest has {} blocks of RAM in shared files, and a standby takes one: give it one memory object",
            hello.blocks.len()
        );
        return Err((RefuseCode::Shape, text));
    }
    let theirs: u64 = hello.blocks.iter().map(|block| block.size_bytes).sum();
    if theirs != bytes {
        let text = format!(
            "the guest has {theirs} bytes of RAM, the standby {bytes}: make memory_mib equal"
        );
        return Err((RefuseCode::Shape, text));
    }
    Ok(())
}
