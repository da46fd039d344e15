//! Who makes the epochs of a whole guest: pause, cut of the disks, memory of that moment, and what may leave once
//! both are acknowledged. The rules of `checkpointer/src/sequence/mod.rs` and `checkpointer/src/protect/disks.rs`.

use super::store::Image;
use super::{Acked, Frame, Step};
use crate::sim::host::Group;
use crate::sim::oracle::Position;
use crate::sim::plan::MS;
use crate::sim::world::{Event, World, say};
use blkback_proto::ids::Epoch;
use blockrep::group::State;

/// How long the disks leave their epochs to a checkpointer after its last word.
const DRIVEN_NS: u64 = 30 * MS;
/// How long a pause may wait for the guest's requests, and for the cut.
const PAUSE_NS_MAX: u64 = 40 * MS;
/// Checkpoints that may be on their way.
const UNDER_WAY_MAX: usize = 6;
/// Cuts of a checkpointer have tokens from here on.
const TOKENS: u64 = 1 << 32;

#[derive(Default, Debug)]
enum Stage {
    #[default]
    Idle,
    /// All memory is copied while the guest runs.
    Copying { until: u64 },
    /// The guest stands still; its requests are waited for.
    Pausing { since: u64 },
    /// The disks are asked.
    Cutting {
        since: u64,
        token: u64,
        moment: Vec<Position>,
    },
}

#[derive(Debug)]
struct Sent {
    image: Image,
    is_memory_acked: bool,
    is_disk_acked: bool,
}

/// The process.
#[derive(Default, Debug)]
pub struct Checkpointer {
    /// It runs.
    pub up: bool,
    life: u32,
    /// Of the guest that it follows.
    guest_life: u32,
    stage: Stage,
    /// Its copy at the holder; 0 before there is one.
    generation: u64,
    /// Of this copy.
    first: Option<Epoch>,
    /// An epoch of this copy was committed: memory is a member.
    is_member: bool,
    sent: Vec<Sent>,
    next_at: u64,
    serials: u64,
}

impl World {
    pub(super) fn checkpointer_starts(&mut self) {
        if self.memory.checkpointer.up {
            return;
        }
        say!(self, "the checkpointer starts");
        let before = std::mem::take(&mut self.memory.checkpointer);
        let life = before.life + 1;
        self.memory.checkpointer = Checkpointer {
            up: true,
            life,
            serials: before.serials,
            ..Checkpointer::default()
        };
        self.after(0, Event::Memory(Step::Checkpointer { life }));
    }

    /// The process is killed; the guest goes on.
    pub fn checkpointer_dies(&mut self) {
        say!(self, "the checkpointer dies");
        self.memory.checkpointer.up = false;
        self.guest.paused = false;
        self.cut_memory_link(0);
    }

    fn give_up_checkpoint(&mut self) {
        self.memory.checkpointer.stage = Stage::Idle;
        self.guest.paused = false;
    }

    pub(super) fn checkpointer_lost_link(&mut self) {
        // What was sent is not acknowledged any more, and the pages of a pause under way are incomplete.
        self.give_up_checkpoint();
        self.memory.checkpointer.sent.clear();
    }

    /// The holder has this copy, of whoever.
    pub(super) fn checkpointer_linked(&mut self, base: u64) {
        let checkpointer = &mut self.memory.checkpointer;
        if checkpointer.generation == 0 || base != checkpointer.generation {
            self.checkpointer_copies();
        }
    }

    fn checkpointer_copies(&mut self) {
        let generation = self.memory.number();
        let until = self.now + self.rng.u64(MS..10 * MS);
        let checkpointer = &mut self.memory.checkpointer;
        checkpointer.generation = generation;
        (checkpointer.first, checkpointer.is_member) = (None, false);
        checkpointer.sent.clear();
        checkpointer.stage = Stage::Copying { until };
        self.send_memory(0, |link| Step::ToHolder {
            link,
            frame: Frame::Copy(generation),
        });
    }

    /// State and wish for a cut, where a primary runs.
    fn disks_stand(&mut self) -> Option<(State, bool)> {
        let now = self.now;
        match &mut self.hosts[0].group {
            Group::Primary(group) => {
                group.drive(now + DRIVEN_NS);
                Some((group.standing().state, group.is_cut_wished(now)))
            }
            _ => None,
        }
    }

    pub(super) fn checkpointer_acts(&mut self, life: u32) {
        if !self.memory.checkpointer.up || self.memory.checkpointer.life != life {
            return;
        }
        let again = self.rng.u64(MS / 10..MS);
        self.after(again, Event::Memory(Step::Checkpointer { life }));
        if self.oracle.promoted.is_some() || self.guest.lives_on != Some(0) {
            self.give_up_checkpoint();
            return;
        }
        if self.memory.checkpointer.guest_life != self.guest.life {
            // Another guest: nothing of the one before is in its memory.
            self.memory.checkpointer.guest_life = self.guest.life;
            self.memory.checkpointer.generation = 0;
            self.give_up_checkpoint();
            self.cut_memory_link(0);
        }
        if self.memory.link.is_none() {
            let can = self.memory.holder.up && self.now >= self.memory.down_until;
            if can && self.rng.u8(..4) == 0 {
                self.link_memory();
            }
        }
        let stands = self.disks_stand();
        self.disks_acknowledge();
        self.advance_checkpoint(stands);
    }

