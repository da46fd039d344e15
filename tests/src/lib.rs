//! Harness and simulator for tests over the whole of blockrep.

pub mod bench;
pub mod crash;
pub mod harness;
pub mod soak;
