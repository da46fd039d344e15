//! The story of a run: chaos, perhaps a failover, and at last peace, in which everything has to
//! come to an end.

use super::host::{Engine, Group, Host, Slot};
use super::memory::Wish;
use super::plan::{Failover, MS, Plan};
use super::world::{Event, Stats, World, say};
use blkback_proto::record::{HEADER_BYTES, Header, RecordKind, placement};
use blkback_proto::segment::SEGMENT_HEADER_BYTES;
use blockrep::group::{PromoteError, State};
use blockrep::io::Target;
use blockrep::journal::start::read_volume;

/// How long peace may take, in nanoseconds: silences of a link are seconds.
const PEACE_NS: u64 = 60_000 * MS;

impl World {
    /// The whole story of a plan; an error is what must not happen.
    ///
    /// # Errors
    /// The first violation.
    pub fn tell_story(mut self) -> (Stats, Result<(), String>) {
        self.start(1);
        self.start(0);
        if self.plan.checkpoint_ns.is_some() {
            self.start_memory();
        }
        for index in 0..self.plan.faults.len() {
            let at = self.plan.faults[index].0;
            self.at(at, Event::Fault(index));
        }
        let until = self.plan.chaos_ns;
        self.run(until, |_| false);
        if let Some(failover) = self.plan.failover {
            self.fail_over(failover);
        }
        self.peace();
        let result = self.take_violation().map_or(Ok(()), Err);
        (self.stats, result)
    }

    fn fail_over(&mut self, failover: Failover) {
        self.crash_after = None;
        self.wait_for_checkpoint();
        if !failover.force && self.hosts[0].up {
            self.crash(0, failover.power, None);
        }
        if let Some(power) = failover.both {
            if self.hosts[1].up {
                self.crash(1, power, None);
            }
            if failover.rot && self.oracle.promoted.is_none() {
                self.rot();
            }
        }
        if !self.hosts[1].up {
            self.start(1);
        }
        if self.oracle.promoted.is_some() {
            // In the chaos already.
            self.serve_promoted(failover);
            return;
        }
        if !self.hosts[1].up {
            // Refused: only the primary is left.
            self.after(0, Event::Start { host: 0 });
            return;
        }
        self.promote(failover.force, false);
        let mut until = self.now + 10_000 * MS;
        self.run(until, |w| w.promote_reply.is_some());
        if matches!(self.promote_reply, Some(Err(PromoteError::Memory(_)))) {
            self.check_memory_refused();
            self.memory.wish = Some(Wish::DiskOnly);
            self.promote(failover.force, false);
            until = self.now + 10_000 * MS;
            self.run(until, |w| w.promote_reply.is_some());
        }
        if matches!(self.promote_reply, Some(Err(PromoteError::Suspect { .. }))) {
            self.memory.wish = Some(self.memory.asked);
            self.promote(failover.force, true);
            until = self.now + 10_000 * MS;
            self.run(until, |w| w.promote_reply.is_some());
        }
        if matches!(self.promote_reply, Some(Err(PromoteError::Alive { .. }))) {
            // The session of a dead primary is still thought alive: the operator knows better.
            self.memory.wish = Some(self.memory.asked);
            self.promote(true, true);
            until = self.now + 10_000 * MS;
            self.run(until, |w| w.promote_reply.is_some());
        }
        if self.promote_reply.is_none() && self.hosts[1].up && !self.backup_failed() {
            self.violated("a promotion was never answered".to_owned());
        }
        if self.oracle.promoted.is_none() {
            self.after(0, Event::Start { host: 0 });
            return;
        }
        self.serve_promoted(failover);
    }

    /// A store of the backup failed for good.
    fn backup_failed(&self) -> bool {
        self.store_failed(1)
    }

    /// A store of the host failed for good, or would.
    fn store_failed(&self, host: usize) -> bool {
        let failed = |slot: &Slot| match &slot.engine {
            Engine::Primary(engine) => engine.failed().is_some(),
            Engine::Backup(engine) => engine.failed().is_some(),
            Engine::Off => false,
        };
        let group_failed = match &self.hosts[host].group {
            Group::Primary(group) => group.standing().state == State::Failed,
            Group::Backup(group) => group.standing().state == State::Failed,
            Group::Off => false,
        };
        let host = &self.hosts[host];
        group_failed || !host.broken.is_empty() || host.slots.iter().any(failed)
    }

