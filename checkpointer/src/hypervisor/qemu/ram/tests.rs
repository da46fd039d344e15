//! A page that a disk back end wrote and that is counted at the wrong place is never copied.

use super::*;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// Two blocks: 1 MiB at offset 0 of file 7, 2 MiB at offset 1 MiB of file 8.
fn layout() -> Layout {
    let block = |id: &str, file_offset, size_bytes| Block {
        id: id.to_owned(),
        file: PathBuf::from("/nowhere"),
        file_offset,
        size_bytes,
    };
    let blocks = vec![block("a", 0, MIB), block("b", MIB, 2 * MIB)];
    Layout {
        ram: Ram::new(blocks).expect("good blocks"),
        mapped: Vec::new(),
        outside: Vec::new(),
        files: vec![(1, 7), (1, 8)],
    }
}

fn region(guest_address: u64, size_bytes: u64, file_offset: u64, file_inode: u64) -> PageRegion {
    PageRegion {
        guest_address,
        size_bytes,
        file_offset,
        file_device: 1,
        file_inode,
    }
}

fn runs_of(regions: &[PageRegion], runs: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, String> {
    let layout = layout();
    let mut pages = Pages::none(layout.ram.pages());
    layout.insert_guest_runs(regions, runs, &mut pages)?;
    Ok(pages.runs().collect())
}

#[test]
fn guest_addresses_become_page_numbers() {
    // The second block's second MiB lies above the hole below 4 GiB.
    let regions = [
        region(0, MIB, 0, 7),
        region(MIB, MIB, MIB, 8),
        region(4 << 30, MIB, 2 * MIB, 8),
    ];
    let high = (4 << 30) / PAGE_BYTES;
    assert_eq!(
        runs_of(&regions, &[(0, 1), (254, 4), (high + 255, 1)]),
        Ok(vec![(0, 1), (254, 4), (767, 1)])
    );
    let all = [(0, 512), (high, 256)];
    assert_eq!(runs_of(&regions, &all), Ok(vec![(0, 768)]));
}

#[test]
fn a_region_within_pages_counts_every_page_it_touches() {
    // Half a page in the first block's file, seen at half a page.
    let regions = [region(0x1800, 0x1000, 0x2800, 7)];
    assert_eq!(runs_of(&regions, &[(1, 2)]), Ok(vec![(2, 2)]));
}

#[test]
fn what_is_nowhere_is_told() {
    let regions = [region(0, MIB, 0, 7), region(MIB, MIB, 0, 9)];
    let told = runs_of(&regions, &[(600, 1)]).expect_err("in no region");
    assert!(told.contains("no region"), "{told}");
    let told = runs_of(&regions, &[(256, 1)]).expect_err("in a foreign file");
    assert!(told.contains("no memory that is copied"), "{told}");
    // A region that reaches beyond the block in its file.
    let regions = [region(0, 2 * MIB, 0, 7)];
    assert!(runs_of(&regions, &[(255, 2)]).is_err());
    assert!(runs_of(&regions, &[(u64::MAX, 2)]).is_err());
}
