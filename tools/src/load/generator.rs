//! The generator: workers that keep requests in flight, and the log of what happened when.
//!
//! One thread runs everything on tokio-uring, so the event counter is a plain integer and the order
//! of stamps is the order of events. A submission is stamped and in the log before its request
//! enters an outbox; a completion is stamped after its reply was read. Both err on the side of
//! *less* order, never more.
//!
//! ```text
//!  worker ─ plan ─ stamp ─ log ─► outbox ─ writer ─► server
//!    ▲                                                 │
//!    └────── watch ◄── log ◄── stamp ◄── reader ◄──────┘    cut task ◄─► control thread
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};

use super::control::{CutError, Cutter};
use super::log::{Event, Kind, LogError, LogWriter, Record};
use super::nbd::{self, Command, Stream};
use super::plan::{Planned, Planner};
use super::run::{End, Options, RunError, Summary, Until};
use super::unit::{self, Stamp, UNIT_SIZE};
use super::wire::Connection;

/// How often buffered completions reach the log without a submission, and stalls are looked for.
const TICK: Duration = Duration::from_millis(100);
/// Longest wait for the last bytes of a connection that is being closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Pause of a worker after a failed request, so that a failing disk is not hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(1);
/// Latest requests among which one to depend on is looked for.
const RECENT_MAX: usize = 64;
/// NBD_ESHUTDOWN: the server takes no more requests.
const ERROR_SHUTDOWN: u32 = 108;

/// A request in flight.
struct Pending {
    connection: usize,
    kind: Kind,
    len: u32,
    done: watch::Sender<Option<u32>>,
}

/// The part that changes with every event.
struct State {
    log: LogWriter,
    log_error: Option<LogError>,
    planner: Planner,
    stamp: u64,
    requests: u64,
    cuts_sent: u64,
    slots: u64,
    budget: u64,
    pending: HashMap<u64, Pending>,
    recent: VecDeque<(u64, u32, watch::Receiver<Option<u32>>)>,
    last_reply: Instant,
    end: End,
    summary: Summary,
}

/// A run in progress.
pub(super) struct Generator {
    start: Instant,
    deadline: Option<Instant>,
    run: u64,
    rate: Option<u32>,
    queue_depth: u32,
    cut_every: Option<Duration>,
    stall_limit: Duration,
    connections: Vec<Connection>,
    state: RefCell<State>,
    stop: Cell<bool>,
    workers: Cell<u32>,
    workers_done: Notify,
}

impl Generator {
    /// Needs the tokio-uring runtime.
    pub(super) fn new(
        options: &Options,
        run: u64,
        log: LogWriter,
        planner: Planner,
        streams: Vec<Stream>,
    ) -> Generator {
        let start = Instant::now();
        let (deadline, budget) = match options.until {
            Until::Elapsed(time) => (start.checked_add(time), u64::MAX),
            Until::Requests(count) => (None, count),
        };
        let summary = Summary {
            end: End::Done,
            run,
            seed: options.seed,
            submitted: 0,
            completed: 0,
            failed: 0,
            bytes: 0,
            flushes: 0,
            cuts: 0,
            cuts_refused: 0,
            seconds: 0.0,
            requests_per_second: 0.0,
        };
        let state = State {
            log,
            log_error: None,
            planner,
            stamp: 0,
            requests: 0,
            cuts_sent: 0,
            slots: 0,
            budget,
            pending: HashMap::new(),
            recent: VecDeque::new(),
            last_reply: start,
            end: End::Done,
            summary,
        };
        Generator {
            start,
            deadline,
            run,
            rate: options.rate,
            queue_depth: options.queue_depth,
            cut_every: options.cut_every,
            stall_limit: options.stall_limit,
            connections: streams.into_iter().map(Connection::new).collect(),
            state: RefCell::new(state),
            stop: Cell::new(false),
            workers: Cell::new(0),
            workers_done: Notify::new(),
        }
    }