    fn serve_promoted(&mut self, failover: Failover) {
        let first = self.promote_reply.take();
        let mut last = 0;
        for (at, power) in failover.crashes.into_iter().flatten() {
            let until = self.now + at.saturating_sub(last);
            last = at;
            self.run(until, |_| false);
            if !self.hosts[1].up {
                continue;
            }
            self.crash(1, power, None);
            if failover.own_rot {
                self.rot();
            }
            self.start(1);
        }
        // The old primary comes back and must not be taken in.
        self.start_again(0);
        let until = self.now + failover.serve_ns.saturating_sub(last);
        self.run(until, |_| false);
        if self.hosts[1].up && matches!(self.hosts[1].group, Group::Backup(_)) {
            self.promote(true, false);
            self.run(self.now + 1000 * MS, |w| w.promote_reply.is_some());
            let (Some(Ok(a)), Some(Ok(b))) = (first, self.promote_reply.clone()) else {
                return;
            };
            if (a.epoch, a.lineage) != (b.epoch, b.lineage) {
                self.violated("a second promotion came to something else".to_owned());
            }
        }
    }

    fn start_again(&mut self, host: usize) {
        if !self.hosts[host].up {
            self.start(host);
        }
    }

    /// No more faults: everything must be answered, and the copies must become equal.
    fn peace(&mut self) {
        if self.oracle.promoted.is_some() {
            say!(self, "peace after a promotion");
        } else {
            say!(self, "peace");
        }
        self.crash_after = None;
        self.partition_until = 0;
        self.memory.down_until = 0;
        self.run(self.now + 300 * MS, |_| false);
        self.guest.silent = true;
        for host in 0..2 {
            self.hosts[host].slow = 1;
            if self.hosts[host].up && self.store_failed(host) {
                self.crash(host, false, None);
            }
            self.start_again(host);
        }
        self.memory_in_peace();
        if self.guest.lives_on.is_none() || self.hosts[1].refused {
            return;
        }
        self.flush_all();
        let until = self.now + PEACE_NS;
        if !self.run(until, |w| w.guest.outstanding.is_empty()) {
            let open: Vec<_> = self.guest.outstanding.values().take(3).collect();
            let text = format!(
                "{} requests are never answered: {open:?}",
                self.guest.outstanding.len()
            );
            self.violated(text);
            return;
        }
        if self.oracle.promoted.is_some() {
            self.end_promoted();
        } else if self.hosts[1].up {
            self.end_equal();
        }
    }

    fn end_promoted(&mut self) {
        let all_plain = |h: &Host| {
            h.slots
                .iter()
                .all(|s| matches!(s.engine, Engine::Primary(_)))
        };
        let until = self.now + PEACE_NS;
        if !self.run(until, |w| all_plain(&w.hosts[1])) {
            self.violated("a promoted side never drains its journal".to_owned());
            return;
        }
        for volume in 0..self.plan.volumes {
            self.check_final(1, volume);
        }
    }

    fn end_equal(&mut self) {
        let until = self.now + PEACE_NS;
        let protected = |w: &World| match &w.hosts[0].group {
            Group::Primary(group) => group.standing().state == State::Protected,
            _ => false,
        };
        if !self.run(until, protected) {
            let state = match &self.hosts[0].group {
                Group::Primary(group) => format!("{:?}", group.standing()),
                _ => "gone".to_owned(),
            };
            self.violated(format!("the primary is never protected again: {state}"));
            return;
        }
        self.cut_replies.clear();
        self.cut_epoch(99);
        self.run(self.now + 1000 * MS, |w| !w.cut_replies.is_empty());
        let Some((_, epoch)) = self.cut_replies.first().copied() else {
            return self.violated("a cut is never answered".to_owned());
        };
        let committed = |w: &World| match &w.hosts[1].group {
            Group::Backup(group) => group.committed() >= epoch,
            _ => false,
        };
        if !self.run(self.now + PEACE_NS, committed) {
            return self.violated(format!("epoch {epoch} is never committed"));
        }
        if !self.checkpoints_go_on() {
            return;
        }
        // Everything stamped is in it: nobody writes any more.
        let all: Vec<usize> = self.oracle.volumes.iter().map(|v| v.position()).collect();
        self.oracle.promise = all;
        self.probe();
        for volume in 0..self.plan.volumes {
            self.check_final(0, volume);
        }
    }

