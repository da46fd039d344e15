//! The sequence's orders, carried out.

use super::guest::Uncollected;
use super::link::{self, Job, Named};
use super::{AGAIN, Protector};
use crate::memory::stream::Acked;
use crate::plant::{self, Plant, planted};
use crate::sequence::{Attempt, Event, Order, Part};
use blkback_proto::ids::{Epoch, LineageId};
use std::time::Instant;

/// How often netbuf is told to let a guest's last words go.
const LAST_WORDS_TRIES: u32 = 4;

impl Protector {
    pub(super) fn carry_out(&mut self, order: Order) {
        let step = plant::Step::of(&order);
        step.may_be_killed(plant::Moment::Before);
        self.do_it(order);
        step.may_be_killed(plant::Moment::After);
    }

    fn do_it(&mut self, order: Order) {
        match order {
            Order::FirstCopy(attempt) => self.first_copy(attempt),
            Order::Pause(attempt) => {
                let prepared = self.guest.prepare();
                self.timeline.begin(attempt);
                let result = prepared.and_then(|()| self.guest.pause());
                self.timeline.stopped(self.guest.steps.stop);
                self.events.push_back(Event::Paused(attempt, result));
            }
            Order::CutDisk(attempt) => self.cut_disk(attempt),
            Order::Collect(attempt) => self.collect(attempt),
            Order::CutOutput(attempt, epoch) => self.cut_output(attempt, epoch),
            Order::Resume(attempt) => self.resume(attempt),
            Order::Abandon(_) => {
                let why = self.sequence.standing().reason;
                self.timeline.given_up(&why);
                self.guest.abandon();
            }
            Order::Send(_, epoch) => self.send(epoch),
            Order::SendEnd(epoch) => {
                let named = self.named(epoch);
                self.standing.sends(epoch);
                self.wait_for_disks(named);
                if self
                    .link
                    .send(self.standing.session, Job::End(named))
                    .is_err()
                {
                    self.memory_lost("the link is behind, and the guest is off".to_owned());
                }
            }
            Order::TakeBack => {
                self.guest.take_back();
                self.renew();
            }
            Order::Release(epoch) => self.release(epoch),
            Order::AskAuthority => self.ask_authority(),
            Order::OpenOutput(lineage) => {
                // What was sent before takes no backup in: it lacks what is said from now on.
                self.standing.sent = None;
                self.amends.open(lineage);
                self.make_amends();
                if self.sequence.has_ended() {
                    self.guest.forget();
                }
            }
            Order::HoldOutput(reason) => {
                self.amends.hold();
                let held = self.output.as_mut().map(|output| output.hold(&reason));
                if let Some(Err(why)) = held {
                    tracing::error!("netbuf was not told to hold: {why}");
                }
            }
            Order::StopGuest => {
                self.amends.stop();
                self.make_amends();
            }
            Order::HandOver(why) => self.hand_over(why),
            Order::Finish(epoch) => {
                tracing::info!("the guest is off, and the backup knows");
                self.last_words(epoch);
                self.is_finished = true;
                self.is_over = true;
            }
        }
    }

    fn first_copy(&mut self, attempt: Attempt) {
        self.slice = None;
        self.standing.is_member = false;
        self.standing.sent = None;
        self.standing.generation = link::random();
        let job = Job::StartCopy(self.standing.generation);
        let begun = self.guest.begin_copy(attempt).and_then(|()| {
            let sent = self.link.send(self.standing.session, job);
            sent.map_err(|_| "the link is behind".to_owned())
        });
        if let Err(why) = begun {
            self.guest.copy = None;
            self.events.push_back(Event::FirstCopied(attempt, Err(why)));
        }
    }

    fn cut_disk(&mut self, attempt: Attempt) {
        let Some(disks) = &self.disks else {
            self.own_epoch += 1;
            let epoch = Epoch(self.own_epoch);
            self.events.push_back(Event::DiskCut(attempt, Ok(epoch)));
            return;
        };
        if !disks.cut(attempt) {
            let why = "the cut before has not been answered".to_owned();
            self.events.push_back(Event::DiskCut(attempt, Err(why)));
        }
    }

    fn collect(&mut self, attempt: Attempt) {
        self.guest.moment.paused_ms = self.timeline.clock().lost_ms;
        let collected = self.guest.collect();
        self.timeline
            .collected(&self.guest.steps, self.guest.dirty_pages);
        let result = collected.map_err(|error| match error {
            Uncollected::GivenUp(why) => why,
            Uncollected::Blind(why) => {
                self.blind(why.clone());
                why
            }
        });
        self.events.push_back(Event::Collected(attempt, result));
    }

    /// No checkpoint can be made of the guest's pages: the next session begins with a copy.
    fn blind(&mut self, why: String) {
        self.guest.tracker = None;
        self.standing.generation = 0;
        self.memory_lost(why);
    }

    /// The session ends, and the next one begins: what was sent in it and not acknowledged is not waited for.
    fn renew(&mut self) {
        if !self.standing.is_up {
            return;
        }
        let hello = self.guest.hello(
            &self.config.guest,
            self.incarnation,
            self.standing.generation,
        );
        // Without room the session is behind; it ends of that, and another begins.
        let _ = self
            .link
            .send(self.standing.session, Job::Renew(Box::new(hello)));
    }