    /// Starts all tasks, waits for the workers, closes down.
    pub(super) async fn drive(
        self: Rc<Self>,
        cutter: Option<Box<dyn Cutter>>,
    ) -> Result<Summary, RunError> {
        let mut writers = Vec::new();
        let mut readers = Vec::new();
        for index in 0..self.connections.len() {
            let this = self.clone();
            writers.push(tokio_uring::spawn(async move { this.write(index).await }));
            let this = self.clone();
            readers.push(tokio_uring::spawn(async move { this.read(index).await }));
            for _ in 0..self.queue_depth {
                self.workers.set(self.workers.get() + 1);
                let this = self.clone();
                tokio_uring::spawn(async move { this.work(index).await });
            }
        }
        let cuts = match (cutter, self.cut_every) {
            (Some(cutter), Some(every)) => {
                let (ask, answers) = cut_thread(cutter).map_err(RunError::Thread)?;
                let this = self.clone();
                let task = async move { this.cut_regularly(every, ask, answers).await };
                Some(tokio_uring::spawn(task))
            }
            _ => None,
        };
        self.wait_for_workers().await;
        let seconds = self.start.elapsed().as_secs_f64();
        if let Some(task) = cuts {
            task.abort();
        }
        self.stop.set(true);
        for connection in &self.connections {
            let goodbye = nbd::request(Command::Disconnect, false, 0, 0, 0);
            connection.queue(|outbox| outbox.extend_from_slice(&goodbye));
            connection.close_after_outbox();
        }
        for (index, (writer, reader)) in writers.into_iter().zip(readers).enumerate() {
            let closed = timeout(CLOSE_LIMIT, writer).await;
            self.connections[index].shut_down();
            let read_out = timeout(CLOSE_LIMIT, reader).await;
            // Either may have failed or run out of time: the socket is shut down in any case.
            drop((closed, read_out));
        }
        self.finish(seconds)
    }

    fn finish(&self, seconds: f64) -> Result<Summary, RunError> {
        let mut state = self.state.borrow_mut();
        if let Some(error) = state.log_error.take() {
            return Err(error.into());
        }
        state.log.flush()?;
        let mut summary = state.summary.clone();
        summary.end = state.end.clone();
        summary.seconds = seconds;
        summary.requests_per_second = summary.completed as f64 / seconds.max(1e-9);
        Ok(summary)
    }

    /// Returns when all workers are gone or the server answers nothing any more.
    async fn wait_for_workers(&self) {
        while self.workers.get() > 0 {
            let ticked = timeout(TICK, self.workers_done.notified()).await.is_err();
            let mut state = self.state.borrow_mut();
            if ticked && let Err(error) = state.log.flush() {
                state.log_error = Some(error);
                self.stop.set(true);
            }
            let silent = state.last_reply.elapsed() > self.stall_limit;
            if silent && !state.pending.is_empty() {
                state.end = End::Stalled;
                self.stop.set(true);
                // Workers wait for these; dropping them sends the workers home.
                state.pending.clear();
            }
        }
    }

    async fn write(&self, index: usize) {
        if let Err(error) = self.connections[index].write_loop().await {
            self.lost(index, &error);
        }
    }

    async fn read(&self, index: usize) {
        let on_reply = |cookie, error| self.completed(index, cookie, error);
        let error = self.connections[index].read_loop(on_reply).await;
        self.lost(index, &error);
    }

    fn lost(&self, index: usize, error: &io::Error) {
        let mut state = self.state.borrow_mut();
        if !self.stop.replace(true) {
            state.end = End::ConnectionLost(error.to_string());
        }
        state
            .pending
            .retain(|_, pending| pending.connection != index);
    }

