//! What the kernel answers: links, qdiscs, filters, errors. Nothing in it is trusted for its length.

use super::request::{
    ETH_P_ALL, IFLA_ADDRESS, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINKINFO,
    IFLA_MASTER, IFLA_MTU, INGRESS, RTM_DELLINK, RTM_NEWLINK, RTM_NEWQDISC, RTM_NEWTFILTER,
    TC_ACT_STOLEN, TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_EGRESS_REDIR, TCA_KIND, TCA_MIRRED_PARMS,
    TCA_OPTIONS, TCA_STATS2, TCA_U32_ACT, TCA_U32_SEL,
};
use super::wire::{Attributes, Part, WireError, u16_at, u32_at, u64_at};

const LINK_BYTES: usize = 16;
const TRAFFIC_BYTES: usize = 20;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// A dump during which something changed.
pub const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    /// "ifb", "veth", …; empty for hardware.
    pub kind: String,
    /// The bridge or the like that it is a port of.
    pub master: Option<u32>,
    /// The other end of a veth pair.
    pub peer: Option<u32>,
    /// Largest payload of a frame; 0 where the kernel does not say.
    pub mtu_bytes: u32,
    /// Its own MAC address; zeros for what has none.
    pub mac: [u8; 6],
    /// What somebody wrote there (`ip link set … alias`).
    pub alias: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    pub index: u32,
    pub handle: u32,
    pub parent: u32,
    pub kind: String,
    pub counters: Counters,
}

/// Of a queueing discipline, as the kernel counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent_bytes: u64,
    pub sent_frames: u32,
    pub backlog_frames: u32,
    pub backlog_bytes: u32,
    pub dropped_frames: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub index: u32,
    pub parent: u32,
    pub protocol: u16,
    pub kind: String,
    /// Where all of what it matches goes, if that is what it does.
    pub redirects_to: Option<u32>,
    /// It has a selector; the kernel lists the hash tables of u32 as filters too, and they have none.
    pub has_selector: bool,
}

