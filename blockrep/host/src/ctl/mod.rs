//! Control sockets: the server every daemon runs, the client every tool uses, and the event log.
//!
//! ```text
//! any thread ── publish ──► EventLog (ring, 4096) ◄── cursor ─┐
//! any thread ── ReplyHandle ──► outbox ── eventfd ──► ctl thread ── poll ──► sockets
//!                                Handler::handle ◄────────────┘
//! ```
//! The ctl thread owns every socket and calls the handler; nothing that it does waits for a
//! client. Events are not queued per client: each follower is a cursor into the ring, so a slow
//! one costs nothing and is told how many it lost.

mod client;
mod conn;
mod elsewhere;
mod events;
mod hint;
mod log;
mod paths;
mod reply;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{Client, ClientError, EventStream};
pub use elsewhere::elsewhere;
pub use events::{EVENT_LOG_BYTES_MAX, EVENTS_KEPT, EventLog, NewEvent};
pub use hint::{aimed, shell_word};
pub use paths::{
    NameError, RUNTIME_DIR, RUNTIME_DIR_VARIABLE, control_path, control_path_of_backup, runtime_dir,
};
pub use reply::{Handler, ReplyHandle};
pub use server::{Limits, Server, ServerConfig};
pub use socket::{BindError, ControlSocket, PeerCred, somebody_listens};
