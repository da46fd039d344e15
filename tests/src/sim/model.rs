//! The obvious disk: what a volume was at every cut, and what a read may see.
//!
//! Every sector a guest writes says which write it is of and where it belongs, so contents are
//! compared as one number a sector. Steps stand in stamp order.

use blkback_proto::ids::{Epoch, UNIT_BYTES};
use std::collections::BTreeMap;

/// Contents of a sector that no write explains.
pub const GARBAGE: u64 = u64::MAX;

/// Fills a buffer of whole sectors with contents of write `id`; 0 gives zeros.
pub fn fill(buf: &mut [u8], first_sector: u64, id: u64) {
    for (index, sector) in buf.chunks_exact_mut(UNIT_BYTES as usize).enumerate() {
        if id == 0 {
            sector.fill(0);
            continue;
        }
        let place = first_sector + index as u64;
        for (word, bytes) in sector.chunks_exact_mut(8).enumerate() {
            let value = if word == 0 {
                id
            } else {
                id.wrapping_mul(31) ^ place.rotate_left(17)
            };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Which write each sector is of.
pub fn ids(buf: &[u8], first_sector: u64) -> impl Iterator<Item = u64> + '_ {
    buf.chunks_exact(UNIT_BYTES as usize)
        .enumerate()
        .map(move |(index, sector)| {
            let word =
                |at: usize| u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight"));
            let id = word(0);
            let place = first_sector + index as u64;
            let rest = if id == 0 {
                0
            } else {
                id.wrapping_mul(31) ^ place.rotate_left(17)
            };
            let whole = (8..UNIT_BYTES as usize)
                .step_by(8)
                .all(|at| word(at) == rest);
            if whole { id } else { GARBAGE }
        })
}

/// One write, zeroing or discard in stamp order.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// First sector.
    pub first: u32,
    /// Number of sectors.
    pub count: u32,
    /// Contents.
    pub id: u64,
    /// When the guest asked for it.
    pub submitted: u64,
    /// When the guest was told that it is done.
    pub answered: Option<u64>,
    /// A flush or FUA said that it survives a power cut of the side that serves it.
    pub flushed: bool,
}

/// A volume over all its life, whoever serves it.
pub struct Volume {
    /// Size.
    pub sectors: usize,
    /// Contents when this era began.
    base: Vec<u64>,
    /// Position of the first step of this era.
    era_start: usize,
    steps: Vec<Step>,
    /// Steps of this era that touched a sector, by sector.
    touched: Vec<Vec<u32>>,
    /// Contents at the start of earlier eras, by position of their first step.
    bases: BTreeMap<usize, Vec<u64>>,
}

impl Volume {
    /// A volume with these contents.
    #[must_use]
    pub fn new(base: Vec<u64>) -> Self {
        let sectors = base.len();
        let bases = BTreeMap::from([(0, base.clone())]);
        Self {
            sectors,
            base,
            era_start: 0,
            steps: Vec::new(),
            touched: vec![Vec::new(); sectors],
            bases,
        }
    }

    /// Number of steps so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.steps.len()
    }

    /// A write is stamped; gives its number.
    pub fn stamp(&mut self, first: u64, count: u64, id: u64, submitted: u64) -> usize {
        let index = self.steps.len();
        let (first, count) = (
            u32::try_from(first).expect("small"),
            u32::try_from(count).expect("small"),
        );
        self.steps.push(Step {
            first,
            count,
            id,
            submitted,
            answered: None,
            flushed: false,
        });
        for sector in first..first + count {
            self.touched[sector as usize].push(u32::try_from(index).expect("few"));
        }
        index
    }

    /// A step.
    pub fn step(&mut self, index: usize) -> &mut Step {
        &mut self.steps[index]
    }

    /// Steps of this era.
    #[must_use]
    pub fn era(&self) -> &[Step] {
        &self.steps[self.era_start..]
    }

    /// Steps from that one on.
    #[must_use]
    pub fn steps_from(&self, position: usize) -> &[Step] {
        &self.steps[position..]
    }

    /// When the last of this era's steps before `position` was asked for.
    #[must_use]
    pub fn last_submitted(&self, position: usize) -> Option<u64> {
        let taken = &self.steps[self.era_start.min(position)..position];
        taken.iter().map(|s| s.submitted).max()
    }

    /// Everything answered before `before` survives a power cut.
    pub fn flush(&mut self, before: u64) {
        for step in &mut self.steps[self.era_start..] {
            step.flushed |= step.answered.is_some_and(|at| at <= before);
        }
    }

    /// Everything stamped so far survives whatever comes.
    pub fn settle(&mut self) {
        for step in &mut self.steps[self.era_start..] {
            step.flushed = true;
        }
    }

    /// Steps answered at or before that time: the position behind the last of them.
    #[must_use]
    pub fn answered_position(&self, before: u64) -> usize {
        let last = self
            .era()
            .iter()
            .rposition(|s| s.answered.is_some_and(|at| at <= before));
        last.map_or(0, |last| self.era_start + last + 1)
    }

    /// A new era begins with these contents: a guest starts anew on what a crash left.
    pub fn rebase(&mut self, base: Vec<u64>) {
        assert_eq!(base.len(), self.sectors);
        self.era_start = self.steps.len();
        self.bases.insert(self.era_start, base.clone());
        self.base = base;
        self.touched.iter_mut().for_each(Vec::clear);
    }

    /// Contents after the first `position` steps; at the start of an era, as `new_era` says,
    /// before or after the crash.
    #[must_use]
    pub fn at(&self, position: usize) -> Vec<u64> {
        let (start, base) = if position == self.era_start {
            (self.era_start, &self.base)
        } else {
            let (start, base) = self
                .bases
                .range(..=position)
                .next_back()
                .expect("there is one at 0");
            (*start, base)
        };
        self.replay(start, base, position)
    }

    fn replay(&self, start: usize, base: &[u64], position: usize) -> Vec<u64> {
        let mut contents = base.to_vec();
        for step in &self.steps[start..position] {
            contents[step.first as usize..(step.first + step.count) as usize].fill(step.id);
        }
        contents
    }

    /// Contents after `position` steps, of the era that began at step `era_start`.
    #[must_use]
    pub fn at_in_era(&self, era_start: usize, position: usize) -> Vec<u64> {
        self.replay(era_start, &self.bases[&era_start], position)
    }

    /// First step of this era.
    #[must_use]
    pub fn era_start(&self) -> usize {
        self.era_start
    }

    /// Whether a read submitted at `submitted` may see `id` in this sector now.
    #[must_use]
    pub fn may_read(&self, sector: u64, id: u64, submitted: u64) -> bool {
        let sector = usize::try_from(sector).expect("small");
        for index in self.touched[sector].iter().rev() {
            let step = &self.steps[*index as usize];
            if step.id == id {
                return true;
            }
            if step.answered.is_some_and(|at| at <= submitted) {
                return false;
            }
        }
        self.base[sector] == id
    }

    /// The sector that says that these contents cannot be what a crash leaves of a plain disk.
    #[must_use]
    pub fn plain_crash_violation(&self, found: &[u64], killed: bool) -> Option<String> {
        for (sector, id) in found.iter().enumerate() {
            let mut allowed = false;
            let mut floor = None;
            for index in self.touched[sector].iter().rev() {
                let step = &self.steps[*index as usize];
                allowed |= step.id == *id;
                if step.flushed || (killed && step.answered.is_some()) {
                    floor = Some(step.id);
                    break;
                }
            }
            if !allowed && (floor.is_some() || self.base[sector] != *id) {
                let floor = floor.unwrap_or(self.base[sector]);
                return Some(format!(
                    "sector {sector} holds {id:x}, at least {floor:x} was safe"
                ));
            }
        }
        None
    }

    /// The prefix of this era's steps that these contents are, at least `least` steps long.
    #[must_use]
    pub fn prefix(&self, found: &[u64], least: usize) -> Option<usize> {
        let mut contents = self.replay(self.era_start, &self.base, least.max(self.era_start));
        let mut wrong = contents.iter().zip(found).filter(|(a, b)| a != b).count();
        let mut position = least.max(self.era_start);
        loop {
            if wrong == 0 {
                return Some(position);
            }
            let step = self.steps.get(position)?;
            for sector in step.first as usize..(step.first + step.count) as usize {
                let before = contents[sector] != found[sector];
                contents[sector] = step.id;
                let after = contents[sector] != found[sector];
                wrong = wrong + usize::from(after) - usize::from(before);
            }
            position += 1;
        }
    }

    /// Position behind the last step that was flushed (or, after a kill, answered).
    #[must_use]
    pub fn safe_position(&self, killed: bool) -> usize {
        let safe = |s: &Step| s.flushed || (killed && s.answered.is_some());
        self.era()
            .iter()
            .rposition(safe)
            .map_or(self.era_start, |last| self.era_start + last + 1)
    }
}

