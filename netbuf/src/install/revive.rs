//! From nothing passes to held, without a moment in between.

use super::{InstallError, Root, carry_out, look, place_root};
use crate::gate::Order;
use crate::netlink::{Netlink, request};

/// Puts a new root on an IFB that is down, and raises it: what was held before is dropped, and nothing is
/// let out, not even for a moment. For an interface that is redirected to an IFB that passes nothing.
pub fn revive(netlink: &mut Netlink, vif: u32, root: Root) -> Result<u32, InstallError> {
    let found = look(netlink, vif)?;
    found.refuse_foreign()?;
    let Some(ifb) = found.ifb.as_ref().filter(|_| found.redirected) else {
        return Err(InstallError::Shut(vif));
    };
    carry_out(netlink, ifb.index, Order::Shut)?;
    if found.root.is_some() {
        netlink.ask(
            "remove the root of the IFB",
            request::delete_root(ifb.index),
        )?;
    }
    place_root(netlink, ifb.index, root)?;
    netlink.ask("raise the IFB", request::set_up(ifb.index, true))?;
    Ok(ifb.index)
}
