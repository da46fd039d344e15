//! A process is watched from outside, for real. A write that is missed is a guest that goes on with old memory at the
//! backup, and nobody knows; a process that is disturbed is a guest that dies because it was to be protected.

#[path = "tracker/attach.rs"]
mod attach;
#[path = "tracker/child.rs"]
mod child;
#[path = "tracker/ends.rs"]
mod ends;
#[path = "tracker/figures.rs"]
mod figures;
#[path = "tracker/follow.rs"]
mod follow;
#[path = "tracker/qemu.rs"]
mod qemu;
#[path = "tracker/shadow.rs"]
mod shadow;

use checkpointer::memory::tracker::{Kind, TrackerError};

/// Whether this machine has that kind; says in a line why not.
fn has(kind: Kind, tried: &Result<impl Sized, TrackerError>) -> bool {
    if let Err(TrackerError::Refused(why)) = tried {
        println!("skipped: no {} here: {why}", kind.word());
        return false;
    }
    true
}
