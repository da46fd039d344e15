//! What a hold tells of itself, in the words of the control protocol.

use super::Hold;
use super::port::Held;
use crate::gate::State;
use blkback_proto::ctl::{NetDone, NetGuest, NetInterface, NetMechanism, NetState};

/// Everything a guest's interfaces hold together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    /// `None` where one could not be read.
    pub(super) held: Option<Held>,
    /// Of those that could be read.
    pub(super) dropped_frames: u64,
}

impl Hold {
    pub(super) fn sum(&mut self) -> Sum {
        let mut sum = Sum {
            held: Some(Held::default()),
            dropped_frames: 0,
        };
        for port in self.ports.values_mut() {
            let held = port.held(&mut self.netlink);
            sum.dropped_frames += held.map_or(0, |held| held.dropped_frames);
            sum.held = match (sum.held, held) {
                (Some(sum), Some(held)) => Some(Held {
                    frames: sum.frames + held.frames,
                    bytes: sum.bytes + held.bytes,
                    oldest_ms: sum.oldest_ms.max(held.oldest_ms),
                    dropped_frames: sum.dropped_frames + held.dropped_frames,
                }),
                _ => None,
            };
        }
        sum
    }

    fn in_flight(&self) -> u64 {
        match self.gate.state() {
            State::Cut { epochs } => epochs.len() as u64,
            _ => 0,
        }
    }

    fn alarm(&self) -> bool {
        self.ports.values().any(|port| port.alarm)
    }

    /// How it stands after a request. What was dropped since the last answer of this kind is told once.
    pub(crate) fn done(&mut self, already: bool, note: String) -> NetDone {
        let sum = self.sum();
        let limit_reached = sum.dropped_frames > self.answered_drops;
        self.answered_drops = self.answered_drops.max(sum.dropped_frames);
        NetDone {
            already,
            state: NetState::from(self.gate.state().name()),
            last_cut: self.gate.last_cut().map(|epoch| epoch.0),
            epochs_in_flight: self.in_flight(),
            held_frames: sum.held.map(|held| held.frames),
            held_bytes: sum.held.map(|held| held.bytes),
            dropped_frames: sum.dropped_frames,
            alarm: self.alarm(),
            limit_reached,
            note,
        }
    }

    /// Everything there is to know. Changes nothing.
    #[must_use]
    pub fn status(&mut self) -> NetGuest {
        let standing = self.gate.standing();
        let limit_bytes = u64::from(self.gate.limit_bytes());
        let mut interfaces = Vec::new();
        for (interface, port) in &mut self.ports {
            let held = port.held(&mut self.netlink);
            interfaces.push(NetInterface {
                interface: port.name.clone(),
                index: interface.0,
                bridge: port.bridge(),
                by: port.by(),
                held_frames: held.map(|held| held.frames),
                held_bytes: held.map(|held| held.bytes),
                oldest_held_ms: held.and_then(|held| held.oldest_ms),
                dropped_frames: held.map(|held| held.dropped_frames),
                limit_bytes,
                alarm: port.alarm,
                failed: port.failed.clone(),
            });
        }
        NetGuest {
            guest: self.guest.clone(),
            mechanism: self.mechanism.word(),
            state: NetState::from(standing.state),
            reason: standing.reason,
            since_unix_ms: standing.since_ms,
            next: standing.next.to_owned(),
            last_cut: self.gate.last_cut().map(|epoch| epoch.0),
            epochs_in_flight: self.in_flight(),
            epochs_in_flight_max: self.gate.capacity() as u64,
            lineage: self.gate.authority().map(|lineage| lineage.to_string()),
            alarm: self.alarm(),
            announcements_left: 0,
            interfaces,
        }
    }
}

impl super::Mechanism {
    /// As status names it.
    #[must_use]
    pub fn word(self) -> NetMechanism {
        match self {
            Self::Plug => NetMechanism::Plug,
            Self::Relay { .. } => NetMechanism::Relay,
        }
    }
}