/// A cut of a group: which steps of each volume are in the epoch that ended.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Start of the primary it belongs to.
    pub era: u32,
    /// The epoch that ended.
    pub epoch: Epoch,
    /// For each volume that has cut: first step of its era, and position of the cut.
    pub at: Vec<Option<(usize, usize)>>,
}

/// All cuts.
#[derive(Default)]
pub struct Cuts {
    cuts: Vec<Cut>,
    by_key: BTreeMap<(u32, Epoch), usize>,
}

impl Cuts {
    /// A volume has cut.
    pub fn note(
        &mut self,
        era: u32,
        epoch: Epoch,
        volumes: usize,
        volume: usize,
        at: (usize, usize),
    ) {
        let cuts = &mut self.cuts;
        let index = *self.by_key.entry((era, epoch)).or_insert_with(|| {
            cuts.push(Cut {
                era,
                epoch,
                at: vec![None; volumes],
            });
            cuts.len() - 1
        });
        assert!(
            self.cuts[index].at[volume].is_none(),
            "a volume cuts an epoch once"
        );
        self.cuts[index].at[volume] = Some(at);
    }

    /// Where volumes have cut that epoch of that era, if any has.
    #[must_use]
    pub fn so_far(&self, era: u32, epoch: Epoch) -> Option<Vec<Option<(usize, usize)>>> {
        Some(self.cuts[*self.by_key.get(&(era, epoch))?].at.clone())
    }

    /// The cut of that era that ended the epoch, if all volumes have cut.
    #[must_use]
    pub fn find(&self, era: u32, epoch: Epoch) -> Option<&Cut> {
        let cut = &self.cuts[*self.by_key.get(&(era, epoch))?];
        cut.at.iter().all(Option::is_some).then_some(cut)
    }

    /// Cuts that ended an epoch of that number, latest era first.
    pub fn numbered(&self, epoch: Epoch) -> impl Iterator<Item = &Cut> {
        self.cuts
            .iter()
            .rev()
            .filter(move |c| c.epoch == epoch && c.at.iter().all(Option::is_some))
    }
}
