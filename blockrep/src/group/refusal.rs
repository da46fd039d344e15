//! What a backup says to a primary it does not take in, and what the refused one can do about it.
//!
//! The texts are read on both hosts: in the event of the backup and in the status of the primary.

use blkback_proto::ids::{Epoch, GroupUuid, LineageId};
use blkback_proto::link::{Hello, RefuseCode};

/// A promoted side to its former primary: both histories by name.
#[must_use]
pub fn superseded_text(epoch: Epoch, own: LineageId, theirs: LineageId) -> String {
    format!(
        "the backup was promoted at epoch {epoch} and has the current disk (lineage {own}); this \
         primary is its former one (lineage {theirs}): stop it, its guest must not run"
    )
}

/// A backup to a primary of another group, which may well be a good one. `promoted`: the epoch of
/// a promotion.
#[must_use]
pub fn other_group_text(
    name: &str,
    group: GroupUuid,
    promoted: Option<Epoch>,
    hello: &Hello,
) -> String {
    let alike = if name == hello.name {
        ", of the same name but with another state directory, made anew or not this one's"
    } else {
        ""
    };
    let advice = match promoted {
        // Its disk may be the only current one: nothing here may lead to its being overwritten.
        Some(epoch) => format!(
            "it was promoted at epoch {epoch} and may hold the current disk: stop this primary \
             until you know which disk is the right one, and remove nothing"
        ),
        None => "if the primary's disk is the right one, stop the backup, move its state directory \
                 away and start it again, which overwrites its image; else give the primary another \
                 backup"
            .to_owned(),
    };
    format!(
        "this backup belongs to another group, {name} ({group}); the primary is of group {} \
         ({}){alike}: {advice}",
        hello.name, hello.group
    )
}

/// A backup to a primary whose image has another size. `is_held`: it followed this primary before.
/// Nothing here may lead to an image with a disk in it being cut off.
#[must_use]
pub fn size_text(theirs: u64, own: u64, is_held: bool) -> String {
    if is_held {
        return format!(
            "the image of the primary has changed its size (was {own} bytes, is {theirs}), and this \
             backup has the disk as it was: if that is by mistake, put the primary's image back; else \
             give the primary another backup, with an image of its size and a state directory of its \
             own; make no image smaller"
        );
    }
    if theirs > own {
        return format!(
            "the primary's image has {theirs} bytes, the backup's {own}: stop the backup, make its \
             image as large as the primary's (truncate, lvresize), start it again"
        );
    }
    format!(
        "the primary's image has {theirs} bytes, the backup's {own}: stop the backup and give it an \
         image as large as the primary's; making this one smaller cuts off what it holds behind that"
    )
}

/// A blank backup to a primary whose operator vouches that the images are equal, where the backup's
/// own image is known to be another's.
#[must_use]
pub fn not_identical_text(warning: &str) -> String {
    format!(
        "--assume-identical is not taken here: {warning}; to have the images compared instead, which \
         overwrites the backup's, stop the primary and start it again without --assume-identical"
    )
}

/// What to do about a refusal that does not go away by itself.
#[must_use]
pub fn remedy(code: RefuseCode) -> &'static str {
    match code {
        RefuseCode::Version => {
            "install the same release on both hosts; tried again every five seconds"
        }
        RefuseCode::Identity => {
            "stop the one of the two whose disk is not the right one, see the reason, or give the \
             right address; tried again every five seconds"
        }
        RefuseCode::Size => {
            "stop the backup, do with its image what the reason says, start it again; tried again \
             every five seconds"
        }
        RefuseCode::Lineage => {
            "decide which of the two disks is the right one: nothing is compared or overwritten; \
             to copy this one, stop the backup, move its state directory away (mv STATE STATE.old) and start it \
             again"
        }
        RefuseCode::Store => {
            "see the status of the backup, repair its storage, start it again; tried again every \
             five seconds"
        }
        RefuseCode::Protocol => {
            "see the log of the backup, and install the same release on both hosts; tried again \
             every five seconds"
        }
        RefuseCode::Superseded => {
            "stop this daemon and its guest: the current disk is served at the promoted backup; to \
             make this host its backup, move the state directory here away, start blockrep-backup \
             on this image, and at the promoted side stop blockrep-backup and start blockrep on a \
             copy of its image"
        }
        RefuseCode::Busy | RefuseCode::Stopping => "tried again every half second",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `truncate` on a backup that held a disk cut it off, and the advice was ours.
    #[test]
    fn no_disk_is_cut_off_by_advice() {
        for (theirs, own, is_held, is_offered) in [
            (1024, 512, false, true),
            (512, 1024, false, false),
            (1024, 512, true, false),
            (512, 1024, true, false),
        ] {
            let text = size_text(theirs, own, is_held);
            assert_eq!(text.contains("truncate"), is_offered, "{text}");
            for bytes in [theirs, own] {
                assert!(text.contains(&bytes.to_string()), "{text}");
            }
        }
    }

    /// A refusal that waits for an operator says what he has to do, and promises nothing else.
    #[test]
    fn every_final_refusal_has_its_remedy() {
        for code in (1..=9).filter_map(RefuseCode::from_code) {
            let text = remedy(code);
            assert!(!text.contains("when it answers"), "{text}");
            let acts = ["install", "start", "stop"];
            let says = acts.iter().any(|word| text.contains(word));
            assert_eq!(says, code.is_final(), "{text}");
        }
    }
}
