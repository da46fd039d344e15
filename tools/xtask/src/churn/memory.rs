//! The memory of a guest that was moved, page by page: what it left behind, and what came along.
//!
//! QEMU before 9.0 loses pages under TCG: when it asks for the pages that were written and clears their
//! bits, it forgets to make the emulated processor set them again at its next write (mended by "physmem:
//! Fix migration dirty bitmap coherency with TCG memory access"). So what the processor writes most is
//! lost, the runqueue first, if it is copied between the second time that QEMU asks and the stop of the
//! guest. The guest then panics, and nothing of that speaks of its disk. Therefore the guest is stopped
//! before the second time; where this machine was too slow for that, the move proves nothing. What was lost
//! is put right in any case, so that the guest lives to say more.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};

const PAGE_BYTES: usize = 4096;
/// Pages that are read at once.
const STRETCH: usize = 256;

/// Numbers of the pages in which two memories differ; the second is made like the first.
pub(super) fn mend(left: &File, came: &File) -> Result<BTreeSet<u64>> {
    let length = left.metadata()?.len();
    if came.metadata()?.len() != length {
        bail!("the guest was moved into a memory of another size");
    }
    let mut pages = BTreeSet::new();
    let mut old = vec![0; STRETCH * PAGE_BYTES];
    let mut new = old.clone();
    for start in (0..length).step_by(old.len()) {
        let count = usize::try_from(length - start).unwrap_or(old.len());
        let count = count.min(old.len());
        left.read_exact_at(&mut old[..count], start)
            .and_then(|()| came.read_exact_at(&mut new[..count], start))
            .context("read the guest's memory")?;
        if old[..count] == new[..count] {
            continue;
        }
        let both = old[..count].chunks(PAGE_BYTES).zip(new.chunks(PAGE_BYTES));
        for (at, (old, new)) in (start..).step_by(PAGE_BYTES).zip(both) {
            if old == new {
                continue;
            }
            let page = at / PAGE_BYTES as u64;
            pages.insert(page);
            came.write_all_at(old, at)
                .context("mend the guest's memory")?;
        }
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    // One byte at the end of a stretch, and one in a last stretch that is not whole.
    #[test]
    fn every_page_that_differs_is_named_and_put_right() {
        let dir = std::env::temp_dir().join(format!("blockrep-memory-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).unwrap();
            File::options().read(true).write(true).open(path).unwrap()
        };
        let old = vec![7; (STRETCH + 3) * PAGE_BYTES];
        let mut new = old.clone();
        new[STRETCH * PAGE_BYTES - 1] = 8;
        *new.last_mut().unwrap() = 8;
        let (left, came) = (file("left", &old), file("came", &new));
        let expected = [STRETCH as u64 - 1, STRETCH as u64 + 2].into();
        assert_eq!(mend(&left, &came).unwrap(), expected);
        assert!(mend(&left, &came).unwrap().is_empty());
        assert!(mend(&left, &file("short", &old[1..])).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
