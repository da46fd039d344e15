//! Whether this kernel has what a plug needs: asked with a device of our own that nothing is sent to.

use crate::install::NAME_BYTES_MAX;
use crate::netlink::{Netlink, NetlinkError, request};

/// No interface has an index that is written like this, so no IFB of a guest has this name.
pub const PROBE: &str = "netbuf-probe";
const _: () = assert!(PROBE.len() <= NAME_BYTES_MAX);

/// `Ok(Err(why))`: it has none.
///
/// # Errors
/// When it cannot be known: no permission, or no IFB can be made.
pub fn has_plug(netlink: &mut Netlink) -> Result<Result<(), String>, NetlinkError> {
    remove_probe(netlink)?;
    netlink.ask("make an IFB to try the plug", request::make_ifb(PROBE))?;
    let answer = match netlink.link(PROBE)? {
        Some(probe) => netlink.ask("try the plug", request::make_plug(probe.index, 1 << 20)),
        None => Ok(()),
    };
    remove_probe(netlink)?;
    match answer {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.is(libc::ENOENT) || error.is(libc::EOPNOTSUPP) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Also what a process left that was killed while it tried; true if there was one.
pub(super) fn remove_probe(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    match netlink.link(PROBE)?.filter(|link| link.kind == "ifb") {
        Some(link) => {
            netlink.ask("remove the tried IFB", request::delete_link(link.index))?;
            Ok(true)
        }
        None => Ok(false),
    }
}
