//! Whose journal a directory holds.
//!
//! Metadata is not written per epoch, so a journal that belongs to another volume could look like
//! one that holds nothing, and what it should hold would be gone without a word. A random mark
//! stands in both places, made with the journal: `owner` beside the segments and
//! `volume-N.journal` in the state directory. They must agree. A lock keeps two daemons with
//! different state directories out of one journal. Start-up only, blocking.

use super::files::{FileError, Layout, begin_anew, make_dir, read_text, write_text};
use super::startup::StartError;
use blockrep_host::lock::FileLock;
use std::path::PathBuf;

/// Longest mark read, in bytes.
const MARK_BYTES_MAX: usize = 64;

/// Beside the segments.
pub(super) fn mark_in_journal(layout: &Layout, index: usize) -> PathBuf {
    layout.journal_dir(index).join("owner")
}

/// Beside the metadata.
pub(super) fn mark_in_state(layout: &Layout, index: usize) -> PathBuf {
    layout.state.join(format!("volume-{index}.journal"))
}

/// Locks the journal of a volume, for as long as the result lives.
///
/// # Errors
/// Another daemon uses it: which one.
pub(super) fn lock_journal(layout: &Layout, index: usize) -> Result<FileLock, StartError> {
    let dir = layout.journal_dir(index);
    make_dir(&dir).map_err(|error| error.or_give("--journal"))?;
    FileLock::lock_file(&dir.join("lock")).map_err(|error| StartError::held("journal", &dir, error))
}

/// Refuses to make a journal where another state directory has one: one that was moved away may come
/// back, and its epochs are in no image yet.
///
/// # Errors
/// Which directory it is, and what to do.
pub(super) fn check_free(layout: &Layout, index: usize) -> Result<(), FileError> {
    let found = read_text(&mark_in_journal(layout, index), MARK_BYTES_MAX)?;
    let own = read_text(&mark_in_state(layout, index), MARK_BYTES_MAX)?;
    if found.is_none() || found == own || !holds_segments(layout, index) {
        return Ok(());
    }
    let dir = layout.journal_dir(index);
    let (dir, state) = (dir.display(), layout.state.display());
    Err(FileError::store(format!(
        "the journal in {dir} belongs to another state directory than {state}, and may hold epochs that \
         are in no image yet: move it away, too (mv {dir} {dir}.old), or give another --journal"
    )))
}

/// Marks a journal as the one of this state directory.
///
/// # Errors
/// It cannot be written.
pub(super) fn mark(layout: &Layout, index: usize, id: [u8; 16]) -> Result<(), FileError> {
    let text: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    write_text(&mark_in_journal(layout, index), &text)?;
    write_text(&mark_in_state(layout, index), &text)
}

/// Refuses a journal that is not the one of this state directory.
///
/// # Errors
/// Which directory it is, and what to do.
pub(super) fn check(layout: &Layout, index: usize) -> Result<(), FileError> {
    let (there, here) = (mark_in_journal(layout, index), mark_in_state(layout, index));
    let mark = read_text(&here, MARK_BYTES_MAX)?;
    let found = read_text(&there, MARK_BYTES_MAX)?;
    if mark.is_some() && mark == found {
        return Ok(());
    }
    let (dir, state) = (layout.journal_dir(index), layout.state.display());
    let what = if found.is_none() && !holds_segments(layout, index) {
        format!(
            "the journal of volume {index} of {state} is missing: {} holds none",
            dir.display()
        )
    } else {
        format!(
            "the journal in {} is not the one of volume {index} in {state}",
            dir.display()
        )
    };
    Err(FileError::store(format!(
        "{what}: put it back, or give the --journal it was made with; nothing was changed; if it is \
         gone for good, the epochs in it are, too: to begin anew {}",
        begin_anew(&layout.state)
    )))
}

/// The directory itself is there: the lock in it was made by this start.
fn holds_segments(layout: &Layout, index: usize) -> bool {
    (0..layout.geometry.segment_count).any(|file| layout.segment(index, file).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ring::Geometry;
    use std::path::Path;

    fn layout(dir: &Path, name: &str) -> Layout {
        let state = dir.join(name);
        let layout = Layout {
            journal: state.join("journal"),
            state,
            geometry: Geometry {
                segment_bytes: 4 << 20,
                segment_count: 4,
            },
        };
        make_dir(&layout.journal_dir(0)).unwrap();
        layout
    }

    /// Two journals swapped by hand: recovery would find an empty journal and drop acknowledged
    /// epochs.
    #[test]
    fn journals_do_not_pass_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, b) = (layout(dir.path(), "a"), layout(dir.path(), "b"));
        mark(&a, 0, [1; 16]).unwrap();
        mark(&b, 0, [2; 16]).unwrap();
        check(&a, 0).unwrap();
        a.journal = b.journal.clone();
        let error = check(&a, 0).unwrap_err().text;
        assert!(error.contains("is not the one of volume 0"), "{error}");
        // Marked for another, it is no longer the journal of the first.
        let c = Layout {
            state: dir.path().join("c"),
            ..b.clone()
        };
        make_dir(&c.state).unwrap();
        mark(&c, 0, [3; 16]).unwrap();
        check(&c, 0).unwrap();
        assert!(check(&b, 0).is_err());
    }

    /// A state directory was moved aside, its journal stood elsewhere, and the new one wrote over it.
    #[test]
    fn a_journal_that_another_has_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let a = layout(dir.path(), "a");
        check_free(&a, 0).unwrap();
        mark(&a, 0, [1; 16]).unwrap();
        std::fs::write(a.segment(0, 1), "").unwrap();
        check_free(&a, 0).unwrap();
        let fresh = Layout {
            state: dir.path().join("fresh"),
            ..a.clone()
        };
        make_dir(&fresh.state).unwrap();
        let error = check_free(&fresh, 0).unwrap_err().text;
        let journal = a.journal_dir(0);
        let word = format!("mv {0} {0}.old", journal.display());
        assert!(error.contains(&word), "{error}");
        std::fs::remove_file(a.segment(0, 1)).unwrap();
        check_free(&fresh, 0).unwrap();
    }

    /// A journal that is gone was called somebody else's.
    #[test]
    fn a_journal_that_is_gone_is_called_missing() {
        let dir = tempfile::tempdir().unwrap();
        let a = layout(dir.path(), "a");
        mark(&a, 0, [1; 16]).unwrap();
        std::fs::remove_file(mark_in_journal(&a, 0)).unwrap();
        std::fs::write(a.segment(0, 1), "").unwrap();
        let error = check(&a, 0).unwrap_err().text;
        assert!(error.contains("is not the one"), "{error}");
        std::fs::remove_file(a.segment(0, 1)).unwrap();
        let error = check(&a, 0).unwrap_err().text;
        assert!(
            error.contains("is missing") && error.contains("put it back"),
            "{error}"
        );
        assert!(!error.contains("another --state"), "{error}");
    }

    /// Two backups in one journal directory destroy both journals.
    #[test]
    fn a_journal_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let a = layout(dir.path(), "a");
        let _held = lock_journal(&a, 0).unwrap();
        let error = lock_journal(&a, 0).unwrap_err().to_string();
        let dir = a.journal_dir(0);
        let text = format!("journal {} is in use by", dir.display());
        assert!(error.starts_with(&text), "{error}");
    }
}
