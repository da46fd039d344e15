//! `blockrep-load`: a load generator over NBD and the oracle that judges what a crash left behind.
//!
//! The generator ([`run`]) writes *self-describing* 512-byte units ([`unit`]), so that an image
//! alone tells, for every unit, which write it shows. The log ([`log`]) tells when each write was
//! submitted and when its completion was seen. The oracle ([`oracle`]) puts the two together and
//! accepts the image iff it is a state the disk could have been in at one moment.
//!
//! This module shares no code with the server: a misreading of the NBD protocol or of an ordering
//! rule would otherwise be made twice and cancel out.
//!
//! ```text
//!   plan ──► run ── wire ──► NBD server ··· replication ··· promoted side
//!             │                                                │ image or NBD
//!             ▼ every submission before it is sent             ▼
//!            log ──────────► history ─────► oracle ◄──────── image
//! ```

pub mod check;
pub mod cli;
pub mod control;
mod generator;
pub mod history;
pub mod image;
pub mod log;
pub mod nbd;
pub mod oracle;
pub mod plan;
pub mod run;
pub mod unit;
mod wire;
