//! Requests taken from a guest's rings and not answered, in memory that outlives the process.
//!
//! A daemon that is killed under a living guest is started again, and the guest's VMM connects
//! anew. What the ring itself says then is how many requests were answered, not which: answers come
//! in any order. So every request that is taken is noted here, in a file mapped by the daemon,
//! before it is carried out, and struck out when its answer stands in the used ring.
//!
//! ```text
//!  take:    entries[head] = order              (orders count up from 1; 0: not in flight)
//!  answer:  publishing = head, used as it is
//!           used ring, used index + 1          (guest memory)
//!           entries[head] = 0
//!           publishing = none, used index
//! ```
//!
//! The only reader of what a process left behind is its successor, so what matters is the order of
//! stores as the program makes them, not that of another processor. A table that does not fit the
//! ring is one of another guest and is forgotten: [`Ring::recover`] says so.
//!
//! Words are 64 bits, native: the file never leaves the host, nor a boot of it.

use super::{QUEUE_ENTRIES_MAX, QUEUES_MAX};
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: u64 = u64::from_le_bytes(*b"BRINFL01");
const HEAD_WORDS: usize = 8;
const RING_WORDS: usize = 1 + QUEUE_ENTRIES_MAX as usize;
/// Length of the table in words.
pub const TABLE_WORDS: usize = HEAD_WORDS + QUEUES_MAX * RING_WORDS;
const PUBLISHING: u64 = 1 << 32;

/// The table of a volume over some memory.
#[derive(Debug)]
pub struct Table<W> {
    words: W,
    order: u64,
}

/// What a ring that starts again has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Heads that were taken and not answered, in the order in which they were taken.
    pub heads: Vec<u16>,
    /// Where the driver's next request stands.
    pub next_avail: u16,
    /// Something stood there that did not fit: of another guest.
    pub forgotten: bool,
}

impl<W: AsRef<[AtomicU64]>> Table<W> {
    /// Takes the table up, or makes it anew when it is of another boot, or none.
    ///
    /// # Panics
    /// If the memory is not [`TABLE_WORDS`] long.
    pub fn open(words: W, boot: [u64; 2]) -> Self {
        assert_eq!(words.as_ref().len(), TABLE_WORDS);
        let table = words.as_ref();
        let head = [MAGIC, boot[0], boot[1]];
        let is_ours = |(word, want): (&AtomicU64, &u64)| word.load(Ordering::Acquire) == *want;
        if !table.iter().zip(&head).all(is_ours) {
            // The magic comes last: a table half made is none.
            table.iter().for_each(|w| w.store(0, Ordering::Release));
            table[2].store(boot[1], Ordering::Release);
            table[1].store(boot[0], Ordering::Release);
            table[0].store(MAGIC, Ordering::Release);
        }
        let orders = table[HEAD_WORDS..].chunks(RING_WORDS);
        let order = orders
            .flat_map(|ring| &ring[1..])
            .map(|w| w.load(Ordering::Acquire))
            .max();
        Self {
            words,
            order: order.unwrap_or(0),
        }
    }

    fn ring(&self, ring: usize) -> &[AtomicU64] {
        let from = HEAD_WORDS + ring * RING_WORDS;
        &self.words.as_ref()[from..from + RING_WORDS]
    }

    /// A request was taken from the ring.
    pub fn take(&mut self, ring: usize, head: u16) {
        self.order += 1;
        let order = self.order;
        self.ring(ring)[1 + usize::from(head)].store(order, Ordering::Release);
    }

    /// Its answer is about to be put into the used ring, whose index is `used` until then.
    pub fn answering(&self, ring: usize, head: u16, used: u16) {
        let word = PUBLISHING | u64::from(head) << 16 | u64::from(used);
        self.ring(ring)[0].store(word, Ordering::Release);
    }

    /// It is there, and the index is `used` now.
    pub fn answered(&self, ring: usize, head: u16, used: u16) {
        let ring = self.ring(ring);
        ring[1 + usize::from(head)].store(0, Ordering::Release);
        ring[0].store(u64::from(used), Ordering::Release);
    }

    /// Takes a ring up: `used` and `avail` are its indices as they stand in the guest's memory.
    pub fn recover(&self, ring: usize, entries: u16, used: u16, avail: u16) -> Recovered {
        let words = self.ring(ring);
        let state = words[0].load(Ordering::Acquire);
        let (known, head) = (state as u16, (state >> 16) as u16);
        let publishing = state & PUBLISHING != 0;
        if publishing && used == known.wrapping_add(1) {
            // The answer arrived, the note of it did not.
            if let Some(entry) = words[1..].get(usize::from(head)) {
                entry.store(0, Ordering::Release);
            }
        }
        let mut heads: Vec<(u64, u16)> = (0..QUEUE_ENTRIES_MAX)
            .map(|head| (words[1 + usize::from(head)].load(Ordering::Acquire), head))
            .filter(|(order, _)| *order != 0)
            .collect();
        heads.sort_unstable();
        let expected = used == known || (publishing && used == known.wrapping_add(1));
        let waiting = usize::from(avail.wrapping_sub(used));
        let fits = heads.len() <= waiting
            && waiting <= usize::from(entries)
            && heads.iter().all(|(_, head)| *head < entries);
        let is_of_this_guest = heads.is_empty() || (expected && fits);
        let forgotten = !is_of_this_guest;
        if forgotten {
            self.forget(ring);
            heads.clear();
        }
        words[0].store(u64::from(used), Ordering::Release);
        if crate::mutant!("used-index") {
            heads.clear();
        }
        let taken = u16::try_from(heads.len()).expect("at most as many as entries");
        Recovered {
            heads: heads.into_iter().map(|(_, head)| head).collect(),
            next_avail: used.wrapping_add(taken),
            forgotten,
        }
    }

