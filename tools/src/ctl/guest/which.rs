//! Which of the daemons of which guest is meant.

use std::path::{Path, PathBuf};

use blkback_proto::ctl::{GuestSide, guest_socket_name};
use blockrep_host::ctl::control_path;

use super::super::args::TargetArgs;
use super::super::failure::{Exit, Failure};
use super::super::target::living_guests;

/// The socket that was typed, or that of the guest, or the only one there is. `side` is the one that a command is for;
/// without it, one that lives alone is meant.
pub(super) fn socket(
    target: &TargetArgs,
    guest: Option<&str>,
    side: Option<GuestSide>,
    dir: &Path,
) -> Result<PathBuf, Failure> {
    if let Some(path) = &target.control {
        return Ok(path.clone());
    }
    let living = living_guests(dir);
    let guest = guest.or(target.group.as_deref());
    let wanted: Vec<PathBuf> = match guest {
        None => living.clone(),
        Some(guest) => {
            control_path(guest).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
            let sides = [GuestSide::Primary, GuestSide::Standby];
            let paths = sides.map(|side| dir.join(guest_socket_name(guest, &side)));
            living
                .iter()
                .filter(|path| paths.contains(path))
                .cloned()
                .collect()
        }
    };
    if let [path] = wanted.as_slice() {
        return Ok(path.clone());
    }
    // Both of one guest, and the command is for one of them.
    if let (Some(side), Some(guest)) = (side, guest) {
        let path = dir.join(guest_socket_name(guest, &side));
        if wanted.contains(&path) {
            return Ok(path);
        }
    }
    Err(unclear(guest, &wanted, &living, dir))
}

fn unclear(guest: Option<&str>, wanted: &[PathBuf], living: &[PathBuf], dir: &Path) -> Failure {
    let choices = |paths: &[PathBuf]| {
        let words = paths
            .iter()
            .map(|path| format!("--control {}", path.display()));
        words.collect::<Vec<_>>().join(" or ")
    };
    if !wanted.is_empty() {
        let text = format!(
            "more than one checkpointer runs here: type {}",
            choices(wanted)
        );
        return Failure::new(Exit::Usage, text);
    }
    let who = guest.map_or_else(
        || "no checkpointer runs here".to_owned(),
        |guest| format!("no checkpointer of {guest} runs here"),
    );
    let instead = if living.is_empty() {
        format!(" (in {}); start one, or type --control PATH", dir.display())
    } else {
        format!("; running here: {}", choices(living))
    };
    Failure::new(Exit::Unreachable, who + &instead)
}
