//! What stands in a directory: metadata of a group and its volumes, and journals.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use blkback_proto::segment::SEGMENT_COUNT_MAX;

use super::JournalError;

/// Most names looked at beside a directory that is not there.
const NAMES_MAX: usize = 1000;
/// Most directories offered instead.
const MEANT_MAX: usize = 3;

/// Files of one volume.
#[derive(Debug, Default)]
pub(super) struct JournalFiles {
    /// Index of the volume in its group; `None` for a journal directory given alone.
    pub(super) index: Option<u16>,
    /// Metadata, if the directory has it.
    pub(super) meta: Option<PathBuf>,
    /// Segment files with their index, in order.
    pub(super) segments: Vec<(u32, PathBuf)>,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) group_meta: Option<PathBuf>,
    pub(super) journals: Vec<JournalFiles>,
}

impl Found {
    /// A file without which the others are no state directory.
    pub(super) fn missing(&self) -> Option<String> {
        let has_volumes = self.journals.iter().any(|journal| journal.meta.is_some());
        (has_volumes && self.group_meta.is_none()).then(|| {
            "group.meta is missing: who the group is and what was promoted is not known without it"
                .to_owned()
        })
    }
}

/// Looks at a state directory, a directory of journals, or one journal. Journals of a state directory
/// stand in `journal` inside of it, or where the daemon was told: then `elsewhere`.
pub(super) fn find(
    dir: &Path,
    elsewhere: Option<&Path>,
    command: &'static str,
) -> Result<Found, JournalError> {
    let nothing = || JournalError::NothingThere {
        dir: dir.to_owned(),
    };
    if !dir.is_dir() {
        return Err(no_directory(dir, command));
    }
    must_be_there(elsewhere)?;
    let segments = segments_in(dir)?;
    if !segments.is_empty() {
        let journals = vec![JournalFiles {
            index: None,
            meta: None,
            segments,
        }];
        return Ok(Found {
            group_meta: None,
            journals,
        });
    }
    let group_meta = existing(dir.join("group.meta"));
    let inside = dir.join("journal");
    let home = match elsewhere {
        Some(elsewhere) => elsewhere,
        None if inside.is_dir() => &inside,
        None => dir,
    };
    let mut journals = Vec::new();
    let mut all = names(dir)?;
    if home != dir {
        all.extend(names(home)?);
    }
    for name in all {
        let number = |text: &str| text.parse::<u16>().ok();
        let index = name.strip_prefix("journal-").and_then(number).or_else(|| {
            name.strip_prefix("volume-")?
                .strip_suffix(".meta")
                .and_then(number)
        });
        let Some(index) = index else { continue };
        if journals
            .iter()
            .any(|j: &JournalFiles| j.index == Some(index))
        {
            continue;
        }
        let journal_dir = home.join(format!("journal-{index}"));
        journals.push(JournalFiles {
            index: Some(index),
            meta: existing(dir.join(format!("volume-{index}.meta"))),
            segments: if journal_dir.is_dir() {
                segments_in(&journal_dir)?
            } else {
                Vec::new()
            },
        });
    }
    journals.sort_by_key(|j| j.index);
    if journals.is_empty() && group_meta.is_none() {
        return Err(nothing());
    }
    Ok(Found {
        group_meta,
        journals,
    })
}

fn no_directory(dir: &Path, command: &'static str) -> JournalError {
    JournalError::NoDirectory {
        dir: dir.to_owned(),
        what: not_there(dir),
        command,
        found: meant_instead(dir),
    }
}

fn must_be_there(elsewhere: Option<&Path>) -> Result<(), JournalError> {
    match elsewhere.filter(|elsewhere| !elsewhere.is_dir()) {
        Some(elsewhere) => Err(JournalError::NoJournals {
            dir: elsewhere.to_owned(),
            what: not_there(elsewhere),
        }),
        None => Ok(()),
    }
}

fn not_there(dir: &Path) -> &'static str {
    if dir.exists() {
        "this is no directory"
    } else {
        "there is no such directory"
    }
}

/// State directories that whoever typed `dir` may have meant: that of the image of this name, else
/// those beside it.
fn meant_instead(dir: &Path) -> Vec<PathBuf> {
    let is_state = |path: &PathBuf| path.join("group.meta").is_file();
    let mut of_image = dir.as_os_str().to_owned();
    of_image.push(".blockrep");
    let of_image = PathBuf::from(of_image);
    if is_state(&of_image) {
        return vec![of_image];
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let entries = fs::read_dir(parent).into_iter().flatten().take(NAMES_MAX);
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(is_state).collect();
    found.sort();
    found.truncate(MEANT_MAX);
    found
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

fn names(dir: &Path) -> Result<Vec<String>, JournalError> {
    let fail = |source: io::Error| JournalError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        // A name that is no text is none of ours.
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn segments_in(dir: &Path) -> Result<Vec<(u32, PathBuf)>, JournalError> {
    let mut segments = Vec::new();
    for name in names(dir)? {
        let index = name
            .strip_prefix("segment-")
            .and_then(|rest| rest.strip_suffix(".brj"));
        if let Some(index) = index.and_then(|digits| digits.parse().ok()) {
            segments.push((index, dir.join(name)));
        }
        if segments.len() > SEGMENT_COUNT_MAX as usize {
            return Err(JournalError::TooMany {
                dir: dir.to_owned(),
            });
        }
    }
    segments.sort();
    Ok(segments)
}
