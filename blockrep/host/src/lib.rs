//! What every blockrep daemon needs of its host: the control socket and its client, locks against
//! a second daemon on the same data, signals, sd_notify, logging, wall clock and random ids.
//!
//! Nothing here knows of volumes or epochs. The only thread is the one of [`ctl::Server`].

pub mod clock;
pub mod ctl;
pub mod exit;
pub mod ids;
pub mod lock;
pub mod logging;
pub mod notify;
pub mod signals;
mod wake;

pub use wake::Waker;
