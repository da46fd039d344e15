//! Drivers of hypervisors: pause and resume a guest, say where its memory lies, copy its device state, and bring
//! it up from both.

pub mod qemu;
