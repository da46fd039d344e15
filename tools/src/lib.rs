//! Client side tools of blockrep: `blockrepctl`, the offline journal reader and the load generator.

pub mod ctl;
pub mod journal;
pub mod load;
