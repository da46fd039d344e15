//! The way of memory to the backup.
