//! The few messages of routing netlink that hold a guest's output: no shell, no other program.
//!
//! [`request`] builds, [`answer`] reads, [`wire`] knows lengths and padding, [`Netlink`] is the socket.
//! The byte layouts stand in `netbuf/NETBUF.md`. Host byte order throughout, as the kernel speaks.

pub mod answer;
pub mod request;
mod socket;
#[cfg(test)]
mod tests;
mod watch;
pub mod wire;

pub use answer::{Counters, Filter, Link, Qdisc};
pub use socket::{Netlink, NetlinkError};
pub use watch::LinkWatch;
