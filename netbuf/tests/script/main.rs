//! `remus-netbuf-setup` as libxl starts it: its environment, its exit codes, its keys in a store behind a
//! socket, on interfaces in network namespaces of the tests' own threads. Needs root and `ip` (Debian package
//! iproute2); without, each test says so and passes.
//!
//! What takes the kernel's plug is in [`plugged`], which runs where the kernel has one and says so elsewhere.

#![allow(
    clippy::unwrap_used,
    reason = "a test program: a failed unwrap is a failed test"
)]

mod host;
#[path = "../relay/kinds.rs"]
mod kinds;
mod plugged;
mod program;
mod replies;
mod server;
#[allow(
    dead_code,
    reason = "shared with the tests of the relay, which use more of it"
)]
#[path = "../relay/wire.rs"]
mod wire;
