//! What is measured: workloads and stacks, by name.

use std::path::PathBuf;

/// The one copy of unreplicated stacks.
pub(super) const PLAIN: &str = "plain.img";
/// The primary's copy.
pub(super) const FIRST: &str = "a.img";
/// The backup's copy.
pub(super) const SECOND: &str = "b.img";
/// All image files.
pub(super) const FILES: [&str; 3] = [PLAIN, FIRST, SECOND];

/// What fio does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// fio's `rw`.
    pub(super) rw: &'static str,
    /// Bytes of a request.
    pub(super) block_bytes: u64,
    /// Requests in flight.
    pub(super) depth: u32,
}

impl Workload {
    pub(super) const ALL: [Self; 5] = [
        Self::new("randwrite-4k-qd1", "randwrite", 4096, 1),
        Self::new("randwrite-4k-qd32", "randwrite", 4096, 32),
        Self::new("write-1m-qd4", "write", 1 << 20, 4),
        Self::new("randread-4k-qd1", "randread", 4096, 1),
        Self::new("randread-4k-qd32", "randread", 4096, 32),
    ];

    const fn new(name: &'static str, rw: &'static str, block_bytes: u64, depth: u32) -> Self {
        Self {
            name,
            rw,
            block_bytes,
            depth,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        self.name
    }

    pub(super) fn writes(self) -> bool {
        self.rw != "randread"
    }
}

/// A stack under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StackKind {
    /// The file itself.
    Raw,
    /// qemu-nbd, one copy.
    QemuNbd,
    /// blockrep without a backup.
    Alone,
    /// blockrep with a backup: ack mode, and whether more than the journal is written.
    Protected { ack: &'static str, sustained: bool },
    /// qemu-storage-daemon mirroring to qemu-nbd over loopback TCP, by copy mode.
    Mirror(&'static str),
    /// Three write streams of bare fio: what the disk gives to the shape of replication.
    ThreeStreams,
}

impl StackKind {
    pub(super) const ALL: [Self; 12] = [
        Self::Raw,
        Self::QemuNbd,
        Self::Alone,
        Self::protected("local", false),
        Self::protected("flush", false),
        Self::protected("write", false),
        Self::protected("local", true),
        Self::protected("flush", true),
        Self::protected("write", true),
        Self::Mirror("write-blocking"),
        Self::Mirror("background"),
        Self::ThreeStreams,
    ];

    const fn protected(ack: &'static str, sustained: bool) -> Self {
        Self::Protected { ack, sustained }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw file",
            Self::QemuNbd => "qemu-nbd",
            Self::Alone => "blockrep alone",
            Self::Protected { ack, sustained } => match (ack, sustained) {
                ("local", false) => "protected local, burst",
                ("flush", false) => "protected flush, burst",
                (_, false) => "protected write, burst",
                ("local", true) => "protected local, sustained",
                ("flush", true) => "protected flush, sustained",
                (_, true) => "protected write, sustained",
            },
            Self::Mirror("write-blocking") => "mirror write-blocking",
            Self::Mirror(_) => "mirror background",
            Self::ThreeStreams => "three-stream ceiling",
        }
    }

    /// Whether the workload says something about this stack: reads come from one copy whatever
    /// the ack mode is.
    pub(super) fn runs(self, workload: Workload) -> bool {
        workload.writes()
            || matches!(
                self,
                Self::Raw
                    | Self::QemuNbd
                    | Self::Alone
                    | Self::Protected {
                        ack: "local",
                        sustained: false
                    }
                    | Self::Mirror("background")
            )
    }

    /// Why it cannot be measured here.
    pub(super) fn missing(self) -> Option<String> {
        let needed: &[(&str, &str)] = match self {
            Self::QemuNbd => &[("qemu-nbd", "qemu-utils")],
            Self::Mirror(_) => &[
                ("qemu-storage-daemon", "qemu-system-common"),
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
