//! Formats and protocols of blockrep, without any I/O.
//!
//! - [`record`], [`segment`], [`meta`]: what stands on disk (JOURNAL.md).
//! - [`link`]: what goes between primary and backup (PROTOCOL.md).
//! - [`memory`]: a guest's memory on its way to the backup, and kept there (MEMORY.md).
//! - [`ctl`]: the control protocol of the daemons (PROTOCOL.md).
//! - [`diskspec`]: the disk specifications people type.
//!
//! Nothing in here trusts its input: lengths are bounded before they are used, unknown versions
//! are refused, and reserved bytes must be zero.

pub mod ctl;
pub mod diskspec;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod link;
pub mod memory;
pub mod meta;
pub mod moment;
pub mod record;
pub mod segment;
pub mod units;
