//! A redirect that somebody took away by hand.

use super::{InstallError, look, make_ifb};
use crate::netlink::{Netlink, request};

/// Redirects the interface to its IFB again, in whatever condition that is; one that is not there any more is
/// made and stays down. Whether what comes then passes is the IFB's business.
///
/// # Errors
/// [`InstallError::Foreign`] where somebody else's ingress qdisc or filter has the place.
pub fn redirect_again(netlink: &mut Netlink, vif: u32) -> Result<(), InstallError> {
    let found = look(netlink, vif)?;
    if found.redirected || found.orphaned || !found.present {
        return Ok(());
    }
    found.refuse_foreign()?;
    let ifb = match &found.ifb {
        Some(ifb) => ifb.index,
        None => make_ifb(netlink, vif)?,
    };
    if !found.ingress {
        netlink.ask("make the ingress qdisc", request::make_ingress(vif))?;
    }
    Ok(netlink.ask("redirect", request::redirect(vif, ifb))?)
}
