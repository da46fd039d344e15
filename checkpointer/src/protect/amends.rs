//! Orders that nobody gives twice and that have to be carried out: a guest that is alone is heard, one that another host has
//! stands. What is not done at once is tried until it is.

use super::{AGAIN, Protector};
use blkback_proto::ids::LineageId;
use std::time::Instant;

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Amends {
    opens: Option<LineageId>,
    stops: bool,
    tried: Option<Instant>,
}

impl Amends {
    pub(super) fn open(&mut self, lineage: LineageId) {
        self.opens = Some(lineage);
        self.tried = None;
    }

    /// A guest that is let speak is not heard yet.
    #[must_use]
    pub(super) fn opens(&self) -> bool {
        self.opens.is_some()
    }

    /// Whatever was decided before.
    pub(super) fn hold(&mut self) {
        self.opens = None;
    }

    pub(super) fn stop(&mut self) {
        // Whoever let it speak before has been wrong since.
        self.opens = None;
        self.stops = true;
        self.tried = None;
    }

    /// Whether something is to be tried now.
    fn is_due(&mut self) -> bool {
        let is_due = (self.opens.is_some() || self.stops)
            && self.tried.is_none_or(|tried| tried.elapsed() >= AGAIN);
        if is_due {
            self.tried = Some(Instant::now());
        }
        is_due
    }
}

impl Protector {
    pub(super) fn make_amends(&mut self) {
        if !self.amends.is_due() {
            return;
        }
        if let Some(lineage) = self.amends.opens {
            let opened = self.output.as_mut().map(|output| output.open(lineage));
            match opened {
                Some(Err(why)) => {
                    tracing::error!(
                        "output stays held, though the guest is alone; tried again: {why}"
                    );
                    // One that is to be protected waits for it: opened after its first cut, it would never be held.
                    self.output_lost(format!("it stays held, though the guest is alone: {why}"));
                }
                Some(Ok(_)) => {
                    self.amends.opens = None;
                    self.output_words = String::new();
                }
                None => self.amends.opens = None,
            }
        }
        if self.amends.stops {
            match self.guest.stop_for_good() {
                Ok(()) => self.amends.stops = false,
                Err(_) if self.gone.is_some() => self.amends.stops = false,
                Err(why) => {
                    tracing::error!(
                        "the guest was not stopped, and another host has it; tried again: {why}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! netbuf is being started anew in the moment in which the guest is let speak: nobody hears it until somebody looks.
    use super::*;

    #[test]
    fn what_was_not_done_is_due_again_and_what_was_is_not() {
        let mut amends = Amends::default();
        assert!(!amends.is_due());
        amends.open(LineageId([1; 16]));
        assert!(amends.is_due(), "at once");
        assert!(!amends.is_due(), "after a rest");
        amends.tried = Instant::now().checked_sub(AGAIN);
        assert!(amends.is_due(), "again");
        // Another host's guest does not speak, whatever was decided before.
        amends.stop();
        assert!(!amends.opens() && amends.is_due());
        amends.stops = false;
        amends.tried = None;
        assert!(!amends.is_due());
    }
}
