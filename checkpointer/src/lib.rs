//! Carries a running guest to its backup, many times a second. `CHECKPOINTER.md` tells how and why.

pub mod authority;
pub mod cli;
pub mod config;
mod control;
pub mod hypervisor;
mod inbox;
pub mod memory;
mod plant;
pub mod protect;
pub mod sequence;
pub mod standby;
