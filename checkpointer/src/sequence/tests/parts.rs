//! Parts that are lost and come back, and what operators and guests do of themselves.

use super::world::{Doer, World};
use crate::sequence::{Event, Part};

impl World {
    pub(super) fn upset(&mut self) {
        let part = *self
            .rng
            .choice(&[Part::Memory, Part::Disk, Part::Output])
            .unwrap();
        match self.rng.u8(..60) {
            0..16 => self.loses(part),
            16..58 => self.comes_back(part),
            58 if self.rng.u8(..20) == 0 => {
                self.is_off = true;
                if self.rng.u8(..3) == 0 {
                    self.tell(Event::HypervisorGone("hung up".to_owned()));
                }
                self.tell(Event::GuestOff);
                if self.rng.bool() {
                    self.ends();
                }
            }
            58 if self.rng.u8(..20) == 0 => self.ends(),
            58 if self.rng.u8(..20) == 0 => self.tell(Event::Stop),
            59 => self.tell(Event::CutWanted),
            _ => self.tell(Event::OutputWaits),
        }
    }

    /// The hypervisor's process ends, whatever was ordered of it; that is told at once or later.
    fn ends(&mut self) {
        self.is_dead = true;
        self.orders.remove(&Doer::Hypervisor);
        if self.rng.bool() {
            self.tell(Event::HypervisorGone("hung up".to_owned()));
        }
        let late = self.rng.u64(..50) * 1_000_000;
        self.answers
            .push((self.now + late, Event::HypervisorEnded("killed".to_owned())));
    }

    pub(super) fn loses(&mut self, part: Part) {
        match part {
            Part::Memory => self.is_linked = false,
            Part::Output => self.begin_output_anew(),
            Part::Disk => {}
        }
        let why = "lost".to_owned();
        self.tell(Event::Lost { part, why });
    }

    /// A new connection: what was ordered over the old one is void, what was held is dropped.
    pub(super) fn begin_output_anew(&mut self) {
        self.held.clear();
        self.cuts.clear();
        self.orders.remove(&Doer::Output);
    }

    pub(super) fn comes_back(&mut self, part: Part) {
        let mut has_base = true;
        if part == Part::Output && self.sequence.missing.contains_key(&part) {
            self.begin_output_anew();
        }
        if part == Part::Memory {
            if self.is_linked && !self.sequence.missing.contains_key(&part) {
                return;
            }
            self.is_linked = true;
            if self.copy.is_none() || (!self.is_calm && self.rng.u8(..6) == 0) {
                has_base = false;
                self.copy = None;
            }
        }
        self.tell(Event::Back { part, has_base });
    }
}
