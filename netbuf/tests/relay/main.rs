//! The relay on real interfaces, in network namespaces of the tests' own threads: nothing has a name outside
//! and nothing can be left behind. Needs root and `ip` (Debian package iproute2); without, each test says so
//! and passes.
//!
//! ```text
//!   guest g0 ══ g1 ── relay ── b0 ══ b1 ─┐
//!                                        bridge ─ w0 ══ w1 witness
//!   sentinel s0 ════════════════ s1 ─────┘
//! ```
//!
//! "Nothing came" is shown without a clock: a sentinel frame is sent through the same bridge after the fact, and
//! whatever the witness's socket holds in front of it was there before.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

mod failures;
mod frames;
mod kinds;
mod lab;
mod namespace;
mod speed;
mod tap;
mod tcp;
mod wire;
