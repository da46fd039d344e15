//! Guests that reach the volume over vhost-user.
//!
//! ```text
//!  VMM ──socket── vhost thread: negotiation        guest memory: rings, data
//!                      │ mail: memory, start, stop       ▲
//!                      ▼                                 ▼
//!                 I/O thread of the volume: takes requests from the rings, answers into them
//! ```
//!
//! The vhost thread (one a volume) speaks the protocol and never touches a ring that is running; the
//! I/O thread owns the rings from start to stop. A stop is answered only when everything that was
//! taken from the ring is answered.

mod bitmap;
mod device;
mod mapping;
mod pages;
mod record;
mod request;
mod rings;
mod standing;
mod vring;
mod work;

pub(super) use device::{Server, serve};
pub(super) use mapping::Mapping;
pub(super) use rings::Rings;

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use virtio_queue::QueueState;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

/// Memory of a guest; the bitmap is told what is written there.
pub(super) type Guest = GuestMemoryMmap<bitmap::GuestBitmap>;

/// What the vhost thread tells the I/O thread.
pub(in crate::daemon) enum RingMail {
    /// The guest's memory lies there from now on.
    Memory(Arc<Guest>),
    /// A VMM is there.
    Connected,
    /// It took these features.
    Features(u64),
    /// The VMM is gone, for that reason, and every ring has stopped: its memory is let go of.
    Gone(String),
    /// A ring starts.
    Start(Box<Start>),
    /// Answers of a ring are announced there from now on.
    Call(usize, Option<EventNotifier>),
    /// A ring stops; answered with the place of the driver's next request when it has.
    Stop(usize, SyncSender<u16>),
}

/// A ring as it was negotiated.
pub(in crate::daemon) struct Start {
    pub(super) ring: usize,
    pub(super) queue: QueueState,
    pub(super) kick: EventConsumer,
    pub(super) call: Option<EventNotifier>,
}