    fn check_final(&mut self, host: usize, volume: usize) {
        let history = &self.oracle.volumes[volume];
        let expected = history.at(history.position());
        let mut bytes = vec![0; usize::try_from(self.plan.size_bytes).expect("small")];
        self.hosts[host].disks[volume].read(Target::Image, 0, &mut bytes);
        let found = super::model::ids(&bytes, 0);
        if let Some(sector) = found.zip(&expected).position(|(a, b)| a != *b) {
            self.violated(format!(
                "host {host} volume {volume} sector {sector} is wrong at the end"
            ));
        }
    }

    /// Flips a bit of a record in the backup's journal, where recovery can be expected to see it.
    pub fn rot(&mut self) {
        let volume = self.rng.usize(..self.plan.volumes);
        // A second bit flips only after what the start since the first one found was written down: until then
        // it may take away what that start has counted, in any volume.
        let written = |volume: usize| {
            let meta = read_volume(&self.hosts[1].disks[volume]).ok().flatten();
            meta.map(|meta| meta.generation)
        };
        let generations: Vec<_> = (0..self.plan.volumes).map(written).collect();
        if self.rotted.get(volume) == Some(&generations[volume]) {
            return;
        }
        self.rotted = generations;
        let places = self.records(volume);
        if places.is_empty() {
            return;
        }
        let index = self.rng.usize(..places.len());
        self.rot_in(volume, &places, index);
    }

    /// Flips a bit of the last record in the backup's journal.
    pub fn rot_at_the_end(&mut self, volume: usize) {
        let places = self.records(volume);
        self.rot_in(volume, &places, places.len() - 1);
    }

    fn rot_in(&mut self, volume: usize, places: &[(u64, u64, bool)], index: usize) {
        let (last_seal, _, _) = places
            .iter()
            .rev()
            .find(|r| r.2)
            .copied()
            .unwrap_or((0, 0, false));
        let (at, length, seal) = places[index];
        let file = u32::try_from(at >> 40).expect("small");
        let mut inside = self.rng.u64(..length);
        if seal && at == last_seal && inside < HEADER_BYTES as u64 {
            // A destroyed seal that nothing came after looks like a torn one: hit its writes.
            inside = 64 + self.rng.u64(..100);
        }
        say!(
            self,
            "rot in the record {at:x} of volume {volume} at {inside}"
        );
        let offset = (at & 0xff_ffff_ffff) + inside;
        let bit = self.rng.u8(..8);
        self.hosts[1].disks[volume].flip(Target::Segment(file), offset, bit);
        self.oracle.rot = true;
    }

    /// Records of the chain at the tail of the backup's journal: file and offset, length, whether
    /// it is a seal.
    fn records(&self, volume: usize) -> Vec<(u64, u64, bool)> {
        let disk = &self.hosts[1].disks[volume];
        let Ok(Some(meta)) = read_volume(disk) else {
            return Vec::new();
        };
        let geometry = self.plan.geometry;
        let mut found = Vec::new();
        for serial in meta.tail.serial..meta.tail.serial + u64::from(geometry.segment_count) {
            let file = geometry.file_of(serial);
            let mut offset = SEGMENT_HEADER_BYTES as u64;
            while offset + HEADER_BYTES as u64 <= geometry.segment_bytes {
                let mut bytes = [0; HEADER_BYTES];
                disk.read(Target::Segment(file), offset, &mut bytes);
                let Ok((header, _)) = Header::decode(&bytes) else {
                    break;
                };
                let Ok(place) = placement(&bytes) else { break };
                if place.serial != serial {
                    break;
                }
                if place >= meta.tail {
                    let seal = header.kind == RecordKind::Seal;
                    found.push(((u64::from(file) << 40) | offset, header.total_bytes(), seal));
                }
                offset += header.total_bytes();
            }
        }
        found
    }
}

/// One run.
pub fn run(seed: u64, trace: bool) -> (Stats, Result<(), String>) {
    let plan = Plan::of(seed);
    if trace {
        eprintln!("{plan:#?}");
    }
    World::new(plan, trace).tell_story()
}
