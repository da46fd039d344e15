//! The volatile cache of a disk: what a power cut may take and what it may not.
//!
//! The model, in prose. A write is taken into the cache and answered some time later. A flush makes
//! durable, per sector, the newest version among the writes that were answered before the flush came,
//! and nothing else: writes in flight beside it are not covered, as the block layer promises nobody
//! that they are. At a power cut every 512-byte sector that holds versions not made durable ends as
//! one of them or as what was durable, drawn for each sector alone: so writes are lost, kept, torn
//! between sectors and change places.
//!
//! No I/O here: the owner moves the sectors that come out of the cache to its durable medium.

use std::collections::BTreeMap;

/// The unit in which a disk writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

/// Contents of a sector.
pub(super) type Sector = [u8; SECTOR_BYTES];

/// A sector on its way to the durable medium: its number and its contents.
pub(super) type Moved = (u64, Sector);

/// The cache.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Sector number → versions that are not durable, oldest first.
    sectors: BTreeMap<u64, Vec<Version>>,
    /// Versions in all sectors.
    versions: usize,
}

#[derive(Debug)]
struct Version {
    write: u64,
    bytes: Sector,
}

/// What a power cut did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// Sectors that kept their newest version.
    pub(super) kept: u64,
    /// Sectors that lost it.
    pub(super) dropped: u64,
}

impl Cache {
    /// Takes the sectors of the write numbered `write`; numbers ascend.
    pub(super) fn write(&mut self, write: u64, first_sector: u64, bytes: &[u8]) {
        let (sectors, rest) = bytes.as_chunks::<SECTOR_BYTES>();
        assert!(rest.is_empty(), "the disk refuses partial sectors");
        for (sector, bytes) in (first_sector..).zip(sectors) {
            let bytes = *bytes;
            self.sectors
                .entry(sector)
                .or_default()
                .push(Version { write, bytes });
        }
        self.versions += sectors.len();
    }

    /// The newest version of a sector, durable or not, if it is here.
    pub(super) fn newest(&self, sector: u64) -> Option<&Sector> {
        let version = self.sectors.get(&sector)?.last()?;
        Some(&version.bytes)
    }

    /// Bytes of all versions.
    pub(super) fn bytes(&self) -> usize {
        self.versions * SECTOR_BYTES
    }

    /// Takes out what becomes durable when all writes up to `write` do, in the sectors that `reaches`
    /// says.
    pub(super) fn flush(&mut self, write: u64, reaches: impl Fn(u64) -> bool) -> Vec<Moved> {
        let mut moved = Vec::new();
        let mut left = 0;
        self.sectors.retain(|sector, versions| {
            let answered = versions.partition_point(|version| version.write <= write);
            let covered = if reaches(*sector) { answered } else { 0 };
            if let Some(newest) = versions.drain(..covered).next_back() {
                moved.push((*sector, newest.bytes));
            }
            left += versions.len();
            !versions.is_empty()
        });
        self.versions = left;
        moved
    }

    /// The power goes. Returns the sectors that became durable at the last moment.
    pub(super) fn cut(&mut self, random: &mut fastrand::Rng) -> (Cut, Vec<Moved>) {
        // Some cuts take everything, some next to nothing: both have found bugs that the other hides.
        let survive_percent = *random.choice(&[0, 10, 50, 90]).expect("four of them");
        let mut cut = Cut::default();
        let mut moved = Vec::new();
        for (sector, versions) in std::mem::take(&mut self.sectors) {
            if random.u32(..100) >= survive_percent {
                cut.dropped += 1;
                continue;
            }
            let at = random.usize(..versions.len());
            if at + 1 == versions.len() {
                cut.kept += 1;
            } else {
                cut.dropped += 1;
            }
            moved.push((sector, versions[at].bytes));
        }
        self.versions = 0;
        (cut, moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(byte: u8, sectors: usize) -> Vec<u8> {
        vec![byte; sectors * SECTOR_BYTES]
    }

    fn bytes(moved: &[Moved]) -> Vec<(u64, u8)> {
        moved
            .iter()
            .map(|(sector, bytes)| (*sector, bytes[0]))
            .collect()
    }

    // A flush that made more durable than it must would hide a missing sync from every round.
    #[test]
    fn a_flush_covers_the_writes_answered_before_it_and_no_others() {
        let mut cache = Cache::default();
        cache.write(1, 10, &of(1, 2));
        cache.write(2, 11, &of(2, 2));
        cache.write(3, 12, &of(3, 1));
        assert_eq!(
            bytes(&cache.flush(2, |_| true)),
            [(10, 1), (11, 2), (12, 2)]
        );
        assert_eq!(cache.newest(12), Some(&[3; SECTOR_BYTES]));
        assert_eq!(cache.newest(11), None);
        assert_eq!(cache.bytes(), SECTOR_BYTES);
        assert!(cache.flush(3, |sector| sector != 12).is_empty());
        assert!(
            cache.flush(2, |_| true).is_empty(),
            "what is durable moves once"
        );
    }

    // A cut that gave back bytes nobody wrote, or touched flushed ones, would blame a sound daemon.
    #[test]
    fn a_cut_leaves_one_version_of_unflushed_sectors_and_nothing_else() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let mut cache = Cache::default();
            cache.write(1, 5, &of(1, 1));
            cache.flush(1, |_| true);
            cache.write(2, 7, &of(2, 1));
            cache.write(3, 7, &of(3, 2));
            let (cut, moved) = cache.cut(&mut fastrand::Rng::with_seed(seed));
            let moved = bytes(&moved);
            assert_eq!(cut.kept + cut.dropped, 2, "sectors 7 and 8");
            assert!(
                moved
                    .iter()
                    .all(|one| [(7, 2), (7, 3), (8, 3)].contains(one))
            );
            assert_eq!(cache.bytes(), 0);
            outcomes.insert(moved);
        }
        // Sector 7: old, 2 or 3; sector 8: old or 3.
        assert_eq!(outcomes.len(), 6, "every outcome is drawn");
    }
}
