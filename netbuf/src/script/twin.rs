//! A fully virtualised guest has two interfaces for one card: `vif3.0`, which its PV driver uses, and
//! `vif3.0-emu`, which QEMU does. libxl names one of them and would let the other's output pass.
//!
//! Both are redirected to one IFB: frames go on from there as from the interface they came in at, and libxl's
//! messages count them together.

use crate::install::InstallError;
use crate::netlink::{Link, Netlink, NetlinkError, request};

const EMULATED: &str = "-emu";

/// The name the other one would have.
fn name_of(vif: &str) -> String {
    match vif.strip_suffix(EMULATED) {
        Some(paravirtual) => paravirtual.to_owned(),
        None => format!("{vif}{EMULATED}"),
    }
}

/// The other interface of the same card.
pub(super) fn of(netlink: &mut Netlink, vif: &str) -> Result<Option<Link>, NetlinkError> {
    let name = name_of(vif);
    if name.is_empty() || name.len() > crate::install::NAME_BYTES_MAX {
        return Ok(None);
    }
    netlink.link(&name)
}

enum Ingress {
    None,
    /// Nothing in it, or our redirect to this IFB, or to one that is gone.
    Ours {
        redirected: bool,
    },
    Foreign(String),
}

fn look(netlink: &mut Netlink, twin: u32, ifb: u32) -> Result<Ingress, NetlinkError> {
    let qdiscs = netlink.qdiscs(twin)?;
    let found = qdiscs.iter().find(|q| q.parent == request::TC_H_INGRESS);
    let Some(ingress) = found else {
        return Ok(Ingress::None);
    };
    if ingress.kind != "ingress" {
        return Ok(Ingress::Foreign(format!("its {} qdisc", ingress.kind)));
    }
    let (mut redirected, mut others) = (false, 0);
    for filter in netlink.ingress_filters(twin)? {
        if filter.is_ours(ifb) {
            redirected = true;
        } else if !filter.is_ours(0) && (filter.redirects_to.is_some() || filter.has_selector) {
            others += 1;
        }
    }
    Ok(match others {
        0 => Ingress::Ours { redirected },
        _ => Ingress::Foreign(format!("its ingress qdisc with {others} other filters")),
    })
}

/// Refuses one that is somebody else's to redirect. `ifb`: 0 where there is none yet.
pub(super) fn refuse_foreign(
    netlink: &mut Netlink,
    twin: u32,
    ifb: u32,
) -> Result<(), InstallError> {
    let vif = twin;
    match look(netlink, twin, ifb)? {
        Ingress::None | Ingress::Ours { redirected: true } => Ok(()),
        Ingress::Foreign(what) => Err(InstallError::Foreign { vif, what }),
        Ingress::Ours { redirected: false } => Err(InstallError::Foreign {
            vif,
            what: "its empty ingress qdisc".into(),
        }),
    }
}

/// Whether its output goes to this IFB; 0 stands for one that is gone.
pub(super) fn is_joined(netlink: &mut Netlink, twin: u32, ifb: u32) -> Result<bool, NetlinkError> {
    let there = look(netlink, twin, ifb)?;
    Ok(matches!(there, Ingress::Ours { redirected: true }))
}

/// From now on its output goes to the same IFB.
pub(super) fn join(netlink: &mut Netlink, twin: u32, ifb: u32) -> Result<(), InstallError> {
    match look(netlink, twin, ifb)? {
        Ingress::Ours { redirected: true } => return Ok(()),
        Ingress::Foreign(what) => return Err(InstallError::Foreign { vif: twin, what }),
        Ingress::Ours { redirected: false } => {}
        Ingress::None => netlink.ask("make the ingress qdisc", request::make_ingress(twin))?,
    }
    Ok(netlink.ask("redirect", request::redirect(twin, ifb))?)
}

/// Its output goes where it went before. Only when the IFB is down.
pub(super) fn leave(netlink: &mut Netlink, twin: u32, ifb: u32) -> Result<(), InstallError> {
    if netlink.link_of(twin)?.is_none() {
        return Ok(());
    }
    match look(netlink, twin, ifb)? {
        Ingress::None => Ok(()),
        Ingress::Ours { .. } => {
            let away = request::delete_ingress(twin);
            Ok(netlink.ask("remove the ingress qdisc", away)?)
        }
        Ingress::Foreign(what) => Err(InstallError::Foreign { vif: twin, what }),
    }
}

#[cfg(test)]
mod tests {
    use super::name_of;

    /// One card's other half is left out, or another card's is taken.
    #[test]
    fn each_is_the_others_twin() {
        for name in ["vif3.0", "web", "vif12.1"] {
            assert_eq!(name_of(&name_of(name)), name);
        }
        assert_eq!(name_of("vif3.0-emu"), "vif3.0");
    }
}
