//! blockrep: a replicated block device in epochs.
//!
//! Pure parts (`event, now -> effects`; no file, socket, clock, thread or randomness):
//! [`engine`], [`group`], [`journal`], [`overlay`]. Everything else drives them.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod frontend;
pub mod group;
pub mod io;
pub mod journal;
pub mod mutants;
pub mod overlay;
pub mod reactor;