impl Filter {
    /// Whether it is the one that [`super::request::redirect`] makes.
    #[must_use]
    pub fn is_ours(&self, ifb: u32) -> bool {
        self.parent == INGRESS
            && self.protocol == ETH_P_ALL
            && self.kind == "u32"
            && self.redirects_to == Some(ifb)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    Failed {
        errno: i32,
        says: String,
    },
    Link(Link),
    /// A link was deleted; only among notifications.
    LinkGone(Link),
    Qdisc(Qdisc),
    Filter(Filter),
    Other,
}

/// Reads one message of an answer.
pub fn answer(part: &Part<'_>) -> Result<Answer, WireError> {
    Ok(match part.kind {
        NLMSG_ERROR => error(part)?,
        NLMSG_DONE => match u32_at(part.body, 0).map(u32::cast_signed) {
            None | Some(0) => Answer::Done,
            Some(code) => Answer::Failed {
                errno: code.saturating_neg(),
                says: String::new(),
            },
        },
        RTM_NEWLINK => Answer::Link(link(part.body)?),
        RTM_DELLINK => Answer::LinkGone(link(part.body)?),
        RTM_NEWQDISC => Answer::Qdisc(qdisc(part.body)?),
        RTM_NEWTFILTER => Answer::Filter(filter(part.body)?),
        _ => Answer::Other,
    })
}

fn field(body: &[u8], at: usize, need: usize) -> Result<u32, WireError> {
    let have = body.len();
    u32_at(body, at).ok_or(WireError::ShortBody { have, need })
}

/// nlmsgerr: error i32, the header of the request (its body too, unless capped), then attributes.
fn error(part: &Part<'_>) -> Result<Answer, WireError> {
    let code = field(part.body, 0, 20)?.cast_signed();
    if code == 0 {
        return Ok(Answer::Done);
    }
    let request = if part.flags & CAPPED == 0 {
        field(part.body, 4, 20)?
    } else {
        16
    };
    let mut says = String::new();
    if part.flags & ACK_TLVS != 0 {
        let end = usize::try_from(request)
            .unwrap_or(usize::MAX)
            .saturating_add(4 + 3)
            & !3;
        let attributes = Attributes::after(part.body, end)?;
        says = attributes.text(NLMSGERR_ATTR_MSG)?.unwrap_or_default();
    }
    Ok(Answer::Failed {
        errno: code.saturating_neg(),
        says,
    })
}

fn link(body: &[u8]) -> Result<Link, WireError> {
    let attributes = Attributes::after(body, LINK_BYTES)?;
    let info = attributes.nested(IFLA_LINKINFO)?;
    Ok(Link {
        index: field(body, 4, LINK_BYTES)?,
        up: field(body, 8, LINK_BYTES)? & 1 != 0,
        name: attributes.text(IFLA_IFNAME)?.unwrap_or_default(),
        kind: info.text(IFLA_INFO_KIND)?.unwrap_or_default(),
        master: number(attributes.find(IFLA_MASTER)?),
        peer: number(attributes.find(IFLA_LINK)?),
        mtu_bytes: number(attributes.find(IFLA_MTU)?).unwrap_or(0),
        mac: attributes
            .find(IFLA_ADDRESS)?
            .and_then(|mac| mac.try_into().ok())
            .unwrap_or_default(),
        alias: attributes.text(IFLA_IFALIAS)?.unwrap_or_default(),
    })
}

/// Not zero: no interface has that index.
fn number(value: Option<&[u8]>) -> Option<u32> {
    value
        .and_then(|value| u32_at(value, 0))
        .filter(|number| *number != 0)
}

fn qdisc(body: &[u8]) -> Result<Qdisc, WireError> {
    let attributes = Attributes::after(body, TRAFFIC_BYTES)?;
    let statistics = attributes.nested(TCA_STATS2)?;
    let basic = statistics.find(TCA_STATS_BASIC)?.unwrap_or(&[]);
    let queue = statistics.find(TCA_STATS_QUEUE)?.unwrap_or(&[]);
    let counter = |of: &[u8], at| u32_at(of, at).unwrap_or(0);
    Ok(Qdisc {
        index: field(body, 4, TRAFFIC_BYTES)?,
        handle: field(body, 8, TRAFFIC_BYTES)?,
        parent: field(body, 12, TRAFFIC_BYTES)?,
        kind: attributes.text(TCA_KIND)?.unwrap_or_default(),
        counters: Counters {
            sent_bytes: u64_at(basic, 0).unwrap_or(0),
            sent_frames: counter(basic, 8),
            backlog_frames: counter(queue, 0),
            backlog_bytes: counter(queue, 4),
            dropped_frames: counter(queue, 8),
        },
    })
}

fn filter(body: &[u8]) -> Result<Filter, WireError> {
    let attributes = Attributes::after(body, TRAFFIC_BYTES)?;
    let options = attributes.nested(TCA_OPTIONS)?;
    let action = options.nested(TCA_U32_ACT)?.nested(1)?;
    let parameters = action.nested(TCA_ACT_OPTIONS)?.find(TCA_MIRRED_PARMS)?;
    let mirred = action.text(TCA_ACT_KIND)?.as_deref() == Some("mirred");
    let kind = attributes.text(TCA_KIND)?.unwrap_or_default();
    let is_u32 = kind == "u32";
    // The protocol stands in network byte order in the lower half of the field.
    let protocol = u16_at(
        body,
        if cfg!(target_endian = "little") {
            16
        } else {
            18
        },
    );
    Ok(Filter {
        index: field(body, 4, TRAFFIC_BYTES)?,
        parent: field(body, 12, TRAFFIC_BYTES)?,
        protocol: u16::from_be(protocol.unwrap_or(0)),
        kind,
        redirects_to: parameters.filter(|_| mirred).and_then(target),
        has_selector: options.find(TCA_U32_SEL)?.is_some() || !is_u32,
    })
}

fn target(parameters: &[u8]) -> Option<u32> {
    let is = |at, value: i32| u32_at(parameters, at) == Some(value.cast_unsigned());
    let all = is(8, TC_ACT_STOLEN) && is(20, TCA_EGRESS_REDIR);
    u32_at(parameters, 24).filter(|_| all)
}
