//! The requests, each one message. Layouts: `linux/if_link.h`, `linux/rtnetlink.h`,
//! `linux/pkt_sched.h`, `linux/pkt_cls.h`, `linux/tc_act/tc_mirred.h`.

#![allow(
    clippy::host_endian_bytes,
    reason = "netlink speaks to the kernel of this host, in its byte order"
)]

use super::wire::Message;

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_NEWQDISC: u16 = 36;
pub const RTM_DELQDISC: u16 = 37;
pub const RTM_GETQDISC: u16 = 38;
pub const RTM_NEWTFILTER: u16 = 44;
pub const RTM_GETTFILTER: u16 = 46;

pub const RTM_NEWNEIGH: u16 = 28;
const AF_BRIDGE: u8 = 7;
const NUD_REACHABLE: u16 = 2;
const NTF_MASTER: u8 = 4;
const NDA_LLADDR: u16 = 2;
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const ECHO: u16 = 0x8;
const DUMP: u16 = 0x300;
/// Make it, and fail if it is there.
const MAKE: u16 = REQUEST | ACK | 0x400 | 0x200;

pub const IFLA_IFNAME: u16 = 3;
pub const IFLA_ADDRESS: u16 = 1;
pub const IFLA_MTU: u16 = 4;
pub const IFLA_LINK: u16 = 5;
pub const IFLA_MASTER: u16 = 10;
pub const IFLA_IFALIAS: u16 = 20;
/// What the kernel takes as an alias (`IFALIASZ`, with its zero byte).
pub const ALIAS_BYTES_MAX: usize = 255;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
pub const IFLA_LINKINFO: u16 = 18;
pub const IFLA_INFO_KIND: u16 = 1;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFF_UP: u32 = 1;

pub const TCA_KIND: u16 = 1;
pub const TCA_OPTIONS: u16 = 2;
pub const TCA_STATS2: u16 = 7;
pub const TC_H_ROOT: u32 = 0xffff_ffff;
pub const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Handle of an ingress qdisc, and parent of its filters.
pub const INGRESS: u32 = 0xffff_0000;
/// Handle of the root we put on our IFB.
pub const OUR_ROOT: u32 = 0x00b1_0000;

pub const TCA_U32_SEL: u16 = 5;
pub const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
pub const TCA_ACT_KIND: u16 = 1;
pub const TCA_ACT_OPTIONS: u16 = 2;
pub const TCA_MIRRED_PARMS: u16 = 2;
pub const TC_ACT_STOLEN: i32 = 4;
pub const TCA_EGRESS_REDIR: i32 = 1;
pub const ETH_P_ALL: u16 = 0x0003;
/// Priority of our filter: the first that is asked.
const PRIORITY: u32 = 1;

/// What a plug shall do (`tc_plug_qopt.action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum PlugAction {
    Buffer = 0,
    ReleaseOne = 1,
    ReleaseIndefinite = 2,
    Limit = 3,
}

/// ifinfomsg: family u8, pad u8, type u16, index i32, flags u32, change u32.
fn link(kind: u16, flags: u16, index: u32, on: u32, change: u32) -> Message {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&on.to_ne_bytes());
    body[12..].copy_from_slice(&change.to_ne_bytes());
    Message::new(kind, flags).raw(&body)
}

/// tcmsg: family u8, pad 3, index i32, handle u32, parent u32, info u32.
fn traffic(kind: u16, flags: u16, index: u32, handle: u32, parent: u32, info: u32) -> Message {
    let mut body = [0; 20];
    for (at, field) in [(4, index), (8, handle), (12, parent), (16, info)] {
        body[at..at + 4].copy_from_slice(&field.to_ne_bytes());
    }
    Message::new(kind, flags).raw(&body)
}

/// An IFB with one queue: more would not keep the order.
#[must_use]
pub fn make_ifb(name: &str) -> Message {
    let mut message = link(RTM_NEWLINK, MAKE, 0, 0, 0)
        .attribute_text(IFLA_IFNAME, name)
        .attribute_u32(IFLA_NUM_TX_QUEUES, 1)
        .attribute_u32(IFLA_NUM_RX_QUEUES, 1);
    let nest = message.begin(IFLA_LINKINFO);
    message = message.attribute(IFLA_INFO_KIND, b"ifb");
    message.end(&nest);
    message
}

