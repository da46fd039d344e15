//! The guests of a host, and what of them becomes an event.

use super::announcer::Announcer;
use super::mechanism::Chosen;
use super::{DaemonError, io_error};
use crate::gate;
use crate::hold::{self, Hold, HoldError, Mechanism, Notice};
use crate::install::{self, Standing};
use crate::netlink::Netlink;
use blkback_proto::ctl::{EventKind, NetDone};
use blockrep_host::ctl::{EventLog, NewEvent};
use std::collections::BTreeMap;
use std::time::Instant;

/// Guests and interfaces of one daemon: their status fits one answer.
const GUESTS_MAX: usize = 128;
const INTERFACES_MAX: usize = 256;

pub(super) struct Guests {
    pub(super) holds: BTreeMap<String, Hold>,
    pub(super) chosen: Chosen,
    pub(super) limit_bytes: u32,
    pub(super) log: EventLog,
    pub(super) announcer: Announcer,
    pub(super) begun: Instant,
}

/// Cutting and releasing many times a second is one state to a reader of events.
fn class(standing: &gate::Standing) -> &'static str {
    match standing.state {
        "holding" | "cut" => "protected",
        other => other,
    }
}

impl Guests {
    pub(super) fn new(
        chosen: Chosen,
        limit_bytes: u32,
        log: EventLog,
    ) -> Result<Self, DaemonError> {
        Ok(Self {
            holds: BTreeMap::new(),
            chosen,
            limit_bytes,
            log,
            announcer: Announcer::new().map_err(io_error("a packet socket"))?,
            begun: Instant::now(),
        })
    }

    /// Takes over what an earlier daemon left, held. A guest that cannot be taken over is told of and left
    /// as it is: the others are not without a daemon because of it.
    pub(super) fn adopt(&mut self) -> Result<(), DaemonError> {
        let named = |guest: &str| {
            let guest = guest.to_owned();
            |source| DaemonError::Guest { guest, source }
        };
        let found = hold::found(&mut Netlink::open()?).map_err(named("netbuf"))?;
        for (guest, indices) in found {
            let (mechanism, limit) = (self.chosen.mechanism, self.limit_bytes);
            let adopted = Hold::adopt(Netlink::open()?, &guest, mechanism, limit, &indices);
            let hold = match adopted {
                Ok(hold) => hold,
                Err(error) => {
                    let next = "attach its devices again when that is mended, or netbuf cleanup";
                    let event = NewEvent::new(&guest, EventKind::NetState, error.to_string(), next);
                    self.log.publish(event.change("unknown", "failed"));
                    continue;
                }
            };
            if hold.is_empty() {
                continue;
            }
            let standing = hold.standing();
            for (_, interface) in hold.interfaces() {
                self.interface_event(
                    &guest,
                    &interface,
                    "adopted",
                    "found after a restart",
                    standing.next,
                );
            }
            let event = NewEvent::new(&guest, EventKind::NetState, standing.reason, standing.next);
            self.log.publish(event.change("unknown", standing.state));
            self.holds.insert(guest, hold);
        }
        Ok(())
    }

    pub(super) fn attach(
        &mut self,
        guest: &str,
        interface: &str,
        bridge: Option<&str>,
    ) -> Result<NetDone, HoldError> {
        hold::check_guest(guest)?;
        hold::check_device(interface)?;
        bridge.map_or(Ok(()), hold::check_device)?;
        if let Some(other) = self.owner_of(interface).filter(|other| *other != guest) {
            return Err(HoldError::OtherGuest {
                interface: interface.to_owned(),
                guest: other.to_owned(),
            });
        }
        let interfaces: usize = self
            .holds
            .values()
            .map(|hold| hold.interfaces().len())
            .sum();
        if interfaces >= INTERFACES_MAX {
            return Err(HoldError::TooMany("interfaces", INTERFACES_MAX));
        }
        if !self.holds.contains_key(guest) {
            if self.holds.len() >= GUESTS_MAX {
                return Err(HoldError::TooMany("guests", GUESTS_MAX));
            }
            let hold = self.begin(guest, interface)?;
            self.holds.insert(guest.to_owned(), hold);
        }
        let hold = self.holds.get_mut(guest).expect("just inserted");
        let done = hold.attach(interface, bridge);
        let (state, next) = (hold.standing().state, hold.standing().next);
        if hold.is_empty() && done.is_err() {
            self.holds.remove(guest);
        }
        if done.as_ref().is_ok_and(|done| !done.already) {
            let why = format!(
                "its output is {state}, by the {}",
                self.chosen.mechanism.word()
            );
            self.interface_event(guest, interface, "attached", &why, next);
        }
        done
    }

