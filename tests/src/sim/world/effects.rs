//! Engines and groups are called, and what they want is carried out: messages between volumes and
//! group take time, in order; I/O goes to the disks, records to the wires.

use super::event::Event;
use super::{World, say};
use crate::sim::host::{Engine, Group, Owner};
use crate::sim::plan::MS;
use blkback_proto::ids::LineageId;
use blockrep::engine::{Effect, Nanos, ToGroup, ToVolume};
use blockrep::group::{GroupEffect, Now};
use blockrep::io::HeapMemory;

/// Effects of an engine in the simulator.
pub type Fx = Vec<Effect<HeapMemory>>;

/// Nanoseconds since 1970 when a run begins.
const UNIX_NS: u64 = 1_750_000_000_000_000_000;

impl World {
    /// Calls an engine and carries out what it wants.
    pub fn drive(
        &mut self,
        host: usize,
        volume: usize,
        call: impl FnOnce(&mut Engine, Nanos, &mut HeapMemory, &mut Fx),
    ) {
        let mut fx = Vec::new();
        let now = self.now;
        let slot = &mut self.hosts[host].slots[volume];
        call(&mut slot.engine, now, &mut slot.memory, &mut fx);
        for effect in fx {
            self.carry_out(host, volume, effect);
        }
        self.look_after(host, volume);
    }

    /// What a driver does after every call: the next tick, and the end of a drained promotion.
    fn look_after(&mut self, host: usize, volume: usize) {
        let now = self.now;
        let boot = self.hosts[host].boot;
        let slot = &mut self.hosts[host].slots[volume];
        let wanted = match &slot.engine {
            Engine::Primary(engine) => engine.next_tick(),
            Engine::Backup(engine) => engine.next_tick(),
            Engine::Off => return,
        };
        // At least now and then: memory may have become free.
        let at = wanted.unwrap_or(u64::MAX).clamp(now + 1000, now + 20 * MS);
        if at < slot.tick_at {
            slot.tick_at = at;
            self.at(at, Event::Tick { host, boot, volume });
        }
        self.convert_drained(host, volume);
    }

    fn carry_out(&mut self, host: usize, volume: usize, effect: Effect<HeapMemory>) {
        match effect {
            Effect::Io(id, op) => {
                self.oracle_sees_io(host, volume, &op);
                self.submit(host, volume, Owner::Volume(id), op);
            }
            Effect::Reply(reply) => self.guest_reply(host, volume, reply),
            Effect::Send(outgoing) => self.send(host, volume, outgoing),
            Effect::CloseLink => self.close(host, volume),
            Effect::Group(message) => {
                let delay = self.rng.u64(200..30_000);
                let boot = self.hosts[host].boot;
                let slot = &mut self.hosts[host].slots[volume];
                slot.to_group_at = slot.to_group_at.max(self.now + delay);
                let at = slot.to_group_at;
                self.at(
                    at,
                    Event::ToGroup {
                        host,
                        boot,
                        volume,
                        message,
                    },
                );
            }
        }
    }

    pub(super) fn tell_volume(&mut self, host: usize, volume: usize, message: ToVolume) {
        say!(self, "host {host} volume {volume} <- {message:?}");
        self.oracle_sees_order(host, volume, &message);
        self.drive(host, volume, |engine, now, mem, fx| match engine {
            Engine::Primary(engine) => engine.group(now, mem, message, fx),
            Engine::Backup(engine) => engine.group(now, mem, message, fx),
            Engine::Off => {}
        });
    }

    pub(super) fn tell_group(&mut self, host: usize, volume: usize, message: ToGroup) {
        say!(self, "host {host} group <- {volume} {message:?}");
        self.oracle_sees_report(host, &message);
        let drained = matches!(message, ToGroup::Drained);
        self.drive_group(host, |group, at, fx| match group {
            Group::Primary(group) => group.volume(at, volume, message, fx),
            Group::Backup(group) => group.volume(at, volume, message, fx),
            Group::Off => {}
        });
        if drained {
            self.finish_conversion(host);
        }
    }

    /// Calls a group and carries out what it wants.
    pub fn drive_group(
        &mut self,
        host: usize,
        call: impl FnOnce(&mut Group, &mut Now<'_>, &mut Vec<GroupEffect>),
    ) {
        let mut fx = Vec::new();
        let rng = &mut self.rng;
        let mut fresh = || LineageId(std::array::from_fn(|_| rng.u8(..)));
        let mut at = Now {
            ns: self.now,
            unix_ns: UNIX_NS + self.now,
            fresh: &mut fresh,
        };
        call(&mut self.hosts[host].group, &mut at, &mut fx);
        for effect in fx {
            self.carry_out_group(host, effect);
        }
        let now = self.now;
        if let Group::Primary(group) = &self.hosts[host].group
            && let Some(at) = group.next_tick()
            && at < self.hosts[host].group_tick_at
        {
            let at = at.max(now + 1000);
            self.hosts[host].group_tick_at = at;
            let boot = self.hosts[host].boot;
            self.at(at, Event::GroupTick { host, boot });
        }
        self.oracle_sees_group(host);
    }

    fn carry_out_group(&mut self, host: usize, effect: GroupEffect) {
        match effect {
            GroupEffect::ToVolume(volume, message) => {
                let delay = self.rng.u64(200..30_000);
                let boot = self.hosts[host].boot;
                let slot = &mut self.hosts[host].slots[volume];
                slot.from_group_at = slot.from_group_at.max(self.now + delay);
                let at = slot.from_group_at;
                self.at(
                    at,
                    Event::ToVolume {
                        host,
                        boot,
                        volume,
                        message,
                    },
                );
            }
            GroupEffect::WriteMeta(meta) => {
                self.hosts[host].group_writes.push_back(*meta);
                self.write_group(host);
            }
            GroupEffect::Changed { old, new } => {
                let (old, state, reason) = (old.word(), new.state.word(), &new.reason);
                say!(self, "host {host} {old} -> {state}: {reason}");
                self.oracle_sees_change(host, new.state);
            }
            GroupEffect::CutReply { token, epoch, .. } => {
                self.cut_replies.push((token, epoch));
                self.checkpoint_is_cut(token, epoch);
            }
            GroupEffect::Latency(_) => self.stats.epochs += 1,
            GroupEffect::MemoryReply { token, result } => self.memory_reply(token, result),
            GroupEffect::PromoteReply { result, .. } => {
                say!(self, "host {host} promotion: {result:?}");
                self.promoted(host, result);
            }
        }
    }
}
