//! What goes into the image in one operation.

use crate::overlay::{Extent, Overlay, Source};
use blkback_proto::ids::Epoch;

/// Most bytes written to the image in one operation.
pub(super) const RUN_BYTES_MAX: u64 = 256 << 10;
/// Most extents joined into one operation.
const RUN_EXTENTS_MAX: usize = 64;

/// Adjacent extents from `cursor` on that go into the image in one operation.
pub(super) fn next_run(overlay: &Overlay, cursor: u64, limit: Epoch) -> Vec<Extent> {
    let mut run: Vec<Extent> = Vec::new();
    let mut length = 0;
    for extent in overlay.iter_from(cursor, limit) {
        let zero = matches!(extent.source, Source::Zero { .. });
        match run.last() {
            None => {}
            Some(last) => {
                let adjacent = last.offset + last.length == extent.offset;
                if !adjacent
                    || zero
                    || matches!(last.source, Source::Zero { .. })
                    || length + extent.length > RUN_BYTES_MAX
                    || run.len() == RUN_EXTENTS_MAX
                {
                    break;
                }
            }
        }
        run.push(*extent);
        length += extent.length;
    }
    run
}
