//! Harness and simulator for tests over the whole of blockrep.

pub mod bench;
pub mod crash;
pub mod harness;
pub mod journal;
pub mod programs;
pub mod sim;
pub mod soak;
pub mod teller;
pub mod tidy;
