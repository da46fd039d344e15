//! Which mechanism holds the frames of this host's guests.

use super::DaemonError;
use crate::hold::{Mechanism, has_plug};
use crate::netlink::Netlink;

/// Epochs that a relay's guest may have cut and unreleased.
pub const EPOCHS_MAX: usize = 1024;

/// As the command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The plug where the kernel has it.
    #[default]
    Auto,
    Plug,
    Relay,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub mechanism: Mechanism,
    pub why: String,
}

pub(super) fn choose(netlink: &mut Netlink, choice: Choice) -> Result<Chosen, DaemonError> {
    let relay = Mechanism::Relay {
        epochs_max: EPOCHS_MAX,
    };
    let chosen = |mechanism, why: &str| Chosen {
        mechanism,
        why: why.to_owned(),
    };
    if choice == Choice::Relay {
        return Ok(chosen(relay, "asked for by --mechanism relay"));
    }
    Ok(match (has_plug(netlink)?, choice) {
        (Ok(()), Choice::Plug) => chosen(Mechanism::Plug, "asked for by --mechanism plug"),
        (Ok(()), _) => chosen(Mechanism::Plug, "the kernel has sch_plug"),
        (Err(why), Choice::Plug) => return Err(DaemonError::NoPlug(why)),
        (Err(why), _) => chosen(relay, &format!("the kernel has no plug: {why}")),
    })
}
