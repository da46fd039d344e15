//! Who may run a guest.