/// Two ends of a wire; both are down at first.
#[must_use]
pub fn make_veth(name: &str, peer: &str, mtu_bytes: u32) -> Message {
    let mut message = link(RTM_NEWLINK, MAKE, 0, 0, 0)
        .attribute_text(IFLA_IFNAME, name)
        .attribute_u32(IFLA_MTU, mtu_bytes);
    let info = message.begin(IFLA_LINKINFO);
    message = message.attribute(IFLA_INFO_KIND, b"veth");
    let data = message.begin(IFLA_INFO_DATA);
    let other = message.begin(VETH_INFO_PEER);
    message = message
        .raw(&[0; 16])
        .attribute_text(IFLA_IFNAME, peer)
        .attribute_u32(IFLA_MTU, mtu_bytes);
    for nest in [other, data, info] {
        message.end(&nest);
    }
    message
}

/// Makes it a port of a bridge; `None`: of none.
#[must_use]
pub fn set_master(index: u32, master: Option<u32>) -> Message {
    link(RTM_NEWLINK, REQUEST | ACK, index, 0, 0).attribute_u32(IFLA_MASTER, master.unwrap_or(0))
}

/// Writes a note at a link; an empty one takes it away.
#[must_use]
pub fn set_alias(index: u32, alias: &str) -> Message {
    assert!(
        alias.len() <= ALIAS_BYTES_MAX,
        "longer than the kernel takes"
    );
    link(RTM_NEWLINK, REQUEST | ACK, index, 0, 0).attribute(IFLA_IFALIAS, alias.as_bytes())
}

/// The root of an IFB of ours, with what it holds.
#[must_use]
pub fn delete_root(ifb: u32) -> Message {
    traffic(RTM_DELQDISC, REQUEST | ACK, ifb, OUR_ROOT, TC_H_ROOT, 0)
}

/// At its bridge, a station is behind this port from now on, whatever was believed; it ages as one that was
/// heard. ndmsg: family u8, pad 3, index i32, state u16, flags u8, type u8.
#[must_use]
pub fn station_is_behind(port: u32, mac: [u8; 6]) -> Message {
    let mut body = [0; 12];
    body[0] = AF_BRIDGE;
    body[4..8].copy_from_slice(&port.to_ne_bytes());
    body[8..10].copy_from_slice(&NUD_REACHABLE.to_ne_bytes());
    body[10] = NTF_MASTER;
    let flags = REQUEST | ACK | CREATE | REPLACE;
    Message::new(RTM_NEWNEIGH, flags)
        .raw(&body)
        .attribute(NDA_LLADDR, &mac)
}

#[must_use]
pub fn delete_link(index: u32) -> Message {
    link(RTM_DELLINK, REQUEST | ACK, index, 0, 0)
}

#[must_use]
pub fn set_up(index: u32, up: bool) -> Message {
    let on = if up { IFF_UP } else { 0 };
    link(RTM_NEWLINK, REQUEST | ACK, index, on, IFF_UP)
}

#[must_use]
pub fn dump_links() -> Message {
    link(RTM_GETLINK, REQUEST | DUMP, 0, 0, 0)
}

#[must_use]
pub fn link_by_index(index: u32) -> Message {
    link(RTM_GETLINK, REQUEST | ACK, index, 0, 0)
}

#[must_use]
pub fn link_by_name(name: &str) -> Message {
    link(RTM_GETLINK, REQUEST | ACK, 0, 0, 0).attribute_text(IFLA_IFNAME, name)
}

#[must_use]
pub fn make_ingress(index: u32) -> Message {
    traffic(RTM_NEWQDISC, MAKE, index, INGRESS, TC_H_INGRESS, 0).attribute_text(TCA_KIND, "ingress")
}

#[must_use]
pub fn delete_ingress(index: u32) -> Message {
    let ack = REQUEST | ACK;
    traffic(RTM_DELQDISC, ack, index, INGRESS, TC_H_INGRESS, 0)
}

