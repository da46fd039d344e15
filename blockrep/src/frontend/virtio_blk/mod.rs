//! virtio-blk (virtio 1.2, section 5.2): what a guest asks of a disk over vhost-user, checked.
//!
//! Pure: descriptors and bytes go in, requests come out. The rings themselves are driven by the
//! volume's I/O thread, see `daemon/vhost`; what is in flight when a daemon dies stands in an
//! [`inflight::Table`].

pub mod chain;
pub mod config;
pub mod fuzz;
pub mod inflight;
pub mod request;

/// Queues a guest may use at most.
pub const QUEUES_MAX: usize = 16;
/// Entries of one queue at most.
pub const QUEUE_ENTRIES_MAX: u16 = 1024;
/// Data segments of one request at most, as the guest is told.
pub const SEGMENTS_MAX: u32 = 254;
/// Sectors one discard or zeroing may cover at most: what one request to an engine covers.
pub const RANGE_SECTORS_MAX: u32 = (blkback_proto::record::RANGE_BYTES_MAX / 512) as u32;
/// Ranges one discard or zeroing may name at most.
pub const RANGES_MAX: u32 = 16;

/// Feature bits offered (virtio 1.2, sections 5.2.3 and 6), without what vhost adds.
pub mod feature {
    /// `seg_max` of the configuration counts.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const READ_ONLY: u64 = 1 << 5;
    /// `blk_size` counts.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// FLUSH is understood.
    pub const FLUSH: u64 = 1 << 9;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// DISCARD is understood.
    pub const DISCARD: u64 = 1 << 13;
    /// WRITE_ZEROES is understood.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Descriptors may stand in a table of their own.
    pub const INDIRECT: u64 = 1 << 28;
    /// Notifications by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not the legacy interface.
    pub const VERSION_1: u64 = 1 << 32;

    /// What is always offered.
    pub const ALWAYS: u64 =
        SEG_MAX | BLK_SIZE | FLUSH | MQ | DISCARD | WRITE_ZEROES | INDIRECT | EVENT_IDX | VERSION_1;
}
