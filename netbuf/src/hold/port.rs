//! One interface of a guest and what holds its frames: a plug of the kernel or a relay.

use super::HoldError;
use super::plug::PlugPort;
use super::relayed::RelayPort;
use crate::gate::{Epoch, Order};
use crate::netlink::Netlink;

/// What an interface holds, as far as its mechanism knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Held or released and not yet on its way.
    pub frames: u64,
    /// As the mechanism counts them against its limit.
    pub bytes: u64,
    /// Age of the oldest; a plug does not know.
    pub oldest_ms: Option<u64>,
    /// At the limit, since the interface was attached.
    pub dropped_frames: u64,
}

#[derive(Debug)]
pub(super) enum Holder {
    Plug(PlugPort),
    Relay(RelayPort),
}

#[derive(Debug)]
pub(super) struct Port {
    /// Its name when it was looked at last.
    pub(super) name: String,
    pub(super) holder: Holder,
    /// The last epoch that was cut before it came: of that and all before it has said nothing.
    pub(super) joined_after: Option<Epoch>,
    /// Why nothing passes.
    pub(super) failed: Option<String>,
    /// More than three quarters of the limit, and not below half since.
    pub(super) alarm: bool,
    /// Dropped frames that were told already.
    pub(super) told_drops: u64,
}

impl Port {
    pub(super) fn new(name: &str, holder: Holder, joined_after: Option<Epoch>) -> Self {
        Self {
            name: name.to_owned(),
            holder,
            joined_after,
            failed: None,
            alarm: false,
            told_drops: 0,
        }
    }

    /// Carries out an order of the gate.
    pub(super) fn obey(&mut self, netlink: &mut Netlink, order: Order) -> Result<(), String> {
        match &mut self.holder {
            Holder::Plug(plug) => plug.obey(netlink, order),
            Holder::Relay(relay) => relay.obey(order, self.joined_after),
        }
    }

    /// `None` where it cannot be read.
    pub(super) fn held(&mut self, netlink: &mut Netlink) -> Option<Held> {
        match &mut self.holder {
            Holder::Plug(plug) => plug.held(netlink),
            Holder::Relay(relay) => relay.held(),
        }
    }

    /// What is left of it after the gate's `Shut`. `opens`: the guest may speak without us from now on;
    /// otherwise nothing of it passes, until it is attached again or cleaned up.
    pub(super) fn leave(self, netlink: &mut Netlink, opens: bool) -> Result<(), HoldError> {
        match self.holder {
            Holder::Plug(plug) => plug.leave(netlink, opens),
            Holder::Relay(relay) => relay.leave(netlink, opens),
        }
    }

    /// What is left of it when its device vanished.
    pub(super) fn bury(self, netlink: &mut Netlink) -> Result<(), HoldError> {
        match self.holder {
            Holder::Plug(plug) => plug.leave(netlink, true),
            Holder::Relay(relay) => relay.leave(netlink, true),
        }
    }

    /// Why it can hold no longer, if so: a part of it is gone.
    pub(super) fn broken(&mut self, netlink: &mut Netlink) -> Result<Option<String>, HoldError> {
        match &mut self.holder {
            Holder::Plug(plug) => plug.broken(netlink),
            Holder::Relay(relay) => relay.broken(netlink),
        }
    }

    /// Puts back what somebody took away, if nothing can have passed unheld because of it: a plug that
    /// `is_open`, or the wall behind a relay. True if it is whole again.
    pub(super) fn mend(&self, netlink: &mut Netlink, is_open: bool) -> Result<bool, HoldError> {
        match &self.holder {
            Holder::Plug(plug) => Ok(is_open && plug.mend(netlink)?),
            Holder::Relay(relay) => relay.mend(netlink),
        }
    }

    /// Nothing of it passes from now on; how, in words.
    pub(super) fn close(&self, netlink: &mut Netlink) -> Result<&'static str, HoldError> {
        match &self.holder {
            Holder::Plug(plug) => plug.close(netlink),
            // What a relay holds, and what comes, goes no way but through it.
            Holder::Relay(_) => Ok("nothing passes any more"),
        }
    }

    /// The device that holds its frames.
    pub(super) fn by(&self) -> String {
        match &self.holder {
            Holder::Plug(plug) => crate::install::ifb_name(plug.vif),
            Holder::Relay(relay) => relay.wiring.free.clone(),
        }
    }

    /// The bridge its frames go to, where that is ours to know.
    pub(super) fn bridge(&self) -> Option<String> {
        match &self.holder {
            Holder::Plug(_) => None,
            Holder::Relay(relay) => Some(relay.wiring.bridge.clone()),
        }
    }

    /// Takes an alarm up at three quarters of the limit and down at half; true if it changed.
    pub(super) fn weigh(&mut self, held: Held, limit_bytes: u64) -> bool {
        let was = self.alarm;
        if held.bytes >= limit_bytes / 4 * 3 || held.dropped_frames > self.told_drops {
            self.alarm = true;
        } else if held.bytes < limit_bytes / 2 {
            self.alarm = false;
        }
        was != self.alarm
    }
}
