//! Which pages a guest has written.
