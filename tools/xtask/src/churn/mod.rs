//! Commands whose guest keeps its disk busy and knows what it must find there: `guest-fio`, `restarts`
//! and `migrate`.
//!
//! The guest (`tests/guest/churn.rs`) reaches the primary by vhost-user-blk. Each of its threads writes
//! blocks that follow from thread and turn, so that a second guest can tell of any disk after which turn
//! it was cut off; and it says which of its flushes were answered, so that this program can tell whether
//! that is late enough. Beside it fio writes and verifies on its own.

mod ear;
mod ground;
mod guest_fio;
mod memory;
mod migrate;
mod plant;
mod qmp;
mod restarts;
mod stage;
#[path = "../../../../tests/guest/turns.rs"]
#[allow(dead_code)] // Shared with the guest's program, which uses the rest.
mod turns;

pub(crate) use ground::Ground;
pub(crate) use guest_fio::{Options as GuestFioOptions, run as guest_fio};
pub(crate) use migrate::{Options as MigrateOptions, run as migrate};
pub(crate) use restarts::{Options as RestartsOptions, run as restarts};
