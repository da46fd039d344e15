//! Byte for byte: whenever the process stands still, what was followed is what it has.

use crate::child::{Do, WRITES, Watchee};
use crate::has;
use crate::shadow::Shadow;
use checkpointer::memory::dirty::Pages;
use checkpointer::memory::ram::Mapping;
use checkpointer::memory::staging::Staging;
use checkpointer::memory::tracker::Kind;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: as asked.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as asked.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Other machines, other speeds: an emulated one is told to do less.
fn rounds_or(default: u32) -> u32 {
    let told = std::env::var("CHECKPOINTER_TEST_ROUNDS").ok();
    told.map_or(default, |told| told.parse().expect("a number"))
}

/// Rounds with the process stopped; before each, so many scans while it writes.
fn follow(kind: Kind, rounds: u32, live: u32) {
    let rounds = rounds_or(rounds);
    let mut it = Watchee::start(1024, "3");
    let tried = Shadow::attach(it.pid(), &it.ram(), kind);
    if !has(kind, &tried) {
        return;
    }
    let mut shadow = tried.expect("attached");
    shadow.first_copy();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut told, mut quiet) = (0, 0);
    for round in 0..rounds {
        for _ in 0..random.u32(0..=live) {
            shadow.follow();
        }
        std::thread::sleep(Duration::from_micros(random.u64(0..400)));
        it.stop();
        it.be_planted();
        let pages = shadow.follow();
        told += pages;
        quiet += u32::from(pages < 512);
        if let Some(page) = shadow.differing() {
            panic!("after a stop differs page {page}, in round {round}");
        }
        it.go_on();
    }
    it.check();
    let writes = it.control.get(WRITES);
    assert!(writes > u64::from(rounds), "it has written: {writes}");
    // A tracker that tells everything every time would never be wrong.
    assert!(
        quiet > rounds / 2,
        "{quiet} of {rounds} scans told less than half"
    );
    println!(
        "\nnoted: {}: {told} pages in {rounds} stops, {writes} writes",
        kind.word()
    );
    shadow.tracker.disarm().expect("disarmed");
    it.check();
}

#[test]
fn userfaultfd_misses_nothing() {
    follow(Kind::Userfaultfd, 2000, 3);
}

#[test]
fn soft_dirty_misses_nothing() {
    follow(Kind::SoftDirty, 1000, 0);
}

#[test]
fn compare_misses_nothing() {
    follow(Kind::Compare, 1000, 0);
}

/// First copies again and again, with writes in the middle of every slice.
#[test]
fn a_first_copy_loses_no_write() {
    let it = Watchee::start(256, "3");
    for kind in Kind::ALL {
        let tried = Shadow::attach(it.pid(), &it.ram(), kind);
        if !has(kind, &tried) {
            continue;
        }
        let mut shadow = tried.expect("attached");
        for round in 0..rounds_or(300).min(300) {
            shadow.first_copy();
            it.stop();
            shadow.follow();
            let differing = shadow.differing();
            assert_eq!(differing, None, "page {differing:?}, {round} of {kind:?}");
            it.go_on();
        }
    }
}

/// More runs than one call of the kernel can tell.
#[test]
fn many_runs_are_told_to_the_last() {
    let mut it = Watchee::start(20_000, "0");
    let tried = Shadow::attach(it.pid(), &it.ram(), Kind::Userfaultfd);
    if !has(Kind::Userfaultfd, &tried) {
        return;
    }
    let mut shadow = tried.expect("attached");
    it.order(Do::Write, 1);
    shadow.first_copy();
    shadow.follow();
    for step in [2, 3, 2, 7, 1, 2] {
        it.order(Do::Write, step);
        assert_eq!(shadow.follow(), 20_000u64.div_ceil(step));
        assert_eq!(shadow.differing(), None);
        assert_eq!(shadow.follow(), 0);
    }
    // A page that was not there when it was armed, and a scan of nothing.
    it.check();
}

#[test]
fn a_copy_allocates_nothing() {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("/dev/shm");
    file.as_file().set_len(4096 * 4096).expect("its size");
    let mapping = Mapping::open(&crate::child::ram(file.path(), 4096)).expect("mapped");
    let mut staging = Staging::new(2048 * 4096).expect("a buffer");
    let mut pages = Pages::none(4096);
    (0..4096)
        .step_by(2)
        .for_each(|page| pages.insert_run(page, 1));
    let before = ALLOCATIONS.get();
    let copied = staging.copy(&mapping, &pages).expect("it just fits");
    let meanwhile = ALLOCATIONS.get() - before;
    assert_eq!((copied.pages, copied.runs, meanwhile), (2048, 2048, 0));
    pages.insert_run(1, 1);
    let before = ALLOCATIONS.get();
    assert!(staging.copy(&mapping, &pages).is_err());
    assert_eq!(ALLOCATIONS.get() - before, 0);
    let seen = std::hint::black_box(Box::new(1));
    assert!(
        ALLOCATIONS.get() - before >= u64::from(*seen > 0),
        "allocations are counted"
    );
}
