//! An interface whose frames a relay holds.

use super::HoldError;
use super::port::Held;
use super::wiring::{Wiring, unplace};
use crate::gate::{Epoch, Order};
use crate::install::Begin;
use crate::netlink::{Link, Netlink};
use crate::relay::port::PortState;
use crate::relay::{Relay, RelayConfig, RelayError};

/// Between two commands a relay takes one turn; this is for a host that stands still. Who waits no longer does not
/// know what became of the order, and the guest is cut off.
const ANSWER_MAX: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct RelayPort {
    pub(super) wiring: Wiring,
    /// `None`: shut.
    relay: Option<Relay>,
    limit_bytes: u32,
}

impl RelayPort {
    /// Everything in place; beginning open or held. Refused: what was made is left to the caller, who
    /// knows whether the device may speak.
    pub(super) fn attach(
        netlink: &mut Netlink,
        guest: &str,
        vif: &Link,
        bridge: Option<&str>,
        limits: (u32, usize),
        begin: Begin,
    ) -> Result<Self, HoldError> {
        let (limit_bytes, epochs_max) = limits;
        let wiring = Wiring::place(netlink, guest, vif, bridge)?;
        let config = RelayConfig {
            held_bytes_max: usize::try_from(limit_bytes).unwrap_or(usize::MAX),
            epochs_max,
            held: begin == Begin::Held,
            answer_timeout: ANSWER_MAX,
            ..RelayConfig::new(&vif.name, &wiring.free)
        };
        let relay = Relay::start(&config).map_err(|source| HoldError::Relay {
            interface: vif.name.clone(),
            source,
        })?;
        Ok(Self {
            wiring,
            relay: Some(relay),
            limit_bytes,
        })
    }

    /// `joined_after`: of that epoch and all before it this relay knows nothing.
    pub(super) fn obey(&mut self, order: Order, joined_after: Option<Epoch>) -> Result<(), String> {
        if order == Order::Shut {
            // Dropped, it ends: what it held is gone, and nothing passes.
            self.relay = None;
            return Ok(());
        }
        let relay = self.relay.as_ref().ok_or("its relay was ended")?;
        let done = match order {
            Order::Buffer(epoch) => relay.cut(epoch.0).map(drop),
            Order::ReleaseOne(epoch) if joined_after >= Some(epoch) => Ok(()),
            Order::ReleaseOne(epoch) => relay.release(epoch.0).map(drop),
            Order::OpenAll => relay.open().map(drop),
            Order::Freeze | Order::Count => relay.hold(),
            Order::Limit { bytes } if bytes == self.limit_bytes => Ok(()),
            Order::Limit { .. } => return Err(HoldError::LimitFixed.to_string()),
            Order::Shut => Ok(()),
        };
        done.map_err(|error: RelayError| error.to_string())
    }

    pub(super) fn held(&self) -> Option<Held> {
        let status = self.relay.as_ref()?.status().ok()?;
        let queue = status.queue;
        Some(Held {
            frames: queue.held.frames + queue.ready.frames,
            bytes: queue.charged_bytes as u64,
            oldest_ms: queue.oldest_ns.map(|age_ns| age_ns / 1_000_000),
            dropped_frames: queue.dropped.frames + status.outbound.socket_drops,
        })
    }

    pub(super) fn leave(mut self, netlink: &mut Netlink, opens: bool) -> Result<(), HoldError> {
        self.relay = None;
        if opens {
            return unplace(netlink, self.wiring.vif);
        }
        self.wiring.disown(netlink)
    }

    /// Puts back the wall behind the relay that somebody took away. True if that was all.
    pub(super) fn mend(&self, netlink: &mut Netlink) -> Result<bool, HoldError> {
        self.wiring.mend(netlink)?;
        Ok(self.broken(netlink)?.is_none())
    }

    pub(super) fn broken(&self, netlink: &mut Netlink) -> Result<Option<String>, HoldError> {
        if let Some(why) = self.wiring.broken(netlink)? {
            return Ok(Some(why));
        }
        let Some(relay) = &self.relay else {
            return Ok(None);
        };
        Ok(match relay.status() {
            Ok(status) if status.bridge == PortState::Gone => {
                Some("the relay's end of the veth pair went".into())
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        })
    }
}
