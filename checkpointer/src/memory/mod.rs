//! A guest's memory: which of it is dirty, its copy in the pause, its way to the backup, and its copy there.
//!
//! Everything counts in pages of [`PAGE_BYTES`], numbered through all RAM blocks in their order ([`ram::Ram`]).

pub mod dirty;
pub mod ram;
pub mod staging;
pub mod store;
pub mod stream;
pub mod tracker;

pub use blkback_proto::ctl::PAGE_BYTES;
