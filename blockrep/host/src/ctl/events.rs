//! The bounded log of events. Any thread publishes; readers hold a sequence number, nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use blkback_proto::ctl::{EVENT_DETAILS_MAX, EVENT_JSON_BYTES_MAX, Event, EventKind, EventsAnswer};

use super::hint::shell_word;
use super::log::log_line;
use crate::{Waker, clock, ids};

/// Events kept; the oldest go first.
pub const EVENTS_KEPT: usize = 4096;
/// The most memory [`EVENTS_KEPT`] events take: their texts and what is around each of them.
pub const EVENT_LOG_BYTES_MAX: usize =
    EVENTS_KEPT * (EVENT_JSON_BYTES_MAX + size_of::<Event>() + EVENT_DETAILS_MAX * 128);

/// An event before it has a number and a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Name of the group.
    pub group: String,
    /// What it is about.
    pub kind: EventKind,
    /// State before, where it is a change of state.
    pub old_state: Option<String>,
    /// State after.
    pub new_state: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// What will happen, or what to do, in words.
    pub next: String,
    /// Anything else, for programs.
    pub detail: BTreeMap<String, String>,
    /// An operator asked for just this: no warning in the log.
    pub is_asked_for: bool,
}

impl NewEvent {
    /// An event that is no change of state.
    pub fn new(
        group: impl Into<String>,
        kind: EventKind,
        reason: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            group: group.into(),
            kind,
            old_state: None,
            new_state: None,
            reason: reason.into(),
            next: next.into(),
            detail: BTreeMap::new(),
            is_asked_for: false,
        }
    }

    /// Adds the states of a change.
    #[must_use]
    pub fn change(mut self, old: impl Display, new: impl Display) -> Self {
        self.old_state = Some(old.to_string());
        self.new_state = Some(new.to_string());
        self
    }

    /// Marks what an operator asked for.
    #[must_use]
    pub fn asked_for(mut self) -> Self {
        self.is_asked_for = true;
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Display) -> Self {
        self.detail.insert(key.to_owned(), value.to_string());
        self
    }
}

/// Handle to the log of one daemon; clones share it.
#[derive(Debug, Clone)]
pub struct EventLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: String,
    kept_max: usize,
    /// The option with which `blockrepctl` reaches this daemon, for hints in its log.
    target: OnceLock<String>,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Event>,
    next_seq: u64,
    readers: Vec<Weak<Waker>>,
}

impl EventLog {
    /// An empty log that keeps [`EVENTS_KEPT`] events.
    ///
    /// # Errors
    /// When the kernel gives no random bytes for the id of the log.
    pub fn new() -> io::Result<Self> {
        Self::with_capacity(EVENTS_KEPT)
    }

