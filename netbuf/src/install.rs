//! Puts a guest's output through an IFB of our own, takes it away again, and recognises what is there.
//!
//! ```text
//!   vif ──ingress qdisc──► u32, protocol all, no key ──mirred redirect──► netbuf-<ifindex> (IFB) ── root: plug
//!    ▲                                                                                                │
//!    └──────────── goes on as if it had just come in, past the ingress qdisc ◄─────── released ───────┘
//! ```
//!
//! The redirect comes last, so no frame meets half of it, and a killed installation holds nobody up. It
//! goes away only when the IFB is down, so nothing held is let out: it is dropped. In between, with the
//! IFB down or deleted, the kernel drops what is redirected: every way in which this breaks is closed.
//!
//! Ours is an IFB named [`PREFIX`] and the hexadecimal index of its interface; of its root, the one with
//! [`request::OUR_ROOT`]; at the interface, an ingress qdisc with nothing in it but our redirect.

mod again;
mod revive;

pub use again::redirect_again;
pub use revive::revive;

use crate::gate::Order;
use crate::netlink::request::{self, PlugAction};
use crate::netlink::{Counters, Link, Netlink, NetlinkError, Qdisc};

/// Begins the name of every IFB of ours.
pub const PREFIX: &str = "netbuf-";
/// Of a device's name, without its zero byte.
pub const NAME_BYTES_MAX: usize = 15;

/// What holds frames on the IFB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    Plug {
        limit_bytes: u32,
    },
    /// Holds nothing: for trying the path where the kernel has no plug.
    Pfifo {
        limit_frames: u32,
    },
}

impl Root {
    fn kind(self) -> &'static str {
        match self {
            Self::Plug { .. } => "plug",
            Self::Pfifo { .. } => "pfifo",
        }
    }
}

/// What the output does when the redirect is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    Open,
    Held,
}

/// The steps of an installation, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    MakeIfb,
    PlaceRoot,
    OpenRoot,
    RaiseIfb,
    MakeIngress,
    Redirect,
}

pub const STEPS: [Step; 6] = [
    Step::MakeIfb,
    Step::PlaceRoot,
    Step::OpenRoot,
    Step::RaiseIfb,
    Step::MakeIngress,
    Step::Redirect,
];

/// The steps of taking it away, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    LowerIfb,
    DropIngress,
    DeleteIfb,
}

pub const REMOVALS: [Removal; 3] = [Removal::LowerIfb, Removal::DropIngress, Removal::DeleteIfb];

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("interface {0} does not exist; attach one that does")]
    NoInterface(u32),
    #[error("interface {vif}: {what} is not ours; remove it, or leave this interface alone")]
    Foreign { vif: u32, what: String },
    #[error("interface {0}: redirected to an IFB that passes nothing; uninstall it, then install")]
    Shut(u32),
    #[error("interface {vif}: its root is {have}, not {want}; uninstall it, then install")]
    OtherRoot {
        vif: u32,
        have: String,
        want: &'static str,
    },
}

/// The name of the IFB of an interface: at most 7 + 8 bytes.
#[must_use]
pub fn ifb_name(vif: u32) -> String {
    let name = format!("{PREFIX}{vif:x}");
    assert!(
        name.len() <= NAME_BYTES_MAX,
        "an index has 8 digits at most"
    );
    name
}

/// The interface an IFB of ours is for; `None` for every other name.
#[must_use]
pub fn vif_of(name: &str) -> Option<u32> {
    let vif = u32::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
    (vif != 0 && ifb_name(vif) == name).then_some(vif)
}

/// What the kernel has for an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub vif: u32,
    /// The interface itself is there.
    pub present: bool,
    pub ifb: Option<Link>,
    /// The root of ours, with its counters.
    pub root: Option<Qdisc>,
    /// An ingress qdisc is there, and nothing in it is not ours.
    pub ingress: bool,
    pub redirected: bool,
    /// Our redirect lost its IFB to somebody; what comes is dropped.
    pub orphaned: bool,
    pub foreign: Option<String>,
}

/// What an adopting process has before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of ours.
    Absent,
    /// Nothing is redirected; installing goes on from here.
    Unfinished,
    /// Everything is in place and left as it is. Whether it holds cannot be read: order that it does.
    Whole { ifb: u32, counters: Counters },
    /// Redirected to an IFB that is down, lacks its root, or is gone: nothing passes.
    Shut,
}

