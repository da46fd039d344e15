//! Operations of disks: submitted, ended after a while, carried out wholly or, where they fail, in
//! part.

use super::World;
use super::event::Event;
use crate::sim::disk::{Capture, Disk};
use crate::sim::host::{Engine, Group, InFlight, Owner};
use blkback_proto::meta::{SLOT_BYTES, slot_offset};
use blockrep::io::{Bufs, Done, HeapMemory, IoError, Memory, Op, Target};
use fastrand::Rng;

impl World {
    pub(super) fn submit(&mut self, host: usize, volume: usize, owner: Owner, op: Op<HeapMemory>) {
        let slow = self.hosts[host].slow;
        let error = self.hosts[host].error_of(volume, &op);
        let mut delay = match &op {
            Op::Sync {
                target: Target::Image,
            } => self.rng.u64(20_000..300_000) * self.plan.image_sync,
            Op::Sync { .. } => self.rng.u64(20_000..300_000),
            _ => self.rng.u64(5_000..100_000),
        };
        if self.rng.u8(..100) == 0 {
            delay *= 30;
        }
        let capture = match &op {
            Op::Sync { target } => Some(self.hosts[host].disks[volume].capture(*target)),
            _ => None,
        };
        self.tokens += 1;
        let token = self.tokens;
        let slot = &mut self.hosts[host].slots[volume];
        slot.ops.insert(
            token,
            InFlight {
                owner,
                op,
                capture,
                error,
            },
        );
        let boot = self.hosts[host].boot;
        self.after(
            delay * slow,
            Event::Io {
                host,
                boot,
                volume,
                token,
            },
        );
    }

    pub(super) fn io_ends(&mut self, host: usize, volume: usize, token: u64) {
        let Some(ended) = self.hosts[host].slots[volume].ops.remove(&token) else {
            return;
        };
        let InFlight {
            owner,
            op,
            capture,
            error,
        } = ended;
        let disk = &mut self.hosts[host].disks[volume];
        let mut buf = None;
        let result = match error {
            None => {
                buf = apply_op(disk, op, capture);
                Ok(())
            }
            Some(errno) => {
                if self.rng.bool() {
                    part_of(disk, &op, &mut self.rng);
                }
                Err(IoError { errno })
            }
        };
        if self.rng.u8(..16) == 0 {
            disk.write_back(&mut self.rng);
        }
        match owner {
            Owner::Volume(id) => self.volume_io_done(host, volume, Done { id, result, buf }),
            Owner::Group => self.group_io_done(host, result),
        }
        if let Some((at, left, power, back_ns)) = self.crash_after
            && at == host
        {
            self.crash_after = Some((at, left.saturating_sub(1), power, back_ns));
            if left == 0 {
                self.crash_after = None;
                self.crash(host, power, back_ns);
            }
        }
    }

    fn volume_io_done(&mut self, host: usize, volume: usize, done: Done<HeapMemory>) {
        self.drive(host, volume, |engine, now, mem, fx| match engine {
            Engine::Primary(engine) => engine.io_done(now, mem, done, fx),
            Engine::Backup(engine) => engine.io_done(now, mem, done, fx),
            Engine::Off => {}
        });
    }

    pub(super) fn write_group(&mut self, host: usize) {
        let running = &mut self.hosts[host];
        let (None, Some(meta)) = (running.group_writing, running.group_writes.front()) else {
            return;
        };
        let mut buf = HeapMemory::new(SLOT_BYTES)
            .alloc(SLOT_BYTES)
            .expect("its own memory");
        meta.encode(buf.as_mut());
        let offset = slot_offset(meta.generation);
        running.group_writing = Some(false);
        let bufs = Bufs::One(HeapMemory::new(0).freeze(buf));
        let op = Op::Write {
            target: Target::GroupMeta,
            offset,
            bufs,
        };
        self.submit(host, 0, Owner::Group, op);
    }

    fn group_io_done(&mut self, host: usize, result: Result<(), IoError>) {
        if result.is_ok() && self.hosts[host].group_writing == Some(false) {
            self.hosts[host].group_writing = Some(true);
            self.submit(
                host,
                0,
                Owner::Group,
                Op::Sync {
                    target: Target::GroupMeta,
                },
            );
            return;
        }
        self.hosts[host].group_writing = None;
        self.hosts[host].group_writes.pop_front();
        let result = result.map_err(|error| error.to_string());
        self.drive_group(host, |group, at, fx| match group {
            Group::Primary(group) => group.meta_written(at, result, fx),
            Group::Backup(group) => group.meta_written(at, result, fx),
            Group::Off => {}
        });
        self.write_group(host);
    }
}

/// Carries an operation out; gives the buffer of a read.
pub(super) fn apply_op(
    disk: &mut Disk,
    op: Op<HeapMemory>,
    capture: Option<Capture>,
) -> Option<<HeapMemory as Memory>::BufMut> {
    match op {
        Op::Read {
            target,
            offset,
            mut buf,
        } => {
            disk.read(target, offset, buf.as_mut());
            return Some(buf);
        }
        Op::Write {
            target,
            mut offset,
            bufs,
        } => {
            for buf in bufs.as_slice() {
                disk.write(target, offset, buf.as_ref());
                offset += buf.as_ref().len() as u64;
            }
        }
        Op::Sync { .. } => {
            disk.make_durable(capture.expect("syncs have one"));
        }
        Op::Zero { offset, length } | Op::Discard { offset, length } => disk.zero(offset, length),
    }
    None
}

/// Some sectors of a write happened, others did not.
pub(super) fn part_of(disk: &mut Disk, op: &Op<HeapMemory>, rng: &mut Rng) {
    const SECTOR: usize = 512;
    match op {
        Op::Write {
            target,
            offset,
            bufs,
        } => {
            let mut at = *offset;
            for buf in bufs.as_slice() {
                for sector in buf.as_ref().chunks(SECTOR) {
                    if rng.bool() {
                        disk.write(*target, at, sector);
                    }
                    at += sector.len() as u64;
                }
            }
        }
        Op::Zero { offset, length } | Op::Discard { offset, length } => {
            for at in (*offset..offset + length).step_by(SECTOR) {
                if rng.bool() {
                    disk.zero(at, SECTOR as u64);
                }
            }
        }
        Op::Read { .. } | Op::Sync { .. } => {}
    }
}
