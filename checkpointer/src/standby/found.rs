//! What a daemon that starts finds: a standby's place, a promotion that is not done, or a guest that runs.
//!
//! | authority's record | store | at the monitor | decision |
//! |---|---|---|---|
//! | the guest is not this host's alone, or not known | not promoted | anything | follow |
//! | this host's alone | not promoted, with an epoch of before that | nobody, a QEMU that waits, one that was loaded and stands | go on with the promotion |
//! | the same | the same | a guest that runs, or no answer | refused |
//! | the same | without an epoch, or with one of an earlier life | anything | refused |
//! | this host's alone, or not known | promoted | a guest | watch it |
//! | the same | promoted, not let run yet | a QEMU that stands | let it run |
//! | the same | promoted | nobody, or one that waits for a state | refused: it has ended |
//! | the same | promoted | no answer | refused |
//! | not this host's alone | promoted | anything | refused |
//!
//! The store says that it is promoted before the guest is let run, so one that does not was never gone on from: of a guest
//! that ran and ended no second one is started from an old epoch.

use super::progress::Progress;
use super::{ReceiveError, lock};
use crate::authority::Record;
use crate::config::Config;
use crate::hypervisor::qemu::{Error, Limits, Qemu, is_nobody};
use crate::memory::store::Store;
use crate::protect::unframed;
use blkback_proto::ids::Epoch;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// Whose the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Unknown,
    Here,
    NotHere,
}

/// What the store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    /// Of before the guest became this host's.
    Epoch,
    /// Not older than that: of another life of the guest.
    Stale,
    /// The guest may have run here. Whether it was let run is known.
    Promoted {
        was_let_run: bool,
    },
}

/// Who is at the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nobody,
    /// For a state.
    Waits,
    /// Paused.
    Stands,
    /// Or has run.
    Runs,
    Mute,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Follow,
    GoOn,
    LetRun,
    Watch,
    Refuse(Why),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Something runs or listens where the promotion would put the guest.
    InTheWay,
    /// Its memory went with the host's power, or was never here.
    Gone,
    Stale,
    Ended,
    Mute,
    /// It was promoted here, and is somebody else's since.
    Moved,
}

fn decide(owner: Owner, held: Held, there: There) -> Decision {
    match (owner, held, there) {
        (Owner::NotHere, Held::Promoted { .. }, _) => Decision::Refuse(Why::Moved),
        (_, Held::Promoted { .. }, There::Nobody | There::Waits) => Decision::Refuse(Why::Ended),
        (_, Held::Promoted { .. }, There::Mute) => Decision::Refuse(Why::Mute),
        (_, Held::Promoted { was_let_run: false }, There::Stands) => Decision::LetRun,
        (_, Held::Promoted { .. }, There::Stands | There::Runs) => Decision::Watch,
        (Owner::Unknown | Owner::NotHere, _, _) => Decision::Follow,
        (Owner::Here, Held::Nothing, _) => Decision::Refuse(Why::Gone),
        (Owner::Here, Held::Stale, _) => Decision::Refuse(Why::Stale),
        (Owner::Here, Held::Epoch, There::Runs | There::Mute) => Decision::Refuse(Why::InTheWay),
        (Owner::Here, Held::Epoch, _) => Decision::GoOn,
    }
}

/// As what the daemon begins.
#[derive(Debug)]
pub(super) enum Begin {
    Standby,
    /// The authority has decided, and the guest never ran here.
    Unfinished(Record),
    /// It was about to be let run.
    Loaded(Option<Record>, Box<Qemu>),
    /// It runs.
    Running(Option<Record>, Box<Qemu>),
}

const LIMIT: Duration = Duration::from_secs(2);

fn at(monitor: &Path) -> (There, Option<Qemu>) {
    let limits = Limits {
        ask: LIMIT,
        pause: LIMIT,
    };
    let mut qemu = match Qemu::attach(monitor, limits) {
        Ok(qemu) => qemu,
        Err(Error::Connect { source, .. }) if is_nobody(&source) => return (There::Nobody, None),
        Err(Error::Gone(_)) => return (There::Nobody, None),
        Err(_) => return (There::Mute, None),
    };
    let there = match qemu.status() {
        Ok(status) => match status.word.as_str() {
            "inmigrate" => There::Waits,
            "paused" | "prelaunch" => There::Stands,
            _ => There::Runs,
        },
        Err(Error::Gone(_)) => There::Nobody,
        Err(_) => There::Mute,
    };
    (there, Some(qemu))
}

/// The record that came with the memory.
///
/// # Errors
/// There is none, or it is none, one line.
pub(super) fn told_record(store: &Mutex<Store>) -> Result<Record, String> {
    let state = lock(store).device_state().map_err(|e| e.to_string())?;
    let record = unframed(&state.bytes)?.record;
    serde_json::from_slice(record)
        .map_err(|e| format!("the authority's record that came with the memory: {e}"))
}

