//! The journal of a volume at its backup: where records go, and what a crash leaves of them.
//!
//! [`ring`] hands out places and knows what is free; [`scan`] reads a journal back; [`recovery`]
//! decides what the volume is. All pure: they read through [`scan::ReadAt`] and write nothing.

pub mod recovery;
pub mod ring;
pub mod scan;
pub mod start;

#[cfg(test)]
mod tests;
