//! Damage done on purpose.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::entry::{ENTRY_LEN, HEAD_LEN, MAGIC};

/// Entries lie at multiples of their length in the file, files at multiples of 4 KiB on the disk.
const STEP: usize = ENTRY_LEN;

/// Changes one byte of a ledger entry of `run` on `image`; says where.
///
/// The image must hold all that its view shows: a byte whose newest version is elsewhere would be
/// changed without anybody ever reading it.
pub(crate) fn flip_ledger_byte(image: &Path, run: u64) -> Result<u64> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&run.to_le_bytes());
    // Entry 1 can also be found in ext4's journal if data went there; take it where entry 2 follows.
    let entry = bytes.chunks(STEP).enumerate().find(|(index, slot)| {
        slot.starts_with(&head)
            && slot[16..HEAD_LEN] == 1u64.to_le_bytes()
            && bytes[(index + 1) * STEP..].starts_with(&head)
    });
    let Some((index, _)) = entry else {
        bail!("no ledger entry in {}: nothing to damage", image.display());
    };
    let at = index * STEP + HEAD_LEN + 100;
    change_byte(image, at, bytes[at])
}

/// Changes one byte of `image` in its first 4 KiB block that is not zero; says where.
pub(crate) fn flip_any_byte(image: &Path) -> Result<u64> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let Some(at) = bytes.iter().position(|byte| *byte != 0) else {
        bail!("{} holds only zeros: nothing to damage", image.display());
    };
    change_byte(image, at, bytes[at])
}

/// Changes the byte at `at` of `image`.
pub(crate) fn flip_byte_at(image: &Path, at: u64) -> Result<()> {
    let file = fs::File::open(image).with_context(|| format!("open {}", image.display()))?;
    let mut old = [0];
    file.read_exact_at(&mut old, at).context("read a byte")?;
    change_byte(image, usize::try_from(at).context("an offset")?, old[0]).map(drop)
}

fn change_byte(image: &Path, at: usize, old: u8) -> Result<u64> {
    let file = OpenOptions::new().write(true).open(image);
    let file = file.with_context(|| format!("open {}", image.display()))?;
    let at = u64::try_from(at).context("an offset in a file")?;
    file.write_all_at(&[old ^ 0x01], at)
        .and_then(|()| file.sync_all())
        .context("damage a byte")?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::encode;

    // A plant that hits nothing would make a blind check look sharp.
    #[test]
    fn the_flip_changes_exactly_one_byte_of_entry_one() {
        let path = std::env::temp_dir().join(format!("xtask-plant-{}.img", std::process::id()));
        let mut disk = vec![0u8; 8192];
        disk[4096..5120].copy_from_slice(&encode(9, 1));
        disk[5120..6144].copy_from_slice(&encode(9, 2));
        fs::write(&path, &disk).expect("temp dir is writable");
        assert!(
            flip_ledger_byte(&path, 8).is_err(),
            "another run's ledger is not touched"
        );
        let at = flip_ledger_byte(&path, 9).expect("entry 1 is there");
        let after = fs::read(&path).expect("it was written");
        fs::remove_file(&path).expect("it was written");
        let changed: Vec<usize> = (0..disk.len()).filter(|i| disk[*i] != after[*i]).collect();
        assert_eq!(changed, [usize::try_from(at).expect("small")]);
        assert!((4096..5120).contains(&changed[0]));
    }
}
