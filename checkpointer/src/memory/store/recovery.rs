//! What is made of a store that is found: planned from facts first, then done.
//!
//! | found | decision |
//! |---|---|
//! | no readable state, no files of a copy | fresh |
//! | no readable state, files of a copy | refused |
//! | a slot that is damaged | refused: the other one may be of before an epoch that was applied |
//! | RAM or shape of the copy that counts missing | refused |
//! | `committed` above `applied`, its epoch there | applied again |
//! | the same, its epoch missing | refused |
//! | an epoch of the copy that counts, up to `applied` | removed |
//! | an epoch above `committed`, or of the copy that is being made | kept: it was acknowledged |
//! | a copy that is being made, without its RAM, its shape or an epoch | dropped: its session is over |
//! | files of other copies; `.part` | removed |
//! | other names | left alone |

use super::files::{Name, ram_name, read_name, shape_name};
use blkback_proto::ids::Epoch;
use blkback_proto::memory::kept::Kept;
use std::collections::BTreeMap;

/// Facts besides what `state` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Name and length.
    pub(super) files: BTreeMap<String, u64>,
    pub(super) has_state: bool,
    /// Slots that are neither readable nor empty.
    pub(super) bad_slots: usize,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Nothing was ever written here.
    pub(super) is_fresh: bool,
    /// To be opened: copy and number, ascending in each copy.
    pub(super) epochs: Vec<(u64, Epoch)>,
    /// An apply was interrupted.
    pub(super) finishes: bool,
    pub(super) drops_next: bool,
    /// Names.
    pub(super) removes: Vec<String>,
}

/// # Errors
/// Why nothing may be touched, in words.
pub(super) fn plan(kept: &Kept, seen: &Seen) -> Result<Plan, String> {
    let is_of_copy = |name: &String| matches!(read_name(name), Name::OfCopy(_) | Name::Epoch(..));
    if seen.bad_slots > 0 {
        return Err("its state is damaged".to_owned());
    }
    if !seen.has_state {
        if seen.files.keys().any(is_of_copy) {
            return Err("it has a guest's memory and no state".to_owned());
        }
        return Ok(Plan {
            is_fresh: true,
            ..Plan::default()
        });
    }
    let has_copy = |generation| {
        let has = |name: String| seen.files.contains_key(&name);
        has(ram_name(generation)) && has(shape_name(generation))
    };
    if kept.generation != 0 && !has_copy(kept.generation) {
        return Err("the guest's memory is gone".to_owned());
    }
    let has_epoch_of_next = seen
        .files
        .keys()
        .any(|name| matches!(read_name(name), Name::Epoch(of, _) if of == kept.next));
    if has_epoch_of_next && !has_copy(kept.next) {
        return Err("memory of an acknowledged epoch is gone".to_owned());
    }
    let mut plan = Plan {
        finishes: kept.committed != kept.applied,
        drops_next: kept.next != 0 && !has_epoch_of_next,
        ..Plan::default()
    };
    for name in seen.files.keys() {
        let is_kept = match read_name(name) {
            Name::OfCopy(of) => of == kept.generation || (of == kept.next && !plan.drops_next),
            Name::Epoch(of, epoch) => {
                let counts = of == kept.next || (of == kept.generation && epoch > kept.applied);
                if counts {
                    plan.epochs.push((of, epoch));
                }
                counts
            }
            Name::Part => false,
            Name::DeviceState | Name::Other => true,
        };
        if !is_kept {
            plan.removes.push(name.clone());
        }
    }
    plan.epochs.sort_unstable();
    let committed = (kept.generation, kept.committed);
    if plan.finishes && !plan.epochs.contains(&committed) {
        return Err(format!(
            "epoch {} was being applied and is gone",
            kept.committed
        ));
    }
    Ok(plan)
}
