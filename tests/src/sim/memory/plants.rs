//! Bugs that are planted in the guest's protection, each of which the simulator has to find.

use checkpointer::sequence::Sequence;

/// Every bug, and what it does.
pub const ALL: &[(&str, &str)] = &[
    (
        "release-before-ack",
        "output is let go when the guest goes on, before the backup has the checkpoint",
    ),
    (
        "release-without-disks",
        "output is let go when the backup has the memory, whatever became of the disks",
    ),
    (
        "late-cut-counts",
        "an answer of an attempt that was given up counts for the next one",
    ),
    (
        "pages-not-taken-back",
        "pages that were sent and not acknowledged are forgotten with the link",
    ),
    (
        "pages-not-abandoned",
        "pages of a checkpoint that was given up are forgotten",
    ),
    (
        "spoiled-is-sent",
        "a checkpoint is sent though the link was lost while it was made",
    ),
    (
        "older-memory-promoted",
        "a promotion goes on with the memory of the epoch before the disks'",
    ),
    (
        "old-copy-taken-in",
        "a commit of the copy before takes the backup in for the present one",
    ),
    (
        "joined-while-degrading",
        "the backup is taken in while the guest is on its way to be alone",
    ),
    (
        "speaks-afresh",
        "a guest that is started anew speaks while the record has the backup in with the one before",
    ),
];

/// Plants what is to be planted in a new sequence.
#[cfg(feature = "mutants")]
pub fn plant(sequence: &mut Sequence) {
    use blockrep::mutants::is_planted;
    use checkpointer::sequence::Plant;
    let all = [
        ("release-before-ack", Plant::NoAck),
        ("release-without-disks", Plant::NoDisk),
        ("late-cut-counts", Plant::LateAnswers),
        ("pages-not-abandoned", Plant::NoAbandon),
        ("spoiled-is-sent", Plant::Spoiled),
    ];
    if let Some((_, plant)) = all.into_iter().find(|(name, _)| is_planted(name)) {
        sequence.plant(plant);
    }
}

/// No bug can be planted in this build.
#[cfg(not(feature = "mutants"))]
pub fn plant(_: &mut Sequence) {}
