//! What a seed stands for: settings and faults.

use super::memory::Trouble;
use blockrep::config::{AckMode, LossPolicy};
use blockrep::journal::ring::Geometry;
use checkpointer::sequence::OnLoss;
use fastrand::Rng;

/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;
/// Smallest segment the format allows.
const SEGMENT: u64 = 4 << 20;

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of everything random.
    pub seed: u64,
    /// Volumes of the group.
    pub volumes: usize,
    /// Size of each, in bytes.
    pub size_bytes: u64,
    /// Journal of each.
    pub geometry: Geometry,
    /// Syncs of images are that much slower.
    pub image_sync: u64,
    /// Bound of the overlay.
    pub extents_max: usize,
    /// Throttle of apply.
    pub apply_rate: Option<u64>,
    /// Extents left in the journal of a promoted side at which writes wait for the rest.
    pub switch_extents: usize,
    /// Ack mode.
    pub ack: AckMode,
    /// Loss policy.
    pub loss: LossPolicy,
    /// Time between cuts.
    pub epoch_ns: Option<u64>,
    /// The guest's memory is kept, and a checkpoint made about that often.
    pub checkpoint_ns: Option<u64>,
    /// Checkpoints that may be on their way.
    pub in_flight_max: usize,
    /// Cuts of the output that may be unreleased: 1 over a plug.
    pub output_cuts_max: usize,
    /// What becomes of a guest that cannot be protected.
    pub on_loss: OnLoss,
    /// Window kept for what front ends have in flight.
    pub reserve_bytes: u64,
    /// Time writes may wait for window space.
    pub pressure_ns: u64,
    /// Images are equal and the operator says so.
    pub identical: bool,
    /// Memory of a volume on the primary and on the backup.
    pub memory_bytes: [usize; 2],
    /// Largest write of a guest, in sectors.
    pub write_sectors: u64,
    /// Sectors at the start of the volume that get most writes.
    pub hot_sectors: u64,
    /// Requests in flight at most, per volume.
    pub depth: usize,
    /// Mean time between requests of a volume.
    pub think_ns: u64,
    /// Requests in a hundred that are reads.
    pub reads: u8,
    /// How long the guest and faults go on.
    pub chaos_ns: u64,
    /// Faults and when they happen.
    pub faults: Vec<(u64, Fault)>,
    /// At the end of the chaos the primary dies and the backup is promoted.
    pub failover: Option<Failover>,
}

/// How the chaos ends.
#[derive(Clone, Copy, Debug)]
pub struct Failover {
    /// The primary is alive: the operator forces it.
    pub force: bool,
    /// The primary's host loses power, or only its daemon dies.
    pub power: bool,
    /// The backup crashes, too, and is started again first.
    pub both: Option<bool>,
    /// A bit of the backup's journal flips while it is down.
    pub rot: bool,
    /// How long the promoted side runs.
    pub serve_ns: u64,
    /// Crashes of the promoted side: when, and whether power is lost.
    pub crashes: [Option<(u64, bool)>; 2],
    /// A bit of its journal flips at each of them.
    pub own_rot: bool,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A host dies and comes back.
    Crash {
        /// Which one.
        host: usize,
        /// Power is lost; else the daemon is killed.
        power: bool,
        /// Back after that.
        back_ns: u64,
        /// Only when that many more operations of its disks have ended.
        after_ops: u32,
    },
    /// A connection breaks.
    Cut {
        /// Of which volume.
        volume: usize,
        /// Neither side is told.
        silent: bool,
    },
    /// Nobody can connect for a while.
    Partition {
        /// How long.
        ns: u64,
    },
    /// A store breaks until the host is started again.
    Break {
        /// Which host.
        host: usize,
        /// Which volume.
        volume: usize,
        /// Image, journal, metadata.
        file: super::host::FileKind,
        /// Syncs fail rather than writes.
        sync: bool,
        /// The disk is full rather than broken.
        full: bool,
    },
    /// Disks are slow for a while.
    Slow {
        /// Which host.
        host: usize,
        /// That much slower.
        factor: u64,
        /// How long.
        ns: u64,
    },
    /// The operator promotes, without force or need.
    Promote,
    /// The disks of the backup are looked at as if its power went now.
    Probe,
    /// The operator cuts.
    CutEpoch,
    /// Who holds the guest's memory is killed.
    HolderDies {
        /// Back after that.
        back_ns: u64,
    },
    /// Who makes the epochs of the whole guest is killed.
    CheckpointerDies {
        /// Back after that.
        back_ns: u64,
    },
    /// The connection between them is lost.
    MemoryLink {
        /// None comes up before.
        down_ns: u64,
    },
    /// Of the guest beside it.
    Guest(Trouble),
}

fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

impl Plan {
    /// Nothing goes wrong, nobody cuts but the operator, and apply is quick: for scenarios.
    #[must_use]
    pub fn calm(seed: u64, volumes: usize) -> Self {
        Self {
            volumes,
            size_bytes: 512 * 2048,
            image_sync: 1,
            extents_max: 100_000,
            apply_rate: None,
            switch_extents: 256,
            ack: AckMode::Flush,
            loss: LossPolicy::Pause,
            epoch_ns: None,
            checkpoint_ns: None,
            in_flight_max: 3,
            output_cuts_max: 4,
            on_loss: OnLoss::Hold,
            reserve_bytes: 1 << 20,
            pressure_ns: 50 * MS,
            identical: false,
            memory_bytes: [32 << 20; 2],
            write_sectors: 16,
            depth: 64,
            faults: Vec::new(),
            failover: None,
            ..Self::of(seed)
        }
    }

    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let volumes = 1 + usize::from(rng.u8(..10) < 4);
        let large = rng.u8(..10) < 2;
        let size_bytes = if large {
            (1 << 20) + 512 * rng.u64(1..1500)
        } else {
            512 * rng.u64(64..512)
        };
        let big_writes = rng.u8(..10) == 0;
        let segment_count = rng.u32(4..6);
        let manual = rng.u8(..4) == 0;
        let chaos_ns = MS * rng.u64(20..400);
        let mut plan = Self {
            seed,
            volumes,
            size_bytes,
            geometry: Geometry {
                segment_bytes: SEGMENT,
                segment_count,
            },
            image_sync: pick(rng, &[1, 1, 12]),
            extents_max: pick(rng, &[100_000, 100_000, 1200, 700]),
            switch_extents: pick(rng, &[0, 0, 8, 256]),
            apply_rate: (rng.u8(..5) == 0).then(|| 1 << rng.u32(18..23)),
            ack: pick(
                rng,
                &[
                    AckMode::Local,
                    AckMode::Flush,
                    AckMode::Flush,
                    AckMode::Write,
                ],
            ),
            loss: pick(rng, &[LossPolicy::Pause, LossPolicy::Degrade]),
            checkpoint_ns: None,
            in_flight_max: 1,
            output_cuts_max: 1,
            on_loss: OnLoss::Hold,
            epoch_ns: (!manual).then(|| MS * rng.u64(1..20)),
            reserve_bytes: pick(rng, &[1 << 20, 1 << 20, 2 << 20]),
            pressure_ns: MS * pick(rng, &[5, 50, 500]),
            identical: rng.u8(..3) == 0,
            memory_bytes: [
                pick(rng, &[32 << 20, 4 << 20]),
                pick(rng, &[32 << 20, 5 << 20]),
            ],
            write_sectors: if big_writes {
                512
            } else {
                pick(rng, &[4, 16, 64])
            },
            hot_sectors: rng.u64(16..200),
            depth: rng.usize(1..6),
            think_ns: rng.u64(20_000..2_000_000),
            reads: rng.u8(5..50),
            chaos_ns,
            faults: Vec::new(),
            failover: None,
        };
        plan.flavour(rng);
        plan.write_sectors = plan.write_sectors.min(plan.size_bytes / 512);
        // A few hundred requests a volume.
        plan.chaos_ns = plan.chaos_ns.min(10 * MS + 250 * plan.think_ns);
        plan.add_faults(rng);
        plan.add_failover(rng);
        plan.add_memory();
        plan
    }

    /// Some runs are made to reach what others seldom do.
    fn flavour(&mut self, rng: &mut Rng) {
        match rng.u8(..20) {
            // A backlog that is there at a promotion: the promoted side writes through its journal.
            0..=3 => {
                self.size_bytes = self.size_bytes.max(512 * 400);
                self.apply_rate = Some(1 << rng.u32(17..21));
                self.write_sectors = 2;
                self.hot_sectors = 1 << 20;
                self.think_ns = rng.u64(20_000..60_000);
                self.depth = 6;
                self.reads = 5;
                self.chaos_ns = MS * rng.u64(30..60);
                self.extents_max = 100_000;
                self.switch_extents = 0;
            }
            // So much that segments are used again.
            4 => {
                self.size_bytes = 512 * 1024;
                self.write_sectors = 512;
                self.think_ns = rng.u64(60_000..200_000);
                self.depth = 6;
                self.reads = 5;
                self.chaos_ns = MS * rng.u64(20..50);
                self.apply_rate = None;
                self.memory_bytes = [32 << 20, 32 << 20];
            }
            _ => {}
        }
    }

    fn add_faults(&mut self, rng: &mut Rng) {
        let calm = rng.u8(..4) == 0;
        for _ in 0..if calm { 0 } else { rng.usize(0..6) } {
            let at = rng.u64(..self.chaos_ns);
            let fault = self.fault(rng);
            self.faults.push((at, fault));
        }
        for _ in 0..rng.usize(0..4) {
            self.faults.push((rng.u64(..self.chaos_ns), Fault::Probe));
        }
        let cuts = if self.epoch_ns.is_none() {
            rng.usize(5..40)
        } else {
            rng.usize(0..3)
        };
        for _ in 0..cuts {
            self.faults
                .push((rng.u64(..self.chaos_ns), Fault::CutEpoch));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    fn fault(&self, rng: &mut Rng) -> Fault {
        use super::host::FileKind;
        let host = rng.usize(..2);
        let volume = rng.usize(..self.volumes);
        match rng.u8(..16) {
            0..=5 => Fault::Crash {
                host,
                power: rng.bool(),
                back_ns: rng.u64(..100 * MS),
                after_ops: rng.u32(..40),
            },
            6..=9 => Fault::Cut {
                volume,
                silent: rng.u8(..4) == 0,
            },
            10 => Fault::Partition {
                ns: rng.u64(..200 * MS),
            },
            11 => Fault::Break {
                host,
                volume,
                file: pick(rng, &[FileKind::Image, FileKind::Journal, FileKind::Meta]),
                sync: rng.bool(),
                full: rng.bool(),
            },
            12..=13 => Fault::Slow {
                host,
                factor: rng.u64(2..60),
                ns: rng.u64(..100 * MS),
            },
            14 => Fault::Promote,
            _ => Fault::Crash {
                host: 1,
                power: true,
                back_ns: rng.u64(..10 * MS),
                after_ops: 1,
            },
        }
    }

    /// In two of five runs the guest's memory is kept, too. Of a seed of its own, so that the others stay what
    /// they were.
    fn add_memory(&mut self) {
        let mut rng = Rng::with_seed(self.seed ^ 0x006d_656d_6f72_7900);
        let rng = &mut rng;
        if rng.u8(..5) >= 2 {
            return;
        }
        self.checkpoint_ns = Some(MS * rng.u64(1..12));
        // With others a held guest would wait for the backup in every epoch.
        self.ack = AckMode::Local;
        // Under `pause` a guest whose writes wait for protection cannot stand still, and protection waits for that.
        self.loss = LossPolicy::Degrade;
        // Copies and joins take their time.
        self.chaos_ns = self.chaos_ns.max(80 * MS);
        for _ in 0..rng.usize(0..5) {
            let back_ns = rng.u64(..60 * MS);
            let fault = match rng.u8(..4) {
                0 => Fault::HolderDies { back_ns },
                1 => Fault::CheckpointerDies { back_ns },
                2 => Fault::MemoryLink { down_ns: back_ns },
                // The daemon alone: memory goes on.
                _ => Fault::Crash {
                    host: 1,
                    power: false,
                    back_ns,
                    after_ops: rng.u32(..20),
                },
            };
            self.faults.push((rng.u64(..self.chaos_ns), fault));
        }
        self.in_flight_max = rng.usize(1..5);
        self.output_cuts_max = if rng.bool() { 1 } else { rng.usize(2..6) };
        self.on_loss = pick(rng, &[OnLoss::Hold, OnLoss::Hold, OnLoss::Degrade]);
        if self.failover.is_none() {
            self.add_failover(rng);
        }
        if let Some(failover) = &mut self.failover
            && rng.bool()
        {
            // With the power of the backup's host goes the memory: then there is nothing to be judged.
            failover.both = failover.both.map(|_| false);
            failover.rot = false;
        }
        for _ in 0..rng.usize(0..6) {
            let fault = Fault::Guest(Trouble::any(rng));
            self.faults.push((rng.u64(..self.chaos_ns), fault));
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }

    fn add_failover(&mut self, rng: &mut Rng) {
        if rng.u8(..10) < 3 {
            return;
        }
        let serve_ns = (MS * rng.u64(5..200)).min(5 * MS + 80 * self.think_ns);
        let crash = |rng: &mut Rng| (rng.u8(..2) == 0).then(|| (rng.u64(..serve_ns), rng.bool()));
        self.failover = Some(Failover {
            force: rng.u8(..6) == 0,
            power: rng.bool(),
            both: (rng.u8(..3) == 0).then(|| rng.u8(..4) != 0),
            rot: rng.u8(..3) == 0,
            serve_ns,
            crashes: [crash(rng), crash(rng)],
            own_rot: rng.u8(..3) == 0,
        });
    }
}
