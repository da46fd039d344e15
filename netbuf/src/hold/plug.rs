//! An interface whose frames a plug of the kernel holds.
//!
//! The name of its guest stands at the IFB (`IFLA_IFALIAS`), so that a daemon that is started again finds
//! whose it is without a file. It is written before the redirect is placed, and taken away when the
//! interface is detached while held: what is left then is no guest's, and passes nothing.

use super::HoldError;
use super::port::Held;
use crate::gate::Order;
use crate::install::{
    self, Begin, InstallError, Root, Standing, carry_out, install_first, look, redirect_again,
    revive, uninstall,
};
use crate::netlink::{Netlink, request};

#[derive(Debug)]
pub(super) struct PlugPort {
    pub(super) vif: u32,
    ifb: u32,
    /// Drops that the counter of the kernel had when the interface was attached or adopted.
    drops_before: u32,
}

impl PlugPort {
    /// Everything in place; beginning open or held.
    pub(super) fn attach(
        netlink: &mut Netlink,
        guest: &str,
        vif: u32,
        limit_bytes: u32,
        begin: Begin,
    ) -> Result<Self, HoldError> {
        let root = Root::Plug { limit_bytes };
        let found = look(netlink, vif)?;
        let ifb = match found.standing() {
            Standing::Shut => {
                if let Some(ifb) = &found.ifb {
                    netlink.ask("name the guest", request::set_alias(ifb.index, guest))?;
                }
                revive(netlink, vif, root)?
            }
            Standing::Whole { ifb, .. } => {
                netlink.ask("name the guest", request::set_alias(ifb, guest))?;
                install::install(netlink, vif, root, begin)?
            }
            Standing::Absent | Standing::Unfinished => {
                let placed = Self::place(netlink, guest, vif, root, begin);
                if placed.is_err() {
                    // Nothing is redirected yet, or nothing is lost by it: the guest stays as it was.
                    uninstall(netlink, vif)?;
                }
                placed?
            }
        };
        let mut port = Self {
            vif,
            ifb,
            drops_before: 0,
        };
        port.drops_before = port.counters(netlink).map_or(0, |of| of.dropped_frames);
        Ok(port)
    }

    fn place(
        netlink: &mut Netlink,
        guest: &str,
        vif: u32,
        root: Root,
        begin: Begin,
    ) -> Result<u32, InstallError> {
        let ifb = install_first(netlink, vif, root, begin, 1)?;
        netlink.ask("name the guest", request::set_alias(ifb, guest))?;
        install::install(netlink, vif, root, begin)
    }

    pub(super) fn obey(&self, netlink: &mut Netlink, order: Order) -> Result<(), String> {
        carry_out(netlink, self.ifb, order).map_err(|error| error.to_string())
    }

    fn counters(&self, netlink: &mut Netlink) -> Option<crate::netlink::Counters> {
        let root = netlink.our_root(self.ifb).ok()?;
        root.map(|root| root.counters)
    }

    pub(super) fn held(&self, netlink: &mut Netlink) -> Option<Held> {
        let counters = self.counters(netlink)?;
        Some(Held {
            frames: counters.backlog_frames.into(),
            bytes: counters.backlog_bytes.into(),
            oldest_ms: None,
            dropped_frames: counters
                .dropped_frames
                .wrapping_sub(self.drops_before)
                .into(),
        })
    }

    pub(super) fn leave(&self, netlink: &mut Netlink, opens: bool) -> Result<(), HoldError> {
        if opens {
            return Ok(uninstall(netlink, self.vif)?);
        }
        Ok(netlink.ask("forget the guest", request::set_alias(self.ifb, ""))?)
    }

    /// Puts back a redirect that somebody took away, in front of a plug that is whole. True if that was all.
    pub(super) fn mend(&self, netlink: &mut Netlink) -> Result<bool, HoldError> {
        let found = look(netlink, self.vif)?;
        let is_ours = found
            .ifb
            .as_ref()
            .is_some_and(|ifb| ifb.index == self.ifb && ifb.up);
        let is_loose = matches!(found.standing(), Standing::Absent | Standing::Unfinished);
        if !is_ours || !is_loose || found.root.is_none() || found.foreign.is_some() {
            return Ok(false);
        }
        redirect_again(netlink, self.vif)?;
        Ok(true)
    }

    /// Nothing of it passes from now on. The device itself is taken down where nothing else helps.
    pub(super) fn close(&self, netlink: &mut Netlink) -> Result<&'static str, HoldError> {
        // Already gone, perhaps; then the redirect drops what comes.
        let _ = carry_out(netlink, self.ifb, Order::Shut);
        if redirect_again(netlink, self.vif).is_ok() {
            return Ok("nothing passes any more");
        }
        netlink.ask("take the device down", request::set_up(self.vif, false))?;
        Ok("the device was taken down, since what it says would pass unheld")
    }

    pub(super) fn broken(&self, netlink: &mut Netlink) -> Result<Option<String>, HoldError> {
        let found = look(netlink, self.vif)?;
        Ok(match found.standing() {
            _ if !found.present => None,
            Standing::Whole { ifb, .. } if ifb == self.ifb => None,
            Standing::Whole { .. } => Some("its IFB is another one".into()),
            Standing::Shut => Some("its IFB is down, gone or without its plug".into()),
            Standing::Absent | Standing::Unfinished => Some("its redirect is gone".into()),
        })
    }
}
