//! What a relay stands between, and how it gets there without a frame that slips by.
//!
//! ```text
//!   before   guest ═ vif ── bridge
//!   after    guest ═ vif ···relay··· nbr-N ═ nbp-N ── bridge         N: hexadecimal index of vif
//!             ingress of vif and of nbr-N: all to an IFB that drops everything (its root is a pfifo of 0)
//! ```
//! A packet socket sees a frame before the ingress qdisc does, the host's own stack and a bridge after it.
//! So the frames that the relay reads are nobody else's: not even one from 0.0.0.0 to everybody is heard
//! by a server on this host, and a relay that died leaves a wall, whatever somebody does with the bridge.
//!
//! The wall comes first and goes last. In between the guest's output is lost, as on a wire.

use super::HoldError;
use super::probe::remove_probe;
use super::record::Record;
use crate::install::{self, Begin, Root, Standing, ifb_name, install, look, revive, uninstall};
use crate::netlink::{Link, Netlink, request};
use crate::relay::isolate;

/// Begins the name of the relay's end of a veth pair.
pub const FREE_PREFIX: &str = "nbr-";
/// Begins the name of the end that is a port of the bridge.
pub const PORT_PREFIX: &str = "nbp-";
/// A queue that takes nothing.
const WALL: Root = Root::Pfifo { limit_frames: 0 };

fn free_name(vif: u32) -> String {
    format!("{FREE_PREFIX}{vif:x}")
}

