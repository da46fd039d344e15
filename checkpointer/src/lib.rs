//! Checkpoints of a guest: many times a second the guest is paused, its memory and device state are copied,
//! its disks and its output are cut, and it goes on; what it said is let go when the backup has all of that.
//!
//! There is [`sequence`], which decides what happens when. Nothing here drives a guest yet.
//! `checkpointer/CHECKPOINTER.md` has the whole of it.

pub mod sequence;
