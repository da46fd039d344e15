//! The way of memory to the backup (MEMORY.md §1, §2).
//!
//! ```text
//!  staged pages ─► Encoder ─► frames ─► TCP ─► FrameReader ─► Decoder ─► Store
//!                  (pure)     Sender                serve()     (pure)
//!                     owner ◄─ AckReader ◄─ WHOLE, COMMITTED ◄─┘
//! ```
//!
//! - [`encoder`] and [`decoder`] know no socket and no clock. What one sends as a difference is a difference
//!   to what the other has: both forget with the session.
//! - A page is accepted only with the checksum of what it has to be, and an epoch only with the digest of all.
//! - [`sender`] is the owner's thread, [`acks`] and [`receiver`] one of their own each. Every read and write
//!   ends at the socket's timeouts; who is silent for too long is the caller's judgement.

pub mod acks;
pub mod decoder;
mod digest;
pub mod encoder;
pub mod frames;
pub mod gain;
mod pack;
mod pages;
pub mod receiver;
pub mod sender;
#[cfg(test)]
mod tests;

pub use acks::{AckReader, Acked};
pub use encoder::{Counts, Cut, Encoder};
pub use frames::{Link, LinkLost};
pub use receiver::{Came, Got, commit, serve};
pub use sender::{Sender, Settings};

/// A page, where lengths in memory are counted.
const PAGE: usize = 4096;
