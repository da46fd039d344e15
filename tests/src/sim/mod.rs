//! The simulator: two hosts, their disks, links and clock in one process, by seed.
//!
//! It runs the code of the daemons, not a copy: engines, groups, journal, recovery, overlay and
//! apply. It is their second driver. Everything random comes from the seed, so a seed that fails
//! fails again.
//!
//! # What goes wrong
//!
//! **Hosts** die at any end of a disk operation. A *kill* leaves what was written in the disk's
//! cache, and operations on their way happen, do not, or happen in part, sector by sector. A *power
//! cut* does that, too, and then every sector of 512 bytes that no sync covered is kept or lost for
//! itself, so writes are torn and reordered. A sync covers writes that had ended when it was
//! submitted; a drive also writes parts of its cache of its own accord. Either host or both; they
//! come back, or the backup is promoted.
//!
//! **Links** are streams: in order, never twice, late, cut anywhere. The end is told to both sides,
//! or to none (half open), and nobody can connect for a while.
//!
//! **Disks** are slow, or every write or sync of the image, the journal or the metadata fails until
//! the host is started again: full, or broken. What failed may have happened in part.
//!
//! **Rot**: while the backup is down, one bit of a record in its journal flips; of a promoted side also
//! at a second crash, if it has written its metadata in between. Not simulated: rot
//! of metadata slots (the other slot looks like what a torn write leaves), rot that leaves no trace
//! (the seal of the last sealed epoch itself destroyed, which looks like a torn tail), and rot in a
//! journal of a running daemon.
//!
//! **A whole guest**, in two of five seeds (`memory/mod.rs`): the real sequence of the checkpointer makes its epochs beside the
//! primary, and who holds them sits beside the backup, in shared memory, which a power cut empties. Either is killed and comes
//! back, the former at any order; orders are late, refused or unanswered; the hypervisor hangs or dies, the guest reboots or goes
//! off, somebody types `stop` and `cont`, netbuf is killed, nobody reaches the authority; their link breaks; answers of the
//! backup's daemon come late, twice or never, and it is killed by itself.
//!
//! **Bounds**: little memory, few extents, apply throttled, windows that are nearly all reserve.
//!
//! # What must hold
//!
//! - The backup is exactly one epoch of all its volumes: never partial, mixed or older than what was
//!   released, flushed or, in write mode, answered. Checked after every recovery, at random
//!   moments as if power went then, and at promotions, against the contents of every sector.
//! - A promoted side keeps a prefix of what it wrote, not shorter than what was flushed, or
//!   answered if it was only killed. A primary's image keeps what was flushed.
//! - Every read gives what the guest may see, on both sides, at any time.
//! - The loss of protection is durable before writes go on without a backup.
//! - Memory and disks of a promoted side are of one moment, and know of every transaction whose reply a witness outside has
//!   seen; what is put together of changed pages is what memory was; output is open at one host at most. No epoch is committed
//!   without memory while that is a member; disks promoted alone are not older than what was released.
//! - In peace everything is answered, journals drain, and the two sides become equal; checkpoints let output go.

#![allow(
    missing_debug_implementations,
    reason = "the parts of a run are looked at with --trace"
)]

pub mod boot;
pub mod disk;
pub mod guest;
pub mod host;
pub mod memory;
pub mod model;
pub mod oracle;
pub mod plan;
pub mod scenarios;
pub mod story;
pub mod wires;
pub mod world;

pub use story::run;
