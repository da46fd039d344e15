//! The daemons: files, sockets, threads and clocks around the pure engines.
//!
//! ```text
//!  main thread: start-up, signals          ctl thread (blockrep-host)
//!       │ spawns                                 │ requests
//!       ▼                                        ▼ mailbox
//!  vol0 thread: reactor, engine, group ◄──mailboxes──► vol1 thread: reactor, engine ...
//!       │ io_uring: image, journal, metadata, link, NBD clients
//! ```
//!
//! One I/O thread per volume owns everything of the volume; the group lives on the first one.
//! Threads talk through mailboxes only; there are no locks on the path of a request.

mod control;
mod exchanged;
mod faults;
mod files;
mod guest_memory;
mod image_mark;
mod image_owner;
mod last_session;
mod link;
mod listen;
mod loss;
mod memory;
mod nbd;
mod nbd_loop;
mod net;
mod on_word;
mod owner;
mod pressure;
mod role;
mod start_events;
mod startup;
mod status;
mod thread;
mod timeline;
mod unapplied;
mod vhost;
mod watch;

pub use startup::{StartError, run_backup, run_primary};

/// Memory of one I/O thread for requests, records and copies, in bytes.
pub const POOL_BYTES: usize = 56 << 20;
/// Part of it that requests of front ends and records from the link leave free, so that the engine
/// can always go on.
pub const ENGINE_RESERVE_BYTES: usize = 16 << 20;
/// Most bytes the front ends of a volume can have in flight: kept free in the backup's window.
pub const FRONT_BYTES_MAX: u64 = 8 << 20;
/// Front ends keep their share of the window free, and one segment is for a promotion: with
/// everything applied, and the tail still in the segment before the head, there must be room for
/// writes, or nothing would ever move again.
const _: () = {
    let smallest = crate::journal::ring::Geometry {
        segment_bytes: crate::config::journal_segment_bytes(crate::config::JOURNAL_BYTES_MIN),
        segment_count: (crate::config::JOURNAL_BYTES_MIN
            / crate::config::journal_segment_bytes(crate::config::JOURNAL_BYTES_MIN))
            as u32,
    };
    let left = (smallest.segment_count - 3) as u64 * smallest.usable_bytes();
    assert!(left >= FRONT_BYTES_MAX + 2 * smallest.usable_bytes());
};
/// Journal bytes a backup keeps in memory for apply: with them and its reserve gone there is still room
/// for twice what the front ends of its primary have in flight to come in.
pub const WINDOW_BYTES_MAX: u64 = 24 << 20;
const _: () = {
    let taken = ENGINE_RESERVE_BYTES + WINDOW_BYTES_MAX as usize;
    assert!(POOL_BYTES >= taken + 2 * FRONT_BYTES_MAX as usize);
};
/// Extents an engine keeps in memory at most.
pub const EXTENTS_MAX: usize = 1 << 18;
/// Memory one extent takes at most, in bytes: a node of the map, and a copy while it is applied.
pub const EXTENT_BYTES: u64 = 128;
