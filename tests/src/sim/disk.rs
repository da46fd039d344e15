//! A disk of one volume on one host: files with a volatile cache.
//!
//! A completed write is readable; it is durable only after a sync that was *submitted* after it
//! completed, or by chance. A power cut keeps or loses every sector that is not durable, each for
//! itself.

use blkback_proto::ids::UNIT_BYTES;
use blockrep::io::{IoError, Target};
use blockrep::journal::scan::ReadAt;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const PAGE: usize = 4096;
const SECTOR: usize = UNIT_BYTES as usize;

type Page = Option<Rc<[u8; PAGE]>>;

/// What a sync makes durable when it ends: the pages as they were when it began.
#[derive(Clone)]
pub struct Capture {
    target: Target,
    seq: u64,
    pages: Vec<(u32, Page)>,
}

#[derive(Clone)]
struct File {
    now: Vec<Page>,
    durable: Vec<Page>,
    /// Pages that may differ between the two.
    dirty: BTreeSet<u32>,
    captures: u64,
    /// Last capture that was made durable; an older one that ends later changes nothing.
    captured: u64,
}

fn sector(page: &Page, index: usize) -> &[u8] {
    static ZERO: [u8; SECTOR] = [0; SECTOR];
    page.as_ref().map_or(&ZERO[..], |page| {
        &page[index * SECTOR..(index + 1) * SECTOR]
    })
}

fn set_sector(page: &mut Page, index: usize, bytes: &[u8]) {
    let page = page.get_or_insert_with(|| Rc::new([0; PAGE]));
    Rc::make_mut(page)[index * SECTOR..(index + 1) * SECTOR].copy_from_slice(bytes);
}

impl File {
    fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes).expect("small").div_ceil(PAGE);
        Self {
            now: vec![None; pages],
            durable: vec![None; pages],
            dirty: BTreeSet::new(),
            captures: 0,
            captured: 0,
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = usize::try_from(offset).expect("small");
        let mut rest = buf;
        while !rest.is_empty() {
            let inside = at % PAGE;
            let length = (PAGE - inside).min(rest.len());
            let (head, tail) = rest.split_at_mut(length);
            match &self.now[at / PAGE] {
                Some(page) => head.copy_from_slice(&page[inside..inside + length]),
                None => head.fill(0),
            }
            rest = tail;
            at += length;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = usize::try_from(offset).expect("small");
        let mut rest = bytes;
        while !rest.is_empty() {
            let inside = at % PAGE;
            let length = (PAGE - inside).min(rest.len());
            let page = self.now[at / PAGE].get_or_insert_with(|| Rc::new([0; PAGE]));
            Rc::make_mut(page)[inside..inside + length].copy_from_slice(&rest[..length]);
            self.dirty.insert(u32::try_from(at / PAGE).expect("small"));
            rest = &rest[length..];
            at += length;
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let zeros = [0; PAGE];
        let mut at = offset;
        while at < offset + length {
            let step = (PAGE as u64 - at % PAGE as u64).min(offset + length - at);
            if step == PAGE as u64 {
                let page = at / PAGE as u64;
                self.now[usize::try_from(page).expect("small")] = None;
                self.dirty.insert(u32::try_from(page).expect("small"));
            } else {
                self.write(at, &zeros[..usize::try_from(step).expect("a page")]);
            }
            at += step;
        }
    }

    fn persist(&mut self, page: u32, rng: &mut Rng) {
        let index = page as usize;
        for s in 0..PAGE / SECTOR {
            if sector(&self.now[index], s) != sector(&self.durable[index], s) && rng.bool() {
                let bytes = sector(&self.now[index], s).to_vec();
                set_sector(&mut self.durable[index], s, &bytes);
            }
        }
    }

    fn power_cut(&mut self, rng: &mut Rng) {
        // Sometimes everything in the cache is lost, sometimes nothing, mostly parts.
        let keep = rng.u8(0..4);
        for page in std::mem::take(&mut self.dirty) {
            match keep {
                0 => {}
                1 => self.durable[page as usize] = self.now[page as usize].clone(),
                _ => self.persist(page, rng),
            }
            self.now[page as usize] = self.durable[page as usize].clone();
        }
    }
}

/// The files of a volume on one host. The group's metadata is with the first volume.
#[derive(Clone)]
pub struct Disk {
    files: BTreeMap<Target, File>,
}

impl Disk {
    /// Zeroed files: an image of that size, segments, metadata.
    #[must_use]
    pub fn new(image_bytes: u64, segment_bytes: u64, segment_count: u32) -> Self {
        let mut files = BTreeMap::new();
        files.insert(Target::Image, File::new(image_bytes));
        files.insert(Target::VolumeMeta, File::new(8192));
        files.insert(Target::GroupMeta, File::new(8192));
        for index in 0..segment_count {
            files.insert(Target::Segment(index), File::new(segment_bytes));
        }
        Self { files }
    }

    fn file(&mut self, target: Target) -> &mut File {
        self.files.get_mut(&target).expect("all files are there")
    }

    /// Fills `buf` with what is readable.
    pub fn read(&self, target: Target, offset: u64, buf: &mut [u8]) {
        self.files[&target].read(offset, buf);
    }

    /// Readable from now on.
    pub fn write(&mut self, target: Target, offset: u64, bytes: &[u8]) {
        self.file(target).write(offset, bytes);
    }

    /// Zeroes a range of the image.
    pub fn zero(&mut self, offset: u64, length: u64) {
        self.file(Target::Image).zero(offset, length);
    }

    /// What a sync that begins now will make durable.
    pub fn capture(&mut self, target: Target) -> Capture {
        let file = self.file(target);
        file.captures += 1;
        let pages = file
            .dirty
            .iter()
            .map(|p| (*p, file.now[*p as usize].clone()))
            .collect();
        Capture {
            target,
            seq: file.captures,
            pages,
        }
    }

    /// The sync ends.
    pub fn make_durable(&mut self, capture: Capture) {
        let file = self.file(capture.target);
        if capture.seq <= file.captured {
            return;
        }
        file.captured = capture.seq;
        for (index, page) in capture.pages {
            let same = match (&page, &file.now[index as usize]) {
                (Some(a), Some(b)) => Rc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            file.durable[index as usize] = page;
            if same {
                file.dirty.remove(&index);
            }
        }
    }

    /// Everything readable is durable: what a daemon's sync of all files at start does.
    pub fn sync_all(&mut self) {
        let targets: Vec<Target> = self.files.keys().copied().collect();
        for target in targets {
            let capture = self.capture(target);
            self.make_durable(capture);
        }
    }

    /// The drive writes some of its cache of its own accord.
    pub fn write_back(&mut self, rng: &mut Rng) {
        for file in self.files.values_mut() {
            if let Some(page) = file.dirty.iter().next().copied() {
                file.persist(page, rng);
            }
        }
    }

    /// The power goes: what is not durable is lost or kept, sector by sector.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for file in self.files.values_mut() {
            file.power_cut(rng);
        }
    }

    /// Flips one bit, durably.
    pub fn flip(&mut self, target: Target, offset: u64, bit: u8) {
        let mut byte = [0];
        self.read(target, offset, &mut byte);
        byte[0] ^= 1 << (bit % 8);
        let file = self.file(target);
        file.write(offset, &byte);
        let page = usize::try_from(offset).expect("small") / PAGE;
        file.durable[page] = file.now[page].clone();
        file.dirty.remove(&u32::try_from(page).expect("small"));
    }
}

impl ReadAt for Disk {
    fn read_at(&self, target: Target, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.read(target, offset, buf);
        Ok(())
    }
}
