//! What a refusal for damage leaves to be done.

use crate::daemon::files::{Layout, begin_anew};
use crate::journal::start::Refusal;

/// What can still be had when acknowledged epochs are damaged.
pub(super) fn after_damage(layout: &Layout, refusal: &Refusal) -> String {
    if !matches!(refusal, Refusal::Damaged { .. }) {
        return String::new();
    }
    format!(
        "; while the primary lives, {}: the image is compared with its disk; with the primary dead the \
         damaged epochs are lost: `blockrepctl journal verify {}` tells what is whole, and a copy of the \
         image has what was applied, perhaps with parts of later epochs",
        begin_anew(&layout.state),
        layout.state.display()
    )
}
