//! The event loop: time, what is in it, and what a run came to.
//!
//! One thread, no clock: the time is that of the event at hand, and everything random comes from
//! [`World::rng`]. What an event does stands beside: `effects` calls engines and groups and carries
//! out what they want, `storage` is their disks, `faults` is what goes wrong and what an operator
//! does.

mod effects;
mod event;
mod faults;
mod storage;

pub use effects::Fx;
pub use event::Event;

use crate::sim::disk::Disk;
use crate::sim::guest::Guest;
use crate::sim::host::{Engine, Group, Host};
use crate::sim::memory::Memory;
use crate::sim::oracle::Oracle;
use crate::sim::plan::Plan;
use crate::sim::wires::Conn;
use blockrep::engine::Nanos;
use blockrep::group::{PromoteError, Promoted};
use event::Queued;
use fastrand::Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No run needs that many events.
const STEPS_MAX: u64 = 1_000_000;

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
    /// Promotions with the guest's memory.
    pub with_memory: u64,
    /// Those of them in which a witness had seen replies of the guest, and how many.
    pub judged: u64,
    /// See `judged`.
    pub judged_replies: u64,
    /// Promotions that the authority refused, or was not reached for.
    pub refused: u64,
    /// Replies that a witness saw.
    pub seen: u64,
    /// Checkpoints that were sent.
    pub sent: u64,
    /// Checkpoints that were given up.
    pub abandoned: u64,
    /// Guests that switched themselves off, and both ends knew.
    pub ended: u64,
    /// Times that output was let go because memory and disks had it.
    pub checkpoints: u64,
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
    /// The guest's memory, where it is kept.
    pub memory: Memory,
    /// What must hold.
    pub oracle: Oracle,
    /// Numbers.
    pub stats: Stats,
    /// Print what happens.
    pub trace: bool,
    /// Generation of each volume's metadata when a journal rotted last.
    pub rotted: Vec<Option<u64>>,
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
            memory: Memory::default(),
            oracle,
            stats: Stats::default(),
            trace,
            rotted: Vec::new(),
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
            Event::Memory(step) => self.memory_step(step),
            _ => {}
        }
    }
}
