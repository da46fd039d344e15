//! What QEMU tells unasked.

use serde_json::Value;
use std::collections::VecDeque;

/// Most events that wait to be read.
pub const EVENTS_MAX: usize = 1024;

/// An event of the monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest is off, or QEMU is about to end.
    Shutdown {
        /// The guest wanted it; otherwise somebody at the host.
        guest: bool,
        /// QEMU's word for it, such as `guest-shutdown`.
        reason: String,
    },
    /// The guest begins anew.
    Reset {
        /// As in `Shutdown`.
        guest: bool,
        /// QEMU's word for it.
        reason: String,
    },
    /// The guest was paused.
    Stop,
    /// The guest goes on.
    Resume,
    /// A disk of the guest failed.
    BlockIoError {
        /// The device, or the node where it has no name.
        device: String,
        /// What QEMU does about it: `report`, `ignore` or `stop`.
        action: String,
        /// In words.
        reason: String,
    },
    /// A device was unplugged.
    DeviceDeleted {
        /// Its id, or its path where it has none.
        device: String,
    },
    /// A migration, or the saving of device state, has come this far.
    Migration {
        /// QEMU's word, such as `completed`.
        status: String,
    },
    /// The guest's kernel gave up.
    Panicked {
        /// What QEMU does about it: `pause`, `poweroff` or `run`.
        action: String,
    },
    /// Any other, by its name.
    Other(String),
}

impl Event {
    /// Of a line of the monitor that has an `event`.
    pub(super) fn read(name: &str, data: &Value) -> Self {
        let text = |of: &str| data[of].as_str().unwrap_or_default().to_owned();
        let either = |first: &str, second: &str| {
            let one = text(first);
            if one.is_empty() { text(second) } else { one }
        };
        let guest = data["guest"].as_bool().unwrap_or(false);
        match name {
            "SHUTDOWN" => Self::Shutdown {
                guest,
                reason: text("reason"),
            },
            "RESET" => Self::Reset {
                guest,
                reason: text("reason"),
            },
            "STOP" => Self::Stop,
            "RESUME" => Self::Resume,
            "BLOCK_IO_ERROR" => Self::BlockIoError {
                device: either("device", "node-name"),
                action: text("action"),
                reason: text("reason"),
            },
            "DEVICE_DELETED" => Self::DeviceDeleted {
                device: either("device", "path"),
            },
            "MIGRATION" => Self::Migration {
                status: text("status"),
            },
            "GUEST_PANICKED" => Self::Panicked {
                action: text("action"),
            },
            other => Self::Other(other.to_owned()),
        }
    }

    /// May not be dropped, however many others wait.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Shutdown { .. } | Self::Reset { .. } | Self::Panicked { .. }
        )
    }
}

/// Events that were not read yet. At the limit the oldest goes that is not the end of something.
#[derive(Debug, Default)]
pub(super) struct Queue {
    events: VecDeque<Event>,
    dropped: u64,
    /// Pauses and resumptions that were told in all.
    stops: u64,
    resumes: u64,
}

impl Queue {
    pub(super) fn push(&mut self, event: Event) {
        self.stops += u64::from(event == Event::Stop);
        self.resumes += u64::from(event == Event::Resume);
        if self.events.len() >= EVENTS_MAX {
            let old = self.events.iter().position(|event| !event.is_final());
            self.events.remove(old.unwrap_or(0));
            self.dropped += 1;
        }
        self.events.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes the last of these, wherever it stands.
    pub(super) fn take_last(&mut self, which: &Event) {
        if let Some(at) = self.events.iter().rposition(|event| event == which) {
            self.events.remove(at);
        }
    }

    /// Takes the next word on a migration.
    pub(super) fn take_migration(&mut self) -> Option<String> {
        let is = |event: &Event| matches!(event, Event::Migration { .. });
        let at = self.events.iter().position(is)?;
        match self.events.remove(at)? {
            Event::Migration { status } => Some(status),
            _ => None,
        }
    }

    /// Pauses that were told in all, and resumptions.
    pub(super) fn turns(&self) -> (u64, u64) {
        (self.stops, self.resumes)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    //! A shutdown that is pushed out by chatter brings a guest back that switched itself off.
    use super::*;
    use serde_json::json;

    #[test]
    fn the_end_of_a_guest_outlives_chatter() {
        let mut queue = Queue::default();
        queue.push(Event::read(
            "SHUTDOWN",
            &json!({"guest": true, "reason": "guest-shutdown"}),
        ));
        for _ in 0..3 * EVENTS_MAX {
            queue.push(Event::read("RTC_CHANGE", &Value::Null));
        }
        assert_eq!(queue.dropped(), 2 * EVENTS_MAX as u64 + 1);
        let first = queue.pop();
        assert_eq!(
            first,
            Some(Event::Shutdown {
                guest: true,
                reason: "guest-shutdown".to_owned()
            })
        );
        assert_eq!(queue.events.len(), EVENTS_MAX - 1);
    }

    #[test]
    fn one_is_taken_out_of_the_middle() {
        let mut queue = Queue::default();
        let migration = Event::Migration {
            status: "active".to_owned(),
        };
        for event in [Event::Resume, Event::Stop, migration, Event::Resume] {
            queue.push(event);
        }
        queue.take_last(&Event::Resume);
        assert_eq!(queue.take_migration().as_deref(), Some("active"));
        assert_eq!(queue.take_migration(), None);
        assert_eq!(queue.turns(), (1, 2));
        assert_eq!(queue.pop(), Some(Event::Resume));
        assert_eq!(queue.pop(), Some(Event::Stop));
        assert_eq!(queue.pop(), None);
    }
}