fn port_name(vif: u32) -> String {
    format!("{PORT_PREFIX}{vif:x}")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wiring {
    pub(super) vif: u32,
    /// The relay's end.
    pub(super) free: String,
    pub(super) bridge: String,
}

/// A wall behind the packet sockets of a device, with a record at it.
fn wall(netlink: &mut Netlink, index: u32, record: &Record) -> Result<(), HoldError> {
    let standing = install::adopt(netlink, index, WALL)?;
    if standing == Standing::Absent {
        install::install_first(netlink, index, WALL, Begin::Held, 1)?;
    }
    if let Some(ifb) = netlink.link(&ifb_name(index))? {
        let note = request::set_alias(ifb.index, &record.write());
        netlink.ask("name the guest", note)?;
    }
    match standing {
        Standing::Shut => revive(netlink, index, WALL)?,
        _ => install(netlink, index, WALL, Begin::Held)?,
    };
    Ok(())
}

fn record_of(netlink: &mut Netlink, vif: u32) -> Result<Record, HoldError> {
    let ifb = netlink.link(&ifb_name(vif))?;
    Ok(ifb.map_or_else(Record::default, |ifb| Record::read(&ifb.alias)))
}

/// A veth pair of ours: both names, and each the other's end.
fn pair(netlink: &mut Netlink, vif: u32) -> Result<Option<(Link, Link)>, HoldError> {
    let free = netlink.link(&free_name(vif))?;
    let port = netlink.link(&port_name(vif))?;
    Ok(match (free, port) {
        (Some(free), Some(port)) if is_pair(&free, &port) => Some((free, port)),
        _ => None,
    })
}

fn is_pair(free: &Link, port: &Link) -> bool {
    let veth = free.kind == "veth" && port.kind == "veth";
    veth && free.peer == Some(port.index) && port.peer == Some(free.index)
}

impl Wiring {
    /// From wherever an earlier attempt stopped. `bridge`: the one named by the caller.
    pub(super) fn place(
        netlink: &mut Netlink,
        guest: &str,
        vif: &Link,
        bridge: Option<&str>,
    ) -> Result<Self, HoldError> {
        let before = record_of(netlink, vif.index)?;
        let bridge = Self::bridge_of(netlink, vif, bridge, &before)?;
        let io = |what| {
            let interface = vif.name.clone();
            move |source| HoldError::Io {
                interface,
                what,
                source,
            }
        };
        let was = match before.wired {
            Some((_, was)) => was,
            None => isolate::settings(&vif.name).map_err(io("its settings"))?,
        };
        let record = Record {
            guest: Some(guest.to_owned()),
            wired: Some((bridge.name.clone(), was)),
        };
        wall(netlink, vif.index, &record)?;
        let (free, port) = Self::pair_of(netlink, vif)?;
        wall(netlink, free.index, &Record::default())?;
        isolate::isolate(&free.name).map_err(io("isolate the relay's end"))?;
        netlink.ask("port", request::set_master(port.index, Some(bridge.index)))?;
        if vif.master.is_some() {
            netlink.ask("leave the bridge", request::set_master(vif.index, None))?;
        }
        for leak in isolate::isolate(&vif.name).map_err(io("isolate it"))? {
            tracing::warn!("{leak}: the host speaks there, though it hears nothing");
        }
        for end in [&free, &port] {
            netlink.ask("raise the veth pair", request::set_up(end.index, true))?;
        }
        Ok(Self {
            vif: vif.index,
            free: free.name,
            bridge: bridge.name,
        })
    }

    fn bridge_of(
        netlink: &mut Netlink,
        vif: &Link,
        named: Option<&str>,
        before: &Record,
    ) -> Result<Link, HoldError> {
        let placed = pair(netlink, vif.index)?.and_then(|(_, port)| port.master);
        let bridge = match (named, vif.master.or(placed)) {
            (Some(name), _) => netlink.link(name)?,
            (None, Some(master)) => netlink.link_of(master)?,
            (None, None) => match &before.wired {
                Some((bridge, _)) => netlink.link(bridge)?,
                None => return Err(HoldError::NoBridge(vif.name.clone())),
            },
        };
        match bridge {
            Some(bridge) if bridge.kind == "bridge" => Ok(bridge),
            Some(other) => Err(HoldError::NotABridge(other.name)),
            None => Err(HoldError::NoDevice(
                named.unwrap_or("of the bridge it was a port of").to_owned(),
            )),
        }
    }

    fn pair_of(netlink: &mut Netlink, vif: &Link) -> Result<(Link, Link), HoldError> {
        if let Some(pair) = pair(netlink, vif.index)? {
            return Ok(pair);
        }
        let (free, port) = (free_name(vif.index), port_name(vif.index));
        let make = request::make_veth(&free, &port, vif.mtu_bytes.max(68));
        netlink.ask("make the veth pair", make)?;
        pair(netlink, vif.index)?.ok_or(HoldError::NoDevice(free))
    }

    /// Nobody's from now on; nothing passes.
    pub(super) fn disown(&self, netlink: &mut Netlink) -> Result<(), HoldError> {
        let mut record = record_of(netlink, self.vif)?;
        record.guest = None;
        wall(netlink, self.vif, &record)
    }

    /// The walls stand again.
    pub(super) fn mend(&self, netlink: &mut Netlink) -> Result<(), HoldError> {
        let record = record_of(netlink, self.vif)?;
        if netlink.link_of(self.vif)?.is_some() {
            wall(netlink, self.vif, &record)?;
        }
        if let Some(free) = netlink.link(&self.free)? {
            wall(netlink, free.index, &Record::default())?;
        }
        Ok(())
    }

    /// The wall stands, and the pair is a port of its bridge; why not, otherwise.
    pub(super) fn broken(&self, netlink: &mut Netlink) -> Result<Option<String>, HoldError> {
        let found = look(netlink, self.vif)?;
        if found.present && !matches!(found.standing(), Standing::Whole { .. }) {
            return Ok(Some("what keeps the host from its frames is gone".into()));
        }
        Ok(match pair(netlink, self.vif)? {
            None => Some("its veth pair to the bridge is gone".into()),
            Some((_, port)) if port.master.is_none() => {
                Some(format!("{} is no port of its bridge any more", port.name))
            }
            Some(_) => None,
        })
    }
}

/// Takes everything away; the device is a port of its bridge again and speaks for itself.
pub(super) fn unplace(netlink: &mut Netlink, vif: u32) -> Result<(), HoldError> {
    let record = record_of(netlink, vif)?;
    if let (Some(link), Some((bridge, was))) = (netlink.link_of(vif)?, record.wired) {
        let bridge = netlink.link(&bridge)?.filter(|link| link.kind == "bridge");
        match bridge {
            Some(bridge) if link.master.is_none() => {
                let back = request::set_master(vif, Some(bridge.index));
                netlink.ask("return to the bridge", back)?;
            }
            _ => {}
        }
        if let Err(error) = isolate::restore(&link.name, &was) {
            tracing::warn!("{}: its settings are not as before: {error}", link.name);
        }
    }
    unpair(netlink, vif)?;
    Ok(uninstall(netlink, vif)?)
}

/// Takes the veth pair away, if there is one of ours.
fn unpair(netlink: &mut Netlink, vif: u32) -> Result<(), HoldError> {
    if let Some((free, _)) = pair(netlink, vif)? {
        uninstall(netlink, free.index)?;
        netlink.ask("delete the veth pair", request::delete_link(free.index))?;
    }
    Ok(())
}

fn number_of(name: &str, prefix: &str) -> Option<u32> {
    let vif = u32::from_str_radix(name.strip_prefix(prefix)?, 16).ok()?;
    (vif != 0 && format!("{prefix}{vif:x}") == name).then_some(vif)
}

/// Removes everything that plugs and relays have left in this network namespace, and nothing else; the
/// names of the devices that are gone. Every output that was held is open afterwards.
///
/// # Errors
/// What the kernel refuses. Everything else is removed all the same.
pub fn cleanup(netlink: &mut Netlink) -> Result<Vec<String>, HoldError> {
    let before = netlink.links()?;
    let mut first = None;
    remove_probe(netlink)?;
    for link in &before {
        let ours = install::vif_of(&link.name).filter(|_| link.kind == "ifb");
        let end = number_of(&link.name, FREE_PREFIX).filter(|_| link.kind == "veth");
        if let Some(vif) = ours.or(end)
            && let Err(error) = unplace(netlink, vif)
        {
            tracing::error!("{}: {error}", link.name);
            first.get_or_insert(error);
        }
    }
    if let Some(error) = first {
        return Err(error);
    }
    let after = netlink.links()?;
    let gone = |link: &&Link| after.iter().all(|left| left.index != link.index);
    Ok(before
        .iter()
        .filter(gone)
        .map(|link| link.name.clone())
        .collect())
}
