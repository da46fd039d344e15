//! Metadata of the group and its volumes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blkback_proto::meta::{GroupMeta, SLOT_BYTES, VolumeMeta, newest, slot_offset};
use blkback_proto::record::RecordError;

use super::JournalError;
use super::layout::Found;

/// Both slots of one kind of metadata.
#[derive(Debug)]
pub(super) struct Slots<T> {
    /// Generation of each slot, or why it cannot be read; `None` for one never written.
    pub(super) each: [Option<Result<u64, String>>; 2],
    pub(super) newest: Option<T>,
}

/// All metadata of a state directory.
#[derive(Debug, Default)]
pub(super) struct AllSlots {
    pub(super) group: Option<Slots<GroupMeta>>,
    pub(super) volumes: BTreeMap<u16, Slots<VolumeMeta>>,
    /// What does not fit together, or cannot be read at all.
    pub(super) problems: Vec<String>,
}

impl AllSlots {
    /// Serial of the first segment that recovery would read: 0 where nobody says that any is applied.
    pub(super) fn needed_from(&self, volume: Option<u16>) -> u64 {
        let slots = volume.and_then(|index| self.volumes.get(&index));
        match slots.and_then(|slots| slots.newest.as_ref()) {
            Some(meta) if meta.journal_empty => u64::MAX,
            Some(meta) => meta.tail.serial,
            None => 0,
        }
    }
}

/// Reads all metadata there is.
pub(super) fn read(found: &Found) -> Result<AllSlots, JournalError> {
    let mut all = AllSlots::default();
    if let Some(path) = &found.group_meta {
        let slots = read_file(path, GroupMeta::decode, |m| m.generation)?;
        note_unreadable("group.meta", &slots, &mut all.problems);
        all.group = Some(slots);
    }
    for journal in &found.journals {
        let (Some(index), Some(path)) = (journal.index, &journal.meta) else {
            continue;
        };
        let slots = read_file(path, VolumeMeta::decode, |m| m.generation)?;
        note_unreadable(&format!("volume-{index}.meta"), &slots, &mut all.problems);
        all.volumes.insert(index, slots);
    }
    check_together(&mut all);
    Ok(all)
}

fn read_file<T>(
    path: &Path,
    decode: fn(&[u8]) -> Result<T, RecordError>,
    generation: fn(&T) -> u64,
) -> Result<Slots<T>, JournalError> {
    let fail = |source: io::Error| JournalError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let mut slots: [Option<T>; 2] = [None, None];
    let mut each = [None, None];
    for index in 0..2 {
        let mut bytes = vec![0; SLOT_BYTES];
        file.read_exact_at(&mut bytes, slot_offset(index as u64))
            .map_err(fail)?;
        if bytes.iter().all(|b| *b == 0) {
            continue;
        }
        each[index] = Some(match decode(&bytes) {
            Ok(meta) => {
                let number = generation(&meta);
                slots[index] = Some(meta);
                Ok(number)
            }
            Err(error) => Err(error.to_string()),
        });
    }
    Ok(Slots {
        each,
        newest: newest(slots, generation),
    })
}

fn note_unreadable<T>(name: &str, slots: &Slots<T>, problems: &mut Vec<String>) {
    if slots.newest.is_some() {
        return;
    }
    let whys: Vec<&str> = slots
        .each
        .iter()
        .flatten()
        .filter_map(|s| s.as_ref().err())
        .map(String::as_str)
        .collect();
    let why = if whys.is_empty() {
        "never written".to_owned()
    } else {
        whys.join("; ")
    };
    problems.push(format!("{name}: neither slot can be read ({why})"));
}

fn check_together(all: &mut AllSlots) {
    let Some(group) = all.group.as_ref().and_then(|g| g.newest.as_ref()) else {
        return;
    };
    for (index, slots) in &all.volumes {
        let Some(volume) = &slots.newest else {
            continue;
        };
        if !volume.group.is_none() && volume.group != group.group {
            all.problems.push(format!(
                "volume-{index}.meta: belongs to group {}, group.meta to {}",
                volume.group, group.group
            ));
        }
        if volume.volume_index != *index {
            all.problems.push(format!(
                "volume-{index}.meta: is the metadata of volume {}",
                volume.volume_index
            ));
        }
    }
    let have = all.volumes.len();
    if have != usize::from(group.volume_count) {
        all.problems.push(format!(
            "group.meta: names {} volumes, {have} have metadata",
            group.volume_count
        ));
    }
}
