//! What the load does, by name.

/// What the commit family offers, in bytes per second.
pub(super) const OFFERED_BYTES_PER_S: u64 = 100_000_000;
/// Blocks that [`Pattern::TenTimes`] goes over ten times: more than are in flight, and far less than
/// an epoch of 100 ms writes.
pub(super) const RUN_BLOCKS: u64 = 64;

/// In which order blocks come, and how fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// As fast as they are answered.
    Free,
    /// As `Free`, but no block twice.
    Once,
    /// Runs of [`RUN_BLOCKS`] blocks, each run ten times before the next.
    TenTimes,
    /// [`OFFERED_BYTES_PER_S`], no more.
    Offered,
    /// No load at all.
    Idle,
}

/// What the load does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// fio's `rw`.
    pub(super) rw: &'static str,
    /// Bytes of a request.
    pub(super) block_bytes: u64,
    /// Requests in flight.
    pub(super) depth: u32,
    pub(super) pattern: Pattern,
}

impl Workload {
    pub(super) const WRITE_1: Self = Self::new("randwrite-4k-qd1", "randwrite", 4096, 1);
    pub(super) const WRITE_32: Self = Self::new("randwrite-4k-qd32", "randwrite", 4096, 32);
    pub(super) const SEQUENTIAL: Self = Self::new("write-1m-qd4", "write", 1 << 20, 4);
    pub(super) const READ_1: Self = Self::new("randread-4k-qd1", "randread", 4096, 1);
    pub(super) const READ_32: Self = Self::new("randread-4k-qd32", "randread", 4096, 32);
    pub(super) const OFFERED: Self =
        Self::new("randwrite-64k-100MBps", "randwrite", 64 << 10, 4).with(Pattern::Offered);
    pub(super) const ONCE: Self =
        Self::new("randwrite-4k-qd32-once", "randwrite", 4096, 32).with(Pattern::Once);
    pub(super) const TEN_TIMES: Self =
        Self::new("write-4k-qd32-ten-times", "write", 4096, 32).with(Pattern::TenTimes);
    pub(super) const IDLE: Self = Self::new("idle", "none", 4096, 0).with(Pattern::Idle);
    pub(super) const ALL: [Self; 9] = [
        Self::WRITE_1,
        Self::WRITE_32,
        Self::SEQUENTIAL,
        Self::READ_1,
        Self::READ_32,
        Self::OFFERED,
        Self::ONCE,
        Self::TEN_TIMES,
        Self::IDLE,
    ];

    const fn new(name: &'static str, rw: &'static str, block_bytes: u64, depth: u32) -> Self {
        Self {
            name,
            rw,
            block_bytes,
            depth,
            pattern: Pattern::Free,
        }
    }

    const fn with(self, pattern: Pattern) -> Self {
        Self { pattern, ..self }
    }

    pub(super) const fn name(self) -> &'static str {
        self.name
    }

    pub(super) fn writes(self) -> bool {
        self.rw.ends_with("write")
    }

    pub(super) fn reads(self) -> bool {
        self.rw.ends_with("read")
    }
}
