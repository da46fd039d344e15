//! What is measured: stacks, and which of them a family of bars needs under which workloads.

use super::workload::Workload;
use clap::ValueEnum;
use std::path::PathBuf;

/// The one copy of unreplicated stacks.
pub(super) const PLAIN: &str = "plain.img";
/// The primary's copy.
pub(super) const FIRST: &str = "a.img";
/// The backup's copy.
pub(super) const SECOND: &str = "b.img";
/// All image files.
pub(super) const FILES: [&str; 3] = [PLAIN, FIRST, SECOND];

/// A group of lines of the bar table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// 4K writes that stay inside the journal window
    Burst,
    /// 4K writes of three journals and more
    Sustained,
    /// Ack modes against QEMU's mirror
    Ack,
    /// 1M sequential writes
    Sequential,
    /// 4K reads over NBD
    Read,
    /// vhost-user against NBD
    Vhost,
    /// How long a cut holds the guest's I/O
    Cut,
    /// From cut to commit
    Commit,
    /// Epochs of 10, 25, 100 and 1000 ms
    Epochs,
    /// Bytes the backup writes
    Bytes,
    /// Resident memory with a volume of 1 TiB
    Memory,
    /// Stacks that no bar needs; only measured when named
    Extra,
}

impl Family {
    /// What a run measures that names nothing.
    pub(super) fn usual() -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|family| *family != Self::Extra).collect()
    }
}

/// How a guest reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Nbd,
    VhostUser,
}

/// blockrep with a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Protected {
    pub(super) name: &'static str,
    pub(super) ack: &'static str,
    /// More than the journal is written.
    pub(super) sustained: bool,
    pub(super) door: Door,
    /// Where it is not what the command line says.
    pub(super) epoch_ms: Option<u64>,
    /// Every sync of the backup's journal takes 5 ms longer.
    pub(super) slow_sync: bool,
    /// Sparse images of 1 TiB.
    pub(super) huge: bool,
}

/// A stack under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StackKind {
    /// The file itself.
    Raw,
    /// qemu-nbd, one copy.
    QemuNbd,
    /// The same, and beside it what every replica has to do as well on the same disk: the bytes of an
    /// epoch are appended to another file and synced, epoch after epoch.
    BesideJournal,
    /// blockrep without a backup.
    Alone,
    Protected(Protected),
    /// qemu-storage-daemon mirroring to qemu-nbd over loopback TCP.
    Mirror(Mirror),
    /// Three write streams of bare fio: what the disk gives to the shape of replication.
    ThreeStreams,
    /// What one epoch offers, appended to a bare file and synced: what a commit costs at least.
    Append,
}

/// How QEMU mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) name: &'static str,
    pub(super) copy_mode: &'static str,
    /// The copy answers a write when it would survive a power cut, as our backup does.
    pub(super) syncs: bool,
}

impl Protected {
    const BURST: Self = Self {
        name: "protected local, burst",
        ack: "local",
        sustained: false,
        door: Door::Nbd,
        epoch_ms: None,
        slow_sync: false,
        huge: false,
    };

    const fn acks(name: &'static str, ack: &'static str, sustained: bool) -> StackKind {
        let acks = Self {
            name,
            ack,
            sustained,
            ..Self::BURST
        };
        StackKind::Protected(acks)
    }

    const fn epochs(name: &'static str, ms: u64) -> StackKind {
        let epochs = Self {
            name,
            epoch_ms: Some(ms),
            ..Self::BURST
        };
        StackKind::Protected(epochs)
    }
}

