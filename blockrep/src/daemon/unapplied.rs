//! What the journal of a state directory holds that is not in the image. A primary knows no journal:
//! started on such an image it would serve a disk without it. Start-up only, blocking, reads only.

use super::files::{FileError, JournalReader, Layout, begin_anew, read_group, read_volume};
use super::image_mark::Mark;
use super::image_owner::{Owner, holds};
use crate::journal::ring::Geometry;
use crate::journal::start::{VolumeShape, recover_volume};
use crate::reactor::OpenedFile;
use blkback_proto::ctl::one_line;
use blkback_proto::units::human_bytes;
use std::path::Path;

/// Refuses an image for a primary whose rest is in the journal of the state directory that it was
/// last used with, wherever that was moved to.
///
/// # Errors
/// How much, where, and how to have it applied.
pub(super) fn check(layout: &Layout, path: &Path, image: &OpenedFile) -> Result<(), FileError> {
    let Some(mark) = Mark::of(image) else {
        return Ok(());
    };
    let Some(owner) = Owner::of_mark(layout, &mark.id, &mark.state) else {
        return Ok(());
    };
    match unapplied_bytes(&owner) {
        Some(bytes) if bytes > 0 => Err(FileError::store(refusal(
            path,
            bytes,
            &owner.state,
            &mark.state,
            mark.state == layout.state
                || !(mark.state.as_os_str().is_empty() || mark.state.exists()),
        ))),
        _ => Ok(()),
    }
}

/// Bytes of whole epochs in the journal of a volume and not in its image; none where that cannot be
/// told, as with a journal that stands elsewhere.
fn unapplied_bytes(owner: &Owner) -> Option<u64> {
    let group = read_group(&owner.state.join("group.meta")).ok()??;
    let volume = owner.volume;
    let meta = read_volume(&owner.state.join(format!("volume-{volume}.meta"))).ok()??;
    if meta.volume.is_none() || meta.journal_empty || meta.segment_count == 0 {
        return Some(0);
    }
    let shape = VolumeShape {
        size_bytes: meta.size_bytes,
        geometry: Geometry {
            segment_bytes: meta.segment_bytes,
            segment_count: meta.segment_count,
        },
    };
    let layout = Layout {
        state: owner.state.clone(),
        journal: owner.state.join("journal"),
        geometry: shape.geometry,
    };
    let reader = JournalReader::open(&layout, volume).ok()?;
    let start = recover_volume(&reader, Some(&group), shape).ok()?;
    let extents = start.recovered.epochs.iter().flat_map(|e| &e.extents);
    Some(extents.map(|extent| extent.length).sum())
}

/// `said`: where the image says that its state directory is. `is_free`: it can be put back there.
fn refusal(path: &Path, bytes: u64, state: &Path, said: &Path, is_free: bool) -> String {
    let text = |path: &Path| one_line(&path.display().to_string());
    let (state_text, said_text) = (text(state), text(said));
    let what = format!(
        "the image {} is not the whole disk: {} of the journal in {state_text} ({}) are not in it",
        path.display(),
        human_bytes(bytes),
        holds(state)
    );
    let start = "start blockrep-backup on it as before, wait until its status shows nothing \
                 unapplied any more, and stop it";
    let apply = if state == said {
        format!("{start}; then {}", begin_anew(said))
    } else if is_free {
        format!(
            "put that back (mv {state_text} {said_text}), {start}; then move it away again and start \
             again"
        )
    } else {
        format!(
            "give blockrep-backup --state {state_text}: {start}; then move it away and start again"
        )
    };
    format!(
        "{what}: {apply}; to begin anew without them, give a copy of the image (cp --sparse=always) and \
         leave this one as it is"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The advice went in a circle: what it names must be there, and lead out.
    #[test]
    fn the_way_out_can_be_typed() {
        let (image, old, said) = (Path::new("/b.img"), Path::new("/b.old"), Path::new("/b"));
        for (is_free, words) in [(true, "(mv /b.old /b)"), (false, "--state /b.old:")] {
            let text = refusal(image, 43 << 20, old, said, is_free);
            for word in [
                words,
                "43 MiB",
                "/b.img",
                "nothing unapplied any more",
                "a copy",
            ] {
                assert!(text.contains(word), "\"{word}\" is not in: {text}");
            }
            assert_eq!(text.lines().count(), 1);
        }
    }
}
