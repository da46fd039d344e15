//! What is held for libxl, for a person.

use super::mark::{self, Marked};
use crate::netlink::{Netlink, NetlinkError};
use blkback_proto::units::human_bytes;

/// One line for each IFB that was made for libxl.
///
/// # Errors
/// When the kernel does not answer.
pub fn lines(netlink: &mut Netlink) -> Result<Vec<String>, NetlinkError> {
    let mut lines = Vec::new();
    for found in mark::all(netlink)? {
        lines.push(line(netlink, &found)?);
    }
    Ok(lines)
}

/// The interface as it is named now.
pub(super) fn vif_name(netlink: &mut Netlink, found: &Marked) -> Result<String, NetlinkError> {
    let vif = netlink.link_of(found.vif)?;
    Ok(vif.map_or_else(|| "a device that vanished".to_owned(), |vif| vif.name))
}

fn line(netlink: &mut Netlink, found: &Marked) -> Result<String, NetlinkError> {
    let vif = vif_name(netlink, found)?;
    let (ifb, path, asker) = (&found.ifb, found.mark.path, found.mark.asker);
    let twin = match found.mark.twin {
        0 => None,
        twin => netlink.link_of(twin)?.map(|twin| twin.name),
    };
    let twin = twin.map_or_else(String::new, |twin| format!(" and {twin}"));
    let holds = match netlink.our_root(ifb.index)? {
        _ if !ifb.up => "is down: what is said is dropped".to_owned(),
        None => "has no plug: what is said is dropped".to_owned(),
        Some(root) => {
            let counters = root.counters;
            format!(
                "has {} frames, {}; {} were dropped at the limit",
                counters.backlog_frames,
                human_bytes(counters.backlog_bytes.into()),
                counters.dropped_frames
            )
        }
    };
    let who = if asker.is_alive() {
        format!("{asker} orders it")
    } else {
        format!(
            "{asker}, which ordered it, is gone: xl remus begins anew, netbuf cleanup lets the guest speak"
        )
    };
    Ok(format!(
        "{vif}{twin}: libxl's, for {path}; {} {holds}; {who}",
        ifb.name
    ))
}
