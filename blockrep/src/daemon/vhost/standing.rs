//! How the guest of a volume stands, for status and events.
//!
//! ```text
//!   waiting ── a VMM connects ──> connected ── a driver breaks the rules ──> broken
//!      ^                            │  ^                                       │ │
//!      └──────── it goes ───────────┘  └──── it stops or resets the queue ─────┘ │
//!      └───────────────────────────────── it goes ───────────────────────────────┘
//! ```
//!
//! Queues that start and stop are no events: a checkpointer stops them many times a second.

use super::rings::Rings;
use crate::daemon::thread::VolumeThread;
use crate::frontend::virtio_blk::{QUEUES_MAX, feature};
use blkback_proto::ctl::{EventKind, GuestState, GuestStatus, Stated};
use blockrep_host::clock;
use blockrep_host::ctl::NewEvent;

const SERVED: &str = "served when one connects";
const NOTHING: &str = "nothing to do";
const RESET: &str = "the guest restarts or resets the disk, or its VMM connects again; until then \
                     it waits for what it asked of this queue";

/// What is known of the guest of a volume.
pub(super) struct Standing {
    is_connected: bool,
    /// Feature bits the driver took.
    features: u64,
    /// Why a queue was stopped, where its driver broke the rules.
    broken: [Option<String>; QUEUES_MAX],
    state: GuestState,
    reason: String,
    since_unix_ms: u64,
    /// Something above changed, and was not told.
    is_news: bool,
    /// Why no VMM is connected.
    gone: String,
}

impl Default for Standing {
    fn default() -> Self {
        let gone = "no VMM has connected yet".to_owned();
        Self {
            is_connected: false,
            features: 0,
            broken: Default::default(),
            state: GuestState::Waiting,
            reason: gone.clone(),
            since_unix_ms: clock::unix_ms(),
            is_news: false,
            gone,
        }
    }
}

impl Standing {
    pub(super) fn connected(&mut self) {
        self.is_connected = true;
        self.is_news = true;
    }

    pub(super) fn features(&mut self, features: u64) {
        self.features = features;
    }

    /// The VMM is gone, for that reason.
    pub(super) fn gone(&mut self, reason: String) {
        *self = Self {
            state: self.state.clone(),
            reason: std::mem::take(&mut self.reason),
            since_unix_ms: self.since_unix_ms,
            is_news: true,
            gone: reason,
            ..Self::default()
        };
    }

    /// The driver of a queue broke the rules: nothing more is taken from it.
    pub(super) fn broke(&mut self, queue: usize, why: impl Into<String>) {
        self.broken[queue] = Some(why.into());
        self.is_news = true;
    }

    /// A queue was stopped, or started anew.
    pub(super) fn mended(&mut self, queue: usize) {
        self.is_news |= self.broken[queue].take().is_some();
    }

    fn now(&self) -> (GuestState, String, &'static str) {
        let broken: Vec<String> = self
            .broken
            .iter()
            .enumerate()
            .filter_map(|(queue, why)| Some(format!("queue {queue}: {}", why.as_ref()?)))
            .collect();
        if !self.is_connected {
            (GuestState::Waiting, self.gone.clone(), SERVED)
        } else if broken.is_empty() {
            let reason = "a VMM is connected by vhost-user".to_owned();
            (GuestState::Connected, reason, NOTHING)
        } else {
            let reason = format!(
                "its driver broke the rules, nothing more is taken: {}",
                broken.join("; ")
            );
            (GuestState::Broken, reason, RESET)
        }
    }

    /// The state before and after, with reason and next, where it changed.
    fn news(&mut self) -> Option<(GuestState, GuestState, String, &'static str)> {
        if !std::mem::take(&mut self.is_news) {
            return None;
        }
        let (state, reason, next) = self.now();
        if (&state, &reason) == (&self.state, &self.reason) {
            return None;
        }
        if state != self.state {
            self.since_unix_ms = clock::unix_ms();
        }
        self.reason.clone_from(&reason);
        let old = std::mem::replace(&mut self.state, state.clone());
        Some((old, state, reason, next))
    }
}

/// The features a driver took, in short, without those that every driver takes.
fn words(features: u64) -> Vec<String> {
    const WORDS: [(u64, &str); 6] = [
        (feature::MQ, "several-queues"),
        (feature::EVENT_IDX, "event-idx"),
        (feature::INDIRECT, "indirect"),
        (feature::FLUSH, "flush"),
        (feature::DISCARD, "discard"),
        (feature::WRITE_ZEROES, "write-zeroes"),
    ];
    let taken = WORDS.iter().filter(|(bit, _)| features & bit != 0);
    taken.map(|(_, word)| (*word).to_owned()).collect()
}

impl Rings {
    /// For status.
    pub(in crate::daemon) fn guest_status(&self) -> GuestStatus {
        let (state, mut reason, next) = self.standing.now();
        let running = self.rings.iter().flatten().filter(|ring| !ring.is_broken);
        let queues_running = u32::try_from(running.count()).unwrap_or(u32::MAX);
        if state == GuestState::Connected && queues_running == 0 {
            reason += "; no queue runs: the guest is paused, or its driver has not started";
        }
        GuestStatus {
            stated: Stated {
                state,
                reason,
                since_unix_ms: self.standing.since_unix_ms,
                next: next.to_owned(),
            },
            queues_running,
            features: words(self.standing.features),
        }
    }
}

impl VolumeThread {
    /// Tells of a guest that came, went, or broke the rules.
    pub(super) fn tell_guest(&mut self) {
        let Some(rings) = &mut self.rings else { return };
        let Some((old, new, reason, next)) = rings.standing.news() else {
            return;
        };
        let volume = self.exports[self.about.index].name();
        let text = format!("volume {volume}: {reason}");
        let group = self.about.group_name.clone();
        let event = NewEvent::new(group, EventKind::GuestState, text, next);
        self.publish(event.change(old, new).detail("volume", volume));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(standing: &mut Standing) -> Option<String> {
        let (old, new, ..) = standing.news()?;
        Some(format!("{old} -> {new}"))
    }

    /// A guest that hangs on a queue nobody serves must be told of, and so must its recovery.
    #[test]
    fn every_change_is_told_once() {
        let mut standing = Standing::default();
        assert_eq!(told(&mut standing), None);
        standing.connected();
        assert_eq!(told(&mut standing).as_deref(), Some("waiting -> connected"));
        standing.mended(3);
        assert_eq!(told(&mut standing), None);
        standing.broke(3, "head 9 of 8");
        assert_eq!(told(&mut standing).as_deref(), Some("connected -> broken"));
        standing.broke(5, "head 10 of 8");
        assert_eq!(told(&mut standing).as_deref(), Some("broken -> broken"));
        assert!(standing.now().1.contains("queue 3: head 9 of 8; queue 5"));
        standing.mended(3);
        standing.mended(5);
        assert_eq!(told(&mut standing).as_deref(), Some("broken -> connected"));
        standing.broke(0, "x");
        standing.gone("the VMM closed the connection".to_owned());
        assert_eq!(told(&mut standing).as_deref(), Some("connected -> waiting"));
        standing.connected();
        assert_eq!(told(&mut standing).as_deref(), Some("waiting -> connected"));
    }

    /// What a driver takes is shown in words; bits without one are left out.
    #[test]
    fn features_are_words() {
        assert!(words(feature::VERSION_1 | 1 << 60).is_empty());
        let some = feature::FLUSH | feature::EVENT_IDX;
        assert_eq!(words(some), ["event-idx", "flush"]);
    }
}
