//! What apply asks of its volume.

use crate::io::Memory;
use crate::overlay::Extent;
use blkback_proto::ids::Place;

/// What apply wants done; run and part are given back with the completion.
pub enum Want<M: Memory> {
    /// Read a stretch of the journal that holds many pieces.
    Load {
        /// Where it begins.
        place: Place,
        /// Where to.
        buf: M::BufMut,
    },
    /// Read a part of a run from the journal.
    Read {
        /// Run.
        run: usize,
        /// Part of the run.
        part: usize,
        /// What to read.
        extent: Extent,
        /// Where to.
        buf: M::BufMut,
    },
    /// Write a whole run to the image.
    Write {
        /// Run.
        run: usize,
        /// Byte offset in the image.
        offset: u64,
        /// What to write.
        bufs: Vec<M::Buf>,
    },
    /// Zero a range of the image.
    Zero {
        /// Run.
        run: usize,
        /// The range.
        extent: Extent,
        /// It may be given back.
        discard: bool,
    },
    /// Sync the image.
    Sync,
}

impl<M: Memory> std::fmt::Debug for Want<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load { place, .. } => write!(f, "apply load {place}"),
            Self::Read { run, part, .. } => write!(f, "apply read run {run} part {part}"),
            Self::Write { run, .. } => write!(f, "apply write run {run}"),
            Self::Zero { run, .. } => write!(f, "apply zero run {run}"),
            Self::Sync => f.write_str("apply sync"),
        }
    }
}