impl Found {
    #[must_use]
    pub fn standing(&self) -> Standing {
        match (&self.ifb, &self.root) {
            (Some(ifb), Some(root)) if self.redirected && ifb.up => Standing::Whole {
                ifb: ifb.index,
                counters: root.counters,
            },
            _ if self.redirected || self.orphaned => Standing::Shut,
            (None, _) => Standing::Absent,
            (Some(_), _) => Standing::Unfinished,
        }
    }

    fn refuse_foreign(&self) -> Result<(), InstallError> {
        let vif = self.vif;
        match self.foreign.clone() {
            Some(what) => Err(InstallError::Foreign { vif, what }),
            None => Ok(()),
        }
    }
}

/// Reads what is there; changes nothing.
pub fn look(netlink: &mut Netlink, vif: u32) -> Result<Found, InstallError> {
    let name = ifb_name(vif);
    let mut found = Found {
        vif,
        present: netlink.link_of(vif)?.is_some(),
        ifb: netlink.link(&name)?,
        root: None,
        ingress: false,
        redirected: false,
        orphaned: false,
        foreign: None,
    };
    if let Some(ifb) = &found.ifb {
        if ifb.kind != "ifb" {
            found.foreign = Some(format!("{name} of kind {:?}", ifb.kind));
            found.ifb = None;
        } else {
            let roots = netlink.qdiscs(ifb.index)?;
            let ours = |q: &Qdisc| q.handle == request::OUR_ROOT && q.parent == request::TC_H_ROOT;
            found.root = roots.into_iter().find(ours);
        }
    }
    if found.present {
        look_at_ingress(netlink, &mut found)?;
    }
    Ok(found)
}

fn look_at_ingress(netlink: &mut Netlink, found: &mut Found) -> Result<(), InstallError> {
    let qdiscs = netlink.qdiscs(found.vif)?;
    let Some(ingress) = qdiscs.iter().find(|q| q.parent == request::TC_H_INGRESS) else {
        return Ok(());
    };
    let target = found.ifb.as_ref().map_or(0, |ifb| ifb.index);
    let mut others = 0;
    for filter in netlink.ingress_filters(found.vif)? {
        if filter.is_ours(target) {
            // A redirect whose device is gone points to 0.
            found.redirected |= target != 0;
            found.orphaned |= target == 0;
        } else if filter.is_ours(0) {
            found.orphaned = true;
        } else if filter.redirects_to.is_some() || filter.has_selector {
            others += 1;
        }
    }
    if ingress.kind != "ingress" {
        found.foreign = Some(format!("its {} qdisc", ingress.kind));
    } else if others > 0 {
        found.foreign = Some(format!("its ingress qdisc with {others} other filters"));
    } else if target == 0 && !found.orphaned {
        found.foreign = Some("its empty ingress qdisc".into());
    } else {
        found.ingress = true;
    }
    Ok(())
}

/// What is there is left as it is and told.
pub fn adopt(netlink: &mut Netlink, vif: u32, root: Root) -> Result<Standing, InstallError> {
    let found = look(netlink, vif)?;
    found.refuse_foreign()?;
    right_root(&found, root)?;
    Ok(found.standing())
}

fn right_root(found: &Found, root: Root) -> Result<(), InstallError> {
    match &found.root {
        Some(have) if have.kind != root.kind() => Err(InstallError::OtherRoot {
            vif: found.vif,
            have: have.kind.clone(),
            want: root.kind(),
        }),
        _ => Ok(()),
    }
}

/// Puts everything in place, from wherever an earlier attempt stopped; the index of the IFB. What is
/// whole already is not touched, in particular not opened.
pub fn install(
    netlink: &mut Netlink,
    vif: u32,
    root: Root,
    begin: Begin,
) -> Result<u32, InstallError> {
    install_first(netlink, vif, root, begin, STEPS.len())
}

