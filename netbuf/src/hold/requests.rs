//! What may be asked of a hold: each request is one event for the gate, and its orders.

use super::limits::wait_for;
use super::plug::PlugPort;
use super::port::{Holder, Port};
use super::relayed::RelayPort;
use super::{Hold, HoldError, Mechanism, wiring};
use crate::gate::{Directed, Epoch, Event, Interface, Lineage, Order, Quiet, Refusal, State};
use crate::install::{Begin, ifb_name};
use crate::netlink::Link;
use crate::script::mark;
use blkback_proto::ctl::NetDone;
use blockrep_host::clock;
use std::collections::VecDeque;

impl Hold {
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

    pub(super) fn holder(
        &mut self,
        link: &Link,
        bridge: Option<&str>,
        begin: Begin,
    ) -> Result<Holder, HoldError> {
        let limit_bytes = self.gate.limit_bytes();
        let (netlink, guest) = (&mut self.netlink, &self.guest);
        if let Some(found) = mark::of(netlink, link.index)? {
            return Err(HoldError::Libxls {
                interface: link.name.clone(),
                path: found.mark.path.to_string(),
            });
        }
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
    pub(super) fn tell(&mut self, event: Event) -> Result<(), HoldError> {
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
