//! One guest's output, held: one gate decides, and one mechanism carries out, over all its interfaces.
//!
//! ```text
//!   attach, cut n, release n, hold, open … ──► Hold ──► Gate ──orders──► Port ─┬─► plug of the kernel
//!                        answers, notices ◄────┘                    one each   └─► relay, a thread of ours
//! ```
//!
//! An order that fails goes back to the gate ([`Event::OrderFailed`]), which shuts the interface. Of the
//! mechanism nobody outside knows more than its name and how many epochs may be in flight.
//!
//! A hold belongs to the network namespace of the thread that made it, and does nothing by itself: its
//! owner calls [`Hold::poll`] (several times a second while something is held) and [`Hold::look`] (when
//! links change).

mod error;
mod limits;
mod plug;
mod port;
mod probe;
mod record;
mod relayed;
mod requests;
mod status;
mod wiring;

pub use error::HoldError;
pub use port::Held;
pub use probe::{PROBE, has_plug};
pub use record::{check_device, check_guest};
pub use wiring::{FREE_PREFIX, PORT_PREFIX, cleanup};

use crate::gate::{Event, Gate, Interface, State};
use crate::install::Begin;
use crate::netlink::{Link, Netlink, request};
use blockrep_host::clock;
use port::{Holder, Port};
use std::collections::BTreeMap;

/// What holds the frames of all interfaces of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// `sch_plug` behind an IFB; one epoch in flight.
    Plug,
    /// A thread between the interface and its bridge.
    Relay {
        /// How many epochs may be cut and unreleased, at least 1.
        epochs_max: usize,
    },
}

impl Mechanism {
    fn capacity(self) -> usize {
        match self {
            Self::Plug => crate::gate::CAPACITY_OF_PLUG,
            Self::Relay { epochs_max } => epochs_max,
        }
    }
}

/// What happened without a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The device vanished; the guest has one interface less.
    Gone {
        interface: String,
    },
    Renamed {
        old: String,
        new: String,
    },
    /// A part of its mechanism was taken away and was put back; nothing passed unheld.
    Mended {
        interface: String,
        why: String,
    },
    /// Its mechanism broke: its output is dropped.
    Failed {
        interface: String,
        why: String,
    },
    /// It holds more than three quarters of its limit, or again less than half.
    Alarm {
        interface: String,
        on: bool,
        held_bytes: u64,
    },
    /// The newest frames were dropped at the limit; how many since this was told last.
    Dropped {
        interface: String,
        frames: u64,
    },
}

/// See [`Hold::announced_on`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Index of the device to send on.
    pub on: u32,
    /// Index of the port; `None` where the bridge learns it from the frames.
    pub port: Option<u32>,
}

/// The guests whose names stand at what an earlier process left, with the indices of their interfaces.
///
/// # Errors
/// When the kernel does not answer.
pub fn found(netlink: &mut Netlink) -> Result<BTreeMap<String, Vec<u32>>, HoldError> {
    let mut guests: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for link in netlink
        .links()?
        .into_iter()
        .filter(|link| link.kind == "ifb")
    {
        let Some(index) = crate::install::vif_of(&link.name) else {
            continue;
        };
        if let Some(guest) = record::Record::read(&link.alias).guest {
            guests.entry(guest).or_default().push(index);
        }
    }
    Ok(guests)
}

/// The guest of the daemon whose name stands at an IFB.
#[must_use]
pub fn guest_at(ifb: &Link) -> Option<String> {
    record::Record::read(&ifb.alias).guest
}

/// The output of one guest.
#[derive(Debug)]
pub struct Hold {
    guest: String,
    mechanism: Mechanism,
    gate: Gate,
    netlink: Netlink,
    ports: BTreeMap<Interface, Port>,
    /// Dropped frames that an answer has told of.
    answered_drops: u64,
}

impl Hold {
    /// A guest without interfaces, open. `limit_bytes` of each interface, above 0.
    #[must_use]
    pub fn new(netlink: Netlink, guest: &str, mechanism: Mechanism, limit_bytes: u32) -> Self {
        let gate = Gate::with_capacity(limit_bytes, mechanism.capacity(), clock::unix_ms());
        Self {
            guest: guest.to_owned(),
            mechanism,
            gate,
            netlink,
            ports: BTreeMap::new(),
            answered_drops: 0,
        }
    }

    /// A guest whose interfaces an earlier process left: everything is held, whatever it was.
    ///
    /// # Errors
    /// What cannot be taken over; then nothing was opened.
    pub fn adopt(
        netlink: Netlink,
        guest: &str,
        mechanism: Mechanism,
        limit_bytes: u32,
        indices: &[u32],
    ) -> Result<Self, HoldError> {
        let mut hold = Self::new(netlink, guest, mechanism, limit_bytes);
        let mut found = Vec::new();
        for &index in indices {
            let Some(link) = hold.netlink.link_of(index)? else {
                // Its device went while nobody looked.
                crate::install::uninstall(&mut hold.netlink, index)?;
                continue;
            };
            let holder = hold.holder(&link, None, Begin::Held)?;
            let port = Port::new(&link.name, holder, None);
            hold.ports.insert(Interface(index), port);
            found.push(Interface(index));
        }
        hold.tell(Event::Restarted(found))?;
        hold.tell(Event::Limit { bytes: limit_bytes })?;
        Ok(hold)
    }

    #[must_use]
    pub fn guest(&self) -> &str {
        &self.guest
    }

    #[must_use]
    pub fn state(&self) -> &State {
        self.gate.state()
    }

    #[must_use]
    pub fn standing(&self) -> crate::gate::Standing {
        self.gate.standing()
    }

    /// The index of an interface of this guest, by its name.
    #[must_use]
    pub fn index_of(&self, interface: &str) -> Option<u32> {
        let named = self.ports.iter().find(|(_, port)| port.name == interface);
        named.map(|(index, _)| index.0)
    }

    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        self.ports.contains_key(&Interface(index))
    }

    /// Where the frames that announce a station of this interface are to be said, and the port behind which
    /// its bridge shall look for it. An interface without a bridge has no such place.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn announced_on(&mut self, index: u32) -> Result<Option<Announced>, HoldError> {
        let Some(port) = self.ports.get(&Interface(index)) else {
            return Ok(None);
        };
        // A standby's is down until now, so that its queue has room for what comes for the guest.
        self.netlink
            .ask("bring the device up", request::set_up(index, true))?;
        Ok(match &port.holder {
            Holder::Plug(_) => {
                let bridge = self.netlink.link_of(index)?.and_then(|link| link.master);
                bridge.map(|on| Announced {
                    on,
                    port: Some(index),
                })
            }
            Holder::Relay(relay) => {
                let free = self.netlink.link(&relay.wiring.free)?;
                free.map(|free| Announced {
                    on: free.index,
                    port: None,
                })
            }
        })
    }

    /// At the bridge of a port, a station is behind it from now on.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn station_is_behind(&mut self, port: u32, mac: [u8; 6]) -> Result<(), HoldError> {
        let message = request::station_is_behind(port, mac);
        Ok(self.netlink.ask("move the station", message)?)
    }

    /// Indices and names of the guest's interfaces.
    #[must_use]
    pub fn interfaces(&self) -> Vec<(u32, String)> {
        let all = self.ports.iter();
        all.map(|(index, port)| (index.0, port.name.clone()))
            .collect()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }
}
