//! Starting a host: what a daemon does before anything is served.

use super::guest::Ask;
use super::host::{Engine, Group, Host, identity};
use super::oracle::Found;
use super::plan::MS;
use super::world::{Event, World, say};
use blkback_proto::ids::{Epoch, LineageId};
use blkback_proto::meta::{GroupMeta, Role, SLOT_BYTES, VolumeMeta, slot_offset};
use blockrep::config::LossPolicy;
use blockrep::engine::ToVolume;
use blockrep::engine::backup::{BackupSettings, BackupVolume};
use blockrep::engine::primary::{PrimarySettings, PrimaryVolume};
use blockrep::group::backup::{BackupGroup, MemberFacts};
use blockrep::group::primary::{GroupSettings, PrimaryGroup};
use blockrep::io::Target;
use blockrep::journal::start::{VolumeStart, begin_primary, blank_group, read_group};

fn put_volume(host: &mut Host, volume: usize, meta: &VolumeMeta) {
    let mut bytes = [0; SLOT_BYTES];
    meta.encode(&mut bytes);
    host.disks[volume].write(Target::VolumeMeta, slot_offset(meta.generation), &bytes);
    host.disks[volume].sync_all();
}

impl World {
    /// A host is switched on; its daemon starts.
    pub fn start(&mut self, host: usize) {
        if self.hosts[host].refused {
            return;
        }
        if !blockrep::mutant!("start-without-sync") {
            self.hosts[host]
                .disks
                .iter_mut()
                .for_each(super::disk::Disk::sync_all);
        }
        self.hosts[host].boot += 1;
        self.hosts[host].slots = self.fresh_slots(host);
        say!(self, "host {host} starts");
        self.memory_sees_start(host);
        if host == 0 {
            self.start_primary()
        } else {
            self.start_backup()
        }
    }

    fn fresh_lineage(&mut self) -> LineageId {
        LineageId(std::array::from_fn(|_| self.rng.u8(..)))
    }

    fn primary_volume(
        &mut self,
        host: usize,
        volume: usize,
        lineage: Vec<(LineageId, Epoch)>,
    ) -> PrimaryVolume<blockrep::io::HeapMemory> {
        let settings = PrimarySettings {
            ack: self.plan.ack,
            reserve_bytes: self.plan.reserve_bytes,
            assume_identical: self.plan.identical
                && (lineage.len() == 1 || blockrep::mutant!("vouched-at-every-start")),
            pressure_ns_max: self.plan.pressure_ns,
        };
        let epoch = lineage.last().expect("a primary has a history").1;
        let identity = identity(volume, self.plan.volumes, self.plan.size_bytes);
        let memory = &mut self.hosts[host].slots[volume].memory;
        PrimaryVolume::new(
            memory,
            identity,
            settings,
            "guest".to_owned(),
            lineage,
            epoch,
        )
    }

    fn group_settings(&self, promoted: bool) -> GroupSettings {
        let loss = if promoted {
            LossPolicy::Degrade
        } else {
            self.plan.loss
        };
        GroupSettings {
            epoch_ns: self.plan.epoch_ns,
            loss,
            volume_names: Vec::new(),
        }
    }

    fn start_primary(&mut self) {
        if self.oracle.promoted.is_none() && self.hosts[0].boot > 1 {
            for volume in 0..self.plan.volumes {
                self.check_plain(0, volume);
            }
        }
        let meta = match read_group(&self.hosts[0].disks[0]) {
            Ok(Some(meta)) => meta,
            Ok(None) => {
                let count = u16::try_from(self.plan.volumes).expect("two at most");
                let mut blank = blank_group(count, Role::Primary);
                blank.group = identity(0, 1, 0).group;
                "guest".clone_into(&mut blank.name);
                self.hosts[0].put_group(&blank);
                blank
            }
            Err(refusal) => {
                self.violated(format!("the primary refuses to start: {refusal}"));
                return;
            }
        };
        let meta = begin_primary(meta, self.fresh_lineage(), self.now / 1_000_000_000);
        self.hosts[0].put_group(&meta);
        let lineage: Vec<_> = meta.lineage.iter().map(|e| (e.id, e.first_epoch)).collect();
        for volume in 0..self.plan.volumes {
            let engine = self.primary_volume(0, volume, lineage.clone());
            self.hosts[0].slots[volume].engine = Engine::Primary(Box::new(engine));
        }
        let group = PrimaryGroup::new(meta, self.group_settings(false), 0, "started");
        self.hosts[0].group = Group::Primary(group);
        self.hosts[0].up = true;
        self.drive_group(0, |group, _, fx| {
            if let Group::Primary(group) = group {
                group.start(fx);
            }
        });
        let boot = self.hosts[0].boot;
        for volume in 0..self.plan.volumes {
            self.after(
                MS,
                Event::Connect {
                    host: 0,
                    boot,
                    volume,
                },
            );
        }
        if self.oracle.promoted.is_none() {
            self.guest_starts(0);
        }
    }