    /// A guest that is new to this daemon: open, unless what its device says is redirected by us already.
    /// Then somebody held it, and only the authority's word opens it.
    fn begin(&self, guest: &str, interface: &str) -> Result<Hold, HoldError> {
        let mut netlink = Netlink::open()?;
        let (mechanism, limit) = (self.chosen.mechanism, self.limit_bytes);
        let index = netlink.link(interface)?.map(|link| link.index);
        let ours = match index {
            Some(index) => install::look(&mut netlink, index)?.standing(),
            None => Standing::Absent,
        };
        match (ours, index) {
            (Standing::Whole { .. } | Standing::Shut, Some(index)) => {
                Hold::adopt(netlink, guest, mechanism, limit, &[index])
            }
            _ => Ok(Hold::new(netlink, guest, mechanism, limit)),
        }
    }

    /// The guest whose interface this is.
    fn owner_of(&self, interface: &str) -> Option<&str> {
        let mut all = self.holds.iter();
        all.find(|(_, hold)| hold.index_of(interface).is_some())
            .map(|(guest, _)| guest.as_str())
    }

    pub(super) fn interface_event(
        &self,
        guest: &str,
        interface: &str,
        now: &str,
        why: &str,
        next: &str,
    ) {
        let event = NewEvent::new(
            guest,
            EventKind::NetInterface,
            format!("{interface} {now}: {why}"),
            next,
        );
        let mut event = event.detail("interface", interface);
        event.new_state = Some(now.to_owned());
        self.log.publish(event);
    }

    /// Tells of a change of state, if it is one to a reader.
    pub(super) fn state_event(&self, guest: &str, before: &gate::Standing, after: &gate::Standing) {
        let (old, new) = (class(before), class(after));
        if old == new {
            return;
        }
        let event = NewEvent::new(guest, EventKind::NetState, &after.reason, after.next);
        self.log.publish(event.change(old, new));
    }

    pub(super) fn all_open(&self) -> bool {
        self.holds
            .values()
            .all(|hold| hold.standing().state == "open")
    }

    /// Links have changed.
    pub(super) fn look(&mut self) {
        let names: Vec<String> = self.holds.keys().cloned().collect();
        for guest in names {
            let hold = self.holds.get_mut(&guest).expect("listed above");
            let before = hold.standing();
            let notices = hold.look();
            let after = hold.standing();
            match notices {
                Ok(notices) => notices.iter().for_each(|notice| self.tell(&guest, notice)),
                Err(error) => tracing::error!("{guest}: its devices cannot be looked at: {error}"),
            }
            self.state_event(&guest, &before, &after);
        }
    }

    /// Limits.
    pub(super) fn poll(&mut self) {
        let names: Vec<String> = self.holds.keys().cloned().collect();
        for guest in names {
            let notices = self.holds.get_mut(&guest).map(Hold::poll);
            for notice in notices.iter().flatten() {
                self.tell(&guest, notice);
            }
        }
    }

    fn tell(&mut self, guest: &str, notice: &Notice) {
        let limit = self.limit_bytes;
        match notice {
            Notice::Gone { interface } => {
                self.announcer.stop(guest, None);
                self.interface_event(guest, interface, "gone", "the device vanished", "");
            }
            Notice::Renamed { old, new } => {
                self.interface_event(guest, new, "renamed", &format!("it was {old}"), "");
            }
            Notice::Mended { interface, why } => {
                let why = format!("{why}; it was put back");
                self.interface_event(
                    guest,
                    interface,
                    "mended",
                    &why,
                    "find out who took it away",
                );
            }
            Notice::Failed { interface, why } => {
                let next = "detach it and attach it again";
                self.interface_event(guest, interface, "failed", why, next);
            }
            Notice::Alarm {
                interface,
                on,
                held_bytes,
            } => {
                let (old, new) = if *on {
                    ("below", "near")
                } else {
                    ("near", "below")
                };
                let reason = format!("{interface} holds {held_bytes} of {limit} bytes");
                let next = "at the limit the newest frames are dropped";
                let event = NewEvent::new(guest, EventKind::LimitReached, reason, next);
                let event = event.detail("interface", interface).change(old, new);
                self.log.publish(event);
            }
            Notice::Dropped { interface, frames } => {
                let reason = format!(
                    "{interface}: {frames} frames were dropped at the limit of {limit} bytes"
                );
                let next = "release sooner, or start it with a larger --limit";
                let event = NewEvent::new(guest, EventKind::LimitReached, reason, next);
                let event = event
                    .detail("interface", interface)
                    .detail("frames", frames);
                self.log.publish(event.change("near", "dropping"));
            }
        }
    }

    pub(super) fn summary(&self) -> String {
        let interfaces: usize = self
            .holds
            .values()
            .map(|hold| hold.interfaces().len())
            .sum();
        format!(
            "holds by the {} ({}); {} guests with {interfaces} interfaces",
            self.chosen.mechanism.word(),
            self.chosen.why,
            self.holds.len()
        )
    }

    /// What a daemon that ends leaves.
    pub(super) fn at_the_end(&self) -> String {
        match self.chosen.mechanism {
            _ if self.holds.is_empty() => "nothing is held".to_owned(),
            Mechanism::Plug => {
                "every plug stays as it is: what is held stays held, what is open stays open".to_owned()
            }
            Mechanism::Relay { .. } => {
                "output stops: what the relays held is dropped, and nothing passes until it is started again"
                    .to_owned()
            }
        }
    }
}