fn held(store: &Mutex<Store>, own: Option<&Record>, path: &Path) -> Held {
    let (is_promoted, committed) = {
        let store = lock(store);
        (store.is_promoted(), store.committed())
    };
    if is_promoted {
        let was_let_run = Progress::of(path, own).answer.is_some();
        return Held::Promoted { was_let_run };
    }
    if committed == Epoch::NONE {
        return Held::Nothing;
    }
    match (told_record(store), own) {
        (Ok(told), Some(own)) if told.generation >= own.generation => Held::Stale,
        (Err(_), _) => Held::Stale,
        _ => Held::Epoch,
    }
}

/// Looks, and changes nothing.
///
/// # Errors
/// [`ReceiveError::NoStandby`]: this host is no standby of the guest, and why.
pub(super) fn look(
    config: &Config,
    store: &Mutex<Store>,
    path: &Path,
    monitor: &Path,
) -> Result<Begin, ReceiveError> {
    let authority = config.authority.open(&config.guest, &config.host);
    let (owner, record) = match authority.read() {
        Ok(Some(record)) if record.is_alone(&config.host) => (Owner::Here, Some(record)),
        Ok(record) => (Owner::NotHere, record),
        Err(error) => {
            tracing::warn!("whose the guest is, is not known: {error}");
            (Owner::Unknown, None)
        }
    };
    let held = held(store, record.as_ref(), path);
    let is_followed = owner != Owner::Here && !matches!(held, Held::Promoted { .. });
    let (there, qemu) = match is_followed {
        true => (There::Nobody, None),
        false => at(monitor),
    };
    let mut qemu = qemu.map(Box::new);
    let mut taken = || qemu.take().expect("it answered");
    match decide(owner, held, there) {
        Decision::Follow => Ok(Begin::Standby),
        Decision::GoOn => Ok(Begin::Unfinished(record.expect("it is this host's"))),
        Decision::LetRun => Ok(Begin::Loaded(record, taken())),
        Decision::Watch => Ok(Begin::Running(record, taken())),
        Decision::Refuse(why) => {
            let text = words(why, config, record.as_ref(), path, monitor);
            Err(ReceiveError::NoStandby(text))
        }
    }
}

fn words(
    why: Why,
    config: &Config,
    record: Option<&Record>,
    path: &Path,
    monitor: &Path,
) -> String {
    let guest = &config.guest;
    let (path, monitor) = (path.display(), monitor.display());
    let ours = record.map_or_else(String::new, |record| {
        format!(
            "{guest} is {}'s by the authority's record, generation {} ({})",
            record.primary, record.generation, record.note
        )
    });
    match why {
        Why::InTheWay => format!(
            "{ours}, its promotion here is not done, and something else listens at {monitor}: end that, and start this again"
        ),
        Why::Gone => format!(
            "{ours}, so this is no standby of it, and no memory of it is here: it runs here, or it ended with this host; \
             start it with `checkpointer run` if it does not run, or make the other side its standby"
        ),
        Why::Stale => format!(
            "{ours}, so this is no standby of it, and {path} has memory of an earlier life of it: remove {path}, and start \
             `receive` at the other host"
        ),
        Why::Ended => format!(
            "{guest} was promoted here, ran here and has ended; {path} has what it was promoted from, which nothing goes on \
             from a second time: start it from its disks with `checkpointer run`, or remove {path} where it is off for good"
        ),
        Why::Mute => format!(
            "{guest} was promoted here, and what listens at {monitor} does not answer: end whoever has that monitor \
             (`checkpointer protect` has it), or the QEMU if it hangs, and start this again"
        ),
        Why::Moved => {
            let since = if ours.is_empty() {
                String::new()
            } else {
                format!(", and {ours}")
            };
            format!(
                "{guest} was promoted here before{since}: when no QEMU of it runs here any more, remove {path} and start this again"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    //! A daemon that comes back and takes a guest that ran for one that never did: two guests, or one from the day before.
    use super::*;

    #[test]
    fn every_finding_has_its_decision() {
        let owners = [Owner::Unknown, Owner::Here, Owner::NotHere];
        let held = [
            Held::Nothing,
            Held::Epoch,
            Held::Stale,
            Held::Promoted { was_let_run: true },
            Held::Promoted { was_let_run: false },
        ];
        let there = [
            There::Nobody,
            There::Waits,
            There::Stands,
            There::Runs,
            There::Mute,
        ];
        for owner in owners {
            for held in held {
                for there in there {
                    let made = decide(owner, held, there);
                    let case = format!("{owner:?} {held:?} {there:?}: {made:?}");
                    let is_promoted = matches!(held, Held::Promoted { .. });
                    // From memory that a guest may have run on nothing is gone on from.
                    assert!(!(is_promoted && made == Decision::GoOn), "{case}");
                    // A guest that is another's is not let run, nor one that is this host's followed.
                    if owner == Owner::NotHere {
                        assert!(!matches!(made, Decision::LetRun | Decision::GoOn), "{case}");
                    }
                    if owner == Owner::Here {
                        assert_ne!(made, Decision::Follow, "{case}");
                    }
                    // Beside a guest that runs no other is started.
                    if there == There::Runs {
                        assert_ne!(made, Decision::GoOn, "{case}");
                    }
                    if matches!(made, Decision::LetRun | Decision::Watch) {
                        assert!(matches!(there, There::Stands | There::Runs), "{case}");
                    }
                }
            }
        }
    }
}