    fn start_backup(&mut self) {
        let count = u16::try_from(self.plan.volumes).expect("two at most");
        if matches!(read_group(&self.hosts[1].disks[0]), Ok(None)) {
            self.hosts[1].put_group(&blank_group(count, Role::Backup));
        }
        let disks = self.hosts[1].disks.clone();
        let recovered = self.oracle.recover(&disks);
        self.note_rows(&recovered);
        let promoted_there = matches!(&recovered, Ok((Some(g), _)) if g.role == Role::Primary);
        let mut shows = None;
        if self.oracle.promoted.is_none() {
            match self.oracle.judge(&disks, &recovered) {
                Err(text) => return self.violated(format!("the backup starts: {text}")),
                Ok(Found::Epoch(epoch, at)) if promoted_there => {
                    // The promotion was decided and nobody was told.
                    say!(self, "the backup was promoted at epoch {epoch}: {at:?}");
                    self.stats.promotions += 1;
                    self.take_over(epoch);
                }
                Ok(Found::Epoch(epoch, at)) => shows = Some((epoch, at)),
                Ok(found) => say!(self, "the backup is {found:?}"),
            }
        }
        let (group, starts) = match recovered {
            Ok((group, starts)) => (group.expect("written above"), starts),
            Err(refusal) => {
                say!(self, "the backup refuses to start: {refusal}");
                if !self.oracle.rot {
                    self.violated(format!("an undamaged store is refused: {refusal}"));
                }
                self.hosts[1].refused = true;
                return;
            }
        };
        if promoted_there && self.oracle.promoted.is_some() {
            self.check_promoted(&disks, &starts);
        }
        for (volume, start) in starts.iter().enumerate() {
            if let Some(meta) = &start.format {
                put_volume(&mut self.hosts[1], volume, meta);
            }
        }
        self.oracle.is_promoting = false;
        self.run_backup(group, starts, promoted_there);
        if let Some((epoch, at)) = shows {
            for (slot, at) in self.hosts[1].slots.iter_mut().zip(at) {
                slot.started_shows = Some(at);
                slot.started_at = epoch;
            }
        }
    }

    fn run_backup(&mut self, meta: GroupMeta, starts: Vec<VolumeStart>, promoted: bool) {
        let facts: Vec<MemberFacts> = starts.iter().map(|s| s.facts).collect();
        let from = facts.iter().map(|f| f.consistent_from.max(f.committed));
        let sealed = facts.iter().map(|f| f.sealed);
        self.memory.disks_can_be = (
            from.max().unwrap_or_default().max(Epoch(1)),
            sealed.min().unwrap_or_default(),
        );
        for (volume, start) in starts.into_iter().enumerate() {
            let settings = BackupSettings {
                name: meta.name.clone(),
                geometry: self.plan.geometry,
                extents_max: self.plan.extents_max,
                apply_rate: self.plan.apply_rate,
                window_bytes: self.plan.memory_bytes[1] as u64 / 8,
                switch_extents: self.plan.switch_extents,
            };
            let slot = &mut self.hosts[1].slots[volume];
            let mut engine = BackupVolume::new(&mut slot.memory, settings, start.recovered);
            if promoted {
                engine.resume_serving(start.resume.expect("a promoted volume has a history"));
            }
            slot.engine = Engine::Backup(Box::new(engine));
        }
        self.hosts[1].group = Group::Backup(BackupGroup::new(meta, &facts, 0));
        self.hosts[1].up = true;
        if promoted {
            for volume in 0..self.plan.volumes {
                self.convert_drained(1, volume);
            }
            self.guest_starts(1);
        } else {
            self.drive_group(1, |group, _, fx| {
                if let Group::Backup(group) = group {
                    group.start(fx);
                }
            });
        }
        for volume in 0..self.plan.volumes {
            self.drive(1, volume, |engine, now, mem, fx| {
                if let Engine::Backup(engine) = engine {
                    engine.tick(now, mem, fx);
                }
            });
        }
    }

    /// A promoted volume whose journal is drained goes on as a plain primary.
    pub fn convert_drained(&mut self, host: usize, volume: usize) {
        let Engine::Backup(engine) = &mut self.hosts[host].slots[volume].engine else {
            return;
        };
        let Some(queue) = engine.take_drained() else {
            return;
        };
        say!(self, "host {host} volume {volume} is drained");
        if self.oracle.serves(host) {
            self.oracle.volumes[volume].flush(self.now);
        }
        let Group::Backup(group) = &self.hosts[host].group else {
            unreachable!("was a backup")
        };
        let lineage = group
            .meta()
            .lineage
            .iter()
            .map(|e| (e.id, e.first_epoch))
            .collect();
        let engine = self.primary_volume(host, volume, lineage);
        self.hosts[host].slots[volume].engine = Engine::Primary(Box::new(engine));
        for (id, request) in queue {
            self.drive(host, volume, |engine, now, mem, fx| {
                let Engine::Primary(engine) = engine else {
                    unreachable!("made just now")
                };
                engine.request(now, mem, id, request, fx);
            });
        }
    }

    /// Once every volume is a primary, so is the group.
    pub fn finish_conversion(&mut self, host: usize) {
        let all = self.hosts[host]
            .slots
            .iter()
            .all(|s| matches!(s.engine, Engine::Primary(_)));
        if let Group::Backup(group) = &self.hosts[host].group
            && all
        {
            let group = PrimaryGroup::new(
                group.meta().clone(),
                self.group_settings(true),
                0,
                "drained",
            );
            self.hosts[host].group = Group::Primary(group);
        }
    }

    /// Asks for a flush of every volume where the guest lives.
    pub fn flush_all(&mut self) {
        if let Some(host) = self.guest.lives_on {
            for volume in 0..self.plan.volumes {
                self.ask(host, volume, Ask::Flush);
            }
        }
    }

    /// Tells a volume something the group would say: for scenarios.
    pub fn tell(&mut self, host: usize, volume: usize, message: ToVolume) {
        let boot = self.hosts[host].boot;
        self.after(
            0,
            Event::ToVolume {
                host,
                boot,
                volume,
                message,
            },
        );
    }
}