impl StackKind {
    pub(super) const BURST: Self = Self::Protected(Protected::BURST);
    pub(super) const SUSTAINED: Self = Protected::acks("protected local, sustained", "local", true);
    pub(super) const WRITE: Self = Protected::acks("protected write, burst", "write", false);
    pub(super) const WRITE_SUSTAINED: Self =
        Protected::acks("protected write, sustained", "write", true);
    pub(super) const FLUSH: Self = Protected::acks("protected flush, burst", "flush", false);
    pub(super) const FLUSH_SUSTAINED: Self =
        Protected::acks("protected flush, sustained", "flush", true);
    pub(super) const VHOST: Self = Self::Protected(Protected {
        name: "protected local, vhost-user",
        door: Door::VhostUser,
        ..Protected::BURST
    });
    pub(super) const EPOCHS: [Self; 4] = [
        Protected::epochs("protected local, 10 ms", 10),
        Protected::epochs("protected local, 25 ms", 25),
        Protected::epochs("protected local, 100 ms", 100),
        Protected::epochs("protected local, 1000 ms", 1000),
    ];
    /// Epochs so long that all ten passes over a run fall into one of them.
    pub(super) const OVERWRITTEN: Self = Self::EPOCHS[2];
    pub(super) const SLOW_SYNC: Self = Self::Protected(Protected {
        name: "protected local, sync + 5 ms",
        slow_sync: true,
        ..Protected::BURST
    });
    pub(super) const HUGE: Self = Self::Protected(Protected {
        name: "protected local, 1 TiB",
        huge: true,
        ..Protected::BURST
    });
    pub(super) const BLOCKING: Self = Self::Mirror(Mirror {
        name: "mirror write-blocking",
        copy_mode: "write-blocking",
        syncs: false,
    });
    pub(super) const BLOCKING_SYNCED: Self = Self::Mirror(Mirror {
        name: "mirror write-blocking, synced",
        copy_mode: "write-blocking",
        syncs: true,
    });
    pub(super) const BACKGROUND: Self = Self::Mirror(Mirror {
        name: "mirror background",
        copy_mode: "background",
        syncs: false,
    });

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw file",
            Self::QemuNbd => "qemu-nbd",
            Self::BesideJournal => "qemu-nbd beside a journal",
            Self::Alone => "blockrep alone",
            Self::Protected(protected) => protected.name,
            Self::Mirror(mirror) => mirror.name,
            Self::ThreeStreams => "three-stream ceiling",
            Self::Append => "append and sync per epoch",
        }
    }

    /// Every stack once, in the order of the plan.
    pub(super) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for case in PLAN {
            if !all.contains(&case.stack) {
                all.push(case.stack);
            }
        }
        all
    }

    /// Why it cannot be measured here.
    pub(super) fn missing(self) -> Option<String> {
        let needed: &[(&str, &str)] = match self {
            Self::QemuNbd | Self::BesideJournal => &[("qemu-nbd", "qemu-utils")],
            Self::Mirror(_) => &[
                ("qemu-storage-daemon", "qemu-utils"),
                ("qemu-nbd", "qemu-utils"),
            ],
            _ => &[],
        };
        needed
            .iter()
            .find(|(program, _)| find_program(program).is_none())
            .map(|(program, package)| format!("{program} is missing: apt-get install {package}"))
    }
}

/// A program in PATH.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A stack, and what asks for it under which workloads.
struct Case {
    stack: StackKind,
    workloads: &'static [Workload],
    families: &'static [Family],
}

const fn case(
    stack: StackKind,
    workloads: &'static [Workload],
    families: &'static [Family],
) -> Case {
    Case {
        stack,
        workloads,
        families,
    }
}

use Family::{
    Ack, Burst, Bytes, Commit, Cut, Epochs, Extra, Memory, Read, Sequential, Sustained, Vhost,
};

const WRITES: &[Workload] = &[Workload::WRITE_1, Workload::WRITE_32];
const READS: &[Workload] = &[Workload::READ_1, Workload::READ_32];
const READ_32: &[Workload] = &[Workload::READ_32];
const WRITE_32: &[Workload] = &[Workload::WRITE_32];
const BIG: &[Workload] = &[Workload::SEQUENTIAL];
const OFFERED: &[Workload] = &[Workload::OFFERED];