    /// Nothing of the ring is in flight: it was stopped in order.
    pub fn forget(&self, ring: usize) {
        self.ring(ring)[1..]
            .iter()
            .for_each(|w| w.store(0, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOT: [u64; 2] = [7, 9];

    fn memory() -> Vec<AtomicU64> {
        (0..TABLE_WORDS).map(|_| AtomicU64::new(0)).collect()
    }

    /// Answers come in any order: the used index alone would run one request again and lose another.
    #[test]
    fn what_was_not_answered_is_found_in_order() {
        let words = memory();
        let mut table = Table::open(&words, BOOT);
        for head in [5, 3, 8] {
            table.take(1, head);
        }
        table.answering(1, 3, 0);
        table.answered(1, 3, 1);
        let again = Table::open(&words, BOOT).recover(1, 16, 1, 4);
        assert_eq!(again.heads, [5, 8]);
        assert_eq!(again.next_avail, 3);
        assert!(!again.forgotten);
    }

    /// Killed between the used ring and the note of it: the guest has its answer, once.
    #[test]
    fn an_answer_without_its_note_counts() {
        let words = memory();
        let mut table = Table::open(&words, BOOT);
        table.take(0, 2);
        table.take(0, 4);
        table.answering(0, 2, 65_535);
        let arrived = Table::open(&words, BOOT).recover(0, 16, 0, 1);
        assert_eq!((arrived.heads, arrived.next_avail), (vec![4], 1));
        let words = memory();
        let mut table = Table::open(&words, BOOT);
        table.take(0, 2);
        table.answering(0, 2, 0);
        let not_yet = Table::open(&words, BOOT).recover(0, 16, 0, 1);
        assert_eq!((not_yet.heads, not_yet.next_avail), (vec![2], 1));
    }

    /// A guest that was started anew must not get answers to what another one asked.
    #[test]
    fn a_table_of_another_guest_or_boot_is_forgotten() {
        let words = memory();
        let mut table = Table::open(&words, BOOT);
        table.take(0, 1);
        table.take(0, 2);
        let fresh = Table::open(&words, BOOT).recover(0, 16, 0, 0);
        assert!(fresh.forgotten);
        assert_eq!((fresh.heads, fresh.next_avail), (vec![], 0));
        Table::open(&words, BOOT).take(0, 1);
        let other = Table::open(&words, [7, 10]).recover(0, 16, 0, 4);
        assert_eq!((other.heads.len(), other.forgotten), (0, false));
    }

    proptest! {
        /// Killed anywhere: exactly what was taken and not answered is found, in order.
        #[test]
        fn a_kill_anywhere_loses_and_repeats_nothing(
            start in any::<u16>(), picks in prop::collection::vec(any::<u8>(), 0..200), stop in 0u8..4,
        ) {
            let words = memory();
            let mut table = Table::open(&words, BOOT);
            let mut used = start;
            table.recover(0, 8, used, used);
            let (mut avail, mut taken, mut free) = (used, Vec::new(), (0..8u16).collect::<Vec<_>>());
            for pick in picks {
                if pick % 2 == 0 && !free.is_empty() {
                    let head = free.remove(usize::from(pick) % free.len());
                    avail = avail.wrapping_add(1);
                    table.take(0, head);
                    taken.push(head);
                } else if !taken.is_empty() {
                    let head = taken.remove(usize::from(pick) % taken.len());
                    table.answering(0, head, used);
                    used = used.wrapping_add(1);
                    table.answered(0, head, used);
                    free.push(head);
                }
            }
            if let Some(head) = taken.first().copied() {
                // The steps of one answer, up to where the kill comes.
                if stop > 0 { table.answering(0, head, used); }
                if stop > 1 { used = used.wrapping_add(1); taken.remove(0); }
                if stop > 2 { table.answered(0, head, used); }
            }
            let found = Table::open(&words, BOOT).recover(0, 8, used, avail);
            prop_assert_eq!(found.heads, taken.clone());
            prop_assert_eq!(found.next_avail, used.wrapping_add(taken.len() as u16));
            prop_assert!(!found.forgotten);
        }
    }
}
