//! The descriptors of one chain, wherever its head stands (virtio 1.2, section 2.7.5).
//!
//! A chain that is broken (a loop, an index or a table that does not exist) ends early, with a
//! descriptor that says another one follows, or with none at all: [`super::request::parse`] refuses
//! both.

use super::request::{Descriptor, ReadGuest};

const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
/// Descriptors of a table of its own at most.
const INDIRECT_MAX: u32 = super::SEGMENTS_MAX + 2;

/// Walks a chain.
pub struct Chain<'a> {
    read: ReadGuest<'a>,
    table: u64,
    entries: u32,
    next: Option<u16>,
    /// Descriptors that may still come: more is a loop.
    left: u32,
    is_indirect: bool,
}

impl std::fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chain at {:?} of {}", self.next, self.entries)
    }
}

impl<'a> Chain<'a> {
    /// The chain that begins with `head` in a table of `entries` descriptors at that guest address.
    pub fn new(table: u64, entries: u16, head: u16, read: ReadGuest<'a>) -> Self {
        Self {
            read,
            table,
            entries: u32::from(entries),
            next: Some(head),
            left: u32::from(entries),
            is_indirect: false,
        }
    }

    /// The descriptor and its flags.
    fn load(&mut self, index: u16) -> Option<(Descriptor, u16, u16)> {
        if u32::from(index) >= self.entries {
            return None;
        }
        let at = self
            .table
            .checked_add(u64::from(index) * DESCRIPTOR_BYTES)?;
        let mut raw = [0; DESCRIPTOR_BYTES as usize];
        if !(self.read)(at, &mut raw) {
            return None;
        }
        let half = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let flags = half(12);
        let descriptor = Descriptor {
            address: u64::from_le_bytes(raw[..8].try_into().expect("eight bytes")),
            length: u32::from_le_bytes(raw[8..12].try_into().expect("four bytes")),
            is_writable: flags & FLAG_WRITE != 0,
            has_next: flags & FLAG_NEXT != 0,
        };
        Some((descriptor, flags, half(14)))
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        loop {
            let index = self.next.take()?;
            self.left = self.left.checked_sub(1)?;
            let (descriptor, flags, next) = self.load(index)?;
            if flags & FLAG_INDIRECT == 0 {
                self.next = descriptor.has_next.then_some(next);
                return Some(descriptor);
            }
            let entries = descriptor.length / DESCRIPTOR_BYTES as u32;
            let whole = u64::from(descriptor.length).is_multiple_of(DESCRIPTOR_BYTES);
            if self.is_indirect || descriptor.has_next || !whole || entries > INDIRECT_MAX {
                return None;
            }
            self.is_indirect = true;
            self.table = descriptor.address;
            self.entries = entries;
            self.left = entries;
            self.next = Some(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(memory: &mut [u8], at: usize, address: u64, length: u32, flags: u16, next: u16) {
        memory[at..at + 8].copy_from_slice(&address.to_le_bytes());
        memory[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        memory[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
        memory[at + 14..at + 16].copy_from_slice(&next.to_le_bytes());
    }

    fn walk(memory: &[u8], head: u16) -> Vec<Descriptor> {
        let mut read = |address: u64, out: &mut [u8]| {
            let from = usize::try_from(address).ok();
            let from = from.and_then(|at| memory.get(at..at.checked_add(out.len())?));
            from.is_some_and(|from| {
                out.copy_from_slice(from);
                true
            })
        };
        Chain::new(0, 4, head, &mut read).collect()
    }

    #[test]
    fn chains_are_followed_also_into_a_table() {
        let mut memory = vec![0; 4096];
        put(&mut memory, 16, 0x100, 16, FLAG_NEXT, 3);
        put(&mut memory, 48, 0x200, 512, FLAG_WRITE, 0);
        let found = walk(&memory, 1);
        let shapes: Vec<_> = found.iter().map(|d| (d.address, d.is_writable)).collect();
        assert_eq!(shapes, [(0x100, false), (0x200, true)]);
        put(&mut memory, 0, 0x800, 32, FLAG_INDIRECT, 0);
        put(&mut memory, 0x800, 0x300, 16, FLAG_NEXT, 1);
        put(&mut memory, 0x810, 0x400, 1, FLAG_WRITE, 0);
        assert_eq!(walk(&memory, 0).len(), 2);
    }

    /// Each of these has hung or crashed some device once.
    #[test]
    fn broken_chains_end() {
        let mut memory = vec![0; 4096];
        put(&mut memory, 0, 0x100, 16, FLAG_NEXT, 0);
        let looped = walk(&memory, 0);
        assert_eq!(looped.len(), 4);
        assert!(looped[3].has_next);
        put(&mut memory, 0, 0x100, 16, FLAG_NEXT, 900);
        assert!(walk(&memory, 0)[0].has_next);
        assert_eq!(walk(&memory, 77), []);
        // A table in a table, one of an odd length, one that is far too long, one outside of memory.
        put(&mut memory, 0x800, 0x800, 16, FLAG_INDIRECT, 0);
        for (address, length) in [(0x800, 16), (0x900, 17), (0x900, 1 << 20), (u64::MAX, 16)] {
            put(&mut memory, 0, address, length, FLAG_INDIRECT, 0);
            assert_eq!(walk(&memory, 0), []);
        }
    }

    proptest! {
        /// Whatever the guest's memory holds: the walk ends, with a bounded number of descriptors.
        #[test]
        fn every_walk_ends(memory in prop::collection::vec(any::<u8>(), 0..512), head in 0u16..6) {
            prop_assert!(walk(&memory, head).len() <= INDIRECT_MAX as usize + 4);
        }
    }
}
