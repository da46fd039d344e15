//! A set of pages.

/// One bit for each page of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    words: Vec<u64>,
    /// Pages of the guest.
    pages: u64,
}

impl Pages {
    /// None of a guest's.
    #[must_use]
    pub fn none(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a guest's pages fit memory");
        Self {
            words: vec![0; words],
            pages,
        }
    }

    /// Pages of the guest, in the set or not.
    #[must_use]
    pub fn of(&self) -> u64 {
        self.pages
    }

    /// # Panics
    /// Where a run ends behind the guest's last page.
    pub fn insert_run(&mut self, first: u64, count: u64) {
        let end = first.checked_add(count).expect("a run of pages");
        assert!(
            end <= self.pages,
            "pages {first} to {end} of {}",
            self.pages
        );
        let mut page = first;
        while page < end {
            let bit = page % 64;
            let here = (64 - bit).min(end - page);
            let mask = if here == 64 {
                u64::MAX
            } else {
                ((1 << here) - 1) << bit
            };
            self.words[Self::word(page)] |= mask;
            page += here;
        }
    }

    /// Takes one page out.
    ///
    /// # Panics
    /// Where there is no such page.
    pub fn remove(&mut self, page: u64) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        self.words[Self::word(page)] &= !(1 << (page % 64));
    }

    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        page < self.pages && self.words[Self::word(page)] >> (page % 64) & 1 == 1
    }

    /// Takes in all of another set.
    ///
    /// # Panics
    /// Where it is of another guest.
    pub fn unite(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets of one guest");
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word |= other;
        }
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// First page and number of pages, ascending, not touching.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let run = self.run_from(next)?;
            next = run.0 + run.1;
            Some(run)
        })
    }

    /// The first run of pages that are not before this one: first page and number of pages.
    #[must_use]
    pub fn run_from(&self, page: u64) -> Option<(u64, u64)> {
        let first = self.find(page, true)?;
        let end = self.find(first, false).unwrap_or(self.pages);
        Some((first, end - first))
    }

    /// The first page from `from` on that is, or is not, in the set.
    fn find(&self, from: u64, is_in: bool) -> Option<u64> {
        let mut page = from;
        while page < self.pages {
            let word = self.words[Self::word(page)];
            let word = (if is_in { word } else { !word }) >> (page % 64);
            if word != 0 {
                let found = page + u64::from(word.trailing_zeros());
                return (found < self.pages).then_some(found);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }

    fn word(page: u64) -> usize {
        usize::try_from(page / 64).expect("a guest's pages fit memory")
    }
}

#[cfg(test)]
mod tests {
    //! A page that is lost between two sets is a page the standby never gets.
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_is_what_a_plain_set_is() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let size = random.u64(1..400);
            let (mut ours, mut plain) = (Pages::none(size), BTreeSet::new());
            for _ in 0..random.usize(0..6) {
                let first = random.u64(0..size);
                let count = random.u64(0..=size - first);
                let mut one = Pages::none(size);
                one.insert_run(first, count);
                ours.unite(&one);
                plain.extend(first..first + count);
            }
            let told: BTreeSet<u64> = ours
                .runs()
                .flat_map(|(first, n)| first..first + n)
                .collect();
            assert_eq!(told, plain);
            assert!((0..size).all(|page| ours.contains(page) == plain.contains(&page)));
            let runs: Vec<_> = ours.runs().collect();
            assert!(runs.windows(2).all(|two| two[0].0 + two[0].1 < two[1].0));
            assert_eq!(ours.count(), plain.len() as u64);
            assert_eq!(ours.is_empty(), plain.is_empty());
            ours.clear();
            assert!(ours.is_empty());
        }
    }
}