    fn advance_checkpoint(&mut self, stands: Option<(State, bool)>) {
        let is_there = match stands {
            Some((State::Protected, _)) => true,
            Some((State::Resyncing, is_wished)) => is_wished,
            _ => false,
        };
        let is_linked = self.memory.link.is_some();
        let (now, checkpointer) = (self.now, &mut self.memory.checkpointer);
        match checkpointer.stage {
            Stage::Copying { until } if now >= until => checkpointer.stage = Stage::Idle,
            Stage::Idle if is_there && is_linked => {
                let is_wished = stands.is_some_and(|(_, is_wished)| is_wished);
                let is_compared = matches!(stands, Some((State::Resyncing, _)));
                let has_room = checkpointer.sent.len() < UNDER_WAY_MAX || is_compared;
                if has_room && (now >= checkpointer.next_at || is_wished) {
                    let pause = self.plan.checkpoint_ns.unwrap_or(5 * MS);
                    checkpointer.next_at = now + self.rng.u64(pause / 2..pause * 2);
                    checkpointer.stage = Stage::Pausing { since: now };
                    self.guest.paused = true;
                }
            }
            Stage::Pausing { since } | Stage::Cutting { since, .. }
                if now > since + PAUSE_NS_MAX =>
            {
                say!(self, "a checkpoint is given up");
                self.give_up_checkpoint();
            }
            Stage::Pausing { since } => {
                let open = self.guest.outstanding.values();
                if !matches!(stands, Some((State::Protected | State::Resyncing, _))) {
                    self.give_up_checkpoint();
                } else if open.filter(|o| o.host == 0).count() == 0 {
                    let token = TOKENS + self.memory.number();
                    let moment = self.moment();
                    self.memory.checkpointer.stage = Stage::Cutting {
                        since,
                        token,
                        moment,
                    };
                    say!(self, "the guest stands still: {:?}", self.moment());
                    self.cut(token, true);
                }
            }
            _ => {}
        }
    }

    /// The disks' cut is answered.
    pub fn checkpoint_is_cut(&mut self, token: u64, epoch: Epoch) {
        let checkpointer = &mut self.memory.checkpointer;
        let moment = match &checkpointer.stage {
            Stage::Cutting {
                token: asked,
                moment,
                ..
            } if *asked == token => moment.clone(),
            _ => return,
        };
        checkpointer.serials += 1;
        let serial = checkpointer.serials;
        self.give_up_checkpoint();
        self.check_moment(epoch, &moment);
        let Some(lineage) = self.tip(0) else {
            return;
        };
        let checkpointer = &mut self.memory.checkpointer;
        let image = Image {
            epoch,
            lineage,
            generation: checkpointer.generation,
            serial,
            moment,
        };
        if self.memory.link.is_none() {
            return;
        }
        say!(self, "checkpoint {serial} is {epoch} of {lineage}");
        checkpointer.first.get_or_insert(epoch);
        checkpointer.sent.push(Sent {
            image: image.clone(),
            is_memory_acked: false,
            is_disk_acked: false,
        });
        self.send_memory(0, |link| Step::ToHolder {
            link,
            frame: Frame::Epoch(image),
        });
    }

    pub(super) fn checkpointer_hears(&mut self, acked: Acked) {
        let checkpointer = &mut self.memory.checkpointer;
        let (epoch, counts) = match acked {
            // Until the backup has committed one with memory, its disks may have gone on without it.
            Acked::Whole(epoch) => (epoch, checkpointer.is_member),
            // One of the copy before is none of this.
            Acked::Committed(epoch) => {
                let is_mine = checkpointer.first.is_some_and(|first| epoch >= first);
                checkpointer.is_member |= is_mine;
                (epoch, is_mine)
            }
        };
        if counts {
            for sent in &mut checkpointer.sent {
                sent.is_memory_acked |= sent.image.epoch <= epoch;
            }
        }
        self.release();
    }

    /// What the disks of the primary know to be committed.
    fn disks_acknowledge(&mut self) {
        let Group::Primary(group) = &self.hosts[0].group else {
            return;
        };
        let (committed, tip) = (group.epochs().1, self.tip(0));
        for sent in &mut self.memory.checkpointer.sent {
            let image = &sent.image;
            sent.is_disk_acked |= Some(image.lineage) == tip && image.epoch <= committed;
        }
        self.release();
    }

    fn release(&mut self) {
        let sent = &mut self.memory.checkpointer.sent;
        let both = |sent: &Sent| sent.is_memory_acked && sent.is_disk_acked;
        let Some(at) = sent.iter().rposition(both) else {
            return;
        };
        let image = sent.drain(..=at).next_back().expect("just seen").image;
        say!(self, "output up to checkpoint {} leaves", image.serial);
        self.stats.checkpoints += 1;
        self.promise_checkpoint(&image);
    }
}
