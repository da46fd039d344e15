//! Overlapping operations in flight are carried out one after the other, in the order asked.
//!
//! Two overlapping writes in flight at once would leave it to chance which of them the image keeps,
//! and chance falls differently on two hosts. Pure; bounded by what the front ends may have in
//! flight.

use std::collections::VecDeque;

/// Ranges held and ranges waited for, in bytes.
#[derive(Debug)]
pub struct RangeLocks<K> {
    held: Vec<(u64, u64, K)>,
    waiting: VecDeque<(u64, u64, K)>,
}

impl<K> Default for RangeLocks<K> {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            waiting: VecDeque::new(),
        }
    }
}

fn overlaps<K>(entry: &(u64, u64, K), start: u64, end: u64) -> bool {
    entry.0 < end && start < entry.1
}

impl<K: Copy + PartialEq> RangeLocks<K> {
    /// Takes `[start, end)` for `key`; false when it has to wait for its turn.
    pub fn acquire(&mut self, start: u64, end: u64, key: K) -> bool {
        let free = crate::mutant!("no-range-locks")
            || !self.held.iter().any(|e| overlaps(e, start, end))
                && !self.waiting.iter().any(|e| overlaps(e, start, end));
        if free {
            self.held.push((start, end, key));
        } else {
            self.waiting.push_back((start, end, key));
        }
        free
    }

    /// Gives back what `key` holds; `granted` receives those whose turn has come.
    pub fn release(&mut self, key: K, granted: &mut Vec<K>) {
        let index = self
            .held
            .iter()
            .position(|e| e.2 == key)
            .expect("released what was held");
        self.held.swap_remove(index);
        if self.waiting.is_empty() {
            return;
        }
        let mut still: VecDeque<(u64, u64, K)> = VecDeque::with_capacity(self.waiting.len());
        for entry in self.waiting.drain(..) {
            let (start, end, key) = entry;
            if self.held.iter().any(|e| overlaps(e, start, end))
                || still.iter().any(|e| overlaps(e, start, end))
            {
                still.push_back(entry);
            } else {
                self.held.push(entry);
                granted.push(key);
            }
        }
        self.waiting = still;
    }

    /// Nothing is held and nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Two overlapping writes in flight at once make two images differ; one that waits for
        /// ever hangs a guest.
        #[test]
        fn exclusive_fair_and_complete(ranges in prop::collection::vec((0u64..40, 1u64..10), 1..40)) {
            let mut locks = RangeLocks::default();
            let mut held = Vec::new();
            let mut order = Vec::new();
            for (key, (start, units)) in ranges.iter().enumerate() {
                if locks.acquire(*start, start + units, key) {
                    held.push(key);
                    order.push(key);
                }
            }
            let overlap = |a: usize, b: usize| {
                ranges[a].0 < ranges[b].0 + ranges[b].1 && ranges[b].0 < ranges[a].0 + ranges[a].1
            };
            while let Some(key) = held.pop() {
                for other in &held {
                    prop_assert!(!overlap(key, *other));
                }
                let mut granted = Vec::new();
                locks.release(key, &mut granted);
                order.extend(&granted);
                held.splice(0..0, granted);
            }
            prop_assert!(locks.is_empty());
            prop_assert_eq!(order.len(), ranges.len(), "everyone had a turn");
            for (i, a) in order.iter().enumerate() {
                for b in &order[i + 1..] {
                    prop_assert!(!overlap(*a, *b) || a < b, "overlapping ones keep their order");
                }
            }
        }
    }
}
