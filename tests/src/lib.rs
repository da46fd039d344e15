//! Harness and simulator for tests over the whole of blockrep.

pub mod bench;
pub mod harness;
pub mod sim;
pub mod tidy;
pub mod journal;
pub mod programs;