    /// An empty log that keeps the newest `kept_max` events, at least one.
    ///
    /// # Errors
    /// As [`EventLog::new`].
    pub fn with_capacity(kept_max: usize) -> io::Result<Self> {
        let ring = Ring {
            events: VecDeque::new(),
            next_seq: 1,
            readers: Vec::new(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                id: ids::hex(&ids::random_id8()?),
                kept_max: kept_max.max(1),
                target: OnceLock::new(),
                ring: Mutex::new(ring),
            }),
        })
    }

    /// Hints in the log are commands for the daemon with this control socket: where both sides of a
    /// group run on one host, no other word names one. Events over the socket keep the plain command,
    /// since whoever reads them has typed his own way here.
    pub(super) fn hints_name(&self, control: &Path) {
        let word = shell_word(&control.display().to_string());
        // A log has one server.
        let _ = self.inner.target.set(format!("--control {word}"));
    }

    /// Adds an event, shortened to its limit, writes it to the log on stderr too, and wakes the
    /// readers. Returns its number. Takes a lock for a moment: not for the path of a write.
    pub fn publish(&self, new: NewEvent) -> u64 {
        let NewEvent {
            group,
            kind,
            old_state,
            new_state,
            reason,
            next,
            detail,
            is_asked_for,
        } = new;
        let unix_ms = clock::unix_ms();
        let mut event = Event {
            seq: 0,
            unix_ms,
            group,
            kind,
            old_state,
            new_state,
            reason,
            next,
            detail,
        };
        event.bound();
        let target = self.inner.target.get().map(String::as_str);
        log_line(&event, is_asked_for, target);
        let mut ring = self.ring();
        let seq = ring.next_seq;
        event.seq = seq;
        ring.next_seq += 1;
        if ring.events.len() == self.inner.kept_max {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
        ring.readers.retain(|reader| match reader.upgrade() {
            Some(waker) => {
                waker.wake();
                true
            }
            None => false,
        });
        seq
    }

    /// At most `max` events from `from_seq` on. A number before the oldest kept counts as lost
    /// what is gone, except 0, which means the oldest kept; one beyond the newest means the next.
    pub fn read(&self, from_seq: u64, max: usize) -> EventsAnswer {
        let ring = self.ring();
        let oldest = ring.next_seq - ring.events.len() as u64;
        let from = if from_seq == 0 {
            oldest
        } else {
            from_seq.min(ring.next_seq)
        };
        let first = from.max(oldest);
        let skip = usize::try_from(first - oldest).expect("at most the length of the ring");
        let events: Vec<Event> = ring.events.iter().skip(skip).take(max).cloned().collect();
        let next_seq = first + events.len() as u64;
        EventsAnswer {
            log: self.inner.id.clone(),
            events,
            lost: first - from,
            next_seq,
            more: next_seq < ring.next_seq,
        }
    }

    /// Wakes this waker at every event for as long as it lives.
    pub fn wake_on_event(&self, waker: &Arc<Waker>) {
        self.ring().readers.push(Arc::downgrade(waker));
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing under the lock can leave the ring half changed.
        self.inner
            .ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::log_text;
    use super::*;

    fn publish(log: &EventLog, reason: &str) -> u64 {
        log.publish(
            NewEvent::new("g", EventKind::LinkState, reason, "nothing").change("up", "down"),
        )
    }

    fn seqs(answer: &EventsAnswer) -> Vec<u64> {
        answer.events.iter().map(|event| event.seq).collect()
    }

    /// A reader who is not told of a gap believes in a history that did not happen.
    #[test]
    fn gaps_are_counted_and_memory_is_bounded() {
        let log = EventLog::with_capacity(3).unwrap();
        assert_eq!(log.read(0, 10).next_seq, 1);
        for i in 1..=5 {
            assert_eq!(publish(&log, "x"), i);
        }
        let all = log.read(0, 10);
        assert_eq!(
            (seqs(&all), all.lost, all.next_seq, all.more),
            (vec![3, 4, 5], 0, 6, false)
        );
        let late = log.read(1, 10);
        assert_eq!((seqs(&late), late.lost), (vec![3, 4, 5], 2));
        let page = log.read(3, 2);
        assert_eq!(
            (seqs(&page), page.next_seq, page.more),
            (vec![3, 4], 5, true)
        );
        let rest = log.read(page.next_seq, 2);
        assert_eq!((seqs(&rest), rest.more), (vec![5], false));
    }

    /// The log is read on a host where primary and backup run: `blockrepctl promote` alone was
    /// refused there.
    #[test]
    fn a_hint_in_the_log_reaches_this_daemon() {
        let log = EventLog::new().unwrap();
        log.hints_name(Path::new("/run/it is/vm1.backup.sock"));
        let seq = log.publish(NewEvent::new(
            "g",
            EventKind::GroupState,
            "no primary is connected",
            "follows one, or `blockrepctl promote`",
        ));
        let event = &log.read(seq, 1).events[0];
        assert_eq!(event.next, "follows one, or `blockrepctl promote`");
        assert_eq!(
            log_text(event, log.inner.target.get().map(String::as_str)),
            "g: group-state: no primary is connected; next: follows one, or `blockrepctl --control \
             '/run/it is/vm1.backup.sock' promote`"
        );
    }

    /// After a restart of the daemon the numbers begin again: a reader that asks for its old
    /// number must not wait for ever.
    #[test]
    fn number_from_another_run_means_the_next_event() {
        let log = EventLog::new().unwrap();
        publish(&log, "x");
        let answer = log.read(5000, 10);
        assert_eq!(
            (seqs(&answer), answer.next_seq, answer.lost),
            (vec![], 2, 0)
        );
        assert_ne!(answer.log, EventLog::new().unwrap().read(0, 1).log);
    }

    /// A reader that is not woken shows a protected group long after it is degraded.
    #[test]
    fn living_readers_are_woken_dead_ones_forgotten() {
        let log = EventLog::new().unwrap();
        let (alive, dead) = (
            Arc::new(Waker::new().unwrap()),
            Arc::new(Waker::new().unwrap()),
        );
        log.wake_on_event(&alive);
        log.wake_on_event(&dead);
        drop(dead);
        publish(&log, "x");
        assert!(alive.drain() && !alive.drain());
        assert_eq!(log.ring().readers.len(), 1);
    }
}
