//! What goes wrong by plan, hosts that die, and what an operator asks for.

use super::event::Event;
use super::storage::{apply_op, part_of};
use super::{World, say};
use crate::sim::host::{Breakage, Engine, Group, InFlight, Owner, Slot};
use crate::sim::memory::{Step, Wish};
use crate::sim::plan::Fault;
use blockrep::group::{Alive, PromoteWish};
use blockrep::io::IoId;

impl World {
    /// A fault of the plan happens.
    pub(super) fn fault(&mut self, fault: Fault) {
        say!(self, "fault {fault:?}");
        match fault {
            Fault::Crash {
                host,
                power,
                back_ns,
                after_ops,
            } => {
                self.crash_after = Some((host, after_ops, power, Some(back_ns)));
            }
            Fault::Cut { volume, silent } => {
                if let Some(conn) = self.hosts[0].slots.get(volume).and_then(|s| s.conn) {
                    self.sever(conn, silent);
                }
            }
            Fault::Partition { ns } => {
                self.partition_until = self.now + ns;
                self.cut_memory_link(ns);
                for conn in 0..self.conns.len() {
                    self.sever(conn, false);
                }
            }
            Fault::Break {
                host,
                volume,
                file,
                sync,
                full,
            } => {
                let errno = if full && !sync {
                    libc::ENOSPC
                } else {
                    libc::EIO
                };
                let broken = Breakage {
                    volume,
                    file,
                    sync,
                    errno,
                };
                self.hosts[host].broken.push(broken);
            }
            Fault::Slow { host, factor, ns } => {
                self.hosts[host].slow = factor;
                self.after(ns, Event::Fast { host });
            }
            Fault::Promote => self.promote(false, false),
            Fault::Probe => self.probe(),
            Fault::CutEpoch => self.cut_epoch(0),
            Fault::HolderDies { back_ns } => {
                self.holder_dies();
                self.after(back_ns, Event::Memory(Step::HolderStarts));
            }
            Fault::CheckpointerDies { back_ns } => {
                self.checkpointer_dies();
                self.after(back_ns, Event::Memory(Step::CheckpointerStarts));
            }
            Fault::MemoryLink { down_ns } => self.cut_memory_link(down_ns),
            Fault::Guest(trouble) => self.trouble(trouble),
        }
    }

    /// The operator cuts an epoch on the primary.
    pub fn cut_epoch(&mut self, token: u64) {
        self.cut(token, false);
    }

    /// Somebody cuts an epoch on the primary.
    pub fn cut(&mut self, token: u64, leaves_seal: bool) {
        if self.hosts[0].up {
            self.drive_group(0, |group, at, fx| {
                if let Group::Primary(group) = group {
                    group.cut(at, token, leaves_seal, fx);
                }
            });
        }
    }

    /// The operator promotes the backup.
    pub fn promote(&mut self, force: bool, accept_suspect: bool) {
        self.promote_reply = None;
        if !self.hosts[1].up || !matches!(self.hosts[1].group, Group::Backup(_)) {
            return;
        }
        let heard = self.hosts[1].slots.iter().any(|s| match &s.engine {
            Engine::Backup(engine) => engine.has_session(),
            _ => false,
        });
        let alive = heard.then(Alive::default);
        let asked = self.choose_wish();
        self.oracle.accepted_suspect |= accept_suspect;
        self.oracle.is_promoting = true;
        say!(
            self,
            "the operator promotes, force {force}, accept suspect {accept_suspect}"
        );
        self.drive_group(1, |group, at, fx| {
            if let Group::Backup(group) = group {
                let wish = PromoteWish {
                    force,
                    accept_suspect,
                    alive,
                    with_memory: asked == Wish::WithMemory,
                    disk_only: asked == Wish::DiskOnly,
                };
                group.promote(at, 1, wish, fx);
            }
        });
    }

    /// A host dies: operations on their way are carried out in part, or not.
    pub fn crash(&mut self, host: usize, power: bool, back_ns: Option<u64>) {
        say!(
            self,
            "host {host} {}",
            if power { "loses power" } else { "is killed" }
        );
        self.stats.crashes += 1;
        let slots = std::mem::take(&mut self.hosts[host].slots);
        for (volume, slot) in slots.into_iter().enumerate() {
            if let Some(conn) = slot.conn {
                self.conn_died(conn, host, power);
            }
            let disk = &mut self.hosts[host].disks[volume];
            for flying in slot.ops.into_values() {
                match self.rng.u8(..3) {
                    0 => {}
                    1 if flying.error.is_none() => {
                        apply_op(disk, flying.op, flying.capture);
                    }
                    _ => part_of(disk, &flying.op, &mut self.rng),
                }
            }
        }
        if power {
            for disk in &mut self.hosts[host].disks {
                disk.power_cut(&mut self.rng);
            }
        }
        let dead = &mut self.hosts[host];
        dead.up = false;
        dead.group = Group::Off;
        dead.group_writes.clear();
        dead.group_writing = None;
        dead.group_tick_at = u64::MAX;
        dead.broken.clear();
        self.oracle_sees_crash(host, power);
        self.guest_dies(host);
        self.memory_sees_crash(host, power);
        if let Some(ns) = back_ns {
            self.after(ns, Event::Start { host });
        }
    }

    /// Slots of a host that starts.
    #[must_use]
    pub fn fresh_slots(&self, host: usize) -> Vec<Slot> {
        (0..self.plan.volumes)
            .map(|_| Slot::new(self.plan.memory_bytes[host]))
            .collect()
    }

    /// An id for an operation that no engine waits for does not exist; engines number their own.
    #[must_use]
    pub fn engine_ops(&self, host: usize, volume: usize) -> usize {
        let volume_op = |o: &&InFlight| matches!(o.owner, Owner::Volume(IoId(_)));
        self.hosts[host].slots[volume]
            .ops
            .values()
            .filter(volume_op)
            .count()
    }
}
