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
mod record;
mod relayed;
mod status;
mod wiring;

pub use error::HoldError;
pub use port::Held;
pub use record::{check_device, check_guest};
pub use wiring::{FREE_PREFIX, PORT_PREFIX, cleanup};

use crate::gate::{Directed, Epoch, Event, Gate, Interface, Lineage, Order, Quiet, Refusal, State};
use crate::install::{Begin, ifb_name};
use crate::netlink::{Link, Netlink};
use blkback_proto::ctl::NetDone;
use blockrep_host::clock;
use limits::wait_for;
use plug::PlugPort;
use port::{Holder, Port};
use relayed::RelayPort;
use std::collections::{BTreeMap, VecDeque};

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

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// From now on the output of a device is held as the guest's state says. `bridge`: for a relay, the
    /// bridge to speak to; without it the one the device is a port of.
    ///
    /// # Errors
    /// [`HoldError`]; then the device is as it was, but for [`HoldError::OrderFailed`].
    pub fn attach(&mut self, interface: &str, bridge: Option<&str>) -> Result<NetDone, HoldError> {
        let link = self.netlink.link(interface)?;
        let link = link.ok_or_else(|| HoldError::NoDevice(interface.to_owned()))?;
        if self.has(link.index) {
            return Ok(self.done(true, String::new()));
        }
        let begin = match self.gate.state() {
            State::Open => Begin::Open,
            _ => Begin::Held,
        };
        let ours_before = self.netlink.link(&ifb_name(link.index))?.is_some();
        let holder = match self.holder(&link, bridge, begin) {
            Ok(holder) => holder,
            Err(error) => {
                // It spoke for itself until now, and shall again.
                if !ours_before && matches!(self.mechanism, Mechanism::Relay { .. }) {
                    wiring::unplace(&mut self.netlink, link.index)?;
                }
                return Err(error);
            }
        };
        let port = Port::new(&link.name, holder, self.gate.last_cut());
        self.ports.insert(Interface(link.index), port);
        self.tell(Event::Added(Interface(link.index)))?;
        Ok(self.done(false, String::new()))
    }

    fn holder(
        &mut self,
        link: &Link,
        bridge: Option<&str>,
        begin: Begin,
    ) -> Result<Holder, HoldError> {
        let limit_bytes = self.gate.limit_bytes();
        let (netlink, guest) = (&mut self.netlink, &self.guest);
        Ok(match self.mechanism {
            Mechanism::Plug => {
                let index = link.index;
                Holder::Plug(PlugPort::attach(netlink, guest, index, limit_bytes, begin)?)
            }
            Mechanism::Relay { epochs_max } => {
                let limits = (limit_bytes, epochs_max);
                Holder::Relay(RelayPort::attach(
                    netlink, guest, link, bridge, limits, begin,
                )?)
            }
        })
    }

    /// Leaves a device alone. What is held of it is dropped; what it says afterwards passes if the guest's
    /// output is open, and is dropped if not.
    ///
    /// # Errors
    /// What the kernel refused; the interface is no longer this guest's all the same.
    pub fn detach(&mut self, interface: &str) -> Result<NetDone, HoldError> {
        let Some(index) = self.index_of(interface) else {
            return Ok(self.done(true, format!("{interface} was not attached")));
        };
        let index = Interface(index);
        self.tell(Event::Detached(index))?;
        let opens = *self.gate.state() == State::Open;
        let port = self.ports.remove(&index).expect("found above");
        port.leave(&mut self.netlink, opens)?;
        let note = if opens {
            String::new()
        } else {
            format!(
                "output was not open: what {interface} says is dropped; type netbuf attach {} {interface} \
                 to hold it again, or netbuf cleanup to let it pass",
                self.guest
            )
        };
        Ok(self.done(false, note))
    }

    /// Closes epoch n: what is said from now on is of a later one.
    ///
    /// # Errors
    /// [`HoldError::Refused`] as the gate's table says, [`HoldError::OrderFailed`].
    pub fn cut(&mut self, epoch: Epoch) -> Result<NetDone, HoldError> {
        if matches!(self.gate.state(), State::Cut { epochs } if epochs.contains(&epoch)) {
            return Ok(self.done(true, String::new()));
        }
        let drained = match (self.gate.state(), self.mechanism) {
            (State::Open, Mechanism::Plug) => wait_for(|| self.backlog_frames() == Some(0)),
            // A relay marks the place; only where counts begin has nothing to be on its way.
            _ => true,
        };
        self.tell(Event::Cut { epoch, drained })?;
        Ok(self.done(false, String::new()))
    }

    /// Lets go everything up to the end of epoch n, which the backup has.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn release(&mut self, epoch: Epoch) -> Result<NetDone, HoldError> {
        match self.tell(Event::Release(epoch)) {
            Ok(()) => Ok(self.done(false, String::new())),
            Err(HoldError::Refused(Refusal::AlreadyOut { .. })) => {
                Ok(self.done(true, String::new()))
            }
            Err(error) => Err(error),
        }
    }

    /// Nothing more leaves.
    ///
    /// # Errors
    /// [`HoldError::OrderFailed`].
    pub fn hold(&mut self, why: &str) -> Result<NetDone, HoldError> {
        let already = matches!(self.gate.state(), State::Held { .. } | State::Failed { .. });
        self.tell(Event::Hold {
            why: why.to_owned(),
        })?;
        Ok(self.done(already, String::new()))
    }

    /// Who writes this guest, from the client of the authority.
    ///
    /// # Errors
    /// None now; as the others for the caller's sake.
    pub fn authority(&mut self, lineage: Lineage) -> Result<NetDone, HoldError> {
        let already = self.gate.authority() == Some(lineage);
        self.tell(Event::Authority(lineage))?;
        Ok(self.done(already, String::new()))
    }

    /// Everything leaves from now on.
    ///
    /// # Errors
    /// As [`Self::cut`]; refused without the lineage that the authority named.
    pub fn open(&mut self, lineage: Lineage) -> Result<NetDone, HoldError> {
        let already = *self.gate.state() == State::Open;
        self.tell(Event::Open(lineage))?;
        Ok(self.done(already, String::new()))
    }

    /// Counts anew from the end of epoch n, at which the paused guest stands.
    ///
    /// # Errors
    /// As [`Self::cut`].
    pub fn resync(
        &mut self,
        epoch: Epoch,
        paused: bool,
        committed: Option<Epoch>,
    ) -> Result<NetDone, HoldError> {
        let next = epoch.0.checked_add(1).map(Epoch);
        if matches!(self.gate.state(), State::Holding { epoch } if Some(*epoch) == next) {
            return Ok(self.done(true, String::new()));
        }
        let quiet = Quiet {
            paused,
            committed,
            backlog_frames: self.backlog_frames(),
        };
        self.tell(Event::Resync { epoch, quiet })?;
        Ok(self.done(false, String::new()))
    }

    /// Bytes an interface holds before the newest frames are dropped.
    ///
    /// # Errors
    /// [`HoldError::LimitFixed`] with relays; [`HoldError::Refused`] for 0.
    pub fn limit(&mut self, bytes: u32) -> Result<(), HoldError> {
        if bytes == self.gate.limit_bytes() {
            return Ok(());
        }
        match self.mechanism {
            Mechanism::Plug => self.tell(Event::Limit { bytes }),
            Mechanism::Relay { .. } => Err(HoldError::LimitFixed),
        }
    }

    fn backlog_frames(&mut self) -> Option<u64> {
        self.sum().held.map(|held| held.frames)
    }

    /// An event to the gate, and its orders to the interfaces; the first failure of an order, if any.
    fn tell(&mut self, event: Event) -> Result<(), HoldError> {
        let now_ms = clock::unix_ms();
        let mut orders = Vec::new();
        self.gate.step(event, now_ms, &mut orders)?;
        let mut orders = VecDeque::from(orders);
        let mut first = None;
        while let Some(Directed { to, order }) = orders.pop_front() {
            let Some(port) = self.ports.get_mut(&to) else {
                continue;
            };
            let Err(what) = port.obey(&mut self.netlink, order) else {
                continue;
            };
            let interface = port.name.clone();
            tracing::error!("{interface}: {order:?} was not carried out: {what}");
            port.failed.get_or_insert_with(|| what.clone());
            // One that cannot even be shut has told so; there is nothing left to order.
            if order != Order::Shut {
                let mut more = Vec::new();
                let failed = Event::OrderFailed {
                    of: to,
                    what: what.clone(),
                };
                self.gate.step(failed, now_ms, &mut more)?;
                orders.extend(more);
                first.get_or_insert(HoldError::OrderFailed { interface, what });
            }
        }
        first.map_or(Ok(()), Err)
    }
}
