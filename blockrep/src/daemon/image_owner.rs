//! Who has an image that does not belong where it was given, as far as that can be found out: its
//! mark names a state directory, which may have been moved since, and a state directory knows the
//! images of every volume. Start-up only, blocking; asked only when something is wrong.

use super::files::{FileError, Layout, read_group, read_text, read_volume};
use blkback_proto::ctl::one_line;
use blkback_proto::ids::Epoch;
use blkback_proto::meta::{Role, VOLUMES_MAX};
use std::path::{Path, PathBuf};

/// Longest mark read, in bytes.
const MARK_BYTES_MAX: usize = 64;
/// Most names looked at in one directory.
const NAMES_MAX: usize = 1000;

/// What a state directory has, in words.
pub(super) fn holds(state: &Path) -> String {
    let group = match read_group(&state.join("group.meta")) {
        Ok(Some(group)) => group,
        Ok(None) => return "its group.meta is missing".to_owned(),
        Err(_) => return "its group.meta cannot be read".to_owned(),
    };
    if group.promoted != Epoch::NONE {
        return format!("promoted at epoch {}", group.promoted);
    }
    if group.role == Role::Primary {
        return "that of a primary".to_owned();
    }
    let volumes = (0..group.volume_count).map(|volume| {
        let path = state.join(format!("volume-{volume}.meta"));
        read_volume(&path).ok().flatten()
    });
    let Some(volumes) = volumes.collect::<Option<Vec<_>>>() else {
        return "the metadata of a volume is missing or cannot be read".to_owned();
    };
    if volumes.iter().all(|volume| volume.volume.is_none()) {
        return "never held an epoch".to_owned();
    }
    if volumes.iter().any(|volume| volume.inconsistent) {
        return "in the middle of a comparison".to_owned();
    }
    let epoch = volumes
        .iter()
        .map(|volume| volume.committed.max(volume.applied));
    // Metadata is not written for every epoch.
    format!(
        "holds epoch {} or a later one",
        epoch.min().unwrap_or_default()
    )
}

/// A volume in a state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) state: PathBuf,
    pub(super) volume: usize,
}

impl Owner {
    /// The volume of this state directory that has the mark.
    pub(super) fn in_state(state: &Path, mark: &str) -> Option<Self> {
        let has = |volume: &usize| {
            let found = read_text(&Layout::mark_in(state, *volume), MARK_BYTES_MAX);
            matches!(found, Ok(Some(found)) if found == mark)
        };
        let volume = (0..usize::from(VOLUMES_MAX)).find(has)?;
        Some(Self {
            state: state.to_owned(),
            volume,
        })
    }

    /// Who has the mark: this state directory, the one that the image names, or one beside either of
    /// them: that is where they are moved to.
    pub(super) fn of_mark(layout: &Layout, mark: &str, said: &Path) -> Option<Self> {
        let near = [layout.state.as_path(), said];
        let known = near.iter().find_map(|state| Self::in_state(state, mark));
        known.or_else(|| {
            let parents = near.iter().filter_map(|state| state.parent());
            let mut beside = parents.flat_map(state_dirs);
            beside.find_map(|state| Self::in_state(&state, mark))
        })
    }

    /// In words, and what to type instead. Nobody's word makes another volume's image this one's.
    pub(super) fn refusal(&self, layout: &Layout, index: usize, path: &Path) -> FileError {
        let (path, volume) = (path.display(), self.volume);
        let (own, other) = (layout.state.display().to_string(), self.state.display());
        let other = one_line(&other.to_string());
        FileError::store(if self.is_of(layout) {
            format!(
                "the image {path} is that of volume {volume} of this group, and was given as volume \
                 {index}: give the images in the order in which the state directory {own} was made"
            )
        } else {
            format!(
                "the image {path} belongs to volume {volume} of the state directory {other} ({}): what \
                 was written to it there is not known to {own} ({}); give --state {other} with this \
                 image, or give volume {index} the image that belongs to {own}",
                holds(&self.state),
                holds(&layout.state)
            )
        })
    }

    /// Another volume of the very group that is started.
    pub(super) fn is_of(&self, layout: &Layout) -> bool {
        self.state == layout.state
    }
}

fn state_dirs(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten();
    let paths = entries.take(NAMES_MAX).flatten().map(|entry| entry.path());
    paths
        .filter(|path| path.join("group.meta").is_file())
        .collect()
}
