//! Cuts before the interval is over: how it is learned that output waits and that the guest is idle, and when it is not
//! worth the pause.
//!
//! Cheapest first: what the sequence says of itself; then the threads of the guest's processors, from the kernel; then
//! netbuf, and that only while something can have changed since it was asked last.

use super::Protector;
use super::idle::{Look, Processors};
use crate::config::Interval;
use crate::sequence::Event;
use std::time::{Duration, Instant};

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(2);
/// After something did not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// Asked so often after the guest ran last: what it said is on its way through QEMU for a moment.
const ASKED_AFTER_MAX: u32 = 3;
/// Most of the time that pauses may take where the interval is fixed: for early cuts only.
const FIXED_PERCENT_MAX: u64 = 50;

/// What is known between two looks.
#[derive(Debug, Default)]
pub(super) struct Early {
    processors: Option<Processors>,
    next: Option<Instant>,
    /// How often netbuf was asked since the guest ran last.
    asked: u32,
}

impl Early {
    fn is_worth_asking(&mut self, look: Look) -> bool {
        if !look.is_quiet {
            self.asked = 0;
        }
        if !look.is_idle || self.asked >= ASKED_AFTER_MAX {
            return false;
        }
        self.asked += 1;
        true
    }

    fn rest(&mut self, now: Instant, rest: Duration) {
        self.next = Some(now + rest);
    }
}

/// Whether the pauses leave room for one that the interval does not ask for. A little below what makes an adaptive interval
/// longer: early cuts alone never do that.
fn leaves_room(interval: Interval, pause_percent: f64) -> bool {
    let most = match interval {
        Interval::Adaptive { pause_percent, .. } => pause_percent,
        Interval::Fixed { .. } => FIXED_PERCENT_MAX,
    };
    #[allow(clippy::cast_precision_loss, reason = "a percentage")]
    let most = most as f64;
    pause_percent < most * 0.9
}

impl Protector {
    /// Cuts early where that is due.
    pub(super) fn cut_early(&mut self) {
        let now = Instant::now();
        if self.sequence.next_early_cut(self.now()) != Some(0)
            || self.early.next.is_some_and(|next| now < next)
        {
            return;
        }
        self.early.rest(now, LOOK);
        match self.output_waits() {
            Ok(true) => self.step(Event::OutputWaits),
            Ok(false) => {}
            Err(why) => {
                tracing::debug!("no early cuts for a moment: {why}");
                self.early.rest(Instant::now(), AGAIN);
            }
        }
    }

    fn output_waits(&mut self) -> Result<bool, String> {
        let processors = match &mut self.early.processors {
            Some(processors) => processors,
            none => {
                let threads = self.guest.qemu.vcpu_threads().map_err(|e| e.to_string())?;
                let found = Processors::of(self.guest.qemu.pid(), &threads);
                none.insert(found.map_err(|e| format!("its processors: {e}"))?)
            }
        };
        let look = match processors.look() {
            Ok(look) => look,
            Err(error) => {
                self.early.processors = None;
                return Err(format!("its processors: {error}"));
            }
        };
        let Some(output) = &mut self.output else {
            return Ok(false);
        };
        if !self.early.is_worth_asking(look)
            || !leaves_room(self.config.epochs.interval, self.timeline.pause_percent())
        {
            return Ok(false);
        }
        output.waits()
    }

    /// How long the owner may rest for the sake of early cuts.
    pub(super) fn rest_early(&self) -> Option<Duration> {
        let due = self.sequence.next_early_cut(self.now())?;
        let until_look = self.early.next.map_or(Duration::ZERO, |next| {
            next.saturating_duration_since(Instant::now())
        });
        // A look before it is due would be for nothing.
        Some(until_look.max(Duration::from_nanos(due)))
    }
}

#[cfg(test)]
mod tests {
    //! Asked without need, netbuf costs a core of the host for a guest that sleeps; not asked, an answer waits.
    use super::*;

    #[test]
    fn a_guest_that_sleeps_on_is_not_asked_about_for_ever() {
        let mut early = Early::default();
        let look = |is_idle, is_quiet| Look { is_idle, is_quiet };
        let asked = (0..10).filter(|_| early.is_worth_asking(look(true, true)));
        assert_eq!(asked.count(), 3);
        assert!(!early.is_worth_asking(look(false, false)), "it is busy");
        assert!(early.is_worth_asking(look(true, true)), "it has run");
        assert!(early.is_worth_asking(look(true, false)));
        let asked = (0..10).filter(|_| early.is_worth_asking(look(true, true)));
        assert_eq!(asked.count(), 2);
    }

    #[test]
    fn the_promise_of_an_adaptive_interval_holds() {
        let adaptive = Interval::Adaptive {
            min_ms: 25,
            max_ms: 200,
            pause_percent: 10,
        };
        assert!(leaves_room(adaptive, 8.9));
        assert!(!leaves_room(adaptive, 9.0));
        let fixed = Interval::Fixed { interval_ms: 25 };
        assert!(leaves_room(fixed, 44.9) && !leaves_room(fixed, 45.0));
    }
}
