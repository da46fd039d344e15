//! What is done before a guest is protected: it is this host's, and what it says is held where the backup might go on without it.
//!
//! ```text
//!   run:      claim ─► QEMU, standing still ─► hold ─► cont ─► protect
//!   protect:  claim ─► hold, where it is open ─► protect
//! ```
//! While the record has a backup in, that may be promoted to what it has. So nothing is said before it has a checkpoint of this
//! guest, or is out: of a guest that was started anew it has none, whatever it had of the one before.

use super::{OUTPUT_LIMIT, Output, ProtectError, Protector, authority};
use crate::config::Config;
use crate::hypervisor::qemu::{Error, Limits, Qemu};
use crate::protect::Interface;
use crate::sequence::Found;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a guest that stands still is looked at.
const LEFT_PAUSED: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What holds the output, where that is configured.
pub(super) fn output(config: &Config) -> Option<Output> {
    let interfaces = config.output.interfaces.iter().map(|name| Interface {
        name: name.clone(),
        bridge: config.output.bridge.clone(),
    });
    let interfaces: Vec<Interface> = interfaces.collect();
    let is_held = config.output.is_held && !interfaces.is_empty();
    let control = config.output.control.clone();
    is_held.then(|| Output::new(control, config.guest.clone(), interfaces, OUTPUT_LIMIT))
}

/// The guest is this host's: to be asked before it is started here. Whether a backup is in, so that it is to be held before it
/// runs.
///
/// # Errors
/// [`ProtectError::NotOurs`].
pub fn claim(config: &Config) -> Result<bool, ProtectError> {
    let record = authority::claim(config).map_err(ProtectError::NotOurs)?;
    Ok(record.backup().is_some())
}

/// The guest's monitor. One that stands still may have been left in a pause by a checkpointer that was killed: the guardian of that one
/// lets it go on in a moment, and takes the monitor for it, which serves one at a time.
///
/// # Errors
/// Of the monitor.
pub(super) fn attach(monitor: &Path, limits: Limits) -> Result<Qemu, Error> {
    let until = Instant::now() + LEFT_PAUSED;
    loop {
        let mut qemu = Qemu::attach(monitor, limits)?;
        if qemu.status()?.word != "paused" || Instant::now() >= until {
            return Ok(qemu);
        }
        drop(qemu);
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What a guest says that does not run yet is held from now on.
///
/// # Errors
/// [`ProtectError::Unheld`]: it must not run.
pub fn hold(config: &Config) -> Result<(), ProtectError> {
    let held = output(config).map(|mut output| output.attach_before());
    let Some(Err(why)) = held else {
        return Ok(());
    };
    Err(ProtectError::Unheld(format!(
        "{why}; the record has the backup in, and {} would speak unheard: see to netbuf, and start this again",
        config.guest
    )))
}

impl Protector {
    /// The record has a backup in from before.
    pub(super) fn begin(&mut self, is_afresh: bool) {
        if !self.may_be_in {
            return;
        }
        let found = if is_afresh {
            Found::Afresh
        } else {
            Found::WentOn
        };
        self.sequence.found(self.now(), found);
    }

    /// Whether the backup may go on from what it has, or is about to be told that it may.
    pub(super) fn must_hold(&self) -> bool {
        !self.asks.is_alone() && (self.may_be_in || self.standing.sent.is_some())
    }

    /// What it says was open, and the backup may be in: whatever it has lacks what left.
    pub(super) fn was_open(&mut self) {
        if self.may_be_in && !self.standing.is_member {
            tracing::warn!(
                "the guest's output was open, and the record has the backup in; it is held from now on"
            );
            self.sequence.found(self.now(), Found::Afresh);
        }
    }
}