    /// One request after the other.
    async fn work(&self, index: usize) {
        while self.may_go_on() && self.wait_for_slot().await {
            let after = self.dependency().await;
            if !self.may_go_on() {
                break;
            }
            let planned = self.state.borrow_mut().planner.next(after);
            let Some(mut done) = self.submit(index, planned) else {
                break;
            };
            match done.wait_for(|done| done.is_some()).await.map(|done| *done) {
                Ok(Some(0)) => {}
                Ok(_) => sleep(FAILURE_PAUSE).await,
                Err(_) => break,
            }
        }
        self.workers.set(self.workers.get() - 1);
        if self.workers.get() == 0 {
            self.workers_done.notify_one();
        }
    }

    fn may_go_on(&self) -> bool {
        let in_time = self
            .deadline
            .is_none_or(|deadline| Instant::now() < deadline);
        !self.stop.get() && in_time && self.state.borrow().budget > 0
    }

    /// Waits for the turn that the rate allows; false if the run is over by then.
    async fn wait_for_slot(&self) -> bool {
        let Some(rate) = self.rate else { return true };
        let slot = {
            let mut state = self.state.borrow_mut();
            state.slots += 1;
            state.slots - 1
        };
        let due = Duration::from_secs_f64(slot as f64 / f64::from(rate));
        // Wakes now and then, so that the end of a slow run is noticed.
        while self.may_go_on() {
            let now = self.start.elapsed();
            if now >= due {
                return true;
            }
            sleep((due - now).min(TICK)).await;
        }
        false
    }

    /// If this request is to depend on one in flight: waits for that one, returns its place.
    async fn dependency(&self) -> Option<(u64, u32)> {
        let (offset, len, mut done) = {
            let mut state = self.state.borrow_mut();
            if !state.planner.wants_dependency() {
                return None;
            }
            let open = |done: &watch::Receiver<Option<u32>>| done.borrow().is_none();
            state
                .recent
                .iter()
                .rev()
                .find(|(.., done)| open(done))
                .cloned()?
        };
        done.wait_for(|done| done.is_some())
            .await
            .ok()
            .map(|_| (offset, len))
    }

    /// Stamps, logs and queues a request. `None` if the log failed.
    fn submit(&self, index: usize, planned: Planned) -> Option<watch::Receiver<Option<u32>>> {
        let Planned {
            kind,
            fua,
            offset,
            len,
        } = planned;
        let mut state = self.state.borrow_mut();
        state.requests += 1;
        let id = state.requests;
        let connection = index as u32;
        self.record(
            &mut state,
            Event::Submit {
                id,
                kind,
                fua,
                offset,
                len,
                connection,
            },
        );
        if let Err(error) = state.log.flush() {
            state.log_error = Some(error);
            self.stop.set(true);
            return None;
        }
        let (done, receiver) = watch::channel(None);
        if state.pending.is_empty() {
            // Silence is counted from when an answer is due.
            state.last_reply = Instant::now();
        }
        state.pending.insert(
            id,
            Pending {
                connection: index,
                kind,
                len,
                done,
            },
        );
        if kind != Kind::Flush {
            state.budget -= 1;
            state.summary.submitted += 1;
            if state.recent.len() == RECENT_MAX {
                state.recent.pop_front();
            }
            state.recent.push_back((offset, len, receiver.clone()));
        }
        self.connections[index].queue(|outbox| self.encode(outbox, id, planned));
        Some(receiver)
    }

    fn encode(&self, outbox: &mut Vec<u8>, id: u64, planned: Planned) {
        let Planned {
            kind,
            fua,
            offset,
            len,
        } = planned;
        let command = match kind {
            Kind::Write => Command::Write,
            Kind::Zero => Command::WriteZeroes,
            Kind::Discard => Command::Trim,
            Kind::Flush => Command::Flush,
        };
        outbox.extend_from_slice(&nbd::request(command, fua, id, offset, len));
        if kind != Kind::Write {
            return;
        }
        let payload_at = outbox.len();
        outbox.resize(payload_at + len as usize, 0);
        let count = len / UNIT_SIZE as u32;
        let places = (offset..).step_by(UNIT_SIZE).zip(0..count);
        for ((offset, index), out) in places.zip(outbox[payload_at..].chunks_mut(UNIT_SIZE)) {
            unit::encode(
                &Stamp {
                    run: self.run,
                    write: id,
                    offset,
                    index,
                    count,
                },
                out,
            );
        }
    }