/// tc_plug_qopt. As the option of a new plug only its limit is read; the plug holds from birth.
fn plug_option(action: PlugAction, limit_bytes: u32) -> [u8; 8] {
    let mut option = [0; 8];
    option[..4].copy_from_slice(&(action as u32).to_ne_bytes());
    option[4..].copy_from_slice(&limit_bytes.to_ne_bytes());
    option
}

#[must_use]
pub fn make_plug(ifb: u32, limit_bytes: u32) -> Message {
    traffic(RTM_NEWQDISC, MAKE, ifb, OUR_ROOT, TC_H_ROOT, 0)
        .attribute_text(TCA_KIND, "plug")
        .attribute(TCA_OPTIONS, &plug_option(PlugAction::Limit, limit_bytes))
}

/// `limit_bytes` is read for `Limit` only.
#[must_use]
pub fn change_plug(ifb: u32, action: PlugAction, limit_bytes: u32) -> Message {
    traffic(RTM_NEWQDISC, REQUEST | ACK, ifb, OUR_ROOT, TC_H_ROOT, 0)
        .attribute_text(TCA_KIND, "plug")
        .attribute(TCA_OPTIONS, &plug_option(action, limit_bytes))
}

/// A queue that holds nothing back (`tc_fifo_qopt`), for kernels without plug.
#[must_use]
pub fn make_pfifo(ifb: u32, limit_frames: u32) -> Message {
    traffic(RTM_NEWQDISC, MAKE, ifb, OUR_ROOT, TC_H_ROOT, 0)
        .attribute_text(TCA_KIND, "pfifo")
        .attribute_u32(TCA_OPTIONS, limit_frames)
}

#[must_use]
pub fn dump_qdiscs() -> Message {
    traffic(RTM_GETQDISC, REQUEST | DUMP, 0, 0, 0, 0)
}

/// Without ECHO the kernel looks and tells nobody.
#[must_use]
pub fn our_root(ifb: u32) -> Message {
    let flags = REQUEST | ACK | ECHO;
    traffic(RTM_GETQDISC, flags, ifb, OUR_ROOT, TC_H_ROOT, 0)
}

#[must_use]
pub fn dump_ingress_filters(index: u32) -> Message {
    traffic(RTM_GETTFILTER, REQUEST | DUMP, index, 0, INGRESS, 0)
}

/// Everything that comes in goes to the IFB instead.
#[must_use]
pub fn redirect(index: u32, ifb: u32) -> Message {
    redirect_of(index, ifb, ETH_P_ALL, 0)
}

/// With `keys` = 1 the selector is what `tc … u32 match u32 0 0` sends: it reads 4 bytes after the
/// Ethernet header and so does not match a frame that has fewer. Without a key nothing is read.
pub(crate) fn redirect_of(index: u32, ifb: u32, protocol: u16, keys: u8) -> Message {
    let info = PRIORITY << 16 | u32::from(protocol.to_be());
    let mut message =
        traffic(RTM_NEWTFILTER, MAKE, index, 0, INGRESS, info).attribute_text(TCA_KIND, "u32");
    let options = message.begin(TCA_OPTIONS);
    let mut selector = vec![0; 16 + 16 * usize::from(keys)];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = keys;
    message = message.attribute(TCA_U32_SEL, &selector);
    let actions = message.begin(TCA_U32_ACT);
    let first = message.begin(1);
    message = message.attribute_text(TCA_ACT_KIND, "mirred");
    let of_action = message.begin(TCA_ACT_OPTIONS);
    message = message.attribute(TCA_MIRRED_PARMS, &mirred(ifb));
    for nest in [of_action, first, actions, options] {
        message.end(&nest);
    }
    message
}

/// tc_mirred: index u32, capab u32, action i32, refcnt i32, bindcnt i32, eaction i32, ifindex u32.
fn mirred(ifb: u32) -> [u8; 28] {
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&TC_ACT_STOLEN.to_ne_bytes());
    parameters[20..24].copy_from_slice(&TCA_EGRESS_REDIR.to_ne_bytes());
    parameters[24..].copy_from_slice(&ifb.to_ne_bytes());
    parameters
}