/// The first `count` steps only.
pub(crate) fn install_first(
    netlink: &mut Netlink,
    vif: u32,
    root: Root,
    begin: Begin,
    count: usize,
) -> Result<u32, InstallError> {
    let found = look(netlink, vif)?;
    found.refuse_foreign()?;
    if !found.present {
        return Err(InstallError::NoInterface(vif));
    }
    right_root(&found, root)?;
    match found.standing() {
        Standing::Whole { ifb, .. } => return Ok(ifb),
        Standing::Shut => return Err(InstallError::Shut(vif)),
        Standing::Absent | Standing::Unfinished => {}
    }
    let mut ifb = found.ifb.as_ref().map_or(0, |ifb| ifb.index);
    for step in &STEPS[..count] {
        match step {
            Step::MakeIfb if ifb == 0 => ifb = make_ifb(netlink, vif)?,
            Step::PlaceRoot if found.root.is_none() => place_root(netlink, ifb, root)?,
            Step::OpenRoot if begin == Begin::Open => {
                if let Root::Plug { limit_bytes } = root {
                    carry_out(netlink, ifb, Order::Limit { bytes: limit_bytes })?;
                    carry_out(netlink, ifb, Order::OpenAll)?;
                }
            }
            Step::RaiseIfb => netlink.ask("raise the IFB", request::set_up(ifb, true))?,
            Step::MakeIngress if !found.ingress => {
                netlink.ask("make the ingress qdisc", request::make_ingress(vif))?;
            }
            Step::Redirect => netlink.ask("redirect", request::redirect(vif, ifb))?,
            Step::MakeIfb | Step::PlaceRoot | Step::OpenRoot | Step::MakeIngress => {}
        }
    }
    Ok(ifb)
}

fn place_root(netlink: &mut Netlink, ifb: u32, root: Root) -> Result<(), InstallError> {
    let message = match root {
        Root::Plug { limit_bytes } => request::make_plug(ifb, limit_bytes),
        Root::Pfifo { limit_frames } => request::make_pfifo(ifb, limit_frames),
    };
    Ok(netlink.ask("place the root of the IFB", message)?)
}

fn make_ifb(netlink: &mut Netlink, vif: u32) -> Result<u32, InstallError> {
    let name = ifb_name(vif);
    netlink.ask("make the IFB", request::make_ifb(&name))?;
    let made = netlink.link(&name)?;
    made.map(|ifb| ifb.index).ok_or(InstallError::Shut(vif))
}

/// One order of the gate, at the plug of an IFB.
pub fn carry_out(netlink: &mut Netlink, ifb: u32, order: Order) -> Result<(), NetlinkError> {
    let change = |action, bytes| request::change_plug(ifb, action, bytes);
    match order {
        Order::Buffer(_) => netlink.ask("BUFFER", change(PlugAction::Buffer, 0)),
        Order::Count => netlink.ask("BUFFER to count", change(PlugAction::Buffer, 0)),
        Order::Freeze => netlink.ask("BUFFER to freeze", change(PlugAction::Buffer, 0)),
        Order::ReleaseOne(_) => netlink.ask("RELEASE_ONE", change(PlugAction::ReleaseOne, 0)),
        Order::OpenAll => netlink.ask(
            "RELEASE_INDEFINITE",
            change(PlugAction::ReleaseIndefinite, 0),
        ),
        Order::Limit { bytes } => netlink.ask("LIMIT", change(PlugAction::Limit, bytes)),
        Order::Shut => netlink.ask("take the IFB down", request::set_up(ifb, false)),
    }
}

/// Takes everything of ours away from an interface. What is held is dropped, never let out; what the
/// guest says afterwards passes, as before the installation.
pub fn uninstall(netlink: &mut Netlink, vif: u32) -> Result<(), InstallError> {
    uninstall_first(netlink, vif, REMOVALS.len())
}

/// The first `count` steps only.
pub(crate) fn uninstall_first(
    netlink: &mut Netlink,
    vif: u32,
    count: usize,
) -> Result<(), InstallError> {
    let found = look(netlink, vif)?;
    if found.redirected || found.orphaned {
        // Taking the ingress qdisc away would take what is not ours with it.
        found.refuse_foreign()?;
    }
    let ifb = found.ifb.as_ref().map(|ifb| ifb.index);
    for step in &REMOVALS[..count] {
        match (step, ifb) {
            (Removal::LowerIfb, Some(ifb)) => carry_out(netlink, ifb, Order::Shut)?,
            (Removal::DropIngress, _) if found.ingress => {
                netlink.ask("remove the ingress qdisc", request::delete_ingress(vif))?;
            }
            (Removal::DeleteIfb, Some(ifb)) => {
                netlink.ask("delete the IFB", request::delete_link(ifb))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes everything of ours in this network namespace and nothing else; the names of the IFBs.
pub fn cleanup(netlink: &mut Netlink) -> Result<Vec<String>, InstallError> {
    let mut removed = Vec::new();
    for link in netlink.links()? {
        let Some(vif) = vif_of(&link.name).filter(|_| link.kind == "ifb") else {
            continue;
        };
        uninstall(netlink, vif)?;
        removed.push(link.name);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
