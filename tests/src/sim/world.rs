//! The event loop: time, the engines' effects, messages between volumes and groups.

use super::disk::Disk;
use super::guest::Guest;
use super::host::{Engine, Group, Host, InFlight, Owner, Slot};
use super::oracle::Oracle;
use super::plan::{Fault, MS, Plan};
use super::wires::Conn;
use blkback_proto::ids::LineageId;
use blkback_proto::meta::{SLOT_BYTES, slot_offset};
use blockrep::engine::{Effect, Nanos, ToGroup, ToVolume};
use blockrep::group::{GroupEffect, Now, PromoteError, Promoted};
use blockrep::io::{Done, HeapMemory, IoError, IoId, Memory, Op, Target};
use fastrand::Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Effects of an engine in the simulator.
pub type Fx = Vec<Effect<HeapMemory>>;

/// No run needs that many events.
const STEPS_MAX: u64 = 1_000_000;
/// Nanoseconds since 1970 when a run begins.
const UNIX_NS: u64 = 1_750_000_000_000_000_000;

/// Something that happens at a time.
#[derive(Debug)]
pub enum Event {
    /// An operation of a disk ends.
    Io {
        host: usize,
        boot: u32,
        volume: usize,
        token: u64,
    },
    /// A message from the group arrives.
    ToVolume {
        host: usize,
        boot: u32,
        volume: usize,
        message: ToVolume,
    },
    /// A message for the group arrives.
    ToGroup {
        host: usize,
        boot: u32,
        volume: usize,
        message: ToGroup,
    },
    /// Something arrives at that side of a connection.
    Wire { conn: usize, side: usize },
    /// A primary volume may try to connect.
    Connect {
        host: usize,
        boot: u32,
        volume: usize,
    },
    /// A volume wants to be called.
    Tick {
        host: usize,
        boot: u32,
        volume: usize,
    },
    /// A group wants to be called.
    GroupTick { host: usize, boot: u32 },
    /// A guest does something.
    Guest { boot: u32, volume: usize },
    /// A fault of the plan.
    Fault(usize),
    /// A host dies.
    Crash {
        host: usize,
        boot: u32,
        power: bool,
        back_ns: Option<u64>,
    },
    /// A host is started.
    Start { host: usize },
    /// Disks of a host are as fast as ever.
    Fast { host: usize },
    /// The story of the run goes on.
    Story,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Events.
    pub steps: u64,
    /// Hosts that died.
    pub crashes: u64,
    /// Recoveries, looks at the disks as if power went included.
    pub recoveries: u64,
    /// Epochs committed.
    pub epochs: u64,
    /// Promotions.
    pub promotions: u64,
    /// Requests answered.
    pub replies: u64,
    /// Times images were compared to the end.
    pub syncs: u64,
    /// Rows of the recovery table, by name.
    pub rows: std::collections::BTreeMap<&'static str, u64>,
}

/// Everything there is.
pub struct World {
    /// Settings.
    pub plan: Plan,
    /// Randomness of the run.
    pub rng: Rng,
    /// The time.
    pub now: Nanos,
    /// Primary and backup.
    pub hosts: [Host; 2],
    /// Connections, never reused.
    pub conns: Vec<Conn>,
    /// Nobody can connect before that.
    pub partition_until: Nanos,
    /// The guest.
    pub guest: Guest,
    /// What must hold.
    pub oracle: Oracle,
    /// Numbers.
    pub stats: Stats,
    /// Print what happens.
    pub trace: bool,
    /// What the operator is waiting for.
    pub promote_reply: Option<Result<Promoted, PromoteError>>,
    /// Crash a host after that many more operations.
    pub crash_after: Option<(usize, u32, bool, Option<u64>)>,
    /// Answers to cuts the operator asked for.
    pub cut_replies: Vec<(u64, blkback_proto::ids::Epoch)>,
    queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    tokens: u64,
    violation: Option<String>,
}

struct Queued {
    at: Nanos,
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

macro_rules! say {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            eprintln!("{:>12.3} {}", $world.now as f64 / 1000.0, format!($($text)*));
        }
    };
}
pub(super) use say;

impl World {
    /// Two hosts that were never started.
    #[must_use]
    pub fn new(plan: Plan, trace: bool) -> Self {
        let mut rng = Rng::with_seed(plan.seed ^ 0x5eed_0000_0000_0000);
        let geometry = plan.geometry;
        let disk = |_| {
            Disk::new(
                plan.size_bytes,
                geometry.segment_bytes,
                geometry.segment_count,
            )
        };
        let mut hosts = [0, 1].map(|_| Host::new((0..plan.volumes).map(disk).collect()));
        let oracle = Oracle::new(&plan, &mut hosts, &mut rng);
        let guest = Guest::new(plan.volumes);
        Self {
            rng,
            now: 0,
            hosts,
            conns: Vec::new(),
            partition_until: 0,
            guest,
            oracle,
            stats: Stats::default(),
            trace,
            promote_reply: None,
            crash_after: None,
            cut_replies: Vec::new(),
            queue: BinaryHeap::new(),
            order: 0,
            tokens: 0,
            violation: None,
            plan,
        }
    }

    /// Something that must not happen happened.
    pub fn violated(&mut self, text: String) {
        say!(self, "VIOLATION {text}");
        self.violation.get_or_insert(text);
    }

    /// What must not happen and did.
    pub fn take_violation(&mut self) -> Option<String> {
        self.violation.take()
    }

    /// Lets something happen later.
    pub fn after(&mut self, ns: Nanos, event: Event) {
        self.at(self.now + ns, event);
    }

