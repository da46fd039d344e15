//! Turns over memory that nobody touches.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use vm_memory::GuestAddress;
use vm_memory::bitmap::Bitmap;

const LOW_PAGES: u64 = 20_000;
const HIGH_PAGE: u64 = 1 << 20;
/// A region that begins within a page.
const ODD_ADDRESS: u64 = 1 << 40 | 0x800;

/// Memory that is mapped and never touched.
fn guest() -> Guest {
    let high = GuestAddress(HIGH_PAGE * PAGE_BYTES);
    Guest::from_ranges(&[
        (GuestAddress(0), (LOW_PAGES * PAGE_BYTES) as usize),
        (high, 64 * PAGE_BYTES as usize),
        (GuestAddress(ODD_ADDRESS), 3 * PAGE_BYTES as usize),
    ])
    .unwrap()
}

fn mark(guest: &Guest, address: u64, length: usize) {
    let slice = guest.get_slice(GuestAddress(address), length).unwrap();
    slice.bitmap().mark_dirty(0, length);
}

/// All parts of the last turn, put together.
fn whole(record: &Record) -> (BTreeSet<u64>, usize) {
    let (mut pages, mut parts, mut from) = (BTreeSet::new(), 0, 0);
    loop {
        let answer = record.answer(from);
        assert!(answer.runs.len() <= PAGE_RUNS_MAX);
        for pair in answer.runs.windows(2) {
            assert!(pair[0].0 + pair[0].1 < pair[1].0, "{pair:?}");
        }
        for (first, count) in answer.runs {
            pages.extend(first..first + count);
        }
        parts += 1;
        match answer.next_page {
            Some(page) => from = page,
            None => return (pages, parts),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// A turn of many parts must be the same turn.
    #[test]
    fn parts_of_a_turn_are_all_of_it(
        few in prop::collection::btree_set(0..LOW_PAGES, 0..50),
        every in prop_oneof![Just(0u64), 2..5u64],
        high in prop::collection::btree_set(0u64..64, 0..64),
    ) {
        let guest = guest();
        let mut record = Record::arm(Some(&guest)).unwrap();
        let mut expected = few.clone();
        if every > 0 {
            expected.extend((0..LOW_PAGES).filter(|page| page % every == 0));
        }
        expected.extend(high.iter().map(|page| HIGH_PAGE + page));
        for page in &expected {
            mark(&guest, page * PAGE_BYTES + 17, 100);
        }
        record.begin_turn(Some(&guest));
        let (pages, parts) = whole(&record);
        prop_assert_eq!(&pages, &expected);
        prop_assert_eq!(parts > 1, expected.len() > 5000);
        prop_assert_eq!(whole(&record).0, expected);
        record.begin_turn(Some(&guest));
        prop_assert!(whole(&record).0.is_empty());
    }
}

/// Addresses are the guest's, and what lies across two of its pages is on both.
#[test]
fn a_region_that_begins_within_a_page_names_both_pages() {
    let guest = guest();
    let mut record = Record::arm(Some(&guest)).unwrap();
    mark(&guest, ODD_ADDRESS + PAGE_BYTES, 1);
    record.begin_turn(Some(&guest));
    let first = ODD_ADDRESS / PAGE_BYTES;
    assert_eq!(record.answer(0).runs, [(first + 1, 2)]);
    assert_eq!(record.answer(first + 2).runs, [(first + 2, 1)]);
    assert!(record.answer(first + 3).runs.is_empty() && record.answer(u64::MAX).runs.is_empty());
}

/// A VMM says its memory again at every start of the queues: what was written before still counts.
#[test]
fn the_same_table_again_loses_nothing() {
    let guests = [guest(), guest()];
    let mut record = Record::arm(Some(&guests[0])).unwrap();
    mark(&guests[0], 4096, 1);
    record.moved(Some(&guests[0]), &guests[1]);
    mark(&guests[1], 8192, 1);
    record.begin_turn(Some(&guests[1]));
    let answer = record.answer(0);
    assert!(answer.complete);
    assert_eq!(answer.runs, [(1, 2)]);
}

/// The memory that the record takes follows the guest's, which is the VMM's to say.
#[test]
fn more_memory_than_the_bound_is_refused_or_told() {
    let bytes = usize::try_from((PAGES_MAX + 1) * PAGE_BYTES).unwrap();
    let Ok(large) = Guest::from_ranges(&[(GuestAddress(0), bytes)]) else {
        return; // No such address space here.
    };
    let text = Record::arm(Some(&large)).err().unwrap().to_string();
    assert!(text.contains("268435457 pages"), "{text}");
    let small = guest();
    let mut record = Record::arm(Some(&small)).unwrap();
    record.moved(Some(&small), &large);
    for _ in 0..2 {
        mark(&large, 0, 1);
        record.begin_turn(Some(&large));
        assert_eq!(record.answer(0).reason.as_deref(), Some(TOO_LARGE));
    }
    assert_eq!(record.bytes_max(), 0);
    record.moved(Some(&large), &small);
    record.begin_turn(Some(&small));
    assert!(!record.answer(0).complete);
    record.begin_turn(Some(&small));
    assert!(record.answer(0).complete);
}
