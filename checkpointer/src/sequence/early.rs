//! Cuts before the interval is over: output waits, and the guest has nothing to add to it.

use super::plant::Plant;
use super::{Nanos, Phase, Sequence};

impl Sequence {
    /// From now on a cut may be made early, never nearer than this to the one before; 0 for none. It never makes a cut later
    /// than the interval does.
    pub fn set_interval_min(&mut self, interval_min_ns: Nanos) {
        self.interval_min_ns = interval_min_ns;
    }

    /// How long until [`Event::OutputWaits`](super::Event::OutputWaits) would cut; nothing where it would not, whatever the
    /// clock says: so long there is no need to look whether output waits.
    #[must_use]
    pub fn next_early_cut(&self, now: Nanos) -> Option<Nanos> {
        let is_useful = self.phase == Phase::Running
            && self.interval_min_ns != 0
            && (self.has_room() || (self.planted(Plant::EarlyFlood) && self.missing.is_empty()))
            // Without a cut of the output it would let nothing go.
            && self.has_room_for_cut();
        let since = now.saturating_sub(self.since);
        let min = if self.planted(Plant::EarlyAtOnce) {
            0
        } else {
            self.interval_min_ns
        };
        is_useful.then(|| min.saturating_sub(since))
    }

    pub(super) fn is_early(&self, now: Nanos) -> bool {
        self.is_output_waiting && self.next_early_cut(now) == Some(0)
    }

    /// A checkpoint may begin, as far as the others under way go, and has all its parts.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < self.settings.in_flight_max
            && self.unsure.is_none()
            && self.missing.is_empty()
    }
}
