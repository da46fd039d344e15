//! The daemon as it is started, with the relay, on real interfaces in network namespaces of the tests' own
//! threads. Needs root and `ip` (Debian package iproute2); without, each test says so and passes.
//!
//! ```text
//!   guest g0 ══ g1 ─┐
//!                   bridge br0 ─ w0 ══ w1 witness          (g1 is taken out of it while a relay works)
//!   sentinel s0 ══ s1 ─┘
//! ```
//!
//! "Nothing came" is shown without a clock: a sentinel frame is sent through the same bridge after the fact,
//! and whatever the witness's socket holds in front of it was there before.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

mod announcing;
mod changes;
mod either;
mod either_tampered;
mod failover;
mod holding;
#[path = "../relay/kinds.rs"]
mod kinds;
mod leaving;
#[path = "../relay/namespace.rs"]
mod namespace;
mod packets;
mod plant;
mod site;
mod streams;
mod tap;
mod unit;
#[allow(
    dead_code,
    reason = "shared with the tests of the relay, which use more of it"
)]
#[path = "../relay/wire.rs"]
mod wire;