    fn cut_output(&mut self, attempt: Attempt, epoch: Epoch) {
        let begun = Instant::now();
        let result = match &mut self.output {
            None => Ok(()),
            // Never cut, it is never held.
            Some(_) if planted(Plant::EarlyRelease) => Ok(()),
            Some(output) => output.cut(epoch).map(|done| {
                if done.limit_reached {
                    tracing::warn!("netbuf drops frames of the guest at its limit");
                }
            }),
        };
        self.timeline.output_cut(begun);
        let lost = result.as_ref().err().cloned();
        self.events.push_back(Event::OutputCut(attempt, result));
        if let Some(why) = lost {
            self.output_lost(why);
        }
    }

    fn resume(&mut self, attempt: Attempt) {
        let result = self.guest.resume();
        self.timeline.resumed(self.guest.steps.cont);
        let was_disturbed = result.as_ref().is_ok_and(|resumed| resumed.was_disturbed);
        if was_disturbed {
            self.memory_lost("somebody let the guest run within a pause".to_owned());
        }
        self.events
            .push_back(Event::Resumed(attempt, result.map(drop)));
        if was_disturbed && self.standing.is_up {
            let part = Part::Memory;
            let has_base = self.standing.generation != 0;
            self.events.push_back(Event::Back { part, has_base });
        }
    }

    fn named(&mut self, epoch: Epoch) -> Named {
        let lineage = self.lineages.remove(&epoch).unwrap_or(LineageId([0; 16]));
        self.lineages = self.lineages.split_off(&epoch);
        Named { epoch, lineage }
    }

    fn wait_for_disks(&mut self, named: Named) {
        match &self.disks {
            Some(disks) => disks.wait_for(named.epoch, named.lineage),
            None => self.events.push_back(Event::DiskCommitted(named.epoch)),
        }
    }

    fn send(&mut self, epoch: Epoch) {
        let named = self.named(epoch);
        self.standing.sends(epoch);
        self.wait_for_disks(named);
        self.timeline.cut(epoch);
        let Some(load) = self.guest.take(epoch) else {
            return;
        };
        match self
            .link
            .send(self.standing.session, Job::Epoch(named, load))
        {
            Ok(()) => {}
            Err(Job::Epoch(_, load)) => {
                self.guest.give_back(load);
                self.memory_lost("the link is behind".to_owned());
            }
            Err(_) => unreachable!("a job comes back as it was"),
        }
    }

    pub(super) fn memory_lost(&mut self, why: String) {
        let part = Part::Memory;
        self.events.push_back(Event::Lost { part, why });
    }

    fn release(&mut self, epoch: Epoch) {
        if let Some(output) = &mut self.output
            && !planted(Plant::EarlyRelease)
            && let Err(why) = output.release(epoch)
        {
            self.output_lost(why);
            return;
        }
        self.timeline.released(epoch);
    }

    /// What the guest said since its last cut leaves: both sides know of its end.
    fn last_words(&mut self, epoch: Option<Epoch>) {
        let lineage = self.record.as_ref().map(|record| record.lineage);
        let (Some(output), Some(epoch), Some(lineage)) = (&mut self.output, epoch, lineage) else {
            return;
        };
        for left in (0..LAST_WORDS_TRIES).rev() {
            match output.finish(epoch, lineage) {
                Ok(()) => return,
                Err(why) if left == 0 => {
                    tracing::warn!("the guest's last words stay held: {why}");
                }
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    pub(super) fn link_told(&mut self, told: link::Told) {
        match told {
            link::Told::Up { session, has_base } => {
                self.standing.session = session;
                self.standing.is_up = true;
                self.standing.why = "connected".to_owned();
                self.standing.since_unix_ms = blockrep_host::clock::unix_ms();
                self.standing.heard = Some(Instant::now());
                self.say_farewell();
                let has_base = has_base && self.standing.generation != 0;
                let part = Part::Memory;
                self.step(Event::Back { part, has_base });
            }
            link::Told::Down { why } => {
                if std::mem::take(&mut self.standing.is_up) {
                    self.standing.since_unix_ms = blockrep_host::clock::unix_ms();
                }
                self.standing.why.clone_from(&why);
                self.farewell_heard();
                self.slice = None;
                self.guest.copy = None;
                let part = Part::Memory;
                self.step(Event::Lost { part, why });
            }
            link::Told::Sent {
                named,
                load,
                counts,
                took,
            } => {
                let state_bytes = load.state.len() as u64;
                self.standing.sent_bytes += counts.wire_bytes;
                self.timeline.sent(named.epoch, &counts, state_bytes, took);
                self.guest.give_back(load);
            }
            link::Told::Unsent(load) => self.guest.give_back(load),
            link::Told::Acked { session, acked } if session == self.standing.session => {
                self.standing.heard = Some(Instant::now());
                self.acked(acked);
            }
            link::Told::Acked { .. } => {}
        }
    }

    fn acked(&mut self, acked: Acked) {
        match acked {
            Acked::Whole(epoch) => {
                self.timeline.whole(epoch);
                // Until the backup has committed one with memory, its disks may have gone on without it.
                if self.standing.is_member {
                    self.memory_acked(epoch);
                }
            }
            Acked::Committed(epoch) => {
                if self.standing.is_member {
                    self.memory_acked(epoch);
                } else if self.standing.has_sent(epoch) {
                    self.take_in(epoch);
                }
            }
            Acked::Refused { code, text } => {
                tracing::warn!("the standby refuses: {text} ({code:?})");
                self.memory_lost(format!("refused by the standby: {text}"));
                self.step(Event::Tick);
            }
            Acked::Lost(why) => {
                self.memory_lost(why);
                self.step(Event::Tick);
            }
            Acked::Pong(_) | Acked::Quiet => {}
        }
    }

    pub(super) fn memory_acked(&mut self, epoch: Epoch) {
        self.guest.acked(epoch);
        self.step(Event::MemoryAcked(epoch));
    }
}
