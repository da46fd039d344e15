//! The hypervisor of a guest.
