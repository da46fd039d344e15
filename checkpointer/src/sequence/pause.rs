//! The transitions while the guest stands still.

use super::plant::Plant;
use super::{InFlight, Nanos, Order, Phase, Sequence};
use blkback_proto::ids::Epoch;

impl Sequence {
    pub(super) fn paused(
        &mut self,
        now: Nanos,
        result: Result<(), String>,
        orders: &mut Vec<Order>,
    ) {
        match (self.phase, result) {
            (Phase::Pausing, Ok(())) => {
                self.phase = Phase::Closing {
                    disk: None,
                    state: false,
                };
                orders.push(Order::CutDisk(self.attempt));
                orders.push(Order::Collect(self.attempt));
            }
            (Phase::Pausing, Err(why)) => {
                self.give_up(now, format!("the guest was not paused: {why}"), orders);
            }
            _ => {}
        }
    }

    pub(super) fn disk_cut(
        &mut self,
        now: Nanos,
        result: Result<Epoch, String>,
        orders: &mut Vec<Order>,
    ) {
        match (&mut self.phase, result) {
            (Phase::Closing { disk, .. }, Ok(epoch)) => {
                *disk = Some(epoch);
                self.closed(now, orders);
            }
            (
                Phase::Ending {
                    epoch: number @ None,
                },
                Ok(epoch),
            ) => {
                *number = Some(epoch);
                self.in_flight.push_back(InFlight { epoch, since: now });
                orders.push(Order::SendEnd(epoch));
            }
            (Phase::Closing { .. }, Err(why)) => {
                self.give_up(now, format!("the disks were not cut: {why}"), orders);
            }
            (Phase::Ending { epoch: None }, Err(why)) => {
                let why = format!("the guest is off, and the disks were not cut: {why}");
                self.over(now, why, orders);
            }
            _ => {}
        }
    }

    pub(super) fn collected(
        &mut self,
        now: Nanos,
        result: Result<(), String>,
        orders: &mut Vec<Order>,
    ) {
        match (&mut self.phase, result) {
            (Phase::Closing { state, .. }, Ok(())) => {
                *state = true;
                self.closed(now, orders);
            }
            (Phase::Closing { .. }, Err(why)) => {
                self.give_up(now, format!("memory was not copied: {why}"), orders);
            }
            _ => {}
        }
    }

    /// Both are there: the output is next, or the guest.
    pub(super) fn closed(&mut self, now: Nanos, orders: &mut Vec<Order>) {
        let Phase::Closing {
            disk: Some(epoch),
            state: true,
        } = self.phase
        else {
            return;
        };
        if self.has_room_for_cut() || self.planted(Plant::CutTwice) {
            self.phase = Phase::Cutting { epoch };
            orders.push(Order::CutOutput(self.attempt, epoch));
        } else {
            self.go_on(now, Some(epoch), orders);
        }
    }

    pub(super) fn has_room_for_cut(&self) -> bool {
        self.found_cut.is_none() && self.output_cuts.len() < self.settings.output_cuts_max
    }

    pub(super) fn output_cut(
        &mut self,
        now: Nanos,
        result: Result<(), String>,
        orders: &mut Vec<Order>,
    ) {
        match (self.phase, result) {
            (Phase::Cutting { epoch }, Ok(())) => {
                self.output_cuts.push_back(epoch);
                self.go_on(now, Some(epoch), orders);
            }
            (Phase::Cutting { .. }, Err(why)) => {
                self.give_up(now, format!("the output was not cut: {why}"), orders);
                self.unsure = None;
            }
            _ => {}
        }
    }

    /// What became of a cut that was given up.
    pub(super) fn sure(&mut self, result: Result<(), String>) {
        if let Some((_, epoch, _)) = self.unsure.take()
            && result.is_ok()
        {
            self.output_cuts.push_back(epoch);
        }
    }

    pub(super) fn go_on(&mut self, now: Nanos, whole: Option<Epoch>, orders: &mut Vec<Order>) {
        orders.push(Order::Resume(self.attempt));
        self.enter(now, Phase::Resuming { whole });
    }

    /// The checkpoint is none; the guest goes on.
    pub(super) fn give_up(&mut self, now: Nanos, why: String, orders: &mut Vec<Order>) {
        self.why = why;
        if let Phase::Cutting { epoch } = self.phase
            && !self.planted(Plant::Unsure)
        {
            self.unsure = Some((self.attempt, epoch, now));
        }
        self.abandon(orders);
        self.go_on(now, None, orders);
    }

    pub(super) fn abandon(&self, orders: &mut Vec<Order>) {
        if !self.planted(Plant::NoAbandon) {
            orders.push(Order::Abandon(self.attempt));
        }
    }

    pub(super) fn resumed(
        &mut self,
        now: Nanos,
        result: Result<(), String>,
        orders: &mut Vec<Order>,
    ) {
        let Phase::Resuming { whole } = self.phase else {
            return;
        };
        if let Err(why) = result {
            let why = format!("the guest does not go on: {why}");
            self.stuck(now, why, orders);
            return;
        }
        if let Some(epoch) = whole {
            self.why.clear();
            self.in_flight.push_back(InFlight { epoch, since: now });
            orders.push(Order::Send(self.attempt, epoch));
        }
        self.enter(now, Phase::Running);
    }
}