/// What is compared with each other stands side by side: within a round it runs in this order.
/// The three streams are as long as the raw file is fast, a sustained load as long as a burst is.
const PLAN: &[Case] = &[
    case(StackKind::Raw, WRITES, &[Sustained]),
    case(StackKind::Raw, BIG, &[Sequential]),
    case(StackKind::Raw, READS, &[Read]),
    case(StackKind::QemuNbd, WRITES, &[Burst, Sustained]),
    case(StackKind::QemuNbd, BIG, &[Sequential]),
    case(StackKind::QemuNbd, READS, &[Read]),
    case(StackKind::Alone, WRITES, &[Extra]),
    case(StackKind::Alone, READS, &[Extra]),
    case(StackKind::BURST, WRITES, &[Burst, Sustained, Ack]),
    case(StackKind::BURST, WRITE_32, &[Vhost, Cut]),
    case(StackKind::BURST, BIG, &[Sequential]),
    case(StackKind::BesideJournal, WRITES, &[Burst]),
    case(StackKind::BesideJournal, BIG, &[Sequential]),
    case(StackKind::BURST, READS, &[Read]),
    case(StackKind::BURST, READ_32, &[Vhost]),
    case(StackKind::BURST, OFFERED, &[Commit]),
    case(StackKind::BURST, &[Workload::ONCE], &[Bytes]),
    case(StackKind::OVERWRITTEN, &[Workload::TEN_TIMES], &[Bytes]),
    case(StackKind::VHOST, WRITE_32, &[Vhost]),
    case(StackKind::VHOST, READ_32, &[Vhost]),
    case(StackKind::SUSTAINED, WRITES, &[Sustained]),
    case(StackKind::SUSTAINED, BIG, &[Sequential]),
    case(StackKind::ThreeStreams, WRITES, &[Sustained]),
    case(StackKind::ThreeStreams, BIG, &[Sequential]),
    case(StackKind::BACKGROUND, WRITES, &[Ack]),
    case(StackKind::WRITE, WRITES, &[Ack]),
    case(StackKind::BLOCKING, WRITES, &[Ack]),
    case(StackKind::BLOCKING_SYNCED, WRITES, &[Ack]),
    case(StackKind::FLUSH, WRITES, &[Extra]),
    case(StackKind::FLUSH_SUSTAINED, WRITES, &[Extra]),
    case(StackKind::WRITE_SUSTAINED, WRITES, &[Extra]),
    case(StackKind::EPOCHS[0], WRITE_32, &[Epochs]),
    case(StackKind::EPOCHS[1], WRITE_32, &[Epochs]),
    case(StackKind::EPOCHS[2], WRITE_32, &[Epochs]),
    case(StackKind::EPOCHS[3], WRITE_32, &[Epochs]),
    case(StackKind::Append, OFFERED, &[Commit]),
    case(StackKind::SLOW_SYNC, OFFERED, &[Commit]),
    case(StackKind::HUGE, &[Workload::IDLE], &[Memory]),
];

/// What these families need of a workload.
pub(super) fn stacks(workload: Workload, families: &[Family]) -> Vec<StackKind> {
    let mut stacks = Vec::new();
    for case in PLAN {
        let asked = case.families.iter().any(|family| families.contains(family));
        if asked && case.workloads.contains(&workload) && !stacks.contains(&case.stack) {
            stacks.push(case.stack);
        }
    }
    stacks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A point that two families need would be paid for twice, and its round would have two figures.
    #[test]
    fn every_family_measures_something_and_nothing_twice() {
        for family in Family::value_variants() {
            let points: usize = Workload::ALL
                .iter()
                .map(|workload| stacks(*workload, &[*family]).len())
                .sum();
            assert!(points > 0, "{family:?}");
        }
        let cut_and_vhost = stacks(Workload::WRITE_32, &[Cut, Vhost]);
        assert_eq!(cut_and_vhost, [StackKind::BURST, StackKind::VHOST]);
        assert!(stacks(Workload::WRITE_1, &[Vhost]).is_empty());
    }

    /// The three streams and the sustained loads take their length from what runs before them.
    #[test]
    fn lengths_are_known_in_time() {
        let order = stacks(Workload::WRITE_32, &Family::usual());
        let at = |kind| order.iter().position(|one| *one == kind).unwrap();
        assert!(at(StackKind::Raw) < at(StackKind::ThreeStreams));
        assert!(at(StackKind::BURST) < at(StackKind::SUSTAINED));
        assert!(at(StackKind::BURST) < at(StackKind::BesideJournal));
    }
}
