//! The relay: what holds a guest's frames where the kernel has no `sch_plug`.
//!
//! ```text
//!                      this process
//!   guest ── tap ──► [AF_PACKET] ─► queue, by epoch ─► [AF_PACKET] ──veth pair──► port of the bridge
//!            tap ◄── [AF_PACKET] ◄──── at once ◄────── [AF_PACKET] ◄──veth pair── port of the bridge
//! ```
//!
//! The guest's interface (a tap, or the host's end of a veth pair) is no port of any bridge. The other
//! side is the free end of a veth pair whose far end *is* a port: a frame sent on a port itself would go
//! out of it and not into the bridge.
//!
//! **Crash rule.** No kernel object joins the two interfaces, only this process does. When it dies,
//! whatever it held dies with it, and nothing passes any more, in neither direction, until a relay is
//! started again. What was lost looks to the guest's peers like loss on the way. So a dead relay lets
//! nothing out early; it is never open by accident.
//!
//! **Who else could let a frame out.** The host's own stack sees what the guest sends, after the packet
//! socket has. [`isolate`] says what has to be set so that it neither forwards nor answers it.

pub mod batch;
pub mod handle;
pub mod isolate;
pub mod port;
pub mod pump;
pub mod queue;
pub mod ring;

use port::PortState;
use queue::{QueueError, QueueStats};
use std::io;
use std::time::Duration;

pub use handle::{CutDone, Relay};

/// What a relay is made of.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// The guest's interface on this host: no bridge port.
    pub guest: String,
    /// The free end of the veth pair whose far end is the bridge's port.
    pub bridge: String,
    /// What the queue holds at most, [`queue::charge`] for each frame.
    pub held_bytes_max: usize,
    /// How many epochs may be cut and not released.
    pub epochs_max: usize,
    /// What the kernel keeps for each socket until the relay has read it: of the guest's, long frames only.
    pub socket_bytes: usize,
    /// Memory that is shared with the kernel, for the guest's frames that are not long: [`ring::SLOT_BYTES`] each.
    pub ring_bytes: usize,
    /// Begin as after HOLD. Only who knows that nobody protects this guest yet says no: a relay that is started
    /// again after a crash would let out what no epoch covers.
    pub held: bool,
    /// How long a command waits for its answer.
    pub answer_timeout: Duration,
}

impl RelayConfig {
    /// Held from the start; 64 MiB, 1024 epochs, 16 MiB in each socket, a ring of 8 MiB.
    pub fn new(guest: &str, bridge: &str) -> Self {
        Self {
            guest: guest.to_owned(),
            bridge: bridge.to_owned(),
            held_bytes_max: 64 << 20,
            epochs_max: 1024,
            socket_bytes: 16 << 20,
            ring_bytes: 8 << 20,
            held: true,
            answer_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a relay did not start or a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Nothing changed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("Interface {interface} cannot be opened")]
    Port {
        interface: String,
        #[source]
        source: io::Error,
    },
    #[error("The relay cannot be started")]
    Start(#[source] io::Error),
    /// Nothing is forwarded any more.
    #[error("The relay has ended")]
    Ended,
    /// It may still be carried out.
    #[error("The relay did not answer within {0:?}")]
    Unanswered(Duration),
}

/// One direction since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read from the socket.
    pub received_frames: u64,
    /// Handed to the other interface.
    pub sent_frames: u64,
    /// Dropped by the kernel because the socket's buffer was full.
    pub socket_drops: u64,
    /// Not understood: longer than any frame, or with offloads that a `virtio_net_hdr` cannot say.
    pub unreadable_frames: u64,
    /// The other interface does not take them (longer than its MTU, for one).
    pub refused_frames: u64,
    /// Dropped because the interface they were for is down or gone (inbound only).
    pub unwanted_frames: u64,
    /// How often the other interface had no room; nothing was lost by it.
    pub busy: u64,
}

/// What a relay says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayStatus {
    pub queue: QueueStats,
    pub guest: PortState,
    pub bridge: PortState,
    pub outbound: Traffic,
    pub inbound: Traffic,
    /// Turns of the thread: one that spins shows here.
    pub turns: u64,
}
