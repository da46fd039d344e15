//! The check of the guest's file system, from outside.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::checkout::tool;
use crate::process;
use crate::stop::minutes;

const LIMIT: Duration = minutes(3);

/// Makes an ext4 file system on `image`.
pub(crate) fn make(image: &Path, log: &Path) -> Result<()> {
    let mut command = tool("mkfs.ext4");
    // Nothing left for the guest to do later: the disk is to be written by the ledger alone.
    command
        .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(image);
    process::run(&mut command, log, LIMIT)?.success("mkfs.ext4")?;
    Ok(())
}

/// Copies what `nbd_socket` serves into `copy`, so that a check can write without touching it.
pub(crate) fn copy_view(nbd_socket: &Path, copy: &Path, log: &Path) -> Result<()> {
    let mut command = tool("qemu-img");
    command
        .args(["convert", "-f", "raw", "-O", "raw"])
        .arg(format!("nbd+unix:///?socket={}", nbd_socket.display()))
        .arg(copy);
    let said = process::run(&mut command, log, LIMIT)?;
    said.success("reading the disk over NBD")?;
    Ok(())
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Clean { replayed: bool },
    Damaged(String),
}

/// Checks the file system on the disk `nbd_socket` serves; `dir` is for the copy and the logs.
///
/// A crashed ext4 has a journal to replay, and `e2fsck -n` would skip it. So the copy is repaired
/// first, where only the replay and what it entails is allowed, then checked without repair.
pub(crate) fn check(nbd_socket: &Path, dir: &Path, name: &str) -> Result<FileSystem> {
    let copy = dir.join(format!("{name}.img"));
    let log = dir.join(format!("{name}.log"));
    copy_view(nbd_socket, &copy, &log)?;
    let verdict = check_copy(&copy, &log)?;
    std::fs::remove_file(&copy).with_context(|| format!("remove {}", copy.display()))?;
    Ok(verdict)
}

fn check_copy(copy: &Path, log: &Path) -> Result<FileSystem> {
    let e2fsck = |mode: &str| {
        let mut command = tool("e2fsck");
        command.arg(mode).arg(copy).env("LC_ALL", "C");
        process::run(&mut command, log, LIMIT)
    };
    let replay = e2fsck("-fy")?;
    if !matches!(replay.status.code(), Some(0 | 1)) {
        let how = process::describe(replay.status);
        return Ok(FileSystem::Damaged(format!(
            "e2fsck -fy: {how}{}",
            process::tail_of(log)
        )));
    }
    let repairs = repairs(&replay.text);
    if !repairs.is_empty() {
        let what = repairs.join("; ");
        return Ok(FileSystem::Damaged(format!(
            "e2fsck repaired more than the journal: {what}"
        )));
    }
    let clean = e2fsck("-fn")?;
    if clean.status.code() != Some(0) {
        let how = process::describe(clean.status);
        let tail = process::tail_of(log);
        return Ok(FileSystem::Damaged(format!(
            "e2fsck -fn after the replay: {how}{tail}"
        )));
    }
    Ok(FileSystem::Clean {
        replayed: replay.text.contains("recovering journal"),
    })
}

/// The totals in the superblock, which a running kernel does not keep up to date and works out anew
/// at every mount: after a crash they are always behind. (The counts per group are in the journal.)
const LAZY_TOTALS: [&str; 2] = ["Free blocks count wrong (", "Free inodes count wrong ("];

/// What `-y` repaired beyond the journal's replay and [`LAZY_TOTALS`].
fn repairs(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut before = "";
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.ends_with("? yes") {
            // The question may stand on a line of its own below the problem.
            let problem = if line.contains(". ") { line } else { before };
            if !LAZY_TOTALS.iter().any(|total| problem.starts_with(total)) {
                found.push(problem);
            }
        }
        before = line;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    // e2fsck repairs real damage with exit code 1 too, the same as after a mere journal replay.
    #[test]
    fn a_repair_is_told_from_a_replay() {
        let replay = "a.img: recovering journal\nPass 5: Checking group summary information\n\
            Free blocks count wrong (235417, counted=235119).\nFix? yes\n\n\
            Free inodes count wrong (65525, counted=65523).\nFix? yes\n\n\
            a.img: ***** FILE SYSTEM WAS MODIFIED *****\n";
        assert_eq!(repairs(replay), Vec::<&str>::new());
        for damage in [
            "Inode 12, i_blocks is 8, should be 16.  Fix? yes\n",
            "Free blocks count wrong for group #0 (3, counted=4).\nFix? yes\n",
            "Block bitmap differences:  -(33--40)\nFix? yes\n",
        ] {
            assert_eq!(repairs(&format!("{replay}{damage}")).len(), 1, "{damage}");
        }
    }
}
