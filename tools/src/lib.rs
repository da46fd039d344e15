//! Client side tools of blockrep: shared parts of `blockrepctl` and the load generator.

pub mod ctl;
pub mod load;
