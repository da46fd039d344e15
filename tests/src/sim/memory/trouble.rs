//! What goes wrong with a whole guest, besides its disks: by plan.

use super::Step;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World};
use checkpointer::sequence::Event as Told;
use fastrand::Rng;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The checkpointer is killed at one of its next orders.
    KilledAt { order: u32 },
    /// The hypervisor does nothing for a while.
    Hangs { ns: u64 },
    /// It dies with its guest, which is started anew.
    HypervisorDies { back_ns: u64 },
    /// The guest starts anew within its machine.
    Reboots,
    /// It switches itself off.
    GoesOff,
    /// netbuf is killed.
    NetbufDies { back_ns: u64 },
    /// Its connection is lost.
    NetbufLost,
    /// Nobody reaches the record.
    NoAuthority { ns: u64 },
    /// Somebody types `stop`, and later `cont`.
    Stopped { ns: u64 },
    /// Somebody types `cont` within a pause.
    Disturbed,
    /// An operator ends the protection.
    Ended,
}

impl Trouble {
    /// One of them.
    #[must_use]
    pub fn any(rng: &mut Rng) -> Self {
        let ns = rng.u64(MS..60 * MS);
        match rng.u8(..20) {
            0..=3 => Self::KilledAt {
                order: rng.u32(..12),
            },
            4..=5 => Self::Hangs { ns: 2 * ns },
            6 => Self::HypervisorDies { back_ns: ns },
            7..=8 => Self::Reboots,
            9 => Self::GoesOff,
            10..=11 => Self::NetbufDies { back_ns: ns / 2 },
            12..=13 => Self::NetbufLost,
            14..=15 => Self::NoAuthority { ns },
            16 => Self::Stopped { ns },
            17..=18 => Self::Disturbed,
            _ => Self::Ended,
        }
    }
}

impl World {
    /// It happens.
    pub fn trouble(&mut self, trouble: Trouble) {
        if !self.memory.on || self.oracle.promoted.is_some() {
            return;
        }
        match trouble {
            Trouble::KilledAt { order } => self.memory.checkpointer.dies_after = Some(order),
            Trouble::Hangs { ns } => self.machine_hangs(ns),
            Trouble::HypervisorDies { back_ns } => {
                self.machine_stops();
                self.after(back_ns, Event::Memory(Step::MachineStarts));
            }
            Trouble::Reboots => self.guest_reboots(),
            Trouble::GoesOff => self.guest_goes_off(),
            Trouble::NetbufDies { back_ns } => self.netbuf_dies(back_ns),
            Trouble::NetbufLost => self.output_lost(),
            Trouble::NoAuthority { ns } => self.memory.authority_down_until = self.now + ns,
            Trouble::Stopped { ns } => {
                self.operator_stops();
                self.after(ns, Event::Memory(Step::OperatorConts));
            }
            Trouble::Disturbed => self.operator_conts(),
            Trouble::Ended => self.tell_after(MS, Told::Stop),
        }
    }
}