    /// A reply came in; false if nothing waits for it.
    fn completed(&self, index: usize, id: u64, error: u32) -> bool {
        let mut state = self.state.borrow_mut();
        if state
            .pending
            .get(&id)
            .is_none_or(|pending| pending.connection != index)
        {
            return false;
        }
        let Some(pending) = state.pending.remove(&id) else {
            return false;
        };
        self.record(&mut state, Event::Complete { id, error });
        state.last_reply = Instant::now();
        match (error, pending.kind) {
            (0, Kind::Flush) => state.summary.flushes += 1,
            (0, _) => {
                state.summary.completed += 1;
                state.summary.bytes += u64::from(pending.len);
            }
            _ => state.summary.failed += 1,
        }
        if error == ERROR_SHUTDOWN && !self.stop.replace(true) {
            state.end = End::ConnectionLost("the server is shutting down".into());
        }
        pending.done.send_replace(Some(error));
        true
    }

    fn record(&self, state: &mut State, event: Event) {
        state.stamp += 1;
        let ns = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        state.log.append(&Record {
            stamp: state.stamp,
            ns,
            event,
        });
    }

    /// The cut task. A cut that takes longer than the interval delays the next, it is not caught
    /// up.
    async fn cut_regularly(
        &self,
        every: Duration,
        ask: std::sync::mpsc::SyncSender<()>,
        mut answers: mpsc::UnboundedReceiver<Result<u64, CutError>>,
    ) {
        let mut due = tokio::time::Instant::now() + every;
        while !self.stop.get() {
            sleep_until(due).await;
            due = tokio::time::Instant::now().max(due) + every;
            let id = {
                let mut state = self.state.borrow_mut();
                state.cuts_sent += 1;
                let id = state.cuts_sent;
                self.record(&mut state, Event::CutSent { id });
                if let Err(error) = state.log.flush() {
                    state.log_error = Some(error);
                    self.stop.set(true);
                    return;
                }
                id
            };
            let answer = match ask.send(()) {
                Ok(()) => answers.recv().await,
                Err(_) => None,
            };
            let answer = answer.unwrap_or(Err(CutError::Lost("its thread ended".into())));
            let mut state = self.state.borrow_mut();
            let epoch = answer.as_ref().ok().copied();
            self.record(&mut state, Event::CutReply { id, epoch });
            match answer {
                Ok(_) => state.summary.cuts += 1,
                Err(CutError::Refused(_)) => state.summary.cuts_refused += 1,
                Err(CutError::Lost(reason)) => {
                    if !self.stop.replace(true) {
                        state.end = End::ControlLost(reason);
                    }
                }
            }
            if let Err(error) = state.log.flush() {
                state.log_error = Some(error);
                self.stop.set(true);
            }
        }
    }
}

type CutChannels = (
    std::sync::mpsc::SyncSender<()>,
    mpsc::UnboundedReceiver<Result<u64, CutError>>,
);

/// The thread that may block on the control socket. It ends when the run does, or with its last
/// cut. At most one cut is asked for at a time, so neither channel grows.
fn cut_thread(mut cutter: Box<dyn Cutter>) -> io::Result<CutChannels> {
    let (ask, asked) = std::sync::mpsc::sync_channel(1);
    let (answer, answers) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("cut".into())
        .spawn(move || {
            while let Ok(()) = asked.recv() {
                if answer.send(cutter.cut()).is_err() {
                    return;
                }
            }
        })?;
    Ok((ask, answers))
}