    /// Lets something happen at a time.
    pub fn at(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Queued {
            at,
            order: self.order,
            event,
        }));
    }

    /// A host runs, and it is that start of it.
    #[must_use]
    pub fn runs(&self, host: usize, boot: u32) -> bool {
        self.hosts[host].up && self.hosts[host].boot == boot
    }

    /// Runs until `done` or the time; false when `done` did not happen. Stops at a violation.
    pub fn run(&mut self, until: Nanos, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if self.violation.is_some() || done(self) {
                return true;
            }
            let Some(Reverse(next)) = self.queue.peek() else {
                return false;
            };
            if next.at > until {
                self.now = until;
                return false;
            }
            let Reverse(Queued { at, event, .. }) = self.queue.pop().expect("just seen");
            self.now = at;
            self.stats.steps += 1;
            if self.stats.steps > STEPS_MAX - 20 {
                say!(self, "{event:?}");
            }
            self.happen(event);
            if self.stats.steps > STEPS_MAX {
                self.violated(format!("{STEPS_MAX} steps and no end: something spins"));
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Io {
                host,
                boot,
                volume,
                token,
            } if self.runs(host, boot) => {
                self.io_ends(host, volume, token);
            }
            Event::ToVolume {
                host,
                boot,
                volume,
                message,
            } if self.runs(host, boot) => {
                self.tell_volume(host, volume, message);
            }
            Event::ToGroup {
                host,
                boot,
                volume,
                message,
            } if self.runs(host, boot) => {
                self.tell_group(host, volume, message);
            }
            Event::Wire { conn, side } => self.wire(conn, side),
            Event::Connect { host, boot, volume } if self.runs(host, boot) => {
                self.connect(host, volume);
            }
            Event::Tick { host, boot, volume } if self.runs(host, boot) => {
                if self.hosts[host].slots[volume].tick_at != self.now {
                    // An earlier one was wanted since.
                    return;
                }
                self.hosts[host].slots[volume].tick_at = u64::MAX;
                self.drive(host, volume, |engine, now, mem, fx| match engine {
                    Engine::Primary(engine) => engine.tick(now, mem, fx),
                    Engine::Backup(engine) => engine.tick(now, mem, fx),
                    Engine::Off => {}
                });
            }
            Event::GroupTick { host, boot } if self.runs(host, boot) => {
                if self.hosts[host].group_tick_at != self.now {
                    return;
                }
                self.hosts[host].group_tick_at = u64::MAX;
                self.drive_group(host, |group, at, fx| {
                    if let Group::Primary(group) = group {
                        group.tick(at, fx);
                    }
                });
            }
            Event::Guest { boot, volume } => self.guest_acts(boot, volume),
            Event::Fault(index) => self.fault(self.plan.faults[index].1),
            Event::Crash {
                host,
                boot,
                power,
                back_ns,
            } if self.runs(host, boot) => {
                self.crash(host, power, back_ns);
            }
            Event::Start { host } if !self.hosts[host].up => self.start(host),
            Event::Fast { host } => self.hosts[host].slow = 1,
            _ => {}
        }
    }

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

    fn submit(&mut self, host: usize, volume: usize, owner: Owner, op: Op<HeapMemory>) {
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

    fn io_ends(&mut self, host: usize, volume: usize, token: u64) {
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

    fn tell_volume(&mut self, host: usize, volume: usize, message: ToVolume) {
        say!(self, "host {host} volume {volume} <- {message:?}");
        self.oracle_sees_order(host, volume, &message);
        self.drive(host, volume, |engine, now, mem, fx| match engine {
            Engine::Primary(engine) => engine.group(now, mem, message, fx),
            Engine::Backup(engine) => engine.group(now, mem, message, fx),
            Engine::Off => {}
        });
    }

    fn tell_group(&mut self, host: usize, volume: usize, message: ToGroup) {
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
            GroupEffect::CutReply { token, epoch, .. } => self.cut_replies.push((token, epoch)),
            GroupEffect::Latency(_) => self.stats.epochs += 1,
            GroupEffect::PromoteReply { result, .. } => {
                say!(self, "host {host} promotion: {result:?}");
                self.promoted(host, result);
            }
        }
    }

    fn write_group(&mut self, host: usize) {
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
        let bufs = vec![HeapMemory::new(0).freeze(buf)];
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

    /// A fault of the plan happens.
    fn fault(&mut self, fault: Fault) {
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
                let broken = super::host::Breakage {
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
        }
    }

    /// The operator cuts an epoch on the primary.
    pub fn cut_epoch(&mut self, token: u64) {
        if self.hosts[0].up {
            self.drive_group(0, |group, at, fx| {
                if let Group::Primary(group) = group {
                    group.cut(at, token, fx);
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
        let ago = heard.then_some(1);
        self.oracle.accepted_suspect |= accept_suspect;
        say!(
            self,
            "the operator promotes, force {force}, accept suspect {accept_suspect}"
        );
        self.drive_group(1, |group, at, fx| {
            if let Group::Backup(group) = group {
                group.promote(at, 1, force, accept_suspect, ago, fx);
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

/// Carries an operation out; gives the buffer of a read.
fn apply_op(
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
            for buf in bufs {
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

use super::disk::Capture;

/// Some sectors of a write happened, others did not.
fn part_of(disk: &mut Disk, op: &Op<HeapMemory>, rng: &mut Rng) {
    const SECTOR: usize = 512;
    match op {
        Op::Write {
            target,
            offset,
            bufs,
        } => {
            let mut at = *offset;
            for buf in bufs {
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
